"""The main job on real input: ada counts the lines and functions of a package's modules until her context is full, and
hands over to grace, who finishes from the brief. Both speak to the service as any client does; at the end their result is
compared with one counted directly.
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
TIMEOUT_S: Final = 60.0
COLUMNS: Final = 100
UNAUTHORIZED: Final = 401

Count = tuple[int, int]  # lines, functions


def demo_command(arguments: argparse.Namespace) -> int:
    """Play the story of two agents, or with --work let simulated agents work."""
    settings = read_settings(arguments)
    url: str = arguments.url or mcp_address(settings.host, settings.port)
    tokens = dict(pair.partition("=")[::2] for pair in arguments.token)
    if not arguments.work:
        return asyncio.run(play(url, tokens))
    from handoff.simulation.work import JobImpossible, job_of, script_of, work

    try:
        asked = job_of(
            url,
            agents=arguments.agents,
            seed=arguments.seed,
            pace=arguments.pace,
            faults=arguments.fault,
            for_s=arguments.for_s,
            tokens=tokens,
            tokens_file=arguments.tokens_file,
        )
    except JobImpossible as error:
        return fail(str(error))
    return asyncio.run(work(asked, script_of(asked)))


class DemoFailed(Exception):
    """The demo can't be played here, or the two did not produce what one would have. The message says what to do."""


class Agent:
    """An agent at work: its calls, and what is printed of them."""

    def __init__(self, name: str, client: Client) -> None:
        self.name = name
        self._client = client

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool as this agent. Raises DemoFailed when it is refused."""
        result = await self._client.call_tool(tool, {"agent": self.name, **arguments})
        if result.is_error:
            error = json.loads(getattr(result.content[0], "text", "{}"))["error"]
            raise DemoFailed(f"{tool}: {error['message']} {error['try']}")
        return result.structured_content or {}

    async def entries(self, session_key: str) -> list[dict[str, Any]]:
        """All entries of a session, page by page."""
        found: list[dict[str, Any]] = []
        after: int | None = 0
        while after is not None:
            page = await self.call("get_context", session_key=session_key, view="entries", after_sequence=after)
            found += page["entries"]
            after = page.get("next_after_sequence")
        return found

    async def outcome_of(self, handoff_id: int) -> str:
        """Wait, by subscription, until a handoff is completed; its outcome."""
        uri = f"handoff://handoffs/{handoff_id}"
        async with self._client.listen(resource_subscriptions=[uri]) as changes:
            handoff = await self._read(uri)  # after subscribing, so that no change is missed
            while handoff["state"] != "completed":
                if await anext(changes, None) is None:
                    raise DemoFailed("The service stopped.")
                handoff = await self._read(uri)
        return handoff["outcome"]

    async def _read(self, uri: str) -> dict[str, Any]:
        return json.loads(getattr((await self._client.read_resource(uri)).contents[0], "text", "{}"))

    def says(self, tool: str, line: str) -> None:
        """Print what passed."""
        print(f"{self.name:>6}  {tool:<17} {line}", flush=True)


async def play(url: str, tokens: Mapping[str, str]) -> int:
    """Play the demo against the service at `url`, with a bearer token for each agent if it needs them.

    Returns 0 when the result is right; otherwise prints a sentence that says what to do, and returns 1.
    """
    try:
        async with asyncio.timeout(TIMEOUT_S), AsyncExitStack() as stack:
            people: list[Agent] = []
            for name in ("ada", "grace"):
                headers = {"Authorization": f"Bearer {tokens[name]}"} if name in tokens else {}
                http = await stack.enter_async_context(httpx2.AsyncClient(headers=headers, timeout=TIMEOUT_S))
                await _must_be_let_in(http, url, name)
                client = Client(streamable_http_client(url, http_client=http))
                people.append(Agent(name, await stack.enter_async_context(client)))
            await _play(*people)
    except (ExceptionGroup, httpx2.HTTPError, MCPError, TimeoutError, DemoFailed) as raised:
        print(_sentence(raised, url))
        return 1
    return 0


async def _must_be_let_in(http: httpx2.AsyncClient, url: str, name: str) -> None:
    """Raises DemoFailed with what to do, where the first call of a client would say only that it failed."""
    if (await http.post(url, json={})).status_code == UNAUTHORIZED:
        raise DemoFailed(f"{url} does not know {name}. Give each agent its token: --token ada=… --token grace=…")


def _sentence(raised: Exception, url: str) -> str:
    """What went wrong, and what to do. Raises what is not expected."""
    error = raised
    while isinstance(error, ExceptionGroup):  # the client's task groups wrap what is raised within them
        error = error.exceptions[0]
    match error:
        case DemoFailed():
            return f"The demo failed. {error}"
        case TimeoutError():
            return f"The demo failed. It took more than {TIMEOUT_S:.0f} s; what the service logs may say why."
        case httpx2.HTTPError() | SubscriptionLost():
            return f"No Handoff service answers at {url} ({type(error).__name__}). Start one with: make run"
        case MCPError():
            return f"What answers at {url} is no Handoff service ({error}). Start one with: make run"
        case _:
            raise error from None


async def _play(ada: Agent, grace: Agent) -> None:
    sources = _modules(PACKAGE)
    print(f"The task: in each of the {len(sources)} modules of {PACKAGE}, count the lines and the functions.\n")
    await _clear_inbox(grace)
    async with asyncio.TaskGroup() as meanwhile:
        inbox = meanwhile.create_task(grace.call("get_inbox", wait_seconds=30))
        grace.says("get_inbox", "waits for work, up to 30 s")
        receipt = await _ada_begins(ada, sources)
        outcome = meanwhile.create_task(ada.outcome_of(receipt["handoff_id"]))
        counts = await _grace_finishes(grace, await inbox)
    ada.says("", f"is told how it ended: {outcome.result()}")
    await _check_receipt(ada, receipt)

    direct = {name: _count(source, ["def", "async def"]) for name, source in sources.items()}
    if counts != direct:
        raise DemoFailed(f"Together they counted {counts}, directly it is {direct}: please report this.")
    print(f"\nTogether: {_total(counts)}; counted directly, it is the same.\n")
    print("Read it with get_context in any client, or as resources, in Python with client.read_resource(uri):")
    key = receipt["session_key"]
    print(f"  handoff://summary/{key:<30} what came of it")
    print(f"  handoff://context/{key:<30} entry by entry")
    print(f"  handoff://sessions/{f'{key}/lifecycle':<29} what happened, and when")


async def _clear_inbox(grace: Agent) -> None:
    """Settle what an earlier demo left when it was stopped, and nothing else. Raises DemoFailed if there is more."""
    for old in (await grace.call("get_inbox"))["handoffs"]:
        if (old["sender"], old["instructions"]) != ("ada", INSTRUCTIONS):
            raise DemoFailed(
                f"grace has real work here: handoff {old['handoff_id']} from {old['sender']}, which the demo leaves alone."
                " Settle it first, or play on another service: --url"
            )
        action = {"action": "reject"} if old["state"] == "offered" else {"action": "complete", "token": old["token"]}
        await grace.call("resolve_handoff", handoff_id=old["handoff_id"], note="an earlier demo was stopped", **action)


async def _ada_begins(ada: Agent, sources: Mapping[str, Traversable]) -> dict[str, Any]:
    """Ada works until her context is full, and hands over; her receipt."""
    key: str = (await ada.call("register_session", metadata={"task": f"inventory of {PACKAGE}"}))["session_key"]
    ada.says("register_session", key)
    functions = ["def", "async def"]
    rule = {"type": "decision", "content": f"What counts as a function: {', '.join(functions)}."}
    question = {"content": "Are modules without a function to be listed too?", "metadata": {"question": True}}
    await ada.call("update_context", session_key=key, entries=[rule, {"type": "message", **question}])
    ada.says("update_context", "decides how to count; asks one question that stays open")

    room = ADAS_CONTEXT_BYTES
    for name, source in sources.items():
        size = len(source.read_bytes())
        if size > room:
            break
        room -= size
        await _record(ada, key, name, _count(source, functions))
    ada.says("", f"her context is full: {ADAS_CONTEXT_BYTES - room} of {ADAS_CONTEXT_BYTES} bytes")
    receipt = await ada.call(
        "request_handoff",
        session_key=key,
        target_agent="grace",
        request_type="full_handoff",
        instructions=INSTRUCTIONS,
    )
    what = f"{receipt['as_of_sequence']} entries, digest {receipt['context_digest'][:12]}…"
    ada.says("request_handoff", f"offers handoff {receipt['handoff_id']} to grace; her receipt: {what}")
    return receipt


async def _grace_finishes(grace: Agent, inbox: dict[str, Any]) -> dict[str, Count]:
    """Grace works from the brief: what to do, how to count, which modules are done, what is still asked."""
    if not inbox["handoffs"]:
        raise DemoFailed("The offer did not reach grace within 30 s; what the service logs may say why.")
    offer = inbox["handoffs"][0]
    grace.says("get_inbox", f"woken: handoff {offer['handoff_id']} from {offer['sender']}")
    taken = await grace.call("accept_handoff", handoff_id=offer["handoff_id"])
    key, token, brief = offer["session_key"], taken["handoff"]["token"], taken["brief"]
    task, rule, question = (_first(brief, kind) for kind in ("handoff", "decision", "question"))
    done = {part["text"]: part["sequences"] for part in brief["parts"] if part["kind"] == "file"}
    grace.says("accept_handoff", f"token {token}; a brief of {brief['tokens']} tokens:")
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
    grace.says("update_context", f"answers the question (entry {question['sequences'][0]}) and sums up")
    await grace.call("resolve_handoff", handoff_id=offer["handoff_id"], action="complete", token=token, note=summary)
    grace.says("resolve_handoff", f"complete: {summary}")
    await grace.call("close_session", session_key=key)
    grace.says("close_session", "the session is hers now, so she closes it")
    return counts


def _first(brief: dict[str, Any], kind: str) -> dict[str, Any]:
    for part in brief["parts"]:
        if part["kind"] == kind:
            return part
    raise DemoFailed(f"The brief has no {kind}: please report this.")


def _quote(kind: str, text: str) -> None:
    line = f"{'':>26}{kind}: {text}"
    print(line if len(line) <= COLUMNS else f"{line[: COLUMNS - 1]}…")


async def _counts(agent: Agent, key: str, sequences: Collection[int]) -> dict[str, Count]:
    """What the entries with these sequence numbers say; the brief gives the numbers."""
    found = [entry["metadata"] for entry in await agent.entries(key) if entry["sequence"] in sequences]
    return {it["path"]: (it["lines"], it["functions"]) for it in found}


async def _record(agent: Agent, key: str, name: str, count: Count) -> None:
    lines, functions = count
    found = f"{name}: lines {lines}, functions {functions}"
    entry = {"type": "file", "content": found, "metadata": {"path": name, "lines": lines, "functions": functions}}
    # The key makes it safe to call again when an answer is lost.
    await agent.call("update_context", session_key=key, entries=[entry], idempotency_key=f"{key}/{name}")
    agent.says("update_context", found)


def _modules(package: str) -> dict[str, Traversable]:
    """The modules of a package by file name, in order."""
    found = {entry.name: entry for entry in files(package).iterdir() if entry.name.endswith(".py")}
    return dict(sorted(found.items()))


def _count(source: Traversable, functions: Collection[str]) -> Count:
    """A module's lines, and its functions of these kinds."""
    text = source.read_text(encoding="utf-8")
    kinds = tuple(FUNCTIONS[name] for name in functions)
    return len(text.splitlines()), sum(isinstance(node, kinds) for node in ast.walk(ast.parse(text)))


def _total(counts: Mapping[str, Count]) -> str:
    lines, functions = (sum(count[place] for count in counts.values()) for place in (0, 1))
    return f"{len(counts)} modules, {lines} lines, {functions} functions"


async def _check_receipt(ada: Agent, receipt: dict[str, Any]) -> None:
    """What the session holds is, byte for byte, what ada handed over: the digest of her receipt says so."""
    handed_over = (await ada.entries(receipt["session_key"]))[: receipt["as_of_sequence"]]
    digest = hashlib.sha256(b"".join(bytes.fromhex(entry["content_hash"]) for entry in handed_over)).hexdigest()
    if digest != receipt["context_digest"]:
        raise DemoFailed(f"The entries handed over have digest {digest}, the receipt {receipt['context_digest']}.")
    ada.says("get_context", f"the {len(handed_over)} entries are those of her receipt: digest {digest[:12]}…")
