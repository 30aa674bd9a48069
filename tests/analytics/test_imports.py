"""What loads numpy, and what must not."""

import subprocess
import sys


def test_neither_a_server_nor_a_desktop_client_loads_numpy() -> None:
    modules = "handoff.app, handoff.cli, handoff.jobs.runner, handoff.server.http, handoff.server.stdio"
    program = f"import sys, {modules}; print([it for it in ('numpy', 'scipy', 'handoff.analytics') if it in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
