"""The session hooks that `handoff connect --hooks` installs: where each client keeps them, and what an entry looks like."""

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from handoff.clients import jsonc
from handoff.clients.jsonc import NotJson
from handoff.clients.table import Service, Unreadable

_TIMEOUT_S: Final = 5  # after which the client goes on without us; the command itself gives up earlier
_OURS: Final = re.compile(r"handoff'? hook [A-Za-z]")


@dataclass(frozen=True, slots=True)
class Hooks:
    """The hooks of one client: its files, the events that we use, and its form of an entry."""

    name: str
    title: str
    folder: str  # in the user's folder and in a project
    file_name: str
    events: tuple[str, ...]  # as the client calls them
    entry: Callable[[str], dict[str, Any]]  # from a command
    head: tuple[tuple[str, Any], ...] = ()  # what else the file needs

    def file(self, scope: str, project: Path) -> Path:
        """The file of a scope."""
        return (Path.home() if scope == "user" else project) / self.folder / self.file_name

    def connected(self, text: str, service: Service) -> str:
        """The file's text with our hooks. Raises Unreadable."""
        try:
            for name, value in self.head:
                if name not in jsonc.parse(text):
                    text = jsonc.put(text, (name,), value)
            for event in self.events:
                entry = self.entry(_command(service, event, self.name))
                if (place := _ours(text, event)) is not None:
                    if jsonc.parse(text)["hooks"][event][place] == entry:
                        continue
                    text = jsonc.take_out(text, ("hooks", event), place)
                text = jsonc.add(text, ("hooks", event), entry)
        except (NotJson, TypeError) as error:
            raise Unreadable(str(error)) from error
        return text

    def disconnected(self, text: str) -> str:
        """The file's text without our hooks. Raises Unreadable."""
        before = text
        try:
            for event in self.events:
                while (place := _ours(text, event)) is not None:
                    text = jsonc.take_out(text, ("hooks", event), place)
                    if not jsonc.parse(text)["hooks"][event]:
                        text = jsonc.remove(text, ("hooks", event))
                    if not jsonc.parse(text)["hooks"]:
                        text = jsonc.remove(text, ("hooks",))
            is_bare = text != before and bool(self.head) and jsonc.parse(text) == dict(self.head)
        except NotJson as error:
            raise Unreadable(str(error)) from error
        return "" if is_bare else text


def _ours(text: str, event: str) -> int | None:
    """Where in the list of an event our entry is, if it is there. Raises NotJson."""
    value = jsonc.parse(text)
    hooks = value.get("hooks") if isinstance(value, dict) else None
    found = hooks.get(event) if isinstance(hooks, dict) else None
    for place, item in enumerate(found if isinstance(found, list) else ()):
        if _OURS.search(json.dumps(item)):
            return place
    return None


def _command(service: Service, event: str, client: str) -> str:
    words = [service.program, "hook", event, "--url", service.url]
    if service.token_env is not None:
        words += ["--token-env", service.token_env]
    if service.agent is not None or service.token_env is None:  # a token has its agent
        words += ["--agent", service.agent or client]
    return shlex.join(words)


def _in_groups(command: str) -> dict[str, Any]:
    # https://code.claude.com/docs/en/hooks and https://developers.openai.com/codex/hooks: groups with a matcher, which may
    # be left out, and a timeout in seconds
    return {"hooks": [{"type": "command", "command": command, "timeout": _TIMEOUT_S}]}


def _gemini(command: str) -> dict[str, Any]:
    # https://github.com/google-gemini/gemini-cli/blob/main/docs/hooks/reference.md: the timeout is in milliseconds
    return {"hooks": [{"type": "command", "name": "handoff", "command": command, "timeout": _TIMEOUT_S * 1_000}]}


def _cursor(command: str) -> dict[str, Any]:
    # https://cursor.com/docs/hooks: no groups; the timeout is in seconds
    return {"command": command, "timeout": _TIMEOUT_S}


HOOKS: Final = {
    it.name: it
    for it in (
        # https://code.claude.com/docs/en/hooks: ~/.claude/settings.json, or .claude/settings.json in a project
        Hooks("claude-code", "Claude Code", ".claude", "settings.json", ("SessionStart", "PreCompact", "Stop"), _in_groups),
        # https://developers.openai.com/codex/hooks: ~/.codex/hooks.json, or .codex/hooks.json in a project. Codex asks the
        # user to trust each new hook
        Hooks("codex", "Codex", ".codex", "hooks.json", ("SessionStart", "PreCompact", "Stop"), _in_groups),
        # https://github.com/google-gemini/gemini-cli/blob/main/docs/hooks/reference.md: AfterAgent has the final text of a
        # turn. PreCompress has no text that AfterAgent had not
        Hooks("gemini", "Gemini CLI", ".gemini", "settings.json", ("SessionStart", "AfterAgent"), _gemini),
        # https://cursor.com/docs/hooks: ~/.cursor/hooks.json, or .cursor/hooks.json in a project; `version` is required.
        # afterAgentResponse has the text, which `stop` does not
        Hooks(
            "cursor",
            "Cursor",
            ".cursor",
            "hooks.json",
            ("sessionStart", "afterAgentResponse"),
            _cursor,
            head=(("version", 1),),
        ),
    )
}
