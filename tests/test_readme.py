"""What the README shows is what happens."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

from handoff.model import TRANSITIONS
from handoff.operations.health import THRESHOLDS
from handoff.server.catalog import ADMIN_TOOLS, RESOURCES, TOOLS
from handoff.settings import Settings
from tests.processes import HANDOFF, PATIENCE_S, environment, free_port, serving

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def block(before: str) -> str:
    """The first code block behind some words."""
    return README.split(before, 1)[1].split("```", 2)[1].split("\n", 1)[1]


def block_of(heading: str) -> str:
    """A section, up to the next heading."""
    return re.split(r"^#", README.split(heading, 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def normalised(text: str) -> str:
    """Without what differs from run to run and from change to change: ids, digests, counts."""
    return re.sub(r"\d+", "N", re.sub(r"s-[0-9a-f]{16}|[0-9a-f]{12}…", "…", text)).strip()


def demo(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HANDOFF, "demo", *arguments],
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_the_worked_example_is_what_the_demo_prints_and_the_session_can_be_read(database_url: str) -> None:
    with serving(database_url=database_url) as service:
        for _ in range(2):  # and again, on what the first left
            done = subprocess.run(
                [HANDOFF, "demo", "--url", service.url],
                env=environment(),
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )
            assert (done.returncode, done.stderr) == (0, "")
            assert normalised(done.stdout) == normalised(block("<!-- demo -->"))
            assert "it is the same" in done.stdout


def test_the_demo_says_what_to_do_where_no_service_is() -> None:
    done = demo(port=free_port())

    assert done.returncode == 1
    assert done.stdout.count("\n") == 1
    assert "make run" in done.stdout


def test_the_demo_plays_with_tokens_and_says_when_it_needs_them(database_url: str, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    people = ("ada", "grace")
    tokens.write_text("".join(f"{hashlib.sha256(name.encode()).hexdigest()} {name} read,write\n" for name in people))
    with serving(database_url=database_url, tokens_file=tokens) as service:
        without = demo("--url", service.url)
        known = demo("--url", service.url, *[f"--token={name}={name}" for name in people])

    assert (without.returncode, known.returncode) == (1, 0)
    assert "--token ada=" in without.stdout


def test_the_python_client_works_as_shown(database_url: str) -> None:
    with serving(database_url=database_url) as service:
        code = block("**Python**").replace("http://127.0.0.1:8642/mcp", service.url)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert "'state': 'offered'" in done.stdout


def test_the_tables_and_the_diagram_are_those_of_the_code() -> None:
    settings = re.findall(r"^\| `HANDOFF_(\w+)` \| (.*?) \|", README, re.MULTILINE)
    assert [name.lower() for name, _ in settings] == list(Settings.model_fields)
    for name, default in settings:
        real = Settings.model_fields[name.lower()].default
        assert default == ("" if real in (None, ()) else str(real).lower() if isinstance(real, bool) else str(real)), name
    assert re.findall(r"^\| `([a-z_]+)` \| [a-z]", block_of("### The tools"), re.MULTILINE) == [tool.name for tool in TOOLS]
    assert all(f"`{tool.name}`" in README for tool in ADMIN_TOOLS)
    assert all(f"`{resource.path}`" in README for resource in RESOURCES)
    drawn = set(re.findall(r"^    (\w+) --> (\w+): (\w+)$", README, re.MULTILINE))
    assert drawn == {(origin, target, action) for (origin, action), target in TRANSITIONS.items()}


def test_the_thresholds_of_health_are_those_of_the_code() -> None:
    for name, (degraded, unhealthy) in THRESHOLDS.items():
        row = re.findall(rf"^\| `{name}` \| [^|]* \| ([^|]*) \| ([^|]*)\|$", README, re.MULTILINE)
        assert row, name
        shown = [re.match(r"[\d,]+", cell.strip()) for cell in row[0]]
        assert shown[0] is not None
        assert float(shown[0][0].replace(",", "")) == degraded, name
        assert (float(shown[1][0].replace(",", "")) if shown[1] else None) == unhealthy, name


def test_what_the_map_names_is_there() -> None:
    names = re.findall(r"\b[a-z_]+\.py\b|\b[a-z_-]+/", block("## Map"))
    package = ROOT / "service" / "handoff"
    homes = (package, package / "store", package.parent, ROOT, ROOT / "tests", ROOT / "tests" / "stack")
    assert [name for name in names if not any((home / name).exists() for home in homes)] == []
    assert {path.name for path in package.glob("*.py")} - set(names) <= {"__init__.py", "logs.py", "wire.py"}
