"""Ends what a test process leaves behind, however that process ends.

A process that is killed can't clean up, and Postgres is nobody's child, so there is nothing that the kernel would end with
it. So each test process starts a reaper, which holds one end of a pipe: when the test process is gone, the pipe is closed,
and the reaper kills what carries the mark of that run in its environment, or works below the run's temporary folder.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil

MARK = "TESTED_IN"  # the environment variable that holds the run's folder; processes inherit it
_ROUNDS_MAX = 100
_held: list[object] = []  # for as long as this process lives


def start() -> None:
    """From now on, temporary files go to a folder of this process's own, and what it starts does not outlive it."""
    # The name is short, for the path of a Unix socket may have 107 bytes. Postgres runs as another user where we are root.
    folder = tempfile.mkdtemp(prefix="handoff-")
    Path(folder).chmod(0o755)
    os.environ[MARK] = folder
    tempfile.tempdir = folder
    reaper = subprocess.Popen(
        [sys.executable, "-m", "tests.reaper", folder],
        cwd=Path(__file__).parent.parent,
        env={name: value for name, value in os.environ.items() if name != MARK},
        stdin=subprocess.PIPE,  # nobody inherits our end of it
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is not for it
    )
    _held.append(reaper)


def left_behind(folder: str) -> list[psutil.Process]:
    """The processes that belong to a run."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter(["name", "environ", "cwd", "cmdline"]):  # None where only its own user may read it
        environ, works_in, arguments = (process.info[name] for name in ("environ", "cwd", "cmdline"))
        is_ours = (environ or {}).get(MARK) == folder or Path(works_in or "/").is_relative_to(folder)
        if is_ours or (process.info["name"] == "postgres" and any(it.startswith(f"{folder}/") for it in arguments or ())):
            found.append(process)
    return found


def reap(folder: str) -> None:
    """Kill all that belong to a run, and those that they start meanwhile; then remove its folder."""
    for _ in range(_ROUNDS_MAX):
        if not (found := left_behind(folder)):
            break
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=1)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.stdin.read()  # until the test process is gone
    reap(sys.argv[1])
