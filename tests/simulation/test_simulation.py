"""Agents at work: a script that follows from the seed, every tool and every end, mistakes that are meant, and no end to
their patience.
"""

import asyncio
import hashlib
import json
import re
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any, get_args

import asyncpg
import pytest

from handoff.model import HandoffState, RequestType
from handoff.server.catalog import TOOLS
from handoff.simulation.agents import FAULTS, NAMES, Fault
from handoff.simulation.client import Line
from handoff.simulation.runner import Job
from handoff.simulation.schedule import REQUEST_TYPES, Act, acts
from handoff.simulation.steps import STRANGE_REQUEST, Answer, Play, Step
from handoff.simulation.work import JobImpossible, job_of, script_of, work
from tests.processes import HANDOFF, PATIENCE_S, Service, environment, serving, stop


def rehearsed(act: Act, ids: Iterator[int]) -> list[Step]:
    """The steps of an act before a service that is made of `ids` and grants everything that is meant to be granted."""
    steps: list[Step] = []
    state = kind = ""
    answer: Answer = {}
    step = next(act.play)
    while len(steps) < 500:
        steps.append(step)
        number = next(ids)
        action = step.arguments.get("action", step.call)
        if not step.refusals:
            clock = {"offered": "expired", "accepted": "offered"} if "://handoffs/" in step.call and step.wait_s else {}
            state = clock.get(state, state)
            state = {
                "request_handoff": "offered",
                "accept_handoff": "accepted",
                "renew_handoff": "accepted",
                "block": "blocked",
                "complete": "completed",
                "cancel": "cancelled",
                "reject": "rejected",
            }.get(action, state)
            kind = step.arguments.get("request_type", kind)
        shown = {"handoff_id": number, "state": state, "token": number, "request_type": kind}
        answer = {**shown, "handoff": shown, "session_key": f"s-{number}", "last_sequence": number, "sessions": []}
        try:
            step = act.play.send({**answer, "answered_at": 0.0, "handoffs": [], "status": "active", "owner": "ada"})
        except StopIteration:
            break
    return steps


def script(seed: int, faults: Sequence[Fault] = (), first_id: int = 1) -> list[tuple[object, ...]]:
    """What is decided in the first acts; ids are left out, for they are the service's."""
    ids = count(first_id)
    chosen = islice(acts(seed, NAMES[:6], faults), 40)
    steps = [step for act in chosen for step in rehearsed(act, ids)]
    theirs = ("session_key", "handoff_id", "token")
    return [
        (
            step.task,
            re.sub(r"\d+", "N", step.call),
            json.dumps({name: value for name, value in step.arguments.items() if name not in theirs and name != "entries"}),
            [{**entry, "supersedes": ...} for entry in step.arguments.get("entries", ()) if isinstance(entry, dict)],
            step.pause_s,
            step.wait_s,
            step.refusals,
        )
        for step in steps
    ]


def test_the_same_seed_is_the_same_script_whatever_ids_the_service_gives_and_another_seed_is_another() -> None:
    assert len(script(1)) > 400
    assert script(1) == script(1, first_id=7_000)
    assert script(1) != script(2)
    for fault in FAULTS:
        assert script(1, [fault]) == script(1, [fault]) != script(1), fault


def test_names_roles_and_habits_follow_from_the_seed() -> None:
    people = [next(acts(seed, NAMES[:6])).scene.cast for seed in (1, 1, 2)]

    assert people[0] == people[1]
    assert {person.role for person in people[0]} != {"backend"}
    assert len({person.habits for person in people[0]}) == 6
    assert [person.habits for person in people[0]] != [person.habits for person in people[2]]


def watched(script: Generator[Act], seen: list[tuple[Step, Answer]]) -> Generator[Act]:
    """The script, with each step and its answer noted down."""

    def noting(play: Play) -> Play:
        step = next(play)
        while True:
            answer = yield step
            seen.append((step, answer))
            try:
                step = play.send(answer)
            except StopIteration:
                return

    for act in script:
        yield Act(act.plot, act.scene, noting(act.play))


def calls(printed: str) -> list[dict[str, Any]]:
    """The service's own lines about tool calls."""
    return [json.loads(line) for line in printed.splitlines() if '"event":"tool.call"' in line]


def work_until(holds: Callable[[], Awaitable[object]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let agents of this process work until something holds, and clear up for as long as that takes."""

    looking = asyncio.Lock()  # for companies beside one another look through one connection

    async def report(_: object, __: float) -> None:
        async with looking:
            await until(holds)

    monkeypatch.setattr("handoff.simulation.work._report", report)  # the end of it ends the work
    monkeypatch.setattr("handoff.simulation.work.CALLS_LEFT_S", PATIENCE_S)
    monkeypatch.setattr("handoff.simulation.work.CLEARING_S", PATIENCE_S)


async def test_every_tool_is_used_every_state_is_reached_and_only_mistakes_are_refused(
    database_url: str, db: asyncpg.Connection, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Step, Answer]] = []

    async def all_seen() -> bool:
        used = {step.call for step, answer in seen if "error" not in answer}
        codes = {answer.get("error", {}).get("code") for _, answer in seen}
        kinds = {row["kind"].removeprefix("handoff.") for row in await db.fetch("SELECT DISTINCT kind FROM event")}
        types = await db.fetchval("SELECT count(DISTINCT request_type) FROM handoff")
        return (
            {tool.name for tool in TOOLS} <= used
            and {*get_args(HandoffState), "renewed", "lapsed"} <= kinds
            and types == len(get_args(RequestType))
            and len(codes) > 6
        )

    work_until(all_seen, monkeypatch)
    with serving(database_url=database_url, settle_interval_s=0.5, lapses_max=0) as service:  # one lapse lets it expire
        job = Job(service.url, NAMES[:6], seed=1, pace=40)
        status = await work(job, watched(script_of(job), seen))

        async def settled() -> bool:
            return await db.fetchval("SELECT count(*) FROM handoff WHERE state IN ('offered', 'accepted', 'blocked')") == 0

        await until(settled)  # the clock may have to take one lease that has just lapsed
        made = calls(stop(service))
    said = capsys.readouterr().out

    assert status == 0, said
    assert {call["tool"] for call in made if call["outcome"] == "ok"} == {tool.name for tool in TOOLS}
    assert "internal" not in {call["outcome"] for call in made}
    kinds = {row["kind"].removeprefix("handoff.") for row in await db.fetch("SELECT DISTINCT kind FROM event")}
    assert {*get_args(HandoffState), "renewed", "lapsed"} <= kinds
    types = {row["request_type"] for row in await db.fetch("SELECT DISTINCT request_type FROM handoff")}
    assert types == set(get_args(RequestType)) == set(REQUEST_TYPES)

    outcomes = [(step, answer.get("error", {}).get("code")) for step, answer in seen]
    mistakes = [step for step, _ in outcomes if step.refusals]
    refused = [step for step, code in outcomes if code]
    assert refused == mistakes, "a mistake passed, or something else was refused"
    assert len({code for _, code in outcomes}) > 6, "their mistakes are always the same"
    assert [code for step, code in outcomes if step.refusals and code not in step.refusals] == []
    by_tool = [step for step in refused if "://" not in step.call and step.call != STRANGE_REQUEST]
    # The clearing up at the end is not in the script; it may be refused too, when a lease lapses meanwhile.
    assert 0 <= sum(call["outcome"] != "ok" for call in made) - len(by_tool) <= 3
    assert "not as meant" not in said
    assert re.search(r"^Ended after 0:0\d:\d\d: \d+ calls, \d+ handoffs completed, \d+ refused$", said, re.MULTILINE)

    assert await db.fetchval("SELECT count(*) FROM session WHERE status = 'active'") <= 1, "it lies around"


@contextmanager
def working(service: Service, *arguments: str) -> Generator["subprocess.Popen[str]"]:
    """`handoff demo --work` until the end of the block."""
    command = [HANDOFF, "demo", "--work", "--url", service.url, *arguments]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        try:
            yield demo
        finally:
            demo.kill()


async def until(what: Callable[[], Any]) -> None:
    """Wait until something that is asked of the database holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not await what():
            await asyncio.sleep(0.1)


async def test_they_go_on_when_the_service_was_killed_and_say_once_that_it_was_away(
    database_url: str, db: asyncpg.Connection
) -> None:
    async def done() -> int:
        return await db.fetchval("SELECT count(*) FROM handoff WHERE state = 'completed'")

    with serving(database_url=database_url) as service, working(service, "--pace", "60") as demo:
        await until(done)
        service.kill()
        before = await done()
        await asyncio.sleep(1.5)
        with serving(port=service.port, database_url=database_url):

            async def more_is_done() -> bool:
                return await done() >= before + 3

            await until(more_is_done)
            demo.send_signal(signal.SIGINT)
            said, _ = demo.communicate(timeout=PATIENCE_S)

    assert demo.returncode == 0, said
    assert (said.count("does not answer"), said.count("answers again")) == (1, 1), said
    assert "not as meant" not in said
    assert "Traceback" not in said


async def test_they_end_when_told_to_and_leave_nothing_open(database_url: str, db: asyncpg.Connection) -> None:
    # What the end takes is bounded in itself, by CALLS_LEFT_S and CLEARING_S: what is not cleared by then is left open.
    with serving(database_url=database_url) as service:
        for by in (signal.SIGINT, signal.SIGTERM):
            before = await db.fetchval("SELECT count(*) FROM session")

            async def begun(before: int = before) -> bool:
                return await db.fetchval("SELECT count(*) FROM session") >= before + 6

            with working(service, "--pace", "20") as demo:
                await until(begun)
                demo.send_signal(by)
                said, _ = demo.communicate(timeout=PATIENCE_S)
            assert (demo.returncode, said.splitlines()[-1].split()[0]) == (0, "Ended")
            assert await db.fetchval("SELECT count(*) FROM session WHERE status = 'active'") == 0


def test_with_a_tokens_file_its_names_are_the_agents_and_the_time_ends_it(database_url: str, tmp_path: Path) -> None:
    known, theirs = tmp_path / "tokens", tmp_path / "theirs"
    names = ("ada", "grace", "zoe")
    known.write_text("".join(f"{hashlib.sha256(name.encode()).hexdigest()} {name} read,write\n" for name in names))
    theirs.write_text("# who works here\n" + "".join(f"{name}={name}\n" for name in names))
    with serving(database_url=database_url, tokens_file=known) as service:
        began = time.monotonic()
        with working(service, "--for", "3", "--pace", "40", "--fault", "failing", "--tokens-file", str(theirs)) as demo:
            said, _ = demo.communicate(timeout=PATIENCE_S)
        took_s = time.monotonic() - began
        made = calls(stop(service))

    assert demo.returncode == 0, said
    assert took_s > 3  # and it ended: nothing else would have ended it
    assert "not as meant" not in said
    assert {call["agent"] for call in made if call["outcome"] == "ok"} == set(names)
    assert "agent_mismatch" in {call["outcome"] for call in made}


def test_who_is_not_let_in_is_told_what_to_do(database_url: str, tmp_path: Path) -> None:
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
    assert "is no Handoff service" in told.splitlines()[-1]


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
def test_what_is_beyond_a_bound_is_refused(asked: dict[str, Any]) -> None:
    usual: dict[str, Any] = {
        "agents": 6,
        "seed": 1,
        "pace": 2.0,
        "faults": (),
        "for_s": None,
        "tokens": {},
        "tokens_file": None,
    }

    assert job_of("http://127.0.0.1:1/mcp", **usual).names == NAMES[:6]
    with pytest.raises(JobImpossible):
        job_of("http://127.0.0.1:1/mcp", **{**usual, **asked})


def test_what_is_refused_on_the_command_line_is_a_sentence() -> None:
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


async def test_the_end_comes_even_if_a_breaking_connection_takes_it_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    swallowed = 0

    async def deaf(line: Line) -> None:
        nonlocal swallowed
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed += 1
        await asyncio.Event().wait()

    monkeypatch.setattr(Line, "run", deaf)
    job = Job("http://127.0.0.1:1/mcp", NAMES[:2], for_s=0.1)
    async with asyncio.timeout(PATIENCE_S):
        assert await work(job, script_of(job)) == 0
    assert swallowed == 2


async def test_each_fault_shows_its_mark(
    database_url: str, db: asyncpg.Connection, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once, each among agents of its own."""
    accepted = "SELECT count(*) FROM event WHERE kind = 'handoff.accepted' AND agent LIKE $1"
    offered = "SELECT count(*) FROM handoff WHERE sender LIKE $1"
    lapses = "SELECT coalesce(sum(lapses), 0)::int FROM handoff WHERE sender LIKE $1"
    volley = "SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM handoff WHERE sender LIKE $1 GROUP BY session_id) t"
    largest = "SELECT coalesce(max(size_bytes), 0) FROM context_entry WHERE author LIKE $1"

    async def figure(name: str, query: str) -> float:
        return await db.fetchval(query, f"{name}-%")

    async def marks_show() -> bool:
        """Those that come with time. That they are missing where they should be is asserted at the end."""
        return (
            await figure("none", accepted) >= 6
            and await figure("slow", offered) > 3
            and await figure("failing", offered) >= 3
            and await figure("silent", lapses) > 2 * await figure("none", lapses) + 1
            and await figure("ping-pong", volley) >= 6
            and await figure("growing", largest) > 200_000
        )

    work_until(marks_show, monkeypatch)
    with serving(database_url=database_url, settle_interval_s=0.5) as service:
        paces = {"none": 8, "slow": 6, "failing": 10, "silent": 20, "ping-pong": 12, "growing": 30}
        companies = {
            name: Job(
                service.url,
                tuple(f"{name}-{number}" for number in range(4)),
                pace=pace,
                faults=() if name == "none" else (next(it for it in FAULTS if it == name),),
            )
            for name, pace in paces.items()
        }
        statuses = await asyncio.gather(*(work(job, script_of(job)) for job in companies.values()))
        made = calls(stop(service))

    assert set(statuses) == {0}
    assert "not as meant" not in capsys.readouterr().out

    def refused_share(name: str) -> float:
        theirs = [call for call in made if call.get("agent", "").startswith(f"{name}-")]
        return sum(call["outcome"] != "ok" for call in theirs) / len(theirs)

    assert await figure("slow", accepted) == 0 < await figure("none", accepted)
    assert await figure("slow", offered) > 3
    assert refused_share("failing") > 0.2  # and those whose arguments could not be read, of which no agent is known
    assert refused_share("none") < 0.1
    assert await figure("silent", lapses) > 2 * await figure("none", lapses)
    assert await figure("ping-pong", volley) >= 6
    assert await figure("none", volley) <= 2
    assert await figure("growing", largest) > 200_000
    assert await figure("none", largest) < 100_000
