"""The command line, in the hands of a newcomer and of an impatient user."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr

from handoff.cli.doctor import examine
from handoff.cli.embedded import postgres
from handoff.cli.postmaster import Postmaster
from handoff.jobs.table import JOBS
from handoff.settings import Settings
from tests.processes import HANDOFF, PATIENCE_S, environment, free_port, passable_folder, serving


@pytest.fixture
def data_dir() -> Generator[Path]:
    """A folder in which Postgres can keep its data."""
    with passable_folder() as folder:
        yield folder / "data"


class Run:
    """`handoff run` in a process group of its own, as a shell would start it."""

    def __init__(self, data_dir: Path, port: int) -> None:
        self.process = subprocess.Popen(
            [HANDOFF, "run", "--data-dir", str(data_dir), "--port", str(port)],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.printed = ""

    def until_it_says(self, words: str) -> None:
        assert self.process.stdout is not None
        while words not in self.printed:
            line = self.process.stdout.readline()
            assert line, f"`handoff run` ended: {self.printed}"
            self.printed += line

    def end(self, how: signal.Signals = signal.SIGINT) -> int:
        os.killpg(self.process.pid, how)
        try:
            self.printed += self.process.communicate(timeout=PATIENCE_S)[0]
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate(timeout=PATIENCE_S)
            raise
        return self.process.returncode


def postgres_of(data_dir: Path) -> list[int]:
    """The Postgres processes that work in a data folder. In a container, root sees only the arguments of another user's."""
    here = str(data_dir / "postgres")
    return [
        process.info["pid"]
        for process in psutil.process_iter(["pid", "cwd", "cmdline", "status"])
        if here in (process.info["cwd"], *(process.info["cmdline"] or ())) and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def handoff(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HANDOFF, *arguments], env=environment(**settings), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def test_run_prints_its_address_and_a_second_run_says_that_it_is_running(data_dir: Path) -> None:
    port = free_port()
    run = Run(data_dir, port)
    try:
        run.until_it_says("Ctrl-C")
        database = run.printed.split("HANDOFF_DATABASE_URL=")[1].split()[0]
        assert handoff("migrate", database_url=database).stdout == "nothing to apply\n"
        for words in (f"http://127.0.0.1:{port}/mcp", str(data_dir), "claude mcp add", "mcp.Client"):
            assert words in run.printed
        beside = handoff("run", "--data-dir", str(data_dir), "--port", str(free_port()))
        assert beside.returncode == 0
        assert "already running" in beside.stdout
        assert f"http://127.0.0.1:{port}/mcp" in beside.stdout
        assert postgres_of(data_dir)
    finally:
        status = run.end()

    assert status == 0
    assert "Traceback" not in run.printed
    assert "Stopped. The data stays in" in run.printed.rstrip().splitlines()[-1]
    assert postgres_of(data_dir) == []


def test_the_data_survive_a_stop_and_a_kill(data_dir: Path) -> None:
    from tests.requests import body, headers

    def call(port: int, tool: str, arguments: dict[str, object]) -> str:
        import httpx2

        request = body("tools/call", name=tool, arguments=arguments)
        return httpx2.post(
            f"http://127.0.0.1:{port}/mcp", json=request, headers=headers("tools/call", tool), timeout=PATIENCE_S
        ).text

    port = free_port()
    run = Run(data_dir, port)
    run.until_it_says("Ctrl-C")
    assert '"isError":false' in call(port, "register_session", {"agent": "alice", "session_key": "kept"})
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.communicate(timeout=PATIENCE_S)
    assert postgres_of(data_dir), "the kill should have left Postgres behind, or this proves nothing"

    run = Run(data_dir, port)
    run.until_it_says("Ctrl-C")
    assert '"isError":false' in call(port, "get_context", {"agent": "alice", "session_key": "kept"})
    assert run.end() == 0
    assert postgres_of(data_dir) == []

    run = Run(data_dir, port)
    run.until_it_says("Ctrl-C")
    assert '"isError":false' in call(port, "get_context", {"agent": "alice", "session_key": "kept"})
    assert run.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("after_s", [0.0, 0.2, 0.8])
def test_ctrl_c_during_the_first_start_does_not_prevent_a_later_start(data_dir: Path, after_s: float) -> None:
    run = Run(data_dir, free_port())
    run.until_it_says("starting Postgres")
    time.sleep(after_s)  # to interrupt the start at different points
    run.end()
    assert "Traceback" not in run.printed
    assert postgres_of(data_dir) == []

    again = Run(data_dir, free_port())
    again.until_it_says("Ctrl-C")
    assert again.end() == 0


def test_an_interrupted_start_leaves_no_server_that_has_not_written_its_lock_file_yet(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = Postmaster._await_ready
    started: list[subprocess.Popen[bytes]] = []

    def interrupted(server: Postmaster, process: subprocess.Popen[bytes]) -> None:
        ready(server, process)
        (server.folder / "postmaster.pid").unlink()
        started.append(process)
        server._process = None  # as if the signal had come before the process was known
        raise KeyboardInterrupt

    monkeypatch.setattr(Postmaster, "_await_ready", interrupted)
    with pytest.raises(KeyboardInterrupt), postgres(data_dir):
        pass
    started[0].wait(PATIENCE_S)
    assert postgres_of(data_dir) == []


def test_run_starts_its_postgres_again_when_that_has_died(data_dir: Path) -> None:
    run = Run(data_dir, free_port())
    run.until_it_says("Ctrl-C")
    died = int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0])
    os.kill(died, signal.SIGKILL)

    run.until_it_says("postgres.restarted")
    assert "postgres.ended" in run.printed
    database = run.printed.split("HANDOFF_DATABASE_URL=")[1].split()[0]
    assert handoff("migrate", database_url=database).stdout == "nothing to apply\n"
    assert run.end() == 0
    assert postgres_of(data_dir) == []


def test_the_sentence_that_a_command_ends_with_comes_below_what_it_logged() -> None:
    program = """
import structlog
from handoff.cli.start import fail
from handoff.telemetry.logs import configure_logs
configure_logs("warning")
structlog.get_logger().warning("logged.first")
fail("It ends here.")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S, check=True, env=environment()
    )
    assert [line[:8] for line in done.stderr.splitlines()] == ['{"time":', "handoff:"]


@pytest.mark.parametrize("harm", ["deleted", "spoilt"])
def test_run_ends_with_one_sentence_when_its_postgres_cannot_go_on(data_dir: Path, harm: str) -> None:
    run = Run(data_dir, free_port())
    run.until_it_says("Ctrl-C")
    said = len(run.printed.splitlines())
    postmaster = int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0])
    if harm == "deleted":
        shutil.rmtree(data_dir / "postgres", ignore_errors=True)  # Postgres may write a file into it meanwhile
    else:
        (data_dir / "postgres" / "postgresql.conf").write_text("nonsense")
        os.kill(postmaster, signal.SIGKILL)
    run.printed += run.process.communicate(timeout=PATIENCE_S)[0]

    assert run.process.returncode == 1
    sentence = run.printed.splitlines()[-1]
    assert sentence.startswith("handoff: ")
    assert str(data_dir / "postgres") in sentence
    assert ("was deleted" if harm == "deleted" else "could not be started again") in sentence
    assert "Traceback" not in run.printed
    lines = len(run.printed.splitlines()) - said
    assert lines < len(JOBS) + 20, run.printed  # a few lines of log and one per job, not one per call and second
    assert postgres_of(data_dir) == []


def test_a_busy_port_is_a_clear_message_and_starts_nothing(data_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = handoff("run", "--data-dir", str(data_dir), "--port", str(port))

    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "--port" in done.stderr
    assert postgres_of(data_dir) == []


@pytest.mark.parametrize(
    ("arguments", "settings", "says"),
    [
        (["serve"], {}, "HANDOFF_DATABASE_URL is not set"),
        (["serve"], {"port": "x"}, "HANDOFF_PORT"),
        (["serve"], {"pool_size": "0"}, "HANDOFF_POOL_SIZE"),
        (["serve", "--host", "0.0.0.0"], {"database_url": "postgresql://localhost/x"}, "set HANDOFF_TOKENS_FILE"),
        (["migrate"], {}, "HANDOFF_DATABASE_URL is not set"),
        (["nonsense"], {}, "invalid choice"),
        ([], {}, "required"),
    ],
)
def test_an_invalid_setting_is_named(arguments: list[str], settings: dict[str, str], says: str) -> None:
    done = handoff(*arguments, **settings)

    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_or_refusing_database_is_a_clear_message(postgres_url: str, tmp_path: Path) -> None:
    nowhere = f"postgresql://handoff:secret@127.0.0.1:{free_port()}/handoff"
    tokens = tmp_path / "tokens"
    tokens.write_text("nonsense")
    for settings, says in (
        ({"database_url": nowhere, "startup_timeout_s": 0.2}, "does not answer"),
        ({"database_url": postgres_url.replace("/postgres?", "/absent?")}, "refused"),
        ({"database_url": "not a url"}, "refused"),
        ({"database_url": postgres_url, "tokens_file": tokens}, "tokens:1:"),
    ):
        done = handoff("serve", "--port", str(free_port()), **settings)
        assert done.returncode == 1
        assert says in done.stderr
        assert "Traceback" not in done.stderr
        assert "secret" not in done.stderr


def test_migrate_applies_each_migration_once_and_prints_it(empty_database_url: str) -> None:
    first = handoff("migrate", database_url=empty_database_url)
    second = handoff("migrate", database_url=empty_database_url)

    names = [
        "0001_sessions_context_handoffs.sql",
        "0002_signals.sql",
        "0003_alerts.sql",
        "0004_processing_ms_nullable.sql",
        "0005_superseded_by.sql",
        "0006_offered_since.sql",
        "0007_retraction.sql",
        "0008_search_by_block.sql",
        "0009_alerts_kept_whatever_they_say.sql",
        "0010_search_in_many_languages.sql",
        "0011_lease_clock.sql",
        "0012_audit.sql",
        "0013_lifecycle.sql",
        "0014_jobs.sql",
        "0015_archive.sql",
        "0016_legal_holds.sql",
        "0017_configuration.sql",
        "0018_keeps_secrets.sql",
        "0019_search_texts_for_less.sql",
        "0020_idempotency_session.sql",
        "0021_quarantine.sql",
        "0022_storage_size.sql",
        "0023_lists.sql",
        "0024_series.sql",
        "0025_incidents.sql",
        "0026_performance.sql",
        "0027_statistics.sql",
        "0028_loops_and_recommendations.sql",
        "0029_webhooks.sql",
        "0030_released_and_not_archived.sql",
        "0031_indexes_by_time.sql",
        "0032_statements_by_the_minute.sql",
        "0033_series_history.sql",
        "0034_detector_shards.sql",
        "0035_accepted_briefs.sql",
        "0036_agent_minutes.sql",
        "0037_promql_readings.sql",
        "0038_archive_check.sql",
        "0039_saturation_by_the_minute.sql",
    ]
    assert (first.returncode, first.stdout) == (0, "".join(f"applied {name}\n" for name in names))
    assert (second.returncode, second.stdout) == (0, "nothing to apply\n")


def test_the_doctor_finds_nothing_wrong_with_a_healthy_setup(database_url: str) -> None:
    done = handoff("doctor", database_url=database_url, port=free_port())

    assert done.returncode == 0, done.stdout
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        "ok   interpreter",
        "ok   configuration",
        "ok   port",
        "ok   database",
        "ok   cache",
        "ok   telemetry",
    ]


def test_the_doctor_beside_the_running_service_finds_nothing_wrong(database_url: str, tmp_path: Path) -> None:
    secret, webhooks = tmp_path / "secret", tmp_path / "webhooks.toml"
    secret.write_text("whsec_" + "c2VjcmV0" * 4)
    webhooks.write_text(f'[[endpoint]]\nname = "ops"\nurl = "https://hooks.example"\nsecret_files = ["{secret}"]\n')
    with serving(database_url=database_url, webhooks_file="", prometheus_url="") as service:
        done = handoff("doctor", database_url=database_url, port=service.port, webhooks_file=webhooks, prometheus_url="")

    assert done.returncode == 0, done.stdout
    assert "served by Handoff already" in done.stdout
    assert f"ok   webhooks: 1 endpoint in {webhooks}" in done.stdout
    assert "prometheus" not in done.stdout


def test_the_doctor_gives_a_remedy_for_each_problem(
    empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    tokens = tmp_path / "tokens"
    tokens.write_text("nonsense")
    free = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        wrong = {
            "configuration": [{"tokens_file": tokens}, {"host": "0.0.0.0", "port": free}, {"prot": 1}, {"port": "x"}],
            "port": [{"port": taken.getsockname()[1]}],
            "database": [
                {"database_url": empty_database_url},
                {"database_url": f"postgresql://127.0.0.1:{free}/x"},
                {"database_url": "nonsense"},
            ],
            "cache": [{"redis_url": f"redis://127.0.0.1:{free}"}],
            "telemetry": [{"telemetry": "true"}],
        }
        for check, cases in wrong.items():
            for settings in cases:
                done = handoff("doctor", **{"port": free, **settings})
                assert done.returncode == 1, (settings, done.stdout)
                assert f"FAIL {check}" in done.stdout, (settings, done.stdout)
                assert done.stdout.count("FAIL") == done.stdout.count("     → "), done.stdout
                assert "Traceback" not in done.stderr


async def test_the_doctor_tells_a_database_that_refuses_from_one_that_is_away(postgres_url: str) -> None:
    absent, nowhere = postgres_url.replace("/postgres?", "/absent?"), f"postgresql://127.0.0.1:{free_port()}/x"
    for url, says in ((absent, "refused: InvalidCatalogNameError"), (nowhere, "does not answer: ConnectionRefusedError")):
        found = [it async for it in examine(Settings(database_url=SecretStr(url), port=free_port()))]
        (database,) = [it for it in found if it.check == "database"]
        assert database.found.startswith(says), database


def test_a_closed_pipe_on_standard_output_is_not_an_error() -> None:
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run(
        [HANDOFF, "doctor"],
        env=environment(),
        stdout=writes,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    os.close(writes)

    assert (done.returncode, done.stderr) == (1, "")
