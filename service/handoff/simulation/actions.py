"""What scenarios are made of: actions of one agent, each a few calls."""

from typing import Any, Final

from handoff.model import RequestType
from handoff.simulation import text
from handoff.simulation.agents import SimulatedAgent
from handoff.simulation.steps import Answer, ScenarioFailed, SimulatedSession, Steps, StepsToAnswer

LEASES_S: Final = (3_600, 7_200, 14_400)
POLLS_MAX: Final = 40  # while waiting for a lease or a deadline to end
POLL_S: Final = 2.0
SLOW_RESPONSE_S: Final = (180.0, 480.0)  # added to the response delay by the fault "slow"


def start_session(session: SimulatedSession, writes: int = 0) -> StepsToAnswer:
    """Let the sender register the session and work in it. `writes` of 0 means as many as the agent usually makes."""
    sender, rng = session.sender, session.rng
    arguments: dict[str, Any] = {"metadata": {"demo": "work", "task": session.topic.title}}
    if rng.random() < 0.3:
        arguments["retention_policy"] = "short"
    answer = yield session.step(sender, "register_session", **arguments)
    session.key, session.owner = answer["session_key"], sender
    return (yield from write_entries(session, sender, writes or sender.habits.writes, ask=rng.random() < 0.5))


def write_entries(session: SimulatedSession, agent: SimulatedAgent, writes: int, *, ask: bool = False) -> StepsToAnswer:
    """Let an agent append entries in several calls, sometimes reading first; with `ask`, end with an open question."""
    rng, topic, answer = session.rng, session.topic, Answer()
    for _ in range(writes):
        if rng.random() < agent.habits.read_probability:
            yield from _read_or_search(session, agent)
        entries = [text.entry(rng, topic, agent.habits.content_bytes) for _ in range(rng.choices((1, 2, 4), (6, 3, 1))[0])]
        answer = yield session.step(agent, "update_context", session_key=session.key, entries=entries)
    if ask:
        entries = [text.question(rng, topic)]
        answer = yield session.step(agent, "update_context", session_key=session.key, entries=entries)
        session.question = answer["last_sequence"]
    return answer


def _read_or_search(session: SimulatedSession, agent: SimulatedAgent) -> StepsToAnswer:
    key, rng = session.key, session.rng
    match rng.randrange(7):
        case 0:
            step = session.step(agent, "search_context", query=text.query(rng, session.topic), session_key=key)
        case 1:
            step = session.step(agent, "search_context", query=text.query(rng, session.topic))
        case 2:
            step = session.step(agent, "get_context", session_key=key, token_budget=rng.choice((500, 1_500, 4_000)))
        case 3:
            step = session.step(agent, "get_context", session_key=key, view="entries", limit=rng.choice((5, 20)))
        case 4:
            step = session.step(agent, f"handoff://summary/{key}")
        case 5:
            step = session.step(agent, f"handoff://context/{key}")
        case _:
            step = session.step(agent, f"handoff://sessions/{key}/lifecycle")
    return (yield step)


def make_offer(session: SimulatedSession, request_type: RequestType, deadline_minutes: int | None = None) -> StepsToAnswer:
    """Let the sender offer a handoff, to the receiver by name or to one of its capabilities."""
    sender, rng = session.sender, session.rng
    if session.capability:
        arguments: dict[str, Any] = {"target_capability": session.capability}
    else:
        arguments = {"target_agent": session.receiver.name}
    if deadline_minutes is None and not session.without_pauses and rng.random() < sender.habits.deadline_probability:
        deadline_minutes = rng.choice((60, 240, 1_440))
    if deadline_minutes is not None:
        arguments["deadline_minutes"] = deadline_minutes
    answer = yield session.step(
        sender,
        "request_handoff",
        session_key=session.key,
        request_type=request_type,
        instructions=text.instructions(rng, session.topic),
        priority=rng.choices((2, 5, 8), (1, 4, 1))[0],
        **arguments,
    )
    session.handoff_id, session.handoff_token, session.handoff_state = answer["handoff_id"], 0, answer["state"]
    return answer


def find_offer(session: SimulatedSession, delays: float = 1.0) -> StepsToAnswer:
    """Let the receiver find the offer in its inbox, after about `delays` times its usual response delay."""
    receiver, rng = session.receiver, session.rng
    arguments: dict[str, Any] = {"capabilities": list(receiver.capabilities)} if session.capability else {}
    pauses = delays * rng.uniform(0.3, 1.7) * receiver.habits.response_delay_s / receiver.habits.pause_s
    wait_s = rng.uniform(*SLOW_RESPONSE_S) if "slow" in session.faults and not session.without_pauses else 0.0
    answer = yield session.step(receiver, "get_inbox", pauses, wait_s, **arguments)
    if rng.random() < receiver.habits.read_probability:
        answer = yield session.step(receiver, f"handoff://handoffs/{session.handoff_id}")
    return answer


def take_offer(session: SimulatedSession, lease_s: int | None = None) -> StepsToAnswer:
    """Let the receiver accept the handoff."""
    answer = yield session.step(
        session.receiver,
        "accept_handoff",
        handoff_id=session.handoff_id,
        lease_seconds=lease_s or session.rng.choice(LEASES_S),
        token_budget=session.rng.choice((800, 1_500, 3_000)),
    )
    session.handoff_token, session.handoff_state = answer["handoff"]["token"], answer["handoff"]["state"]
    if answer["handoff"]["request_type"] == "full_handoff":
        session.owner = session.receiver
    return answer


def continue_work(session: SimulatedSession) -> StepsToAnswer:
    """Let the receiver work in the session that it holds, answer the open question and write a summary."""
    receiver, rng = session.receiver, session.rng
    yield from write_entries(session, receiver, receiver.habits.writes)
    if rng.random() < receiver.habits.renew_probability:
        yield from renew_lease(session)
    entries = [text.summary(rng, session.topic)]
    if session.question:
        entries.insert(0, text.answer(rng, session.topic, session.question))
        session.question = 0
    return (yield session.step(receiver, "update_context", session_key=session.key, entries=entries))


def renew_lease(session: SimulatedSession, pauses: float = 1.0) -> StepsToAnswer:
    """Let the receiver renew its lease, which also ends a block."""
    answer = yield session.step(
        session.receiver,
        "renew_handoff",
        pauses,
        handoff_id=session.handoff_id,
        token=session.handoff_token,
        lease_seconds=session.rng.choice(LEASES_S),
    )
    session.handoff_state = answer["state"]
    return answer


def resolve(
    session: SimulatedSession, agent: SimulatedAgent, action: str, note: str | None = None, pauses: float = 1.0
) -> StepsToAnswer:
    """Let an agent complete, block, reject or cancel the handoff."""
    arguments: dict[str, Any] = {"handoff_id": session.handoff_id, "action": action}
    if action in ("complete", "block"):
        arguments["token"] = session.handoff_token
    if note is not None:
        arguments["note"] = note
    answer = yield session.step(agent, "resolve_handoff", pauses, **arguments)
    session.handoff_state = answer["state"]
    return answer


def complete(session: SimulatedSession) -> StepsToAnswer:
    """Let the receiver complete the handoff."""
    return (yield from resolve(session, session.receiver, "complete", text.outcome(session.rng, session.topic)))


def end_session(session: SimulatedSession, outcome: str = "completed") -> Steps:
    """Let the owner close the session; now and then it tries to write to it afterwards."""
    owner = session.owner or session.sender
    yield session.step(owner, "close_session", session_key=session.key, outcome=outcome)
    session.closed = True
    if session.rng.random() < owner.habits.mistake_probability:
        entries = [text.summary(session.rng, session.topic)]
        yield session.mistake(owner, "update_context", "session_closed", session_key=session.key, entries=entries)


def wait_for_state_change(session: SimulatedSession, agent: SimulatedAgent, wait_s: float) -> StepsToAnswer:
    """Let an agent read the handoff until its lease has lapsed or its deadline has passed; return it as it is then.

    The first read is after `wait_s` seconds, the others every `POLL_S`. Raises ScenarioFailed when nothing changes.
    """
    for _ in range(POLLS_MAX):
        answer = yield session.step(agent, f"handoff://handoffs/{session.handoff_id}", 0.0, wait_s)
        if answer["state"] != session.handoff_state:
            session.handoff_state = answer["state"]
            session.owner = session.sender
            return answer
        wait_s = POLL_S
    raise ScenarioFailed("still_" + session.handoff_state)


def swap_roles(session: SimulatedSession) -> None:
    """Make the receiver the sender of the next handoff, and the other way round."""
    session.sender, session.receiver = session.receiver, session.sender
    session.capability, session.handoff_state = "", ""
