"""The configuration in force in this process: what the database says, over what a file says, over the defaults.

Whoever uses a value reads it here at each use. A configuration that can't be used is refused whole: the last good one stays
in force, `problem` says why, and so do the log and the health check `configuration`.
"""

import asyncio
import tomllib
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any, Final

import structlog
from asyncpg import Record
from pydantic import ValidationError

from handoff.configuration import (
    DOCUMENT_BYTES_MAX,
    THRESHOLDS,
    AnalyticsConfig,
    Configuration,
    File,
    LogFilter,
    LogLevel,
    LoopLimits,
    MonitoringConfig,
    RetentionPolicy,
    document_of,
    problems_of,
)
from handoff.encoding import to_json
from handoff.errors import HandoffError, Invalid, database_unavailable
from handoff.settings import Settings
from handoff.store import configuration as store
from handoff.store.connect import LOST, StandbyConnection
from handoff.telemetry import metrics

log = structlog.get_logger(__name__)
metrics.THRESHOLD_NAME.admit(*THRESHOLDS)

FILE_BYTES_MAX: Final = 1 << 20
_POLL_S: Final = 10.0  # how often the database is asked although no change was notified
_RETRY_S: Final = 1.0

Stamp = tuple[int, int, int]  # time of the last change, size, and which file it is


class Policies:
    """What is in force, and since when. `on_change` is called after each change."""

    def __init__(self, settings: Settings, database: StandbyConnection, jobs: Collection[str] = ()) -> None:
        """Reads the file, if there is one. `jobs` are the names of the jobs whose intervals can be configured.

        `database` is not of the pool: a change that makes room must take effect while calls wait for the pool's connections.
        """
        self._database = database
        self._path = settings.config_file
        self._jobs = frozenset(jobs)
        self._stored = Configuration.model_construct(
            retention={}, monitoring=MonitoringConfig(), analytics=AnalyticsConfig()
        )
        self._file = File()
        self._seen: Stamp | None = None
        self._read: Stamp | None = None
        self._problems: dict[str, str] = {}  # by where the configuration comes from
        self._refused_at: float | None = None
        self._wake = asyncio.Event()
        self.version = 0  # 0 until the database has answered
        self.applied_at: datetime | None = None
        self.on_change: list[Callable[[], None]] = []
        self.monitoring = self._merged(self._stored, self._file)
        metrics.THRESHOLD.source = lambda: [(self.threshold(name), (name,)) for name in THRESHOLDS]
        metrics.CONFIGURATION_VERSION.source = lambda: [(self.version, ())]
        if self._path is not None:
            self._read_file(self._path)

    @property
    def retention(self) -> Mapping[str, RetentionPolicy]:
        """The retention policies, by name. Empty until the database has answered."""
        return self._stored.retention

    @property
    def analytics(self) -> AnalyticsConfig:
        """How series are watched."""
        return self._stored.analytics

    @property
    def problem(self) -> str:
        """Why a configuration was refused; empty if none was."""
        return "; ".join(self._problems.values())

    @property
    def refused_s(self) -> float:
        """For how long a configuration has been refused, in seconds; 0 if none is."""
        return monotonic() - self._refused_at if self._refused_at is not None else 0.0

    def threshold(self, name: str) -> float:
        """A threshold by its name."""
        return self.monitoring.thresholds.get(name, THRESHOLDS[name].default)

    def job_interval_s(self, name: str, default_s: float) -> float:
        """The interval of a job, in seconds: `default_s` unless one is configured."""
        return self.monitoring.job_intervals_s.get(name, default_s)

    def check(self, document: Mapping[str, Any]) -> Configuration:
        """The configuration that a document describes. Raises Invalid, which names each wrong field and what is allowed."""
        try:
            found = Configuration.model_validate(document)
            self._merged(found, self._file)
        except ValueError as error:
            raise Invalid(
                "invalid_configuration",
                f"This configuration is refused. {_said(error)}.",
                "Correct the values named here and repeat the call. Nothing was changed.",
            ) from error
        if (size := len(to_json(document_of(found)))) > DOCUMENT_BYTES_MAX:
            raise Invalid(
                "invalid_configuration",
                f"This configuration has {size} bytes as JSON; at most {DOCUMENT_BYTES_MAX} are allowed.",
                "Remove policies or log filters that nobody needs any more. Nothing was changed.",
            )
        return found

    def wake(self) -> None:
        """Ask the database soon whether the configuration has changed."""
        self._wake.set()

    async def run(self) -> None:
        """Follow the database until cancelled."""
        while True:
            self._wake.clear()
            wait_s = _POLL_S
            try:
                await self.refresh()
            except HandoffError:
                wait_s = _RETRY_S  # the database is away
            except Exception:  # the next look may succeed
                log.exception("configuration.failed")
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()

    async def refresh(self) -> None:
        """Read the configuration from the database, if it has changed. Raises Unavailable."""
        try:
            async with self._database.use() as conn:
                row = await store.newer_than(conn, self.version)
        except LOST as error:
            raise database_unavailable() from error
        if row is not None:
            self._apply_stored(row)

    def refresh_file(self) -> None:
        """Look at the file, and read it if it has changed before the last look but not since."""
        if self._path is None:
            return
        stamp = _stamp(self._path)
        is_changing, self._seen = stamp != self._seen, stamp
        if stamp != self._read and not is_changing:
            self._read_file(self._path)

    def _read_file(self, path: Path) -> None:
        self._seen = self._read = _stamp(path)
        try:
            found = _parsed(path) if self._read is not None else File()
            monitoring = self._merged(self._stored, found)
        except ValueError as error:
            self._refuse("file", f"{path}: {_said(error)}")
            return
        self._file, self.monitoring = found, monitoring
        self._accept("file", file=str(path))

    def _apply_stored(self, row: Record) -> None:
        try:
            found = Configuration.model_validate_json(row["document"])
            monitoring = self._merged(found, self._file)
        except ValueError as error:
            self._refuse("database", f"version {row['version']}: {_said(error)}")
            return
        self._stored, self.monitoring = found, monitoring
        self.version, self.applied_at = row["version"], row["at"]
        self._accept("database", configuration=row["version"], author=row["author"])

    def _accept(self, origin: str, **what: Any) -> None:
        self._problems.pop(origin, None)
        if not self._problems:
            self._refused_at = None
        log.info("configuration.applied", origin=origin, **what)
        for act in self.on_change:
            act()

    def _refuse(self, origin: str, problem: str) -> None:
        if self._problems.get(origin) != problem:
            log.error("configuration.refused", origin=origin, error=problem)
        self._problems[origin] = problem
        if self._refused_at is None:
            self._refused_at = monotonic()

    def _merged(self, stored: Configuration, file: File) -> MonitoringConfig:
        """What the database says, over what the file says. Raises ValueError if they don't go together."""
        ours, theirs = stored.monitoring, file.monitoring
        if unknown := sorted((ours.job_intervals_s.keys() | theirs.job_intervals_s.keys()) - self._jobs):
            raise ValueError(
                f"monitoring.job_intervals_s: {unknown[0][:50]!r} is not a job; the jobs are {', '.join(sorted(self._jobs))}"
            )
        filters: list[LogFilter] = [*ours.log_filters, *theirs.log_filters]
        level: LogLevel | None = ours.log_level or theirs.log_level
        merged = MonitoringConfig(
            thresholds={**theirs.thresholds, **ours.thresholds},
            job_intervals_s={**theirs.job_intervals_s, **ours.job_intervals_s},
            loops=LoopLimits(**{**theirs.loops.model_dump(exclude_unset=True), **ours.loops.model_dump(exclude_unset=True)}),
            log_level=level,
            promql={**theirs.promql, **ours.promql},
        )
        return merged.model_copy(update={"log_filters": filters})

    def in_force(self) -> dict[str, Any]:
        """Everything that is in force, as JSON values: retention policies, every threshold, and what else is configured."""
        monitoring = self.monitoring.model_dump(mode="json", exclude_none=True)
        monitoring["thresholds"] = {name: self.threshold(name) for name in THRESHOLDS}
        analytics = self.analytics.model_dump(mode="json", exclude_none=True)
        return {"retention": document_of(self._stored)["retention"], "monitoring": monitoring, "analytics": analytics}


def _stamp(path: Path) -> Stamp | None:
    """What the file is now, or None if there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino)


def _parsed(path: Path) -> File:
    """The file's content. Raises ValueError."""
    try:
        with path.open("rb") as file:
            text = file.read(FILE_BYTES_MAX + 1)
        if len(text) > FILE_BYTES_MAX:
            raise ValueError(f"must have at most {FILE_BYTES_MAX} bytes")
        found = tomllib.loads(text.decode())
    except OSError as error:
        raise ValueError(error.strerror or type(error).__name__) from error
    if "retention" in found:
        raise ValueError(
            "retention: policies are in the database, which all processes share; set them with the tool configuration"
        )
    return File.model_validate(found)


def _said(error: ValueError) -> str:
    return problems_of(error) if isinstance(error, ValidationError) else str(error)
