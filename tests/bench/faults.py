"""Measures what becomes of the demo's faults: `python -m tests.bench.faults`.

Each recorded fault (tests/bench/recording.py) follows a quiet past, minute by minute, through the jobs `detect` and
`incidents` on a real Postgres. What counts is whether an incident opens, after how many minutes, how many there are, and
which place is named as the cause: when people are notified, and when the fault ends.
"""

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import asyncpg
import numpy as np
import structlog
from pydantic import SecretStr

from handoff.app import open_app
from handoff.cli.embedded import DATABASE, ensure_database, postgres
from handoff.context import App
from handoff.jobs import detect, incidents
from handoff.settings import Settings
from handoff.store import series
from handoff.store.connect import Connection, transact
from handoff.store.migrate import migrate
from handoff.store.series import MINUTE, Point
from tests.bench.cast import CAST, HELD_OUT, Cast, Injected
from tests.bench.recording import BEFORE, DURING, Recording, by_chance
from tests.processes import passable_folder

RECORDED: Final = Path(__file__).parent / "recorded_faults"
RECORDED_HELD_OUT: Final = RECORDED / "held_out"
PAST: Final = 3  # days of quiet before each fault; two of them are learnt before anybody is told
WEEK: Final = 7
BLOCK: Final = 60  # minutes of the quiet recording that stay together when they make up a longer past
SERIES_MAX: Final = 10_000
# Of a fault that begins at $1; what is under way then may show it a minute earlier.
INCIDENTS: Final = """
    SELECT id, severity, opened_at, anomalies, summary, causes FROM incident
     WHERE id IN (SELECT incident_id FROM anomaly WHERE bucket >= $1::timestamptz - interval '1 minute') ORDER BY id
"""

Place = tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a fault. Ranks are from 1; None if the right cause is not among those named."""

    found_after: int | None  # minutes
    notified_after: int | None  # minutes, until one of its incidents was critical
    incidents: int
    notifications: int  # critical incidents
    rank_first: int | None  # when it is found
    rank: int | None  # when it ends
    named: list[Place]


async def play(app: App, recording: Recording, begins_at: datetime, step: int = 1) -> AsyncIterator[int]:
    """Let the minutes of a recording pass; yield how many have."""
    for first in range(0, len(recording.values), step):
        past = min(len(recording.values), first + step)
        points = [
            Point(
                recording.specs[column],
                begins_at + minute * MINUTE,
                float(recording.values[minute, column]),
                None if np.isnan(of := recording.of[minute, column]) else float(of),
            )
            for minute, column in np.argwhere(np.isfinite(recording.values[first:past])) + np.array((first, 0))
        ]
        end = begins_at + past * MINUTE

        async def work(conn: Connection, points: Sequence[Point] = points, end: datetime = end) -> None:
            await series.put(conn, points, SERIES_MAX)
            await series.advance(conn, "rolled_up", end + detect.SETTLED)

        await transact(app.pool, work)
        await detect.run(app)
        await incidents.run(app)
        yield past


async def pass_by(app: App, recording: Recording, begins_at: datetime) -> None:
    """Let all minutes of a recording pass."""
    async for _ in play(app, recording, begins_at, BLOCK):
        pass


def longer(quiet: Recording, days: float, seed: int = 1) -> Recording:
    """Pieces of a quiet recording, drawn at random, as so many days. The number of all calls is drawn, too."""
    draw = np.random.default_rng(seed)
    begins = [int(it) for it in draw.integers(0, len(quiet.values) - BLOCK, int(days * 24 * 60 / BLOCK))]
    rows = np.concatenate([np.arange(it, it + BLOCK) for it in begins])
    return by_chance(Recording(quiet.specs, quiet.values[rows], quiet.of[rows]), draw)


async def outcome(
    app: App, db: asyncpg.Connection, fault: Injected, recording: Recording, begins_at: datetime, step: int = 1
) -> Outcome:
    """What becomes of a fault whose recording begins then."""
    began, ended = begins_at + BEFORE * MINUTE, BEFORE + DURING
    first: list[Place] | None = None
    named: list[Place] = []
    found_after: int | None = None
    notified_after: int | None = None
    async for minute in play(app, recording, begins_at, step):
        rows = await db.fetch(INCIDENTS, began)
        if notified_after is None and any(row["severity"] == "critical" for row in rows):
            notified_after = max(0, minute - BEFORE)
        if rows and found_after is None:
            found_after, first = max(0, minute - BEFORE), _causes(rows)
        if rows and minute <= ended:
            named = _causes(rows)
    rows = await db.fetch(INCIDENTS, began)
    critical = sum(row["severity"] == "critical" for row in rows)
    return Outcome(found_after, notified_after, len(rows), critical, _rank(fault, first or []), _rank(fault, named), named)


def _causes(rows: Sequence[asyncpg.Record]) -> list[Place]:
    """The causes of the incident with the most anomalies, the likeliest first."""
    largest = max(rows, key=lambda row: row["anomalies"])
    return [(it["component"], *it["names"]) for it in json.loads(largest["causes"])]


def _rank(fault: Injected, named: Sequence[Place]) -> int | None:
    return next((number for number, it in enumerate(named, 1) if it in fault.at), None)


class Server:
    """A Postgres with a database in which the quiet past has been judged, and which is copied for each fault."""

    def __init__(self, url: str, server_url: str) -> None:
        self.url, self._server_url, self._copies = url, server_url, 0

    @staticmethod
    def settings(url: str) -> Settings:
        """The settings of a service on a database."""
        return Settings(database_url=SecretStr(url), series_max=SERIES_MAX)

    async def execute(self, *statements: str) -> None:
        """Execute statements in no database that is copied."""
        conn = await asyncpg.connect(self._server_url)
        try:
            for statement in statements:
                await conn.execute(statement)
        finally:
            await conn.close()

    @asynccontextmanager
    async def copy(self) -> AsyncGenerator[tuple[App, asyncpg.Connection]]:
        """A service on a copy of the database."""
        self._copies += 1
        name = f"copy_{self._copies}"
        await self.execute(f"CREATE DATABASE {name} TEMPLATE {DATABASE}")
        url = self._server_url.replace("/postgres?", f"/{name}?", 1)
        conn = await asyncpg.connect(url)
        try:
            async with open_app(self.settings(url)) as app:
                yield app, conn
        finally:
            await conn.close()
            await self.execute(f"DROP DATABASE {name} WITH (FORCE)")


@asynccontextmanager
async def learnt(quiet: Recording, until: datetime) -> AsyncGenerator[Server]:
    """A server on which the quiet recording has been judged; it ends then."""
    with passable_folder() as folder, postgres(folder) as url:
        server = Server(await ensure_database(url), url)
        await server.execute("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
        await migrate(server.settings(server.url))
        async with open_app(server.settings(server.url)) as app:
            await pass_by(app, quiet, until - len(quiet.values) * MINUTE)
        yield server


async def measure(
    cast: Cast, folder: Path, numbers: Sequence[int], days: float, until: datetime
) -> list[tuple[Injected, Outcome]]:
    """Measure these faults after so many days, and print a line of a table for each."""
    found: list[tuple[Injected, Outcome]] = []
    quiet = Recording.load(folder / "quiet.npz")
    async with learnt(longer(quiet, days), until) as server:
        async with server.copy() as (_, db):
            print(await quiet_line(db, len(quiet.specs), days))
        print(
            "| Fault | Found after | Notified after | Incidents, critical ones "
            "| Rank of the right cause: at first, at the end | Named at the end |"
        )
        print("|---|---|---|---|---|---|")
        for number in numbers:
            async with server.copy() as (app, db):
                recording = by_chance(Recording.load(folder / f"fault-{number}.npz"), np.random.default_rng(number))
                it = await outcome(app, db, fault := cast.faults[number], recording, until)
            found.append((fault, it))
            print(line(fault, it), flush=True)
    return found


async def quiet_line(db: asyncpg.Connection, count: int, days: float) -> str:
    """What was found in a quiet past, and of how much of it anybody was told."""
    anomalies, shadows, told = [
        await db.fetchval(f"SELECT count(*) FROM {it}") for it in ("anomaly", "anomaly WHERE shadow", "incident")
    ]
    young = f"{shadows} of them while their series were learnt"
    return f"\n{count} series, {days:g} quiet days: {anomalies} anomalies, {young}; {told} incidents.\n"


async def measure_week(folder: Path, until: datetime) -> None:
    """Print what is found in a quiet week."""
    quiet = Recording.load(folder / "quiet.npz")
    async with learnt(longer(quiet, WEEK, seed=2), until) as server, server.copy() as (_, db):
        print(await quiet_line(db, len(quiet.specs), WEEK))
        for row in await db.fetch("SELECT severity, summary FROM incident ORDER BY id"):
            print("-", row["severity"], row["summary"])


def line(fault: Injected, it: Outcome) -> str:
    """A line of the table."""
    found, notified = ("-" if after is None else f"{after} min" for after in (it.found_after, it.notified_after))
    named = ", ".join(" ".join(one) for one in it.named[:3])
    ranks = f"{it.rank_first or '-'}, {it.rank or '-'}"
    return f"| {fault.name} | {found} | {notified} | {it.incidents}, {it.notifications} | {ranks} | {named} |"


def main() -> int:
    """Measure every fault."""
    parser = argparse.ArgumentParser(prog="make bench-faults", description=__doc__)
    parser.add_argument(
        "--held-out", action="store_true", help="faults of other agents, with none of which in view a rule was chosen"
    )
    parser.add_argument("--recorded", type=Path, help="a folder that tests.bench.recording has written")
    parser.add_argument("--numbers", type=int, nargs="+", default=range(len(CAST.faults)), help="only these faults")
    parser.add_argument("--days", type=float, default=PAST, help="of quiet before each fault")
    parser.add_argument(
        "--hour",
        type=int,
        choices=range(24),
        default=12,
        help="of yesterday, in UTC, at which the fault begins (default 12)",
    )
    parser.add_argument("--week", action="store_true", help="a quiet week instead of faults")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    cast, folder = (HELD_OUT, RECORDED_HELD_OUT) if options.held_out else (CAST, RECORDED)
    folder = options.recorded or folder
    # A fixed time: what is unusual depends a little on where the detector's bins of the day lie.
    until = (datetime.now(UTC) - timedelta(days=1)).replace(hour=options.hour, minute=0, second=0, microsecond=0)
    if options.week:
        asyncio.run(measure_week(folder, until))
        return 0
    found = asyncio.run(measure(cast, folder, options.numbers, options.days, until))
    right, top3 = (sum(it.rank is not None and it.rank <= most for _, it in found) for most in (1, 3))
    print(f"\nThe right cause comes first for {right} of {len(found)} faults, and among the first three for {top3}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
