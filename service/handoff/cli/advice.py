"""What a report says should change: each rule looks at figures, and says what to do and why."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Final

from handoff.cli import amounts

_ENDED_MIN: Final = 10  # handoffs of a route, before its success says anything
_SUCCESS_MIN: Final = 0.7
_LAPSED_MAX: Final = 0.1  # of handoffs
_LARGE_SHARE_MAX: Final = 0.1  # of entries
_SOON: Final = timedelta(days=60)

_REASONS: Final = {
    "rejected": ("were rejected", "Read the reasons in the handoffs themselves, and change who is asked or what for."),
    "cancelled": ("were cancelled by the sender", "Check whether the receiver is running, and how long offers wait."),
    "deadline_passed": ("passed their deadline", "Give more time, or let the receiver look at its inbox more often."),
    "session_ended": (
        "ended with their session",
        "Check whether the receiver is running, or use a longer retention policy.",
    ),
}
FIGURES: Final = {
    "sessions": "The number of sessions",
    "handoffs": "The number of handoffs",
    "entries": "The number of entries",
    "content_bytes": "The size of what is written",
    "storage_bytes": "The size of the tables",
    "success_ratio": "The share of handoffs that are completed",
    "to_accept_s": "The time until a handoff is accepted",
    "to_complete_s": "The time from acceptance to completion",
    "lapsed_ratio": "The share of handoffs whose lease lapses",
    "large_entries": "The number of entries above 100,000 bytes",
}


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do, and why."""

    what: str
    why: str


def advice(
    handoffs: Mapping[str, Any],
    routes: Sequence[Mapping[str, Any]],
    context: Mapping[str, Any],
    trends: Sequence[Mapping[str, Any]],
    storage: Mapping[str, Any] | None,
    saving: Mapping[str, Any] | None,
    today: date,
) -> list[Advice]:
    """What follows from the figures of the range, the latest trends, and the forecast of the tables' size."""
    found = [*_storage(storage, saving, today), *_routes(routes)]
    if handoffs["handoffs"] and handoffs["lapsed"] / handoffs["handoffs"] > _LAPSED_MAX:
        share = handoffs["lapsed"] / handoffs["handoffs"]
        found.append(
            Advice(
                "Let agents renew their leases, or ask for longer ones.",
                f"The lease of {amounts.share(share)} of the handoffs lapsed at least once: their work was offered again.",
            )
        )
    if context["entries"] and context["large"] / context["entries"] > _LARGE_SHARE_MAX:
        found.append(
            Advice(
                "Write summaries or references instead of whole files.",
                f"{context['large']:,} of {context['entries']:,} entries have more than 100,000 bytes, which crowds others "
                "out of briefs.",
            )
        )
    found += [
        Advice(
            "Find out what is getting worse.",
            f"{FIGURES[it['figure']]} has changed by {amounts.change(it['change'])} over {it['days']} days "
            f"({amounts.probability(it['p_value'])}).",
        )
        for it in trends
        if it["verdict"] == "degrading"
    ]
    return found


def _storage(storage: Mapping[str, Any] | None, saving: Mapping[str, Any] | None, today: date) -> Iterator[Advice]:
    reached = (storage or {}).get("limit_reached") or {}
    earliest = date.fromisoformat(reached["earliest"]) if reached.get("earliest") else None
    if earliest is None or earliest > today + _SOON:
        return
    expected = f"by the forecast on {reached['expected']}, " if reached.get("expected") else ""
    how = ""
    if saving is not None:
        how = (
            f" Keeping archived sessions of the policy {saving['retention_policy']} for {saving['archived_days_instead']:g} "
            f"instead of {saving['archived_days']:g} days would save {saving['saves_bytes'] / 1e6:,.0f} MB."
        )
    yield Advice(
        "Make room in the database, or keep less.",
        f"The tables reach their limit {expected}on {reached['earliest']} at the earliest.{how}",
    )


def _routes(routes: Sequence[Mapping[str, Any]]) -> Iterator[Advice]:
    for route in routes:
        ended = sum(route["by_state"].get(state, 0) for state in ("completed", "rejected", "cancelled", "expired"))
        if ended < _ENDED_MIN or route["success_ratio"] >= _SUCCESS_MIN:
            continue
        reason, count = max(route["unsuccessful"].items(), key=lambda pair: pair[1])
        said, todo = _REASONS[reason]
        yield Advice(
            f"Look at the handoffs from {route_name(route)}.",
            f"{amounts.share(route['success_ratio'])} of {ended} were completed; {count} {said}. {todo}",
        )


def route_name(route: Mapping[str, Any]) -> str:
    """A route in words."""
    target = route.get("target_agent")
    return f"{route['sender']} to {target or 'whoever can ' + route['target_capability']}"
