"""A bounded run of `make fuzz`."""

from collections.abc import Generator

import pytest

from tests.fuzz.run import GROWTH_BYTES_MAX, over_http, over_stdio
from tests.processes import Service, serving

REQUESTS = 1_500
LINES = 300


@pytest.fixture
def quiet(database_url: str) -> Generator[Service]:
    with serving(database_url=database_url, log_level="error") as running:
        yield running


async def test_no_mutated_request_over_http_is_answered_as_a_defect_and_memory_stays(quiet: Service) -> None:
    outcome = await over_http(quiet, REQUESTS, seed=7)

    assert outcome.bad == []
    assert quiet.process.poll() is None
    assert outcome.statuses[200] > REQUESTS / 2  # most of it reaches the tools
    assert outcome.growth_bytes < GROWTH_BYTES_MAX


def test_every_mutated_line_with_an_id_is_answered_over_stdio(database_url: str) -> None:
    assert over_stdio(database_url, LINES, seed=8).bad == []
