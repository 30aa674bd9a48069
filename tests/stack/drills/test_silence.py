"""When alerting itself is down, the dead man's switch notifies through its own channel."""

from time import time

import pytest

from tests.stack.drills.drill import Drill, Measured
from tests.stack.drills.faults import stopped


@pytest.mark.parametrize("service", ["prometheus", "alertmanager"])
def test_the_dead_mans_switch_reports_silence_through_its_own_channel(drill: Drill, service: str) -> None:
    stack = drill.stack
    drill.rest()
    last_one_over = "SELECT 'yes' FROM watchdog WHERE silent_since IS NULL AND told = 'resolved'"
    drill.wait(lambda: drill.watchdog() == "healthy" and stack.sql(last_one_over))
    began = time()
    with stopped(stack, service):
        reports = drill.wait(lambda: drill.dead_mans_calls(since=began), show=drill.watchdog)
        drill.wait(lambda: drill.watchdog() == "degraded")
        drill.wait(lambda: "WatchdogSilent" in drill.notified(began))
    repaired = time()
    drill.wait(lambda: drill.watchdog() == "healthy")
    seconds = (reports[0] - began, drill.notified(began)["WatchdogSilent"][0].receipt - began, time() - repaired)
    drill.measured[f"WatchdogSilent ({service})"] = Measured(f"{service} stopped", len(reports), *seconds)
    drill.wait(lambda: all(it.end for it in drill.notified(began)["WatchdogSilent"]), show=lambda: drill.notified(began))
    assert len(drill.dead_mans_calls(since=began)) == 2, "the resolution is notified too"
    drill.rest()
    assert not drill.pages(since=began), "the dead man's switch alone notifies"
