"""No answer is larger than docs/settings.md says, at the default settings: the largest of each is built here."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, get_args

import asyncpg
import orjson
import pytest
from mcp import Client

from docs.source.answers import ANSWERS
from handoff.app import open_app
from handoff.context import App
from handoff.encoding import to_json
from handoff.jobs import incidents
from handoff.model import INSTRUCTIONS_CHARS_MAX, RETRACTION
from handoff.operations.notification import VALUE_CHARS_MAX
from handoff.resources.operations import selected
from handoff.server.catalog import ADMIN_TOOLS, RESOURCES, TOOLS
from handoff.server.protocol import build_server
from handoff.settings import Settings
from handoff.store.handoffs import WRITERS_MAX
from handoff.telemetry import metrics
from handoff.tools import backtest as backtest_tool
from handoff.tools.contract import METADATA_BYTES_MAX, TEXT_CHARS_MAX
from handoff.tools.session_data import REASON_CHARS_MAX
from handoff.webhooks import AGENTS_MAX, ENDPOINTS_MAX, Event
from tests.agents import Agent

ADA, BOB = "a" * 100, "b" * 100
KEY: Final = "k" * 255
LONG: Final = "\x01"  # a character that takes six bytes of JSON
METADATA: Final = {"m": "x" * (METADATA_BYTES_MAX - len('{"m":""}'))}
INSTRUCTIONS: Final = LONG * INSTRUCTIONS_CHARS_MAX
NOTE: Final = LONG * TEXT_CHARS_MAX
WRITERS: Final = [ADA, BOB, *(f"{number:0100}" for number in range(WRITERS_MAX - 2))]


@pytest.fixture
async def serving(settings: Settings, tmp_path: Path) -> AsyncGenerator[App]:
    webhooks_file = tmp_path / "webhooks.toml"
    webhooks_file.touch()
    async with open_app(settings.model_copy(update={"admin": True, "webhooks_file": webhooks_file})) as opened:
        yield opened


class World:
    """Agents, and a session that is as large as one can be."""

    def __init__(self, app: App, agent: Agent, db: asyncpg.Connection) -> None:
        self.app, self.agent, self.db = app, agent, db

    async def session(self, key: str = KEY, **metadata: str) -> dict[str, Any]:
        """Register a session with the longest names and, by default, metadata; return the answer."""
        arguments = {"session_key": key, "metadata": metadata or METADATA, "retention_policy": "extended"}
        answer = await self.agent.ok("register_session", agent=ADA, **arguments)
        await self.db.execute("UPDATE session SET writers = $1", WRITERS)
        return answer

    async def append(self, *entries: dict[str, Any], key: str = KEY) -> dict[str, Any]:
        """Append to it; return the answer."""
        return await self.agent.ok("update_context", agent=ADA, session_key=key, entries=list(entries))

    async def offer(self, to: str = BOB, key: str = KEY) -> dict[str, Any]:
        """Offer it; return the answer."""
        arguments = {"instructions": INSTRUCTIONS, "request_type": "context_transfer", "deadline_minutes": 525_600}
        return await self.agent.ok("request_handoff", agent=ADA, session_key=key, target_agent=to, **arguments)

    async def held(self, to: str = BOB) -> dict[str, Any]:
        """Offer the session and let another agent accept it; return the arguments of what it does next."""
        handoff_id = (await self.offer(to))["handoff_id"]
        return {"agent": to, "handoff_id": handoff_id, "token": await self.agent.accept(handoff_id, to)}

    async def blocked(self) -> dict[str, Any]:
        """The same, blocked for the longest reason."""
        held = await self.held()
        await self.agent.ok("resolve_handoff", **held, action="block", note=NOTE)
        return held

    async def entries(self) -> None:
        """Fill the session with entries of all kinds, more than a brief or a summary shows."""
        for number in range(3):
            for type_ in ("decision", "message", "file", "tool_call", "summary", "system"):
                metadata = [{"pinned": True}, {"question": True}, {"todo": True}, {}, {"path": LONG * 500}][number::3]
                await self.append(
                    *({"type": type_, "content": LONG * 5_000, "metadata": one} for one in metadata for _ in range(12))
                )
        await self.db.execute(
            """INSERT INTO context_entry (session_id, sequence, type, content, size_bytes, content_hash, author, created_at)
               SELECT id, last_sequence + n, 'message', 'x', 1, sha256('x'), lpad(n::text, 100, 'z'), now()
                 FROM session, generate_series(1, 60) n"""
        )


Build = Callable[[World], Awaitable[dict[str, Any]]]


async def register_session(world: World) -> dict[str, Any]:
    return await world.session()


async def update_context(world: World) -> dict[str, Any]:
    await world.session()
    return await world.append(*({"type": "message", "content": LONG} for _ in range(50)))


async def large_entry(world: World) -> None:
    """Append the largest entry: it supersedes as many as it can, and is withdrawn."""
    await world.session()
    await world.append(*({"type": "message", "content": "x"} for _ in range(32)))
    large = {"type": "decision", "content": LONG * world.app.settings.content_bytes_max, "metadata": METADATA}
    await world.append({**large, "supersedes": list(range(2, 34))})
    await world.append({"type": "message", "content": "No.", "supersedes": [34], "metadata": {RETRACTION: True}})


async def get_context(world: World) -> dict[str, Any]:
    await large_entry(world)
    arguments = {"session_key": KEY, "view": "entries", "after_sequence": 33, "limit": 100}
    return await world.agent.ok("get_context", agent=ADA, **arguments)


async def context(world: World) -> dict[str, Any]:
    await large_entry(world)
    return await world.agent.read(f"handoff://context/{KEY}?after=33&limit=100")


async def brief(world: World) -> dict[str, Any]:
    await world.session()
    await world.entries()
    await world.offer()
    return await world.agent.ok("get_context", agent=ADA, session_key=KEY, token_budget=20_000)


async def search_context(world: World) -> dict[str, Any]:
    await world.session()
    await world.append(*({"type": "message", "content": "alpha " + ("ж" * 30 + " ") * 300} for _ in range(50)))
    return await world.agent.ok("search_context", agent=ADA, query="alpha", limit=50)


async def request_handoff(world: World) -> dict[str, Any]:
    await world.session()
    await world.entries()
    return await world.offer()


async def get_inbox(world: World) -> dict[str, Any]:
    await world.session()
    await world.blocked()
    return await world.agent.ok("get_inbox", agent=BOB)


async def open_handoffs(world: World) -> dict[str, Any]:
    await world.session()
    for number in range(26):
        await world.offer(f"{number}{BOB}"[: len(BOB)])
    return await world.agent.read("handoff://handoffs?limit=100")


async def inbox(world: World) -> dict[str, Any]:
    await world.session()
    await world.blocked()
    return await world.agent.read(f"handoff://agents/{BOB}/inbox?limit=100")


async def sent(world: World) -> dict[str, Any]:
    await world.session()
    await world.blocked()
    return await world.agent.read(f"handoff://agents/{ADA}/sent?limit=100")


async def accept_handoff(world: World) -> dict[str, Any]:
    await world.session()
    await world.entries()
    handoff_id = (await world.offer())["handoff_id"]
    return await world.agent.ok("accept_handoff", agent=BOB, handoff_id=handoff_id, token_budget=20_000)


async def renew_handoff(world: World) -> dict[str, Any]:
    await world.session()
    return await world.agent.ok("renew_handoff", **await world.blocked())


async def resolve_handoff(world: World) -> dict[str, Any]:
    await world.session()
    return await world.agent.ok("resolve_handoff", **await world.held(), action="complete", note=NOTE)


async def handoff(world: World) -> dict[str, Any]:
    done = await resolve_handoff(world)
    return await world.agent.read(f"handoff://handoffs/{done['handoff_id']}")


async def accepted_brief(world: World) -> dict[str, Any]:
    taken = await accept_handoff(world)
    return await world.agent.read(f"handoff://handoffs/{taken['handoff']['handoff_id']}/brief")


async def lapse_handoff(world: World) -> dict[str, Any]:
    await world.session()
    held = await world.blocked()
    return await world.agent.ok("lapse_handoff", handoff_id=held["handoff_id"])


async def session_data(world: World) -> dict[str, Any]:
    await world.session()
    return await world.agent.ok(
        "session_data", agent=ADA, action="hold", of="session", name=KEY, reason=LONG * REASON_CHARS_MAX
    )


async def lifecycle_of_all(world: World) -> dict[str, Any]:
    await world.db.execute(
        "INSERT INTO legal_hold (kind, name, reason, held_by) SELECT 'agent', 'a' || n, 'because of it', 'operator'"
        "  FROM generate_series(1, 1000) n"
    )
    return await world.agent.read("handoff://lifecycle")


async def close_session(world: World) -> dict[str, Any]:
    await world.session()
    return await world.agent.ok("close_session", agent=ADA, session_key=KEY)


async def sessions(world: World) -> dict[str, Any]:
    for number in range(100):
        await world.session(f"{number:0255}", size="small, so that a page is full")
    return await world.agent.read("handoff://sessions?limit=100")


async def agent_sessions(world: World) -> dict[str, Any]:
    for number in range(100):
        await world.session(f"{number:0255}", size="small, so that a page is full")
    return await world.agent.read(f"handoff://agents/{ADA}/sessions?limit=100")


async def session(world: World) -> dict[str, Any]:
    await world.session()
    return await world.agent.read(f"handoff://sessions/{KEY}")


async def lifecycle(world: World) -> dict[str, Any]:
    await world.session()
    data = {"token": 9_007_199_254_740_991, "reason": "x" * 1_000}
    await world.db.execute(
        """INSERT INTO event (session_id, kind, agent, at, data)
           SELECT id, 'handoff.rejected', $1, now(), $2::text::jsonb FROM session, generate_series(1, 200)""",
        ADA,
        orjson.dumps(data).decode(),
    )
    return await world.agent.read(f"handoff://sessions/{KEY}/lifecycle?limit=100")


async def summary(world: World) -> dict[str, Any]:
    await world.session()
    await world.entries()
    for _ in range(20):
        await world.agent.ok("resolve_handoff", **await world.held(), action="complete", note=NOTE)
    return await world.agent.read(f"handoff://summary/{KEY}")


async def alerts(world: World) -> dict[str, Any]:
    text = LONG * VALUE_CHARS_MAX
    for number in range(3):
        alert = {
            "fingerprint": f"{number:064}",
            "status": "firing",
            "startsAt": "2026-11-29T00:00:00.123456Z",
            "labels": dict.fromkeys(("alertname", "severity", "component"), text),
            "annotations": dict.fromkeys(("summary", "description", "runbook_url", "dashboard_url"), text),
        }
        await world.app.alerts.store(orjson.dumps({"alerts": [alert]}))
    return await world.agent.read("handoff://alerts?limit=100")


_JOB = """
    INSERT INTO job
    SELECT name, 9999999999, 9999999999, 0.123456789, 0.123456789, now(), now(), repeat('e', 200), now(), now(),
           repeat('a', 100), now()
      FROM unnest($1::text[]) name
"""


async def jobs(world: World) -> dict[str, Any]:
    await world.db.execute(_JOB, list(metrics.JOB.values))
    return await world.agent.read("handoff://jobs")


async def storage(world: World) -> dict[str, Any]:
    await world.db.execute("""INSERT INTO storage_size SELECT repeat('t', 60) || n, now(), 999999999999
                                FROM generate_series(1, 200) n""")
    return await world.agent.read("handoff://storage")


async def analytics(world: World) -> dict[str, Any]:
    await world.session("k")
    await world.db.execute(
        """INSERT INTO handoff (session_id, request_type, sender, target_capability, instructions, priority, deadline, state,
                                holder, token, lease_expires_at, lapses, as_of_sequence, context_digest, created_at,
                                accepted_at, updated_at)
           SELECT s.id, 'full_handoff', lpad(n::text, 100, 's'), lpad(n::text, 100, 't'), 'x', 5,
                  CASE WHEN k = 1 THEN now() - interval '300 days' END, state, 'a', 1,
                  CASE WHEN state IN ('accepted', 'blocked') THEN now() END, 1, 1, '', at,
                  at + interval '1 second' * 123456.789 * k, at + interval '1 second' * 623456.789 * k
             FROM session s, generate_series(1, 100) n, generate_series(1, 12) k,
                  unnest('{completed,rejected,cancelled,expired,offered,accepted,blocked}'::text[]) state,
                  LATERAL (SELECT now() - interval '1 day' * n AS at) a"""
    )
    since = (datetime.now(UTC) - timedelta(days=100)).strftime("%Y-%m-%dT00:00:00Z")
    return await world.agent.read(f"handoff://analytics/handoffs?limit=100&since={since}")


async def webhooks(world: World) -> dict[str, Any]:
    file = Path(str(world.app.settings.webhooks_file))
    agents = [f"{'a' * 97}{number:03}" for number in range(AGENTS_MAX)]
    events = list(get_args(Event))
    one = '[[endpoint]]\nname = "{0}{1:02}"\nurl = "https://e.com/"\nagents = {2}\nevents = {3}\nsecret_files = ["/s"]\n'
    file.write_text("".join(one.format("e" * 98, number, agents, events) for number in range(ENDPOINTS_MAX)))
    await world.db.execute(
        """INSERT INTO webhook_delivery
           SELECT repeat('e', 98) || to_char(n, 'FM00'), 1, n, 'k', now() - interval '9 days', '{}', 15, now(), false,
                  repeat('p', 60)
             FROM generate_series(0, 19) n"""
    )
    return await world.agent.read("handoff://webhooks")


async def retry_webhooks(world: World) -> dict[str, Any]:
    name = "e" * 100
    await world.db.execute(
        """INSERT INTO webhook_delivery
           SELECT $1, 1, n, 'k', now() - interval '9 days', '{}', 15, now(), true, repeat('p', 60)
             FROM generate_series(1, 1001) n""",
        name,
    )
    return await world.agent.ok("retry_webhooks", agent=ADA, endpoint=name)


async def job(world: World) -> dict[str, Any]:
    await world.db.execute(_JOB, ["certificates"])
    return await world.agent.read("handoff://jobs/certificates")


async def control_job(world: World) -> dict[str, Any]:
    await world.db.execute(_JOB, ["certificates"])
    return await world.agent.ok("job", agent="alice", job="certificates", action="run", reason="x")


async def explain_anomaly(world: World) -> dict[str, Any]:
    """An incident of 250 anomalies, in series with the longest labels, as its job writes it."""
    await world.db.execute(
        """WITH s AS (
               INSERT INTO series (name, labels, kind, absence, begins_at, last_at)
               SELECT 'handoffs.rejected' || n % 5,
                      jsonb_build_object('from', repeat('a', 196) || n / 5, 'to', repeat('b', 196) || n / 5), 'ratio',
                      'zero', now(), now()
                 FROM generate_series(1000, 1249) n RETURNING id),
           p AS (
               INSERT INTO series_point (bucket, series_id, value, of)
               SELECT date_trunc('minute', now()) - n * interval '1 minute', id, 1234.56789, 4567.89123
                 FROM s, generate_series(0, 400) n),
           progress AS (INSERT INTO analytics_progress VALUES ('judged', now()) ON CONFLICT (stage) DO UPDATE SET at = now())
           INSERT INTO anomaly (series_id, bucket, version, severity, shadow, value, expected, lower, upper, strength,
                                confidence, spoke, sentence)
           SELECT id, date_trunc('minute', now()) - interval '10 minutes', 1, 'critical', false, 1234.56789, 1234.56789,
                  1234.56789, 1234.56789, 12.3456789, 0.98, '{"level of hours": 12.34, "level of days": 12.34}',
                  repeat('s', 1000)
             FROM s"""
    )
    await incidents.run(world.app)
    number = await world.db.fetchval("SELECT max(id) FROM incident")
    return await world.agent.ok("explain_anomaly", agent=ADA, incident=number, feedback="useful")


async def backtest(world: World) -> dict[str, Any]:
    """Twenty series with the longest labels that jump every few hours, twice as sensitive as usual."""
    await world.db.execute(
        """WITH s AS (
               INSERT INTO series (name, labels, kind, absence, begins_at, last_at)
               SELECT 'handoffs.rejected', jsonb_build_object('from', repeat('a', 196) || n, 'to', repeat('b', 196) || n),
                      'count', 'zero', date_trunc('minute', now()) - interval '3 days', now()
                 FROM generate_series(1000, 1024) n RETURNING id)
           INSERT INTO series_point (bucket, series_id, value)
           SELECT date_trunc('minute', now()) - n * interval '1 minute', id,
                  CASE WHEN n % 290 < 9 THEN 1e4 * (6000 - n) ELSE 100 + n * 7919 % 13 END
             FROM s, generate_series(1, 4320) n"""
    )
    found = await world.agent.ok("backtest", agent=ADA, series="handoffs.rejected", sensitivity=4)
    assert len(found["series"]) == backtest_tool.SERIES_MAX
    assert found["alerts_left_out"]
    return found


async def health(world: World) -> dict[str, Any]:
    await world.db.execute(
        """INSERT INTO health_event (at, instance, component, was, status, figure, threshold, unit, detail)
           SELECT now(), repeat('i', 100), 'circuit_breaker', 'unhealthy', 'degraded', 0.123456789, 0.123456789, 'requests',
                  repeat('d', 200) FROM generate_series(1, 200)"""
    )
    await world.app.health._check()
    if world.app.health._storing is not None:
        await world.app.health._storing
    return await world.agent.read("handoff://health?history=100")


def _configuration(letter: str) -> dict[str, Any]:
    days = dict.fromkeys(("archived_days", "logs_days", "metrics_days"), 3650)
    policy = {"active_hours": 8760, "dormant_minutes": 525_600, "keeps_secrets": True, **days}
    retention = {"standard": policy} | {f"{letter * 48}{number:02}": policy for number in range(49)}
    filters = [{"level": "warning", "session": letter * 255} for _ in range(80)]
    return {"retention": retention, "monitoring": {"log_filters": filters}}


async def configuration(world: World) -> dict[str, Any]:
    asked = {"action": "import", "agent": ADA, "reason": "r" * 500}
    for version, letter in ((1, "a"), (2, "b")):
        document = orjson.dumps({"format": 1, "configuration": _configuration(letter)}).decode()
        done = await world.agent.ok("configuration", document=document, expected_version=version, **asked)
    return done


async def config(world: World) -> dict[str, Any]:
    await configuration(world)
    return await world.agent.read("handoff://config")


LARGEST: Final[dict[str, Build]] = {
    "register_session": register_session,
    "update_context": update_context,
    "get_context view=brief": brief,
    "get_context view=entries": get_context,
    "search_context": search_context,
    "request_handoff": request_handoff,
    "get_inbox": get_inbox,
    "accept_handoff": accept_handoff,
    "renew_handoff": renew_handoff,
    "resolve_handoff": resolve_handoff,
    "close_session": close_session,
    "lapse_handoff": lapse_handoff,
    "session_data": session_data,
    "handoff://lifecycle": lifecycle_of_all,
    "configuration": configuration,
    "job": control_job,
    "explain_anomaly": explain_anomaly,
    "backtest": backtest,
    "retry_webhooks": retry_webhooks,
    "handoff://sessions": sessions,
    "handoff://sessions/{key}": session,
    "handoff://sessions/{key}/lifecycle": lifecycle,
    "handoff://context/{key}": context,
    "handoff://summary/{key}": summary,
    "handoff://handoffs": open_handoffs,
    "handoff://agents/{agent}/inbox": inbox,
    "handoff://agents/{agent}/sent": sent,
    "handoff://agents/{agent}/sessions": agent_sessions,
    "handoff://handoffs/{id}": handoff,
    "handoff://handoffs/{id}/brief": accepted_brief,
    "handoff://health": health,
    "handoff://jobs": jobs,
    "handoff://storage": storage,
    "handoff://webhooks": webhooks,
    "handoff://jobs/{name}": job,
    "handoff://analytics/{type}": analytics,
    "handoff://alerts": alerts,
    "handoff://config": config,
}


def test_every_tool_and_resource_states_the_size_of_its_largest_answer() -> None:
    offered = {tool.name for tool in (*TOOLS, *ADMIN_TOOLS)} | {resource.path for resource in RESOURCES}

    assert {name.split(" ")[0] for name in ANSWERS} == offered
    assert ANSWERS.keys() - {"handoff://metrics"} == LARGEST.keys()


def test_metrics_are_selected_by_name_and_what_is_left_out_is_counted() -> None:
    lines = [f"# HELP a_{number}_total A thing.\na_{number}_total 1.0\n" for number in range(5_000)]
    lines = "".join(lines).splitlines(keepends=True)
    buckets = ["# HELP b_seconds Durations.\n", 'b_seconds_bucket{le="1.0"} 1.0\n', "b_seconds_sum 0.5\n"]

    text = selected(lines, "")
    assert 0.8 * ANSWERS["handoff://metrics"].bytes_max < len(text) <= ANSWERS["handoff://metrics"].bytes_max
    *kept, last = text.splitlines(keepends=True)
    assert kept == lines[: len(kept)]
    assert last.startswith(f"# Left out: {len(lines) - len(kept):,} lines.")
    assert selected([*lines, *buckets], "b_") == "".join(buckets)
    assert selected(buckets, "").splitlines()[-2:] == [
        "b_seconds_sum 0.5",
        "# Left out: 1 line. Read handoff://metrics?name=NAME for fewer metrics.",
    ]
    assert selected(lines, "c").startswith("# No metric has a name that begins with 'c'.")


@pytest.mark.parametrize("name", LARGEST)
async def test_the_largest_answer_is_as_large_as_documented(serving: App, db: asyncpg.Connection, name: str) -> None:
    async with Client(build_server(serving)) as client:
        answer = await LARGEST[name](World(serving, Agent(client), db))

    size_bytes = len(to_json(answer))
    assert 0.8 * ANSWERS[name].bytes_max < size_bytes <= ANSWERS[name].bytes_max
