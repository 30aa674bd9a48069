"""Content stays in Postgres: a word that passes through every tool is found there and nowhere else."""

from time import time

import httpx2
import pytest

from handoff.server.catalog import TOOLS
from tests.agents import Agent
from tests.stack.bundle import ANSWER_S, Failed, Stack
from tests.stack.conftest import ADA_TOKEN

WORD = "rosebudrosebud"
# Names the files that contain a word. Jaeger's have gigabytes of zeros, which grep would take for one line.
LOOK_FOR = """
find /volume -type f | while read -r file; do
    if tr -d '\\000' <"$file" | grep -q "$0"; then echo "$file"; fi
done
"""


async def use_every_tool(ada: Agent, operator: Agent) -> None:
    used: set[str] = set()

    async def ok(agent: Agent, tool: str, **arguments: object) -> dict[str, object]:
        used.add(tool)
        return await agent.ok(tool, **arguments)

    async def refused(agent: Agent, tool: str, **arguments: object) -> None:
        used.add(tool)
        await agent.refused(tool, **arguments)

    session = await ok(ada, "register_session", metadata={"about": WORD})
    key = session["session_key"]
    entry = {"type": "message", "content": f"what {WORD} said", "metadata": {"path": WORD}}
    await ok(ada, "update_context", session_key=key, entries=[entry], idempotency_key=f"{WORD}-{key}")
    await refused(ada, "update_context", session_key=key, entries=[{"type": WORD, "content": WORD}])
    await ok(ada, "get_context", session_key=key)
    await ok(ada, "search_context", query=WORD)
    await refused(ada, "close_session", session_key="nobody-knows")  # a key is not content, so the log may name it
    for outcome in ("reject", "complete"):
        offer = await ok(ada, "request_handoff", session_key=key, target_agent="operator", instructions=WORD)
        await ok(operator, "get_inbox")
        if outcome == "reject":
            await ok(operator, "resolve_handoff", handoff_id=offer["handoff_id"], action="reject", note=WORD)
            continue
        taken = await ok(operator, "accept_handoff", handoff_id=offer["handoff_id"])
        token = taken["handoff"]["token"]  # pyright: ignore[reportIndexIssue] - JSON
        held = {"handoff_id": offer["handoff_id"], "token": token}
        await ok(operator, "renew_handoff", **held)
        await refused(operator, "renew_handoff", handoff_id=offer["handoff_id"], token=10**6)
        await ok(operator, "resolve_handoff", **held, action="complete", note=WORD)
    await ok(ada, "close_session", session_key=key)
    await ada.read(f"handoff://summary/{key}")
    assert used == {tool.name for tool in TOOLS}


async def test_a_word_that_passes_through_every_tool_is_found_only_in_postgres(stack: Stack) -> None:
    async with stack.agent(ADA_TOKEN) as ada, stack.agent(stack.secret("operator-token")) as operator:
        await use_every_tool(ada, operator)
        mark = await ada.session("ada")
        await ada.says(mark, "when this line has arrived, so have all earlier ones", "ada")
        said = time()
    its_call = f'{{service_name="handoff"}} | json | event="tool.call" | session="{mark}"'
    (last,) = stack.eventually(lambda: stack.logql(its_call))
    stack.eventually(lambda: stack.trace(last["trace_id"]))
    counted = 'mcp_server_operation_duration_seconds_count{gen_ai_tool_name="update_context"}'
    stack.eventually(lambda: stack.promql(f"timestamp({counted}) > {said}"))

    dump = stack.compose("exec", "-T", "postgres", "pg_dumpall", "-h", "/var/run/postgresql", "-U", "postgres")
    assert dump.count(WORD) >= 8, "the word is not in Postgres, so the test proves nothing"
    # Check container output first, because Loki logs the queries that it receives.
    assert WORD not in stack.compose("logs", "--no-log-prefix", "--tail=20000")
    assert stack.logql(f'{{service_name=~".+"}} |= "{WORD}"') == []
    everything = httpx2.get(
        stack.url("PROMETHEUS_PORT", "/federate"), params={"match[]": '{__name__=~".+"}'}, timeout=ANSWER_S
    ).text
    assert "mcp_server_operation_duration_seconds_count" in everything
    assert WORD not in everything
    traces = {
        it["trace_id"] for it in stack.logql('{service_name="handoff"} | json | event="tool.call"') if "trace_id" in it
    }
    shown = [str(span) for trace in sorted(traces)[:400] for span in stack.trace(trace)]
    assert len(shown) > 20
    assert WORD not in "".join(shown)
    assert stack.in_volume("postgres", "sh", "-c", LOOK_FOR, WORD).strip() != ""
    for volume in ("jaeger", "loki", "prometheus", "otel-collector"):
        found = stack.in_volume(volume, "sh", "-c", LOOK_FOR, WORD)
        assert found.strip() == "", f"{volume}: {found}"


async def test_the_views_that_grafana_can_read_have_no_content(stack: Stack) -> None:
    async with stack.agent(ADA_TOKEN) as ada, stack.agent(stack.secret("operator-token")) as operator:
        await use_every_tool(ada, operator)
    password = stack.secret("database-grafana")

    def ask(statement: str) -> str:
        return stack.psql("grafana", password, statement)

    tables = ask(
        "SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'v', 'm', 'p') AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'"
        " AND has_table_privilege(c.oid, 'SELECT')"
    ).split()
    assert "reporting.handoff" in tables
    assert all(name.startswith("reporting.") for name in tables)
    for name in tables:
        assert int(ask(f"SELECT count(*) FROM {name}")) >= 0
        assert ask(f"SELECT count(*) FROM {name} t WHERE t::text LIKE '%{WORD}%'") == "0", name
    for refused in ("SELECT * FROM public.context_entry", "CREATE TABLE public.x ()", "CREATE TEMP TABLE x ()"):
        with pytest.raises(Failed, match=r"permission denied|read-only transaction"):
            ask(refused)
