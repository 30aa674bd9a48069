"""`handoff serve`, `handoff work` and `handoff migrate`: the service and the worker on a database of yours."""

import argparse
import asyncio
import re
import socket
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from time import monotonic
from typing import TYPE_CHECKING

import structlog

from handoff.cli.start import fail, listening, operations_port, read_settings, run_loop
from handoff.model import AGENT_CHARS_MAX, ALL_SCOPES, NAME_PATTERN, Caller
from handoff.settings import Misconfigured, Settings
from handoff.store.connect import AWAY
from handoff.store.migrate import migrate
from handoff.telemetry.logs import configure_logs

if TYPE_CHECKING:
    from handoff.operations.port import OperationsPort

log = structlog.get_logger(__name__)


def serve_command(arguments: argparse.Namespace) -> int:
    """Serve over HTTP, or with --stdio over standard input and output."""
    settings = read_settings(arguments)
    agent: str | None = arguments.agent
    if agent is not None and not arguments.stdio:
        return fail("--agent goes with --stdio. Over HTTP each call names its agent, or its token does.")
    if agent is not None and (len(agent) > AGENT_CHARS_MAX or not re.fullmatch(NAME_PATTERN, agent)):
        return fail(f"--agent must match {NAME_PATTERN} and have at most {AGENT_CHARS_MAX} characters.")
    if settings.database_url is None:
        return fail("HANDOFF_DATABASE_URL is not set. `handoff run` starts a Postgres of its own.")
    if arguments.stdio:
        configure_logs(settings.log_level)
        if "jobs" not in settings.model_fields_set:  # a desktop client's process: laptops sleep, and there may be many
            settings = settings.model_copy(update={"jobs": False})
        scopes = ALL_SCOPES if settings.admin else ALL_SCOPES - {"admin"}
        from handoff.cli.stdio import serve_client

        run_loop(serve_client(settings, Caller(agent, scopes)))
        return 0
    configure_logs(settings.log_level, sys.stdout)
    with listening(settings) as listener, operations_port(settings) as port:
        run_loop(serve(settings, listener, port))
    return 0


def work_command(arguments: argparse.Namespace) -> int:
    """Run the jobs until a signal."""
    settings = read_settings(arguments)
    if settings.database_url is None:
        return fail("HANDOFF_DATABASE_URL is not set. `handoff run` runs the worker's jobs itself.")
    configure_logs(settings.log_level, sys.stdout)
    with operations_port(settings) as port:
        run_loop(_work(settings, port))
    return 0


def migrate_command(arguments: argparse.Namespace) -> int:
    """Apply the migrations that the database lacks."""
    settings = read_settings(arguments)
    if settings.database_url is None:
        return fail("HANDOFF_DATABASE_URL is not set.")
    applied = run_loop(migrate(settings))
    print("\n".join(f"applied {name}" for name in applied) or "nothing to apply")
    return 0


async def serve(
    settings: Settings,
    listener: socket.socket,
    port: "OperationsPort | None" = None,
    ready: Callable[[], None] | None = None,
) -> None:
    """Serve over HTTP until SIGINT, SIGTERM or SIGHUP; `ready` is called once requests are answered."""
    from handoff.app import open_app, open_telemetry
    from handoff.jobs.runner import jobs_beside
    from handoff.server.http import serve_http

    async with AsyncExitStack() as stack:
        signals = await stack.enter_async_context(open_telemetry(settings))
        await migrate_when_up(settings)
        address = port.address if port is not None else None
        app = await stack.enter_async_context(open_app(settings, signals=signals, operations=address))
        await stack.enter_async_context(jobs_beside(app))
        if port is not None:
            stack.enter_context(port.serving(app))
        try:
            listener.listen()
        except OSError as error:  # another process that was starting too has begun to listen
            where = f"{settings.host}:{settings.port}"
            raise Misconfigured(f"{where}: {error.strerror}. Choose another port with --port or HANDOFF_PORT.") from error
        await serve_http(app, listener, ready)


async def _work(settings: Settings, port: "OperationsPort | None") -> None:
    from handoff.app import open_app, open_telemetry
    from handoff.jobs.runner import run_until_signalled

    async with AsyncExitStack() as stack:
        signals = await stack.enter_async_context(open_telemetry(settings, "worker"))
        await migrate_when_up(settings)
        address = port.address if port is not None else None
        app = await stack.enter_async_context(open_app(settings, "worker", signals=signals, operations=address))
        if port is not None:
            stack.enter_context(port.serving(app))
        await run_until_signalled(app)


async def migrate_when_up(settings: Settings, on_away: Callable[[BaseException], None] | None = None) -> list[str]:
    """Apply the migrations, and wait up to `startup_timeout_s` for a database that is still coming up.

    Returns the names of those applied. Raises OSError, or what Postgres said last. `on_away` is called with each error until
    then.
    """
    give_up = monotonic() + settings.startup_timeout_s
    pause_s = 0.1
    while True:
        try:
            applied = await migrate(settings)
        except AWAY as error:
            if on_away is not None:
                on_away(error)
            if monotonic() + pause_s > give_up:
                raise
            log.info("database.awaited", error=type(error).__name__, retry_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 2.0)
            continue
        for name in applied:
            log.info("migration.applied", name=name)
        return applied
