"""When alerting itself is down, the dead man's switch notifies through its own channel."""

from time import time

import pytest

from tests.stack.bundle import eventually
from tests.stack.drills.drill import Drill, Measured
from tests.stack.drills.faults import stopped


@pytest.mark.parametrize("service", ["prometheus", "alertmanager"])
def test_the_dead_mans_switch_reports_silence_through_its_own_channel(drill: Drill, service: str) -> None:
    stack, within_s = drill.stack, drill.pace.within_s
    drill.rest()
    last_one_over = "SELECT 'yes' FROM watchdog WHERE silent_since IS NULL AND told = 'resolved'"
    eventually(lambda: drill.watchdog() == "healthy" and stack.sql(last_one_over), within_s)
    began = time()
    with stopped(stack, service):
        reports = eventually(lambda: drill.dead_mans_calls(since=began), within_s, show=drill.watchdog)
        eventually(lambda: drill.watchdog() == "degraded", within_s)
        eventually(lambda: "WatchdogSilent" in drill.notified(began), within_s)
    repaired = time()
    eventually(lambda: drill.watchdog() == "healthy", within_s)
    seconds = (reports[0] - began, drill.notified(began)["WatchdogSilent"][0].receipt - began, time() - repaired)
    drill.measured[f"WatchdogSilent ({service})"] = Measured(f"{service} stopped", len(reports), *seconds)
    eventually(
        lambda: all(it.end for it in drill.notified(began)["WatchdogSilent"]), within_s, show=lambda: drill.notified(began)
    )
    assert len(drill.dead_mans_calls(since=began)) == 2, "the resolution is notified too"
    drill.rest()
    assert not drill.pages(since=began), "the dead man's switch alone notifies"
