"""What the README and the pages in docs/ show is what happens, and their links lead somewhere."""

import hashlib
import json
import re
import subprocess
import sys
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from statistics import median

from markdown_it import MarkdownIt
from pydantic_core import PydanticUndefined

from handoff.configuration import THRESHOLDS
from handoff.model import TRANSITIONS
from handoff.operations.checks import LIMITS, limits_of
from handoff.server.catalog import ADMIN_TOOLS, PROMPTS, RESOURCES, TOOLS
from handoff.settings import Settings
from tests.processes import HANDOFF, PATIENCE_S, Service, environment, free_port, serving
from tests.test_packaging import targets_in

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
PAGES = (*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")), *DOCS.glob("*.md"))


def block(before: str, page: str = README) -> str:
    """The first code block behind some words of a page."""
    return page.split(before, 1)[1].split("```", 2)[1].split("\n", 1)[1]


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


def test_the_worked_example_is_what_the_demo_prints_and_the_session_can_be_read(service: Service) -> None:
    for _ in range(2):  # and again, on what the first left
        done = demo("--url", service.url)
        assert (done.returncode, done.stderr) == (0, "")
        lines = normalised(block("<!-- demo -->")).splitlines()
        shown = "".join(r"(?:.*\n)+" if line == "…" else re.escape(line) + r"\n" for line in lines)
        assert re.fullmatch(shown, normalised(done.stdout) + "\n"), done.stdout
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


def test_the_python_client_works_as_shown(service: Service) -> None:
    code = block("**Python**").replace("http://127.0.0.1:8642/mcp", service.url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert "'state': 'offered'" in done.stdout


def test_the_configuration_for_an_operators_agent_is_json_that_names_our_addresses_and_no_token() -> None:
    servers = json.loads(block("<!-- mcp.json -->", (DOCS / "stack.md").read_text()))["mcpServers"]
    ports = dict(re.findall(r"127\.0\.0\.1:\$\{([A-Z_]+):-(\d+)\}:", (ROOT / "compose.yaml").read_text()))
    assert servers["handoff"]["url"] == f"http://127.0.0.1:{ports['HANDOFF_PORT']}/mcp"
    assert servers["grafana"]["env"]["GRAFANA_URL"] == f"http://127.0.0.1:{ports['GRAFANA_PORT']}"
    for secret in (
        servers["handoff"]["headers"]["Authorization"],
        servers["grafana"]["env"]["GRAFANA_SERVICE_ACCOUNT_TOKEN"],
    ):
        assert re.fullmatch(r"(Bearer )?\$\{[A-Z_]+\}", secret)


def test_the_diagram_and_the_tables_are_those_of_the_code() -> None:
    tools, settings = (DOCS / "tools.md").read_text(), (DOCS / "settings.md").read_text()
    drawn = set(re.findall(r"^    (\w+) --> (\w+): (\w+)$", tools, re.MULTILINE))
    assert drawn == {(origin, target, action) for (origin, action), target in TRANSITIONS.items()}
    named = re.findall(r"^\| `([a-z_]+)` \| [A-Z]", tools, re.MULTILINE)
    assert named == [*(it.name for it in (*TOOLS, *ADMIN_TOOLS)), *PROMPTS]
    assert re.findall(r"^\| `(handoff:\S+)` \|", tools, re.MULTILINE) == [it.path for it in RESOURCES]
    rows = re.findall(r"^\| `HANDOFF_(\w+)` \| (.*?) ?\|", settings, re.MULTILINE)
    assert [name.lower() for name, _ in rows] == list(Settings.model_fields)
    for name, default in rows:
        real = Settings.model_fields[name.lower()].default
        if real is PydanticUndefined:  # depends on the machine
            real = None
        if isinstance(real, float):
            assert float(default.strip("`")) == real, name
        else:
            shown = "" if real in (None, ()) else f"`{str(real).lower() if isinstance(real, bool) else real}`"
            assert default == shown, name


def test_the_thresholds_of_health_are_those_of_the_code() -> None:
    page = (DOCS / "health.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(LIMITS)
    for name in LIMITS:
        degraded, unhealthy = limits_of(name, lambda of: THRESHOLDS[of].default)
        row = re.findall(rf"^\| `{name}` \| [^|]* \| ([^|]*) \| ([^|]*)\|$", page, re.MULTILINE)
        assert row, name
        shown = [re.match(r"[\d,]+", cell.strip()) for cell in row[0]]
        assert shown[0] is not None
        assert float(shown[0][0].replace(",", "")) == degraded, name
        assert (float(shown[1][0].replace(",", "")) if shown[1] else None) == unhealthy, name


def test_the_readme_stays_short_and_begins_with_the_picture_three_lines_to_run_three_to_connect_and_a_handoff() -> None:
    assert len(README.splitlines()) <= 200
    first = README.split("\n## ", 1)[0]
    picture, run, connect = (first.index(it) for it in ("](docs/handoff.svg)", "**Run it.**", "**Connect your agents**"))
    demo = first.index("<!-- demo -->")
    assert picture < run < connect < demo
    assert [len(re.findall(r"^    \S", it, re.MULTILINE)) for it in (first[run:connect], first[connect:demo])] == [3, 3]


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {
        (ROOT / target.partition("#")[0]).resolve() for target in targets_in(README) if not re.match(r"[a-z]+:", target)
    }
    assert set(DOCS.glob("*.md")) - linked == set()


def test_every_link_leads_to_a_file_and_every_anchor_to_a_heading() -> None:
    dead: list[str] = []
    for page in PAGES:
        for target in targets_in(page.read_text()):
            path, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            to = (page.parent / path).resolve() if path else page
            if not to.exists() or (anchor and anchor not in anchors(to.read_text())):
                dead.append(f"{page.relative_to(ROOT)}: {target}")
    assert dead == []


def anchors(markdown: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    found: set[str] = set()
    tokens = MarkdownIt().parse(markdown)
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open":
            text = "".join(it.content for it in inline.children or () if it.type in ("text", "code_inline"))
            found.add(re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-"))
    return found


def mapped(heading: str) -> set[Path]:
    """What a map in docs/architecture.md names, as paths."""
    page = (DOCS / "architecture.md").read_text()
    text = page.split(f"<!-- map: {heading} -->\n```text\n", 1)[1].split("```", 1)[0]
    found: set[Path] = set()
    above = ROOT / heading
    for line in text.splitlines():
        if not line:
            continue
        names = re.split(r", ", re.split(r"\s{2,}", line.strip())[0])
        if not line.startswith(" "):
            above = ROOT / heading / names[0] if len(names) == 1 and names[0].endswith("/") else ROOT / heading
        found |= {(above if line.startswith(" ") else ROOT / heading) / name for name in names}
    return found


def is_ignored(folder: str) -> bool:
    """Whether .gitignore names a folder of the repository, or it is hidden. Git itself may not know this checkout."""
    ignored = (ROOT / ".gitignore").read_text().split()
    return folder.startswith(".") or any(fnmatch(folder, line.rstrip("/")) for line in ignored)


def test_what_the_map_names_is_there_and_what_is_there_is_named() -> None:
    repository, package = mapped("."), mapped("service/handoff")
    assert [path for path in repository | package if not path.exists()] == []

    assert {path for path in ROOT.iterdir() if path.is_dir() and not is_ignored(path.name)} - repository == set()
    home = ROOT / "service" / "handoff"
    there = {path for path in home.iterdir() if (path.is_dir() and path.name != "__pycache__") or path.suffix == ".py"}
    assert there - package == {home / "__init__.py"}


MAY_BE_LONG = {"settings.py": "one list of all settings, which a reader scans and does not follow"}


def test_modules_are_short() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in (ROOT / "service" / "handoff").rglob("*.py")}
    assert median(count for path, count in lines.items() if path.name != "__init__.py") <= 150
    long = {path.relative_to(ROOT / "service" / "handoff").as_posix(): count for path, count in lines.items() if count > 400}
    assert long.keys() <= MAY_BE_LONG.keys(), long
