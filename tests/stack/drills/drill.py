"""Faults done to a stack, and how long it took until their alerts fired, were told and ended."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from time import monotonic, sleep, time
from typing import Any, Final

import httpx2

from tests.stack.bundle import Failed, Stack
from tests.stack.drills.agents import Caller
from tests.stack.drills.pace import Pace
from tests.stack.rules import alerts

# What is told counts from its receipt; what could not be told while the fault lasted has it afterwards.
TOLD: Final = """
    SELECT alertname, extract(epoch FROM starts_at)::float8, extract(epoch FROM received_at)::float8,
           coalesce(extract(epoch FROM ends_at)::float8, 0)
      FROM reporting.alert WHERE starts_at > to_timestamp({since}) ORDER BY starts_at
"""


@dataclass(frozen=True, eq=False)
class Fault:
    """What is done, and the alerts that it brings about. Of these, `late` ones are told only after the repair, and the end
    of `muted` ones is not told, for something worse mutes it. It pages once, if one of them is critical, and besides with
    those that it shares with a fault of their own.
    """

    what: str
    done: "Callable[[Drill], AbstractContextManager[Any]]"
    alerts: tuple[str, ...]
    late: tuple[str, ...] = ()
    muted: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """Seconds from an alert's fault until it fired and until it was stored, and from the repair until it ended, if that was
    waited for.
    """

    fault: str
    pages: int
    firing_s: float
    told_s: float
    resolved_s: float | None


@dataclass(frozen=True)
class Told:
    """An alert as it was stored, in Unix time; `end` is 0 while it fires."""

    begin: float
    receipt: float
    end: float


@dataclass(frozen=True)
class Page:
    """A notification that somebody is paged with: the alerts that are new in it, and where it leads."""

    at: float
    alerts: tuple[str, ...]
    links: frozenset[str]


class Drill:
    """A stack that faults are done to, and what came of them."""

    def __init__(self, stack: Stack, pace: Pace, ada: Caller, operator: Caller) -> None:
        self.stack = stack
        self.pace = pace
        self.ada = ada
        self.operator = operator
        self.measured: dict[str, Measured] = {}
        self.paged: list[Page] = []  # since the drill before
        self._seen_until = time()
        self._password = stack.secret("database-grafana")

    def active(self) -> set[str]:
        """The alerts that fire in Prometheus now, but for the one that always does."""
        found = self.stack.get("PROMETHEUS_PORT", "/api/v1/alerts")["data"]["alerts"]
        return {it["labels"]["alertname"] for it in found if it["state"] == "firing"} - {"Watchdog"}

    def told(self, since: float) -> dict[str, list[Told]]:
        """What was stored of each alert that began since then, the first first."""
        found: dict[str, list[Told]] = {}
        for line in self.stack.psql("grafana", self._password, TOLD.format(since=since)).splitlines():
            name, *times = line.split("|")
            found.setdefault(name, []).append(Told(*map(float, times)))
        return found

    def pages(self, since: float) -> list[Page]:
        """What people were paged with since then."""
        pages: list[Page] = []
        before: set[tuple[str, str]] = set()
        for it in self.stack.get("CATCHER_PORT", "/"):
            if it["path"] == "/page":
                firing = {(a["fingerprint"], a["startsAt"]): a for a in it["said"]["alerts"] if a["status"] == "firing"}
                new = [firing[key] for key in firing.keys() - before]
                before |= firing.keys()
                if new and it["at"] > since:
                    links = {it["said"]["externalURL"], *(a["generatorURL"] for a in new)}
                    links |= {link for a in new for name, link in a["annotations"].items() if name.endswith("_url")}
                    names = tuple(sorted({a["labels"]["alertname"] for a in new}))
                    pages.append(Page(it["at"], names, frozenset(links)))
        return pages

    def dead_mans_calls(self, since: float) -> list[float]:
        """When the worker told of the heartbeat's silence, and of its end, by its own way."""
        return [it["at"] for it in self.stack.get("CATCHER_PORT", "/") if it["path"] == "/deadman" and it["at"] > since]

    def watchdog(self) -> str:
        """What the worker and the service make of the heartbeat."""
        return self.stack.get("HANDOFF_OPS_PORT", "/health")["components"]["alerting"]["status"]

    def rest(self) -> None:
        """Wait until nothing fires."""
        wait(lambda: not self.active(), self.pace.within_s, lambda: f"still active: {self.active()}")

    def do(self, *stages: Sequence[Fault]) -> None:
        """Do the faults of each stage at once, stage upon stage, each when the alerts of the one before were told; repair
        them; wait until all alerts are over and that was told too, if the pace lets that be. Each must have paged once.
        """
        self.rest()
        faults = [it for stage in stages for it in stage]
        began: dict[str, float] = {}
        repaired: dict[str, float] = {}
        fired: set[str] = set()
        since = time()
        with ExitStack() as done:
            for stage in stages:
                for it in stage:
                    began |= dict.fromkeys(it.alerts, time())
                    done.callback(_note, repaired, it)
                    done.enter_context(it.done(self))
                self._see(
                    since, {name for it in stage for name in it.alerts}, {name for it in stage for name in it.late}, fired
                )
        names = {name for it in faults for name in it.alerts}
        to_tell = names - {name for it in faults for name in it.muted}
        ended: dict[str, float] = {}

        def over() -> bool:
            for name in names - self.active() - ended.keys():
                ended[name] = time()
            told = self.told(since)
            return names == ended.keys() and all(name in told and all(row.end for row in told[name]) for name in to_tell)

        settled = over if self.pace.until_over else lambda: names <= self.told(since).keys()
        wait(settled, self.pace.within_s, lambda: f"active {self.active()}, told {self.told(since)}")
        self._measure(faults, since, began, {name: max(0.0, at - repaired[name]) for name, at in ended.items()})
        self._paged_once(faults)

    def _see(self, since: float, names: set[str], late: set[str], fired: set[str]) -> None:
        """Wait until alerts fire and are told, but for the late ones, which only fire."""

        def missing() -> set[str]:
            fired.update(self.active())
            told = names - late
            return (names - fired) | (told - self.told(since).keys() if told else set())

        wait(lambda: not missing(), self.pace.within_s, lambda: f"missing {missing()}, active {self.active()}")

    def _measure(self, faults: Sequence[Fault], since: float, began: dict[str, float], over_s: dict[str, float]) -> None:
        told = self.told(since)
        self.paged, self._seen_until = self.pages(self._seen_until), time()
        for it in faults:
            count = sum(bool({*it.alerts} & {*page.alerts}) for page in self.paged)
            for name in it.alerts:
                first = told[name][0]
                seconds = (first.begin - began[name], first.receipt - began[name], over_s.get(name))
                self.measured[name] = Measured(it.what, count, *seconds)

    def _paged_once(self, faults: Sequence[Fault]) -> None:
        rules, paged = alerts(), [name for page in self.paged for name in page.alerts]
        for it in faults:
            critical = {name for name in it.alerts if rules[name]["labels"]["severity"] == "critical"}
            count = sum(bool(critical & {*page.alerts}) for page in self.paged)
            assert count == bool(critical), f"{it.what}: {count} pages, {self.paged}"
        assert len(paged) == len(set(paged)), f"told twice: {self.paged}"
        brought = {name for it in faults for name in (*it.alerts, *it.shared)}
        assert set(paged) <= brought, f"also paged: {set(paged) - brought}"


def _now(holds: Callable[[], bool]) -> bool:
    try:
        return holds()
    except (httpx2.HTTPError, Failed):  # who is asked has only just been started again
        return False


def _note(times: dict[str, float], fault: Fault) -> None:
    times |= dict.fromkeys(fault.alerts, time())


def wait(holds: Callable[[], bool], within_s: float, show: Callable[[], str]) -> None:
    """Wait until something holds; in vain, it tells `show()`."""
    give_up = monotonic() + within_s
    while not _now(holds):
        assert monotonic() < give_up, f"not within {within_s:.0f} s: {show()}"
        sleep(1)
