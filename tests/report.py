"""What a run ends with beside pytest's own summary: how busy the machine was when tests failed."""

import os

import pytest

_failed: list[tuple[float, str]] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note the load of the last minute with each failure."""
    if report.failed:
        _failed.append((os.getloadavg()[0], f"{report.nodeid} ({report.when})"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say it at the end."""
    if _failed:
        terminalreporter.section(f"load on {os.cpu_count()} processors when a test failed")
        for load, name in _failed:
            terminalreporter.write_line(f"{load:5.1f}  {name}")
