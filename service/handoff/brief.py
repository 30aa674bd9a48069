"""The brief: what a receiver needs to know about a session, within a token budget.

Tokens are estimated as bytes of JSON divided by four. Groups of entries are ordered by importance, and the entries of one
group from newest to oldest. Each group may use a share of the remaining budget, so that none starves the groups after it. A
second pass over the groups, in the same order, uses what is left, so nothing that fits is left out. The module is pure and
deterministic: rows in, a dict out.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from handoff.encoding import to_json
from handoff.model import ENTRY_TYPES, MARKS, EntryCounts, Mark

BYTES_PER_TOKEN: Final = 4
CANDIDATES_MAX: Final = 2_000  # entries considered of each type and mark
PART_BYTES_MIN: Final = 50  # no part is smaller
TEXT_CHARS_MAX: Final = 4_000  # per entry
_PART_OVERHEAD_BYTES: Final = 2  # the comma, and one byte for rounding
# The groups, most important first, and the share of the remaining budget that each may use before the others had theirs.
_SHARES: Final[Mapping[str, float]] = {
    "handoff": 0.5,
    "pinned": 0.5,
    "decision": 0.4,
    "question": 0.5,
    "todo": 0.5,
    "first message": 0.5,
    "file": 0.4,
    "summary": 0.4,
    "message": 0.6,
    "tool_call": 0.6,
    "system": 1.0,
}
_HANDOFF_BYTES_MAX: Final = 1_600  # at first; accept_handoff returns the instructions whole beside a brief that cuts them
_CUT_CHARS_MIN: Final = 40  # a shorter excerpt would be of no use
_OTHERS_MAX: Final = 4  # earlier entries on the same file that a part names


@dataclass(slots=True)
class _Candidate:
    kind: str
    sequences: list[int]
    text: str
    whole: bool
    author: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    is_begun: bool = False  # a part with the beginning of its text is chosen

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
    counts: EntryCounts,
    token_budget: int,
) -> dict[str, Any]:
    """Return the brief of a session; its JSON is at most `token_budget` * 4 bytes long.

    Args:
        session_key: the session's key.
        as_of_sequence: the session's last sequence number.
        entries: rows of `store.entries.for_brief`: valid entries, newest first.
        handoffs: views of the session's newest handoffs, newest first.
        counts: the counts of the whole session's entries.
        token_budget: the maximum size, in tokens.
    """
    best = _by_sequence(entries)
    groups = _candidates(best, handoffs)
    frame = _frame(session_key, as_of_sequence, [], counts, best)
    left = token_budget * BYTES_PER_TOKEN - len(to_json(frame)) - 16  # the digits that the final numbers may add
    chosen: dict[str, list[dict[str, Any]]] = {group: [] for group in _SHARES}
    for group, share in _SHARES.items():
        budget = min(int(left * share), _HANDOFF_BYTES_MAX) if group == "handoff" else int(left * share)
        left -= _fill(groups[group], chosen[group], budget, cut_further=False)
    for group in _SHARES:
        if groups[group] and groups[group][0].is_begun:  # there may be room for more of its text now
            left += _size(chosen[group].pop())
        left -= _fill(groups[group], chosen[group], left, cut_further=True)
    parts = [part for group in _SHARES for part in chosen[group]]
    brief = _frame(session_key, as_of_sequence, parts, counts, best)
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

    The first one that does not fit is cut if it is the first of its group, or if `cut_further` is true. It then stays in
    `waiting` too, so that a second call can replace the part by a longer one.
    """
    used = 0
    while waiting:
        candidate = waiting[0]
        part = candidate.part()
        if used + _size(part) > budget:
            part = _cut(candidate, budget - used) if cut_further or not chosen else None
            if part is None:
                return used
            candidate.is_begun = True
            chosen.append(part)
            return used + _size(part)
        chosen.append(part)
        used += _size(part)
        waiting.pop(0)
    return used


def _size(part: dict[str, Any]) -> int:
    return len(to_json(part)) + _PART_OVERHEAD_BYTES


def _cut(candidate: _Candidate, budget: int) -> dict[str, Any] | None:
    """Return the candidate with as much text as fits into `budget` bytes, or None if less than _CUT_CHARS_MIN fits."""
    low, high = _CUT_CHARS_MIN, len(candidate.text) - 1
    best: dict[str, Any] | None = None
    while low <= high:
        middle = (low + high) // 2
        part = candidate.part(middle)
        if _size(part) <= budget:
            best, low = part, middle + 1
        else:
            high = middle - 1
    return best


def _by_sequence(entries: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """Return the entries by sequence number, each once, with its most important mark."""
    place: dict[Mark | None, int] = {mark: place for place, mark in enumerate(MARKS)}
    best: dict[int, Mapping[str, Any]] = {}
    for row in entries:
        known = best.get(row["sequence"])
        if known is None or place.get(row["mark"], len(place)) < place.get(known["mark"], len(place)):
            best[row["sequence"]] = row
    return best


def _kind(row: Mapping[str, Any]) -> str:
    """Return what an entry is shown and counted as: its mark, or else its type."""
    return row["mark"] or row["type"]


def _candidates(
    entries: Mapping[int, Mapping[str, Any]], handoffs: Sequence[Mapping[str, Any]]
) -> dict[str, list[_Candidate]]:
    found: dict[str, list[_Candidate]] = {group: [] for group in _SHARES}
    for row in handoffs:
        found["handoff"].append(_of_handoff(row))
    known_paths: set[str] = set()
    for sequence in sorted(entries, reverse=True):
        row = entries[sequence]
        kind = _kind(row)
        text: str = row["content"]
        extra: dict[str, Any] = {}
        if row["mark"] is not None and row["type"] != "message":
            extra["type"] = row["type"]
        path = (row["metadata"] or {}).get("path")
        if isinstance(path, str):
            extra["path"] = path[:500]
        if row["supersedes"]:
            extra["supersedes"] = row["supersedes"]
        sequences = [sequence]
        if kind == "file" and isinstance(path, str):
            if path in known_paths:
                continue
            known_paths.add(path)
            earlier = [other for other in row["others"] or [] if other != sequence]
            sequences = [*sorted(earlier)[-_OTHERS_MAX:], sequence]
        whole = len(text.encode()) == row["size_bytes"]
        found[kind].append(_Candidate(kind, sequences, text, whole, row["author"], extra))
    if found["message"]:  # the oldest, which usually says what the task is
        found["first message"].append(found["message"].pop())
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
    counts: EntryCounts,
    entries: Mapping[int, Mapping[str, Any]],
) -> dict[str, Any]:
    left_out = Counter[str]()
    for entry_type in ENTRY_TYPES:
        marked = sum(count for (_, type_), count in counts.marked.items() if type_ == entry_type)
        left_out[entry_type] = counts.all.get(entry_type, 0) - counts.superseded.get(entry_type, 0) - marked
    for (mark, _), count in counts.marked.items():
        left_out[mark] += count
    for part in parts:
        if part["kind"] != "handoff":
            for number in part["sequences"]:
                left_out[_kind(entries[number]) if number in entries else part["kind"]] -= 1
    return {
        "session_key": session_key,
        "as_of_sequence": as_of_sequence,
        "tokens": 0,
        "parts": parts,
        "omitted": {
            "entries": left_out.total(),
            "by_kind": {kind: count for kind, count in left_out.items() if count},
            "superseded": sum(counts.superseded.values()),
            "cut": sum("cut" in part for part in parts),
        },
    }
