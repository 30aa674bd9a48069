"""`handoff export` and `handoff import`: a session as one JSON Lines file with digests, which are verified on the way in.

The first line is about the session, then come its entries, its handoffs and its events, a line each. The last line has the
number of entries, their digest as receipts have it, and the SHA-256 of all lines before it.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from handoff.cli.people import read_entries, read_events
from handoff.cli.remote import DAMAGED, Failed, Remote, with_service
from handoff.cli.start import fail
from handoff.cli.terminal import print_json
from handoff.encoding import counted

FILE_FORMAT: Final = "handoff-session/1"
_ENTRIES_PER_CALL: Final = 50
_BYTES_PER_CALL: Final = 2 << 20
_PROVENANCE_METADATA_BYTES_MAX: Final = 16_000  # an entry with more keeps its metadata as they are: the service takes 16,384


@dataclass(frozen=True, slots=True)
class Exported:
    """What a verified file holds."""

    session: dict[str, Any]
    entries: list[dict[str, Any]]
    sha256: str


def export_command(arguments: argparse.Namespace) -> int:
    """Write a session to a file, or to standard output."""

    async def run(remote: Remote) -> int:
        key = arguments.key
        session = await remote.read(f"sessions/{key}")
        entries = await read_entries(remote, key)
        events = await read_events(remote, key)
        ids = dict.fromkeys(it["handoff_id"] for it in events if "handoff_id" in it)
        handoffs = [await remote.read(f"handoffs/{it}") for it in ids]
        text = _as_lines(session, entries, handoffs, events)
        if arguments.output is None:
            sys.stdout.write(text)
            return 0
        try:
            arguments.output.write_text(text, encoding="ascii")
        except OSError as error:
            return fail(f"{arguments.output}: {error.strerror}. Choose another file with --output.")
        end = json.loads(text.splitlines()[-1])["end"]
        if arguments.json:
            print_json({"session_key": key, "file": str(arguments.output), **end})
        else:
            written = counted(end["entries"], "entry", "entries")
            print(f"Session {key}: {written} in {arguments.output}, digest {end['context_digest']}")
        return 0

    return with_service(arguments, run)


def import_command(arguments: argparse.Namespace) -> int:
    """Verify a file, and write its session to the service as a new one of the caller's."""
    try:
        text = sys.stdin.read() if arguments.file == Path("-") else arguments.file.read_text(encoding="ascii")
        found = verified(text)
    except OSError as error:
        return fail(f"{arguments.file}: {error.strerror}.")
    except ValueError as error:
        fail(f"{arguments.file} is damaged: {error}. Nothing was imported; export the session again.")
        return DAMAGED

    async def run(remote: Remote) -> int:
        key = arguments.key or found.session["session_key"]
        written = await _imported(remote, found, key)
        if arguments.json:
            print_json({"session_key": key, "entries": written})
        else:
            print(f"Session {key}: {counted(written, 'entry', 'entries')} imported and verified.")
        return 0

    return with_service(arguments, run)


def verified(text: str) -> Exported:
    """What an exported file holds. Raises ValueError that says what is wrong, if anything was changed or cut off."""
    lines = text.splitlines(keepends=True)
    parsed = [_object(number, line) for number, line in enumerate(lines, 1)]
    if not parsed or parsed[0].get("format") != FILE_FORMAT:
        raise ValueError(f"its first line does not say {FILE_FORMAT!r}")
    end = parsed[-1].get("end")
    sha256 = hashlib.sha256("".join(lines[:-1]).encode()).hexdigest()
    if end is None:
        raise ValueError("its last line is missing")
    if end.get("sha256") != sha256:
        raise ValueError("its lines do not have the SHA-256 that the last one names")
    entries = [it["entry"] for it in parsed if "entry" in it]
    for place, entry in enumerate(entries, 1):
        if hashlib.sha256(entry["content"].encode()).hexdigest() != entry["content_hash"] or entry["sequence"] != place:
            raise ValueError(f"entry {place} is missing or was changed")
    if end.get("entries") != len(entries) or end.get("context_digest") != _digest(entries):
        raise ValueError("its entries do not have the digest that the last line names")
    for handoff in (it["handoff"] for it in parsed if "handoff" in it):
        if _digest(entries[: handoff["as_of_sequence"]]) != handoff["context_digest"]:
            raise ValueError(f"its entries do not match the receipt of handoff {handoff['handoff_id']}")
    return Exported(parsed[0]["session"], entries, sha256)


def _object(number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} is not JSON") from error
    if isinstance(found, dict):
        return found
    raise ValueError(f"line {number} is not a JSON object")


def _as_lines(
    session: dict[str, Any], entries: Sequence[dict[str, Any]], handoffs: Iterable[Any], events: Iterable[Any]
) -> str:
    records = [
        {"format": FILE_FORMAT, "session": session},
        *({"entry": it} for it in entries),
        *({"handoff": it} for it in handoffs),
        *({"event": it} for it in events),
    ]
    body = "".join(_line(it) for it in records)
    end = {
        "entries": len(entries),
        "context_digest": _digest(entries),
        "sha256": hashlib.sha256(body.encode()).hexdigest(),
    }
    return body + _line({"end": end})


def _line(record: Any) -> str:
    """A line in ASCII: no control character of an entry's content reaches a terminal."""
    return json.dumps(record, ensure_ascii=True, separators=(",", ":")).replace("\x7f", "\\u007f") + "\n"


def _digest(entries: Iterable[dict[str, Any]]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(it["content_hash"]) for it in entries)).hexdigest()


async def _imported(remote: Remote, found: Exported, key: str) -> int:
    """Register the session and append its entries. A repeat after a failure continues where that left off. Raises Failed."""
    about = {"from": found.session["session_key"], "owner": found.session["owner"], "sha256": found.sha256}
    metadata = _with_provenance(found.session["metadata"], "imported", about)
    idempotency = f"import-{found.sha256[:32]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    await remote.call("register_session", session_key=key, metadata=metadata, idempotency_key=idempotency)
    # The service writes the first entry of each session, about its registration, so the numbers stay those of the file.
    for number, batch in enumerate(_batches(found.entries[1:])):
        written = [_to_append(it) for it in batch]
        answer = await remote.call(
            "update_context", session_key=key, entries=written, idempotency_key=f"{idempotency}-{number}"
        )
        if answer["first_sequence"] != batch[0]["sequence"]:
            raise Failed(f"Session {key} was written to meanwhile. Import it under another key with --key.", DAMAGED)
        if answer["content_hashes"] != [it["content_hash"] for it in batch]:
            changed = next(it for it, of in zip(batch, answer["content_hashes"], strict=True) if it["content_hash"] != of)
            raise Failed(
                f"Entry {changed['sequence']} was stored in another form: the service replaced a secret in it. Entries up "
                f"to {batch[-1]['sequence']} are in session {key}.",
                DAMAGED,
            )
    return len(found.entries)


def _batches(entries: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    batches: list[list[dict[str, Any]]] = []
    room = 0
    for entry in entries:
        # What an entry supersedes must have been there before the call.
        of_earlier = not batches or max(entry.get("supersedes", [0])) < batches[-1][0]["sequence"]
        if not batches or len(batches[-1]) == _ENTRIES_PER_CALL or entry["size_bytes"] > room or not of_earlier:
            batches.append([])
            room = _BYTES_PER_CALL
        batches[-1].append(entry)
        room -= entry["size_bytes"]
    return batches


def _to_append(entry: dict[str, Any]) -> dict[str, Any]:
    about = {"author": entry["author"], "created_at": entry["created_at"]}
    kept = {name: entry[name] for name in ("type", "content", "supersedes") if name in entry}
    return kept | {"metadata": _with_provenance(entry.get("metadata") or {}, "imported", about)}


def _with_provenance(metadata: dict[str, Any], name: str, about: dict[str, Any]) -> dict[str, Any]:
    whole = metadata | {name: about}
    return whole if len(json.dumps(whole, ensure_ascii=False).encode()) <= _PROVENANCE_METADATA_BYTES_MAX else metadata
