"""Agents at work: a script that follows from the seed, every tool and every outcome, and no end to their patience."""

import hashlib
import json
import signal
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import asyncpg
import pytest

from handoff.demo.cast import FAULTS, NAMES
from handoff.demo.script import acts
from handoff.model import RequestType
from handoff.server import TOOLS
from tests.processes import HANDOFF, Service, environment, free_port, serving, start, stop, wait_until_ready

OFFERED_OR_TAKEN = ("handoff.offered", "handoff.accepted")


def script(seed: int, *faults: Any) -> list[tuple[str, str]]:
    played = islice(acts(seed, NAMES[:6], faults), 60)
    return [(act.plot, f"{it.sender} {it.receiver} {it.topic} {it.chance.random()}") for act in played if (it := act.scene)]


def test_the_same_seed_plays_the_same_script_and_another_another() -> None:
    assert script(1) == script(1)
    assert script(1) != script(2)
    for fault in FAULTS:
        assert script(1, fault) == script(1, fault)


@contextmanager
def working(service: Service, *arguments: str) -> Generator[subprocess.Popen[str]]:
    """`handoff demo --work` until the end of the block."""
    command = [HANDOFF, "demo", "--work", "--url", service.url, *arguments]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        try:
            yield demo
        finally:
            demo.kill()


def calls(printed: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed.splitlines() if '"event":"tool.call"' in line]


async def test_in_a_short_while_every_tool_is_used_every_type_and_every_end_is_reached(
    database_url: str, db: asyncpg.Connection, tmp_path: Path
) -> None:
    service = start(database_url=database_url)
    wait_until_ready(service)
    with working(service, "--for", "14", "--pace", "100") as demo:
        said, _ = demo.communicate(timeout=40)
    made = calls(stop(service))

    assert demo.returncode == 0, said
    assert {call["tool"] for call in made} == {tool.name for tool in TOOLS}
    assert "internal" not in {call["outcome"] for call in made}
    refused = {call["outcome"] for call in made} - {"ok"}
    assert len(refused) >= 4, f"their mistakes are always the same: {refused}"
    assert 0.01 < sum(call["outcome"] != "ok" for call in made) / len(made) < 0.2
    kinds = {row["kind"] for row in await db.fetch("SELECT DISTINCT kind FROM event")}
    ends = ("offered", "accepted", "renewed", "blocked", "completed", "rejected", "cancelled", "lapsed")
    assert {f"handoff.{end}" for end in ends} <= kinds
    types = {row["request_type"] for row in await db.fetch("SELECT DISTINCT request_type FROM handoff")}
    assert types == set(get_args(RequestType))
    left = await db.fetchval("SELECT count(*) FROM handoff WHERE state IN ('offered', 'accepted', 'blocked')")
    assert left <= 12, "what they leave open piles up"


def test_they_go_on_when_the_service_was_killed_and_is_back(database_url: str) -> None:
    port = free_port()
    service = start(port=port, database_url=database_url)
    wait_until_ready(service)
    with working(service, "--for", "9", "--pace", "60") as demo:
        time.sleep(2.5)
        service.kill()
        time.sleep(1)
        again = start(port=port, database_url=database_url)
        wait_until_ready(again)
        said, _ = demo.communicate(timeout=40)
    after = calls(stop(again))

    assert demo.returncode == 0, said
    assert len(after) > 40
    assert "Traceback" not in said


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_they_end_at_once_when_told_to(database_url: str, by: signal.Signals) -> None:
    with serving(database_url=database_url) as service, working(service, "--pace", "20") as demo:
        time.sleep(2.5)
        demo.send_signal(by)
        began = time.monotonic()
        said, _ = demo.communicate(timeout=10)

    assert time.monotonic() - began < 3
    assert (demo.returncode, said.splitlines()[-1].split()[0]) == (0, "Ended")


def test_with_a_tokens_file_its_names_are_the_agents(database_url: str, tmp_path: Path) -> None:
    known, theirs = tmp_path / "tokens", tmp_path / "theirs"
    names = ("ada", "grace", "linus")
    known.write_text("".join(f"{hashlib.sha256(name.encode()).hexdigest()} {name} read,write\n" for name in names))
    theirs.write_text("".join(f"{name}={name}\n" for name in names))
    service = start(database_url=database_url, tokens_file=known)
    wait_until_ready(service)
    with working(service, "--for", "4", "--pace", "60", "--tokens-file", str(theirs)) as demo:
        said, _ = demo.communicate(timeout=30)
    made = calls(stop(service))

    assert demo.returncode == 0, said
    assert {call["agent"] for call in made if call["outcome"] == "ok"} == set(names)


@pytest.mark.parametrize(
    ("fault", "mark"),
    [
        ("failing", "SELECT 0.0"),  # what is refused changes nothing; the log tells
        ("slow", f"SELECT avg((kind = 'handoff.accepted')::int)::float8 FROM event WHERE kind IN {OFFERED_OR_TAKEN}"),
        ("silent", "SELECT count(*) FILTER (WHERE kind = 'handoff.lapsed')::float8 FROM event"),
        ("ping-pong", "SELECT max(n)::float8 FROM (SELECT count(*) AS n FROM handoff GROUP BY session_id) t"),
        ("growing", "SELECT max(size_bytes)::float8 FROM context_entry"),
    ],
)
async def test_a_fault_shows(database_url: str, db: asyncpg.Connection, fault: str, mark: str) -> None:
    service = start(database_url=database_url)
    wait_until_ready(service)
    with working(service, "--for", "11" if fault == "silent" else "6", "--pace", "100", "--fault", fault) as demo:
        said, _ = demo.communicate(timeout=30)
    made = calls(stop(service))

    assert demo.returncode == 0, said
    shown = {
        "failing": sum(call["outcome"] != "ok" for call in made) / len(made) > 0.2,
        "slow": await db.fetchval(mark) < 0.25,  # commonly it is about a half
        "silent": await db.fetchval(mark) >= 3,
        "ping-pong": await db.fetchval(mark) >= 4,
        "growing": await db.fetchval(mark) > 20_000,
    }[fault]
    assert shown, (said, await db.fetchval(mark), len(made))
