"""A session's context: appending entries, reading them, and searching them."""

import hashlib
from functools import partial
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, ValidationInfo
from pydantic.config import JsonDict

from handoff.brief import BYTES_PER_TOKEN, TOKENS_DEFAULT
from handoff.context import Call
from handoff.encoding import that_fit, to_json
from handoff.errors import Forbidden, Invalid
from handoff.model import MARKS, RETRACTION, SEQUENCE_MAX, EntryType, Mark
from handoff.store import entries, search, sessions
from handoff.store.append import Append, Appended, NewEntry
from handoff.store.connect import connection, snapshot
from handoff.store.idempotency import fingerprint, former_fingerprint
from handoff.telemetry.calls import AttributeValue, CallRecord
from handoff.tools.contract import (
    AgentArg,
    Arguments,
    BudgetArg,
    IdempotencyKeyArg,
    MetadataArg,
    SessionKeyArg,
    TokenArg,
    Tool,
    acting_agent,
    no_nul,
    result_with,
)
from handoff.views import brief_of, entries_page

ENTRIES_PER_CALL_MAX = 50
PATH_CHARS_MAX = 500
METADATA_BESIDE_BRIEF_BYTES_MAX = 1_024  # of a session's metadata; more would outweigh the budget of a short brief
# Some model APIs refuse objects without any names, and others let models write only the names that are listed.
_LISTED_METADATA: Final[JsonDict] = {
    "path": {"type": "string", "maxLength": PATH_CHARS_MAX},
    **{mark: {"type": "boolean"} for mark in (*MARKS, RETRACTION)},
}
NOTHING_TO_FIND = (
    "This query can't find anything: no term of it is in any index. Not indexed are signs, the most common English and "
    "Russian words (such as 'the' and 'for'), and single characters of scripts without spaces (write at least two). "
    "Search for another word of the entry."
)
SequenceArg = Annotated[int, Field(ge=1, le=SEQUENCE_MAX)]


def marks_count(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata, if each of its marks counts, without marks that are null and a path that is empty.

    Raises ValueError, so that no mark is accepted and then ignored.
    """
    left_out: list[str] = []
    for name, value in metadata.items():
        mark = name.strip().casefold()
        if mark in (*MARKS, RETRACTION):
            if name != mark:
                raise ValueError(f"{name!r} is not a mark; write {mark!r}")
            if value is None:
                left_out.append(name)
            elif not isinstance(value, bool):
                raise ValueError(f"{mark!r} must be true or false, without quotes")
        elif mark == "path":
            if name != mark:
                raise ValueError(f"{name!r} is not a mark; write 'path'")
            if value is None or value == "":
                left_out.append(name)
            elif not isinstance(value, str) or len(value) > PATH_CHARS_MAX:
                raise ValueError(f"'path' must be text of at most {PATH_CHARS_MAX} characters")
    return {name: value for name, value in metadata.items() if name not in left_out} if left_out else metadata


def retracts_something(metadata: dict[str, Any], entry: ValidationInfo) -> dict[str, Any]:
    """The metadata, if it is that of no retraction, or of one with an effect and no other mark. Raises ValueError."""
    if metadata.get(RETRACTION) is True:
        if not entry.data.get("supersedes"):
            raise ValueError("a retraction must name the entries that it withdraws in supersedes")
        if marks := [mark for mark in MARKS if metadata.get(mark) is True]:
            raise ValueError(f"a retraction can't also be marked as {marks[0]!r}; append that as an entry of its own")
    return metadata


class Entry(Arguments):
    """An entry to append. `supersedes` holds sequence numbers of earlier entries of the session."""

    type: EntryType
    content: Annotated[str, Field(min_length=1), AfterValidator(no_nul)]
    supersedes: Annotated[list[SequenceArg], Field(max_length=32)] | None = None
    metadata: (
        Annotated[
            MetadataArg,
            AfterValidator(marks_count),
            AfterValidator(retracts_something),
            Field(json_schema_extra={"properties": _LISTED_METADATA}),
        ]
        | None
    ) = None  # validated after supersedes


class UpdateContext(Arguments):
    """Append entries, numbered from first_sequence.

    Types: decision; file (its state; metadata path: project-relative); message (said or asked; the first is
    the task); tool_call (a result worth keeping); summary (where the work stands); system (about the session). metadata:
    question: an open one; todo: open work; pinned: every brief shows it; retraction: withdraws the superseded; other
    names are free. supersedes: sequences that this entry replaces, answers or closes.
    token: your lease's, refused once it no longer holds; or 0.
    """

    agent: AgentArg = None
    session_key: SessionKeyArg
    entries: Annotated[list[Entry], Field(min_length=1, max_length=ENTRIES_PER_CALL_MAX)]
    expected_sequence: Annotated[int, Field(ge=0, le=SEQUENCE_MAX)] | None = None
    token: TokenArg | None = None
    idempotency_key: IdempotencyKeyArg = None

    def read_by_others(self) -> list[str]:
        """The same as for other tools, but faster for most calls."""
        texts: list[str] = []
        for entry in self.entries:
            if entry.metadata:
                return super().read_by_others()
            texts.append(entry.content)
        return texts


class GetContext(Arguments):
    """Read a session: a brief within token_budget plus instructions, or its entries in pages.

    only: valid entries so marked.
    """

    agent: AgentArg = None
    session_key: SessionKeyArg
    view: Literal["brief", "entries"] = "brief"
    token_budget: BudgetArg = TOKENS_DEFAULT
    only: Mark | None = None
    after_sequence: Annotated[int, Field(ge=0, le=SEQUENCE_MAX)] = 0
    offset: Annotated[int, Field(ge=0, le=SEQUENCE_MAX)] = 0
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class SearchContext(Arguments):
    """Search entries of one session or all of yours. query: words, "phrases", or, -not."""

    agent: AgentArg = None
    query: Annotated[str, Field(min_length=1, max_length=500), AfterValidator(no_nul)]
    session_key: SessionKeyArg | None = None
    limit: Annotated[int, Field(ge=1, le=50)] = 10


async def update_context(call: Call, args: UpdateContext) -> dict[str, Any]:
    """Append the entries, together with those of other calls; return their sequence numbers and SHA-256 hashes.

    Raises Invalid when an entry is larger than the settings allow, and whatever the append raises (see `store/append.py`).
    """
    agent = acting_agent(call.caller, args.agent)
    new = [_measured(entry, call.app.settings.content_bytes_max) for entry in args.entries]
    size_bytes = sum(entry.size_bytes for entry in new)
    item = Append(
        args.session_key,
        agent,
        new,
        call.received,
        supersedes_max=max((max(entry.supersedes, default=0) for entry in args.entries if entry.supersedes), default=0),
        expected_sequence=args.expected_sequence,
        idempotency_key=args.idempotency_key,
        fingerprint=fingerprint("update_context", args) if args.idempotency_key is not None else None,
        former_fingerprint=former_fingerprint("update_context", args) if args.idempotency_key is not None else None,
        size_bytes=size_bytes,
        token=args.token,
    )
    appends = call.app.admission.appends
    appends.take(agent)
    item.release = partial(appends.give_back, agent)
    try:
        done = await call.app.lane.append(item)
    except Forbidden:
        async with connection(call.app.pool) as conn:  # who may not see the session learns nothing of it
            await sessions.see(conn, args.session_key, call.caller.viewer(agent))
        raise
    if item.record is not None:
        item.record.noted = partial(_noted, item.record, new, done)
    return {
        "session_key": args.session_key,
        "first_sequence": done.first_sequence,
        "last_sequence": done.first_sequence + len(new) - 1,
        "size_bytes": size_bytes,
        "content_hashes": [entry.content_hash.hex() for entry in new],
        "created_at": done.at,
        "replayed": done.replayed,
    }


def _noted(record: CallRecord, new: list[NewEntry], done: Appended) -> dict[str, AttributeValue | None]:
    """What the call's log line says of an append: what was written, how long it waited for its statement and then took."""
    written = record.operations[-1] if record.operations else None
    return {
        "entries": len(new),
        "types": new[0].type if len(new) == 1 else ",".join(sorted({entry.type for entry in new})),
        "first_sequence": done.first_sequence,
        "queued_ms": (written.start_ns - record.start_ns) // 1_000 / 1e3 if written is not None else None,
        "statement_ms": (written.end_ns - written.start_ns) // 1_000 / 1e3 if written is not None else None,
    }


async def get_context(call: Call, args: GetContext) -> dict[str, Any]:
    """Return the session with its brief, or with a page of its entries. Raises NotFound when the caller may not read it."""
    agent = acting_agent(call.caller, args.agent)
    viewer = call.caller.viewer(agent)
    if args.view == "brief":
        if args.only is not None:
            raise Invalid(
                "invalid_arguments",
                "only selects among entries, so it needs view=entries.",
                f"Repeat the call with view=entries, or without only: a brief shows every open {args.only} that fits.",
            )
        session, brief = await brief_of(call.app, args.session_key, viewer, args.token_budget, reader=agent)
        return {"session": _beside_brief(sessions.view(session)), "brief": brief}
    bytes_max = call.app.settings.page_bytes_max
    if "token_budget" in args.model_fields_set:
        bytes_max = min(bytes_max, args.token_budget * BYTES_PER_TOKEN)
    async with snapshot(call.app.pool) as conn:
        session = await sessions.see(conn, args.session_key, viewer)
        rows = await entries.page(
            conn,
            session,
            after=args.after_sequence,
            limit=1 if args.offset else args.limit,
            bytes_max=bytes_max,
            mark=args.only,
        )
    shown = entries_page(rows, bytes_max, args.offset)
    page: dict[str, Any] = {"session": sessions.view(session), "entries": shown}
    if shown and shown[-1]["sequence"] < session["last_sequence"]:
        page["next_after_sequence"] = shown[-1]["sequence"]
    if "next_offset" in (shown[-1] if shown else ()):
        page["hint"] = (
            f"Entry {shown[-1]['sequence']} is cut; it has {shown[-1]['chars']} characters. "
            f"For its next part, repeat this call with offset={shown[-1]['next_offset']}."
        )
    return page


async def search_context(call: Call, args: SearchContext) -> dict[str, Any]:
    """Return the entries that match, best first, and whether there are more. Raises NotFound as `get_context` does."""
    agent = acting_agent(call.caller, args.agent)
    viewer = call.caller.viewer(agent)
    async with call.app.admission.reads.turn(agent), snapshot(call.app.pool) as conn:
        session = await sessions.see(conn, args.session_key, viewer) if args.session_key is not None else None
        found = await search.search(
            conn,
            args.query,
            session=session,
            viewer=viewer if session is None else None,
            limit=args.limit + 1,
        )
    rows = found.rows if found is not None else []
    fields = ("session_key", "sequence", "type", "author", "created_at", "superseded_by", "retracted")
    matches = [
        {name: row[name] for name in fields if row[name] is not None} | {"snippet": search.snippet(row, args.query)}
        for row in rows[: args.limit]
    ]
    shown = that_fit(matches, call.app.settings.page_bytes_max)
    page: dict[str, Any] = {"matches": shown, "more": len(rows) > len(shown)}
    if found is None:
        page["hint"] = NOTHING_TO_FIND
    if found is not None and found.is_bounded:
        page["bounded"] = (
            f"Only the newest {found.ranked} matches were ranked. To find others, add words to the query"
            f"{' or name a session_key' if session is None else ''}."
        )
    return page


def _beside_brief(session: dict[str, Any]) -> dict[str, Any]:
    """Return the session without its metadata, but with their size, if they have more than is shown beside a brief."""
    size_bytes = len(to_json(session["metadata"]))
    if size_bytes > METADATA_BESIDE_BRIEF_BYTES_MAX:
        del session["metadata"]
        session["metadata_bytes"] = size_bytes
    return session


def _measured(entry: Entry, bytes_max: int) -> NewEntry:
    content = entry.content.encode()
    if len(content) > bytes_max:
        raise Invalid(
            "invalid_arguments",
            f"An entry's content has {len(content)} bytes; the limit is {bytes_max} bytes.",
            "Split the content over several entries. Nothing was appended.",
            bytes_max=bytes_max,
        )
    return NewEntry(
        entry.type,
        entry.content,
        to_json(entry.metadata).decode() if entry.metadata is not None else None,
        ",".join(map(str, entry.supersedes)) if entry.supersedes else None,
        len(content),
        hashlib.sha256(content).digest(),
    )


UPDATE_CONTEXT = Tool(
    "update_context",
    UpdateContext,
    update_context,
    result_with("last_sequence", "integer"),
    "write",
)
GET_CONTEXT = Tool(
    "get_context",
    GetContext,
    get_context,
    result_with("session", "object"),
    "read",
    read_only=True,
)
SEARCH_CONTEXT = Tool(
    "search_context",
    SearchContext,
    search_context,
    result_with("matches", "array"),
    "read",
    read_only=True,
)
