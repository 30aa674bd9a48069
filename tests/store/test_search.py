"""What a search reads is bounded, and it says so."""

import asyncpg

from handoff.store.search import RANKED_MAX
from tests.agents import Agent

FILL = """
    WITH s AS (UPDATE session SET last_sequence = $2 WHERE key = $1 RETURNING id)
    INSERT INTO context_entry (session_id, sequence, type, content, size_bytes, content_hash, author, created_at)
    SELECT id, q, 'message', CASE WHEN q = 5 THEN 'needle' ELSE 'hay' END, 20, sha256('x'), 'alice', now()
      FROM s, generate_series(2, $2) q
"""


async def test_only_the_newest_of_many_matches_are_ranked_and_a_rare_old_one_is_found(
    agent: Agent, db: asyncpg.Connection
) -> None:
    key, other = await agent.session(), await agent.session("mallory")
    for each in (key, other):
        await db.execute(FILL, each, 9_000)

    for scope in ({"session_key": key}, {}):
        found = await agent.ok("search_context", agent="alice", query="hay", limit=50, **scope)
        assert f"newest {RANKED_MAX} matches" in found["bounded"]
        assert {(match["session_key"], match["sequence"] > 9_000 - RANKED_MAX) for match in found["matches"]} == {
            (key, True)
        }
        rare = await agent.ok("search_context", agent="alice", query="needle", **scope)
        assert [(match["session_key"], match["sequence"]) for match in rare["matches"]] == [(key, 5)]
        assert "bounded" not in rare
        assert (await agent.ok("search_context", agent="alice", query="the", **scope))["matches"] == []
