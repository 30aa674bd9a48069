"""Stacks started from scratch: one per run, and one for the drills. The summary says when Grafana's image is missing."""

import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.stack.bundle import Stack, docker_answers, image_at_hand, run, shipped
from tests.stack.catchers import Caught, catchers
from tests.stack.drills.pace import PACES

GRAFANA_LEFT_OUT = "Grafana left out: its image is not available locally and can't be pulled"
ADA_TOKEN = "ada's token, which an operator wrote into the tokens file"
Start = Callable[[Path, str, Sequence[str], Mapping[str, str]], AbstractContextManager[Stack]]
_said = pytest.StashKey[list[str]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    limit_s = PACES[str(config.getoption("pace"))].hung_s
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.stack)
            item.add_marker(pytest.mark.timeout(limit_s))  # each of its waits ends earlier, and says for what


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """When a test fails, leave the evidence of its stacks in a folder, and name that in the report."""
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        stacks = [it for it in (getattr(it, "stack", it) for it in item.funcargs.values()) if isinstance(it, Stack)]
        for stack in stacks:
            if stack.containers_left():
                report.sections.append(("Evidence", f"What is needed to understand it is in {stack.leave_evidence()}"))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(_said, []):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def say(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Add a line to the summary of the run, which is printed even if tests fail."""
    return pytestconfig.stash.setdefault(_said, []).append


@pytest.fixture(scope="session")
def docker() -> None:
    """Require a Docker engine. Without one these tests prove nothing, so they fail."""
    if not docker_answers():
        pytest.fail("no Docker engine with Compose answers: the stack can't be tested here")


@pytest.fixture(scope="session")
def images(docker: None) -> dict[str, str]:
    """The image of each shipped service, by service name."""
    return {name: service["image"] for name, service in shipped("*")["services"].items()}


@pytest.fixture(scope="session")
def left_out(images: dict[str, str], say: Callable[[str], None]) -> set[str]:
    """The services whose image is not available here: Grafana, or none."""
    if image_at_hand(images["grafana"]):
        return set()
    say(GRAFANA_LEFT_OUT)
    return {"grafana"}


@pytest.fixture(scope="session")
def postgres_uid(images: dict[str, str]) -> str:
    """The user id of `postgres`, which differs between images; the default in compose.yaml is that of the shipped image."""
    return run("docker", "run", "--rm", "--entrypoint=id", images["postgres"], "-u", "postgres").strip()


@pytest.fixture(scope="session")
def started(postgres_uid: str, say: Callable[[str], None]) -> Start:
    """A function that starts a stack from scratch and removes it afterwards.

    Its arguments: a folder, a project name, more Compose files, and given secrets.
    """

    @contextmanager
    def start(folder: Path, project: str, overlays: Sequence[str], given: Mapping[str, str]) -> Generator[Stack]:
        stack = Stack(folder, project, overlays, {"POSTGRES_UID": postgres_uid})
        digest = hashlib.sha256(ADA_TOKEN.encode()).hexdigest()
        for name, secret in {"tokens": f"# other callers\n{digest} ada read,write\n", **given}.items():
            (stack.given / name).write_text(secret)
        stack.down("--volumes")  # left over from a run that was killed
        try:
            stack.compose("build", "--quiet")
            say(f"{project}: healthy {stack.up():.1f} s after `up`, from scratch, with the image already built")
            yield stack
        except BaseException:
            print(f"What is needed to understand it is in {stack.leave_evidence()}")
            raise
        finally:
            stack.down("--volumes")

    return start


@pytest.fixture(scope="session")
def stack(pytestconfig: pytest.Config, started: Start, left_out: set[str]) -> Generator[Stack]:
    """A healthy stack. A test that stops something must start it again."""
    overlays = ["overlay.yaml", *(f"without-{name}.yaml" for name in left_out)]
    # Not below pytest's own folder, which only its user may enter: containers mount files from here.
    with (
        TemporaryDirectory(prefix="handoff-stack-") as folder,
        started(Path(folder), str(pytestconfig.getoption("project")), overlays, {}) as it,
    ):
        yield it


@pytest.fixture(scope="module")
def alone(docker: None, pytestconfig: pytest.Config) -> Generator[Stack]:
    """A project in which only the one-shot `secrets` runs."""
    with TemporaryDirectory(prefix="handoff-channels-") as folder:
        stack = Stack(Path(folder), f"{pytestconfig.getoption('project')}-channels", [], {})
        stack.down("--volumes")  # of a run that was killed
        try:
            yield stack
        finally:
            stack.down("--volumes")


@pytest.fixture
def caught() -> Generator[Caught]:
    with catchers() as caught:
        yield caught
