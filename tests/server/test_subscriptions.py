"""Subscribers and waiting callers are notified, whichever process made the change."""

import hashlib
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from tests.agents import LONG_WAIT_S, Agent
from tests.processes import PATIENCE_S, serving


async def rings(client: Client, uri: str, change: Callable[[], Any]) -> None:
    """Subscribe to a resource, make a change, and wait until the subscriber hears of it."""
    async with client.listen(resource_subscriptions=[uri]) as subscription:
        await change()
        with anyio.fail_after(PATIENCE_S):
            async for event in subscription:
                assert getattr(event, "uri", None) == uri
                return
    raise AssertionError("the subscription ended")


async def test_an_inbox_and_a_handoff_can_be_subscribed_to_across_two_services(database_url: str) -> None:
    with serving(database_url=database_url) as one, serving(database_url=database_url) as other:
        async with Client(one.url) as here, Client(other.url) as there:
            agent = Agent(there)
            key = await agent.session()
            await agent.ok("get_inbox", agent="carol", capabilities=["review"])

            await rings(here, "handoff://agents/bob/inbox", lambda: agent.offer(key))
            target: dict[str, Any] = {"target_agent": None, "target_capability": "review"}
            await rings(here, "handoff://agents/carol/inbox", lambda: agent.offer(key, **target))
            await rings(here, "handoff://handoffs/1", lambda: agent.accept(1))

            waited: list[dict[str, Any]] = []
            started = monotonic()
            async with anyio.create_task_group() as group:

                async def wait() -> None:
                    waited.extend((await Agent(here).ok("get_inbox", agent="dan", wait_seconds=LONG_WAIT_S))["handoffs"])

                group.start_soon(wait)
                await anyio.sleep(0.3)  # so that it waits; if it is late, it finds the offer at once, which is correct too
                await agent.offer(key, "dan")
            assert [row["target_agent"] for row in waited] == ["dan"]
            assert monotonic() - started < LONG_WAIT_S  # woken: a wait that runs out finds the offer too


async def test_an_agent_can_subscribe_only_to_its_own_inbox(database_url: str, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{hashlib.sha256(b'secret').hexdigest()} alice read,write\n")
    with serving(database_url=database_url, tokens_file=tokens) as service:
        async with (
            httpx2.AsyncClient(headers={"authorization": "Bearer secret"}) as http,
            Client(streamable_http_client(service.url, http_client=http)) as client,
        ):
            async with client.listen(resource_subscriptions=["handoff://agents/alice/inbox"]):
                pass
            for uri in ("handoff://agents/bob/inbox", "handoff://handoffs/1", "handoff://nothing"):
                with pytest.raises(Exception, match=r"not yours|that you may see|No resource"):
                    async with client.listen(resource_subscriptions=[uri]):
                        pass


async def test_what_waits_under_a_token_ends_when_it_is_removed_and_others_go_on(database_url: str, tmp_path: Path) -> None:
    def line(token: str, agent: str) -> str:
        return f"{hashlib.sha256(token.encode()).hexdigest()} {agent} read,write\n"

    tokens = tmp_path / "tokens"
    tokens.write_text(line("a", "alice") + line("b", "bob"))

    @asynccontextmanager
    async def client(token: str) -> AsyncGenerator[Client]:
        async with (
            httpx2.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=PATIENCE_S) as http,
            Client(streamable_http_client(service.url, http_client=http)) as connected,
        ):
            yield connected

    with (
        serving(database_url=database_url, tokens_file=tokens, settle_interval_s=0.1) as service,
        anyio.fail_after(PATIENCE_S),
    ):
        async with client("a") as alice, client("b") as bob:
            heard: list[str] = []
            refused: list[str] = []
            agent = Agent(alice)
            handoff_id = await agent.offer(await agent.session(agent="alice"), "carol")
            handoff = f"handoff://handoffs/{handoff_id}"

            async def listen(listening: anyio.Event) -> None:
                with suppress(Exception):  # it ends with an error
                    async with bob.listen(resource_subscriptions=["handoff://agents/bob/inbox"]) as subscription:
                        listening.set()
                        heard.extend([getattr(event, "uri", "") async for event in subscription])
                heard.append("the end")

            async def wait() -> None:
                refused.append((await Agent(bob).refused("get_inbox", wait_seconds=LONG_WAIT_S))["code"])

            async with alice.listen(resource_subscriptions=[handoff]) as others:
                async with anyio.create_task_group() as group:
                    listening = anyio.Event()
                    group.start_soon(listen, listening)
                    group.start_soon(wait)
                    await listening.wait()
                    tokens.write_text("# bob has left\n" + line("a", "alice"))
                assert refused == ["token_revoked"]
                assert heard == ["the end"]
                await agent.ok("resolve_handoff", agent="alice", handoff_id=handoff_id, action="cancel")
                assert getattr(await anext(aiter(others)), "uri", None) == handoff
