"""Statistics are what a slow, obvious fold over the rows says, and everybody sees their own."""

import json
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from statistics import fmean, quantiles
from time import monotonic
from typing import Any, Final
from urllib.parse import quote

import asyncpg
import pytest

from handoff.app import open_app
from handoff.cache import FIGURES_TTL_S, figures_key
from handoff.context import App
from handoff.errors import HandoffError, Invalid
from handoff.figures import FRESH_S
from handoff.jobs import archive
from handoff.model import Caller
from handoff.server.calls import read
from handoff.settings import Settings
from handoff.store import statistics
from handoff.store.connect import address
from tests.agents import Agent, all_of
from tests.past import NOW, filled
from tests.server.test_auth import line

KEYS: Final = {"sessions": "sessions", "handoffs": "handoffs", "context": "entries"}
NAMES: Final = ("agent", "policy", "type", "sender", "target_agent", "target_capability")


@pytest.fixture
async def past(app: App, db: asyncpg.Connection) -> None:
    await filled(db)
    await archive.run(app)
    assert await db.fetchval("SELECT count(*) FROM archive") > 20
    assert await db.fetchval("SELECT count(*) FROM context_entry") > 100


# The slow twin: whole tables in Python.


def start_of(at: datetime, granularity: str) -> datetime:
    if granularity == "hour":
        return at.replace(minute=0, second=0, microsecond=0)
    day = at.replace(hour=0, minute=0, second=0, microsecond=0)
    if granularity == "month":
        return day.replace(day=1)
    while granularity == "week" and day.strftime("%A") != "Monday":
        day -= timedelta(days=1)
    return day


def percentiles(values: Iterable[float]) -> dict[str, Any] | None:
    known = sorted(values)
    if not known:
        return None
    cuts = quantiles(known, n=100, method="inclusive") if len(known) > 1 else known * 99
    return {name: pytest.approx(cuts[place - 1], abs=0.001) for name, place in (("p50", 50), ("p95", 95), ("p99", 99))}


def tally(values: Iterable[str]) -> dict[str, int]:
    known = list(values)
    return {value: known.count(value) for value in known}


Rows = list[dict[str, Any]]


def fold_sessions(rows: Rows) -> dict[str, Any]:
    return {
        "sessions": len(rows),
        "by_status": tally(row["shown"] for row in rows),
        "entries": sum(row["last_sequence"] for row in rows),
        "content_bytes": sum(row["content_bytes"] for row in rows),
        "participants_mean": pytest.approx(fmean(len(row["agents"]) for row in rows), abs=0.001) if rows else None,
        "duration_s": percentiles((row["last_activity_at"] - row["created_at"]).total_seconds() for row in rows),
    }


def fold_handoffs(rows: Rows) -> dict[str, Any]:
    done = [row for row in rows if row["state"] == "completed"]
    ended = [row for row in rows if row["state"] in ("completed", "rejected", "cancelled", "expired")]
    why = {"rejected": "rejected", "cancelled": "cancelled"}
    return {
        "handoffs": len(rows),
        "by_state": tally(row["state"] for row in rows),
        "success_ratio": pytest.approx(len(done) / len(ended), abs=0.0001) if ended else None,
        "unsuccessful": tally(
            why.get(row["state"])
            or ("deadline_passed" if row["deadline"] and row["deadline"] <= row["updated_at"] else "session_ended")
            for row in ended
            if row["state"] != "completed"
        ),
        "accepted": sum(bool(row["acceptances"]) for row in rows),
        "lapsed": sum(row["lapses"] > 0 for row in rows),
        "to_accept_s": percentiles(
            (min(row["acceptances"]) - row["created_at"]).total_seconds() for row in rows if row["acceptances"]
        ),
        "to_complete_s": percentiles((row["updated_at"] - min(row["acceptances"])).total_seconds() for row in done),
    }


def fold_context(rows: Rows) -> dict[str, Any]:
    sizes = [row["size_bytes"] for row in rows]
    return {
        "entries": len(rows),
        "by_type": tally(row["type"] for row in rows),
        "content_bytes": sum(sizes),
        "size_bytes": {**(percentiles(sizes) or {}), "max": max(sizes)} if sizes else None,
        "superseded": sum(row["superseded_by"] is not None for row in rows),
        "large": sum(size > 100_000 for size in sizes),
    }


@dataclass
class Kind:
    """How the rows of a type are folded, whose they are, and what they are broken down into."""

    rows: Rows
    fold: Callable[[Rows], dict[str, Any]]
    belongs: Callable[[dict[str, Any], str], bool]
    parts: dict[str, Callable[[dict[str, Any]], dict[str, Any]]]


async def kinds(db: asyncpg.Connection) -> dict[str, Kind]:
    sessions = [dict(row) for row in await db.fetch("SELECT * FROM session")]
    policy = {row["id"]: row["retention_policy"] for row in sessions}
    joined = [dict(row) for row in await db.fetch("SELECT * FROM participant")]
    handoffs = [dict(row) for row in await db.fetch("SELECT * FROM handoff")]
    accepted = [dict(row) for row in await db.fetch("SELECT * FROM event WHERE kind = 'handoff.accepted'")]
    columns = "session_id, type, author, size_bytes, superseded_by, created_at"
    union = f"SELECT {columns} FROM context_entry UNION ALL SELECT {columns} FROM archived_entry"
    entries = [dict(row) for row in await db.fetch(union)]
    for row in sessions:
        is_over = row["status"] in ("active", "dormant") and row["expires_at"] <= NOW
        row |= {"shown": "expired" if is_over else row["status"]}
        row |= {"agents": [it["agent"] for it in joined if it["session_id"] == row["id"]]}
    for row in handoffs:
        row |= {"retention_policy": policy[row["session_id"]]}
        row |= {"acceptances": [it["at"] for it in accepted if it["handoff_id"] == row["id"]]}
    for row in entries:
        row |= {"retention_policy": policy[row["session_id"]]}
    return {
        "sessions": Kind(
            sessions,
            fold_sessions,
            lambda row, agent: agent in row["agents"],
            {
                "agents": lambda row: {"agent": row["created_by"]},
                "policies": lambda row: {"policy": row["retention_policy"]},
            },
        ),
        "handoffs": Kind(
            handoffs,
            fold_handoffs,
            lambda row, agent: agent in (row["sender"], row["target_agent"], row["holder"]),
            {
                "routes": lambda row: {
                    "sender": row["sender"],
                    **(
                        {"target_agent": row["target_agent"]}
                        if row["target_agent"]
                        else {"target_capability": row["target_capability"]}
                    ),
                }
            },
        ),
        "context": Kind(
            entries,
            fold_context,
            lambda row, agent: row["author"] == agent,
            {"agents": lambda row: {"agent": row["author"]}, "types": lambda row: {"type": row["type"]}},
        ),
    }


async def whole(agent: Agent, uri: str) -> dict[str, Any]:
    """All pages of an answer as one."""
    answer = await agent.read(uri)
    page = answer
    while cursor := page.get("next_cursor"):
        page = await agent.read(f"{uri}&cursor={quote(cursor)}")
        assert "total" not in page
        answer["buckets"] += page["buckets"]
    return answer


async def test_statistics_are_what_a_slow_fold_over_the_rows_says(
    past: None, app: App, agent: Agent, db: asyncpg.Connection
) -> None:
    asked = 0
    for name, kind in (await kinds(db)).items():
        for granularity, days, of, policy in (
            ("month", 70, None, None),
            ("week", 50, "ada", None),
            ("day", 30, None, "short"),
            ("day", 20, "bob", "standard"),
            ("hour", 3, None, None),
            ("hour", 2, "eve", None),
        ):
            query = f"granularity={granularity}&limit=7&since={quote((NOW - timedelta(days=days)).isoformat())}"
            query += f"&agent={of}" if of else ""
            query += f"&policy={policy}" if policy else ""
            answer = await whole(agent, f"handoff://analytics/{name}?{query}")

            since = start_of(NOW - timedelta(days=days), granularity)
            rows = [
                row
                for row in kind.rows
                if since <= row["created_at"]
                and (not of or kind.belongs(row, of))
                and (not policy or row["retention_policy"] == policy)
            ]
            assert answer["since"] == since.isoformat().replace("+00:00", "Z")
            assert answer["total"] == kind.fold(rows), (name, query)
            starts = [datetime.fromisoformat(bucket.pop("start")) for bucket in answer["buckets"]]
            assert len(starts) >= days / {"month": 31, "week": 7, "day": 1, "hour": 1 / 24}[granularity]
            assert starts == sorted({start_of(start, granularity) for start in starts})
            assert answer["buckets"].pop().pop("partial") is True
            for start, bucket in zip(starts, answer["buckets"], strict=False):
                of_bucket = [row for row in rows if start_of(row["created_at"], granularity) == start]
                assert bucket == kind.fold(of_bucket), (name, query, start)
            for part, key in kind.parts.items():
                if of and part == "agents":
                    assert part not in answer
                    continue
                for shown in answer.get(part, []):
                    group = {part: shown[part] for part in NAMES if part in shown}
                    of_part = [row for row in rows if key(row) == group]
                    assert shown == {**group, **kind.fold(of_part)}, (name, query, group)
                assert len(answer.get(part, [])) == len({str(key(row)) for row in rows})
            asked += len(rows)
    assert asked > 1_000


@pytest.fixture
async def guarded(settings: Settings, tmp_path: Path, db: asyncpg.Connection) -> AsyncGenerator[App]:
    await filled(db)
    tokens = tmp_path / "tokens"
    tokens.write_text(line("ada", "read") + line("root", "admin"))
    async with open_app(settings.model_copy(update={"tokens_file": tokens})) as opened:
        yield opened


async def test_an_agent_sees_its_own_figures_and_an_admin_sees_all(guarded: App) -> None:
    ada, root = Caller("ada", frozenset({"read"})), Caller("root", frozenset({"admin"}))

    async def answer(caller: Caller, uri: str) -> dict[str, Any]:
        return json.loads((await read(guarded, caller, f"handoff://analytics/{uri}", monotonic()))[0])

    for name in ("sessions", "handoffs", "context"):
        own = await answer(ada, name)
        assert 0 < own["total"][KEYS[name]] < (await answer(root, name))["total"][KEYS[name]]
        assert own["total"] == (await answer(ada, f"{name}?agent=ada"))["total"]
        assert own["total"] == (await answer(root, f"{name}?agent=ada"))["total"]
        assert "agents" not in own
        assert {"ada"} <= {row["agent"] for row in (await answer(root, name)).get("agents", [{"agent": "ada"}])}
        with pytest.raises(HandoffError, match="figures of 'bob' are not yours"):
            await answer(ada, f"{name}?agent=bob")
    for row in (await answer(ada, "handoffs"))["routes"]:
        assert "ada" in (row["sender"], row.get("target_agent")) or "target_capability" in row


async def test_the_agents_that_have_most_are_shown_and_the_others_are_counted(agent: Agent) -> None:
    for number in range(53):
        await agent.session(f"agent-{number}")
    await agent.session("agent-52")
    found = await agent.read("handoff://analytics/sessions")
    assert (len(found["agents"]), found["agents_left_out"]) == (statistics.PLACES_MAX, 3)
    assert (found["agents"][0]["agent"], found["agents"][0]["sessions"]) == ("agent-52", 2)
    assert "policies_left_out" not in found


async def test_stale_figures_are_shown_once_while_they_are_computed_anew(
    app: App, agent: Agent, db: asyncpg.Connection
) -> None:
    await agent.session()
    uri = "handoff://analytics/sessions"
    first = await agent.read(uri)
    await agent.session()
    assert (first["total"]["sessions"], first["stale"]) == (1, False)
    assert await agent.read(uri) == first

    question = {"since": "", "until": "", "granularity": "day", "policy": "", "operation": ""}
    key = figures_key(address(app.settings), "sessions", None, question)
    kept = await app.cache.get(key)
    assert kept is not None
    long_ago = kept["at"] - FRESH_S - 1
    await app.cache.put(key, kept | {"at": long_ago}, FIGURES_TTL_S)
    stale = await agent.read(uri)
    assert (stale["total"]["sessions"], stale["stale"]) == (1, True)
    assert datetime.fromisoformat(stale["computed_at"]).timestamp() == pytest.approx(long_ago)
    await app.figures.settled()
    anew = await agent.read(uri)
    assert (anew["total"]["sessions"], anew["stale"]) == (2, False)

    await app.cache.put(key, kept | {"at": long_ago}, FIGURES_TTL_S)
    await db.execute("ALTER TABLE participant RENAME TO participants")
    assert [(await agent.read(uri))["stale"] for _ in range(2)] == [True, True]  # it cannot be computed anew
    await app.figures.settled()
    assert (await agent.read(uri))["total"]["sessions"] == 1


async def test_the_same_figures_are_computed_once_for_all_who_ask_at_once(app: App) -> None:
    computed = 0

    async def compute() -> dict[str, Any]:
        nonlocal computed
        computed += 1
        return {"count": computed}

    answers = await all_of(*(app.figures.get("a key", compute) for _ in range(10)))
    assert [answer.value for answer in answers] == [{"count": 1}] * 10


async def test_what_cannot_be_answered_is_refused_with_what_to_do(app: App) -> None:
    for uri, said in {
        "weather": "There are no analytics of this type.",
        "sessions?granularity=hour&since=2026-01-01T00:00:00Z": "This range has more than 400 hours.",
        "sessions?since=0001-01-01T00:00:00Z": "This range has more than 400 days.",
        "sessions?since=2999-01-01T00:00:00Z": "The range from since to until is empty, or in the future.",
        "sessions?until=0001-01-01T00:00:00Z": "The range from since to until is empty, or in the future.",
        "sessions?since=2026-01-01": "since",
        "sessions?cursor=WzFd": "This cursor does not belong to this list.",
    }.items():
        with pytest.raises(HandoffError) as refused:
            await read(app, Caller(), f"handoff://analytics/{uri}", monotonic())
        assert said in refused.value.message
        assert refused.value.hint


async def test_more_rows_or_more_time_than_the_limit_are_refused(
    db: asyncpg.Connection, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        await agent.session()
    asked = statistics.Asked(NOW - timedelta(days=2), NOW + timedelta(days=1), "day")
    async with db.transaction():
        assert (await statistics.sessions(db, asked, 5)).all["sessions"] == 3
    monkeypatch.setattr(statistics, "ROWS_MAX", 2)
    async with db.transaction():
        with pytest.raises(Invalid, match="more than 2 sessions in this range"):
            await statistics.sessions(db, asked, 5)
    async with db.transaction():
        await db.execute("CREATE TEMPORARY VIEW session AS SELECT s.* FROM public.session s, pg_sleep(1)")
        with pytest.raises(Invalid, match="took longer than"):
            await statistics.sessions(db, asked, 0.01)
