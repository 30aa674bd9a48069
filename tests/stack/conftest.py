"""Stacks, from nothing: one a run, and one for the drills. Where Grafana's image can't be had the run says so."""

import hashlib
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.stack.bundle import Stack, docker_answers, image_at_hand, run, shipped
from tests.stack.drills.pace import PACES

GRAFANA_LEFT_OUT = "Grafana left out: its image is not here and can't be pulled"
ADA_TOKEN = "ada's token, which an operator wrote into the tokens file"
Start = Callable[[Path, str, Sequence[str], Mapping[str, str]], AbstractContextManager[Stack]]
_said = pytest.StashKey[list[str]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    limit_s = 600 + 4 * PACES[str(config.getoption("pace"))].within_s
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.stack)
            item.add_marker(pytest.mark.timeout(limit_s))  # the first of them starts the stack


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(_said, []):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def say(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Tell something at the end of the run, whatever came of it."""
    return pytestconfig.stash.setdefault(_said, []).append


@pytest.fixture(scope="session")
def docker() -> None:
    """There is an engine. Without one these tests prove nothing, so they fail."""
    if not docker_answers():
        pytest.fail("no Docker engine answers, or it has no Compose: the stack can't be tested here")


@pytest.fixture(scope="session")
def images(docker: None) -> dict[str, str]:
    """The image of each service that ships."""
    return {name: service["image"] for name, service in shipped("*")["services"].items()}


@pytest.fixture(scope="session")
def left_out(images: dict[str, str], say: Callable[[str], None]) -> set[str]:
    """The services whose image can't be had here: Grafana, or none."""
    if image_at_hand(images["grafana"]):
        return set()
    say(GRAFANA_LEFT_OUT)
    return {"grafana"}


@pytest.fixture(scope="session")
def started(images: dict[str, str], say: Callable[[str], None]) -> Start:
    """Start a stack from nothing, and end it: below a folder, under a name, with further Compose files and given secrets."""
    # Images differ in the number of their user `postgres`; the default is that of the one that ships.
    postgres_uid = run("docker", "run", "--rm", "--entrypoint=id", images["postgres"], "-u", "postgres").strip()

    @contextmanager
    def start(folder: Path, project: str, overlays: Sequence[str], given: Mapping[str, str]) -> Generator[Stack]:
        stack = Stack(folder, project, overlays, {"POSTGRES_UID": postgres_uid})
        digest = hashlib.sha256(ADA_TOKEN.encode()).hexdigest()
        for name, secret in {"tokens": f"# who else may call\n{digest} ada read,write\n", **given}.items():
            (stack.given / name).write_text(secret)
        stack.down("--volumes")  # of a run that was killed
        try:
            stack.compose("build", "--quiet")
            say(f"{project}: healthy {stack.up():.1f} s after `up`, from nothing, the image built")
            yield stack
        except BaseException:
            print(re.sub(r"\n+", "\n", stack.compose("logs", "--tail=20")))
            raise
        finally:
            stack.down("--volumes")

    return start


@pytest.fixture(scope="session")
def stack(pytestconfig: pytest.Config, started: Start, left_out: set[str]) -> Generator[Stack]:
    """The stack, healthy. What a test stops it starts again."""
    overlays = ["overlay.yaml", *(f"without-{name}.yaml" for name in left_out)]
    # Not below pytest's own folder, which only its user may enter: the engine mounts from it.
    with (
        TemporaryDirectory(prefix="handoff-stack-") as folder,
        started(Path(folder), str(pytestconfig.getoption("project")), overlays, {}) as it,
    ):
        yield it
