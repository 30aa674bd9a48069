"""The stack for the drills, at the chosen pace. The measurements are printed in the summary of the run."""

from collections.abc import Callable, Generator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep

import pytest

from tests.stack.conftest import ADA_TOKEN, Start
from tests.stack.drills.agents import Caller, again_and_again, work_of
from tests.stack.drills.drill import Drill
from tests.stack.drills.pace import LEFT_OUT, PACES, overlay
from tests.stack.drills.report import table, write


@pytest.fixture(scope="session")
def folder() -> Generator[Path]:
    """The folder with the changed configuration files."""
    with TemporaryDirectory(prefix="handoff-alerts-") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def drill(started: Start, folder: Path, say: Callable[[str], None], pytestconfig: pytest.Config) -> Generator[Drill]:
    """A stack under normal load, and the measurements that are made on it."""
    pace = PACES[str(pytestconfig.getoption("pace"))]
    overlays = ["without-grafana.yaml", overlay(folder, LEFT_OUT, pace)]
    given = {"deadman-url": "http://catcher:8080/deadman"}
    with (
        started(folder, f"{pytestconfig.getoption('project')}-alerts", overlays, given) as stack,
        Caller(stack, ADA_TOKEN) as ada,
        Caller(stack, stack.secret("operator-token")) as operator,
        again_and_again(work_of(ada), threads=2),
    ):
        drill = Drill(stack, folder, pace, ada, operator)
        turns = stack.turns()
        drill.wait(lambda: turns.look() >= 3)  # so that the first drill, too, knows how long a turn takes here
        sleep(pace.usual_s)
        yield drill
        for line in table(drill.measured, pace):
            say(line)
        if pytestconfig.getoption("write_alerts"):
            write(drill.measured, pace)
