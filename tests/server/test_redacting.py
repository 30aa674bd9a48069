"""Secrets in what agents write: left out before anything is stored, counted, and told to who wrote them."""

import asyncio
from typing import Any

import asyncpg
from mcp import Client

from handoff import redaction
from handoff.app import open_app
from handoff.context import App, Call
from handoff.model import Caller
from handoff.server.catalog import ADMIN_TOOLS, TOOLS
from handoff.server.protocol import build_server
from handoff.server.redacting import may_hold_secret, without_secrets
from handoff.settings import Settings
from handoff.telemetry import metrics
from handoff.telemetry.logs import flush_logs
from handoff.tools.context import UpdateContext
from handoff.tools.contract import READ_BY_OTHERS
from tests.agents import Agent
from tests.telemetry.test_metrics import Change
from tests.test_policies import change, operating
from tests.test_redaction import SECRETS

TOKEN, KEY = SECRETS["github_token"], SECRETS["aws_access_key"]
TABLES = """
    SELECT oid::regclass::text AS name FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
"""
NOT_READ_BY_OTHERS = {
    "idempotency_key",
    "query",
    "mark",
    "cursor",
    "job",
    "series",
    "reason",
    "retention_policy",
    "changes",
    "document",
}


async def everything(db: asyncpg.Connection) -> str:
    """All that the database holds, as text."""
    tables = await db.fetch(TABLES)
    return "\n".join([str(await db.fetch(f"SELECT t::text FROM {table['name']} t")) for table in tables])


async def test_a_secret_is_left_out_of_everything_that_agents_write_and_others_read(
    agent: Agent, db: asyncpg.Connection, logged: list[dict[str, Any]]
) -> None:
    counted = Change(metrics.SECRETS_REDACTED)
    key = await agent.session(metadata={"deploy_password": "Tr0ub4dor-3", "nested": [{"url": f"use {TOKEN}"}]})
    entry = {"type": "decision", "content": f"Deploy with {TOKEN}.", "metadata": {"question": True, "why": f"{KEY} is old"}}
    written = await agent.ok(
        "update_context", agent="alice", session_key=key, entries=[entry, entry], idempotency_key="once"
    )
    again = await agent.ok("update_context", agent="alice", session_key=key, entries=[entry, entry], idempotency_key="once")
    offered = await agent.ok(
        "request_handoff", agent="alice", session_key=key, target_agent="bob", instructions=f"Log in with {TOKEN}"
    )
    token = await agent.accept(offered["handoff_id"])
    noted = await agent.ok(
        "request_handoff", agent="alice", session_key=key, handoff_id=offered["handoff_id"], instructions=f"No, with {KEY}"
    )
    done = await agent.ok(
        "resolve_handoff", agent="bob", handoff_id=offered["handoff_id"], token=token, action="complete", note=f"Used {KEY}"
    )

    assert written["secrets_redacted"] == {"github_token": 2, "aws_access_key": 2}
    assert again == {**written, "replayed": True}
    assert counted() == {"handoff.secrets.redacted": 9}
    assert offered["secrets_redacted"] == {"github_token": 1}
    assert noted["secrets_redacted"] == done["secrets_redacted"] == {"aws_access_key": 1}
    page = await agent.ok("get_context", agent="alice", session_key=key, view="entries", after_sequence=1)
    assert page["entries"][0]["content"] == "Deploy with [redacted: github_token]."
    assert page["entries"][0]["metadata"] == {"question": True, "why": "[redacted: aws_access_key] is old"}
    assert page["entries"][0]["content_hash"] == written["content_hashes"][0]
    assert page["session"]["metadata"] == {
        "deploy_password": "[redacted: password]",
        "nested": [{"url": "use [redacted: github_token]"}],
    }
    brief = await agent.ok("get_context", agent="bob", session_key=key)
    assert "[redacted: github_token]" in str(brief)

    flush_logs()
    held = await everything(db) + str(logged)
    assert "[redacted: aws_access_key]" in held
    assert [line["kinds"] for line in logged if line["event"] == "secrets.redacted"][1] == {
        "github_token": 2,
        "aws_access_key": 2,
    }
    for secret in (TOKEN, KEY, "Tr0ub4dor-3"):
        assert secret not in held


async def test_a_refused_call_counts_no_secret_and_its_error_does_not_repeat_one(
    agent: Agent, logged: list[dict[str, Any]]
) -> None:
    key = await agent.session()
    counted = Change(metrics.SECRETS_REDACTED)
    refused = await agent.refused(
        "update_context", agent="mallory", session_key=key, entries=[{"type": "message", "content": TOKEN}]
    )
    too_long = "password=abc123 " * 1_249 + "password=abc12"
    longer = await agent.refused(
        "request_handoff", agent="alice", session_key=key, target_agent="bob", instructions=too_long
    )

    assert refused["code"] == "session_not_found"
    assert longer["code"] == "invalid_arguments"
    assert "at most 20,000 characters" in longer["message"]
    assert counted() == {"handoff.secrets.redacted": 0}
    flush_logs()
    assert not [line for line in logged if line["event"] == "secrets.redacted"]
    assert TOKEN not in str(logged)


async def test_a_policy_can_keep_secrets_and_so_can_the_service(agent: Agent, settings: Settings) -> None:
    async with operating(settings) as (_, operator):
        await change(operator, {"retention": {"short": {"keeps_secrets": True}}})
    kept = await agent.session(retention_policy="short", metadata={"password": "Tr0ub4dor-3"})
    told = await agent.says(kept, TOKEN)
    handoff = await agent.offer(kept, instructions=TOKEN)
    await agent.ok("resolve_handoff", agent="bob", handoff_id=handoff, action="reject", note=KEY)
    other = await agent.says(await agent.session(), TOKEN)

    assert "secrets_redacted" not in told
    assert other["secrets_redacted"] == {"github_token": 1}
    page = await agent.ok("get_context", agent="alice", session_key=kept, view="entries", after_sequence=1)
    assert page["entries"][0]["content"] == TOKEN
    assert page["session"]["metadata"] == {"password": "Tr0ub4dor-3"}
    assert (await agent.read(f"handoff://handoffs/{handoff}"))["reason"] == KEY

    async with open_app(settings.model_copy(update={"redaction": False})) as app, Client(build_server(app)) as client:
        plain = Agent(client)
        assert "secrets_redacted" not in await plain.says(await plain.session("carol"), TOKEN, agent="carol")


async def test_other_calls_go_on_while_a_long_entry_is_redacted(app: App) -> None:
    redaction.compiled()
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    long = ("See TestUtf8InHeaders; the result was as expected, so the next step is the release. " * 13_000)[:1_000_000]
    args = UpdateContext.model_validate({"session_key": "s", "entries": [{"type": "message", "content": long}]})
    beside = asyncio.create_task(others())
    done, kinds = await without_secrets(Call(app, Caller(), 0.0), args)
    beside.cancel()

    assert may_hold_secret(args)
    assert (done, kinds) == (args, {})
    assert turns >= len(long) // redaction.PIECE_CHARS  # one after each piece


def test_every_text_that_a_tool_takes_is_redacted_or_known_not_to_be_read_by_others() -> None:
    free: set[str] = set()
    for tool in (*TOOLS, *ADMIN_TOOLS):
        schema = tool.arguments.model_json_schema()
        for name, value in schema["properties"].items():
            forms = (value, *value.get("anyOf", ()))
            if any(form.get("type") == "string" and not {"pattern", "enum", "const"} & form.keys() for form in forms) or any(
                form.get("type") == "object" for form in forms
            ):
                free.add(name)
    assert free == (READ_BY_OTHERS - {"entries", "content"}) | NOT_READ_BY_OTHERS
