"""A test that hangs fails under its own name, with the stacks of what it waited in, and takes no other test along.

There are three ends, each only where the one before it could not help:
- a coroutine is cancelled at its timeout, so that what it opened is closed;
- any other test is interrupted by pytest-timeout's signal, whose exception uvloop would lose;
- code that holds the interpreter ends with its process, and pytest-xdist says in which test that was.
What the process leaves behind then, the reaper ends.
"""

import asyncio
import faulthandler
import inspect
import sys
from collections.abc import Generator
from functools import wraps
from typing import Any

import anyio
import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key  # standard error itself, not what captures it

from tests import reaper

GRACE_S = 30  # from one end to the next


def pytest_configure(config: pytest.Config) -> None:
    """Begin to watch, in the process that runs the tests: pytest-xdist's first process runs none."""
    if hasattr(config, "workerinput") or config.getoption("dist", "no") == "no":
        reaper.start()


def timeout_s(item: pytest.Item) -> float:
    """The timeout of a test: its marker's, or else the suite's."""
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0] if marker else item.config.getini("timeout"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Leave time for a cancellation before the signal, and end the process as a last resort."""
    limit_s = timeout_s(item)
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
        item.obj = bounded(item.obj, limit_s)
        item.add_marker(pytest.mark.timeout(limit_s + GRACE_S), append=False)
    stderr = item.config.stash[fault_handler_stderr_fd_key]
    faulthandler.dump_traceback_later(limit_s + 2 * GRACE_S, file=stderr, exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def bounded(test: Any, limit_s: float) -> Any:
    """The test, cancelled when it takes longer."""

    @wraps(test)
    async def run(*arguments: Any, **named: Any) -> None:
        with anyio.CancelScope() as scope:

            def end() -> None:
                for task in asyncio.all_tasks():
                    task.print_stack(file=sys.stderr)
                scope.cancel()

            watch = asyncio.get_running_loop().call_later(limit_s, end)
            try:
                await test(*arguments, **named)
            finally:
                watch.cancel()
        if scope.cancelled_caught:
            pytest.fail(
                f"it hung, and was cancelled after {limit_s:.0f} s; the stacks of its tasks are in its standard error"
            )

    return run
