"""Over stdio, standard output carries nothing but the protocol."""

import asyncio
import json
import subprocess
from time import monotonic
from typing import Any

import anyio
import asyncpg
import pytest
from mcp import Client, StdioServerParameters

from handoff.context import App
from handoff.server import channel
from handoff.server.channel import takes_channel
from tests.agents import LONG_WAIT_S, Agent, until
from tests.processes import HANDOFF, PATIENCE_S, environment, over_stdio
from tests.requests import body


def spoken_to(database_url: str, *arguments: str, **settings: object) -> subprocess.Popen[str]:
    """A server over stdio, as a desktop client starts it."""
    return subprocess.Popen(
        [HANDOFF, "serve", "--stdio", *arguments],
        env=environment(database_url=database_url, log_level="debug", **settings),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def exchange(database_url: str, *requests: dict[str, Any], arguments: tuple[str, ...] = ()) -> tuple[list[Any], str]:
    """The lines that a server wrote to standard output, parsed, and what it wrote to standard error."""
    with spoken_to(database_url, *arguments) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write("".join(json.dumps(request) + "\n" for request in requests))
        server.stdin.flush()
        lines = [server.stdout.readline() for _ in requests]
        rest, logged = server.communicate(timeout=PATIENCE_S)
    assert server.returncode == 0, logged
    return [json.loads(line) for line in [*lines, *rest.splitlines()]], logged


def call(number: int, tool: str, **arguments: Any) -> dict[str, Any]:
    return body("tools/call", name=tool, arguments=arguments) | {"id": number}


def test_standard_output_carries_only_the_protocol_and_logs_go_to_standard_error(empty_database_url: str) -> None:
    answers, logged = exchange(
        empty_database_url,
        call(1, "register_session", agent="alice", session_key="s"),
        call(2, "update_context", agent="alice", session_key="s", entries=[]),
    )

    assert sorted(answer["id"] for answer in answers) == [1, 2]
    assert all(answer["jsonrpc"] == "2.0" for answer in answers)
    assert "migration.applied" in logged
    assert all(json.loads(line)["event"] for line in logged.splitlines())


def test_the_agents_name_can_be_set_on_the_command_line(database_url: str) -> None:
    answers, _ = exchange(
        database_url,
        call(1, "register_session", session_key="s"),
        call(2, "register_session", agent="somebody-else"),
        arguments=("--agent", "claude-desktop"),
    )

    said = {answer["id"]: json.loads(answer["result"]["content"][0]["text"]) for answer in answers}
    assert said[1]["owner"] == "claude-desktop"
    assert said[2]["error"]["code"] == "agent_mismatch"


def test_lines_that_are_not_requests_do_no_harm_and_every_response_is_protocol(database_url: str) -> None:
    noise = [b"", b"{", b"null", b"[]", b'"text"', b"\xff\xfe", b'{"jsonrpc":"2.0"}', b"x" * 100_000, b"[" * 5_000]
    good = [call(number, "get_inbox", agent="bob") for number in (1, 2)]
    with over_stdio(database_url) as (server, stdin, stdout):
        lines = [json.dumps(good[0]).encode(), *noise, json.dumps(good[1]).encode()]
        stdin.write(b"\n".join(lines) + b"\n")
        stdin.flush()
        said: list[dict[str, Any]] = []
        while not {1, 2} <= {answer.get("id") for answer in said}:
            said.append(json.loads(stdout.readline()))
        _, logged = server.communicate(timeout=PATIENCE_S)

    assert all(answer["jsonrpc"] == "2.0" and ("error" in answer or "result" in answer) for answer in said)
    assert [answer["result"]["isError"] for answer in said if answer.get("id") in (1, 2)] == [False, False]
    assert b"Traceback" not in logged
    assert server.returncode == 0


def test_who_closes_its_end_is_not_waited_for(database_url: str) -> None:
    with spoken_to(database_url) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(call(1, "get_inbox", agent="bob")) + "\n")
        server.stdin.flush()
        server.stdout.readline()  # it serves
        waiting = call(2, "get_inbox", agent="bob", wait_seconds=LONG_WAIT_S)
        started = monotonic()
        server.communicate(json.dumps(waiting) + "\n", timeout=PATIENCE_S)

    assert (server.returncode, monotonic() - started < LONG_WAIT_S) == (0, True)  # before the wait's own end


async def test_the_public_client_works_over_stdio(database_url: str) -> None:
    server = StdioServerParameters(
        command=str(HANDOFF), args=["serve", "--stdio"], env=environment(database_url=database_url)
    )
    async with Client(server) as client:
        agent = Agent(client)
        key = await agent.session()
        handoff_id = await agent.offer(key)
        assert await agent.accept(handoff_id) == 1
        assert (await agent.read(f"handoff://sessions/{key}"))["owner"] == "alice"


@pytest.mark.parametrize("settings", [{}, {"jobs": "true"}])
async def test_it_runs_the_jobs_only_if_it_is_told_to(
    database_url: str, db: asyncpg.Connection, settings: dict[str, str]
) -> None:
    with spoken_to(database_url, **settings) as server:
        try:
            with anyio.fail_after(PATIENCE_S):
                while await db.fetchval("SELECT count(*) FROM instance") == 0:
                    await anyio.sleep(0.05)
            assert await db.fetchval("SELECT does_jobs FROM instance") == bool(settings)
        finally:
            server.communicate(timeout=PATIENCE_S)


async def test_offers_are_announced_through_a_channel_to_a_client_that_has_one(agent: Agent, database_url: str) -> None:
    key = await agent.session()
    waiting = await agent.offer(key, instructions="the launch code is rosebud")
    about = {"clientInfo": {"name": "any", "version": "1"}, "protocolVersion": "2025-11-25"}
    declared = {"capabilities": {"experimental": {"claude/channel": {}}}}
    with spoken_to(database_url, "--agent", "bob") as server:
        assert server.stdin is not None
        assert server.stdout is not None

        async def line() -> dict[str, Any]:
            assert server.stdout is not None
            return json.loads(await anyio.to_thread.run_sync(server.stdout.readline))

        for message in (
            {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {**about, **declared}},
            {"jsonrpc": "2.0", "method": "notifications/initialized"},
        ):
            server.stdin.write(json.dumps(message) + "\n")
        server.stdin.flush()
        assert (await line())["result"]["capabilities"]["experimental"] == {"claude/channel": {}}
        first = await line()
        made = await agent.offer(key)
        second = await line()
        rest, _ = await anyio.to_thread.run_sync(server.communicate)

    assert [it["method"] for it in (first, second)] == ["notifications/claude/channel"] * 2
    assert [it["params"]["meta"]["handoff_id"] for it in (first, second)] == [str(waiting), str(made)]
    assert f"Handoff {waiting} is offered to you by alice." in first["params"]["content"]
    assert "rosebud" not in json.dumps(first), "what another agent wrote is read when the model asks for it"
    assert rest == "", "each offer once"


async def test_more_offers_than_a_page_has_are_all_announced_the_most_urgent_first(
    app: App, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "_PAGE", 2)
    key, sent = await agent.session(), list[Any]()
    held = await agent.offer(key, priority=9)
    await agent.accept(held)  # has a place on the first page
    waiting = [await agent.offer(key, priority=priority) for priority in (1, 2, 3, 4)]
    announcing = asyncio.create_task(channel.announce(app, "bob", sent.append))
    await until(lambda: len(sent) == 4)
    made = [await agent.offer(key) for _ in range(5)]
    await until(lambda: len(sent) == 9)
    announcing.cancel()
    assert [int(it.params["meta"]["handoff_id"]) for it in sent[:4]] == waiting[::-1]
    assert {int(it.params["meta"]["handoff_id"]) for it in sent[4:]} == set(made)


@pytest.mark.parametrize(
    ("params", "has_one"),
    [
        ({"clientInfo": {"name": "claude-code"}, "capabilities": {"roots": {}}}, True),
        ({"clientInfo": {"name": "cursor"}, "capabilities": {"experimental": {"claude/channel": {}}}}, True),
        ({"clientInfo": {"name": "cursor"}, "capabilities": {"experimental": {"other": {}}}}, False),
        ({"clientInfo": [], "capabilities": {"experimental": []}}, False),
        (None, False),
    ],
)
def test_only_clients_that_have_channels_are_told(params: dict[str, Any] | None, *, has_one: bool) -> None:
    assert takes_channel(params) is has_one
