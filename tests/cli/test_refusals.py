"""What the command line refuses: with a clear message and a status, without a stack, and without secrets."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.cli.test_commands import Run, data_dir, handoff, postgres_of
from tests.processes import PATIENCE_S, free_port, passable_folder

__all__ = ["data_dir"]  # a fixture
SECRET = "s3cret"


@pytest.mark.parametrize(
    ("arguments", "settings", "status", "says"),
    [
        (["serve"], {"redis_url": "nonsense"}, 2, ["HANDOFF_REDIS_URL: must begin with redis://"]),
        (["serve"], {"redis_url": f"redis://:{SECRET}/x@host:6379"}, 2, ["HANDOFF_REDIS_URL: the port must be a number"]),
        (
            ["serve"],
            {"database_url": f"postgresql://me:{SECRET}/x@host/y"},
            2,
            ["HANDOFF_DATABASE_URL: the port must be a number"],
        ),
        (
            ["serve"],
            {"database_url": f"postgresql://me:{SECRET}\u2100@[host/y"},
            2,
            ["HANDOFF_DATABASE_URL: must be a valid URL"],
        ),
        (["doctor"], {"database_url": f"postgresql://me:{SECRET}#x@host/y"}, 1, []),
        (
            ["serve"],
            {"port": "99999", "pool_size": 0, "log_level": "loud"},
            2,
            ["HANDOFF_PORT: ", "HANDOFF_LOG_LEVEL: ", "HANDOFF_POOL_SIZE: "],
        ),
        (["serve", "--agent", "me"], {"database_url": "postgresql://h/x"}, 2, ["--agent goes with --stdio"]),
        (["serve", "--stdio", "--agent", "'; drop table session;--"], {}, 2, ["--agent must match"]),
        (["serve", "--stdio", "--agent", "a\n"], {}, 2, ["--agent must match"]),
        (["serve", "--stdio", "--agent", "a" * 101], {}, 2, ["--agent must match"]),
        (
            ["serve", "--host", "192.0.2.1"],
            {"database_url": "postgresql://h/x", "tokens_file": "/dev/null"},
            1,
            ["192.0.2.1:8642: Cannot assign requested address. Choose another host"],
        ),
        (["migrate"], {"database_url": "nonsense"}, 1, ["The database refused: invalid DSN"]),
        (["migrate"], {"database_url": "postgresql://127.0.0.1:1/x", "startup_timeout_s": 1}, 1, ["does not answer"]),
    ],
)
def test_each_problem_is_refused_in_a_line_of_its_own(
    arguments: list[str], settings: dict[str, object], status: int, says: list[str]
) -> None:
    done = handoff(*arguments, **settings)

    assert done.returncode == status, done
    lines = done.stderr.splitlines()
    assert len(lines) == len(says), done.stderr
    for line, start in zip(lines, says, strict=True):
        assert line.startswith("handoff: ")
        assert start in line
    assert SECRET not in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_migrate_refuses_a_database_that_does_not_exist(postgres_url: str) -> None:
    done = handoff("migrate", database_url=postgres_url.replace("/postgres?", "/absent?"))

    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert 'database "absent" does not exist' in done.stderr


def test_an_unusable_data_folder_is_refused_before_anything_is_created_in_it() -> None:
    with passable_folder() as folder:
        (folder / "file").write_text("mine")
        for data, says in (
            ("file", "can't be written to: File exists"),
            ("file/below", "can't be written to: Not a directory"),
        ):
            done = handoff("run", "--data-dir", f"{folder}/{data}", "--port", str(free_port()))
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
            assert says in done.stderr
            assert "--data-dir" in done.stderr
        assert [path.name for path in folder.iterdir()] == ["file"]
        assert (folder / "file").read_text() == "mine"


def test_a_data_folder_with_a_long_path_works(data_dir: Path) -> None:
    """The path is longer than that of a Unix socket can be."""
    run = Run(data_dir / ("x" * 100), free_port())
    run.until_it_says("Ctrl-C")

    assert run.end() == 0
    assert postgres_of(data_dir / ("x" * 100)) == []


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("when", ["starting Postgres", "Ctrl-C"])
def test_stopping_or_closing_the_terminal_leaves_no_postgres_behind(data_dir: Path, how: signal.Signals, when: str) -> None:
    run = Run(data_dir, free_port())
    run.until_it_says(when)
    give_up = time.monotonic() + PATIENCE_S
    while not postgres_of(data_dir):
        assert time.monotonic() < give_up
    os.kill(run.process.pid, how)
    run.printed += run.process.communicate(timeout=PATIENCE_S)[0]

    assert run.process.returncode == (0 if when == "Ctrl-C" else 130)
    assert "Traceback" not in run.printed
    give_up = time.monotonic() + PATIENCE_S  # what initdb had begun ends when it finds its parent gone
    while postgres_of(data_dir):
        assert time.monotonic() < give_up, run.printed
