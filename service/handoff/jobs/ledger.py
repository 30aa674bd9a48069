"""What the jobs did, kept in Postgres, and what operators ask of them, read from there.

Every SYNC_S, all that is new is written at once: a write per run would cost more than most runs. A process that is killed
loses at most that from the statistics, and nothing of the work.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from typing import Final

import structlog

from handoff.context import App
from handoff.errors import HandoffError
from handoff.store import jobs
from handoff.store.connect import Connection, transact
from handoff.telemetry import metrics

log = structlog.get_logger(__name__)

SYNC_S: Final = 1.0  # so long after an order a job may still begin a run, or not begin one
RUNS_MAX: Final = 10_000  # kept while the database is away: those of about an hour
_CLOSE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Run:
    """A run that ended `at`, with the seconds until the next one. `order` is when somebody asked for this run, if so."""

    name: str
    at: float
    took_s: float
    error: str | None
    next_s: float
    order: datetime | None


class Ledger:
    """The runs of jobs in this process, on their way to the database, and the orders that stand there."""

    def __init__(self, app: App, clock: Callable[[], float]) -> None:
        self._app = app
        self._clock = clock
        self._new: list[Run] = []
        self.paused: frozenset[str] = frozenset()
        self.asked: Mapping[str, datetime] = {}

    def add(self, run: Run) -> None:
        """Note a run that has just ended."""
        self._new.append(run)
        if run.order is not None:
            self.asked = {name: at for name, at in self.asked.items() if (name, at) != (run.name, run.order)}

    async def keep(self, leads: Callable[[], bool]) -> None:
        """Write what is new, and read the orders while this process leads, every SYNC_S until cancelled, and then once."""
        try:
            while True:
                if self._new or leads():
                    try:
                        await self._sync()
                    except HandoffError:
                        pass  # the database is away; what is new is written when it is back
                    except Exception:  # an unexpected error must not end the worker
                        log.exception("jobs.not_recorded")
                await asyncio.sleep(SYNC_S)
        finally:
            if self._new:
                await self._close()

    async def _close(self) -> None:
        """Write what is new, if the database answers at once."""
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._sync()
        except Exception as error:  # noqa: BLE001 - the process ends, whatever this is
            log.warning("jobs.not_recorded", error=type(error).__name__)

    async def _sync(self) -> None:
        runs, self._new = self._new, []
        answered = {run.name: run.order for run in runs if run.order is not None}

        async def work(conn: Connection) -> jobs.Orders:
            await jobs.add(conn, _summed(runs, self._clock()), answered)
            return await jobs.orders(conn)

        try:
            orders = await transact(self._app.pool, work)
        except BaseException:
            self._new = [*runs, *self._new][-RUNS_MAX:]
            raise
        done = {(run.name, run.order) for run in self._new}  # while the database answered
        self.paused = orders.paused
        self.asked = {name: at for name, at in orders.asked.items() if (name, at) not in done}
        metrics.JOBS_PAUSED.set(len(orders.paused))


def _summed(runs: Sequence[Run], now: float) -> list[jobs.Runs]:
    """The runs as the statistics take them, a row per job."""
    rows: list[jobs.Runs] = []
    for name, of_job in groupby(
        sorted(runs, key=attrgetter("name")), attrgetter("name")
    ):  # sorting keeps their order in time
        all_, good, bad = list(of_job), list[Run](), list[Run]()
        for run in all_:
            (good if run.error is None else bad).append(run)
        rows.append(
            jobs.Runs(
                name=name,
                runs=len(all_),
                failures=len(bad),
                total_s=sum(run.took_s for run in all_),
                last_s=all_[-1].took_s,
                success_age_s=now - good[-1].at if good else None,
                failure_age_s=now - bad[-1].at if bad else None,
                error=bad[-1].error if bad else None,
                next_s=all_[-1].next_s - (now - all_[-1].at),
            )
        )
    return rows
