"""The end of the simulation: every connection is closed, once, however it ends."""

import asyncio

import pytest

from handoff.cli.demo_work import run_simulation, schedule_for
from handoff.simulation import runner
from handoff.simulation.agents import NAMES
from handoff.simulation.client import AgentClient
from handoff.simulation.options import SimulationOptions
from tests.processes import PATIENCE_S


@pytest.fixture(autouse=True)
def _patient_for_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can't be closed here is not waited for."""
    monkeypatch.setattr(runner, "CLEANUP_S", 1.0)


async def test_the_simulation_ends_even_if_a_breaking_connection_swallows_the_cancellation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    swallowed = 0

    async def swallow_cancellation(_client: AgentClient, _http: object) -> None:
        nonlocal swallowed
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed += 1
            raise OSError("the connection broke") from None

    monkeypatch.setattr(AgentClient, "_check_service", swallow_cancellation)
    options = SimulationOptions("http://127.0.0.1:1/mcp", NAMES[:2], for_s=0.1)
    async with asyncio.timeout(PATIENCE_S):
        assert await run_simulation(options, schedule_for(options)) == 0
    assert swallowed == 2


async def test_no_connection_is_left_open_however_long_closing_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = 0

    async def close_slowly(_client: AgentClient, _http: object) -> None:
        nonlocal closed
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(1)  # a second cancellation would end this early
            closed += 1

    monkeypatch.setattr(AgentClient, "_check_service", close_slowly)
    options = SimulationOptions("http://127.0.0.1:1/mcp", NAMES[:2], for_s=0.1)
    assert await run_simulation(options, schedule_for(options)) == 0
    assert closed == 2
