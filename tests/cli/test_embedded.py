"""Postgres from the wheel: who can reach it, and what it does to folders that it did not create."""

import asyncio
import os
import pwd
import signal
import subprocess
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from stat import S_IMODE
from tempfile import TemporaryDirectory
from threading import Barrier

import asyncpg
import pytest

from handoff.cli.embedded import ensure_database, exclusive, postgres
from handoff.cli.postmaster import FolderUnusable, Postmaster, ensure_user
from tests.processes import passable_folder

NAME = f"handoff-test-{os.getpid()}"
PROCESSES = 6
LONG = "x" * 100  # then the path is longer than that of a Unix socket can be
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


@pytest.fixture
def data_dir() -> Generator[Path]:
    with passable_folder() as folder:
        yield folder / "data"


def as_nobody(data_dir: Path, url: str) -> str:
    """What becomes of a connection that another user of this machine opens."""
    psql = Postmaster(data_dir)._programs / "psql"  # where another user can run it
    nobody = pwd.getpwnam("nobody")
    done = subprocess.run(
        [psql, url, "-Atc", "SELECT 'connected'"],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        user=nobody.pw_uid,
        group=nobody.pw_gid,
        extra_groups=[],
    )
    return done.stdout + done.stderr


def socket_of(url: str) -> Path:
    return Path(url.partition("?host=")[2])


async def asked(url: str, query: str) -> str:
    conn = await asyncpg.connect(url)
    try:
        return str(await conn.fetchval(query))
    finally:
        await conn.close()


@pytest.mark.parametrize("below", [".", LONG, 'my data; $HOME\'s "folder", ä'])
def test_only_its_own_user_can_reach_it_wherever_the_data_are(data_dir: Path, below: str) -> None:
    with exclusive(data_dir / below), postgres(data_dir / below) as url:
        folder = socket_of(url)
        rules = [it for it in (data_dir / below / "postgres" / "pg_hba.conf").read_text().splitlines() if it[0] != "#"]

        assert rules == ["local all all peer map=handoff"]
        assert S_IMODE(folder.stat().st_mode) == 0o700
        assert S_IMODE((folder / ".s.PGSQL.5432").stat().st_mode) == 0o700
        assert folder.stat().st_uid == (data_dir / below / "postgres").stat().st_uid
        assert asyncio.run(asked(url, "SHOW listen_addresses")) == ""
        assert asyncio.run(asked(asyncio.run(ensure_database(url)), "SELECT current_database()")) == "handoff"


@as_root
@pytest.mark.parametrize("below", [".", LONG])
def test_another_user_is_kept_out_by_the_folder_and_even_in_an_open_folder_by_the_kernel(data_dir: Path, below: str) -> None:
    with postgres(data_dir / below) as url:
        assert "Permission denied" in as_nobody(data_dir / below, url)

        folder = socket_of(url)
        folder.chmod(0o777)
        (folder / ".s.PGSQL.5432").chmod(0o777)
        assert "Peer authentication failed" in as_nobody(data_dir / below, url)
        folder.chmod(0o700)


def test_a_data_folder_of_an_earlier_release_is_closed_when_it_is_started(data_dir: Path) -> None:
    data_dir.mkdir(mode=0o711)
    left = Postmaster(data_dir)
    left.start()  # by a process that was killed
    (left.folder / "pg_hba.conf").write_text("local all all trust\nhost all all 127.0.0.1/32 trust\n")
    os.kill(int((left.folder / "postmaster.pid").read_text().split()[0]), signal.SIGHUP)
    with postgres(data_dir) as url:
        rules = asyncio.run(asked(url, "SELECT string_agg(type || ' ' || auth_method, ',') FROM pg_hba_file_rules"))
        assert rules == "local peer"
        assert left.status is not None, "the server with the old rules must not go on"


@contextmanager
def runtime_folder(patch: pytest.MonkeyPatch, server: Postmaster) -> Generator[Path]:
    """The folder in which the server would make its folder for the socket."""
    with TemporaryDirectory() as folder:
        base = Path("/run") if os.geteuid() == 0 else Path(folder)
        patch.setenv("XDG_RUNTIME_DIR", folder)
        made = server._socket_folder()
        assert made.parent == base
        made.rmdir()
        yield made


@pytest.mark.parametrize("kind", ["open", "link", "file"])
def test_a_folder_for_the_socket_that_somebody_else_has_prepared_is_refused(
    data_dir: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with exclusive(data_dir / LONG):
        server = Postmaster(data_dir / LONG)
        with runtime_folder(monkeypatch, server) as made:
            if kind == "open":
                made.mkdir()
                made.chmod(0o755)
                os.chown(made, *server._owner)
            elif kind == "link":
                made.symlink_to(data_dir)
            else:
                made.write_text("")
            try:
                with pytest.raises(FolderUnusable, match="another user or is open to others"), postgres(data_dir / LONG):
                    pass
            finally:
                made.rmdir() if kind == "open" else made.unlink()


@as_root
def test_as_root_no_folder_is_opened_and_a_closed_one_is_refused(data_dir: Path) -> None:
    closed = data_dir.parent / "closed"
    closed.mkdir(mode=0o700)

    refused = pytest.raises(FolderUnusable, match=f"{closed} is closed to the user embedded_postgres")
    with refused, exclusive(closed / "data"), postgres(closed / "data"):
        pass
    with exclusive(data_dir), postgres(data_dir):
        pass

    modes = [S_IMODE(it.stat().st_mode) for it in (closed, data_dir.parent, data_dir, data_dir / "postgres")]
    assert [oct(it) for it in modes] == [oct(it) for it in (0o700, 0o711, 0o711, 0o700)]


@as_root
def test_as_root_programs_in_a_closed_folder_are_copied_beside_the_data(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = Postmaster._closed

    def as_if_installed_in_a_closed_folder(server: Postmaster, path: Path) -> str:
        return closed(server, path) or (str(path) if "site-packages" in path.parts else "")

    monkeypatch.setattr(Postmaster, "_closed", as_if_installed_in_a_closed_folder)
    with exclusive(data_dir), postgres(data_dir) as url:
        assert asyncio.run(asked(url, "SELECT 1")) == "1"
        programs = asyncio.run(asked(url, "SELECT setting FROM pg_config WHERE name = 'BINDIR'"))
    assert Path(programs).is_relative_to(data_dir)


@as_root
def test_processes_that_start_at_the_same_time_as_root_agree_on_the_id_of_the_user_that_runs_postgres() -> None:
    together = Barrier(PROCESSES)

    def id_after_start(_: int) -> int:
        together.wait()
        ensure_user(NAME)
        return pwd.getpwnam(NAME).pw_uid

    try:
        with ThreadPoolExecutor(PROCESSES) as threads:
            seen = set(threads.map(id_after_start, range(PROCESSES)))
        assert seen == {pwd.getpwnam(NAME).pw_uid}
    finally:
        subprocess.run(["userdel", NAME], check=True)
