import sys
from collections.abc import Generator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.conformance import npm
from tests.conformance.serving import serving
from tests.processes import free_port


@pytest.fixture(scope="session")
def npm_packages() -> Path:
    """The conformance suite and the Inspector, installed at the first use on this machine."""
    return npm.install()


@pytest.fixture(scope="session")
def service_url() -> Generator[str]:
    """The real service as a newcomer starts it: `handoff run`, with a Postgres of its own on a fresh folder."""
    # Not below pytest's own folder, which only its user may enter: as root, Postgres runs as another.
    with TemporaryDirectory(prefix="handoff-tests-") as folder:
        run = [sys.executable, "-m", "handoff", "run", "--data-dir", folder, "--port", str(free_port())]
        with serving(run) as url:
            yield url
