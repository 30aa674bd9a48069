"""The brief: what a receiver needs to know about a session, within a token budget.

Tokens are estimated as bytes of JSON divided by four. The instructions of handoffs have a limit of their own beside the
budget. Entries form groups by importance, each from newest to oldest. In a first pass each group may use a share of what is
left, and long texts are cut, so that no group starves the others. A second pass over the groups, in the same order, uses
what is left, so nothing that fits is left out or cut. What is left out is counted by kind, and listed by its first words
as far as a tenth of the budget allows. The module is pure and deterministic: rows in, a dict out.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, NamedTuple

from handoff import loops
from handoff.encoding import to_json
from handoff.facts import newest_check
from handoff.model import ENTRY_TYPES, HELD_STATES, MARKS, EntryCounts, Mark, actions_from

BYTES_PER_TOKEN: Final = 4
TOKENS_DEFAULT: Final = 4_000  # chosen from the measurements in docs/brief.md
INSTRUCTIONS_TOKENS_MAX: Final = 1_000  # accept_handoff returns longer instructions whole, beside the brief
CANDIDATES_MAX: Final = 2_000  # entries considered of each type and mark
PART_BYTES_MIN: Final = 50  # no part is smaller
TEXT_CHARS_MAX: Final = 4_000  # per entry
_PART_OVERHEAD_BYTES: Final = 2  # the comma, and one byte for rounding


class _Group(NamedTuple):
    share: float  # of what is left, in the first pass
    chars: int  # of each text, in the first pass


# In the order in which they get room. What is still open is short, so it gets room before what has been decided.
_GROUPS: Final[Mapping[str, _Group]] = {
    "progress": _Group(0.3, 600),
    "pinned": _Group(0.8, 600),
    "task": _Group(0.3, 600),
    "question": _Group(0.5, 300),
    "todo": _Group(0.5, 300),
    "decision": _Group(0.75, 300),
    "file": _Group(0.7, 240),
    "summary": _Group(0.5, 600),
    "message": _Group(0.5, 300),
    "tool_call": _Group(0.5, 240),
    "system": _Group(0.0, 240),
}
# In the order in which they are shown.
_SHOWN: Final = (
    *("progress", "pinned", "task", "decision", "question", "todo"),
    *("file", "summary", "message", "tool_call", "system"),
)
FIRST_CHARS_MAX: Final = max(group.chars for group in _GROUPS.values())
_CUT_CHARS_MIN: Final = 40  # a shorter excerpt would be of no use
_OTHERS_MAX: Final = 4  # earlier entries on the same file that a part names
_SETTLED_CHARS_MAX: Final = 200  # of the instructions of a settled handoff, and of any handoff's outcome or reason
_LIST_SHARE: Final = 0.1  # of the budget, for the list of what is left out
_LISTED_CHARS_MAX: Final = 60  # of each entry in it


@dataclass(slots=True, eq=False)
class _Candidate:
    kind: str
    text: str
    whole: bool
    sequences: list[int] = field(default_factory=list)
    author: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    shown: int = 0  # characters of the text that the brief has
    size: int = 0  # bytes that the part takes

    def part(self, chars: int) -> dict[str, Any]:
        part: dict[str, Any] = {"kind": self.kind}
        if self.sequences:
            part["sequences"] = self.sequences
        if self.author is not None:
            part["author"] = self.author
        part.update(self.extra)
        is_cut = chars < len(self.text) or not self.whole
        part["text"] = self.text[:chars] + "…" if is_cut else self.text
        if is_cut:
            part["cut"] = True
        return part

    def show(self, room: int, chars: int) -> int:
        """Show more of the text, up to `chars` characters or as many as fit into `room` more bytes; return the bytes used.

        Shows nothing rather than less than _CUT_CHARS_MIN characters of a longer text.
        """
        room += self.size
        high = min(chars, len(self.text))
        low = max(self.shown + 1, min(_CUT_CHARS_MIN, high))
        found: tuple[int, int] | None = None
        middle = high  # usually all of it fits
        while low <= high:
            size = len(to_json(self.part(middle))) + _PART_OVERHEAD_BYTES
            if size <= room:
                found, low = (middle, size), middle + 1
            else:
                high = middle - 1
            middle = (low + high) // 2
        if found is None:
            return 0
        before = self.size
        self.shown, self.size = found
        return self.size - before

    def first_words(self) -> str:
        words = " ".join(self.text[: 2 * _LISTED_CHARS_MAX].split())
        words = words if len(words) <= _LISTED_CHARS_MAX and self.whole else words[:_LISTED_CHARS_MAX] + "…"
        path = f" {self.extra['path']}" if "path" in self.extra else ""
        return f"{self.sequences[-1]} {self.kind}{path}: {words}"


def tokens_max(token_budget: int) -> int:
    """Return the size limit of a brief, in tokens: its budget, and the limit of its instructions, which is never larger."""
    return token_budget + min(INSTRUCTIONS_TOKENS_MAX, token_budget)


def compose(
    *,
    session_key: str,
    as_of_sequence: int,
    entries: Sequence[Mapping[str, Any]],
    handoffs: Sequence[Mapping[str, Any]],
    counts: EntryCounts,
    token_budget: int,
) -> dict[str, Any]:
    """Return the brief of a session; its JSON is at most `tokens_max(token_budget)` * 4 bytes long.

    Args:
        session_key: the session's key.
        as_of_sequence: the session's last sequence number.
        entries: rows of `store.entries.for_brief`: valid entries, newest first.
        handoffs: views of the session's newest handoffs, newest first.
        counts: the counts of the whole session's entries.
        token_budget: the size limit in tokens, without the instructions of handoffs.
    """
    best = _by_sequence(entries)
    instructions = [_of_handoff(row, as_of_sequence) for row in sorted(handoffs, key=_is_settled)]
    _fill(
        instructions, (tokens_max(token_budget) - token_budget) * BYTES_PER_TOKEN, INSTRUCTIONS_TOKENS_MAX * BYTES_PER_TOKEN
    )
    budget = token_budget * BYTES_PER_TOKEN
    room = budget - len(to_json(_frame(session_key, as_of_sequence, [], counts, best))) - 16  # for the final numbers' digits
    groups = _candidates(best, handoffs)
    room_left = room if _is_too_much(groups, room) else _choose(groups, room)
    if _left_out(groups):
        for candidate in chain.from_iterable(groups.values()):
            candidate.shown = candidate.size = 0
        for_list = int(budget * _LIST_SHARE)
        room_left = _choose(groups, room - for_list) + for_list
    chosen = (*instructions, *(it for name in _SHOWN for it in groups[name]))
    brief = _frame(session_key, as_of_sequence, [it.part(it.shown) for it in chosen if it.shown], counts, best)
    if listed := _listed(_left_out(groups), room_left):
        brief["omitted"]["listed"] = listed
    brief["tokens"] = _tokens(len(to_json(brief)) - len("0"))
    return brief


def _tokens(size_bytes: int) -> int:
    """Return the size in tokens of `size_bytes` of JSON plus the digits of the returned number itself."""
    tokens = 0
    while (more := -(-(size_bytes + len(str(tokens))) // BYTES_PER_TOKEN)) != tokens:
        tokens = more
    return tokens


def _is_too_much(groups: Mapping[str, list[_Candidate]], room: int) -> bool:
    """Return whether it is certain, without making the parts, that not all of them fit into `room` bytes."""
    texts = [min(len(candidate.text), _CUT_CHARS_MIN) for candidate in chain.from_iterable(groups.values())]
    return sum(texts) + len(texts) * (PART_BYTES_MIN - 1) > room


def _choose(groups: Mapping[str, list[_Candidate]], room: int) -> int:
    """Decide how much of each candidate to show within `room` bytes; return the bytes left."""
    for name, group in _GROUPS.items():
        room -= _fill(groups[name], int(room * group.share), group.chars)
    for name, group in _GROUPS.items():
        room -= _lengthen(groups[name], room, group.chars)
        room -= _fill(groups[name], room, group.chars)
        room -= _lengthen(groups[name], room, TEXT_CHARS_MAX)
    return room


def _fill(candidates: list[_Candidate], room: int, chars: int) -> int:
    """Show up to `chars` characters of each further candidate until one doesn't fit whole; return the bytes used."""
    used = 0
    for candidate in candidates:
        if not candidate.shown:
            used += candidate.show(room - used, chars)
            if candidate.shown < min(chars, len(candidate.text)):
                break
    return used


def _lengthen(candidates: list[_Candidate], room: int, chars: int) -> int:
    """Show up to `chars` characters of each candidate that is shown already; return the bytes used."""
    used = 0
    for candidate in candidates:
        if not candidate.shown:
            break
        used += candidate.show(room - used, chars)
    return used


def _left_out(groups: Mapping[str, list[_Candidate]]) -> list[_Candidate]:
    return [candidate for name in _SHOWN for candidate in groups[name] if not candidate.shown]


def _listed(candidates: list[_Candidate], room: int) -> list[str]:
    """Return the number, kind and first words of candidates, as many as fit into `room` bytes as a member of an object."""
    listed: list[str] = []
    room -= len(',"listed":[]')
    for candidate in candidates:
        line = candidate.first_words()
        room -= len(to_json(line)) + 1
        if room < 0:
            break
        listed.append(line)
    return listed


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
    found: dict[str, list[_Candidate]] = {group: [] for group in _GROUPS}
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
        found[kind].append(_Candidate(kind, text, whole, sequences, row["author"], extra))
    if messages := found["message"]:
        _move(found, min(messages, key=_beginning), "task")
    for held in (row for row in handoffs if row["state"] in HELD_STATES):
        by_holder = (it for it in (*found["summary"], *found["message"]) if it.author == held["holder"])
        since = (it for it in by_holder if it.sequences[-1] > held["as_of_sequence"])
        if (progress := next(since, None)) is not None:
            _move(found, progress, "progress")
    _judge([*found["progress"], *found["summary"]], entries)
    return found


def _judge(claims: Sequence[_Candidate], entries: Mapping[int, Mapping[str, Any]]) -> None:
    """Say of each claim whether it was checked, if anything was."""
    check = newest_check((sequence, row["metadata"]) for sequence, row in entries.items())
    if check is not None:
        for claim in claims:
            claim.extra["claim"] = check.standing(claim.sequences[-1])


def _beginning(candidate: _Candidate) -> int:
    """Return the lowest of a candidate's number and the numbers that it supersedes: what replaces the task is the task."""
    return min([candidate.sequences[0], *candidate.extra.get("supersedes", ())])


def _move(groups: dict[str, list[_Candidate]], candidate: _Candidate, group: str) -> None:
    groups[candidate.kind].remove(candidate)
    groups[group].append(candidate)


def _of_handoff(row: Mapping[str, Any], last_sequence: int) -> _Candidate:
    extra: dict[str, Any] = {
        "handoff_id": row["handoff_id"],
        "state": row["state"],
        "from": row["sender"],
        "to": row.get("target_agent") or f"any agent with {row.get('target_capability')}",
    }
    for name in ("request_type", "holder", "deadline"):
        if row.get(name) is not None:
            extra[name] = row[name]
    if row.get("loop") is not None and not _is_settled(row):
        extra["notice"] = loops.notice(row["loop"])
    for name in ("outcome", "reason"):
        if row.get(name) is not None:
            extra[name] = _excerpt(row[name])
    extra["as_of_sequence"] = row["as_of_sequence"]
    extra["entries_since"] = last_sequence - row["as_of_sequence"]
    text: str = row["instructions"]
    is_short = not _is_settled(row) or len(text) <= _SETTLED_CHARS_MAX
    return _Candidate("handoff", text if is_short else text[:_SETTLED_CHARS_MAX], is_short, extra=extra)


def _is_settled(handoff: Mapping[str, Any]) -> bool:
    return not actions_from(handoff["state"])


def _excerpt(text: str) -> str:
    return text if len(text) <= _SETTLED_CHARS_MAX else text[:_SETTLED_CHARS_MAX] + "…"


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
