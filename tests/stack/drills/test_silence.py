"""When nothing tells of anything any more, that is told too, by a way of its own."""

from time import time

import pytest

from tests.stack.bundle import eventually
from tests.stack.drills.drill import Drill, Measured
from tests.stack.drills.faults import stopped


@pytest.mark.parametrize("service", ["prometheus", "alertmanager"])
def test_a_silence_is_told_by_a_way_of_its_own(drill: Drill, service: str) -> None:
    stack, within_s = drill.stack, drill.pace.within_s
    drill.rest()
    last_one_over = "SELECT 'yes' FROM watchdog WHERE silent_since IS NULL AND told = 'resolved'"
    eventually(lambda: drill.watchdog() == "healthy" and stack.sql(last_one_over), within_s)
    began = time()
    with stopped(stack, service):
        told = eventually(lambda: drill.dead_mans_calls(since=began), within_s, show=drill.watchdog)
        eventually(lambda: drill.watchdog() == "degraded", within_s)
        eventually(lambda: "WatchdogSilent" in drill.told(began), within_s)
    repaired = time()
    eventually(lambda: drill.watchdog() == "healthy", within_s)
    seconds = (told[0] - began, drill.told(began)["WatchdogSilent"][0].receipt - began, time() - repaired)
    drill.measured[f"WatchdogSilent ({service})"] = Measured(f"{service} stopped", len(told), *seconds)
    eventually(lambda: all(it.end for it in drill.told(began)["WatchdogSilent"]), within_s, show=lambda: drill.told(began))
    assert len(drill.dead_mans_calls(since=began)) == 2, "its end is told too"
    drill.rest()
    assert not drill.pages(since=began), "told once, by its own way"
