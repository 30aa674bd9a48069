"""`handoff demo`: one agent hands a small real task over to another.

Ada counts the lines and functions of a package's modules until her context is full and hands over to grace, who finishes
from the brief. Both call the service as any client does. At the end their result is compared with a direct count.
"""

import argparse
import ast
import asyncio
import hashlib
import json
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Final

import httpx2
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.client.subscriptions import SubscriptionLost

from handoff.cli.start import fail, mcp_address, read_settings

PACKAGE: Final = "handoff.store"  # real input that every installation has
ADAS_CONTEXT_BYTES: Final = 36_000  # how much source ada can read before she must stop
INSTRUCTIONS: Final = f"Finish the inventory of {PACKAGE}: the modules that have no file entry yet. Then sum up."
FUNCTIONS: Final = {"def": ast.FunctionDef, "async def": ast.AsyncFunctionDef, "lambda": ast.Lambda}
TIMEOUT_S: Final = 100.0  # in all; a quiet machine needs two
COLUMNS: Final = 100
UNAUTHORIZED: Final = 401

Count = tuple[int, int]  # lines, functions


def demo_command(arguments: argparse.Namespace) -> int:
    """Play the story of two agents, or with --work let simulated agents work."""
    settings = read_settings(arguments)
    url: str = arguments.url or mcp_address(settings.host, settings.port)
    tokens = dict(pair.partition("=")[::2] for pair in arguments.token)
    if not arguments.work:
        return asyncio.run(run_demo(url, tokens))
    from handoff.cli.demo_work import InvalidOptions, run_simulation, schedule_for, simulation_options

    try:
        options = simulation_options(
            url,
            agents=arguments.agents,
            seed=arguments.seed,
            pace=arguments.pace,
            faults=arguments.fault,
            for_s=arguments.for_s,
            tokens=tokens,
            tokens_file=arguments.tokens_file,
        )
    except InvalidOptions as error:
        return fail(str(error))
    return asyncio.run(run_simulation(options, schedule_for(options)))


class DemoFailed(Exception):
    """The demo can't run here, or its result is wrong. The message says what to do."""


class DemoAgent:
    """One of the two agents: makes its calls and prints what they did."""

    def __init__(self, name: str, client: Client) -> None:
        self.name = name
        self._client = client

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool as this agent and return its result. Raises DemoFailed if the call is refused."""
        result = await self._client.call_tool(tool, {"agent": self.name, **arguments})
        if result.is_error:
            error = json.loads(getattr(result.content[0], "text", "{}"))["error"]
            raise DemoFailed(f"{tool}: {error['message']} {error['try']}")
        return result.structured_content or {}

    async def entries(self, session_key: str) -> list[dict[str, Any]]:
        """Return all entries of a session, read page by page."""
        found: list[dict[str, Any]] = []
        after: int | None = 0
        while after is not None:
            page = await self.call("get_context", session_key=session_key, view="entries", after_sequence=after)
            found += page["entries"]
            after = page.get("next_after_sequence")
        return found

    async def outcome_of(self, handoff_id: int) -> str:
        """Wait by subscription until a handoff is completed and return its outcome."""
        uri = f"handoff://handoffs/{handoff_id}"
        async with self._client.listen(resource_subscriptions=[uri]) as changes:
            handoff = await self._read(uri)  # after subscribing, so that no change is missed
            while handoff["state"] != "completed":
                if await anext(changes, None) is None:
                    raise DemoFailed("The service stopped. Start it again with: make run")
                handoff = await self._read(uri)
        return handoff["outcome"]

    async def _read(self, uri: str) -> dict[str, Any]:
        return json.loads(getattr((await self._client.read_resource(uri)).contents[0], "text", "{}"))

    def report(self, tool: str, text: str) -> None:
        """Print what happened. `tool` is "" where it was no tool call."""
        print(f"{self.name:>6}  {tool:<17} {text}", flush=True)


async def run_demo(url: str, tokens: Mapping[str, str]) -> int:
    """Run the demo against the service at `url`. `tokens` has a bearer token for each agent, if the service needs them.

    Returns 0 if the result is right; otherwise prints what to do and returns 1.
    """
    try:
        async with asyncio.timeout(TIMEOUT_S), AsyncExitStack() as stack:
            agents: list[DemoAgent] = []
            for name in ("ada", "grace"):
                headers = {"Authorization": f"Bearer {tokens[name]}"} if name in tokens else {}
                http = await stack.enter_async_context(httpx2.AsyncClient(headers=headers, timeout=TIMEOUT_S))
                await _check_access(http, url, name)
                client = Client(streamable_http_client(url, http_client=http))
                agents.append(DemoAgent(name, await stack.enter_async_context(client)))
            await _hand_over(*agents)
    except (ExceptionGroup, httpx2.HTTPError, MCPError, TimeoutError, DemoFailed) as raised:
        print(_explain(raised, url))
        return 1
    return 0


async def _check_access(http: httpx2.AsyncClient, url: str, name: str) -> None:
    """Raise DemoFailed with what to do. Without this check, the client's first call would say only that it failed."""
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    if (await http.post(url, json=ping)).status_code == UNAUTHORIZED:
        raise DemoFailed(
            f"{url} requires a valid token for {name}. Give each agent its token: --token ada=… --token grace=…"
        )


def _explain(raised: Exception, url: str) -> str:
    """Return what went wrong and what to do. An unexpected error is raised again."""
    error = raised
    while isinstance(error, ExceptionGroup):  # the client's task groups wrap the error
        error = error.exceptions[0]
    match error:
        case DemoFailed():
            return f"The demo failed. {error}"
        case TimeoutError():
            return f"The demo failed. It took more than {TIMEOUT_S:.0f} s; the service's log may say why."
        case httpx2.HTTPError() | SubscriptionLost():
            return f"No Handoff service answers at {url} ({type(error).__name__}). Start one with: make run"
        case MCPError():
            return f"The server at {url} is not a Handoff service ({error}). Start one with: make run"
        case _:
            raise error from None


async def _hand_over(ada: DemoAgent, grace: DemoAgent) -> None:
    sources = _modules(PACKAGE)
    print(f"The task: count the lines and functions in each of the {len(sources)} modules of {PACKAGE}.\n")
    await _clear_inbox(grace)
    async with asyncio.TaskGroup() as tasks:
        inbox = tasks.create_task(_offer_for(grace))
        grace.report("get_inbox", "waits for work, up to 30 s")
        receipt = await _ada_begins(ada, sources)
        outcome = tasks.create_task(ada.outcome_of(receipt["handoff_id"]))
        counts = await _grace_finishes(grace, await inbox)
    ada.report("", f"is notified of the outcome: {outcome.result()}")
    await _check_receipt(ada, receipt)

    direct = {name: _count(source, ["def", "async def"]) for name, source in sources.items()}
    if counts != direct:
        raise DemoFailed(f"The agents counted {counts}; a direct count gives {direct}. Please report this.")
    print(f"\nThe result: {_total(counts)}. Counted directly, it is the same.\n")
    print("Read it with get_context in any client, or as resources; in Python, client.read_resource(uri):")
    key = receipt["session_key"]
    print(f"  handoff://summary/{key:<30} the outcome")
    print(f"  handoff://context/{key:<30} every entry")
    print(f"  handoff://sessions/{f'{key}/lifecycle':<29} what happened and when")


async def _clear_inbox(grace: DemoAgent) -> None:
    """Resolve the handoffs that an interrupted demo left in grace's inbox. Raises DemoFailed if it holds others."""
    for old in (await grace.call("get_inbox"))["handoffs"]:
        if (old["sender"], old["instructions"]) != ("ada", INSTRUCTIONS):
            raise DemoFailed(
                f"grace has real work here: handoff {old['handoff_id']} from {old['sender']}, which the demo leaves alone."
                " Resolve it first, or use another service: --url"
            )
        action = {"action": "reject"} if old["state"] == "offered" else {"action": "complete", "token": old["token"]}
        await grace.call("resolve_handoff", handoff_id=old["handoff_id"], note="An earlier demo was interrupted.", **action)


async def _offer_for(agent: DemoAgent) -> dict[str, Any]:
    """Wait for an offer. A wait that ends without one is followed by the next; TIMEOUT_S limits them all."""
    while not (offers := (await agent.call("get_inbox", wait_seconds=30))["handoffs"]):
        pass
    return offers[0]


async def _ada_begins(ada: DemoAgent, sources: Mapping[str, Traversable]) -> dict[str, Any]:
    """Let ada work until her context is full and hand over. Returns her receipt."""
    key: str = (await ada.call("register_session", metadata={"task": f"inventory of {PACKAGE}"}))["session_key"]
    ada.report("register_session", key)
    functions = ["def", "async def"]
    rule = {"type": "decision", "content": f"What counts as a function: {', '.join(functions)}."}
    question = {"content": "Should modules without functions be listed too?", "metadata": {"question": True}}
    await ada.call("update_context", session_key=key, entries=[rule, {"type": "message", **question}])
    ada.report("update_context", "decides how to count; asks a question, which stays open")

    room = ADAS_CONTEXT_BYTES
    for name, source in sources.items():
        size = len(source.read_bytes())
        if size > room:
            break
        room -= size
        await _record(ada, key, name, _count(source, functions))
    ada.report("", f"her context is full: {ADAS_CONTEXT_BYTES - room} of {ADAS_CONTEXT_BYTES} bytes")
    receipt = await ada.call(
        "request_handoff",
        session_key=key,
        target_agent="grace",
        request_type="full_handoff",
        instructions=INSTRUCTIONS,
    )
    contents = f"{receipt['as_of_sequence']} entries, digest {receipt['context_digest'][:12]}…"
    ada.report("request_handoff", f"offers handoff {receipt['handoff_id']} to grace; her receipt: {contents}")
    return receipt


async def _grace_finishes(grace: DemoAgent, offer: dict[str, Any]) -> dict[str, Count]:
    """Let grace finish, from the brief alone: what to do, how to count, which modules are done, what is still asked."""
    grace.report("get_inbox", f"woken: handoff {offer['handoff_id']} from {offer['sender']}")
    accepted = await grace.call("accept_handoff", handoff_id=offer["handoff_id"])
    key, token, brief = offer["session_key"], accepted["handoff"]["token"], accepted["brief"]
    task, rule, question = (_first(brief, kind) for kind in ("handoff", "decision", "question"))
    done = {part["path"]: part["sequences"] for part in brief["parts"] if part["kind"] == "file"}
    grace.report("accept_handoff", f"token {token}; a brief of {brief['tokens']} tokens:")
    for part in (task, rule, question):
        _quote(part["kind"], part["text"])
    _quote("file", ", ".join(sorted(done)))

    counts = await _counts(grace, key, {number for sequences in done.values() for number in sequences})
    package = task["text"].split(" of ")[1].split(":")[0]
    functions = rule["text"].split(": ")[1].rstrip(".").split(", ")
    for name, source in _modules(package).items():
        if name not in done:
            counts[name] = _count(source, functions)
            await _record(grace, key, name, counts[name])
    answer = {"type": "decision", "content": "Yes, with 0 functions.", "supersedes": question["sequences"]}
    summary = f"{_total(counts)}."
    await grace.call("update_context", session_key=key, entries=[answer, {"type": "summary", "content": summary}])
    grace.report("update_context", f"answers the question (entry {question['sequences'][0]}) and adds a summary")
    await grace.call("resolve_handoff", handoff_id=offer["handoff_id"], action="complete", token=token, note=summary)
    grace.report("resolve_handoff", f"complete: {summary}")
    await grace.call("close_session", session_key=key)
    grace.report("close_session", "the session is hers now, so she closes it")
    return counts


def _first(brief: dict[str, Any], kind: str) -> dict[str, Any]:
    for part in brief["parts"]:
        if part["kind"] == kind:
            return part
    raise DemoFailed(f"The brief has no {kind}. Please report this.")


def _quote(kind: str, text: str) -> None:
    line = f"{'':>26}{kind}: {text}"
    print(line if len(line) <= COLUMNS else f"{line[: COLUMNS - 1]}…")


async def _counts(agent: DemoAgent, key: str, sequences: Collection[int]) -> dict[str, Count]:
    """Return the counts in the entries with these sequence numbers, which the brief gives."""
    found = [entry["metadata"] for entry in await agent.entries(key) if entry["sequence"] in sequences]
    return {metadata["path"]: (metadata["lines"], metadata["functions"]) for metadata in found}


async def _record(agent: DemoAgent, key: str, name: str, count: Count) -> None:
    lines, functions = count
    found = f"{name}: lines {lines}, functions {functions}"
    entry = {"type": "file", "content": found, "metadata": {"path": name, "lines": lines, "functions": functions}}
    # The key makes it safe to repeat the call when its answer is lost.
    await agent.call("update_context", session_key=key, entries=[entry], idempotency_key=f"{key}/{name}")
    agent.report("update_context", found)


def _modules(package: str) -> dict[str, Traversable]:
    """Return the modules of a package by file name, in order."""
    found = {entry.name: entry for entry in files(package).iterdir() if entry.name.endswith(".py")}
    return dict(sorted(found.items()))


def _count(source: Traversable, functions: Collection[str]) -> Count:
    """Count a module's lines, and its functions of these kinds."""
    text = source.read_text(encoding="utf-8")
    kinds = tuple(FUNCTIONS[name] for name in functions)
    return len(text.splitlines()), sum(isinstance(node, kinds) for node in ast.walk(ast.parse(text)))


def _total(counts: Mapping[str, Count]) -> str:
    lines, functions = (sum(count[place] for count in counts.values()) for place in (0, 1))
    return f"{len(counts)} modules, {lines} lines, {functions} functions"


async def _check_receipt(ada: DemoAgent, receipt: dict[str, Any]) -> None:
    """Check against the digest of ada's receipt that the session still holds exactly what she handed over."""
    handed_over = (await ada.entries(receipt["session_key"]))[: receipt["as_of_sequence"]]
    digest = hashlib.sha256(b"".join(bytes.fromhex(entry["content_hash"]) for entry in handed_over)).hexdigest()
    if digest != receipt["context_digest"]:
        raise DemoFailed(
            f"The digest of the entries is {digest}, that of the receipt {receipt['context_digest']}. Please report this."
        )
    ada.report("get_context", f"the {len(handed_over)} entries match her receipt: digest {digest[:12]}…")
