"""A connection to a running service for the commands that people and scripts call, and the statuses these end with."""

import argparse
import asyncio
import json
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import httpx2
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

from handoff.cli.start import fail, mcp_address, read_settings
from handoff.encoding import printable

REFUSED, NOT_FOUND, NOT_ALLOWED, AWAY, DAMAGED = 1, 3, 4, 5, 6  # 2 is a usage error; docs/people.md lists them
_TIMEOUT_S: Final = 30.0  # for a step of a call
_UNAUTHORIZED: Final = 401
_NOT_FOR_US: Final = (403, 421)  # an Origin or a Host that the service does not answer to
_SETTINGS: Final = {"url": "HANDOFF_URL", "token": "HANDOFF_TOKEN", "agent": "HANDOFF_AGENT"}
_STATUS_OF_CODE: Final = {
    "agent_mismatch": NOT_ALLOWED,
    "not_addressed": NOT_ALLOWED,
    "not_owner": NOT_ALLOWED,
    "not_writer": NOT_ALLOWED,
    "scope_missing": NOT_ALLOWED,
    "token_revoked": NOT_ALLOWED,
    "unauthorized": NOT_ALLOWED,
    "brief_not_found": NOT_FOUND,
    "handoff_not_found": NOT_FOUND,
    "resource_not_found": NOT_FOUND,
    "session_not_found": NOT_FOUND,
}


class Failed(Exception):
    """A command can't do what it was asked. The message says why and what to do."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Remote:
    """The service, as one caller sees it."""

    def __init__(self, client: Client, agent: str | None) -> None:
        self._client = client
        self.agent = agent

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool with the arguments that are not None; return its result. Raises Failed."""
        given = {"agent": self.agent, **arguments}
        result = await self._client.call_tool(tool, {name: value for name, value in given.items() if value is not None})
        if not result.is_error:
            return result.structured_content or {}
        raise _refused(json.loads(getattr(result.content[0], "text", "{}"))["error"])

    async def read(self, path: str, **query: Any) -> dict[str, Any]:
        """Read handoff://`path` with the parameters that are not None; return its JSON. Raises Failed."""
        given = urlencode({name: str(value) for name, value in query.items() if value is not None})
        try:
            found = await self._client.read_resource(f"handoff://{path}" + (f"?{given}" if given else ""))
        except MCPError as error:
            if isinstance(data := error.error.data, dict) and "code" in data:
                raise _refused(data) from error
            raise
        return json.loads(getattr(found.contents[0], "text", "{}"))


def _refused(error: dict[str, Any]) -> Failed:
    status = _STATUS_OF_CODE.get(error["code"], AWAY if error["retryable"] else REFUSED)
    message = f"{error['message']} {error['try']}"
    if error["code"] == "agent_required":
        message = "Say which agent you act as: --agent NAME, or HANDOFF_AGENT=NAME."
    return Failed(message, status)


def with_service(arguments: argparse.Namespace, run: Callable[[Remote], Awaitable[int]]) -> int:
    """Connect as the command's options say, and run; return the exit status. Every failure is one sentence."""
    try:
        url, token, agent = _whereabouts(arguments)
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}. Name the file that holds the token.")
    except UnicodeDecodeError:
        return fail(f"{arguments.token_file} is no text in UTF-8. Name the file that holds the token.")

    async def connected() -> int:
        async with _connected(url, token, agent) as remote:
            return await run(remote)

    try:
        return asyncio.run(connected())
    except Exception as raised:
        error: BaseException = raised
        while isinstance(error, BaseExceptionGroup):  # the client's task groups wrap the error
            error = error.exceptions[0]
        failed = _explained(error, url)
        if failed is None:
            raise
        fail(printable(str(failed)).replace("\n", " "))
        return failed.status


def _explained(error: BaseException, url: str) -> Failed | None:
    match error:
        case Failed():
            return error
        case httpx2.InvalidURL() | httpx2.UnsupportedProtocol():
            return Failed(f"{url!r} is no MCP address. Write it as http://HOST:PORT/mcp.", 2)
        case httpx2.HTTPError() | TimeoutError():
            return Failed(
                f"No Handoff service answers at {url}. Start one with `handoff run`, or give its address with --url or "
                "HANDOFF_URL.",
                AWAY,
            )
        case MCPError() | ValueError():
            return Failed(f"{url} answers, but not as a Handoff service. Correct the address: http://HOST:PORT/mcp.", AWAY)
        case _:
            return None


@asynccontextmanager
async def _connected(url: str, token: str | None, agent: str | None) -> AsyncGenerator[Remote]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx2.AsyncClient(headers=headers, timeout=_TIMEOUT_S) as http:
        await _check_access(http, url, has_token=token is not None)
        async with Client(streamable_http_client(url, http_client=http)) as client:
            yield Remote(client, agent)


async def _check_access(http: httpx2.AsyncClient, url: str, *, has_token: bool) -> None:
    """Raise Failed with the service's own words if it lets nobody in. The client would say only that a request failed."""
    answer = await http.post(url, json={"jsonrpc": "2.0", "id": 1, "method": "ping"})
    if answer.status_code == _UNAUTHORIZED:
        todo = "Its operator has one for you." if has_token else "Give it with --token-file FILE, or in HANDOFF_TOKEN."
        raise Failed(f"{url} needs a token that it knows. {todo}", NOT_ALLOWED)
    if answer.status_code in _NOT_FOR_US:
        raise Failed(f"{url}: {answer.json()['error']['message']}", NOT_ALLOWED)


def _whereabouts(arguments: argparse.Namespace) -> tuple[str, str | None, str | None]:
    """The address, the token and the agent: from options, the environment, or what `handoff run` recorded.

    Raises OSError if the token's file can't be read, and UnicodeDecodeError if it is no text.
    """
    token = os.environ.get(_SETTINGS["token"]) or None
    if arguments.token_file is not None:
        token = arguments.token_file.read_text(encoding="utf-8").strip()
    url = arguments.url or os.environ.get(_SETTINGS["url"]) or None
    if url is None:
        settings = read_settings(argparse.Namespace())
        url = _recorded(settings.data_dir / "running.json") or mcp_address(settings.host, settings.port)
    return url, token, arguments.agent or os.environ.get(_SETTINGS["agent"]) or None


def _recorded(lock_file: Path) -> str | None:
    """The address that a running `handoff run` has written into its lock file; it empties the file when it ends."""
    try:
        found = json.loads(lock_file.read_text())
        return found["url"] if isinstance(found.get("url"), str) else None
    except (OSError, ValueError, KeyError, AttributeError):
        return None
