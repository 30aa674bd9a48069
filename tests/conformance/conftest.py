from pathlib import Path

import pytest

from tests.conformance import npm


@pytest.fixture(scope="session")
def npm_packages() -> Path:
    """The conformance suite and the Inspector, installed at the first use on this machine."""
    return npm.install()
