"""One caller's share of the bodies in progress, and what is held no longer. The total is in test_connections.py."""

import pytest
from pydantic import ValidationError
from starlette.types import Message, Receive

from handoff.server.bodies import Bodies, BodyRefused, RequestCutOff
from handoff.settings import Settings

MIB = 1 << 20
SETTINGS = Settings(body_bytes_max=2 * MIB, bodies_bytes_max=8 * MIB, agent_share=0.5)


def sending(*parts: int, cut_off: bool = False) -> Receive:
    """A client that sends parts of so many bytes, and then goes away or is done."""
    messages: list[Message] = [{"type": "http.request", "body": b"x" * size, "more_body": True} for size in parts]
    if cut_off:
        messages.append({"type": "http.disconnect"})
    else:
        messages[-1]["more_body"] = False

    async def receive() -> Message:
        return messages.pop(0)

    return receive


async def held(bodies: Bodies, caller: str | None, *parts: int) -> int:
    return len(await bodies.read(sending(*parts), {}, caller, 2 * MIB))


async def test_an_agent_uses_no_more_than_its_share_and_leaves_the_rest_to_others() -> None:
    bodies = Bodies(SETTINGS)
    for _ in range(2):
        await held(bodies, "ada", MIB, MIB)

    with pytest.raises(BodyRefused) as refused:
        await held(bodies, "ada", 1)
    assert refused.value.too_large == "share"
    assert await held(bodies, "bob", 2 * MIB) == 2 * MIB
    bodies.give_back(2 * MIB, "ada")
    assert await held(bodies, "ada", MIB) == MIB


async def test_callers_without_a_token_share_the_whole_because_nothing_tells_them_apart() -> None:
    bodies = Bodies(SETTINGS)
    for _ in range(4):
        await held(bodies, None, 2 * MIB)

    with pytest.raises(BodyRefused) as refused:
        await held(bodies, None, 1)
    assert refused.value.too_large == "total"


async def test_a_body_that_is_refused_or_cut_off_is_held_no_longer() -> None:
    bodies = Bodies(SETTINGS)
    for _ in range(10):
        with pytest.raises(RequestCutOff):
            await bodies.read(sending(MIB, cut_off=True), {}, "ada", 2 * MIB)
        with pytest.raises(BodyRefused) as refused:
            await held(bodies, "ada", MIB, MIB, 1)
        assert refused.value.too_large == "body"

    assert await held(bodies, "ada", MIB, MIB) == 2 * MIB


async def test_requests_without_a_body_leave_those_of_the_same_caller_alone() -> None:
    bodies = Bodies(SETTINGS)
    for size in (0, 0, 1):
        await held(bodies, "ada", size)
    for size in (1, 0, 0):
        bodies.give_back(size, "ada")

    assert await held(bodies, "ada", 2 * MIB) == 2 * MIB


async def test_a_body_that_is_announced_but_has_not_come_takes_no_room() -> None:
    bodies = Bodies(SETTINGS)
    announced = {"content-length": str(2 * MIB)}
    for _ in range(10):
        with pytest.raises(RequestCutOff):
            await bodies.read(sending(1, cut_off=True), announced, None, 2 * MIB)
    for _ in range(4):
        await held(bodies, None, 2 * MIB)

    with pytest.raises(BodyRefused) as refused:  # refused before anything is read
        await bodies.read(sending(cut_off=True), announced, None, 2 * MIB)
    assert refused.value.too_large == "total"


def test_a_total_that_no_largest_body_would_fit_into_is_refused_at_the_start() -> None:
    with pytest.raises(ValidationError, match="must be at least HANDOFF_BODY_BYTES_MAX"):
        Settings(body_bytes_max=2 * MIB, bodies_bytes_max=MIB)
