"""The brief: what a receiver needs to know about a session, within a token budget.

Tokens are estimated as bytes of JSON divided by four. Kinds of entries are ordered by importance, and entries of one kind
from newest to oldest. Each kind may use a share of the remaining budget, so that none starves the kinds after it. A second
pass over the kinds, in the same order, uses what is left. The module is pure and deterministic: rows in, a dict out.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from handoff.encoding import to_json
from handoff.model import EntryType

BYTES_PER_TOKEN: Final = 4
NEWEST: Final[dict[EntryType, int]] = {
    "decision": 40, "summary": 3, "message": 40, "file": 60, "tool_call": 15, "system": 3,
}  # entries considered per type  # fmt: skip
TEXT_CHARS_MAX: Final = 4_000  # per entry
_PART_OVERHEAD_BYTES: Final = 2  # the comma, and one byte for rounding
_SHARES: Final[tuple[tuple[str, float], ...]] = (
    ("handoff", 0.5),
    ("decision", 0.4),
    ("question", 0.5),
    ("summary", 0.4),
    ("message", 0.6),
    ("file", 0.6),
    ("tool_call", 0.6),
    ("system", 1.0),
)
_CUT_CHARS_MIN: Final = 40  # a shorter excerpt would be of no use


@dataclass(slots=True)
class _Candidate:
    kind: str
    sequences: list[int]
    text: str
    whole: bool
    author: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def part(self, chars: int | None = None) -> dict[str, Any]:
        cut = chars is not None and chars < len(self.text)
        part: dict[str, Any] = {"kind": self.kind, "sequences": self.sequences}
        if self.author is not None:
            part["author"] = self.author
        part.update(self.extra)
        part["text"] = self.text[:chars] + "…" if cut else self.text
        if cut or not self.whole:
            part["cut"] = True
        return part


def compose(
    *,
    session_key: str,
    as_of_sequence: int,
    entries: Sequence[Mapping[str, Any]],
    handoffs: Sequence[Mapping[str, Any]],
    counts: Mapping[str, int],
    superseded: int,
    token_budget: int,
) -> dict[str, Any]:
    """Return the brief of a session; its JSON is at most `token_budget` * 4 bytes long.

    Args:
        session_key: the session's key.
        as_of_sequence: the session's last sequence number.
        entries: rows of `store.entries.for_brief`: newest first, without superseded ones.
        handoffs: views of the session's newest handoffs, newest first.
        counts: the number of entries per type in the whole session.
        superseded: the number of superseded entries in the whole session.
        token_budget: the maximum size, in tokens.
    """
    by_kind = _candidates(entries, handoffs)
    types = {row["sequence"]: row["type"] for row in entries}
    frame = _frame(session_key, as_of_sequence, [], counts, superseded, types)
    left = token_budget * BYTES_PER_TOKEN - len(to_json(frame)) - 16  # the digits that the final numbers may add
    chosen: dict[str, list[dict[str, Any]]] = {kind: [] for kind, _ in _SHARES}
    for kind, share in _SHARES:
        left -= _fill(by_kind[kind], chosen[kind], int(left * share), cut_further=False)
    for kind, _ in _SHARES:
        left -= _fill(by_kind[kind], chosen[kind], left, cut_further=True)
    parts = [part for kind, _ in _SHARES for part in chosen[kind]]
    brief = _frame(session_key, as_of_sequence, parts, counts, superseded, types)
    brief["tokens"] = _tokens(len(to_json(brief)) - len("0"))
    return brief


def _tokens(size_bytes: int) -> int:
    """Return the size in tokens of `size_bytes` of JSON plus the digits of the returned number itself."""
    tokens = 0
    while (more := -(-(size_bytes + len(str(tokens))) // BYTES_PER_TOKEN)) != tokens:
        tokens = more
    return tokens


def _fill(waiting: list[_Candidate], chosen: list[dict[str, Any]], budget: int, *, cut_further: bool) -> int:
    """Move candidates from `waiting` to `chosen` while they fit into `budget` bytes; return the bytes used.

    A candidate that does not fit is cut if it would be the first of its kind, or if `cut_further` is true.
    """
    used = 0
    while waiting:
        candidate = waiting[0]
        part = candidate.part()
        size = len(to_json(part)) + _PART_OVERHEAD_BYTES
        if used + size > budget:
            part = _cut(candidate, budget - used) if cut_further or not chosen else None
            if part is None:
                return used
            size = len(to_json(part)) + _PART_OVERHEAD_BYTES
        chosen.append(part)
        used += size
        waiting.pop(0)
    return used


def _cut(candidate: _Candidate, budget: int) -> dict[str, Any] | None:
    """Return the candidate with as much text as fits into `budget` bytes, or None if less than _CUT_CHARS_MIN fits."""
    low, high = _CUT_CHARS_MIN, len(candidate.text) - 1
    best: dict[str, Any] | None = None
    while low <= high:
        middle = (low + high) // 2
        part = candidate.part(middle)
        if len(to_json(part)) + _PART_OVERHEAD_BYTES <= budget:
            best, low = part, middle + 1
        else:
            high = middle - 1
    return best


def _candidates(entries: Sequence[Mapping[str, Any]], handoffs: Sequence[Mapping[str, Any]]) -> dict[str, list[_Candidate]]:
    found: dict[str, list[_Candidate]] = {kind: [] for kind, _ in _SHARES}
    for row in handoffs:
        found["handoff"].append(_of_handoff(row))
    files: dict[str, list[int]] = {}
    for row in entries:
        kind = "question" if row["question"] else row["type"]
        path = (row["metadata"] or {}).get("path") if kind == "file" else None
        if isinstance(path, str):
            files.setdefault(path[:500], []).append(row["sequence"])
            continue
        text: str = row["content"]
        whole = len(text.encode()) == row["size_bytes"]
        found[kind].append(_Candidate(kind, [row["sequence"]], text, whole, row["author"]))
    for path, sequences in files.items():
        found["file"].append(_Candidate("file", sorted(sequences)[-5:], path, whole=True))
    found["file"].sort(key=lambda candidate: -candidate.sequences[-1])
    return found


def _of_handoff(row: Mapping[str, Any]) -> _Candidate:
    to = row.get("target_agent") or f"any agent with {row.get('target_capability')}"
    extra: dict[str, Any] = {"handoff_id": row["handoff_id"], "state": row["state"], "from": row["sender"], "to": to}
    for name in ("request_type", "holder", "deadline", "outcome", "reason"):
        if row.get(name) is not None:
            extra[name] = row[name]
    outcome = extra.get("outcome")
    if isinstance(outcome, str) and len(outcome) > 500:
        extra["outcome"] = outcome[:500] + "…"
    return _Candidate("handoff", [row["as_of_sequence"]], row["instructions"], whole=True, extra=extra)


def _frame(
    session_key: str,
    as_of_sequence: int,
    parts: list[dict[str, Any]],
    counts: Mapping[str, int],
    superseded: int,
    types: Mapping[int, str],
) -> dict[str, Any]:
    shown: set[int] = {number for part in parts if part["kind"] != "handoff" for number in part["sequences"]}
    shown_of = Counter(types[number] for number in shown)
    return {
        "session_key": session_key,
        "as_of_sequence": as_of_sequence,
        "tokens": 0,
        "parts": parts,
        "omitted": {
            "entries": sum(counts.values()) - len(shown),
            "by_type": {name: count - shown_of[name] for name, count in counts.items() if count > shown_of[name]},
            "superseded": superseded,
            "cut": sum("cut" in part for part in parts),
        },
    }
