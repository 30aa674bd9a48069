"""What the pages list is what the code has, and `make docs` is named where it is not."""

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from docs.source import errors
from docs.source.__main__ import PARTS, filled
from docs.source.errors import NotLiteral, raised
from handoff.settings import Settings
from handoff.store.connect import server_settings
from tests.processes import PATIENCE_S
from tests.stack.rules import alerts

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
OPENS_A_CONNECTION = ("connect_alone", "StandbyConnection")
MARKER, END = (re.compile(rf"^<!-- {words} -->$", re.MULTILINE) for words in (r"generated: ([\w-]+)", "end"))


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: in this one, labels have learnt values from other tests."""
    command = [sys.executable, "-m", "docs.source", "--check", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_every_page_is_current() -> None:
    done = check(DOCS)

    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_a_page_that_is_not_current_is_named_with_what_to_do(tmp_path: Path) -> None:
    current = filled((DOCS / "settings.md").read_text())
    (tmp_path / "current.md").write_text(current)
    (tmp_path / "old.md").write_text(current.replace("`HANDOFF_PORT` | `8642`", "`HANDOFF_PORT` | `8000`"))

    done = check(tmp_path)

    assert done.returncode == 1
    assert done.stdout == f"{tmp_path / 'old.md'} is not what the code says now. Run `make docs` and commit the file.\n"
    assert "8000" in (tmp_path / "old.md").read_text(), "checking writes nothing"


def test_each_part_is_in_one_page_and_each_marker_has_an_end() -> None:
    texts = [path.read_text() for path in DOCS.glob("*.md")]

    assert Counter(name for text in texts for name in MARKER.findall(text)) == dict.fromkeys(PARTS, 1)
    assert [text for text in texts if len(MARKER.findall(text)) != len(END.findall(text))] == []
    with pytest.raises(KeyError, match="weather"):
        filled("<!-- generated: weather -->\n<!-- end -->")


def test_filling_twice_changes_nothing_and_leaves_alone_what_is_outside() -> None:
    page = "before\n<!-- generated: a -->\n<!-- end -->\nbetween\n<!-- generated: a -->\nold\n<!-- end -->\nafter"
    parts = {"a": lambda: "new"}

    once = filled(page, parts)

    part = "<!-- generated: a -->\n\nnew\n\n<!-- end -->"
    assert once == f"before\n{part}\nbetween\n{part}\nafter"
    assert filled(once, parts) == once


def test_every_startup_parameter_that_pgbouncer_does_not_know_is_listed() -> None:
    known = {"application_name", "timezone"}  # PgBouncer's documentation names them, with client_encoding and datestyle
    sent = set(server_settings(Settings()))
    for path in errors.PACKAGE.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in OPENS_A_CONNECTION:
                sent |= {keyword.arg for keyword in call.keywords if keyword.arg}
    (listed,) = re.findall(r"ignore_startup_parameters = (.+)", (DOCS / "stack.md").read_text())

    assert sorted(listed.split(", ")) == sorted(sent - known)


def test_every_alert_is_listed_with_a_summary_that_has_no_template_left() -> None:
    page = (DOCS / "alerting.md").read_text()
    rows = dict(re.findall(r"^\| \[(\w+)\]\(\S+\) \| \w+ \| (.+) \|$", page, re.MULTILINE))

    assert rows.keys() == alerts().keys() - {"Watchdog"}
    assert [text for text in rows.values() if "{{" in text or "$" in text] == []


def test_every_error_code_that_tests_expect_is_listed() -> None:
    expected: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        expected |= set(re.findall(r"""\["code"\] == "(\w+)\"""", path.read_text()))
    listed = set(re.findall(r"^\| (?:\d+ \| )?`(\w+)` \|", (DOCS / "errors.md").read_text(), re.MULTILINE))

    assert len(expected) > 10
    assert expected - listed == set()


def test_every_text_in_the_package_that_names_an_error_class_is_collected() -> None:
    """By another way: each call of one of the classes, found in the text."""
    names = "|".join(errors.kinds())
    written: Counter[str] = Counter()
    for path in errors.PACKAGE.rglob("*.py"):
        written.update(re.findall(rf"\b(?:{names})\(\s*\"(\w+)\",", path.read_text()))
    assert written == Counter(it.code for it in raised())


def test_an_error_is_read_as_its_reader_sees_it(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("""
WHERE = "here"
def fail(row, more):
    raise errors.Conflict("gone", f"{row['name']!r} is {more.state} {WHERE}: {len(more)}", "Try." if row else "Stop.")
""")

    (it,) = raised(tmp_path)

    assert (it.code, it.kind) == ("gone", "Conflict")
    assert (it.message, it.hint) == ("{name} is {state} here: …", "Try. / Stop.")


@pytest.mark.parametrize("call", ['Invalid(code, "message", "hint")', 'Invalid("code", message="message", hint="hint")'])
def test_an_error_that_could_not_be_listed_is_refused_with_its_place(tmp_path: Path, call: str) -> None:
    (tmp_path / "one.py").write_text(f"\nraise {call}\n")

    with pytest.raises(NotLiteral, match=r"one\.py:2: "):
        list(raised(tmp_path))
