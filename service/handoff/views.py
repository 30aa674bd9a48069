"""Views that tools and resources share: briefs and summaries, both cached, inboxes, the configuration, and jobs."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Final

from asyncpg import Record
from pydantic import BaseModel

from handoff import brief, cache
from handoff.configuration import differences
from handoff.context import App, Call
from handoff.encoding import from_cursor, that_fit, to_cursor, to_json
from handoff.errors import Invalid, NotFound
from handoff.model import ENTRY_TYPES, HELD_STATES
from handoff.store import configuration, entries, handoffs, lists, sessions
from handoff.store.connect import Connection, connection, snapshot
from handoff.telemetry import metrics

KEY_POINTS_MAX = 10
EXCERPT_CHARS = 280
_PART_BYTES_MIN: Final = 400  # of an entry's content, however large its metadata are
_KEY_POINTS_BYTES = 16_000  # of each type and mark
_HANDOFFS_IN_BRIEF = 3
_TEXT_REPEATED_CHARS_MAX: Final = 1_000  # per text of a handoff in the answer to a call that changed it
INBOX_TEXT_CHARS_MAX: Final = 12_000  # of instructions and reasons together, per page; accept_handoff returns them whole
_INBOX_TEXT_CHARS_MIN: Final = 160  # per text
INBOX_START = (10, 0)  # the position before the highest priority, 9

# What a viewer should do next about an open handoff, by its state and what the viewer is to it.
NEXT: Final[dict[tuple[str, str], str]] = {
    ("offered", "target"): "It is offered to you: call accept_handoff to take it, or resolve_handoff action=reject with the "
    "reason as note.",
    (
        "offered",
        "sender",
    ): "Wait until it is accepted. To replace its instructions, call request_handoff with handoff_id; to "
    "withdraw it, call resolve_handoff action=cancel.",
    ("offered", "capable"): "If you have declared the capability {target_capability}, call accept_handoff to take it before "
    "another agent does.",
    ("offered", "other"): "Leave it to {target_agent}, to whom it is offered.",
    ("accepted", "holder"): "You hold it: work on it, call renew_handoff before lease_expires_at, and finish with "
    "resolve_handoff action=complete, both with this token.",
    ("accepted", "sender"): "Wait: {holder} is working on it. You can't cancel it now; to add a note for {holder}, call "
    "request_handoff with handoff_id.",
    ("accepted", "other"): "Leave it to {holder}, who is working on it.",
    (
        "blocked",
        "holder",
    ): "You hold it, and it is blocked: once you can continue, call renew_handoff with this token, before lease_expires_at.",
    (
        "blocked",
        "sender",
    ): "{holder} holds it and is blocked; reason says why. If you can remove the cause, do, and tell {holder} "
    "by request_handoff with handoff_id.",
    ("blocked", "other"): "Leave it to {holder}, who holds it and is blocked.",
}


async def brief_of(
    app: App,
    session_key: str,
    viewer: str | None,
    token_budget: int,
    *,
    reader: str | None,
    just_changed: bool = False,
) -> tuple[Record, dict[str, Any]]:
    """Return the session and its brief, of the same state. Raises NotFound if `viewer` may not read the session.

    A brief that is not in the cache waits for its turn among the reads of `reader`; None is for a caller that can't be
    refused. `just_changed` says that the caller has changed the session, so that the cache can't have its brief yet.
    """
    session, composed = await _brief_of(app, session_key, viewer, token_budget, reader=reader, just_changed=just_changed)
    metrics.brief_returned(composed)
    return session, composed


async def preview_of(app: App, session_key: str, viewer: str) -> dict[str, Any]:
    """Return the size of the brief that a receiver gets by default, and what it leaves out."""
    _, composed = await _brief_of(app, session_key, viewer, brief.TOKENS_DEFAULT, reader=None, just_changed=True)
    return {"token_budget": brief.TOKENS_DEFAULT, "tokens": composed["tokens"], "omitted": composed["omitted"]}


async def prepare_brief(app: App, session_key: str) -> None:
    """Compose the brief that a reader gets by default, so that the cache has it."""
    await _brief_of(app, session_key, None, brief.TOKENS_DEFAULT, reader=None, just_changed=True)


async def _brief_of(
    app: App, session_key: str, viewer: str | None, token_budget: int, *, reader: str | None, just_changed: bool
) -> tuple[Record, dict[str, Any]]:
    session: Record | None = None
    composed: dict[str, Any] | None = None
    if not just_changed:
        async with connection(app.pool) as conn:
            session = await sessions.see(conn, session_key, viewer)
        composed = await app.cache.get(cache.brief_key(dict(session), token_budget))
    if session is None or composed is None:
        async with _turn(app, reader), snapshot(app.pool) as conn:
            session = await sessions.see(conn, session_key, viewer)
            composed = await _compose(conn, session, token_budget)
        await app.cache.put(cache.brief_key(dict(session), token_budget), composed, cache.BRIEF_TTL_S)
    return session, composed


async def summary_of(app: App, session_key: str, viewer: str | None, *, reader: str) -> dict[str, Any]:
    """Return a summary of the session, of one state of it: participants, handoffs, counts, duration and key points.

    Raises NotFound if `viewer` may not read the session.
    """
    async with connection(app.pool) as conn:
        session = await sessions.see(conn, session_key, viewer)
    summary = await app.cache.get(cache.summary_key(dict(session)))
    if summary is None:
        async with _turn(app, reader), snapshot(app.pool) as conn:
            session = await sessions.see(conn, session_key, viewer)
            summary = await _summarise(conn, session)
        await app.cache.put(cache.summary_key(dict(session)), summary, cache.SUMMARY_TTL_S)
    return summary


async def page_of(
    call: Call,
    session_key: str,
    resource: str,
    query: BaseModel,
    read: Callable[[Connection, Record], Awaitable[dict[str, Any]]],
) -> dict[str, Any]:
    """Return a page of a list that belongs to a session, from the cache or as `read` returns it, of one state of it.

    Raises NotFound if the caller may not read the session.
    """
    app, viewer = call.app, call.caller.viewer(None)
    asked = f"{query.model_dump_json()}{app.settings.page_bytes_max}"
    async with connection(app.pool) as conn:
        session = await sessions.see(conn, session_key, viewer)
    page = await app.cache.get(cache.page_key(dict(session), resource, asked))
    if page is None:
        async with snapshot(app.pool) as conn:
            session = await sessions.see(conn, session_key, viewer)
            page = await read(conn, session)
        if len(to_json(page)) <= cache.PAGE_BYTES_MAX:
            await app.cache.put(cache.page_key(dict(session), resource, asked), page, cache.PAGE_TTL_S)
    return page


async def list_of(
    call: Call,
    resource: str,
    asked: Sequence[Any],
    read: Callable[[Connection, lists.Reading], Awaitable[tuple[Sequence[Record], tuple[Any, ...] | None]]],
    show: Callable[[Sequence[Record], tuple[Any, ...] | None], dict[str, Any]],
) -> tuple[dict[str, Any], Sequence[Record]]:
    """Return a page of a list over many sessions, from the cache or as `show` shows it, and the rows that it stands for.

    `read` returns the rows that the caller may see, or only their outline, and the position of the next page. `asked` is
    everything else that `show` depends on.
    """
    app = call.app
    async with connection(app.pool) as conn:
        rows, last = await read(conn, "outline")
    page = await app.cache.get(cache.list_key(resource, [*asked, last], [row["outline"] for row in rows]))
    if page is None:
        async with connection(app.pool) as conn:
            rows, last = await read(conn, "whole")
        page = show(rows, last)
        if len(to_json(page)) <= cache.PAGE_BYTES_MAX:
            key = cache.list_key(resource, [*asked, last], [row["outline"] for row in rows])
            await app.cache.put(key, page, cache.PAGE_TTL_S)
    return page, rows


def _turn(app: App, reader: str | None) -> AbstractAsyncContextManager[None]:
    return app.admission.reads.turn(reader) if reader is not None else nullcontext()


async def _compose(conn: Connection, session: Record, token_budget: int) -> dict[str, Any]:
    bytes_max = token_budget * brief.BYTES_PER_TOKEN
    wanted = min(brief.CANDIDATES_MAX, bytes_max // brief.PART_BYTES_MIN + 1)
    rows = await entries.for_brief(
        conn,
        session,
        {**dict.fromkeys(ENTRY_TYPES, wanted), "file": brief.CANDIDATES_MAX},  # several entries on a file make one part
        wanted,
        chars=min(brief.TEXT_CHARS_MAX, bytes_max),
        chars_cut=min(brief.FIRST_CHARS_MAX, bytes_max),
        bytes_max=bytes_max,
    )
    return brief.compose(
        session_key=session["key"],
        as_of_sequence=session["last_sequence"],
        entries=[dict(row) for row in rows],
        handoffs=[handoffs.view(row) for row in await handoffs.latest_of_session(conn, session["id"], _HANDOFFS_IN_BRIEF)],
        counts=await entries.counts(conn, session),
        token_budget=token_budget,
    )


async def _summarise(conn: Connection, session: Record) -> dict[str, Any]:
    points = await entries.for_brief(
        conn,
        session,
        {"decision": KEY_POINTS_MAX, "summary": 1},
        KEY_POINTS_MAX,
        chars=EXCERPT_CHARS,
        chars_cut=EXCERPT_CHARS,
        bytes_max=_KEY_POINTS_BYTES,
    )
    messages = await entries.first_and_last_message(conn, session, EXCERPT_CHARS)
    counts = await entries.counts(conn, session)
    return {
        "session_key": session["key"],
        "status": session["status"],
        "started_by": session["created_by"],
        "owner": session["owner"],
        "handoffs": [
            {
                name: value
                for name, value in _cut(handoffs.view(row), EXCERPT_CHARS).items()
                if name in ("handoff_id", "state", "sender", "target_agent", "target_capability", "holder", "outcome")
            }
            for row in await handoffs.latest_of_session(conn, session["id"], 20)
        ],
        "entries": sum(counts.all.values()),
        "by_type": counts.all,
        "participants": await entries.authors(conn, session),
        "content_bytes": session["content_bytes"],
        "minutes": round((session["last_activity_at"] - session["created_at"]).total_seconds() / 60, 1),
        "key_points": [
            {"sequence": row["sequence"], "kind": row["mark"] or row["type"], "text": row["content"]}
            for row in {row["sequence"]: row for row in points}.values()
        ],
        "first_message": _excerpt(messages[0]) if messages else None,
        "last_message": _excerpt(messages[-1]) if messages else None,
        "version": session["version"],
    }


def _excerpt(row: Record) -> dict[str, Any]:
    excerpt = {"sequence": row["sequence"], "author": row["author"], "text": row["content"], "at": row["created_at"]}
    return excerpt | {name: row[name] for name in ("superseded_by", "retracted") if row[name] is not None}


def entries_page(rows: Sequence[Record], bytes_max: int, offset: int = 0) -> list[dict[str, Any]]:
    """Return the entries that fit into `bytes_max` bytes of JSON. A first one that alone does not is cut.

    From an `offset` in characters, the page is the first entry's content from there on. A cut entry has the number of its
    characters, and the next offset if there are more. Raises Invalid if the offset is past the end.
    """
    shown = [entries.view(row) for row in rows]
    if shown and (offset or len(to_json(shown[0])) > bytes_max):
        return [_part(shown[0], offset, bytes_max)]
    return that_fit(shown, bytes_max)


def _part(entry: dict[str, Any], offset: int, bytes_max: int) -> dict[str, Any]:
    content: str = entry["content"]
    if offset >= len(content):
        raise Invalid(
            "invalid_arguments",
            f"offset {offset} is past the end: the content of entry {entry['sequence']} has {len(content)} characters.",
            "Repeat the call with a smaller offset, or without one and with after_sequence (after, in a resource's URI) "
            f"{entry['sequence']} for the entries that follow.",
        )
    part = {**entry, "content": "", "chars": len(content), "offset": offset, "next_offset": len(content)}
    room = max(_PART_BYTES_MIN, bytes_max - len(to_json(part)))
    end = min(len(content), offset + room)
    while (size_bytes := len(to_json(content[offset:end]))) > room:
        end = offset + (end - offset) * room // size_bytes
    part["content"] = content[offset:end]
    part["next_offset"] = end
    if end == len(content):
        del part["next_offset"]
    return part


def inbox_view(rows: Sequence[Record], agent: str, limit: int, bytes_max: int, since: str | None = None) -> dict[str, Any]:
    """Return a page of an inbox that was read with one row more than `limit`, and the next page's cursor if there is one.

    Texts share INBOX_TEXT_CHARS_MAX, and the page ends after `bytes_max` bytes. `since` is the mark since which the page
    lists what is new; its cursor continues that list.
    """
    shown = handoffs_page(rows[:limit], agent, bytes_max)
    page: dict[str, Any] = {"handoffs": shown}
    if len(rows) > len(shown):
        last = rows[len(shown) - 1]
        page["next_cursor"] = to_cursor(last["priority"], last["id"], since or "")
    return page


def _cut(view: dict[str, Any], chars: int) -> dict[str, Any]:
    """Return a handoff with its texts cut to `chars` characters; `cut` says that one of them was."""
    longer = {
        name: view[name][:chars] + "…" for name in ("instructions", "reason", "outcome") if len(view.get(name, "")) > chars
    }
    return view | longer | ({"cut": True} if longer else {})


def handoffs_page(rows: Sequence[Record], agent: str, bytes_max: int) -> list[dict[str, Any]]:
    """Return the first of these handoffs that fit into `bytes_max` bytes, as `agent` sees them; their texts are cut."""
    chars = max(_INBOX_TEXT_CHARS_MIN, INBOX_TEXT_CHARS_MAX // max(1, len(rows)))
    return that_fit([_cut(handoff_view(row, agent), chars) for row in rows], bytes_max)


def inbox_position(cursor: str | None) -> tuple[tuple[int, int], str | None]:
    """Return the position (priority, id) in a cursor of `inbox_view`, and the mark since which its list is, if any.

    Raises Invalid if the cursor is not one of an inbox.
    """
    if cursor is None:
        return INBOX_START, None
    priority, handoff_id, since = from_cursor(cursor, range(10), int, str)
    return (priority, handoff_id), since or None


def handoff_view(row: Record, viewer: str | None) -> dict[str, Any]:
    """Return a handoff in the form that callers receive, with what `viewer` should do next while it is open."""
    view = handoffs.view(row)
    step = NEXT.get((row["state"], _role(row, viewer)))
    if step is not None:
        view["next"] = step.format_map(row)
    return view


def cut_view(row: Record, viewer: str | None) -> dict[str, Any]:
    """Return the same for a list, in which the beginnings of texts are enough."""
    return _cut(handoff_view(row, viewer), EXCERPT_CHARS)


def changed_view(row: Record, viewer: str | None) -> dict[str, Any]:
    """Return the same for the agent that changed it and so knows its texts: long ones are cut."""
    return _cut(handoff_view(row, viewer), _TEXT_REPEATED_CHARS_MAX)


def _role(row: Record, viewer: str | None) -> str:
    """Return what the viewer is to the handoff, of what counts in its state."""
    if row["state"] in HELD_STATES:
        roles = {row["sender"]: "sender", row["holder"]: "holder"}
    else:
        roles = {row["sender"]: "sender", row["target_agent"]: "target"}
    other = "capable" if row["state"] == "offered" and row["target_agent"] is None else "other"
    return roles.get(viewer, other) if viewer is not None else other


async def configuration_view(app: App) -> dict[str, Any]:
    """What is in force in this process, the version in the database, and which defaults that replaces."""
    await app.policies.refresh()
    async with connection(app.pool) as conn:
        row = await configuration.newest(conn)
    shown = {name: row[name] for name in ("version", "at", "author", "reason")}
    monitoring = row["document"]["monitoring"]
    shown |= {"in_force": app.policies.in_force(), "set": [it["field"] for it in differences({}, monitoring)]}
    return shown | ({"refused": app.policies.problem} if app.policies.problem else {})


_INCIDENT_FIELDS: Final = (
    "id", "state", "severity", "component", "summary", "causes", "anomalies", "opened_at", "last_at", "escalated_at",
    "closed_at", "feedback", "feedback_by", "feedback_at",
)  # fmt: skip


def incident_view(row: Record) -> dict[str, Any]:
    """An incident, without what is not known."""
    return {name: row[name] for name in _INCIDENT_FIELDS if row[name] is not None}


_JOB_FIELDS: Final = (
    "runs", "successes", "failures", "mean_s", "last_s", "last_success_at", "last_failure_at", "last_error", "next_run_at",
    "paused_at", "paused_by", "asked_at",
)  # fmt: skip
_COUNTS: Final = frozenset({"runs", "successes", "failures"})


def job_view(row: Mapping[str, Any] | Record) -> dict[str, Any]:
    """A job, without what is not known: one that has never run has counts of 0 only."""
    found = dict(row)
    known = {name: found.get(name, 0 if name in _COUNTS else None) for name in _JOB_FIELDS}
    seconds = {name: round(known[name], 6) for name in ("mean_s", "last_s") if known[name] is not None}
    return {"name": found["name"], **{name: value for name, value in (known | seconds).items() if value is not None}}


def known_job(name: str) -> str:
    """The name, if a job has it. Raises NotFound, which names all jobs."""
    if name not in metrics.JOB.values:
        raise NotFound(
            "job_not_found", "The worker has no job of this name.", f"The jobs are {', '.join(sorted(metrics.JOB.values))}."
        )
    return name
