"""Commands for people: what waits, which sessions there are, and who wrote what; and offering, accepting and resolving.

They call the service as any client does, and see what their token may see.
"""

import argparse
import sys
from typing import TYPE_CHECKING, Any, Final

from handoff.cli.remote import NOT_FOUND, Failed, Remote, with_service
from handoff.cli.terminal import age, console, one_line, paged, print_json, print_table, print_text
from handoff.encoding import counted

if TYPE_CHECKING:
    from rich.console import Console

_PAGE: Final = 100  # the largest page of a resource
_EXCERPT_CHARS: Final = 70


def sessions_command(arguments: argparse.Namespace) -> int:
    """List sessions, newest first."""

    async def run(remote: Remote) -> int:
        page = await remote.read(
            "sessions",
            status=arguments.status,
            agent=arguments.of,
            since=arguments.since,
            limit=arguments.limit,
            cursor=arguments.cursor,
        )
        if arguments.json:
            print_json(page)
            return 0
        rows = [
            (it["session_key"], it["status"], it["owner"], str(it["last_sequence"]), age(it["last_activity_at"]))
            for it in page["sessions"]
        ]
        print_table(console(), ("SESSION", "STATUS", "OWNER", "ENTRIES", "IDLE"), rows)
        _tell_of_more(page)
        return 0

    return with_service(arguments, run)


def inbox_command(arguments: argparse.Namespace) -> int:
    """List what is offered to an agent or held by it, most urgent first."""

    async def run(remote: Remote) -> int:
        path = f"agents/{arguments.of}/inbox"
        page = await remote.read(path, limit=arguments.limit, cursor=arguments.cursor)
        if arguments.json:
            print_json(page)
            return 0
        rows = [
            (
                str(it["handoff_id"]),
                it["state"],
                it["sender"],
                str(it["priority"]),
                age(it["created_at"]),
                it["session_key"],
                one_line(it["instructions"], _EXCERPT_CHARS),
            )
            for it in page["handoffs"]
        ]
        print_table(console(), ("HANDOFF", "STATE", "FROM", "PRIORITY", "AGE", "SESSION", "INSTRUCTIONS"), rows)
        _tell_of_more(page)
        return 0

    return with_service(arguments, run)


def search_command(arguments: argparse.Namespace) -> int:
    """Print the entries that match, best first."""

    async def run(remote: Remote) -> int:
        found = await remote.call(
            "search_context", query=arguments.query, session_key=arguments.session, limit=arguments.limit
        )
        if arguments.json:
            print_json(found)
            return 0
        rows = [
            (it["session_key"], str(it["sequence"]), it["type"], it["author"], one_line(it["snippet"], 2 * _EXCERPT_CHARS))
            for it in found["matches"]
        ]
        print_table(console(), ("SESSION", "ENTRY", "TYPE", "AUTHOR", "TEXT"), rows)
        for note in (found.get("hint"), found.get("bounded"), "There are more: --limit." if found["more"] else None):
            if note:
                print(note, file=sys.stderr)
        return 0

    return with_service(arguments, run)


def show_command(arguments: argparse.Namespace) -> int:
    """Print a session's trail: its newest entries, its events, and its handoffs with their receipts."""

    async def run(remote: Remote) -> int:
        key = arguments.key
        session = await remote.read(f"sessions/{key}")
        first = 0 if arguments.all else max(0, session["last_sequence"] - arguments.limit)
        entries = await read_entries(remote, key, after=first)
        events = await read_events(remote, key)
        ids = dict.fromkeys(it["handoff_id"] for it in events if "handoff_id" in it)
        handoffs = [await remote.read(f"handoffs/{it}") for it in ids]
        if arguments.briefs:
            accepted = {it["handoff_id"] for it in events if it["kind"] == "handoff.accepted"}
            for it in handoffs:
                if it["handoff_id"] in accepted:
                    it["received"] = await _received(remote, it["handoff_id"])
        if arguments.json:
            print_json({"session": session, "entries": entries, "events": events, "handoffs": handoffs})
            return 0
        _print_trail(session, entries, events, handoffs, left_out=first)
        return 0

    return with_service(arguments, run)


def send_command(arguments: argparse.Namespace) -> int:
    """Offer a session, or a new one that begins with the instructions."""

    async def run(remote: Remote) -> int:
        instructions = sys.stdin.read() if arguments.instructions == "-" else arguments.instructions
        key = arguments.session
        if key is None:
            key = (await remote.call("register_session"))["session_key"]
            task = {"type": "message", "content": instructions}
            await remote.call("update_context", session_key=key, entries=[task])
        offered = await remote.call(
            "request_handoff",
            session_key=key,
            instructions=instructions,
            target_agent=arguments.to,
            target_capability=arguments.to_capability,
            request_type=arguments.type,
            priority=arguments.priority,
            deadline_minutes=arguments.deadline_minutes,
        )
        if arguments.json:
            print_json(offered)
            return 0
        target = offered.get("target_agent") or f"any {offered.get('target_capability')}"
        print(f"Handoff {offered['handoff_id']} of session {key} is offered to {target}.")
        print(f"Receipt: {counted(offered['as_of_sequence'], 'entry', 'entries')}, digest {offered['context_digest']}")
        if "warning" in offered:
            print_text(console(), offered["warning"])
        return 0

    return with_service(arguments, run)


def accept_command(arguments: argparse.Namespace) -> int:
    """Take an offer, and print the lease's token and the brief."""

    async def run(remote: Remote) -> int:
        taken = await remote.call("accept_handoff", handoff_id=arguments.id, lease_seconds=arguments.lease_seconds)
        if arguments.json:
            print_json(taken)
            return 0
        handoff, out = taken["handoff"], console()
        print(
            f"You hold handoff {handoff['handoff_id']} of session {handoff['session_key']} with token {handoff['token']} "
            f"until {handoff['lease_expires_at']}."
        )
        _print_brief(out, taken["brief"])
        return 0

    return with_service(arguments, run)


def renew_command(arguments: argparse.Namespace) -> int:
    """Extend the lease of a handoff that you hold, or resume one that is blocked."""

    async def run(remote: Remote) -> int:
        token = arguments.token
        if token is None:
            token = (await remote.read(f"handoffs/{arguments.id}")).get("token")
        renewed = await remote.call(
            "renew_handoff", handoff_id=arguments.id, token=token, lease_seconds=arguments.lease_seconds
        )
        if arguments.json:
            print_json(renewed)
            return 0
        print(f"You hold handoff {renewed['handoff_id']} until {renewed['lease_expires_at']}.")
        return 0

    return with_service(arguments, run)


def resolve_command(arguments: argparse.Namespace) -> int:
    """Complete, block, reject or cancel a handoff."""

    async def run(remote: Remote) -> int:
        token = arguments.token
        if token is None and arguments.action in ("complete", "block"):
            token = (await remote.read(f"handoffs/{arguments.id}")).get("token")
        resolved = await remote.call(
            "resolve_handoff", handoff_id=arguments.id, action=arguments.action, token=token, note=arguments.note
        )
        if arguments.json:
            print_json(resolved)
            return 0
        print(f"Handoff {resolved['handoff_id']} is {resolved['state']}.")
        return 0

    return with_service(arguments, run)


async def _received(remote: Remote, handoff_id: int) -> dict[str, Any] | None:
    """The brief that whoever accepted a handoff last got, None if it is not kept or not the caller's to read."""
    try:
        return await remote.read(f"handoffs/{handoff_id}/brief")
    except Failed as failed:
        if failed.status != NOT_FOUND:
            raise
        return None


async def read_entries(remote: Remote, key: str, after: int = 0) -> list[dict[str, Any]]:
    """All entries of a session after a sequence number, whole: long ones come in parts, which are joined."""
    found: list[dict[str, Any]] = []
    while True:
        page = await remote.read(f"context/{key}", after=after, limit=_PAGE)
        if not page["entries"]:
            return found
        for entry in page["entries"]:
            before = entry["sequence"] - 1
            while (offset := entry.pop("next_offset", None)) is not None:
                (part,) = (await remote.read(f"context/{key}", after=before, offset=offset))["entries"]
                entry["content"] += part["content"]
                if "next_offset" in part:
                    entry["next_offset"] = part["next_offset"]
            entry.pop("chars", None)
            entry.pop("offset", None)
        found += page["entries"]
        after = found[-1]["sequence"]
        if "next_cursor" not in page:
            return found


async def read_events(remote: Remote, key: str) -> list[dict[str, Any]]:
    """All events of a session, oldest first."""
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        page = await remote.read(f"sessions/{key}/lifecycle", limit=_PAGE, cursor=cursor)
        found += page["events"]
        cursor = page.get("next_cursor")
        if cursor is None:
            return found


def _print_trail(
    session: dict[str, Any],
    entries: list[dict[str, Any]],
    events: list[dict[str, Any]],
    handoffs: list[dict[str, Any]],
    left_out: int,
) -> None:
    out = console()
    with paged(out):
        print_text(out, f"{session['session_key']}: {session['status']}, owned by {session['owner']}", "bold")
        written = f"{counted(session['last_sequence'], 'entry', 'entries')}, {counted(session['content_bytes'], 'byte')}"
        print_text(out, f"{written}, since {session['created_at']}")
        if left_out:
            print_text(out, f"Left out: the first {counted(left_out, 'entry', 'entries')}; --all shows all.", "dim")
        for it in sorted([*entries, *events], key=lambda it: it.get("created_at") or it["at"]):
            if "sequence" in it:
                gone = ", retracted" if it.get("retracted") else ", superseded" if "superseded_by" in it else ""
                print_text(out, f"\n{it['created_at']}  {it['sequence']}  {it['author']}  {it['type']}{gone}", "bold")
                print_text(out, it["content"])
            else:
                about = f"  handoff {it['handoff_id']}" if "handoff_id" in it else ""
                print_text(out, f"\n{it['at']}  {it['kind']}{about}  {it.get('agent', '')}".rstrip(), "cyan")
                if reason := it.get("data", {}).get("reason"):
                    print_text(out, reason)
        for it in handoffs:
            target = it.get("target_agent") or f"any {it.get('target_capability')}"
            print_text(out, f"\nHandoff {it['handoff_id']}: {it['state']}, {it['sender']} to {target}", "bold")
            print_text(out, f"Receipt: {counted(it['as_of_sequence'], 'entry', 'entries')}, digest {it['context_digest']}")
            for name in ("instructions", "reason", "outcome"):
                if name in it:
                    print_text(out, f"{name}: {it[name]}")
            if "received" in it:
                _print_received(out, it["received"])


def _print_received(out: "Console", received: dict[str, Any] | None) -> None:
    if received is None:
        print_text(out, "The brief that was received is not kept, or not yours to read.", "dim")
        return
    brief = received["brief"]
    about = f"{counted(brief['tokens'], 'token')}, as of entry {brief['as_of_sequence']}"
    print_text(out, f"\nThe brief that {received['agent']} received on {received['at']}: {about}", "bold")
    _print_brief(out, brief)


def _print_brief(out: "Console", brief: dict[str, Any]) -> None:
    for part in brief["parts"]:
        print_text(out, f"\n{part['kind']}", "bold")
        print_text(out, part.get("text", ""))


def _tell_of_more(page: dict[str, Any]) -> None:
    if "next_cursor" in page:
        print(f"There are more: repeat the command with --cursor {page['next_cursor']}", file=sys.stderr)
