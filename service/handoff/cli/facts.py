"""`handoff facts`: attaches what can be checked of a work tree to a session, and compares that with the receiver's."""

import argparse
import asyncio
import json
import os
import sys
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import httpx2
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

from handoff.cli.start import fail, mcp_address, read_settings
from handoff.cli.worktree import NoWorkTree, WorkTree, read_work_tree, run_test
from handoff.encoding import counted
from handoff.facts import FACTS

TIMEOUT_S: Final = 30.0
_PING: Final = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
_COMPARED: Final = {
    "repository": "repository",
    "branch": "branch",
    "commit": "commit",
    "tree": "files",
}


class _Refused(Exception):
    """The service refused a call, or what it answered holds no facts; the message says what to do."""


def facts_command(arguments: argparse.Namespace) -> int:
    """Run the test command if one is given, then print, attach or compare the facts.

    Returns the test command's status; for --compare 1 if something differs, otherwise 0, or 1 if the service refused.
    """
    folder = Path.cwd()
    status = run_test(folder, arguments.test) if arguments.test else 0
    try:
        found = read_work_tree(folder)
    except NoWorkTree as error:
        print(f"handoff: Nothing can be checked in {folder}: {error}.", file=sys.stderr)
        return status
    if arguments.session is None and arguments.compare is None:
        print(json.dumps(found.as_facts(), indent=2))
        return status
    settings = read_settings(argparse.Namespace())
    url: str = arguments.url or mcp_address(settings.host, settings.port)
    try:
        return asyncio.run(_with_service(arguments, url, found)) or status
    except (_Refused, ExceptionGroup, httpx2.HTTPError, TimeoutError) as raised:
        error: Exception = raised
        while isinstance(error, ExceptionGroup):  # the client's task groups wrap the error
            error = error.exceptions[0]
        match error:
            case _Refused():
                fail(str(error))
            case MCPError():
                fail(f"{url} refused: {error}")
            case httpx2.HTTPError() | TimeoutError():
                fail(f"No Handoff service answers at {url} ({type(error).__name__}). Start one, or name another with --url.")
            case _:
                raise
    return 1


async def _with_service(arguments: argparse.Namespace, url: str, here: WorkTree) -> int:
    token = os.environ.get(arguments.token_env, "")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with asyncio.timeout(TIMEOUT_S), httpx2.AsyncClient(headers=headers, timeout=TIMEOUT_S) as http:
        if (await http.post(url, json=_PING)).status_code == HTTPStatus.UNAUTHORIZED:
            raise _Refused(f"{url} requires a valid token: put it into the environment variable {arguments.token_env}.")
        async with Client(streamable_http_client(url, http_client=http)) as client:
            as_agent = {"agent": arguments.agent} if arguments.agent else {}
            if arguments.compare is not None:
                uri = f"handoff://handoffs/{arguments.compare}"
                handoff = json.loads(getattr((await client.read_resource(uri)).contents[0], "text", "{}"))
                return _compare(here, await _last(client, as_agent, handoff["session_key"]), handoff["session_key"])
            before = await _last(client, as_agent, arguments.session)
            entry = _entry(here, before)
            done = await _call(client, "update_context", session_key=arguments.session, entries=[entry], **as_agent)
            print(f"Entry {done['first_sequence']} of {arguments.session}: {entry['content']}")
            return 0


async def _last(client: Client, as_agent: dict[str, str], session_key: str) -> dict[str, Any] | None:
    """The entry of the last check, None if nothing was checked."""
    found: dict[str, Any] | None = None
    after: int | None = 0
    while after is not None:
        page = await _call(
            client, "get_context", session_key=session_key, view="entries", only="pinned", after_sequence=after, **as_agent
        )
        found = next((it for it in reversed(page["entries"]) if FACTS in (it.get("metadata") or {})), found)
        after = page.get("next_after_sequence")
    return found


async def _call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    if result.is_error:
        error = json.loads(getattr(result.content[0], "text", "{}"))["error"]
        raise _Refused(f"{tool}: {error['message']} {error['try']}")
    return result.structured_content or {}


def _entry(here: WorkTree, before: dict[str, Any] | None) -> dict[str, Any]:
    """The entry of this check. It replaces that of the last one, and knows since when the files are what they are."""
    moved_after = 0
    if before is not None:
        last = before["metadata"][FACTS]
        moved_after = last.get("moved_after", 0) if last.get("tree") == here.tree else before["sequence"]
    facts = here.as_facts() | {"checked_at": datetime.now(UTC).isoformat(timespec="seconds"), "moved_after": moved_after}
    return {
        "type": "tool_call",
        "content": _sentence(here),
        "metadata": {"pinned": True, FACTS: facts},
        **({"supersedes": [before["sequence"]]} if before is not None else {}),
    }


def _sentence(here: WorkTree) -> str:
    """The facts in words, for the brief."""
    at = f"commit {here.commit[:12]}" if here.commit else "no commit yet"
    branch = f"branch {here.branch}" if here.branch else "no branch"
    said = f"Checked by handoff facts: {here.repository or here.folder}, {branch}, {at}; "
    if here.changed:
        more = f" and {here.changed - 5} more" if here.changed > 5 else ""
        paths = ", ".join(here.changed_paths[:5])
        said += f"{counted(here.changed, 'uncommitted file')}, +{here.added} -{here.removed} lines ({paths}{more}); "
    else:
        said += "nothing uncommitted; "
    test = here.test
    if test is None:
        return said + "no test command was run through handoff facts."
    tree = "on these very files" if test.tree == here.tree else "on other files than these"
    return (
        said
        + f"the last test command, `{test.command}`, ended with exit status {test.exit_status} at {test.ended_at} {tree}."
    )


def _compare(here: WorkTree, last: dict[str, Any] | None, session_key: str) -> int:
    """Print what differs; return 1 if something does, or if there is nothing to compare with."""
    if last is None:
        raise _Refused(f"Nothing was checked in {session_key}. Ask its sender to run: handoff facts --session {session_key}")
    there, mine = last["metadata"][FACTS], here.as_facts()
    different = [name for name in _COMPARED if there.get(name) != mine[name]]
    for name in different:
        print(f"{_COMPARED[name]:<11} there {_shown(there.get(name))}, here {_shown(mine[name])}")
    if "tree" in different:
        paths = sorted({*there.get("changed_paths", ()), *here.changed_paths})
        print(f"uncommitted there {there.get('changed')}, here {here.changed}: {', '.join(map(repr, paths)) or 'none'}")
    print("Something differs." if different else f"Nothing differs from entry {last['sequence']} of {session_key}.")
    return 1 if different else 0


def _shown(value: object) -> str:
    return "none" if value is None else repr(value)  # escapes what a terminal would obey
