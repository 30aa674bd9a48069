"""A test process that is killed leaves nothing running: neither Postgres, which is nobody's child, nor what was started."""

import subprocess
import sys
from pathlib import Path

from tests.agents import until
from tests.reaper import left_behind

STARTS = """
import subprocess, tempfile, time
from pathlib import Path
from handoff.cli.embedded import postgres
from tests import reaper
from tests.processes import passable_folder

reaper.start()
started = subprocess.Popen(["sleep", "1000"], start_new_session=True)
with passable_folder() as folder, postgres(folder):
    print(tempfile.gettempdir(), started.pid, flush=True)
    time.sleep(1000)
"""


async def test_what_a_killed_test_process_started_is_ended_and_its_folder_removed() -> None:
    with subprocess.Popen([sys.executable, "-c", STARTS], stdout=subprocess.PIPE, text=True) as killed:  # noqa: ASYNC220 - it takes a millisecond
        assert killed.stdout is not None
        folder, started = killed.stdout.readline().split()
        running = left_behind(folder)
        killed.kill()
    assert int(started) in {process.pid for process in running}
    assert "postgres" in {process.name() for process in running}

    await until(lambda: not left_behind(folder) and not Path(folder).exists())
