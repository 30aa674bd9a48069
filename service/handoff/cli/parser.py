"""The parser: which commands and options there are. It chooses a command; the command's own module runs it."""

import argparse
import math
import os
import signal
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Final

import handoff
from handoff.cli.light import load_little, without_rich
from handoff.cli.people_options import add_people

INTERRUPTED = 130
_LATER_S: Final = 0.01  # time to leave the finalizer
_WITH_COLOURS: Final = frozenset({"handoff.cli.people"})


def main() -> None:
    """Run a command; exit with its status."""
    try:
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # as __main__ has set it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = _interrupt_again
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


def _interrupt_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Interrupt once more where Ctrl-C arrived in a finalizer, from which no exception gets out."""
    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(_LATER_S, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)


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
    connect.add_argument("--hooks", action="store_true", help="also install session hooks, where the client has them")
    connect.add_argument("--agent", help="as whom the hooks act (default: the client's name, or the agent of the token)")
    connect.add_argument("--dry-run", action="store_true", help="show the change, and write nothing")
    connect.add_argument("--remove", action="store_true", help="remove the entry and the hooks instead")
    _add_facts(
        command(
            "facts",
            "handoff.cli.facts:facts_command",
            "say what can be checked of the work tree here: commit, changed files, how the last test command ended",
        )
    )
    _add_hook(command("hook", "handoff.cli.hook:hook_command", "what a client's session hook runs; see `connect --hooks`"))
    _add_wait(command("wait", "handoff.cli.wait:wait_command", "wait for offers; print each, or run a command for it"))
    _add_backtest(
        command(
            "backtest",
            "handoff.cli.backtest:backtest_command",
            "print what the anomaly detector would have said of a metric's past",
        )
    )
    report = command(
        "report",
        "handoff.cli.report:report_command",
        "write one HTML page with charts: what happened, what was unusual, what to change",
    )
    report.add_argument("--since", default="7d", metavar="TIME", help="how far back: 24h, 7d or 4w (default 7d)")
    report.add_argument(
        "--out", type=Path, default=Path("report.html"), metavar="FILE", help="the page (default report.html)"
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


def _add_facts(facts: argparse.ArgumentParser) -> None:
    facts.add_argument(
        "test", nargs="*", metavar="-- COMMAND", help="a test command to run first and to remember the end of"
    )
    what = facts.add_mutually_exclusive_group()
    what.add_argument("--session", metavar="KEY", help="attach the facts to this session")
    what.add_argument("--compare", metavar="HANDOFF_ID", type=int, help="say what differs from what was attached there")
    facts.add_argument("--agent", help="the name by which to call, where tokens don't say it")
    facts.add_argument("--url", help="the MCP address (default: from HANDOFF_HOST and HANDOFF_PORT)")
    facts.add_argument(
        "--token-env",
        metavar="NAME",
        default="HANDOFF_TOKEN",
        help="the environment variable that holds the token (default HANDOFF_TOKEN)",
    )


def _address(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError("must begin with http:// or https://")
    return text


def _sensitivity(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.1 <= value <= 10:
        raise argparse.ArgumentTypeError("must be a number from 0.1 to 10")
    return value


def _add_hook(hook: argparse.ArgumentParser) -> None:
    hook.add_argument("event", help="the event, as the client calls it: SessionStart, PreCompact, Stop ...")
    _add_caller(hook)


def _add_wait(wait: argparse.ArgumentParser) -> None:
    _add_caller(wait)
    wait.add_argument("--once", action="store_true", help="exit after the first offer that was passed on")
    wait.add_argument("--timeout", type=float, metavar="SECONDS", help="exit with 3 if no offer was passed on for this long")
    wait.add_argument(
        "--exec",
        nargs=argparse.REMAINDER,
        metavar="CMD",
        help="run this once per offer, the rest of the line; it gets the offer and the brief on standard input, and in"
        " HANDOFF_OFFER_*",
    )


def _add_caller(command: argparse.ArgumentParser) -> None:
    command.add_argument("--url", default="http://127.0.0.1:8642/mcp", help="the MCP address (default: %(default)s)")
    command.add_argument("--agent", help="as whom it acts (default: the agent of the token)")
    command.add_argument("--token-env", metavar="NAME", help="the environment variable that has the token")


def _add_backtest(backtest: argparse.ArgumentParser) -> None:
    backtest.add_argument(
        "file",
        nargs="*",
        type=Path,
        help="CSV files of times and values; an empty value was not measured. Without one, the series in the database",
    )
    backtest.add_argument("--since", metavar="SPAN", help="how far back, as 12h, 30d or 4w, without a file (default 30d)")
    backtest.add_argument(
        "--series", metavar="NAME", help="only this series of the database: its name, with or without labels"
    )
    backtest.add_argument("--promql", metavar="EXPR", help="judge this expression on a Prometheus instead")
    backtest.add_argument("--prometheus", type=_address, metavar="URL", help="its address (HANDOFF_PROMETHEUS_URL)")
    backtest.add_argument(
        "--html", type=Path, metavar="OUT", help="also write a page with a plot of each series (extra report)"
    )
    backtest.add_argument(
        "--sensitivity",
        type=_sensitivity,
        default=1.0,
        metavar="N",
        help="0.1 to 10; at 2, half the strength is enough for an alert (default 1)",
    )
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
