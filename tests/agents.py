"""Test agents: tool calls and resource reads through the public MCP client, as plain JSON."""

import json
from collections.abc import Callable
from time import monotonic
from typing import Any

import anyio
from mcp import Client

from tests.processes import PATIENCE_S

PAST = "UPDATE handoff SET lease_expires_at = now() - interval '1 second' WHERE lease_expires_at IS NOT NULL"


class Agent:
    """Calls tools as any agent, and fails with a clear message if an answer is not of the kind that a test expects."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def ok(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Make a call that must succeed; return its structured content."""
        result = await self.client.call_tool(tool, arguments)
        text = getattr(result.content[0], "text", "")
        assert not result.is_error, f"{tool} was refused: {text}"
        assert result.structured_content == json.loads(text)
        return json.loads(text)

    async def refused(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Make a call that must be refused; return its error: code, message, try, retryable and details."""
        result = await self.client.call_tool(tool, arguments)
        text = getattr(result.content[0], "text", "")
        assert result.is_error, f"{tool} was not refused: {text}"
        return json.loads(text)["error"]

    async def read(self, uri: str) -> dict[str, Any]:
        """Read a resource; return its JSON."""
        return json.loads(await self.read_text(uri))

    async def read_text(self, uri: str) -> str:
        """Read a resource from the service, not from what the client has kept; return its text."""
        result = await self.client.read_resource(uri, cache_mode="bypass")
        return getattr(result.contents[0], "text", "")

    async def session(self, agent: str = "alice", **arguments: Any) -> str:
        """Register a session; return its key."""
        return (await self.ok("register_session", agent=agent, **arguments))["session_key"]

    async def says(self, session_key: str, content: str, agent: str = "alice", **arguments: Any) -> dict[str, Any]:
        """Append one message; return the answer."""
        entry = {"type": "message", "content": content}
        return await self.ok("update_context", agent=agent, session_key=session_key, entries=[entry], **arguments)

    async def offer(self, session_key: str, to: str = "bob", agent: str = "alice", **arguments: Any) -> int:
        """Offer a session; return the id of the handoff."""
        asked = {"instructions": "Go on.", "target_agent": to, **arguments}
        return (await self.ok("request_handoff", agent=agent, session_key=session_key, **asked))["handoff_id"]

    async def accept(self, handoff_id: int, agent: str = "bob", **arguments: Any) -> int:
        """Accept a handoff; return its token."""
        taken = await self.ok("accept_handoff", agent=agent, handoff_id=handoff_id, **arguments)
        return taken["handoff"]["token"]


LONG_WAIT_S = 30  # the longest that get_inbox waits


async def until(holds: Callable[[], object]) -> None:
    """Wait until something holds."""
    give_up = monotonic() + PATIENCE_S
    while not holds():
        assert monotonic() < give_up, f"it did not come to hold in {PATIENCE_S} s"
        await anyio.sleep(0.01)


async def all_of(*calls: Any) -> list[Any]:
    """Await all coroutines at once; return their results in order."""
    results: list[Any] = [None] * len(calls)

    async def one(place: int, call: Any) -> None:
        results[place] = await call

    async with anyio.create_task_group() as group:
        for place, call in enumerate(calls):
            group.start_soon(one, place, call)
    return results


async def kinds(agent: Agent, key: str) -> list[str]:
    """Return the kinds of events of a session after its creation, which leaves two, in order."""
    events = (await agent.read(f"handoff://sessions/{key}/lifecycle"))["events"]
    return [event["kind"].removeprefix("handoff.") for event in events][2:]


async def may_write(agent: Agent, key: str, *names: str) -> list[bool]:
    """Return, for each named agent, whether it may append to the session, by trying."""
    entry = {"type": "message", "content": "may I?"}
    answers: list[bool] = []
    for name in names:
        arguments = {"agent": name, "session_key": key, "entries": [entry]}
        answers.append(not (await agent.client.call_tool("update_context", arguments)).is_error)
    return answers
