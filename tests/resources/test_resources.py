"""Resources, which clients read without calling a tool."""

from datetime import datetime, timedelta, timezone
from time import monotonic
from typing import Any
from urllib.parse import quote

import asyncpg
import orjson

from handoff.context import App
from handoff.model import ALL_SCOPES, Caller
from handoff.server.calls import Failure, read_resource
from handoff.server.catalog import RESOURCES
from handoff.telemetry.calls import Arrival
from tests.agents import Agent


async def pages(agent: Agent, uri: str, name: str) -> list[dict[str, Any]]:
    """All items of a list, read page by page."""
    items: list[dict[str, Any]] = []
    cursor: str | None = None
    for _ in range(100):
        page = await agent.read(uri + (f"&cursor={quote(cursor)}" if cursor else ""))
        items += page[name]
        cursor = page.get("next_cursor")
        if cursor is None:
            return items
    raise AssertionError("the list does not end")


async def test_metrics_can_be_read_without_telemetry(app: App, agent: Agent) -> None:
    await agent.session()
    admin = Caller(None, ALL_SCOPES)
    result = await read_resource(app, admin, "handoff://metrics?name=handoff_context_entries", Arrival(monotonic()))
    assert not isinstance(result, Failure), result
    assert "handoff_context_entries_total{" in result.body.decode()


async def test_every_resource_is_listed_with_its_template(agent: Agent) -> None:
    listed = {template.uri_template for template in (await agent.client.list_resource_templates()).resource_templates}

    assert {uri.split("{?")[0] for uri in listed} == {
        "handoff://sessions",
        "handoff://sessions/{key}",
        "handoff://sessions/{key}/lifecycle",
        "handoff://context/{key}",
        "handoff://summary/{key}",
        "handoff://agents/{agent}/inbox",
        "handoff://agents/{agent}/sent",
        "handoff://agents/{agent}/sessions",
        "handoff://handoffs",
        "handoff://handoffs/{id}",
        "handoff://handoffs/{id}/brief",
        "handoff://lifecycle",
        "handoff://alerts",
        "handoff://health",
        "handoff://metrics",
        "handoff://storage",
        "handoff://webhooks",
        "handoff://config",
        "handoff://jobs",
        "handoff://jobs/{name}",
        "handoff://analytics/{type}",
    }
    assert [str(resource.uri) for resource in (await agent.client.list_resources()).resources] == [
        "handoff://sessions",
        "handoff://handoffs",
        "handoff://lifecycle",
        "handoff://health",
        "handoff://metrics",
        "handoff://alerts",
        "handoff://config",
        "handoff://storage",
        "handoff://webhooks",
        "handoff://jobs",
    ]
    assert len(RESOURCES) == len(listed)


async def test_sessions_are_paged_newest_first_without_gap_or_repeat_while_new_ones_come(agent: Agent) -> None:
    keys = [await agent.session("alice" if number % 2 else "bob") for number in range(23)]

    first = await agent.read("handoff://sessions?limit=5")
    await agent.session("late")
    rest: list[dict[str, Any]] = []
    cursor = first["next_cursor"]
    while cursor:
        page = await agent.read(f"handoff://sessions?limit=5&cursor={quote(cursor)}")
        assert len(page["sessions"]) <= 5
        rest += page["sessions"]
        cursor = page.get("next_cursor")

    assert [row["session_key"] for row in [*first["sessions"], *rest]] == keys[::-1]


async def test_sessions_are_filtered_by_status_agent_and_time(agent: Agent, db: asyncpg.Connection) -> None:
    keys = [await agent.session("alice" if number % 3 else "bob") for number in range(30)]
    for key in keys[::2]:
        await db.execute("UPDATE session SET status = 'completed' WHERE key = $1", key)
    await db.execute("UPDATE session SET created_at = created_at - interval '1 day' WHERE id <= 10")
    await db.execute("UPDATE participant p SET created_at = s.created_at FROM session s WHERE s.id = p.session_id")
    since = quote((await db.fetchval("SELECT now() - interval '1 hour'")).isoformat())

    async def found(query: str, path: str = "sessions") -> list[str]:
        return [row["session_key"] for row in await pages(agent, f"handoff://{path}?limit=3{query}", "sessions")][::-1]

    assert await found("") == keys
    assert await found("&status=completed") == keys[::2]
    assert await found(f"&since={since}") == keys[10:]
    assert await found("&agent=bob") == keys[::3] == await found("", "agents/bob/sessions")
    assert await found("&agent=bob&status=completed") == keys[::6]
    assert await found(f"&since={since}", "agents/bob/sessions") == keys[12::3]
    assert await found(f"&agent=alice&status=active&since={since}") == [
        key for number, key in enumerate(keys) if number % 3 and number % 2 and number >= 10
    ]


async def test_a_context_is_read_in_order_page_by_page_and_by_type(agent: Agent) -> None:
    key = await agent.session()
    entries = [{"type": "decision" if number % 4 == 0 else "message", "content": f"{number}"} for number in range(30)]
    await agent.ok("update_context", agent="alice", session_key=key, entries=entries)

    seen = await pages(agent, f"handoff://context/{key}?limit=7", "entries")
    assert [entry["sequence"] for entry in seen] == list(range(1, 32))
    assert [entry["content"] for entry in seen[1:]] == [entry["content"] for entry in entries]
    decisions = await pages(agent, f"handoff://context/{key}?limit=3&type=decision", "entries")
    assert [entry["content"] for entry in decisions] == [str(number) for number in range(0, 30, 4)]


async def test_no_list_has_a_gap_or_a_repeat_while_it_grows(agent: Agent) -> None:
    key = await agent.session()
    for number in range(9):
        await agent.says(key, f"{number}")
        await agent.offer(key, priority=number % 3)
    lists = {
        f"handoff://context/{key}?limit=4": ("entries", "sequence"),
        f"handoff://sessions/{key}/lifecycle?limit=4": ("events", "id"),
        "handoff://agents/bob/inbox?limit=4": ("handoffs", "handoff_id"),
    }
    for uri, (name, number_of) in lists.items():
        whole = [row[number_of] for row in await pages(agent, uri.replace("=4", "=100"), name)]
        seen: list[int] = []
        more = ""
        while more is not None:
            page = await agent.read(uri + more)
            assert len(page[name]) <= 4
            seen += [row[number_of] for row in page[name]]
            if len(seen) < 9:  # between two pages, an entry and a more urgent offer are added
                await agent.says(key, "meanwhile")
                await agent.offer(key, priority=9)
            more = f"&cursor={quote(page['next_cursor'])}" if "next_cursor" in page else None
        assert len(seen) == len(set(seen)), uri
        assert [number for number in seen if number in whole] == whole, uri


async def test_a_page_of_large_entries_ends_by_its_bytes_but_never_empty(agent: Agent) -> None:
    key = await agent.session()
    for _ in range(3):
        await agent.says(key, "x" * 300_000)

    page = await agent.ok("get_context", agent="alice", session_key=key, view="entries", after_sequence=1)
    assert [entry["sequence"] for entry in page["entries"]] == [2]
    assert page["next_after_sequence"] == 2
    rest = await agent.ok("get_context", agent="alice", session_key=key, view="entries", after_sequence=3)
    assert "next_after_sequence" not in rest
    read = [len((await agent.read(f"handoff://context/{key}?after={after}"))["entries"]) for after in range(4)]
    assert read == [1, 1, 1, 1]  # at most 64 KiB per page, but at least one entry


async def test_lists_that_end_by_their_bytes_have_no_gap(agent: Agent, app: App, db: asyncpg.Connection) -> None:
    metadata = {"note": "x" * 16_000}
    keys = [await agent.session(metadata=metadata) for _ in range(9)]
    await agent.ok(
        "update_context",
        agent="alice",
        session_key=keys[0],
        entries=[{"type": "message", "content": f"{number}", "metadata": metadata} for number in range(9)],
    )
    handoffs = [await agent.offer(keys[0], instructions="\x01" * 12_000) for _ in range(9)]
    told = [{"fingerprint": f"{number}", "annotations": {"summary": "x" * 8_000}} for number in range(20)]
    await app.alerts.store(orjson.dumps({"alerts": told}))

    for uri, name, number_of, expected in (
        ("handoff://sessions", "sessions", "session_key", keys[::-1]),
        ("handoff://agents/alice/sessions", "sessions", "session_key", keys[::-1]),
        (f"handoff://context/{keys[0]}", "entries", "sequence", list(range(1, 11))),
        ("handoff://agents/bob/inbox", "handoffs", "handoff_id", handoffs),
    ):
        first = await agent.read(f"{uri}?limit=100")
        assert 0 < len(first[name]) < len(expected), uri
        assert [row[number_of] for row in await pages(agent, f"{uri}?limit=100", name)] == expected, uri
    assert len((await agent.read("handoff://alerts?limit=100"))["alerts"]) < 20
    assert len(await pages(agent, "handoff://alerts?limit=100", "alerts")) == 20
    seen: list[int] = []
    after: int | None = 0
    while after is not None:
        arguments = {"session_key": keys[0], "view": "entries", "limit": 100, "after_sequence": after}
        page = await agent.ok("get_context", agent="alice", **arguments)
        seen += [entry["sequence"] for entry in page["entries"]]
        after = page.get("next_after_sequence")
    assert seen == list(range(1, 11))


async def test_large_metadata_of_a_session_are_not_beside_its_brief_but_their_size_is(agent: Agent) -> None:
    large, small = await agent.session(metadata={"note": "x" * 2_000}), await agent.session(metadata={"note": "x"})

    beside = (await agent.ok("get_context", agent="alice", session_key=large))["session"]
    assert ("metadata" in beside, beside["metadata_bytes"]) == (False, 2_011)
    assert (await agent.ok("get_context", agent="alice", session_key=small))["session"]["metadata"] == {"note": "x"}
    whole = await agent.ok("get_context", agent="alice", session_key=large, view="entries")
    assert whole["session"]["metadata"] == {"note": "x" * 2_000}


async def test_who_changes_a_handoff_gets_its_long_texts_cut_and_others_get_them_whole(agent: Agent) -> None:
    key = await agent.session()
    long = "x" * 1_001
    offered = await agent.ok("request_handoff", agent="alice", session_key=key, target_agent="bob", instructions=long)
    assert (offered["instructions"], offered["cut"]) == ("x" * 1_000 + "…", True)
    held = {"agent": "bob", "handoff_id": offered["handoff_id"], "token": await agent.accept(offered["handoff_id"])}
    assert (await agent.ok("renew_handoff", **held))["instructions"] == long

    done = await agent.ok("resolve_handoff", **held, action="complete", note=long)

    assert (len(done["instructions"]), len(done["outcome"])) == (1_001, 1_001)
    assert (await agent.read(f"handoff://handoffs/{held['handoff_id']}"))["outcome"] == long


async def test_a_summary_has_participants_handoffs_sizes_and_key_points(agent: Agent, db: asyncpg.Connection) -> None:
    key = await agent.session()
    entries = [
        {"type": "message", "content": "first"},
        {"type": "decision", "content": "use Postgres"},
        {"type": "decision", "content": "use SQLite"},
        {"type": "message", "content": "last"},
    ]
    await agent.ok("update_context", agent="alice", session_key=key, entries=entries)
    change = [{"type": "decision", "content": "use Postgres 18", "supersedes": [3, 4]}]
    await agent.ok("update_context", agent="alice", session_key=key, entries=change)
    handoff_id = await agent.offer(key)
    await agent.accept(handoff_id)
    await db.execute("UPDATE session SET created_at = last_activity_at - interval '90 seconds', version = version + 1")

    summary = await agent.read(f"handoff://summary/{key}")

    assert summary["handoffs"] == [
        {"handoff_id": handoff_id, "state": "accepted", "sender": "alice", "target_agent": "bob", "holder": "bob"}
    ]
    assert summary["by_type"] == {"message": 2, "system": 1, "decision": 3}
    assert (summary["entries"], summary["participants"], summary["minutes"]) == (6, {"alice": 6}, 1.5)
    assert [point["text"] for point in summary["key_points"]] == ["use Postgres 18"]
    assert (summary["first_message"]["text"], summary["last_message"]["text"]) == ("first", "last")
    assert summary["content_bytes"] == await db.fetchval("SELECT sum(size_bytes) FROM context_entry")


async def test_a_lifecycle_is_paged_in_order(agent: Agent) -> None:
    key = await agent.session()
    token = await agent.accept(handoff_id := await agent.offer(key))
    for _ in range(5):
        await agent.ok("renew_handoff", agent="bob", handoff_id=handoff_id, token=token)

    events = await pages(agent, f"handoff://sessions/{key}/lifecycle?limit=3", "events")

    assert [event["id"] for event in events] == sorted(event["id"] for event in events)
    assert [event["kind"] for event in events] == [
        "session.created",
        "session.expiration_scheduled",
        "handoff.offered",
        "handoff.accepted",
        *["handoff.renewed"] * 5,
    ]


async def test_names_in_a_uri_can_be_percent_encoded(agent: Agent) -> None:
    key = await agent.session(session_key="team:a@b+c=d~e")

    for uri in (f"handoff://sessions/{key}", f"handoff://sessions/{quote(key, safe='')}"):
        assert (await agent.read(uri))["session_key"] == key


async def test_a_uri_is_compared_as_uris_are(agent: Agent) -> None:
    key = await agent.session(session_key="Team-1")

    for uri in (f"HANDOFF://SESSIONS/{key}", "Handoff://sessions/Team%2d1/%6Cifecycle", "handoff://sessions/%54eam-1"):
        assert (await agent.read(uri))["session_key"] == key, uri


async def test_a_plus_in_a_query_is_a_plus(agent: Agent) -> None:
    key = await agent.session()
    east = timezone(timedelta(hours=14))

    for sign, found in ((-1, [key]), (1, [])):
        since = (datetime.now(east) + sign * timedelta(minutes=5)).isoformat()
        assert "+14:00" in since
        for written in (since, quote(since)):
            sessions = (await agent.read(f"handoff://sessions?since={written}"))["sessions"]
            assert [session["session_key"] for session in sessions] == found


async def test_open_handoffs_are_listed_by_how_long_they_wait_and_only_to_those_who_may_see_them(
    app: App, agent: Agent
) -> None:
    key = await agent.session()
    offers = [await agent.offer(key, to=f"bob-{n}") for n in range(5)]
    held = [offers.pop(1), offers.pop(2)]
    for number, lease_s in zip(held, (600, 300), strict=True):
        holder = (await agent.read(f"handoff://handoffs/{number}"))["target_agent"]
        await agent.accept(number, agent=holder, lease_seconds=lease_s)

    for limit in (1, 2, 100):
        listed = await pages(agent, f"handoff://handoffs?limit={limit}", "handoffs")
        assert [it["handoff_id"] for it in listed] == offers
        listed = await pages(agent, f"handoff://handoffs?state=held&limit={limit}", "handoffs")
        assert [it["handoff_id"] for it in listed] == held[::-1]
    for name, sees in (("alice", offers), ("bob-0", offers), ("eve", [])):
        read = await read_resource(app, Caller(name, ALL_SCOPES - {"admin"}), "handoff://handoffs", Arrival(monotonic()))
        assert not isinstance(read, Failure)
        assert [it["handoff_id"] for it in orjson.loads(read[0])["handoffs"]] == sees
