"""How often each call goes to the database, and that nothing else is asked while a transaction is open."""

from typing import Any

import pytest

from handoff.cache import LocalCache
from handoff.context import App
from handoff.telemetry import metrics
from tests.agents import Agent

# Statements of one call with an idempotency key, BEGIN and COMMIT included. A key takes two of them.
STATEMENTS_MAX = {
    "register_session": 7,
    "update_context": 1,
    "get_context": 7,
    "request_handoff": 15,  # six of them after the commit, for the preview of the brief
    "get_inbox": 2,
    "accept_handoff": 13,
    "renew_handoff": 6,
    "resolve_handoff": 6,
    "close_session": 8,
}


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the statements that have ended since the list was cleared."""
    names: list[str] = []
    real = metrics.statement_ended

    def counted(name: str, *ended: Any) -> None:
        names.append(name)
        real(name, *ended)

    monkeypatch.setattr(metrics, "statement_ended", counted)
    return names


async def test_no_call_takes_more_statements_than_it_needs(agent: Agent, statements: list[str]) -> None:
    taken: dict[str, list[str]] = {}

    async def call(tool: str, **arguments: Any) -> dict[str, Any]:
        statements.clear()
        answer = await agent.ok(tool, **arguments)
        taken[tool] = max(taken.get(tool, []), statements.copy(), key=len)
        return answer

    key = (await call("register_session", agent="alice", idempotency_key="1"))["session_key"]
    entry = {"type": "message", "content": "x"}
    await call("update_context", agent="alice", session_key=key, entries=[entry], idempotency_key="2")
    await call("get_context", agent="alice", session_key=key)
    await agent.ok("get_inbox", agent="bob")
    offer = {"agent": "alice", "session_key": key, "target_agent": "bob", "instructions": "Go on."}
    for request_type in ("context_transfer", "full_handoff"):
        asked = offer | {"request_type": request_type, "idempotency_key": f"3 {request_type}"}
        handoff_id = (await call("request_handoff", **asked))["handoff_id"]
        await call("get_inbox", agent="bob", wait_seconds=1)
        held = {"agent": "bob", "handoff_id": handoff_id}
        accepted = await call("accept_handoff", **held, idempotency_key=f"4 {request_type}")
        held["token"] = accepted["handoff"]["token"]
        await call("renew_handoff", **held, idempotency_key=f"5 {request_type}")
        await call("resolve_handoff", **held, action="block", note="waits", idempotency_key=f"6 {request_type}")
        await call("renew_handoff", **held, idempotency_key=f"7 {request_type}")
        await call("resolve_handoff", **held, action="complete", idempotency_key=f"8 {request_type}")
    await call("close_session", agent="bob", session_key=key, idempotency_key="9")

    assert {tool: len(names) for tool, names in taken.items() if len(names) > STATEMENTS_MAX[tool]} == {}, taken
    assert set(taken) == set(STATEMENTS_MAX)


async def test_the_cache_is_never_asked_while_a_connection_to_the_database_is_held(
    agent: Agent, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []

    def watched(name: str) -> None:
        real = getattr(LocalCache, name)

        async def watching(*arguments: Any) -> Any:
            held.append(app.pool.get_size() - app.pool.get_idle_size())
            return await real(*arguments)

        monkeypatch.setattr(LocalCache, name, watching)

    watched("get")
    watched("put")
    key = await agent.session()
    for _ in range(2):  # a miss, then a hit
        await agent.ok("get_context", agent="alice", session_key=key)
        await agent.read(f"handoff://summary/{key}")
    await agent.accept(await agent.offer(key))

    assert len(held) == 8
    assert set(held) == {0}
