"""The parser: which commands and options there are. It chooses a command; the command's own module runs it."""

import argparse
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Final

import handoff
from handoff.cli.light import load_little, without_rich
from handoff.cli.people_options import add_people

INTERRUPTED = 130
_WITH_COLOURS: Final = frozenset({"handoff.cli.people"})


def main() -> None:
    """Run a command; exit with its status."""
    try:
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # as __main__ has set it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        arguments = parser().parse_args()
        module, _, command = arguments.run.partition(":")
        if module not in _WITH_COLOURS:
            without_rich()
        if getattr(arguments, "stdio", False):
            load_little()
        status: int = getattr(import_module(module), command)(arguments)  # only what this command needs is loaded
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # whoever read our output is gone, so there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(status)


def parser() -> argparse.ArgumentParser:
    """The command line's parser. Each command names the function that runs it as `module:function`."""
    top = argparse.ArgumentParser(prog="handoff", description=handoff.__doc__)
    top.add_argument("--version", action="version", version=handoff.__version__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: str, description: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=description, description=description)
        sub.set_defaults(run=run)
        return sub

    run = command("run", "handoff.cli.run:run_command", "run the service with a Postgres of its own, on one machine")
    run.add_argument(
        "--data-dir", type=Path, help="the folder for the data (HANDOFF_DATA_DIR, default: the platform's for user data)"
    )
    serve = command("serve", "handoff.cli.serve:serve_command", "run the service on the database HANDOFF_DATABASE_URL")
    serve.add_argument("--stdio", action="store_true", help="serve one client over standard input and output")
    serve.add_argument("--agent", help="with --stdio: the name by which the client acts")
    for sub in (run, serve):
        sub.add_argument("--port", type=int, help="HTTP port (HANDOFF_PORT, default 8642)")
        sub.add_argument("--host", help="address to bind (HANDOFF_HOST, default 127.0.0.1)")
        sub.add_argument("--admin", action="store_true", default=None, help="also serve the admin tools")
    command("work", "handoff.cli.serve:work_command", "run the worker: the jobs that maintain the database")
    command("migrate", "handoff.cli.serve:migrate_command", "bring the database up to this program's schema")
    command("doctor", "handoff.cli.doctor:doctor_command", "check the installation, and say how to mend what is wrong")
    connect = command("connect", "handoff.cli.connect:connect_command", "write this service into MCP clients' configuration")
    connect.add_argument(
        "client",
        nargs="*",
        help="claude-code, claude-desktop, cursor, vscode, codex, gemini or zed; without one: which are here",
    )
    connect.add_argument("--all", action="store_true", help="every client that is here")
    connect.add_argument("--scope", choices=["user", "project"], default="user", help="all projects, or the current folder")
    connect.add_argument("--url", help="the MCP address (default: from HANDOFF_HOST and HANDOFF_PORT)")
    connect.add_argument(
        "--token-env", metavar="NAME", help="the environment variable from which the client takes its token"
    )
    connect.add_argument("--dry-run", action="store_true", help="show the change, and write nothing")
    connect.add_argument("--remove", action="store_true", help="remove the entry instead")
    _add_backtest(
        command(
            "backtest",
            "handoff.cli.backtest:backtest_command",
            "print what the anomaly detector would have said of a metric's past",
        )
    )
    demo = command(
        "demo",
        "handoff.cli.demo:demo_command",
        "let two agents hand a task over, against a running service; with --work, let many agents work",
    )
    demo.add_argument("--url", help="the MCP address (default: from HANDOFF_HOST and HANDOFF_PORT)")
    demo.add_argument(
        "--token", action="append", default=[], metavar="AGENT=TOKEN", help="an agent's token, if the service needs tokens"
    )
    _add_work(demo)
    add_people(command)
    completion = command(
        "completion", "handoff.cli.completion:completion_command", "print what completes commands in a shell"
    )
    completion.add_argument("shell", choices=["bash", "zsh", "tcsh"], help="which shell")
    return top


def _add_backtest(backtest: argparse.ArgumentParser) -> None:
    backtest.add_argument("file", type=Path, help="a CSV file of times and values; an empty value was not measured")
    backtest.add_argument(
        "--kind",
        choices=["level", "counter", "count", "duration"],
        default="level",
        help="counter: only rises until it restarts at 0; count: events per point; duration: seconds (default level)",
    )
    backtest.add_argument(
        "--absence", choices=["gap", "zero"], default="gap", help="what it means that nothing was measured (default gap)"
    )
    backtest.add_argument(
        "--timezone", default="UTC", help="whose days the metric follows, as Europe/Berlin; also of times without one"
    )


def _add_work(demo: argparse.ArgumentParser) -> None:
    work = demo.add_argument_group(
        "simulated agents (--work)",
        "Simulated agents register, write, search, hand over, accept late, reject, block, forget, complete and make"
        " mistakes, until Ctrl-C.",
    )
    work.add_argument("--work", action="store_true", help="run simulated agents instead of the two-agent demo")
    work.add_argument("--for", type=float, metavar="SECONDS", dest="for_s", help="stop after this time")
    work.add_argument("--agents", type=int, default=6, metavar="N", help="number of agents, 2 to 24 (default 6)")
    work.add_argument("--pace", type=float, default=2.0, metavar="N", help="calls per second, 0.1 to 100 (default 2)")
    work.add_argument("--seed", type=int, default=1, metavar="N", help="the same seed repeats the same schedule (default 1)")
    work.add_argument(
        "--tokens-file", type=Path, metavar="FILE", help="lines of agent=token, which also say which agents there are"
    )
    work.add_argument(
        "--fault",
        action="append",
        default=[],
        choices=["slow", "failing", "silent", "ping-pong", "growing"],
        help="what goes wrong; may be repeated: slow (offers wait for minutes), failing (many calls are refused),"
        " silent (holders vanish and leases lapse), ping-pong (two agents hand one session back and forth), growing (one"
        " agent writes ever larger entries)",
    )
