"""`handoff wait`: an offer reaches a process that only waits, once, whatever is restarted in between."""

import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread
from mcp import Client

from handoff.cli import wait
from handoff.cli.parser import parser
from tests.agents import Agent, until
from tests.processes import HANDOFF, Service, environment, free_port, serving


@contextmanager
def waiting(url: str, agent: str, state: Path, *more: str) -> Generator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [HANDOFF, "wait", "--url", url, "--agent", agent, *more],
        env=environment() | {"XDG_STATE_HOME": str(state), "HOME": str(state)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def line_of(stream: Any) -> str:
    return await to_thread.run_sync(stream.readline)


def here(monkeypatch: pytest.MonkeyPatch, state: Path, *arguments: str) -> int:
    """Run it in this process; its exit status."""
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    monkeypatch.setenv("HOME", str(state))
    return wait.wait_command(parser().parse_args(["wait", *arguments]))


async def test_an_offer_is_printed_with_its_brief_once_across_restarts(service: Service, tmp_path: Path) -> None:
    async with Client(service.url) as client:
        agent = Agent(client)
        key = await agent.session("ada")
        await agent.says(key, "Port the parser.", agent="ada")
        with waiting(service.url, "wes", tmp_path) as process:
            first = await agent.offer(key, to="wes", agent="ada")
            passed = json.loads(await line_of(process.stdout))
            assert passed["handoff"]["handoff_id"] == first
            assert "Port the parser." in json.dumps(passed["brief"])
            second = await agent.offer(key, to="wes", agent="ada")
            assert json.loads(await line_of(process.stdout))["handoff"]["handoff_id"] == second
            await until(
                lambda: any(f'"{second}.0"' in it.read_text() for it in tmp_path.rglob("*.json"))
            )  # it is remembered
        with waiting(service.url, "wes", tmp_path) as process:
            third = await agent.offer(key, to="wes", agent="ada", priority=0)
            assert json.loads(await line_of(process.stdout))["handoff"]["handoff_id"] == third


async def test_a_command_that_fails_leaves_the_offer_and_is_run_again(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wait, "_FAILED_PAUSE_S", (0.01, 0.02))
    command = (
        "import json, os, sys; it = json.loads(sys.stdin.readline())\n"
        "about = sorted(f'{k}={v[:9]}' for k, v in os.environ.items() if 'HANDOFF_OFFER' in k)\n"
        "print(it['handoff']['handoff_id'], *about)\n"
        f"seen = os.path.exists(f := {str(tmp_path / 'ran')!r}); open(f, 'w'); sys.exit(0 if seen else 7)"
    )
    async with Client(service.url) as client:
        agent = Agent(client)
        key = await agent.session("ada", session_key="exec-1")
        handoff = await agent.offer(key, to="xia", agent="ada")
    arguments = ("--url", service.url, "--agent", "xia", "--once", "--exec", sys.executable, "-c", command)
    assert await to_thread.run_sync(here, monkeypatch, tmp_path, *arguments) == 0

    said = capfd.readouterr()
    line = f'{handoff} HANDOFF_OFFER_BRIEF={{"session HANDOFF_OFFER_ID={handoff} HANDOFF_OFFER_SENDER=ada '
    assert said.out == f"{line}HANDOFF_OFFER_SESSION=exec-1\n" * 2
    assert f"handoff {handoff}: the command ended with 7. It stays on offer" in said.err

    again = ("--url", service.url, "--agent", "xia", "--timeout", "0.5", "--exec", "/nowhere/to/be/run")
    assert await to_thread.run_sync(here, monkeypatch, tmp_path, *again) == wait.NOTHING_CAME == 3
    assert "/nowhere" not in capfd.readouterr().err, "it was passed on already"


async def test_it_waits_for_a_service_that_is_away_and_says_so_once(tmp_path: Path, module_database_url: str) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/mcp"
    with waiting(url, "yan", tmp_path, "--once") as process:
        assert "does not answer" in await line_of(process.stderr)
        with serving(port=port, database_url=module_database_url):
            async with Client(url) as client:
                agent = Agent(client)
                await agent.offer(await agent.session("ada"), to="yan", agent="ada")
                assert json.loads(await line_of(process.stdout))["handoff"]["target_agent"] == "yan"
                with anyio.fail_after(60):
                    assert await to_thread.run_sync(process.wait) == 0
        assert await line_of(process.stderr) == f"handoff: {url} answers again.\n"


def test_what_cannot_work_is_said_with_an_exit_status_of_its_own(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = ("--url", service.url)
    assert here(monkeypatch, tmp_path, *url) == 2
    assert here(monkeypatch, tmp_path, *url, "--token-env", "NO_TOKEN_IS_HERE") == 2
    assert here(monkeypatch, tmp_path, *url, "--agent", "zed", "--exec") == 2
    assert here(monkeypatch, tmp_path, *url, "--agent", "no spaces") == 1
    said = capsys.readouterr().err
    for words in ("--agent NAME", "NO_TOKEN_IS_HERE is not set", "--exec needs", "agent: must"):
        assert words in said
