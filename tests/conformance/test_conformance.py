"""The protocol's own suite, at both revisions that the service speaks, on fixtures behind the service's edge."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.conformance import npm
from tests.conformance.serving import serving

pytestmark = [pytest.mark.external, pytest.mark.timeout(npm.INSTALL_TIMEOUT_S + npm.RUN_TIMEOUT_S)]

# What the suite runs without scoring it: its own reference server can't pass these yet, or they are newer than the
# revision. This edge passes them, so here they count.
UNSCORED: Final = {
    "2025-11-25": {"json-schema-2020-12", "server-session-lifecycle"},
    "2026-07-28": {"json-schema-2020-12", "http-header-validation", "http-custom-header-server-validation"},
}


@pytest.fixture(scope="module")
def fixture_url() -> Iterator[str]:
    with serving([sys.executable, "-m", "tests.conformance.serve", "0"]) as url:
        yield url


@pytest.mark.parametrize(("revision", "scored"), [("2025-11-25", 30), ("2026-07-28", 37)])
def test_the_edge_passes_every_scenario_of_the_conformance_suite(
    revision: str, scored: int, npm_packages: Path, fixture_url: str, tmp_path: Path
) -> None:
    required = _required(npm_packages, revision)
    assert len(required) == scored

    results = tmp_path / "results"
    options = ("--url", fixture_url, "--requirements", revision, "--output-dir", str(results))
    done = npm.run(npm_packages, npm.CONFORMANCE, "server", *options, home=tmp_path)

    problems = _problems(results)
    expected = required | UNSCORED[revision]
    assert {name: problems.get(name, ["not run"]) for name in expected if problems.get(name, True)} == {}
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr


def _required(packages: Path, revision: str) -> set[str]:
    """The server scenarios that the suite's own requirements name for a revision."""
    text = (packages / npm.CONFORMANCE / "requirements" / f"{revision}.yaml").read_text()
    section = re.search(r"^server:\n((?:  - .+\n)+)", text, re.MULTILINE)
    assert section
    return {line.removeprefix("  - ") for line in section[1].splitlines()}


def _problems(results: Path) -> dict[str, list[str]]:
    """What each scenario found wrong. Warnings count here, and so does a scenario in which no check succeeded."""
    problems: dict[str, list[str]] = {}
    for file in results.glob("server-*/checks.json"):
        scenario = re.sub(r"^server-(.+)-\d{4}-\d\d-\d\dT[\d-]+Z$", r"\1", file.parent.name)
        checks = json.loads(file.read_bytes())
        wrong = [f"{it['id']}: {it.get('errorMessage')}" for it in checks if it["status"] in {"FAILURE", "WARNING"}]
        nothing_checked = [] if any(it["status"] == "SUCCESS" for it in checks) else ["no check succeeded"]
        problems[scenario] = wrong + nothing_checked
    return problems
