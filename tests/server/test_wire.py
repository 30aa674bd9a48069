"""Over stdio every request is answered, whatever the line, and the process ends with its client."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest

from handoff.context import App
from tests.agents import LONG_WAIT_S
from tests.processes import HANDOFF, PATIENCE_S, environment, over_stdio
from tests.requests import META, headers
from tests.server.test_http import edge
from tests.server.test_stdio import call

REGISTER = json.dumps(call(0, "register_session", agent="alice", session_key="s")).encode()


def answers(database_url: str, *lines: bytes, **settings: object) -> list[dict[str, Any]]:
    """What a server that has the session `s` answers to lines, after which its input ends."""
    with over_stdio(database_url, **settings) as (server, stdin, stdout):
        stdin.write(REGISTER + b"\n")
        stdin.flush()
        assert b"owner" in stdout.readline()
        said, logged = server.communicate(b"\n".join(lines), timeout=PATIENCE_S)
        assert server.returncode == 0, logged
        assert b"Traceback" not in logged, logged
    return [json.loads(line) for line in said.splitlines()]


def line(request: dict[str, Any]) -> bytes:
    return json.dumps(request).encode()


def append(number: int, content: str) -> bytes:
    """An append whose content is written as it is."""
    entries = f'[{{"type":"message","content":"{content}"}}]'
    arguments = f'{{"agent":"alice","session_key":"s","entries":{entries}}}'
    params = f'{{"name":"update_context","arguments":{arguments},"_meta":{json.dumps(META)}}}'
    return f'{{"jsonrpc":"2.0","id":{number},"method":"tools/call","params":{params}}}'.encode()


async def test_every_line_that_is_no_request_is_answered_and_the_next_one_is_served(
    database_url: str, db: asyncpg.Connection
) -> None:
    ping = b'{"jsonrpc":"2.0","id":%s,"method":"ping"}'
    bad: list[tuple[bytes, int]] = [
        (b"not json", -32700),
        (b"{", -32700),
        (b"[" * 5_000, -32700),
        (append(2, "cut \xff").replace("\xff".encode(), b"\xff"), -32700),
        (b"\xff\xfe", -32700),
        (ping % b"null", -32600),
        (ping % b"1.5", -32600),
        (ping % b"true", -32600),
        (ping % b"[]", -32600),
        (b"[" + ping % b"3" + b"]", -32600),
        (b"[]", -32600),
        (b"null", -32600),
        (b'"text"', -32600),
        (b'{"jsonrpc":"2.0"}', -32600),
        (b"[" + b"0," * 60_000 + b"0]", -32600),
    ]
    with_id = (b'{"jsonrpc":"1.0","id":7,"method":"ping"}', b'{"id":8}', b'{"jsonrpc":"2.0","id":"\\ud800","method":"ping"}')
    said = answers(database_url, *(text for text, _ in bad), *with_id, append(9, "cut \\ud83d"), b"", append(10, "whole"))

    refused = [(said_["id"], said_["error"]["code"]) for said_ in said if "error" in said_]
    assert refused == [*((None, code) for _, code in bad), (7, -32600), (8, -32600), ("\ud800", -32602)]
    results = {said_["id"]: said_["result"] for said_ in said if "result" in said_}
    assert results.keys() == {9, 10}
    error = json.loads(results[9]["content"][0]["text"])["error"]
    assert (error["code"], "surrogate" in error["message"]) == ("invalid_arguments", True)
    stored = await db.fetch("SELECT content FROM context_entry ORDER BY sequence")
    assert [row["content"] for row in stored[1:]] == ["whole"]


async def test_a_line_beyond_its_limit_is_refused_unheld_and_the_next_one_is_served(database_url: str) -> None:
    long = b'{"jsonrpc":"2.0","id":1,"method":"' + b"x" * (1 << 21)
    said = answers(database_url, long, long + b'"}', line(call(2, "get_inbox", agent="bob")), long, body_bytes_max=1 << 20)

    assert [said_["error"]["code"] for said_ in said if "error" in said_] == [-32600] * 3
    assert [said_["id"] for said_ in said if "result" in said_] == [2]


async def test_input_that_ends_behind_many_appends_leaves_all_stored_and_all_answered(
    database_url: str, db: asyncpg.Connection
) -> None:
    said = answers(database_url, *(append(number, "x") for number in range(1, 51)))

    assert sorted(answer["id"] for answer in said) == list(range(1, 51))
    assert not any(answer["result"]["isError"] for answer in said)
    assert await db.fetchval("SELECT count(*) FROM context_entry") == 51


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_signal_ends_the_process_and_what_was_received_is_answered(database_url: str, number: signal.Signals) -> None:
    with over_stdio(database_url) as (server, stdin, stdout):
        stdin.write(line(call(1, "get_inbox", agent="bob")) + b"\n")
        stdin.flush()
        stdout.readline()  # it serves
        stdin.write(line(call(2, "get_inbox", agent="bob", wait_seconds=LONG_WAIT_S)) + b"\n")
        stdin.write(line(call(3, "get_inbox", agent="bob")) + b"\n")
        stdin.flush()
        assert json.loads(stdout.readline())["id"] == 3  # so the second one waits
        server.send_signal(number)
        assert json.loads(stdout.readline())["id"] == 2
        assert server.wait(timeout=PATIENCE_S) == 0


def test_the_process_ends_when_its_standard_output_is_closed(database_url: str) -> None:
    with over_stdio(database_url) as (server, stdin, stdout):
        stdin.write(line(call(1, "get_inbox", agent="bob")) + b"\n")
        stdin.flush()
        stdout.readline()
        stdout.close()
        assert server.wait(timeout=PATIENCE_S) == 0


STARTS_AND_DIES = """
import os, subprocess, sys
server = subprocess.Popen(sys.argv[1:], stdin=int(os.environ["IN"]), stdout=int(os.environ["OUT"]))
print(server.pid, flush=True)
sys.stdin.readline()
os._exit(9)
"""


def test_the_process_ends_with_its_parent_though_others_hold_its_standard_input(database_url: str) -> None:
    """The test itself keeps both pipes open, as a launcher between client and server does."""
    input_end, input_ = os.pipe()
    output, output_end = os.pipe()
    parent = subprocess.Popen(
        [sys.executable, "-c", STARTS_AND_DIES, str(HANDOFF), "serve", "--stdio"],
        env=environment(database_url=database_url) | {"IN": str(input_end), "OUT": str(output_end)},
        pass_fds=(input_end, output_end),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdout.readline()
    os.close(output_end)
    os.write(input_, line(call(1, "get_inbox", agent="bob")) + b"\n")
    with os.fdopen(output, "rb") as said:
        assert json.loads(said.readline())["id"] == 1
        parent.communicate(b"\n", timeout=PATIENCE_S)
        assert said.read() == b""  # the end of output: nobody has it open any more
    os.close(input_end)
    os.close(input_)


@pytest.mark.parametrize("url", ["postgresql://nobody@127.0.0.1:1/none", "postgresql:///none?host={}"])
def test_without_its_database_it_says_so_at_once_and_to_the_first_request(tmp_path: Path, url: str) -> None:
    where = f"{tmp_path}/.s.PGSQL.5432" if "{}" in url else "127.0.0.1:1"
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}
    initialize = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
    with over_stdio(url.format(tmp_path), startup_timeout_s=600) as (server, stdin, stdout):
        stdin.write(line(initialize) + b"\n")
        stdin.flush()
        said = json.loads(stdout.readline())
        _, logged = server.communicate(timeout=PATIENCE_S)  # which ends its input

    assert (said["id"], said["error"]["code"]) == (1, -32603)
    assert f"The database at {where} does not answer" in said["error"]["message"]
    assert f"The database at {where} does not answer".encode() in logged
    assert b"Traceback" not in logged
    assert b"nobody" not in logged


def test_a_database_that_refuses_is_told_of_and_ends_the_process(database_url: str) -> None:
    with over_stdio(database_url.replace("/test_", "/missing_")) as (server, stdin, stdout):
        stdin.write(line(call(1, "get_inbox", agent="bob")) + b"\n")
        stdin.flush()
        assert "does not answer" in json.loads(stdout.readline())["error"]["message"]
        assert server.wait(timeout=PATIENCE_S) == 1


@pytest.mark.parametrize("era", ["2025-03-26", "2025-06-18", "2026-07-28"])
@pytest.mark.parametrize(
    "text",
    [
        '{"jsonrpc":"2.0","id":null,"method":"tools/list"}',
        '{"jsonrpc":"2.0","id":1.5,"method":"ping"}',
        '[{"jsonrpc":"2.0","id":1,"method":"ping"}]',
        '"text"',
        "{}",
        '{"jsonrpc":"1.0","id":null,"method":"ping"}',
    ],
)
async def test_http_refuses_what_is_no_message_in_every_era(app: App, era: str, text: str) -> None:
    async with edge(app) as http:
        answer = await http.post("/mcp", content=text, headers=headers("tools/list") | {"mcp-protocol-version": era})

    assert (answer.status_code, answer.json()["error"]["code"], answer.json()["id"]) == (400, -32600, None)
    assert "pydantic" not in answer.text
    assert "validation error" not in answer.text


async def test_half_a_surrogate_pair_is_refused_by_its_name_in_every_era(app: App) -> None:
    async with edge(app) as http:
        for era in ("2025-06-18", "2026-07-28"):
            more = headers("tools/call", "update_context") | {"mcp-protocol-version": era}
            answer = await http.post("/mcp", content=append(2, "cut \\ud83d"), headers=more)
            assert answer.json()["id"] == 2
            assert "invalid_arguments" in answer.text
            assert "surrogate" in answer.text


async def test_a_notification_is_no_request(app: App) -> None:
    async with edge(app) as http:
        request = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        for era in ("2025-06-18", "2026-07-28"):
            more = headers("notifications/initialized") | {"mcp-protocol-version": era}
            answer: httpx2.Response = await http.post("/mcp", json=request, headers=more)
            assert answer.status_code == 202, answer.text


def cpu_s(*command: object, **settings: object) -> float:
    """The least processor time of three runs of a program without input, in seconds."""
    least = float("inf")
    for _ in range(3):
        program = subprocess.Popen(
            list(map(str, command)), env=environment(**settings), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        _, status, used = os.wait4(program.pid, 0)
        program.returncode = os.waitstatus_to_exitcode(status)
        assert program.returncode == 0
        least = min(least, used.ru_utime + used.ru_stime)
    return least


def test_a_whole_life_over_stdio_costs_hardly_more_than_loading_the_sdk(database_url: str) -> None:
    """It was half as much again, and more where rich is installed, before what such a process never uses was left out."""
    loading = cpu_s(sys.executable, "-c", "import mcp")
    assert cpu_s(HANDOFF, "serve", "--stdio", database_url=database_url) < 1.25 * loading
