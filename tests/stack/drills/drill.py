"""Injects faults into a stack, and measures how long their alerts took to fire, notify and resolve."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import time
from typing import Any, Final

from tests.stack.bundle import Stack
from tests.stack.drills.agents import Caller
from tests.stack.drills.pace import LEFT_OUT, Pace, slowness, write_prometheus
from tests.stack.rules import alerts

# received_at is the time of the first notification; it is after the repair if nothing could be delivered during the fault.
NOTIFIED: Final = """
    SELECT alertname, extract(epoch FROM starts_at)::float8, extract(epoch FROM received_at)::float8,
           coalesce(extract(epoch FROM ends_at)::float8, 0)
      FROM reporting.alert WHERE starts_at > to_timestamp({since}) ORDER BY starts_at
"""


@dataclass(frozen=True, eq=False)
class Fault:
    """A fault and the alerts that it causes. It must page exactly once if one of them is critical, and otherwise not at all.

    `late` alerts are only notified after the repair. `muted` ones get inhibited by a more severe alert, so that their
    resolution is not notified. `shared` alerts also page, but have a drill of their own.
    """

    what: str
    done: "Callable[[Drill], AbstractContextManager[Any]]"
    alerts: tuple[str, ...]
    late: tuple[str, ...] = ()
    muted: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """Seconds from the fault until the alert fired and until its notification was stored, and from the repair until it
    resolved. The last is None if the drill did not wait for it.
    """

    fault: str
    pages: int
    firing_s: float
    notified_s: float
    resolved_s: float | None


@dataclass(frozen=True)
class Notified:
    """A stored alert. Times are Unix times; `end` is 0 while it fires."""

    begin: float
    receipt: float
    end: float


@dataclass(frozen=True)
class Page:
    """A page: the time it was received, the alerts that are new in it, and its links."""

    at: float
    alerts: tuple[str, ...]
    links: frozenset[str]


class Drill:
    """A stack into which faults are injected, and the measurements."""

    def __init__(self, stack: Stack, folder: Path, pace: Pace, ada: Caller, operator: Caller) -> None:
        """`folder` is that of the configuration files which the stack reads."""
        self.stack = stack
        self.pace = pace
        self.slow = 1  # how many times longer the durations of rules are than on a machine with time to spare
        self.ada = ada
        self.operator = operator
        self.measured: dict[str, Measured] = {}
        self.paged: list[Page] = []  # since the previous drill
        self._seen_until = time()
        self._folder = folder
        self._password = stack.secret("database-grafana")
        stack.evidence |= {
            "notifications-received.json": lambda: stack.get("CATCHER_PORT", "/"),
            "drill.json": lambda: {"slow": self.slow, "measured": {name: str(it) for name, it in self.measured.items()}},
        }

    def wait(self, what: Callable[[], Any], show: Callable[[], Any] = str) -> Any:
        """Wait until `what()` returns something true, for as many turns of the stack as the pace allows."""
        return self.stack.eventually(what, self.pace.turns, show)

    def active(self) -> set[str]:
        """The alerts that fire in Prometheus now, without the Watchdog."""
        found = self.stack.get("PROMETHEUS_PORT", "/api/v1/alerts")["data"]["alerts"]
        return {it["labels"]["alertname"] for it in found if it["state"] == "firing"} - {"Watchdog"}

    def notified(self, since: float) -> dict[str, list[Notified]]:
        """The stored alerts that started since then, by name, oldest first."""
        found: dict[str, list[Notified]] = {}
        for line in self.stack.psql("grafana", self._password, NOTIFIED.format(since=since)).splitlines():
            name, *times = line.split("|")
            found.setdefault(name, []).append(Notified(*map(float, times)))
        return found

    def pages(self, since: float) -> list[Page]:
        """The pages received since then."""
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

    def forget_pages(self) -> None:
        """Leave the pages so far out of the next drill."""
        self._seen_until = time()

    def dead_mans_calls(self, since: float) -> list[float]:
        """When the dead man's switch reported that the heartbeat was silent, or that it was back, since then."""
        return [it["at"] for it in self.stack.get("CATCHER_PORT", "/") if it["path"] == "/deadman" and it["at"] > since]

    def watchdog(self) -> str:
        """The health status of alerting, as the service reports it."""
        return self.stack.get("HANDOFF_OPS_PORT", "/health")["components"]["alerting"]["status"]

    def rest(self) -> None:
        """Wait until nothing fires, and let the rules take as long as this machine needs now."""
        self.wait(lambda: not self.active(), lambda: f"still active: {self.active()}")
        if not self.pace.quick:
            return
        slow = slowness(median(self.stack.turns_s or [0]), self.slow)
        if slow != self.slow:
            self.slow, before = slow, self.wait(self._loaded_at)
            write_prometheus(self._folder / "prometheus", LEFT_OUT, self.pace, slow)
            self.stack.compose("kill", "--signal=HUP", "prometheus")
            self.wait(lambda: self._loaded_at() > before)

    def _loaded_at(self) -> float:
        """When Prometheus last read its configuration, in Unix time; 0 if it has not scraped itself since it started."""
        found = self.stack.promql("prometheus_config_last_reload_success_timestamp_seconds")
        return float(found[0]["value"][1]) if found else 0.0

    def do(self, *stages: Sequence[Fault]) -> None:
        """Inject the faults of a stage together, and those of the next stage once the alerts of this one were notified.

        Then repair everything, wait until all alerts have resolved and that was notified, if the pace allows it, and check
        the pages.
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
            notified = self.notified(since)
            return names == ended.keys() and all(
                name in notified and all(row.end for row in notified[name]) for name in to_tell
            )

        settled = over if self.pace.until_over else lambda: names <= self.notified(since).keys()
        self.wait(settled, lambda: f"active {self.active()}, notified {self.notified(since)}")
        self._measure(faults, since, began, {name: max(0.0, at - repaired[name]) for name, at in ended.items()})
        self._paged_once(faults)

    def _see(self, since: float, names: set[str], late: set[str], fired: set[str]) -> None:
        """Wait until the alerts fire and, except for the late ones, are notified."""

        def missing() -> set[str]:
            fired.update(self.active())
            notified = names - late
            return (names - fired) | (notified - self.notified(since).keys() if notified else set())

        self.wait(lambda: not missing(), lambda: f"missing {missing()}, active {self.active()}")

    def _measure(self, faults: Sequence[Fault], since: float, began: dict[str, float], over_s: dict[str, float]) -> None:
        notified = self.notified(since)
        self.paged, self._seen_until = self.pages(self._seen_until), time()
        for it in faults:
            count = sum(bool({*it.alerts} & {*page.alerts}) for page in self.paged)
            for name in it.alerts:
                first = notified[name][0]
                seconds = (first.begin - began[name], first.receipt - began[name], over_s.get(name))
                self.measured[name] = Measured(it.what, count, *seconds)

    def _paged_once(self, faults: Sequence[Fault]) -> None:
        rules, paged = alerts(), [name for page in self.paged for name in page.alerts]
        for it in faults:
            critical = {name for name in it.alerts if rules[name]["labels"]["severity"] == "critical"}
            count = sum(bool(critical & {*page.alerts}) for page in self.paged)
            assert count == bool(critical), f"{it.what}: {count} pages, {self.paged}"
        assert len(paged) == len(set(paged)), f"paged twice: {self.paged}"
        brought = {name for it in faults for name in (*it.alerts, *it.shared)}
        assert set(paged) <= brought, f"unexpected pages: {set(paged) - brought}"


def _note(times: dict[str, float], fault: Fault) -> None:
    times |= dict.fromkeys(fault.alerts, time())
