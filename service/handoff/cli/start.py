"""What commands need before they can do their work: settings, a bound socket, an operations port, an event loop.

Whatever the user can mend ends in one sentence on standard error and an exit status, never in a stack.
"""

import argparse
import asyncio
import errno
import socket
import sys
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg
from pydantic import ValidationError

from handoff.settings import Misconfigured, Settings
from handoff.telemetry.logs import flush_logs

if TYPE_CHECKING:
    from handoff.operations.port import OperationsPort

USAGE_ERROR = 2

T = TypeVar("T")


def fail(message: str) -> int:
    """Print a sentence on standard error, below everything logged so far; returns the exit status of a usage error."""
    flush_logs()
    print(f"handoff: {message}", file=sys.stderr)
    return USAGE_ERROR


def read_settings(arguments: argparse.Namespace, **more: Any) -> Settings:
    """The settings from the environment, with the command's options on top. Exits if they are wrong."""
    options = {name: getattr(arguments, name, None) for name in ("data_dir", "port", "host", "admin")}
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None}, **more)
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            name = f"HANDOFF_{'_'.join(map(str, problem['loc'])).upper()}"
            fail(f"{name}: {problem['msg'].removeprefix('Value error, ')}")
        sys.exit(USAGE_ERROR)


@contextmanager
def listening(settings: Settings) -> Generator[socket.socket]:
    """The socket on which `serve` will listen. Exits if the address is not available, or needs tokens that are not set."""
    if settings.tokens_file is None and not settings.is_loopback:
        fail(f"{settings.host} can be reached from other machines: set HANDOFF_TOKENS_FILE, or bind 127.0.0.1.")
        sys.exit(USAGE_ERROR)
    listener = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))  # `serve` listens, once it can answer
        except OSError as error:
            name = "host" if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL else "port"
            todo = f"Choose another {name} with --{name} or HANDOFF_{name.upper()}."
            fail(f"{settings.host}:{settings.port}: {error.strerror}. {todo}")
            sys.exit(1)
        yield listener


@contextmanager
def operations_port(settings: Settings) -> "Generator[OperationsPort | None]":
    """The operations port, None where telemetry is off. Exits if the address is not available."""
    if not settings.telemetry:
        yield None
        return
    from handoff.operations.port import OperationsPort

    try:
        port = OperationsPort(settings)
    except OSError as error:
        todo = "Choose another with HANDOFF_OPS_PORT and HANDOFF_OPS_HOST."
        fail(f"operations port {settings.ops_host}:{settings.ops_port}: {error.strerror}. {todo}")
        sys.exit(1)
    try:
        yield port
    finally:
        port.close()


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop where it is installed; return the result.

    Exits if the database does not answer or refuses, or if the tokens file is wrong.
    """
    from handoff.server.auth import TokensFileError
    from handoff.store.connect import AWAY
    from handoff.store.migrate import MigrationError

    try:
        import uvloop
    except ImportError:
        run: Callable[[Coroutine[Any, Any, T]], T] = asyncio.run
    else:
        run = uvloop.run
    try:
        return run(main)
    except Misconfigured as error:
        fail(str(error))
        sys.exit(USAGE_ERROR)
    except (TokensFileError, MigrationError) as error:
        fail(str(error))
        sys.exit(1)
    except AWAY as error:
        fail(f"The database does not answer: {type(error).__name__}: {error}. `handoff doctor` tells more.")
        sys.exit(1)
    except (asyncpg.PostgresError, asyncpg.ClientConfigurationError) as error:
        fail(f"The database refused: {error}. `handoff doctor` tells more.")
        sys.exit(1)


def mcp_address(host: str, port: int) -> str:
    """The URL that clients call."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/mcp"
