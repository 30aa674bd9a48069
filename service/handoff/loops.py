"""Whether a session that is about to be handed on goes in circles, and what its sender and its receiver are told. No I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from handoff.configuration import LoopLimits
from handoff.errors import Conflict
from handoff.model import HELD_STATES, Loop

_LOOPS: Final[tuple[Loop, ...]] = get_args(Loop)
_INSTEAD: Final = (
    "finish the work yourself or ask a person to decide; if you hold a handoff of this session, block it with "
    "resolve_handoff action=block, with the question as note."
)
_OR_BLOCK: Final = "block the handoff (resolve_handoff action=block) and ask a person."
# For the receiver, about the handoff that it is offered or holds. Short, because every brief of such a session has it.
_NOTICES: Final[Mapping[Loop, str]] = {
    "rounds": "This session has gone this way and come back {times} within 24 hours. Do not hand it back: finish the work, "
    "or " + _OR_BLOCK,
    "depth": "This is the last of {count} handoffs that wait for one another. Do not hand it on: do the work yourself, or "
    + _OR_BLOCK,
    "handoffs": "This session was handed over {times} before. Do not hand it on: finish the work, or " + _OR_BLOCK,
}


@dataclass(frozen=True, slots=True)
class Circles:
    """How an offer continues the handoffs before it, in numbers that LoopLimits limits."""

    rounds: int
    depth: int
    handoffs: int

    def over(self, limits: LoopLimits, prefix: str = "") -> Loop | None:
        """The most telling loop whose number has reached its limit, if any has. The prefix is that of the limits' names."""
        for loop in _LOOPS:
            limit: int | None = getattr(limits, prefix + loop)
            if limit is not None and getattr(self, loop) >= limit:
                return loop
        return None


@dataclass(frozen=True, slots=True)
class Finding:
    """A loop that an offer continues: its kind and number, which the handoff keeps, and what to tell the sender."""

    kind: Loop
    count: int
    warning: str


def find(
    trail: Sequence[Mapping[str, Any]], limits: LoopLimits, sender: str, agent: str | None, capability: str | None
) -> Finding | None:
    """Return the loop that an offer continues, if it does; see `circles`. Raises Conflict if the operator refuses that."""
    found = circles(trail, sender, agent, capability)
    target = repr(agent) if agent else f"an agent with {capability!r}"
    if refused := found.over(limits, "refuse_"):
        raise Conflict(
            "loop_limit",
            f"{_said(refused, found, sender, target)} The operator allows no further offer, so nothing was offered.",
            f"Do not offer it again: {_INSTEAD}",
            loop=refused,
            limit=getattr(limits, f"refuse_{refused}"),
        )
    if (kind := found.over(limits)) is None:
        return None
    warning = (
        f"{_said(kind, found, sender, target)} Unless something is different this time, withdraw the offer with "
        f"resolve_handoff action=cancel: {_INSTEAD} If something is different, say what by request_handoff with handoff_id."
    )
    return Finding(kind, getattr(found, kind), warning)


def circles(trail: Sequence[Mapping[str, Any]], sender: str, agent: str | None, capability: str | None) -> Circles:
    """How an offer from `sender` to the agent or the capability continues the session's handoffs, `trail`, newest first.

    A round is a handoff from the sender to this target that was accepted, after which the sender accepted one itself, both
    within 24 hours (`is_recent`). So loops of any length are found, but not a sender that gives an agent one task after
    another, each of which that agent completes. The depth counts this offer, and the held handoffs above it: the one that
    its sender holds, the one that the sender of that holds, and so on. `handoffs` are those that were ever accepted.
    """
    rounds, is_out = 0, False
    for row in reversed(trail):
        if not row["is_recent"]:  # or never accepted
            continue
        if row["sender"] == sender and (row["holder"] == agent if agent else row["target_capability"] == capability):
            is_out = True
        elif is_out and row["holder"] == sender:
            rounds, is_out = rounds + 1, False
    given_by = {row["holder"]: row["sender"] for row in reversed(trail) if row["state"] in HELD_STATES}
    chain = [sender]
    while (above := given_by.get(chain[-1])) is not None and above not in chain:
        chain.append(above)
    return Circles(rounds, len(chain), sum(row["accepted_at"] is not None for row in trail))


def notice(loop: Mapping[str, Any]) -> str:
    """What to tell the receiver of a handoff, from what the handoff has kept."""
    return _NOTICES[loop["kind"]].format(count=loop["count"], times=_times(loop["count"]))


def _said(loop: Loop, found: Circles, sender: str, target: str) -> str:
    return {
        "rounds": f"Within 24 hours, this session has already gone from {sender!r} to {target} and come back "
        f"{_times(found.rounds)}.",
        "depth": f"With this offer, {found.depth} handoffs of this session wait for one another.",
        "handoffs": f"This session has already been handed over {_times(found.handoffs)}.",
    }[loop]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
