"""Runs servers as programs for tests."""

import re
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Final

from tests.processes import environment

STOP_TIMEOUT_S: Final = 30


@contextmanager
def serving(command: Sequence[str]) -> Generator[str]:
    """Run a server until the end of the block; yield the MCP address that it prints once it is serving."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as server:
        try:
            yield _address(server)
        finally:
            server.terminate()
            try:
                server.communicate(timeout=STOP_TIMEOUT_S)  # keeps reading: it must not write to a closed pipe
            except subprocess.TimeoutExpired:
                server.kill()
                raise


def _address(server: subprocess.Popen[str]) -> str:
    for line in server.stdout or ():
        if found := re.search(r"http://\S+/mcp\b", line):
            return found[0]
    raise AssertionError(f"{server.args} exited before serving, with status {server.wait()}")
