"""How an agent ends what is still open in a session, whatever its state."""

from dataclasses import replace
from typing import Any, Final

from handoff.model import HELD_STATES
from handoff.simulation.agents import SimulatedAgent
from handoff.simulation.steps import SimulatedSession, Steps, StepsToAnswer

ROUNDS_MAX: Final = 3
# Any of these may come because another agent cleaned up first.
CLEANUP_ERRORS: Final = (
    "",
    "session_not_found",
    "session_closed",
    "handoff_not_found",
    "wrong_state",
    "stale_token",
    "open_handoffs",
)


def clean_up_session(session: SimulatedSession) -> Steps:
    """End the session's open handoffs and close it, and look whether that is so: a lease may lapse in the middle of it."""
    agents = {agent.name: agent for agent in session.agents}
    default_agent = session.owner or session.sender

    def attempt(agent: SimulatedAgent, operation: str, **arguments: Any) -> StepsToAnswer:
        return (yield replace(session.step(agent, operation, 0.0, **arguments), expected_errors=CLEANUP_ERRORS))

    for _ in range(ROUNDS_MAX):
        summary = yield from attempt(default_agent, f"handoff://summary/{session.key}")
        if summary.get("status") != "active":
            return
        for handoff in summary.get("handoffs", ()):
            target: dict[str, Any] = {"handoff_id": handoff["handoff_id"]}
            is_offered = handoff["state"] == "offered"
            if handoff["state"] in HELD_STATES:
                holder = agents.get(handoff["holder"], default_agent)
                held = yield from attempt(holder, f"handoff://handoffs/{handoff['handoff_id']}")
                target["token"] = held.get("token", 0)
                if handoff["state"] == "blocked":  # only renewing leads out of this state
                    yield from attempt(holder, "renew_handoff", **target)
                completed = yield from attempt(holder, "resolve_handoff", **target, action="complete")
                is_offered = "error" in completed  # its lease has lapsed
            if is_offered:
                sender = agents.get(handoff["sender"], default_agent)
                yield from attempt(sender, "resolve_handoff", **target, action="cancel")
                summary = yield from attempt(default_agent, f"handoff://summary/{session.key}")  # it went back to its sender
        if summary.get("status") == "active":
            owner = agents.get(summary["owner"], default_agent)
            yield from attempt(owner, "close_session", session_key=session.key, outcome="cancelled")
