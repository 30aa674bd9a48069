"""`handoff connect`: each client's file as people have it, with an entry of ours, and without it again."""

import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from handoff.cli.connect import connect_command
from handoff.cli.parser import parser
from handoff.clients import jsonc
from handoff.clients.table import CLIENTS

URL = "http://127.0.0.1:8642/mcp"

FILES: dict[str, tuple[str, str]] = {
    "claude-code": (
        ".claude.json",
        (
            '{\n  "numStartups": 12,\n  "projects": {\n    "/home/me": {"mcpServers": {}, "history": ["a // b"]}\n  },\n'
            '  "mcpServers": {\n    "github": {"type": "stdio", "command": "npx", "args": ["-y"], "env": {}}\n  },\n'
            '  "userID": "1é"\n}\n'
        ),
    ),
    "claude-desktop": (
        ".config/Claude/claude_desktop_config.json",
        (
            '{\r\n    "mcpServers": {\r\n        "files": {\r\n            "command": "npx",\r\n            "args": []\r\n'
            "        }\r\n    }\r\n}"
        ),
    ),
    "cursor": (".cursor/mcp.json", '{\n\t"mcpServers": {}\n}\n'),
    "vscode": (
        ".config/Code/User/mcp.json",
        (
            '{\n  // what the team uses\n  "inputs": [\n    {"id": "key", "type": "promptString", "password": true},\n  ],\n'
            '  "servers": {\n    "github": {\n      "type": "http",\n      "url": "https://git.example/", /* hosted */\n'
            "    }, // the last one\n  },\n}\n"
        ),
    ),
    "codex": (
        ".codex/config.toml",
        (
            'model = "gpt-5"  # the large one\n\n[mcp_servers.docs]\ncommand = "docs"\nargs = ["--all"]\n\n# where I work\n'
            '[projects."/home/me/site"]\ntrust_level = "trusted"\n'
        ),
    ),
    "gemini": (".gemini/settings.json", '{\n  "theme": "Dracula",\n  // "vimMode": true\n}\n'),
    "zed": (
        ".config/zed/settings.json",
        (
            "// Zed settings\n//\n// To see all of them, run `zed: open default settings`\n{\n"
            '  "ui_font_size": 16,\n  "languages": {"Python": {"tab_size": 4,},},\n'
            '  "context_servers": {\n    "svelte": {"command": "npx", "args": []}\n  }\n}\n'
        ),
    ),
}

Connect = Callable[..., int]


@pytest.fixture
def connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Connect:
    for name in [it for it in os.environ if it.startswith(("HANDOFF_", "XDG_"))]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    (tmp_path / "project").mkdir()
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.chdir(tmp_path / "project")
    return lambda *arguments: connect_command(parser().parse_args(["connect", *arguments]))


def place(client: str, tmp_path: Path) -> tuple[Path, str]:
    name, text = FILES[client]
    file = tmp_path / "home" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode())
    return file, text


def entries(client: str, text: str) -> dict[str, Any]:
    value = tomllib.loads(text) if client == "codex" else jsonc.parse(text)
    return value[CLIENTS[client].servers]


def test_every_client_is_tried_on_a_file() -> None:
    assert set(FILES) == set(CLIENTS)


@pytest.mark.parametrize("client", FILES)
def test_a_client_is_connected_once_and_disconnected_without_a_trace(client: str, connect: Connect, tmp_path: Path) -> None:
    file, original = place(client, tmp_path)
    file.chmod(0o640)

    assert connect(client, "--dry-run") == 0
    assert file.read_bytes().decode() == original
    assert connect(client) == 0
    connected = file.read_bytes().decode()
    mine = entries(client, connected)["handoff"]
    if client == "claude-desktop":
        assert mine["args"] == ["serve", "--stdio", "--agent", "claude-desktop"]
        assert Path(mine["command"]).exists()
        assert mine["env"]["HANDOFF_DATABASE_URL"].startswith("postgresql://postgres@/handoff?host=/")
    else:
        assert URL in mine.values()
    lines = connected.splitlines()
    for line in original.splitlines():  # nothing is lost: comments, commas and the order of lines
        assert any(it.strip().startswith(line.strip().rstrip("{}")) for it in lines), line
    assert file.stat().st_mode & 0o777 == 0o640
    assert file.with_name(f"{file.name}.before-handoff").read_bytes().decode() == original

    assert connect(client) == 0
    assert file.read_bytes().decode() == connected

    assert connect(client, "--remove") == 0
    assert file.read_bytes().decode() == original
    assert [it.name for it in file.parent.iterdir() if it.is_file()] == [file.name]


@pytest.mark.parametrize("client", FILES)
def test_what_the_user_changed_in_the_meantime_stays(client: str, connect: Connect, tmp_path: Path) -> None:
    file, _ = place(client, tmp_path)
    assert connect(client) == 0
    text = file.read_bytes().decode()
    changed = f"# mine\n{text}" if client == "codex" else jsonc.put(text, ("mine",), {"a": [1]})
    file.write_bytes(changed.encode())

    assert connect(client, "--remove") == 0

    left = file.read_bytes().decode()
    if client == "codex":
        assert left.startswith("# mine\n")
        assert "handoff" not in left
        assert "# where I work" in left
    else:
        assert jsonc.parse(left)["mine"] == {"a": [1]}
        assert "handoff" not in left


@pytest.mark.parametrize("client", [it for it in FILES if CLIENTS[it].project_file])
def test_a_file_that_did_not_exist_is_created_in_the_project_and_goes_again(
    client: str, connect: Connect, tmp_path: Path
) -> None:
    assert connect(client, "--scope", "project") == 0
    file = tmp_path / "project" / str(CLIENTS[client].project_file)
    assert URL in entries(client, file.read_text())["handoff"].values()
    assert connect(client, "--scope", "project", "--remove") == 0
    assert not file.exists()


@pytest.mark.parametrize("client", [it for it in FILES if it not in ("zed", "claude-desktop")])
def test_a_token_is_named_by_its_variable_and_never_written(
    client: str, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cret")
    file, _ = place(client, tmp_path)
    assert connect(client, "--token-env", "MY_TOKEN") == 0
    mine = json.dumps(entries(client, file.read_text())["handoff"])
    assert "MY_TOKEN" in mine
    assert "s3cret" not in file.read_text()


def test_a_file_that_cannot_be_parsed_is_left_alone_and_the_others_are_connected(
    connect: Connect, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for client, broken in (
        ("cursor", '{"mcpServers": {"a": }'),
        ("codex", "[mcp_servers\n"),
        ("gemini", '{"a": 1, "a": 2}'),
    ):
        place(client, tmp_path)[0].write_text(broken)
    zed, _ = place("zed", tmp_path)

    assert connect("--all") == 1

    said = capsys.readouterr()
    for client, broken in (
        ("cursor", '{"mcpServers": {"a": }'),
        ("codex", "[mcp_servers\n"),
        ("gemini", '{"a": 1, "a": 2}'),
    ):
        assert (tmp_path / "home" / FILES[client][0]).read_text() == broken
        assert f"{CLIENTS[client].title}: not changed." in said.err
    assert "line 1: expected a value" in said.err
    assert "handoff" in zed.read_text()
    assert not (tmp_path / "home" / ".claude.json").exists(), "a client that is not here was connected"


def test_what_is_wrong_is_said_before_anything_is_written(
    connect: Connect, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, original = place("claude-desktop", tmp_path)
    assert connect("emacs") == 2
    assert connect("cursor", "--token-env", "a token") == 2
    assert connect("zed", "--token-env", "MY_TOKEN") == 1
    assert connect("claude-desktop", "--scope", "project") == 1
    monkeypatch.setenv("HANDOFF_DATABASE_URL", "postgresql://me:s3cret@db/handoff")
    assert connect("claude-desktop") == 1
    said = capsys.readouterr()
    for words in ("no client 'emacs'", "not a token", "can't refer to", "--scope user", "HANDOFF_DATABASE_PASSWORD_FILE"):
        assert words in said.err
    assert "s3cret" not in said.out + said.err
    assert file.read_bytes().decode() == original

    assert connect() == 0
    assert "Found here: claude-desktop." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", '{\n  "a": {\n    "b": 1\n  }\n}\n'),
        ('{"c": 2}', '{"c": 2, "a": {\n    "b": 1\n  }}'),
        ('{\n\t"a": {\n\t\t"c": 2, // why\n\t},\n}', '{\n\t"a": {\n\t\t"c": 2, // why\n\t\t"b": 1,\n\t},\n}'),
        ('{\n  "a": {\n    "c": 2 // why\n  }\n}', '{\n  "a": {\n    "c": 2, // why\n    "b": 1\n  }\n}'),
        ('{"a": {"b": 1}}', '{"a": {"b": 1}}'),
        ('{"a": {"b": [1, {"x": "}"}]}, "c": 2}', '{"a": {"b": 1}, "c": 2}'),
        ("{\n  // none yet\n}", '{\n  // none yet\n  "a": {\n    "b": 1\n  }\n}'),
    ],
)
def test_a_value_is_put_into_json_with_comments_and_nothing_else_changes(text: str, expected: str) -> None:
    assert jsonc.put(text, ("a", "b"), 1) == expected
    assert jsonc.put(expected, ("a", "b"), 1) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}', "{}"),
        ('{"a": 1, "c": 2}', '{"c": 2}'),
        ('{"c": 2, "a": 1}', '{"c": 2}'),
        ('{\n  "c": 2, // why\n  "a": 1,\n}', '{\n  "c": 2, // why\n}'),
        ('{\n  "c": 2 /* why */,\n  "a": 1\n}', '{\n  "c": 2 /* why */\n}'),
        ('{"c": 2}', '{"c": 2}'),
    ],
)
def test_a_member_is_taken_out_of_json_with_its_comma(text: str, expected: str) -> None:
    assert jsonc.remove(text, ("a",)) == expected
