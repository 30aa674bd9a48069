"""The simulation: a schedule that follows from the seed, every tool and every outcome, mistakes that are refused as
expected, and agents that wait for a service that is away.
"""

import asyncio
import hashlib
import json
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import asyncpg
import pytest

from handoff.cli.demo_work import InvalidOptions, run_simulation, schedule_for, simulation_options
from handoff.model import HandoffState, RequestType
from handoff.server.catalog import TOOLS
from handoff.simulation.agents import FAULTS, NAMES
from handoff.simulation.cleanup import CLEANUP_ERRORS
from handoff.simulation.client import RETRYABLE
from handoff.simulation.options import SimulationOptions
from handoff.simulation.schedule import REQUEST_TYPE_BATCH, ScheduledScenario
from handoff.simulation.steps import UNKNOWN_CALLER_REQUEST, Answer, Step, Steps, error_code
from tests.processes import HANDOFF, PATIENCE_S, Service, environment, serving, stop

WORK_S = 4 * PATIENCE_S  # of several agents at once, until what they do has shown everything


def recorded(schedule: Generator[ScheduledScenario], seen: list[tuple[Step, Answer]]) -> Generator[ScheduledScenario]:
    """The schedule; each step is added to `seen` with its answer."""

    def recording(steps: Steps) -> Steps:
        step = next(steps)
        while True:
            answer = yield step
            seen.append((step, answer))
            try:
                step = steps.send(answer)
            except StopIteration:
                return

    for scenario in schedule:
        yield ScheduledScenario(scenario.name, scenario.session, recording(scenario.steps))


def calls(printed: str) -> list[dict[str, Any]]:
    """The service's log lines about tool calls."""
    return [json.loads(line) for line in printed.splitlines() if '"event":"tool.call"' in line]


@pytest.fixture
def ended_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Awaitable[bool]]], None]:
    """Ends the simulations of this process when a condition holds, and leaves them the time that they need to clean up."""
    monkeypatch.setattr("handoff.simulation.runner.CLEANUP_S", PATIENCE_S)

    def ended_by(condition: Callable[[], Awaitable[bool]]) -> None:
        waiting: list[asyncio.Future[None]] = []

        async def wait_for_it(_: object, __: float) -> None:
            if not waiting:  # one looks, for all simulations
                waiting.append(asyncio.ensure_future(until(condition, WORK_S)))
            await asyncio.shield(waiting[0])

        monkeypatch.setattr("handoff.cli.demo_work._print_progress", wait_for_it)  # its end stops the simulation

    return ended_by


@pytest.mark.timeout(2 * WORK_S)
async def test_every_tool_is_used_every_state_is_reached_and_only_mistakes_are_refused(
    database_url: str,
    db: asyncpg.Connection,
    capsys: pytest.CaptureFixture[str],
    ended_by: Callable[[Callable[[], Awaitable[bool]]], None],
) -> None:
    tools = {tool.name for tool in TOOLS}
    seen: list[tuple[Step, Answer]] = []

    async def all_is_seen() -> bool:
        kinds = {row["kind"].removeprefix("handoff.") for row in await db.fetch("SELECT DISTINCT kind FROM event")}
        types = {row["request_type"] for row in await db.fetch("SELECT DISTINCT request_type FROM handoff")}
        codes = {error_code(answer) for _, answer in seen}
        return (
            {step.operation for step, answer in seen if not error_code(answer)} >= tools
            and {*get_args(HandoffState), "renewed", "lapsed"} <= kinds
            and types == set(get_args(RequestType)) == set(REQUEST_TYPE_BATCH)
            and len(codes) > 6  # the mistakes are not too much alike
        )

    ended_by(all_is_seen)
    with serving(database_url=database_url, settle_interval_s=0.5, lapses_max=0) as service:  # one lapse lets it expire
        options = SimulationOptions(service.url, NAMES[:6], seed=1, pace=40)
        status = await run_simulation(options, recorded(schedule_for(options), seen))

        async def settled() -> bool:
            return await db.fetchval("SELECT count(*) FROM handoff WHERE state IN ('offered', 'accepted', 'blocked')") == 0

        await until(settled)  # the service may not have noticed a lease that has just lapsed
        made = calls(stop(service))
    said = capsys.readouterr().out

    assert status == 0, said
    assert {call["tool"] for call in made if call["outcome"] == "ok"} == tools
    assert "internal" not in {call["outcome"] for call in made}

    outcomes = [(step, error_code(answer)) for step, answer in seen]
    mistakes = [step for step, _ in outcomes if step.expected_errors]
    refused = [step for step, code in outcomes if code]
    assert refused == mistakes, "a mistake was accepted, or another call was refused"
    assert [code for step, code in outcomes if step.expected_errors and code not in step.expected_errors] == []
    scheduled = Counter(
        code for step, code in outcomes if code and "://" not in step.operation and step.operation != UNKNOWN_CALLER_REQUEST
    )
    found = Counter(call["outcome"] for call in made if call["outcome"] not in ("ok", "cancelled"))
    assert not scheduled - found, "a refusal that an agent has seen is not in the log"
    # The cleanup at the end is not in the schedule. It may be refused too: when a lease lapses meanwhile, or for now.
    assert set(found - scheduled) <= {*CLEANUP_ERRORS, *RETRYABLE}
    assert "unexpected" not in said
    totals = r"^Stopped after \d:\d\d:\d\d: [\d,]+ calls?, [\d,]+ handoffs? completed, \d+ refused$"
    assert re.search(totals, said, re.MULTILINE)

    assert await db.fetchval("SELECT count(*) FROM session WHERE status = 'active'") <= 1, "sessions were left open"


@contextmanager
def working(service: Service, *arguments: str) -> Generator["subprocess.Popen[str]"]:
    """`handoff demo --work` until the end of the block."""
    command = [HANDOFF, "demo", "--work", "--url", service.url, *arguments]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        try:
            yield demo
        finally:
            demo.kill()


def printed_until(demo: "subprocess.Popen[str]", words: str) -> str:
    """What the demo prints up to the line that has these words."""
    assert demo.stdout is not None
    printed = ""
    while words not in printed:
        line = demo.stdout.readline()
        assert line, printed
        printed += line
    return printed


async def until(what: Callable[[], Awaitable[object]], most_s: float = PATIENCE_S) -> None:
    """Wait until a condition on the database holds."""
    give_up = time.monotonic() + most_s
    while not await what():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.1)


async def test_the_agents_continue_after_the_service_was_killed_and_report_once_that_it_did_not_answer(
    database_url: str, db: asyncpg.Connection
) -> None:
    async def done() -> int:
        return await db.fetchval("SELECT count(*) FROM handoff WHERE state = 'completed'")

    with serving(database_url=database_url) as service, working(service, "--pace", "60") as demo:
        await until(done)
        service.kill()
        before = await done()
        said = await asyncio.to_thread(printed_until, demo, "does not answer")
        with serving(port=service.port, database_url=database_url):

            async def more_is_done() -> bool:
                return await done() >= before + 3

            await until(more_is_done)
            demo.send_signal(signal.SIGINT)
            said += demo.communicate(timeout=PATIENCE_S)[0]

    assert demo.returncode == 0, said
    assert (said.count("does not answer"), said.count("answers again")) == (1, 1), said
    assert "unexpected" not in said
    assert "Traceback" not in said


async def test_a_signal_ends_the_simulation_and_leaves_nothing_open(database_url: str, db: asyncpg.Connection) -> None:
    with serving(database_url=database_url) as service:
        for by in (signal.SIGINT, signal.SIGTERM):
            before = await db.fetchval("SELECT count(*) FROM session")

            async def begun(before: int = before) -> bool:
                return await db.fetchval("SELECT count(*) FROM session") >= before + 6

            with working(service, "--pace", "20") as demo:
                await until(begun)
                demo.send_signal(by)
                said, _ = demo.communicate(timeout=PATIENCE_S)
            assert (demo.returncode, said.splitlines()[-1].split()[0]) == (0, "Stopped")
            if "may still be open" not in said:  # as it says when a machine is too busy to close everything in a minute
                assert await db.fetchval("SELECT count(*) FROM session WHERE status = 'active'") == 0


async def test_a_second_signal_leaves_open_what_is_open(database_url: str) -> None:
    with serving(database_url=database_url) as service, working(service, "--pace", "20") as demo:
        await asyncio.to_thread(printed_until, demo, "Press Ctrl-C")
        service.process.send_signal(signal.SIGSTOP)  # whatever is open can't be closed
        try:
            demo.send_signal(signal.SIGINT)
            await asyncio.to_thread(printed_until, demo, "to leave it open")
            demo.send_signal(signal.SIGINT)
            said, _ = demo.communicate(timeout=PATIENCE_S)
        finally:
            service.process.send_signal(signal.SIGCONT)
    assert (demo.returncode, said.splitlines()[-1].split()[0]) == (0, "Stopped")
    assert "may still be open" in said


async def test_a_tokens_file_names_the_agents_and_for_ends_the_simulation(
    database_url: str, tmp_path: Path, db: asyncpg.Connection
) -> None:
    known, theirs = tmp_path / "tokens", tmp_path / "theirs"
    names = ("ada", "grace", "zoe")
    known.write_text(
        "".join(f"{hashlib.sha256(name.encode()).hexdigest()} {name} read,write capabilities=*\n" for name in names)
    )
    theirs.write_text("# who works here\n" + "".join(f"{name}={name}\n" for name in names))
    with serving(database_url=database_url, tokens_file=known) as service:
        began = time.monotonic()
        with working(service, "--for", "1", "--tokens-file", str(theirs)) as demo:
            said, _ = demo.communicate(timeout=PATIENCE_S)
        assert demo.returncode == 0, said
        assert time.monotonic() - began > 1  # and it ended: nothing but the time ends it

        async def all_have_acted() -> bool:
            return await db.fetchval("SELECT count(DISTINCT agent) = 3 AND count(*) > 100 FROM event")

        with working(service, "--pace", "40", "--fault", "failing", "--tokens-file", str(theirs)) as demo:
            await until(all_have_acted)
            demo.send_signal(signal.SIGINT)
            said, _ = demo.communicate(timeout=PATIENCE_S)
        made = calls(stop(service))

    assert demo.returncode == 0, said
    assert "unexpected" not in said
    assert {call["agent"] for call in made if call["outcome"] == "ok"} == set(names)
    assert "agent_mismatch" in {call["outcome"] for call in made}


def test_a_service_that_the_agents_cannot_use_ends_the_simulation_with_what_to_do(database_url: str, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{hashlib.sha256(b'x').hexdigest()} ada read,write\n")
    with serving(database_url=database_url, tokens_file=tokens) as service:
        with working(service) as demo:
            said, _ = demo.communicate(timeout=PATIENCE_S)
        elsewhere = Service(service.process, service.port)
        with working(elsewhere, "--url", service.url.replace("/mcp", "/")) as lost:
            told, _ = lost.communicate(timeout=PATIENCE_S)

    assert (demo.returncode, lost.returncode) == (1, 1)
    assert "--tokens-file" in said.splitlines()[-1]
    assert "is not a Handoff service" in told.splitlines()[-1]


@pytest.mark.parametrize(
    "asked",
    [
        {"agents": 1},
        {"agents": 25},
        {"pace": 0.0},
        {"pace": float("nan")},
        {"pace": 101.0},
        {"for_s": 0.0},
        {"tokens": {"ada": "1"}},
        {"tokens_file": Path("/nowhere/tokens")},
        {"tokens_file": Path("/dev/null"), "tokens": {"ada": "1"}},
        {"tokens_file": Path(__file__)},
    ],
)
def test_an_option_out_of_bounds_is_refused(asked: dict[str, Any]) -> None:
    usual: dict[str, Any] = {
        "agents": 6,
        "seed": 1,
        "pace": 2.0,
        "faults": (),
        "for_s": None,
        "tokens": {},
        "tokens_file": None,
    }

    assert simulation_options("http://127.0.0.1:1/mcp", **usual).names == NAMES[:6]
    with pytest.raises(InvalidOptions):
        simulation_options("http://127.0.0.1:1/mcp", **{**usual, **asked})


def test_an_option_that_is_refused_ends_the_command_with_one_line() -> None:
    done = subprocess.run(
        [HANDOFF, "demo", "--work", "--pace", "0"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_every_fault_is_explained() -> None:
    help_ = subprocess.run([HANDOFF, "demo", "--help"], env=environment(), capture_output=True, text=True, check=True).stdout

    assert all(f"{fault} (" in " ".join(help_.split()) for fault in FAULTS)


@pytest.mark.timeout(2 * WORK_S)
async def test_each_fault_has_its_effect(
    database_url: str,
    db: asyncpg.Connection,
    capsys: pytest.CaptureFixture[str],
    ended_by: Callable[[Callable[[], Awaitable[bool]]], None],
) -> None:
    """All faults at the same time, each with its own agents, which work until the effects show."""
    accepted = "SELECT count(*) FROM event WHERE kind = 'handoff.accepted' AND agent LIKE $1"
    offered = "SELECT count(*) FROM handoff WHERE sender LIKE $1"
    lapses = "SELECT coalesce(sum(lapses), 0)::int FROM handoff WHERE sender LIKE $1"
    handoffs = (
        "SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM handoff WHERE sender LIKE $1 GROUP BY session_id) t"
    )
    largest = "SELECT coalesce(max(size_bytes), 0) FROM context_entry WHERE author LIKE $1"
    shared = asyncio.Lock()  # all simulations look through one connection

    async def figure(name: str, query: str) -> float:
        return await db.fetchval(query, f"{name}-%")

    async def effects_show() -> bool:
        async with shared:
            return (
                await figure("none", accepted) >= 6
                and await figure("slow", offered) > 3
                and await figure("failing", offered) >= 3
                and await figure("silent", lapses) > 2 * await figure("none", lapses)
                and await figure("ping-pong", handoffs) >= 6
                and await figure("growing", largest) > 200_000
            )

    ended_by(effects_show)
    with serving(database_url=database_url, settle_interval_s=0.5) as service:
        paces = {"none": 8, "slow": 6, "failing": 10, "silent": 20, "ping-pong": 12, "growing": 30}
        simulations = {
            name: SimulationOptions(
                service.url,
                tuple(f"{name}-{number}" for number in range(4)),
                pace=pace,
                faults=tuple(fault for fault in FAULTS if fault == name),
            )
            for name, pace in paces.items()
        }
        statuses = await asyncio.gather(
            *(run_simulation(options, schedule_for(options)) for options in simulations.values())
        )
        made = calls(stop(service))

    assert set(statuses) == {0}
    assert "unexpected" not in capsys.readouterr().out

    def refused_share(name: str) -> float:
        calls_made = [call for call in made if call.get("agent", "").startswith(f"{name}-")]
        return sum(call["outcome"] != "ok" for call in calls_made) / len(calls_made)

    assert await figure("slow", accepted) == 0 < await figure("none", accepted)
    assert await figure("slow", offered) > 3
    assert refused_share("failing") > 0.2  # and those whose arguments could not be read, of which no agent is known
    assert refused_share("none") < 0.1
    assert await figure("silent", lapses) > 2 * await figure("none", lapses)
    assert await figure("ping-pong", handoffs) >= 6
    assert await figure("none", handoffs) <= 2
    assert await figure("growing", largest) > 200_000
    assert await figure("none", largest) < 100_000
