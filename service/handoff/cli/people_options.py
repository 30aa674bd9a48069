"""The options of the commands for people: sessions, show, inbox, search, send, accept, renew, resolve, export and import."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Final, get_args

from handoff.model import RequestType, SessionStatus

AddCommand = Callable[[str, str, str], argparse.ArgumentParser]
_LIMIT_MAX: Final = 100


def add_people(command: AddCommand) -> None:
    """Add the commands."""
    sessions = command(
        "sessions", "handoff.cli.people:sessions_command", "list the sessions that you may read, newest first"
    )
    sessions.add_argument("--status", choices=get_args(SessionStatus), help="only those in this status")
    sessions.add_argument("--of", metavar="AGENT", help="only those that this agent takes part in")
    sessions.add_argument("--since", metavar="TIME", help="only those created since then, as 2026-01-31T09:00:00Z")
    _add_paging(sessions)
    show = command("show", "handoff.cli.people:show_command", "show who wrote what in a session, its handoffs and receipts")
    show.add_argument("key", metavar="KEY", help="the session's key")
    show.add_argument("--limit", type=_positive, default=50, metavar="N", help="the newest N entries (default 50)")
    show.add_argument("--all", action="store_true", help="all entries")
    show.add_argument("--briefs", action="store_true", help="also the brief that each receiver got, as it was then")
    inbox = command("inbox", "handoff.cli.people:inbox_command", "list what is offered to an agent or held by it")
    inbox.add_argument("of", metavar="AGENT", help="whose inbox")
    _add_paging(inbox)
    search = command("search", "handoff.cli.people:search_command", "search the entries of your sessions")
    search.add_argument("query", metavar="QUERY", help='words, "phrases", or, -not')
    search.add_argument("--session", metavar="KEY", help="only in this session")
    search.add_argument("--limit", type=_positive, default=10, metavar="N", help="at most N entries, up to 50 (default 10)")
    send = command("send", "handoff.cli.people:send_command", "offer a session to an agent; without --session, a new one")
    send.add_argument(
        "instructions", metavar="INSTRUCTIONS", help="what the receiver is to do; - reads it from standard input"
    )
    to = send.add_mutually_exclusive_group(required=True)
    to.add_argument("--to", metavar="AGENT", help="the agent that receives it")
    to.add_argument("--to-capability", metavar="NAME", help="any agent that has declared this capability")
    send.add_argument("--session", metavar="KEY", help="the session to hand over")
    send.add_argument("--type", choices=get_args(RequestType), help="what is handed over (default context_transfer)")
    send.add_argument("--priority", type=int, metavar="N", help="0 to 9, the most urgent (default 5)")
    send.add_argument("--deadline-minutes", type=int, metavar="N", help="expires if nobody has accepted it by then")
    accept = command(
        "accept", "handoff.cli.people:accept_command", "accept an offer; prints the lease's token and the brief"
    )
    accept.add_argument("id", type=_positive, metavar="ID", help="the handoff's number")
    accept.add_argument("--lease-seconds", type=int, metavar="N", help="how long you hold it without renewing")
    renew = command("renew", "handoff.cli.people:renew_command", "extend your lease, or resume a blocked handoff")
    renew.add_argument("id", type=_positive, metavar="ID", help="the handoff's number")
    renew.add_argument("--lease-seconds", type=int, metavar="N", help="how long you hold it from now on without renewing")
    renew.add_argument("--token", type=int, metavar="N", help="the lease's token (default: the current one)")
    resolve = command("resolve", "handoff.cli.people:resolve_command", "complete, block, reject or cancel a handoff")
    resolve.add_argument("id", type=_positive, metavar="ID", help="the handoff's number")
    resolve.add_argument("action", choices=["complete", "block", "reject", "cancel"], help="what to do")
    resolve.add_argument("--note", help="the outcome or the reason, which block and reject need")
    resolve.add_argument("--token", type=int, metavar="N", help="the lease's token (default: the current one)")
    export = command("export", "handoff.cli.portable:export_command", "write a session to a JSON Lines file with digests")
    export.add_argument("key", metavar="KEY", help="the session's key")
    export.add_argument("--output", type=Path, metavar="FILE", help="the file (default: standard output)")
    import_ = command(
        "import", "handoff.cli.portable:import_command", "verify an exported file, and write it as a new session"
    )
    import_.add_argument("file", type=Path, metavar="FILE", help="the file; - reads standard input")
    import_.add_argument("--key", metavar="KEY", help="the new session's key (default: that in the file)")
    for sub in (sessions, show, inbox, search, send, accept, renew, resolve, export, import_):
        sub.add_argument("--url", help="the MCP address (HANDOFF_URL; default: where `handoff run` is running)")
        sub.add_argument("--token-file", type=Path, metavar="FILE", help="a file that holds your token (or: HANDOFF_TOKEN)")
        sub.add_argument("--agent", metavar="NAME", help="who you are, where the service needs no token (HANDOFF_AGENT)")
        sub.add_argument("--json", action="store_true", help="print JSON")


def _add_paging(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--limit", type=_positive, default=20, metavar="N", help=f"at most N, up to {_LIMIT_MAX} (default 20)")
    sub.add_argument("--cursor", help="continue where the page ended that named this cursor")


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError("must be a whole number from 1 on")
    return int(text)
