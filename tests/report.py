"""What a run of the tests ends with, beside pytest's own summary: how busy the machine was while tests failed.

With `--lane=NAME` pytest also keeps its results, and `python -m tests.report NAME...` makes one report of several lanes, and
ends with status 1 if one of them failed.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Final

import pytest

LANES: Final = Path(__file__).parent.parent / "results" / "lanes"  # not committed
SLOWEST: Final = 10


@dataclass
class Failure:
    """A failed test, with the machine's load of one minute before and after it, and where its evidence is."""

    test: str
    load_before: float
    load_after: float
    evidence: list[str]

    def __str__(self) -> str:
        return "\n".join([f"{self.load_before:5.1f} to {self.load_after:.1f}  {self.test}", *self.evidence])


@dataclass(eq=False)  # hashable, as pytest's plugins must be
class Lane:
    """What one run of pytest did; as a plugin of pytest, it takes note of that."""

    name: str
    status: int = 0  # of pytest
    took_s: float = 0
    outcomes: dict[str, int] = field(default_factory=dict[str, int])
    durations: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])
    skipped: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    failures: list[Failure] = field(default_factory=list[Failure])

    def __post_init__(self) -> None:
        self._began, self._load = monotonic(), dict[str, float]()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Note the load before a test."""
        self._load[nodeid] = os.getloadavg()[0]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what became of a test: of its setup, of its call, and of its teardown."""
        self.durations.append((report.duration, f"{report.when} {report.nodeid}"))
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.outcome] = self.outcomes.get(report.outcome, 0) + 1
        if report.skipped:
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.skipped.append((report.nodeid, why.removeprefix("Skipped: ")))
        if report.failed:
            load, evidence = os.getloadavg()[0], [text for name, text in report.sections if name == "Evidence"]
            test = f"{report.nodeid} ({report.when})"
            self.failures.append(Failure(test, self._load.get(report.nodeid, load), load, evidence))

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Keep the results for a report over several lanes."""
        self.status = int(exitstatus)
        self.took_s = monotonic() - self._began
        self.durations = sorted(self.durations, reverse=True)[:SLOWEST]
        if self.name:
            LANES.mkdir(parents=True, exist_ok=True)
            (LANES / f"{self.name}.json").write_text(json.dumps(asdict(self)))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say how busy the machine was."""
        if self.failures:
            terminalreporter.section(f"load on {os.cpu_count()} processors while tests failed")
            for it in self.failures:
                terminalreporter.write_line(str(it))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names a lane."""
    parser.addoption("--lane", default="", help="keep the results under this name for `python -m tests.report`")


def pytest_configure(config: pytest.Config) -> None:
    """Take note in the one process that learns of every test."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Lane(str(config.getoption("lane"))))


def _read(kept: dict[str, Any]) -> Lane:
    lane = Lane(**kept)
    lane.failures = [Failure(**it) for it in kept["failures"]]
    return lane


def read(names: Sequence[str]) -> list[Lane]:
    """Those of these lanes that came to their end: the others left no results."""
    return [_read(json.loads(file.read_text())) for name in names if (file := LANES / f"{name}.json").exists()]


def text(names: Sequence[str], lanes: Sequence[Lane]) -> str:
    """One report of the lanes with these names."""
    lines = ["== how long each lane took"]
    for it in lanes:
        outcomes = ", ".join(f"{count} {what}" for what, count in it.outcomes.items())
        ended = f"{outcomes or 'nothing ran'}{f'; pytest ended with status {it.status}' if it.status else ''}"
        lines += [f"{it.took_s:6.0f} s  {it.name}: {ended}"]
    lines += [f"        ?  {name}: it did not come to its end" for name in names if name not in {it.name for it in lanes}]
    lines.append(f"== slowest {SLOWEST}")
    slowest = sorted((it for lane in lanes for it in lane.durations), reverse=True)[:SLOWEST]
    lines += [f"{took_s:6.0f} s  {what}" for took_s, what in slowest]
    lines.append("== skipped")
    lines += [f"{name}: {why}" for lane in lanes for name, why in lane.skipped] or ["nothing"]
    lines.append(f"== failed, with the load on {os.cpu_count()} processors before and after")
    lines += [str(it) for lane in lanes for it in lane.failures] or ["nothing"]
    return "\n".join(lines)


def main(names: Sequence[str]) -> int:
    """Print the report; return 1 if a lane failed or did not come to its end, else 0."""
    lanes = read(names)
    print(text(names, lanes))
    return int(len(lanes) < len(names) or any(it.status for it in lanes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
