"""Postgres from the wheel, where several processes start it."""

import os
import pwd
import subprocess
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from handoff.cli.embedded import ensure_user

NAME = f"handoff-test-{os.getpid()}"
PROCESSES = 6


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can create a user")
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
