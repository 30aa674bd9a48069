"""What each page shows. It reads resources and calls tools as the person's token may; each of these is a recorded call."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Final, get_args
from urllib.parse import urlencode

from handoff.context import App
from handoff.model import NAME_PATTERN, Caller, HandoffAction, RequestType, SessionStatus
from handoff.server.calls import Failure, call_tool, read_resource
from handoff.telemetry.calls import Arrival

_PAGE: Final = 50  # items of a list
_HANDOFFS_SHOWN: Final = 20  # of a session, newest first


class Problem(Exception):
    """What is asked can't be shown or done: the error in the service's own words, and the page's status."""

    def __init__(self, status: int, message: str, hint: str) -> None:
        super().__init__(message)
        self.status, self.message, self.hint = status, message, hint


@dataclass(slots=True)
class Visit:
    """A request for a page: who asks, for which names in the path, with which query or form."""

    app: App
    caller: Caller
    headers: dict[str, str]
    path: tuple[str, ...] = ()
    given: dict[str, str] = field(default_factory=dict)
    arrival: Arrival | None = None  # of the last call, around which the request's span is made

    async def read(self, path: str, **query: Any) -> dict[str, Any]:
        """A resource's JSON. Raises Problem."""
        asked = urlencode({name: str(value) for name, value in query.items() if value not in (None, "")})
        self.arrival = Arrival(monotonic(), None, self.headers)
        found = await read_resource(
            self.app, self.caller, f"handoff://{path}" + (f"?{asked}" if asked else ""), self.arrival
        )
        if isinstance(found, Failure):
            raise _problem(json.loads(found.body)["error"])
        return json.loads(found[0])

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """A tool's result. Without tokens, `agent` says who acts. Raises Problem."""
        given = {name: value for name, value in arguments.items() if value not in (None, "")}
        if self.caller.agent is not None:
            given["agent"] = self.caller.agent
        self.arrival = Arrival(monotonic(), None, self.headers)
        reply = await call_tool(self.app, self.caller, tool, given, self.arrival, asyncio.Event().wait)
        if reply.is_error:
            raise _problem(json.loads(reply.body)["error"])
        return json.loads(reply.body)

    @property
    def may_write(self) -> bool:
        """Whether the token has the scope `write`."""
        return bool(self.caller.scopes & {"write", "admin"})


_STATUS: Final = {
    "scope_missing": 403, "agent_mismatch": 403, "not_owner": 403, "not_writer": 403, "not_addressed": 403,
    "session_not_found": 404, "handoff_not_found": 404, "brief_not_found": 404, "resource_not_found": 404,
    "invalid_arguments": 400, "unavailable": 503, "overloaded": 503, "internal": 500,
}  # fmt: skip


def _problem(error: dict[str, Any]) -> Problem:
    return Problem(_STATUS.get(error["code"], 409), error["message"], error["try"])


async def inbox(visit: Visit) -> dict[str, Any]:
    """What waits, for whom, for how long, and how late it is."""
    state = "held" if visit.given.get("state") == "held" else "offered"
    page = await visit.read("handoffs", state=state, limit=_PAGE, cursor=visit.given.get("cursor"))
    return {"state": state, "handoffs": page["handoffs"], "next": _next(visit, page)}


async def sessions(visit: Visit) -> dict[str, Any]:
    """Sessions by status and agent, or entries that match a text."""
    text, agent, status = (visit.given.get(name, "").strip() for name in ("text", "agent", "status"))
    shown: dict[str, Any] = {
        "statuses": get_args(SessionStatus), "text": text, "agent": agent, "status": status,
        "names_agent": visit.caller.agent is None, "matches": None, "sessions": [], "next": None, "note": "",
    }  # fmt: skip
    if text and visit.caller.agent is None and not agent:
        return shown | {"note": "Without tokens, a text is searched for in one agent's sessions: enter the agent too."}
    if text:
        found = await visit.call("search_context", agent=agent, query=text, limit=_PAGE)
        return shown | {"matches": found["matches"], "note": found.get("hint") or found.get("bounded", "")}
    page = await visit.read("sessions", status=status, agent=agent, limit=_PAGE, cursor=visit.given.get("cursor"))
    return shown | {"sessions": page["sessions"], "next": _next(visit, page)}


async def session(visit: Visit) -> dict[str, Any]:
    """A session's trail: its entries, or those of a kind; its events; its handoffs."""
    key, only = visit.path[0], visit.given.get("only", "")
    chosen = {"type": "decision"} if only == "decision" else {"only": only}
    found = await visit.read(f"sessions/{key}")
    entries = await visit.read(f"context/{key}", limit=_PAGE, cursor=visit.given.get("cursor"), **chosen)
    events = await visit.read(f"sessions/{key}/lifecycle", limit=100)
    summary = await visit.read(f"summary/{key}")
    return {
        "session": found, "entries": entries["entries"], "next": _next(visit, entries), "only": only,
        "events": events["events"], "more_events": "next_cursor" in events,
        "handoffs": summary["handoffs"][:_HANDOFFS_SHOWN], "summary": summary,
        "is_open": found["status"] in ("active", "dormant"), "types": get_args(RequestType), "name_pattern": NAME_PATTERN,
        "acts_as": visit.caller.agent or found["owner"],
    }  # fmt: skip


async def brief(visit: Visit) -> dict[str, Any]:
    """The brief that a receiver gets."""
    key = visit.path[0]
    found = await visit.read(f"sessions/{key}")
    composed = await visit.call("get_context", agent=found["owner"], session_key=key)
    return {"session": found, "brief": composed["brief"]}


async def handoff(visit: Visit) -> dict[str, Any]:
    """One handoff with its receipt, and what the person can do about it."""
    found = await visit.read(f"handoffs/{visit.path[0]}")
    traces = visit.app.settings.trace_url
    trace = traces + found["trace_id"] if traces and "trace_id" in found else None
    by = found.get("holder") if found["state"] in ("accepted", "blocked") else None
    renews = by if visit.caller.agent in (None, by) else None
    return {"handoff": found, "actions": _actions(found, visit.caller.agent), "renews": renews, "trace": trace}


async def accepted_brief(visit: Visit) -> dict[str, Any]:
    """The brief that the receiver of a handoff got."""
    return await visit.read(f"handoffs/{visit.path[0]}/brief")


async def health(visit: Visit) -> dict[str, Any]:
    """The health report."""
    return {"report": await visit.read("health")}


async def offer(visit: Visit) -> str:
    """Offer a session; return where to go on."""
    given = visit.given
    done = await visit.call(
        "request_handoff",
        agent=given.get("agent"),
        session_key=visit.path[0],
        target_agent=given.get("target_agent"),
        target_capability=given.get("target_capability"),
        request_type=given.get("request_type"),
        instructions=given.get("instructions", "").replace("\r\n", "\n"),
        priority=_number(given, "priority"),
        idempotency_key=given.get("idempotency_key"),
    )
    return f"/ui/handoffs/{done['handoff_id']}"


async def resolve(visit: Visit) -> str:
    """Cancel, reject, complete or block a handoff; return where to go on."""
    number, action = visit.path[0], visit.given.get("action", "")
    found = await visit.read(f"handoffs/{number}")
    agents = _actions(found, visit.caller.agent)
    if action not in agents:
        raise Problem(409, f"Handoff {number} is {found['state']}: you can't {action or 'change'} it.", "Look at it again.")
    token = found.get("token") if action in ("complete", "block") else None
    note = visit.given.get("note", "").strip()
    await visit.call(
        "resolve_handoff", agent=agents[action], handoff_id=found["handoff_id"], action=action, token=token, note=note
    )
    return f"/ui/handoffs/{number}"


async def renew(visit: Visit) -> str:
    """Extend the lease of a handoff, or resume one that is blocked; return where to go on."""
    found = await visit.read(f"handoffs/{visit.path[0]}")
    agent, token = found.get("holder"), found.get("token", 0)
    await visit.call("renew_handoff", agent=agent, handoff_id=found["handoff_id"], token=token)
    return f"/ui/handoffs/{visit.path[0]}"


def _actions(handoff: dict[str, Any], agent: str | None) -> dict[HandoffAction, str]:
    """What can be done about a handoff now, and as whom: as the token's agent or, without tokens, as whoever may."""
    if handoff["state"] == "offered":
        may: dict[HandoffAction, str] = {"cancel": handoff["sender"]}
        if "target_agent" in handoff:
            may["reject"] = handoff["target_agent"]
    elif handoff["state"] in ("accepted", "blocked"):
        may = {"complete": handoff["holder"], "block": handoff["holder"]} if handoff["state"] == "accepted" else {}
    else:
        may = {}
    return {action: by for action, by in may.items() if agent in (None, by)}


def _number(given: dict[str, str], name: str) -> int | None:
    text = given.get(name, "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise Problem(400, f"{name} must be a number.", "Correct it, and send the form again.")
    return int(text)


def _next(visit: Visit, page: dict[str, Any]) -> str | None:
    """The query of the next page, if there is one."""
    if "next_cursor" not in page:
        return None
    kept = {name: value for name, value in visit.given.items() if value and name != "cursor"}
    return urlencode({**kept, "cursor": page["next_cursor"]})


def lateness(handoff: dict[str, Any]) -> str:
    """How far the deadline or the end of the lease is away, or has passed."""
    due = handoff.get("lease_expires_at") or handoff.get("deadline")
    if due is None:
        return "no deadline"
    seconds = (datetime.fromisoformat(due) - datetime.now(UTC)).total_seconds()
    return f"{span(abs(seconds))} {'left' if seconds >= 0 else 'late'}"


def target(handoff: dict[str, Any]) -> str:
    """To whom a handoff is offered."""
    return handoff.get("target_agent") or f"any {handoff.get('target_capability')}"


def receiver(handoff: dict[str, Any]) -> str:
    """Who holds a handoff or, while nobody does, to whom it is offered."""
    return handoff.get("holder") or target(handoff)


def ago(time: str) -> str:
    """How long ago an RFC 3339 time was."""
    return span(max(0.0, (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()))


def when(time: str) -> str:
    """An RFC 3339 time in UTC, to the second."""
    return f"{datetime.fromisoformat(time).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def span(seconds: float) -> str:
    """A duration in its largest unit."""
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    unit, size_s = next(((it, size) for it, size in units if seconds >= size), units[-1])
    return f"{int(seconds) // size_s} {unit}"


Show = Callable[[Visit], Awaitable[dict[str, Any]]]
Change = Callable[[Visit], Awaitable[str]]
SHOWN: Final[dict[str, tuple[str, Show]]] = {
    "/ui/inbox": ("inbox.html", inbox),
    "/ui/sessions": ("sessions.html", sessions),
    "/ui/sessions/{}": ("session.html", session),
    "/ui/sessions/{}/brief": ("brief.html", brief),
    "/ui/handoffs/{}": ("handoff.html", handoff),
    "/ui/handoffs/{}/brief": ("accepted_brief.html", accepted_brief),
    "/ui/health": ("health.html", health),
}
CHANGED: Final[dict[str, Change]] = {
    "/ui/sessions/{}/offer": offer,
    "/ui/handoffs/{}/resolve": resolve,
    "/ui/handoffs/{}/renew": renew,
}
