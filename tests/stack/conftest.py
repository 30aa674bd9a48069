"""One stack a run, from nothing. Where Grafana's image can't be had it is left out, and the run says so."""

import hashlib
import re
from collections.abc import Generator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.stack.bundle import Stack, docker_answers, image_at_hand, run, shipped

GRAFANA_LEFT_OUT = "Grafana left out: its image is not here and can't be pulled"
ADA_TOKEN = "ada's token, which an operator wrote into the tokens file"
_left_out = pytest.StashKey[bool]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.stack)
            item.add_marker(pytest.mark.timeout(600))  # the first of them starts the stack


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash.get(_left_out, False):
        terminalreporter.write_line(GRAFANA_LEFT_OUT, yellow=True)


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
def left_out(images: dict[str, str], pytestconfig: pytest.Config) -> set[str]:
    """The services whose image can't be had here: Grafana, or none."""
    missing = {"grafana"} if not image_at_hand(images["grafana"]) else set[str]()
    pytestconfig.stash[_left_out] = bool(missing)
    return missing


@pytest.fixture(scope="session")
def stack(images: dict[str, str], left_out: set[str]) -> Generator[Stack]:
    """The stack, healthy. What a test stops it starts again."""
    # Images differ in the number of their user `postgres`; the default is that of the one that ships.
    postgres_uid = run("docker", "run", "--rm", "--entrypoint=id", images["postgres"], "-u", "postgres").strip()
    overlays = ["overlay.yaml", *(f"without-{name}.yaml" for name in left_out)]
    # Not below pytest's own folder, which only its user may enter: the engine mounts from it.
    with TemporaryDirectory(prefix="handoff-stack-") as folder:
        stack = Stack(Path(folder), "handoff-tests", overlays, {"POSTGRES_UID": postgres_uid})
        digest = hashlib.sha256(ADA_TOKEN.encode()).hexdigest()
        (stack.given / "tokens").write_text(f"# who else may call\n{digest} ada read,write\n")
        stack.down("--volumes")  # of a run that was killed
        try:
            stack.compose("build", "--quiet")
            stack.first_start_s = stack.up()
            yield stack
        except BaseException:
            print(re.sub(r"\n+", "\n", stack.compose("logs", "--tail=20")))
            raise
        finally:
            stack.down("--volumes", "--rmi=local")
