"""`handoff hook`: what clients run when a session starts and ends, against a running service, and without one."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from handoff.cli.connect import connect_command
from handoff.cli.parser import parser
from handoff.clients import jsonc
from handoff.clients.hooks import HOOKS
from tests.agents import Agent
from tests.processes import HANDOFF, PATIENCE_S, Service, environment, free_port

Hook = Callable[..., str]
SESSION = "3f0c-11"


@pytest.fixture
def hook(service: Service, tmp_path: Path) -> Hook:
    """Run a hook as a client does; what it printed on standard output. It must never fail or complain."""

    def run(event: str, agent: str, url: str = service.url, **given: Any) -> str:
        done = subprocess.run(
            [HANDOFF, "hook", event, "--url", url, "--agent", agent],
            env=environment() | {"XDG_STATE_HOME": str(tmp_path), "HOME": str(tmp_path)},
            input=json.dumps({"session_id": SESSION, "hook_event_name": event, **given}),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


def shown(printed: str) -> str:
    return json.loads(printed)["hookSpecificOutput"]["additionalContext"]


async def contents(agent: Agent, name: str, key: str) -> list[tuple[str, str]]:
    page = await agent.ok("get_context", agent=name, session_key=key, view="entries")
    return [(it["type"], it["content"]) for it in page["entries"] if it["type"] != "system"]


async def test_a_session_starts_with_the_inbox_and_the_brief_and_ends_with_what_was_decided(
    service: Service, hook: Hook, tmp_path: Path
) -> None:
    async with Client(service.url) as client:
        agent = Agent(client)
        assert "nothing is offered to you" in shown(hook("SessionStart", "ben", source="startup"))

        key = await agent.session("ada")
        await agent.says(key, "Port the parser.", agent="ada")
        handoff = await agent.offer(key, to="ben", agent="ada", instructions="Mind the comments.")
        started = shown(hook("SessionStart", "ben", source="startup"))
        assert f"Handoff {handoff} is offered to you by ada" in started
        assert "Mind the comments." in started
        cursor = json.loads(hook("sessionStart", "ben"))
        assert f"Handoff {handoff}" in cursor["additional_context"]

        await agent.accept(handoff, "ben")
        assert "Port the parser." in shown(hook("SessionStart", "ben", source="startup"))

        answer = "Done.\n\n- **Decision:** Comments are tokens.\nDecisions: none.\n```\nDecision: not this\n```\nTodo: tabs"
        for _ in range(2):
            assert hook("Stop", "ben", last_assistant_message=answer) == ""
        assert hook("AfterAgent", "ben", prompt_response="Decision: Comments are tokens.\nOpen question: CRLF?") == ""
        assert (await contents(agent, "ben", key))[1:] == [
            ("decision", "Comments are tokens."),
            ("message", "tabs"),
            ("message", "CRLF?"),
        ]
        brief = (await agent.ok("get_context", agent="ben", session_key=key))["brief"]
        assert "tabs" in json.dumps(brief)

        for _ in range(2):
            await agent.accept(await agent.offer(await agent.session("ada"), to="ben", agent="ada"), "ben")
        assert "You hold 1 more: call get_inbox." in shown(hook("SessionStart", "ben", source="startup"))


async def test_what_a_compaction_would_lose_is_read_from_the_transcript_and_shown_after_it(
    service: Service, hook: Hook, tmp_path: Path
) -> None:
    transcript = tmp_path / "transcript.jsonl"
    said = [
        {"type": "user", "message": {"role": "user", "content": "Decision: not an agent's"}},
        {"type": "assistant", "message": {"role": "assistant", "content": [{"type": "text", "text": "Decision: Use WAL."}]}},
        {"type": "assistant", "message": {"role": "assistant", "content": [{"type": "tool_use", "input": {}}]}},
        {"payload": {"role": "assistant", "content": [{"type": "output_text", "text": "Open: which page size?"}]}},
        {"type": "assistant", "message": None},
    ]
    transcript.write_text("".join(json.dumps(it) + "\n" for it in said) + '{"type": "assistant", "mess')
    own = f"cy-{SESSION}"

    assert hook("PreCompact", "cy", transcript_path=str(transcript), trigger="auto") == ""
    last = {"message": {"role": "assistant", "content": [{"text": "Decision: Pages of 8 KB."}]}}
    transcript.write_text("".join(json.dumps(it) + "\n" for it in [*said, last]))
    assert hook("Stop", "cy", transcript_path=str(transcript)) == ""

    async with Client(service.url) as client:
        agent = Agent(client)
        assert await contents(agent, "cy", own) == [
            ("decision", "Use WAL."),
            ("message", "which page size?"),
            ("decision", "Pages of 8 KB."),
        ]
    assert "Pages of 8 KB." in shown(hook("SessionStart", "cy", source="compact"))
    assert "Pages of 8 KB." not in shown(hook("SessionStart", "cy", source="startup"))


def test_it_is_silent_when_the_service_is_away_and_saves_then_what_it_could_not(hook: Hook, service: Service) -> None:
    away = f"http://127.0.0.1:{free_port()}/mcp"
    for event in ("SessionStart", "PreCompact", "Stop", "AnEventOfTomorrow"):
        assert hook(event, "dee", away, last_assistant_message="Decision: Wait.") == ""
    assert hook("Stop", "dee", transcript_path="/nowhere", last_assistant_message="Decision: Wait.") == ""
    assert "Wait." in shown(hook("SessionStart", "dee", source="resume"))


def test_a_refusal_is_said_on_standard_error_and_stops_nobody(service: Service) -> None:
    done = subprocess.run(
        [HANDOFF, "hook", "SessionStart", "--url", service.url, "--agent", "no spaces"],
        input="not JSON", env=environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")
    assert "agent: must" in done.stderr


def test_a_turn_that_decides_nothing_loads_neither_the_parser_nor_a_client() -> None:
    code = (
        "import sys; sys.argv = ['handoff', 'hook', 'Stop']\nfrom handoff.__main__ import main\n"
        "try:\n    main()\nfinally:\n    print(*sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input='{"session_id": "x", "last_assistant_message": "Hello."}',
        capture_output=True, text=True, timeout=PATIENCE_S, check=True,
    )  # fmt: skip
    loaded = set(done.stdout.split())
    assert "handoff.cli.hook" in loaded
    assert not loaded & {
        "argparse",
        "hashlib",
        "pathlib",
        "platformdirs",
        "asyncio",
        "email",
        "http.client",
        "pydantic",
        "socket",
        "ssl",
        "handoff.cli.parser",
    }


FILES = {
    "claude-code": (
        ".claude/settings.json",
        (
            '{\n  "model": "opus",\n  "hooks": {\n    "Stop": [\n'
            '      {\n        "hooks": [{"type": "command", "command": "say done"}]\n      }\n    ]\n  }\n}\n'
        ),
    ),
    "codex": (".codex/hooks.json", '{"hooks": {"PreToolUse": [{"hooks": [{"type": "command", "command": "lint"}]}]}}'),
    "gemini": (".gemini/settings.json", '{\n  // dark\n  "theme": "Dracula",\n  "hooks": {"AfterAgent": [],}, // none\n}\n'),
    "cursor": (".cursor/hooks.json", '{\n  "version": 1,\n  "hooks": {"stop": [{"command": "./a.sh"}]}\n}\n'),
}  # fmt: skip


@pytest.mark.parametrize("client", FILES)
@pytest.mark.parametrize("exists", [True, False])
def test_hooks_are_installed_once_beside_those_that_are_there_and_removed_without_a_trace(
    client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, exists: bool
) -> None:
    assert set(FILES) == set(HOOKS)
    monkeypatch.setenv("HOME", str(tmp_path))
    name, original = FILES[client]
    file = tmp_path / name
    if exists:
        file.parent.mkdir()
        file.write_text(original)

    def connect(*arguments: str) -> str:
        assert connect_command(parser().parse_args(["connect", client, *arguments])) == 0
        return file.read_text() if file.exists() else ""

    installed = connect("--hooks", "--agent", "zoe", "--token-env", "MY_TOKEN")
    assert connect("--hooks", "--agent", "zoe", "--token-env", "MY_TOKEN") == installed
    hooks = jsonc.parse(installed)["hooks"]
    for event in HOOKS[client].events:
        (mine,) = (it for it in hooks[event] if " hook " in json.dumps(it))
        command = mine["command"] if client == "cursor" else mine["hooks"][0]["command"]
        assert command == (f"{HANDOFF} hook {event} --url http://127.0.0.1:8642/mcp --token-env MY_TOKEN --agent zoe")
    if exists:
        there = jsonc.parse(original)["hooks"]
        assert all(it in hooks[event] for event, items in there.items() for it in items)
    elif client == "cursor":
        assert jsonc.parse(installed)["version"] == 1

    changed = jsonc.put(installed, ("mine",), 1)
    file.write_text(changed)
    if exists:
        kept = connect("--remove")
        assert "handoff" not in kept
        assert jsonc.parse(kept).pop("mine") == 1
        assert "// dark" in kept or client != "gemini"
        file.write_text(original)
        connect("--hooks")
        assert connect("--remove") == original
    else:
        file.write_text(installed)
        assert connect("--remove") == ""
        assert not file.exists()


def test_a_client_without_hooks_says_which_have_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert connect_command(parser().parse_args(["connect", "zed", "--hooks"])) == 1
    assert "Only claude-code, codex, gemini, cursor have hooks." in capsys.readouterr().err
