import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.conformance import npm
from tests.conformance.serving import serving
from tests.processes import free_port, passable_folder


@pytest.fixture(scope="session")
def npm_packages() -> Path:
    """The folder of the conformance suite and the Inspector, which are installed on first use."""
    return npm.install(npm.CONFORMANCE, npm.INSPECTOR)


@pytest.fixture(scope="session")
def service_url() -> Generator[str]:
    """The real service, started with `handoff run` on an empty folder, with its own Postgres."""
    with passable_folder() as folder:
        run = [sys.executable, "-m", "handoff", "run", "--data-dir", str(folder), "--port", str(free_port())]
        with serving(run) as url:
            yield url
