"""The clients that `handoff connect` knows: where each keeps its MCP servers, and what an entry of ours looks like there."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import platformdirs
import tomlkit
from tomlkit.exceptions import ParseError

from handoff.clients import jsonc
from handoff.clients.jsonc import NotJson

NAME: Final = "handoff"


class Unreadable(Exception):
    """A client's file can't be parsed, so it is left alone. The message says where."""


class NotPossible(Exception):
    """The client can't do what was asked. The message is a sentence that says what to do instead."""


@dataclass(frozen=True, slots=True)
class Service:
    """How a client reaches the service. The token is named by the environment variable that has it."""

    url: str
    token_env: str | None = None
    command: tuple[str, ...] = ()  # for a client that starts the service over stdio
    env: tuple[tuple[str, str], ...] = ()
    program: str = "handoff"  # what hooks run
    agent: str | None = None  # as whom hooks act, if not as the client


@dataclass(frozen=True, slots=True)
class Client:
    """One client: its configuration files by scope, its way to nest servers, its form of an entry."""

    name: str
    title: str
    user_file: Callable[[], Path]
    project_file: str | None
    servers: str  # the member that has the servers, by their names
    entry: Callable[[Service], dict[str, Any]]

    @property
    def is_there(self) -> bool:
        """Whether this user has the client: its file, or the folder for it."""
        file = self.user_file()
        return file.exists() or (file.parent != Path.home() and file.parent.is_dir())

    def file(self, scope: str, project: Path) -> Path:
        """The file of a scope. Raises NotPossible."""
        if scope == "user":
            return self.user_file()
        if self.project_file is None:
            raise NotPossible(f"{self.title} has no configuration for a project. Use --scope user.")
        return project / self.project_file

    def connected(self, text: str, service: Service) -> str:
        """The file's text with our entry. Raises Unreadable."""
        return self._edited(text, self.entry(service))

    def disconnected(self, text: str) -> str:
        """The file's text without our entry. Raises Unreadable."""
        return self._edited(text, None)

    def _edited(self, text: str, entry: dict[str, Any] | None) -> str:
        edit = _edited_toml if self.user_file().suffix == ".toml" else _edited_json
        return edit(text, self.servers, entry)


def _edited_json(text: str, servers: str, entry: dict[str, Any] | None) -> str:
    try:
        if entry is not None:
            return jsonc.put(text, (servers, NAME), entry)
        value = jsonc.parse(text)
        if not isinstance(value, dict) or NAME not in (value.get(servers) or {}):
            return text
        if len(value[servers]) > 1:
            return jsonc.remove(text, (servers, NAME))
        return jsonc.remove(text, (servers,))
    except NotJson as error:
        raise Unreadable(str(error)) from error


def _edited_toml(text: str, servers: str, entry: dict[str, Any] | None) -> str:
    try:
        document = tomlkit.parse(text)
    except ParseError as error:
        raise Unreadable(str(error)) from error
    table: Any = document.get(servers, {})
    if not isinstance(table, dict):
        raise Unreadable(f"{servers} is not a table")
    if entry is None:
        if NAME not in table:
            return text
        del table[NAME]
        if not table:
            del document[servers]
        return tomlkit.dumps(document)
    if table.get(NAME) == entry:
        return text
    if NAME in table:
        table[NAME] = entry
        return tomlkit.dumps(document)
    added = tomlkit.dumps({servers: {NAME: entry}}).replace(f"[{servers}]\n", "", 1)
    edited = (text.rstrip("\n") + "\n\n" if text.strip() else "") + added
    try:
        tomlkit.parse(edited)
    except (ParseError, ValueError) as error:  # the servers are written as an inline table
        raise Unreadable(f"{servers} can't be extended: {error}") from error
    return edited


def _bearer(service: Service, reference: str) -> dict[str, Any]:
    return {"headers": {"Authorization": f"Bearer {reference}"}} if service.token_env else {}


def _claude_code(service: Service) -> dict[str, Any]:
    # https://code.claude.com/docs/en/mcp: `type` is required for HTTP; ${VAR} is expanded in url and headers
    return {"type": "http", "url": service.url, **_bearer(service, f"${{{service.token_env}}}")}


def _claude_desktop(service: Service) -> dict[str, Any]:
    # https://modelcontextprotocol.io/docs/develop/connect-local-servers: the file only takes programs over stdio
    command, *arguments = service.command
    return {"command": command, "args": arguments, "env": dict(service.env)}


def _cursor(service: Service) -> dict[str, Any]:
    # https://cursor.com/docs/mcp: a remote server is its url; ${env:NAME} is replaced in url and headers
    return {"url": service.url, **_bearer(service, f"${{env:{service.token_env}}}")}


def _vscode(service: Service) -> dict[str, Any]:
    # https://code.visualstudio.com/docs/agents/reference/mcp-configuration: `servers`, and `type` is required
    return {"type": "http", "url": service.url, **_bearer(service, f"${{env:{service.token_env}}}")}


def _codex(service: Service) -> dict[str, Any]:
    # https://developers.openai.com/codex/mcp: a token is named by its variable, and refused when written out
    return {"url": service.url, **({"bearer_token_env_var": service.token_env} if service.token_env else {})}


def _gemini(service: Service) -> dict[str, Any]:
    # https://github.com/google-gemini/gemini-cli/blob/main/docs/tools/mcp-server.md: `httpUrl`; a `url` would be SSE.
    # docs/cli/configuration.md beside it: $NAME and ${NAME} are replaced in every text of settings.json
    return {"httpUrl": service.url, **_bearer(service, f"${{{service.token_env}}}")}


def _zed(service: Service) -> dict[str, Any]:
    # https://zed.dev/docs/ai/mcp: `context_servers`, with url and headers. It has no way to name a variable.
    if service.token_env:
        raise NotPossible(
            "Zed's settings can't refer to a variable, and a token must not be written into them. Use a service "
            "without tokens, or add the header in Zed."
        )
    return {"url": service.url}


def _home(*parts: str) -> Callable[[], Path]:
    return lambda: Path.home().joinpath(*parts)


def _config(*parts: str) -> Callable[[], Path]:
    """In the folder for settings of desktop programs: ~/.config on Linux, ~/Library/Application Support on macOS."""
    return lambda: platformdirs.user_config_path().joinpath(*parts)


def _zed_file() -> Path:
    # https://zed.dev/docs/configuring-zed: ~/.config/zed/settings.json on macOS, too
    folder = Path.home() / ".config" if sys.platform == "darwin" else platformdirs.user_config_path()
    return folder / "zed" / "settings.json"


CLIENTS: Final = {
    it.name: it
    for it in (
        # https://code.claude.com/docs/en/mcp: user scope in ~/.claude.json, project scope in .mcp.json
        Client("claude-code", "Claude Code", _home(".claude.json"), ".mcp.json", "mcpServers", _claude_code),
        # https://modelcontextprotocol.io/docs/develop/connect-local-servers: the folder on macOS. Linux has it in ~/.config
        Client(
            "claude-desktop",
            "Claude Desktop",
            _config("Claude", "claude_desktop_config.json"),
            None,
            "mcpServers",
            _claude_desktop,
        ),
        # https://cursor.com/docs/mcp: ~/.cursor/mcp.json for all projects, .cursor/mcp.json for one
        Client("cursor", "Cursor", _home(".cursor", "mcp.json"), ".cursor/mcp.json", "mcpServers", _cursor),
        # https://code.visualstudio.com/docs/agents/reference/mcp-configuration:
        # in the user's profile or in the workspace
        Client(
            "vscode",
            "VS Code",
            _config("Code", "User", "mcp.json"),
            ".vscode/mcp.json",
            "servers",
            _vscode,
        ),
        # https://developers.openai.com/codex/mcp: ~/.codex/config.toml, or .codex/config.toml in a trusted project
        Client("codex", "Codex", _home(".codex", "config.toml"), ".codex/config.toml", "mcp_servers", _codex),
        # https://github.com/google-gemini/gemini-cli/blob/main/docs/cli/configuration.md
        Client(
            "gemini",
            "Gemini CLI",
            _home(".gemini", "settings.json"),
            ".gemini/settings.json",
            "mcpServers",
            _gemini,
        ),
        # https://zed.dev/docs/configuring-zed: ~/.config/zed/settings.json, or .zed/settings.json in a project
        Client(
            "zed",
            "Zed",
            _zed_file,
            ".zed/settings.json",
            "context_servers",
            _zed,
        ),
    )
}
