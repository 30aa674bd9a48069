"""What agents do with a session only when a fault is asked for."""

from dataclasses import replace
from typing import Final

from handoff.model import RequestType
from handoff.simulation import text
from handoff.simulation.actions import complete, end_session, make_offer, start_session, swap_roles, take_offer
from handoff.simulation.steps import SimulatedSession, Steps

PING_PONG_HANDOFFS: Final = 24
LARGEST_BYTES: Final = 1_000_000
LARGEST_ENTRIES: Final = 4  # written at the largest size before the session is closed


def ping_pong(session: SimulatedSession, _request_type: RequestType) -> Steps:
    """Hand the same session back and forth between two agents without pauses."""
    session.without_pauses, session.capability = True, ""
    yield from start_session(session, writes=1)
    for _ in range(PING_PONG_HANDOFFS):
        yield from make_offer(session, "full_handoff")
        yield from take_offer(session)
        yield from complete(session)
        swap_roles(session)
    yield from end_session(session)


def growing(session: SimulatedSession, _request_type: RequestType) -> Steps:
    """Write entries that double in size, up to the largest that the service accepts."""
    yield from start_session(session, writes=1)
    size_bytes, size_bytes_max, largest = 1_000, LARGEST_BYTES, 0
    while largest < LARGEST_ENTRIES:
        content = text.text(session.rng, session.topic, size_bytes)[:size_bytes_max]
        entries = [{"type": "tool_call", "content": content}]
        step = session.step(session.sender, "update_context", session_key=session.key, entries=entries)
        answer = yield replace(step, expected_errors=("", "invalid_arguments"))
        size_bytes_max = min(size_bytes_max, answer.get("error", {}).get("bytes_max", size_bytes_max))
        largest += size_bytes >= size_bytes_max
        size_bytes = min(size_bytes_max, size_bytes * 2)
    yield from end_session(session)
