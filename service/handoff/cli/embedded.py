"""Runs Postgres from a wheel, without Docker, in a data folder that one process uses at a time."""

import fcntl
import json
import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import asyncpg
import structlog

from handoff.cli.postmaster import FolderUnusable, PostgresFailed, Postmaster

DATABASE = "handoff"
_LOOK_S = 0.5  # between two looks at whether the server still runs
_RESTARTS_MAX = 5  # in a row: each within a minute of the last one
_STEADY_S = 60.0
_PAUSE_S_MAX = 8.0  # before a restart; the first comes after half a second

log = structlog.get_logger(__name__)


class AlreadyRunning(Exception):
    """Another process is using this data folder; `where` is what it recorded about itself."""

    def __init__(self, where: dict[str, object]) -> None:
        super().__init__("another Handoff process is using this data folder")
        self.where = where


@contextmanager
def exclusive(data_dir: Path) -> Generator[Callable[[dict[str, object]], None]]:
    """Lock the data folder until the end of the block; yield a function that records which process has it.

    The kernel holds the lock, so it is released however the process ends. Raises AlreadyRunning or FolderUnusable.
    """
    missing = [it for it in (data_dir, *data_dir.parents) if not it.exists()]
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        for it in (
            missing if os.geteuid() == 0 else missing[:1]
        ):  # as root, Postgres runs as another user, which passes through
            it.chmod(0o711 if os.geteuid() == 0 else 0o700)
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
def postgres(data_dir: Path, *, keep_running: bool = False) -> Generator[str]:
    """Run Postgres on `data_dir`/postgres until the end of the block; yield its address, a Unix socket.

    The caller must hold the lock on the folder. With `keep_running`, a server that ends by itself is started again; if that
    is not possible, this process gets a SIGTERM, and the end of the block raises PostgresFailed. Raises
    EmbeddedPostgresMissing, FolderUnusable or PostgresFailed.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    server = Postmaster(data_dir)
    try:
        server.start()
    except BaseException:  # also on Ctrl-C: a server that is still starting must not be left running
        server.stop()
        server.end_starting()
        raise
    over = threading.Event()
    lost: list[str] = []

    def watch() -> None:
        lost.append(_keep_running(server, over))
        if lost[0]:
            os.kill(os.getpid(), signal.SIGTERM)

    keeper = threading.Thread(target=watch, name="postgres", daemon=True)
    if keep_running:
        keeper.start()
    try:
        yield server.address
    finally:
        over.set()
        if keep_running:
            keeper.join()
        server.stop()
        if any(lost):
            raise PostgresFailed(lost[0])


def _keep_running(server: Postmaster, over: threading.Event) -> str:
    """Start the server again whenever it has ended. Returns "" when `over` is set, or why it can't be started any more."""
    failures = 0
    began = monotonic()
    while not over.wait(_LOOK_S):
        if not server.exists:
            return (
                f"The folder {server.folder} was deleted while Postgres was using it. Restore it from a backup, or start "
                "Handoff again with an empty database."
            )
        if server.status is None:
            continue
        log.error("postgres.ended", status=server.status)
        failures = failures + 1 if monotonic() - began < _STEADY_S else 1
        while failures <= _RESTARTS_MAX and not over.wait(min(2.0 ** (failures - 2), _PAUSE_S_MAX)):
            try:
                server.start()
            except (PostgresFailed, FolderUnusable, OSError):
                failures += 1
                continue
            log.warning("postgres.restarted")
            began = monotonic()
            break
        if failures > _RESTARTS_MAX:
            return f"Postgres ended and could not be started again; {server.log} says why."
    return ""


async def ensure_database(server_url: str, name: str = DATABASE) -> str:
    """Create the database unless it exists; return its address."""
    conn = await asyncpg.connect(server_url)
    try:
        if not await conn.fetchval("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name):
            await conn.execute(f'CREATE DATABASE "{name}"')
    finally:
        await conn.close()
    return server_url.replace("/postgres?", f"/{name}?", 1)


def _read_json(text: str) -> dict[str, object]:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {}
