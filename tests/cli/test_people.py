"""The commands for people and scripts, against a service in a process of its own."""

import json
import re
import subprocess
import sys
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import pytest

from handoff.cli.parser import parser
from handoff.cli.portable import verified
from handoff.encoding import printable
from tests.processes import HANDOFF, PATIENCE_S, Service, environment, free_port, serving
from tests.requests import body, headers
from tests.server.test_auth import line

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eevil\u2066<script>alert(1)</script>\x7f\r"
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_keys = count(1)


def told(service: Service, tool: str, **arguments: Any) -> dict[str, Any]:
    """What a tool answers an agent."""
    request = body("tools/call", name=tool, arguments=arguments)
    answer = httpx2.post(service.url, json=request, headers=headers("tools/call", tool), timeout=PATIENCE_S).json()
    return answer["result"]["structuredContent"]


def a_session(service: Service, *contents: str, agent: str = "ada", **entry: Any) -> str:
    key = f"people-{next(_keys)}"
    told(service, "register_session", agent=agent, session_key=key)
    for content in contents:
        entries = [{"type": "message", "content": content, **entry}]
        told(service, "update_context", agent=agent, session_key=key, entries=entries)
    return key


class Line:
    """The command line in this process, which shares what takes a second to load."""

    def __init__(self, service: Service, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        for name in ("URL", "TOKEN", "AGENT"):
            monkeypatch.delenv(f"HANDOFF_{name}", raising=False)
        monkeypatch.setenv("HANDOFF_URL", service.url)
        self.errors = ""

    def __call__(self, *words: str, status: int = 0) -> str:
        """What a command prints; it must end with this status."""
        arguments = parser().parse_args(words)
        module, _, command = arguments.run.partition(":")
        ended = getattr(import_module(module), command)(arguments)
        printed, self.errors = self._capsys.readouterr()
        assert ended == status, (printed, self.errors)
        assert not UNSAFE.search(printed + self.errors)
        return printed


@pytest.fixture
def handoff(service: Service, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Line:
    return Line(service, capsys, monkeypatch)


def test_a_person_sends_work_and_another_takes_it_rejects_it_and_reads_the_trail(handoff: Line) -> None:
    sent = json.loads(handoff("send", "Count the lines.", "--to", "grace", "--agent", "ada", "--priority", "7", "--json"))
    key, number = sent["session_key"], str(sent["handoff_id"])
    assert "Count the lines." in handoff("inbox", "grace")
    assert key in handoff("sessions", "--of", "ada", "--status", "active")
    taken = handoff("accept", number, "--agent", "grace")
    assert f"You hold handoff {number} of session {key} with token 1" in taken
    assert "Count the lines." in taken
    renewed = handoff("renew", number, "--agent", "grace", "--lease-seconds", "900")
    assert re.fullmatch(rf"You hold handoff {number} until \S+\.\n", renewed)

    handoff("resolve", number, "block", "--note", "Which lines?", "--agent", "grace")
    handoff("renew", number, "--agent", "grace")
    assert (
        handoff("resolve", number, "complete", "--note", "412 lines.", "--agent", "grace")
        == f"Handoff {number} is completed.\n"
    )
    trail = handoff("show", key)
    outcome = "outcome: 412 lines."
    for words in ("ada  message", "handoff.accepted", "grace", "Which lines?", outcome, sent["context_digest"]):
        assert words in trail
    assert "reason: " not in trail
    assert key in handoff("search", '"Count the lines"', "--agent", "ada")
    whole = json.loads(handoff("show", key, "--json"))
    assert [it["sequence"] for it in whole["entries"]] == [1, 2]
    assert whole["handoffs"][0]["outcome"] == "412 lines."
    assert "The brief that grace received" in handoff("show", key, "--briefs")
    received = json.loads(handoff("show", key, "--briefs", "--json"))["handoffs"][0]["received"]
    assert received["brief"]["parts"][0]["state"] == "accepted", "as it was then"


def test_lists_go_on_where_their_page_ended(handoff: Line, service: Service) -> None:
    keys = [a_session(service, agent="pager") for _ in range(3)]
    first = json.loads(handoff("sessions", "--of", "pager", "--limit", "2", "--json"))
    rest = handoff("sessions", "--of", "pager", "--limit", "2", "--cursor", first["next_cursor"])
    assert [it["session_key"] for it in first["sessions"]] == keys[:0:-1]
    assert keys[0] in rest
    handoff("sessions", "--of", "pager", "--limit", "2")
    assert f"--cursor {first['next_cursor']}" in handoff.errors


def test_nothing_that_an_agent_writes_reaches_the_terminal_as_a_control_character(handoff: Line, service: Service) -> None:
    key = a_session(service, f"x{HOSTILE}")
    told(service, "request_handoff", agent="ada", session_key=key, target_agent="victim", instructions=f"i{HOSTILE}")
    for words in (["show", key], ["inbox", "victim"], ["search", "evil", "--agent", "ada"], ["export", key]):
        for more in ([], [] if words[0] == "export" else ["--json"]):
            assert "evil" in handoff(*words, *more)
    assert "\\x1b]0;owned\\x07" in handoff("show", key)


def test_a_text_in_any_language_is_printed_as_it_is() -> None:
    for text in ("naïve — 数据 база\n\tdonnées", "👩‍💻 می‌خواهم", "مرحبا"):
        assert printable(text) == text
    assert printable("\ud800\u2028") == "\\ud800\\u2028"


def test_a_session_is_exported_and_imported_as_it_was(handoff: Line, service: Service, tmp_path: Path) -> None:
    file, key = tmp_path / "session.jsonl", a_session(service, "The task.", f"ä{HOSTILE}", "y" * 200_000)
    told(
        service,
        "update_context",
        agent="ada",
        session_key=key,
        entries=[{"type": "decision", "content": "Instead.", "supersedes": [2], "metadata": {"pinned": True}}],
    )
    told(service, "request_handoff", agent="ada", session_key=key, target_agent="bob", instructions="Go on.")
    handoff("export", key, "--output", str(file))
    for _ in range(2):  # a repeat writes nothing twice
        assert "5 entries imported" in handoff("import", str(file), "--key", f"{key}-copy", "--agent", "carol")

    of = {name: json.loads(handoff("show", name, "--all", "--json"))["entries"] for name in (key, f"{key}-copy")}
    same = [[(it["sequence"], it["type"], it["content"], it.get("superseded_by")) for it in of[name][1:]] for name in of]
    assert same[0] == same[1]
    last = of[f"{key}-copy"][-1]
    assert last["author"] == "carol"
    assert last["metadata"]["pinned"] is True
    assert last["metadata"]["imported"]["author"] == "ada"


def test_a_file_that_was_changed_or_cut_off_is_not_imported(handoff: Line, service: Service, tmp_path: Path) -> None:
    file, key = tmp_path / "session.jsonl", a_session(service, "The task.", "More.")
    handoff("export", key, "--output", str(file))
    whole = file.read_text()
    lines = whole.splitlines(keepends=True)
    damaged = [
        whole.replace("The task.", "Another task."),
        whole.replace('"owner":"ada"', '"owner":"eve"'),  # of the session, which has no hash of its own
        "".join(lines[:-1]),
        "".join(lines[:1] + lines[2:]),
        whole[:-20],
        "[]\n" + whole,
        "",
    ]
    for text in damaged:
        file.write_text(text)
        handoff("import", str(file), "--key", f"{key}-damaged", "--agent", "ada", status=6)
        assert "damaged" in handoff.errors
    handoff("show", f"{key}-damaged", status=3)
    assert verified(whole).session["session_key"] == key


def test_each_kind_of_failure_has_its_own_status_and_one_sentence(
    handoff: Line, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = a_session(service, "The task.")
    handoff("show", "nowhere", status=3)
    handoff("accept", "999999", "--agent", "ada", status=3)
    handoff("accept", "999999", status=1)
    assert "--agent NAME" in handoff.errors
    handoff("send", "Go on.", "--to", "ada", "--agent", "ada", "--session", key, status=1)
    handoff("send", "Go on.", "--to", "bob", "--agent", "eve", "--session", key, status=3)
    handoff("sessions", "--url", f"http://127.0.0.1:{free_port()}/mcp", status=5)
    assert "`handoff run`" in handoff.errors
    assert handoff.errors.count("\n") == 1
    handoff("sessions", "--url", service.url.replace("/mcp", "/healthz"), status=5)
    handoff("sessions", "--token-file", str(tmp_path / "none"), status=2)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    handoff("sessions", "--token-file", str(tmp_path / "binary"), status=2)
    assert "is no text in UTF-8. Name the file that holds the token." in handoff.errors
    handoff("sessions", "--since", "yesterday", status=1)
    assert "since: must be a time with a time zone, as in 2026-01-31T09:00:00Z, not the text 'yesterday'." in handoff.errors
    monkeypatch.delenv("HANDOFF_URL")
    (tmp_path / "running.json").write_text(json.dumps({"url": service.url}))
    monkeypatch.setenv("HANDOFF_DATA_DIR", str(tmp_path))
    assert key in handoff("sessions", "--of", "ada", "--limit", "100")


@pytest.mark.parametrize("words", [("accept", "x"), ("accept", "0"), ("sessions", "--limit", "-1")])
def test_a_number_that_can_be_none_is_refused_in_words(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(words)
    assert "must be a whole number from 1 on" in capsys.readouterr().err


def test_a_token_decides_who_calls_and_without_one_the_command_says_where_to_put_it(
    handoff: Line, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, own = tmp_path / "tokens", tmp_path / "own"
    tokens.write_text(line("alice", "read,write") + line("reader", "read"))
    own.write_text("token-of-alice\n")
    with serving(database_url=database_url, tokens_file=tokens) as guarded:
        monkeypatch.setenv("HANDOFF_URL", guarded.url)
        handoff("sessions", status=4)
        assert "--token-file FILE" in handoff.errors
        handoff("send", "Go on.", "--to", "bob", "--token-file", str(own))
        assert "alice" in handoff("sessions", "--token-file", str(own))
        monkeypatch.setenv("HANDOFF_TOKEN", "token-of-reader")
        assert "alice" not in handoff("sessions")
        handoff("send", "Go on.", "--to", "bob", status=4)


def test_only_the_commands_that_print_colours_load_rich_and_completion_names_them_all() -> None:
    program = (
        "import sys; from handoff.cli.parser import main; sys.argv[1:] = ['doctor']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted(it for it in sys.modules if it.startswith('rich') and sys.modules[it]), 'jinja2' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S, check=True, env=environment()
    )
    assert done.stdout.endswith("[] False\n")
    script = subprocess.run([HANDOFF, "completion", "bash"], capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert "sessions show inbox search send accept renew resolve export import" in script.stdout
