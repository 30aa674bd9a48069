"""The composer, given any entries: the brief stays within its budget and reports exactly what it leaves out."""

from collections import Counter
from math import ceil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from handoff.brief import BYTES_PER_TOKEN, TEXT_CHARS_MAX, compose, tokens_max
from handoff.encoding import to_json
from handoff.model import ENTRY_TYPES, MARKS, SEQUENCE_MAX, SESSION_KEY_CHARS_MAX, EntryCounts, EntryType

KINDS = ("handoff", "pinned", "decision", "question", "todo", "file", "summary", "message", "tool_call", "system")


def repeated(text: str, times: int) -> str:
    return (text * times)[:TEXT_CHARS_MAX]


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=400) | st.builds(
    repeated, st.sampled_from(["word ", "äöü", "😀", '"\\\n']), st.integers(1, 2_000)
)


def row(kind: str, text: str, path: str | None, *, whole: bool, question: bool) -> dict[str, Any]:
    return {
        "type": kind,
        "content": text,
        "size_bytes": len(text.encode()) + (0 if whole else 10),
        "metadata": {"path": path} if path else None,
        "author": "ada",
        "mark": "question" if question else None,
        "supersedes": None,
        "others": None,
    }


def offer(text: str, state: str) -> dict[str, Any]:
    return {
        "handoff_id": 7,
        "state": state,
        "sender": "ada",
        "target_agent": "bob",
        "as_of_sequence": 1,
        "instructions": text,
        "outcome": text,
    }


paths = st.none() | st.sampled_from(["a.py", "b.py", "c/d.py"])


rows = st.builds(row, st.sampled_from(ENTRY_TYPES), texts, paths, whole=st.booleans(), question=st.booleans())


offers = st.builds(offer, texts, st.sampled_from(["offered", "completed"]))


def brief(entries: list[dict[str, Any]], handoffs: list[dict[str, Any]], budget: int, unseen: int = 0) -> dict[str, Any]:
    numbered = [{**entry, "sequence": len(entries) - place + unseen} for place, entry in enumerate(entries)]
    counts = Counter[EntryType](entry["type"] for entry in entries)
    counts["message"] += unseen
    counts["decision"] += 3
    return compose(
        session_key="s",
        as_of_sequence=len(entries) + unseen + 3,
        entries=numbered,
        handoffs=handoffs,
        counts=EntryCounts(
            counts, {"decision": 3}, Counter((entry["mark"], entry["type"]) for entry in entries if entry["mark"])
        ),
        token_budget=budget,
    )


def numbered(entries: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {len(entries) - place: entry for place, entry in enumerate(entries)}


def kind_of(entry: dict[str, Any]) -> str:
    return entry["mark"] or entry["type"]


@hypothesis_settings(max_examples=150, deadline=None)
@given(st.lists(rows, max_size=40), st.lists(offers, max_size=3), st.integers(200, 20_000), st.integers(0, 5_000))
def test_a_brief_stays_within_its_budget_and_its_counts_add_up(
    entries: list[dict[str, Any]], handoffs: list[dict[str, Any]], budget: int, unseen: int
) -> None:
    made = brief(entries, handoffs, budget, unseen)

    assert len(to_json(made)) <= tokens_max(budget) * BYTES_PER_TOKEN
    instructions = [part for part in made["parts"] if part["kind"] == "handoff"]
    rest = made | {"parts": [part for part in made["parts"] if part["kind"] != "handoff"]}
    assert len(to_json(rest)) <= budget * BYTES_PER_TOKEN
    assert len(to_json(instructions)) <= (tokens_max(budget) - budget) * BYTES_PER_TOKEN
    assert made["tokens"] == ceil(len(to_json(made)) / BYTES_PER_TOKEN)
    shown = {number for part in made["parts"] if part["kind"] != "handoff" for number in part["sequences"]}
    assert made["omitted"]["entries"] == len(entries) + unseen - len(shown) == sum(made["omitted"]["by_kind"].values())
    left_out = Counter(kind_of(entry) for place, entry in enumerate(entries) if len(entries) - place + unseen not in shown)
    left_out["message"] += unseen
    assert made["omitted"]["by_kind"] == {kind: count for kind, count in left_out.items() if count}
    assert made["omitted"]["superseded"] == 3
    assert made["omitted"]["cut"] == sum("cut" in part for part in made["parts"])
    assert made == brief(entries, handoffs, budget, unseen)


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.lists(rows, max_size=40), st.lists(offers, max_size=3), st.integers(200, 5_000))
def test_the_newest_entries_of_a_kind_come_first_and_none_is_left_out_in_favour_of_an_older_one(
    entries: list[dict[str, Any]], handoffs: list[dict[str, Any]], budget: int
) -> None:
    made = brief(entries, handoffs, budget)
    everything = brief([entry | {"content": "."} for entry in entries], [], 1_000_000)

    messages = [number for number, entry in numbered(entries).items() if kind_of(entry) == "message"]
    first = min(messages, default=0)
    # The first message has a place of its own.
    parts = [part for part in made["parts"] if part.get("sequences") != [first]]
    order = [KINDS.index(part["kind"]) for part in parts]
    assert order == sorted(order)
    for kind in KINDS[1:]:
        newest = [part["sequences"][-1] for part in parts if part["kind"] == kind]
        assert newest == sorted(newest, reverse=True)
        of_kind = [
            part["sequences"][-1] for part in everything["parts"] if part["kind"] == kind and part["sequences"] != [first]
        ]
        assert newest == of_kind[: len(newest)]


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.lists(rows, max_size=40), st.lists(offers, max_size=3), st.integers(200, 5_000))
def test_a_cut_part_is_marked_and_begins_with_the_text_of_its_entry(
    entries: list[dict[str, Any]], handoffs: list[dict[str, Any]], budget: int
) -> None:
    made = brief(entries, handoffs, budget)

    whole = numbered(entries)
    for part in made["parts"]:
        if part["kind"] == "handoff":
            texts_of, is_whole = [handoff["instructions"] for handoff in handoffs], "cut" not in part
        else:
            entry = whole[part["sequences"][-1]]
            assert part.get("path") == (entry["metadata"] or {}).get("path")
            texts_of = [entry["content"]]
            is_whole = entry["size_bytes"] == len(entry["content"].encode())
        if part["text"] in texts_of:
            assert ("cut" in part) != is_whole
        else:
            assert part["cut"] is True
            assert part["text"].endswith("…")
            assert any(text.startswith(part["text"][:-1]) for text in texts_of)


def test_the_newest_files_come_first_whether_they_have_a_path_or_not() -> None:
    entries = [
        row("file", "new", "new.py", whole=True, question=False),
        row("file", "middle " * 60, None, whole=True, question=False),
        row("file", "old", "old.py", whole=True, question=False),
    ]

    made = brief(entries, [], 2_000)

    assert [part["sequences"] for part in made["parts"]] == [[3], [2], [1]]


@pytest.mark.parametrize("budget", [200, 201, 333])
def test_the_longest_key_and_the_largest_numbers_still_fit_the_smallest_budget(budget: int) -> None:
    made = compose(
        session_key="k" * SESSION_KEY_CHARS_MAX,
        as_of_sequence=SEQUENCE_MAX,
        entries=[
            row("message", "x" * 4_000, None, whole=True, question=False) | {"sequence": SEQUENCE_MAX, "author": "a" * 100}
        ],
        handoffs=[],
        counts=EntryCounts(
            dict.fromkeys(ENTRY_TYPES, 30_000_000),
            dict.fromkeys(ENTRY_TYPES, 10_000_000),
            {(mark, type_): 3_000_000 for mark in MARKS for type_ in ENTRY_TYPES},
        ),
        token_budget=budget,
    )

    assert made["tokens"] == ceil(len(to_json(made)) / BYTES_PER_TOKEN) <= budget


@hypothesis_settings(max_examples=50, deadline=None)
@given(st.lists(rows, max_size=30))
def test_with_a_large_enough_budget_nothing_is_cut_or_left_out(entries: list[dict[str, Any]]) -> None:
    whole = [entry | {"size_bytes": len(entry["content"].encode()), "metadata": None} for entry in entries]

    made = brief(whole, [offer("Go on.", "offered")], 200_000)

    assert made["omitted"] == {"entries": 0, "by_kind": {}, "superseded": 3, "cut": 0}
    texts_shown: list[str] = [part["text"] for part in made["parts"]]
    texts_given = [str(entry["content"]) for entry in whole] + ["Go on."]
    assert sorted(texts_shown) == sorted(texts_given)
