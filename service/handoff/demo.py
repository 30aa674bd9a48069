"""The main job on real input: ada inventories the modules of a package until her context is full, and hands over to grace,
who finishes from the brief alone. Both speak to the service as any client does; at the end their result is checked.
"""

import ast
import asyncio
import hashlib
import json
from collections.abc import Mapping
from contextlib import AsyncExitStack
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Final

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

PACKAGE: Final = "handoff.store"  # real input that every installation has
UNAUTHORIZED: Final = 401
ADAS_CONTEXT_BYTES: Final = 32_000  # how much source ada can read before she must stop


class DemoFailed(Exception):
    """The two agents did not produce what one would have."""


class Agent:
    """An agent at work: every call that it makes is printed."""

    def __init__(self, name: str, client: Client) -> None:
        self.name = name
        self._client = client

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool as this agent. Raises DemoFailed when it is refused."""
        result = await self._client.call_tool(tool, {"agent": self.name, **arguments})
        answer = json.loads(getattr(result.content[0], "text", "{}"))
        if result.is_error:
            raise DemoFailed(f"{tool}: {answer['error']['message']} {answer['error']['try']}")
        return answer

    def says(self, tool: str, line: str) -> None:
        """Print what passed."""
        print(f"{self.name:>6}  {tool:<17} {line}", flush=True)


async def play(url: str, tokens: Mapping[str, str]) -> int:
    """Play the demo against the service at `url`, with a bearer token for each agent if it needs them.

    Returns 0 when the result is right; otherwise prints a sentence and returns 1.
    """
    try:
        async with AsyncExitStack() as stack:
            people: list[Agent] = []
            for name in ("ada", "grace"):
                headers = {"Authorization": f"Bearer {tokens[name]}"} if name in tokens else {}
                http = await stack.enter_async_context(httpx2.AsyncClient(headers=headers, timeout=40))
                await _must_be_let_in(http, url, name)
                client = Client(streamable_http_client(url, http_client=http))
                people.append(Agent(name, await stack.enter_async_context(client)))
            await _play(*people)
    except httpx2.HTTPError as error:
        print(f"No Handoff service answers at {url} ({type(error).__name__}). Start one with: make run")
        return 1
    except DemoFailed as error:
        print(f"The demo failed. {error}")
        return 1
    return 0


async def _must_be_let_in(http: httpx2.AsyncClient, url: str, name: str) -> None:
    """Raises DemoFailed with what to do, where the first call of a client would say only that it failed."""
    status = (await http.post(url, json={})).status_code
    if status == UNAUTHORIZED:
        raise DemoFailed(f"{url} does not know {name}. Give each agent its token: --token ada=… --token grace=…")


async def _play(ada: Agent, grace: Agent) -> None:
    sources = {entry.name: entry for entry in files(PACKAGE).iterdir() if entry.name.endswith(".py")}
    print(f"The task: in each of the {len(sources)} modules of {PACKAGE}, count the lines and the functions.\n")
    await _clear(grace)
    waiting = asyncio.create_task(grace.call("get_inbox", wait_seconds=30))
    grace.says("get_inbox", "waits for work, up to 30 s")

    receipt = await _ada_begins(ada, sources)
    inbox = await waiting
    offered = inbox["handoffs"][0]["handoff_id"]
    grace.says("get_inbox", f"woken: handoff {offered} from {inbox['handoffs'][0]['sender']}")
    session_key: str = receipt["session_key"]
    report = await _grace_finishes(grace, offered, session_key)

    direct = {name: _inventory(source) for name, source in sources.items()}
    if report != direct:
        raise DemoFailed(f"together they found {report}, alone one finds {direct}")
    await _check_receipt(ada, receipt)
    lines, functions = (sum(count[place] for count in direct.values()) for place in (0, 1))
    print(f"\nTogether: {lines} lines and {functions} functions in {len(direct)} modules; counted directly, it is the same.")
    print(f"Read it: handoff://summary/{session_key}, handoff://context/{session_key}")


async def _clear(grace: Agent) -> None:
    """Settle what an earlier demo that was stopped left in the inbox."""
    for old in (await grace.call("get_inbox"))["handoffs"]:
        action = {"action": "reject"} if old["state"] == "offered" else {"action": "complete", "token": old["token"]}
        await grace.call("resolve_handoff", handoff_id=old["handoff_id"], note="an earlier demo was stopped", **action)


async def _ada_begins(ada: Agent, sources: Mapping[str, Traversable]) -> dict[str, Any]:
    """Ada works until her context is full, and hands over; her receipt."""
    session = await ada.call("register_session", metadata={"task": f"inventory of {PACKAGE}"})
    key: str = session["session_key"]
    ada.says("register_session", key)
    rule = "Lines are those of the file; functions are def and async def, methods and nested ones included."
    question = "Are the modules without a function (__init__.py) to be listed too?"
    await ada.call(
        "update_context",
        session_key=key,
        entries=[
            {"type": "decision", "content": rule},
            {"type": "message", "content": question, "metadata": {"question": True}},
        ],
    )
    ada.says("update_context", "decides how to count; asks one question that stays open")

    room = ADAS_CONTEXT_BYTES
    for name in sorted(sources):
        source = sources[name].read_text(encoding="utf-8")
        if len(source) > room:
            break
        room -= len(source)
        await _record(ada, key, name, sources[name])
    ada.says("", f"her context is full: {ADAS_CONTEXT_BYTES - room} of {ADAS_CONTEXT_BYTES} bytes")
    handoff = await ada.call(
        "request_handoff",
        session_key=key,
        target_agent="grace",
        request_type="full_handoff",
        instructions=f"Finish the inventory of {PACKAGE}: the modules that have no file entry yet. Then sum up.",
    )
    receipt = f"{handoff['as_of_sequence']} entries, digest {handoff['context_digest'][:12]}…"
    ada.says("request_handoff", f"offers handoff {handoff['handoff_id']} to grace; receipt: {receipt}")
    return handoff


async def _grace_finishes(grace: Agent, handoff_id: int, key: str) -> dict[str, tuple[int, int]]:
    """Grace works from the brief: what to do, how to count, which modules are done, what is still asked."""
    taken = await grace.call("accept_handoff", handoff_id=handoff_id)
    token, brief = taken["handoff"]["token"], taken["brief"]
    parts: dict[str, list[dict[str, Any]]] = {}
    for part in brief["parts"]:
        parts.setdefault(part["kind"], []).append(part)
    done = {part["text"] for part in parts["file"]}
    grace.says("accept_handoff", f"token {token}; a brief of {brief['tokens']} tokens:")
    for part in brief["parts"][:3]:
        print(f"{'':>26}{part['kind']}: {part['text'][:70]}{'…' if len(part['text']) > 70 else ''}")
    print(f"{'':>26}file: {', '.join(sorted(done))}")

    package = parts["handoff"][0]["text"].split(" of ")[1].split(":")[0]
    missing = {entry.name: entry for entry in files(package).iterdir() if entry.name.endswith(".py")}
    for name in sorted(missing.keys() - done):
        await _record(grace, key, name, missing[name])
    question = parts["question"][0]
    answer = {
        "type": "decision",
        "content": "Yes: a module without a function counts 0.",
        "supersedes": question["sequences"],
    }
    await grace.call("update_context", session_key=key, entries=[answer])
    grace.says("update_context", f"answers the open question (entry {question['sequences'][0]})")

    counts = await _read_counts(grace, key)
    summary = f"{len(counts)} modules, {sum(lines for lines, _ in counts.values())} lines."
    await grace.call("update_context", session_key=key, entries=[{"type": "summary", "content": summary}])
    await grace.call("resolve_handoff", handoff_id=handoff_id, action="complete", token=token, note=summary)
    grace.says("resolve_handoff", f"complete: {summary}")
    await grace.call("close_session", session_key=key)
    grace.says("close_session", "the session is hers now, so she closes it")
    return counts


async def _record(agent: Agent, key: str, name: str, source: Traversable) -> None:
    lines, functions = _inventory(source)
    found = f"{name}: {lines} lines, {functions} functions"
    entry = {"type": "file", "content": found, "metadata": {"path": name, "lines": lines, "functions": functions}}
    # The key makes it safe to call again when an answer is lost.
    await agent.call("update_context", session_key=key, entries=[entry], idempotency_key=f"{key}/{name}")
    agent.says("update_context", found)


def _inventory(source: Traversable) -> tuple[int, int]:
    """A module's lines and functions."""
    text = source.read_text(encoding="utf-8")
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return len(text.splitlines()), len(functions)


async def _entries(agent: Agent, key: str) -> list[dict[str, Any]]:
    """All entries of a session, page by page."""
    found: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        page = await agent.call("get_context", session_key=key, view="entries", after_sequence=after, limit=100)
        found += page["entries"]
        after = page.get("next_after_sequence")
    return found


async def _read_counts(agent: Agent, key: str) -> dict[str, tuple[int, int]]:
    found = [entry["metadata"] for entry in await _entries(agent, key) if entry["type"] == "file"]
    return {it["path"]: (it["lines"], it["functions"]) for it in found}


async def _check_receipt(ada: Agent, receipt: dict[str, Any]) -> None:
    """What the session holds is, byte for byte, what ada handed over: the digest of her receipt says so."""
    key = receipt["session_key"]
    brief = (await ada.call("get_context", session_key=key))["brief"]
    outcome = next(part["outcome"] for part in brief["parts"] if part["kind"] == "handoff")
    ada.says("get_context", f"reads how it ended: {outcome}")
    handed_over = (await _entries(ada, key))[: receipt["as_of_sequence"]]
    digest = hashlib.sha256(b"".join(bytes.fromhex(entry["content_hash"]) for entry in handed_over)).hexdigest()
    if digest != receipt["context_digest"]:
        raise DemoFailed(f"the entries handed over have digest {digest}, the receipt says {receipt['context_digest']}")
    ada.says("", f"the {len(handed_over)} entries are those of her receipt: digest {digest[:12]}…")
