"""What goes wrong in a running stack is found, explained and routed to people, within minutes; normal work notifies nobody.

At the quick pace only the first of these faults is injected; `make drill-faults` injects all of them at the pace that ships,
after an hour of normal work.
"""

import json
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep, time
from typing import Any, Final

import pytest

from tests.stack.bundle import ROOT, Stack
from tests.stack.conftest import Start
from tests.stack.drills.agents import Caller
from tests.stack.drills.demo import WRONG, Demo, Place, Wrong, tokens_file
from tests.stack.drills.pace import LEFT_OUT, PACES, overlay
from tests.stack.drills.past import OVER, SHOWN_S, give_past
from tests.stack.panels import Sources, dashboards, questions

ALERT: Final = "HandoffIncidentCritical"
NORMAL_S: Final = 3_600
EVERY_S: Final = 5
QUICK_JOBS: Final = {"rollup": 2, "detect": 2, "incidents": 1}  # the minutes themselves can't be shortened
OPENED: Final = """
    SELECT coalesce(json_agg(i ORDER BY anomalies DESC), '[]') FROM incident i
     WHERE closed_at IS NULL AND last_at >= date_trunc('minute', to_timestamp({since}))
"""
STORED: Final = "SELECT 'yes' FROM reporting.alert WHERE alertname = '{alert}' AND starts_at > to_timestamp({since}) LIMIT 1"
DOCUMENT: Final = ROOT / "docs" / "incidents.md"
BEGIN: Final = "<!-- measured in a running stack -->\n"
END: Final = "<!-- that was it -->"


@dataclass(frozen=True)
class Outcome:
    """Minutes from the beginning of what went wrong until an incident opened, until it named the right cause among its first
    three, and until the notification was stored and the people's receiver had it; and what was named first then.
    """

    opened: float
    explained: float
    notified: float
    rank: int
    named: list[Place]


@dataclass(frozen=True, eq=False)
class Watched:
    """A stack whose agents work, and what was measured on it."""

    stack: Stack
    demo: Demo
    turns: int
    normal_s: float
    outcomes: dict[str, Outcome]

    def wait(self, what: Callable[[], Any], show: Callable[[], Any] = str) -> Any:
        """Wait until `what()` returns something true."""
        return self.stack.eventually(what, self.turns, show)

    def incidents(self, since: float) -> list[dict[str, Any]]:
        """The incidents of minutes since then, the largest first."""
        return json.loads(self.stack.sql(OPENED.format(since=since)))

    def tickets(self, since: float) -> list[str]:
        """The alerts that the receiver of warnings was notified of since then."""
        said = [it["said"] for it in self.stack.get("CATCHER_PORT", "/") if it["path"] == "/ticket" and it["at"] > since]
        return [a["labels"]["alertname"] for it in said for a in it["alerts"] if a["status"] == "firing"]

    def rank(self, wrong: Wrong, since: float) -> int:
        """The rank of a right cause in the largest incident since then, from 1; 0 if it is not among the first three."""
        named = [causes(it)[:3] for it in self.incidents(since)[:1]]
        return next((place for of in named for place, it in enumerate(of, 1) if it in wrong.at), 0)

    def rest(self) -> None:
        """Close what is open until nobody is notified any more: the last minutes of a fault may still open something."""

        def is_quiet() -> bool:
            self.stack.sql(OVER)
            return not self.stack.promql(f'ALERTS{{alertname="{ALERT}"}}')

        self.wait(is_quiet)


def causes(incident: dict[str, Any]) -> list[Place]:
    """The likely causes of an incident, the likeliest first."""
    return [(it["component"], *it["names"]) for it in incident["causes"]]


@pytest.fixture(scope="module")
def watched(started: Start, say: Callable[[str], None], pytestconfig: pytest.Config) -> Generator[Watched]:
    """A stack with a receiver of warnings, on which the demo's agents work."""
    pace = PACES[str(pytestconfig.getoption("pace"))]
    with TemporaryDirectory(prefix="handoff-faults-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        overlays = ["without-grafana.yaml", overlay(folder, LEFT_OUT, pace)]
        routes = folder / "alertmanager" / "alertmanager.yml"
        routes.write_text(routes.read_text().replace("mute_time_intervals: [quiet-hours]", ""))  # also at night
        given = {"tokens": tokens_file(), "webhook-url": "http://catcher:8080/ticket"}
        with started(folder, f"{pytestconfig.getoption('project')}-faults", overlays, given) as stack:
            if pace.quick:
                with Caller(stack, stack.secret("operator-token")) as operator:
                    changes = json.dumps({"monitoring": {"job_intervals_s": QUICK_JOBS}})
                    operator("configuration", action="set", changes=changes, expected_version=1, reason="a drill")
            demo = Demo(stack, folder)
            watched = Watched(stack, demo, 300 if pace.quick else 30, NORMAL_S, {})
            demo.start()
            try:
                yield watched
            finally:
                demo.stop()
            for line in table(watched.outcomes):
                say(line)
            if pytestconfig.getoption("write_alerts") and watched.outcomes:
                before, _, rest = DOCUMENT.read_text().partition(BEGIN)
                DOCUMENT.write_text(
                    before + BEGIN + "\n".join(table(watched.outcomes)) + "\n" + END + rest.partition(END)[2]
                )


def table(outcomes: dict[str, Outcome]) -> list[str]:
    """What was measured."""
    lines = [
        f"| {name} | {it.opened:.1f} | {it.explained:.1f} | {it.notified:.1f} | {it.rank} | {_shown(it.named)} |"
        for name, it in outcomes.items()
    ]
    head = "| Fault | Incident after (min) | Right cause after | Notified after | Its rank then | Named first |"
    return [head, "|---|---|---|---|---|---|", *lines]


def _shown(named: list[Place]) -> str:
    return ", ".join(" ".join(it) for it in named[:3])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose what goes wrong."""
    if "wrong" in metafunc.fixturenames:
        chosen = WRONG[:1] if PACES[str(metafunc.config.getoption("pace"))].quick else WRONG
        metafunc.parametrize("wrong", chosen, ids=[it.name for it in chosen])


def test_normal_work_notifies_nobody(watched: Watched, pytestconfig: pytest.Config) -> None:
    if PACES[str(pytestconfig.getoption("pace"))].quick:
        pytest.skip("it takes an hour: make drill-faults")
    give_past(watched.stack)
    since = time()
    turns = watched.stack.turns()
    while time() < since + watched.normal_s:
        turns.look()
        sleep(EVERY_S)
        assert [it["summary"] for it in watched.incidents(since) if it["severity"] == "critical"] == []
    assert turns.count > 0
    assert watched.tickets(since) == []


def test_what_goes_wrong_is_found_explained_and_routed(watched: Watched, wrong: Wrong) -> None:
    stack = watched.stack
    watched.rest()
    if wrong.of_machine:
        sleep(SHOWN_S)  # of normal work: what the fault before has slowed down is not usual
    give_past(stack, of_machine=wrong.of_machine)
    began = time()

    def minutes(what: Callable[[], Any]) -> float:
        watched.wait(what, lambda: watched.incidents(began))
        return (time() - began) / 60

    with wrong.done(watched.demo):
        opened = minutes(lambda: watched.incidents(began))
        explained = minutes(lambda: watched.rank(wrong, began))
        notified = minutes(lambda: stack.sql(STORED.format(alert=ALERT, since=began)) and ALERT in watched.tickets(began))
        rank = watched.rank(wrong, began)
        largest = watched.incidents(began)[0]
        (marks,) = [it for it in questions(dashboards()["handoff-analytics"]) if it.panel == "annotation Incidents"]
        assert Sources(stack).answers(marks, {}, {}), "Grafana has nothing to annotate"
    watched.outcomes[wrong.name] = Outcome(opened, explained, notified, rank, causes(largest))
    watched.rest()
