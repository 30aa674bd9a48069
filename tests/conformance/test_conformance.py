"""The official conformance suite of MCP, for both revisions that the service supports."""

import json
import re
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Final

import pytest

from tests.conformance import npm
from tests.conformance.serving import serving

pytestmark = [pytest.mark.external, pytest.mark.timeout(npm.INSTALL_TIMEOUT_S + npm.RUN_TIMEOUT_S)]

REVISIONS: Final = ["2025-11-25", "2026-07-28"]
SCORED: Final = {"2025-11-25": 30, "2026-07-28": 37}
# Scenarios that the suite runs but does not score, because its reference server does not pass them yet or because they are
# newer than the revision. This edge passes them, so here they count.
UNSCORED: Final = {
    "2025-11-25": {"json-schema-2020-12", "server-session-lifecycle"},
    "2026-07-28": {"json-schema-2020-12", "http-header-validation", "http-custom-header-server-validation"},
}
# Scenarios that need no particular tool, prompt or resource, and no feature that the service does not use.
ON_THE_SERVICE: Final = {
    "2025-11-25": {"server-initialize", "ping", "tools-list", "resources-list", "dns-rebinding-protection"},
    "2026-07-28": {
        "tools-list",
        "resources-list",
        "sep-2164-resource-not-found",
        "dns-rebinding-protection",
        "server-sse-multiple-streams",
        "http-header-validation",
    },
}


@pytest.fixture(scope="module")
def fixture_url() -> Generator[str]:
    with serving([sys.executable, "-m", "tests.conformance.serve", "0"]) as url:
        yield url


@pytest.mark.parametrize("revision", REVISIONS)
def test_the_edge_passes_every_scenario_of_the_suite_on_the_fixtures(
    revision: str, npm_packages: Path, fixture_url: str, tmp_path: Path
) -> None:
    required = _required(npm_packages, revision)
    assert len(required) == SCORED[revision]

    status, problems = _run_suite(npm_packages, fixture_url, revision, tmp_path)

    assert _failing(required | UNSCORED[revision], problems) == {}
    assert status == 0


@pytest.mark.parametrize("revision", REVISIONS)
def test_the_real_service_passes_every_scenario_that_needs_no_fixture(
    revision: str, npm_packages: Path, service_url: str, tmp_path: Path
) -> None:
    _, problems = _run_suite(npm_packages, service_url, revision, tmp_path)

    assert _failing(ON_THE_SERVICE[revision], problems) == {}


def _required(packages: Path, revision: str) -> set[str]:
    """Return the server scenarios that the suite requires for a revision."""
    text = (packages / npm.CONFORMANCE / "requirements" / f"{revision}.yaml").read_text()
    section = re.search(r"^server:\n((?:  - .+\n)+)", text, re.MULTILINE)
    assert section
    return {line.removeprefix("  - ") for line in section[1].splitlines()}


def _run_suite(packages: Path, url: str, revision: str, folder: Path) -> tuple[int, dict[str, list[str]]]:
    """Run the suite; return its exit status and the problems per scenario.

    This is stricter than the suite's own verdict: a warning is a problem, and so is a scenario in which no check succeeded.
    """
    options = ("--url", url, "--requirements", revision, "--output-dir", str(folder / "results"))
    done = npm.run(packages, npm.CONFORMANCE, "server", *options, home=folder)
    problems: dict[str, list[str]] = {}
    for file in (folder / "results").glob("server-*/checks.json"):
        scenario = re.sub(r"^server-(.+)-\d{4}-\d\d-\d\dT[\d-]+Z$", r"\1", file.parent.name)
        checks = json.loads(file.read_bytes())
        wrong = [f"{one['id']}: {one.get('errorMessage')}" for one in checks if one["status"] in {"FAILURE", "WARNING"}]
        checked = any(one["status"] == "SUCCESS" for one in checks)
        problems[scenario] = wrong if checked else [*wrong, "no check succeeded"]
    return done.returncode, problems


def _failing(scenarios: set[str], problems: dict[str, list[str]]) -> dict[str, list[str]]:
    seen = {scenario: problems.get(scenario, ["not run"]) for scenario in scenarios}
    return {scenario: wrong for scenario, wrong in seen.items() if wrong}
