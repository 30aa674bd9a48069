"""The first seconds: what a process says before it can answer, and when its environment is wrong."""

import signal
import subprocess
import sys
from typing import Any

import httpx2
import pytest

from tests.agents import until
from tests.cli.test_commands import handoff
from tests.processes import PATIENCE_S, environment, free_port, start, stop

SECRET = "s3cret"


async def test_before_the_database_is_there_the_mcp_port_refuses_and_the_operations_port_says_what_is_missing() -> None:
    ops = free_port()
    nowhere = f"postgresql://handoff:{SECRET}@127.0.0.1:{free_port()}/handoff"
    service = start(database_url=nowhere, telemetry="true", ops_port=ops, startup_timeout_s=PATIENCE_S)
    try:

        def asked(path: str) -> httpx2.Response | None:
            try:
                return httpx2.get(f"http://127.0.0.1:{ops}{path}", timeout=PATIENCE_S)
            except httpx2.ConnectError:
                return None

        await until(lambda: asked("/healthz"))
        for path in ("/health", "/metrics", "/targets"):
            answer = asked(path)
            assert answer is not None
            assert answer.status_code == 503
            assert "waits until the database at HANDOFF_DATABASE_URL answers" in answer.json()["message"]
        with pytest.raises(httpx2.ConnectError):  # at once, where it was accepted and never answered
            httpx2.get(service.url, timeout=PATIENCE_S)
    finally:
        stop(service)


@pytest.mark.parametrize("command", ["serve", "doctor"])
@pytest.mark.parametrize(
    ("name", "value", "more"),
    [
        ("HANDOFF_REDIS_URL", "redis://a:1,b:2/0", {}),
        ("HANDOFF_REDIS_URL", f"redis://:{SECRET}@a:99999/0", {}),
        ("HANDOFF_REDIS_URL", f"redis://:{SECRET}@127.0.0.1:1/0?socket_timeout=soon", {}),
        ("HANDOFF_DATABASE_URL", f"postgresql://me:{SECRET}@a:99999/x", {}),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", {"telemetry": "true"}),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:x", {"telemetry": "true"}),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", {"telemetry": "true"}),
    ],
)
def test_an_address_or_number_that_cannot_be_used_is_named_in_one_sentence(
    database_url: str, command: str, name: str, value: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"database_url": database_url, "port": free_port(), "ops_port": 0, **more}
    if name.startswith("OTEL"):
        monkeypatch.setenv(name, value)
    else:
        settings[name.removeprefix("HANDOFF_").lower()] = value
    done = handoff(command, **settings)

    said = done.stderr.splitlines() if command == "serve" else [it for it in done.stdout.splitlines() if "FAIL" in it]
    assert done.returncode == (2 if command == "serve" else 1)
    assert len(said) == 1, done
    assert name in said[0]
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize("module", ["argparse", "pydantic_settings", "asyncpg"])
def test_ctrl_c_while_the_program_is_being_loaded_shows_no_traceback(module: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "handoff", "serve", "--stdio"]  # importtime: a line per module
    settings = environment(database_url=f"postgresql://127.0.0.1:{free_port()}/x")
    with subprocess.Popen(command, env=settings, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines: list[str] = []
        while not lines or not lines[-1].endswith(f" {module}"):
            lines.append(process.stderr.readline().rstrip())
            assert lines[-1], lines[-5:]
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=PATIENCE_S)[1]
    assert "Traceback" not in rest
    assert process.returncode in (-signal.SIGINT, 130)


def test_a_ctrl_c_that_arrives_in_a_finalizer_is_not_lost() -> None:
    program = """
import os, signal, sys, time
from types import SimpleNamespace
from handoff.cli import parser

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

def command(arguments):
    Finalized()
    print("went on", flush=True)
    time.sleep(3600)

parser.import_module = lambda name: SimpleNamespace(migrate_command=command)
sys.argv = ["handoff", "migrate"]
parser.main()
"""
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (130, "went on\n", "")
