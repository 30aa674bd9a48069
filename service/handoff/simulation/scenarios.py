"""What agents do with a session on an ordinary day, from its first entry until it is closed."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from handoff.model import RequestType
from handoff.simulation import text
from handoff.simulation.actions import (
    complete,
    continue_work,
    end_session,
    find_offer,
    make_offer,
    renew_lease,
    resolve,
    start_session,
    swap_roles,
    take_offer,
    wait_for_state_change,
    write_entries,
)
from handoff.simulation.cleanup import clean_up_session
from handoff.simulation.steps import SimulatedSession, Steps

SHORT_LEASE_S: Final = 5  # the shortest that the service grants
LAPSES_MAX: Final = 8
STALE_AFTER: Final = timedelta(minutes=45)  # no scenario is idle for this long
STALE_SESSIONS_MAX: Final = 5  # closed by one agent at a time

Scenario = Callable[[SimulatedSession, RequestType], Steps]


def completed(session: SimulatedSession, request_type: RequestType) -> Steps:
    """Hand the session over; the receiver completes the work."""
    yield from start_session(session)
    yield from make_offer(session, request_type)
    yield from find_offer(session)
    yield from take_offer(session)
    yield from continue_work(session)
    yield from complete(session)
    if request_type == "collaboration":  # both may write from now on
        for agent in (session.sender, session.receiver):
            yield from write_entries(session, agent, 1)
    yield from end_session(session)


def accepted_late(session: SimulatedSession, request_type: RequestType) -> Steps:
    """Hand the session over to a receiver that takes its time."""
    yield from start_session(session)
    yield from make_offer(session, request_type)
    yield from find_offer(session, delays=6)
    yield from take_offer(session)
    yield from continue_work(session)
    yield from complete(session)
    yield from end_session(session)


def rejected(session: SimulatedSession, request_type: RequestType) -> Steps:
    """Offer the session to a receiver that rejects it; the sender finishes alone."""
    session.capability = ""  # only a named receiver can reject
    yield from start_session(session)
    yield from make_offer(session, request_type)
    yield from find_offer(session)
    yield from resolve(session, session.receiver, "reject", text.rejection(session.rng, session.topic))
    yield from write_entries(session, session.sender, 1)
    yield from end_session(session)


def cancelled(session: SimulatedSession, request_type: RequestType) -> Steps:
    """Offer the session and withdraw the offer."""
    yield from start_session(session)
    yield from make_offer(session, request_type)
    yield from resolve(session, session.sender, "cancel", pauses=2)
    yield from end_session(session, "cancelled")


def blocked(session: SimulatedSession, request_type: RequestType) -> Steps:
    """Hand the session over to a receiver that is blocked for a while, then completes."""
    yield from start_session(session)
    yield from make_offer(session, request_type)
    yield from find_offer(session)
    yield from take_offer(session)
    yield from write_entries(session, session.receiver, 1)
    yield from resolve(session, session.receiver, "block", text.obstacle(session.rng, session.topic))
    yield from renew_lease(session, pauses=4)
    yield from continue_work(session)
    yield from complete(session)
    yield from end_session(session)


def lease_lapsed(session: SimulatedSession, request_type: RequestType) -> Steps:
    """Hand the session over to a receiver that lets its lease lapse, then accepts the handoff again."""
    session.state_uncertain = True
    yield from start_session(session)
    yield from make_offer(session, request_type)
    yield from find_offer(session)
    yield from take_offer(session, SHORT_LEASE_S)
    yield from wait_for_state_change(session, session.receiver, SHORT_LEASE_S + 0.5)
    stale = {"handoff_id": session.handoff_id, "action": "complete", "token": session.handoff_token}
    yield session.mistake(session.receiver, "resolve_handoff", "stale_token", "wrong_state", **stale)
    if session.handoff_state == "offered":  # a service that allows no lapses has expired it instead
        yield from take_offer(session)
        yield from continue_work(session)
        yield from complete(session)
    yield from end_session(session)


def abandoned(session: SimulatedSession, request_type: RequestType) -> Steps:
    """Hand the session over to a receiver that accepts and vanishes, again and again, until the handoff expires."""
    session.state_uncertain = True
    yield from start_session(session, writes=1)
    yield from make_offer(session, request_type)
    for _ in range(LAPSES_MAX):
        yield from find_offer(session)
        yield from take_offer(session, SHORT_LEASE_S)
        yield from wait_for_state_change(session, session.sender, SHORT_LEASE_S + 0.5)
        if session.handoff_state != "offered":
            break
    else:
        yield from resolve(session, session.sender, "cancel")
    yield from end_session(session)


def deadline_missed(session: SimulatedSession, request_type: RequestType) -> Steps:
    """Offer the session with a deadline that passes before anyone accepts."""
    session.state_uncertain = True
    yield from start_session(session, writes=1)
    yield from make_offer(session, request_type, deadline_minutes=1)
    yield from wait_for_state_change(session, session.sender, 61)
    yield from write_entries(session, session.sender, 1)
    yield from end_session(session)


def handed_back(session: SimulatedSession, _request_type: RequestType) -> Steps:
    """Hand the session over to another agent, which works on it and hands it back."""
    yield from start_session(session)
    for _ in range(2):
        yield from make_offer(session, "full_handoff")
        yield from find_offer(session)
        yield from take_offer(session)
        yield from continue_work(session)
        yield from complete(session)
        swap_roles(session)
    yield from end_session(session)


def inbox_and_cleanup(session: SimulatedSession, _request_type: RequestType) -> Steps:
    """Let an agent wait for work, search, and close sessions that an earlier run left open."""
    agent = session.sender
    capabilities = list(agent.capabilities)
    yield session.step(agent, "get_inbox", capabilities=capabilities, wait_seconds=session.rng.randint(1, 5))
    yield session.step(agent, "search_context", query=text.query(session.rng, session.topic))
    yield session.step(agent, f"handoff://agents/{agent.name}/inbox")
    listing = yield session.step(agent, f"handoff://agents/{agent.name}/sessions?status=active&limit=100")
    before = datetime.fromtimestamp(listing["answered_at"], UTC) - STALE_AFTER
    stale = [
        row["session_key"]
        for row in listing["sessions"]
        if (row["metadata"] or {}).get("demo") == "work" and datetime.fromisoformat(row["last_activity_at"]) < before
    ]
    session.outsider = None  # it may have taken part in the sessions that follow
    for key in stale[:STALE_SESSIONS_MAX]:
        session.key = key
        yield from clean_up_session(session)
