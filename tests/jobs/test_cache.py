"""What is about to be read is in the cache before it is read, and what has expired takes no memory."""

import asyncpg

from handoff.brief import TOKENS_DEFAULT
from handoff.cache import LocalCache, brief_key
from handoff.context import App
from handoff.jobs import cache
from handoff.telemetry import metrics
from tests.agents import Agent

PUT = ("in-process", "put", "stored")


async def test_the_brief_of_a_session_on_offer_that_has_changed_is_composed_before_it_is_read(
    app: App, agent: Agent, db: asyncpg.Connection
) -> None:
    changes, stays, not_offered = await agent.session(), await agent.session(), await agent.session()
    for key in (changes, stays):
        await agent.offer(key)
    before = metrics.CACHE_DURATION.count(*PUT)
    await cache.run(app)  # what has not changed since it was offered is there already
    assert metrics.CACHE_DURATION.count(*PUT) == before
    await agent.says(changes, "One more thing.")
    await agent.says(not_offered, "Nobody waits for this.")
    state = await db.fetchrow("SELECT * FROM session WHERE key = $1", changes)
    assert state is not None
    key = brief_key(dict(state), TOKENS_DEFAULT)
    assert await app.cache.get(key) is None

    before = metrics.CACHE_DURATION.count(*PUT)
    await cache.run(app)
    await cache.run(app)  # it is there: nothing more to do

    assert metrics.CACHE_DURATION.count(*PUT) == before + 1
    prepared = await app.cache.get(key)
    assert prepared is not None
    assert "One more thing." in str(prepared)
    read = await agent.ok("get_context", agent="bob", session_key=changes, view="brief")
    assert metrics.CACHE_DURATION.count(*PUT) == before + 1
    assert read["brief"]["parts"] == prepared["parts"]


async def test_what_has_expired_is_dropped_and_nothing_else() -> None:
    kept = LocalCache(10)
    await kept.put("over", 1, -1)
    await kept.put("fresh", 2, 60)
    assert (kept.drop_expired(), kept.drop_expired()) == (1, 0)
    assert await kept.get("fresh") == 2
