"""One handoff between two agents, each with its own trace: the traces together tell the story of the handoff."""

from typing import Any

from tests.agents import Agent
from tests.stack.bundle import Stack
from tests.stack.conftest import ADA_TOKEN

SENDER = ("5e4d" * 8, "a" * 16)
RECEIVER = ("7ec1" * 8, "b" * 16)


async def call(agent: Agent, of: tuple[str, str], tool: str, **arguments: Any) -> dict[str, Any]:
    """Call a tool as part of a trace."""
    meta: Any = {"traceparent": f"00-{of[0]}-{of[1]}-01"}
    result = await agent.client.call_tool(tool, arguments, meta=meta)
    assert not result.is_error, result.content
    return result.structured_content or {}


def attributes(of: dict[str, Any]) -> dict[str, Any]:
    return {it["key"]: next(iter(it["value"].values())) for it in of.get("attributes", [])}


def links(span: dict[str, Any]) -> set[tuple[str, str]]:
    return {(link["traceId"], link["spanId"]) for link in span.get("links", [])}


async def test_traces_show_a_handoff_as_sender_wait_and_receiver(stack: Stack) -> None:
    async with stack.agent(ADA_TOKEN) as ada, stack.agent(stack.secret("operator-token")) as operator:
        key = (await call(ada, SENDER, "register_session"))["session_key"]
        offer = {"session_key": key, "target_agent": "operator", "instructions": "Go on."}
        handoff_id = (await call(ada, SENDER, "request_handoff", **offer))["handoff_id"]
        taken = await call(operator, RECEIVER, "accept_handoff", handoff_id=handoff_id)
        token = taken["handoff"]["token"]
        done = {"handoff_id": handoff_id, "token": token, "action": "complete", "note": "done"}
        await call(operator, RECEIVER, "resolve_handoff", **done)

    def story(of: tuple[str, str], *expected: str) -> dict[str, dict[str, Any]] | None:
        named = {span["name"]: span for span in stack.trace(of[0])}
        return named if set(expected) <= set(named) else None

    sent = stack.eventually(lambda: story(SENDER, "tools/call request_handoff", "handoff wait", "handoff work"))
    received = stack.eventually(lambda: story(RECEIVER, "tools/call accept_handoff", "tools/call resolve_handoff"))
    offered, wait, work = (sent[name] for name in ("tools/call request_handoff", "handoff wait", "handoff work"))
    accepted, completed = received["tools/call accept_handoff"], received["tools/call resolve_handoff"]
    assert offered["parentSpanId"] == SENDER[1]
    assert accepted["parentSpanId"] == completed["parentSpanId"] == RECEIVER[1]
    assert wait["parentSpanId"] == work["parentSpanId"] == offered["spanId"]
    assert (offered["traceId"], offered["spanId"]) in links(accepted) & links(completed)
    assert links(wait) == {(accepted["traceId"], accepted["spanId"])}
    assert links(work) == {(completed["traceId"], completed["spanId"])}
    assert wait["endTimeUnixNano"] == work["startTimeUnixNano"]
    assert attributes(wait)["handoff.id"] == attributes(work)["handoff.id"] == str(handoff_id)
    found = stack.psql(
        "grafana", stack.secret("database-grafana"), "SELECT trace_id FROM reporting.handoff ORDER BY id DESC LIMIT 1"
    )
    assert found == SENDER[0]  # so that a panel that lists handoffs can link to the trace
