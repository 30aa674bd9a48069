"""The brief of a session that agents wrote: what is shown first, what is left out, and what is no longer valid."""

from collections import Counter
from math import ceil
from typing import Any

import asyncpg
import pytest

from handoff.brief import BYTES_PER_TOKEN, TOKENS_DEFAULT, tokens_max
from handoff.encoding import to_json
from handoff.model import ENTRY_TYPES
from tests.agents import Agent
from tests.test_brief import KINDS


async def test_the_most_important_kinds_come_first_and_within_them_the_newest_entries(agent: Agent) -> None:
    key = await agent.session()
    entries = [
        {"type": "message", "content": "old news"},
        {"type": "decision", "content": "use Postgres"},
        {"type": "message", "content": "Which port?", "metadata": {"question": True}},
        {"type": "file", "content": "begun", "metadata": {"path": "a.py"}},
        {"type": "decision", "content": "use port 80"},
        {"type": "file", "content": "half done", "metadata": {"path": "a.py"}},
        {"type": "message", "content": "new news"},
    ]
    await agent.ok("update_context", agent="alice", session_key=key, entries=entries)
    await agent.offer(key, instructions="Finish it.")

    made = (await agent.ok("get_context", agent="bob", session_key=key))["brief"]

    assert [(part["kind"], part["text"], part.get("sequences")) for part in made["parts"][:-1]] == [
        ("handoff", "Finish it.", None),
        ("message", "old news", [2]),  # the task
        ("decision", "use port 80", [6]),
        ("decision", "use Postgres", [3]),
        ("question", "Which port?", [4]),
        ("file", "half done", [5, 7]),
        ("message", "new news", [8]),
    ]


async def test_superseded_entries_and_answered_questions_are_left_out(agent: Agent) -> None:
    key = await agent.session()
    first = [
        {"type": "decision", "content": "use SQLite"},
        {"type": "message", "content": "Which port?", "metadata": {"question": True}},
    ]
    await agent.ok("update_context", agent="alice", session_key=key, entries=first)
    second = [{"type": "decision", "content": "use Postgres on 5432", "supersedes": [2, 3]}]
    await agent.ok("update_context", agent="alice", session_key=key, entries=second)

    made = (await agent.ok("get_context", agent="alice", session_key=key))["brief"]

    assert [part["text"] for part in made["parts"] if part["kind"] in ("decision", "question")] == ["use Postgres on 5432"]
    assert (made["omitted"]["superseded"], made["omitted"]["entries"]) == (2, 0)


@pytest.mark.parametrize("budget", [200, 1_500, 5_000])
async def test_the_brief_of_a_long_session_fits_its_budget_and_keeps_the_important_parts(
    agent: Agent, db: asyncpg.Connection, budget: int
) -> None:
    key = await agent.session()
    for start in range(0, 500, 50):
        kinds = ["decision" if number % 25 == 0 else "message" for number in range(start, start + 50)]
        entries = [{"type": kind, "content": f"{kind} {start} " + "and so on " * 40} for kind in kinds]
        await agent.ok("update_context", agent="alice", session_key=key, entries=entries)
    handoff_id = await agent.offer(key, instructions="Go on with the migration. " * 10)

    taken = await agent.ok("accept_handoff", agent="bob", handoff_id=handoff_id, token_budget=budget)

    made = taken["brief"]
    assert len(to_json(made)) <= tokens_max(budget) * BYTES_PER_TOKEN
    assert made["parts"][0]["kind"] == "handoff"
    assert made["parts"][0]["text"].startswith("Go on with the migration.")
    assert made["omitted"]["entries"] > 400
    assert made["as_of_sequence"] == 501
    if budget >= 1_500:
        assert {"decision", "message"} <= {part["kind"] for part in made["parts"]}
        assert len(to_json(made)) > budget * BYTES_PER_TOKEN * 0.8  # and the budget is used


async def test_the_receiver_gets_the_whole_instructions_whatever_the_budget(agent: Agent) -> None:
    key = await agent.session()
    instructions = "Read this to the end. " * 800
    handoff_id = await agent.offer(key, instructions=instructions)

    taken = await agent.ok("accept_handoff", agent="bob", handoff_id=handoff_id)

    assert taken["handoff"]["instructions"] == instructions
    assert taken["brief"]["parts"][0]["cut"] is True


async def test_a_brief_of_five_hundred_entries_fits_the_default_budget_and_is_reproducible(agent: Agent) -> None:
    key = await agent.session()
    for start in range(0, 500, 50):
        entries = [
            {
                "type": ENTRY_TYPES[number % 6],
                "content": f"{number} " + "and so on " * 30,
                "metadata": {"question": number % 97 == 0},
            }
            for number in range(start, start + 50)
        ]
        await agent.ok("update_context", agent="alice", session_key=key, entries=entries)
    await agent.ok(
        "update_context",
        agent="alice",
        session_key=key,
        entries=[{"type": "summary", "content": "all of it", "supersedes": [2, 3, 4, 499]}],
    )

    made = (await agent.ok("get_context", agent="alice", session_key=key))["brief"]

    assert TOKENS_DEFAULT * 0.9 < made["tokens"] == ceil(len(to_json(made)) / BYTES_PER_TOKEN) <= TOKENS_DEFAULT
    shown = {number for part in made["parts"] for number in part["sequences"]}
    assert made["omitted"]["superseded"] == 4
    assert made["omitted"]["entries"] + len(shown) + 4 == 502 == made["as_of_sequence"]
    assert not shown & {2, 3, 4, 499}
    kinds = [part["kind"] for part in made["parts"] if part["sequences"] != [8]]  # the first message has its own place
    assert list(dict.fromkeys(kinds)) == [kind for kind in KINDS[1:] if kind in kinds]
    assert {"decision", "question", "summary", "message"} <= set(kinds)
    assert (await agent.ok("get_context", agent="alice", session_key=key))["brief"] == made
    small = (await agent.ok("get_context", agent="alice", session_key=key, token_budget=300))["brief"]
    assert small["tokens"] <= 300


async def test_what_was_superseded_stays_so_however_much_is_superseded_later(agent: Agent) -> None:
    key = await agent.session()
    first = [
        {"type": "decision", "content": "We use MySQL."},
        {"type": "message", "content": "Which port?", "metadata": {"question": True}},
    ]
    await agent.ok("update_context", agent="alice", session_key=key, entries=first)
    answer = [{"type": "decision", "content": "Postgres, not MySQL, on 5432.", "supersedes": [2, 3]}]
    await agent.ok("update_context", agent="alice", session_key=key, entries=answer)
    last = (await agent.ok("update_context", agent="alice", session_key=key, entries=[{"type": "file", "content": "0"}]))[
        "last_sequence"
    ]
    for _ in range(21):
        entries = [{"type": "file", "content": "x", "supersedes": [last]}] * 50
        last = (await agent.ok("update_context", agent="alice", session_key=key, entries=entries))["last_sequence"]

    made = (await agent.ok("get_context", agent="alice", session_key=key, token_budget=20_000))["brief"]
    summary = await agent.read(f"handoff://summary/{key}")
    page = await agent.ok("get_context", agent="alice", session_key=key, view="entries", limit=3)
    found = await agent.ok("search_context", agent="alice", query="MySQL", session_key=key)

    assert [part["text"] for part in made["parts"] if part["kind"] in ("decision", "question")] == [answer[0]["content"]]
    assert made["parts"][0]["supersedes"] == [2, 3]
    assert [point["text"] for point in summary["key_points"]] == [answer[0]["content"]]
    assert [entry.get("superseded_by") for entry in page["entries"]] == [None, 4, 4]
    assert {match["sequence"]: match.get("superseded_by") for match in found["matches"]} == {2: 4, 4: None}
    assert made["omitted"]["superseded"] == 2 + 21


async def test_nothing_that_fits_is_left_out_and_what_is_left_out_is_counted_by_kind(agent: Agent) -> None:
    key = await agent.session()
    decisions = [{"type": "decision", "content": f"decision {number}"} for number in range(45)]
    questions = [{"type": "message", "content": f"question {n}?", "metadata": {"question": True}} for n in range(45)]
    work = [{"type": "system", "content": f"to do {n}", "metadata": {"todo": True}} for n in range(5)]
    for entries in (decisions, questions, work):
        await agent.ok("update_context", agent="alice", session_key=key, entries=entries)

    whole = (await agent.ok("get_context", agent="alice", session_key=key, token_budget=20_000))["brief"]
    small = (await agent.ok("get_context", agent="alice", session_key=key, token_budget=500))["brief"]
    listed = await agent.ok("get_context", agent="alice", session_key=key, view="entries", only="question", limit=100)

    assert (whole["omitted"]["entries"], whole["omitted"]["by_kind"]) == (0, {})
    shown = Counter(part["kind"] for part in whole["parts"])
    assert (shown["decision"], shown["question"], shown["todo"]) == (45, 45, 5)
    left = Counter(part["kind"] for part in small["parts"])
    assert small["omitted"]["by_kind"]["question"] == 45 - left["question"] > 0
    assert [entry["content"] for entry in listed["entries"]] == [entry["content"] for entry in questions]


@pytest.mark.parametrize("mark", ["pinned", "todo"])
async def test_a_marked_entry_is_shown_before_newer_ones_until_it_is_superseded(agent: Agent, mark: str) -> None:
    key = await agent.session()
    entry = {"type": "message", "content": "Never delete the old table.", "metadata": {mark: True}}
    await agent.ok("update_context", agent="alice", session_key=key, entries=[entry])
    for _ in range(4):
        await agent.ok(
            "update_context", agent="alice", session_key=key, entries=[{"type": "message", "content": "so on " * 20}] * 50
        )

    made = (await agent.ok("get_context", agent="alice", session_key=key, token_budget=400))["brief"]
    assert [part["text"] for part in made["parts"] if part["kind"] == mark] == [entry["content"]]

    done = [{"type": "message", "content": "It is gone.", "supersedes": [2]}]
    await agent.ok("update_context", agent="alice", session_key=key, entries=done)
    made = (await agent.ok("get_context", agent="alice", session_key=key, token_budget=400))["brief"]
    assert mark not in {part["kind"] for part in made["parts"]}


async def decide(agent: Agent, key: str, first: int, count: int) -> None:
    for start in range(first, first + count, 50):
        entries = [
            {"type": "decision", "content": f"decision {n} " + "because of this " * 8} for n in range(start, start + 50)
        ]
        await agent.ok("update_context", agent="alice", session_key=key, entries=entries)


async def test_instructions_take_no_room_from_what_was_decided(agent: Agent) -> None:
    key = await agent.session()
    await decide(agent, key, 0, 50)
    asked = {"agent": "alice", "session_key": key, "token_budget": 1_500}
    before = (await agent.ok("get_context", **asked))["brief"]
    await agent.offer(key, instructions="Read this to the end. " * 800)

    after = (await agent.ok("get_context", **asked))["brief"]

    assert after["parts"][0]["kind"] == "handoff"
    assert 900 < after["tokens"] - before["tokens"] <= 1_000
    assert after["parts"][1:] == before["parts"]


async def test_what_is_left_out_is_listed_by_its_first_words_most_important_first(agent: Agent) -> None:
    key = await agent.session()
    await decide(agent, key, 0, 100)
    entries = [
        {"type": "message", "content": "The task."},
        {"type": "file", "content": "half done,\n  missing: tests " + "x" * 300, "metadata": {"path": "a.py"}},
    ]
    await agent.ok("update_context", agent="alice", session_key=key, entries=entries)

    made = (await agent.ok("get_context", agent="alice", session_key=key, token_budget=1_000))["brief"]

    shown = {part["sequences"][0] for part in made["parts"]}
    listed = made["omitted"]["listed"]
    newest = max(number for number in range(2, 102) if number not in shown)
    assert listed[0] == f"{newest} decision: decision {newest - 2} because of this because of this because of this …"
    assert [int(line.split()[0]) for line in listed] == list(range(newest, newest - len(listed), -1))
    assert 3 < len(listed) < made["omitted"]["by_kind"]["decision"]
    assert made["tokens"] <= 1_000
    one = await agent.ok("get_context", agent="alice", session_key=key, view="entries", after_sequence=newest - 1, limit=1)
    assert [entry["sequence"] for entry in one["entries"]] == [newest]


async def test_a_long_text_does_not_keep_other_decisions_out_but_is_whole_where_there_is_room(agent: Agent) -> None:
    key = await agent.session()
    entries = [{"type": "decision", "content": f"{n}: " + "long " * 500} for n in range(4)]
    await agent.ok("update_context", agent="alice", session_key=key, entries=entries)

    small = (await agent.ok("get_context", agent="alice", session_key=key, token_budget=1_000))["brief"]
    large = (await agent.ok("get_context", agent="alice", session_key=key, token_budget=5_000))["brief"]

    decisions = [part for part in small["parts"] if part["kind"] == "decision"]
    assert [part["text"][0] for part in decisions] == ["3", "2", "1", "0"]
    assert all(part["cut"] for part in decisions)
    assert len(decisions[0]["text"]) > len(decisions[3]["text"])  # the newest gets what is left
    assert [part["text"] for part in large["parts"] if part["kind"] == "decision"] == [it["content"] for it in entries[::-1]]


async def test_old_test_runs_do_not_displace_decisions(agent: Agent) -> None:
    key = await agent.session()
    await decide(agent, key, 0, 50)
    runs = [{"type": "tool_call", "content": f"run {n}: " + "ok " * 300} for n in range(50)]
    asked = {"agent": "alice", "session_key": key, "token_budget": 3_000}
    before = (await agent.ok("get_context", **asked))["brief"]
    await agent.ok("update_context", agent="alice", session_key=key, entries=runs)

    after = (await agent.ok("get_context", **asked))["brief"]

    kinds = Counter(part["kind"] for part in after["parts"])
    assert kinds["decision"] >= 0.8 * len(before["parts"])
    assert after["parts"][-1]["kind"] != "decision"
    runs_shown = [part["text"][:6] for part in after["parts"] if part["kind"] == "tool_call"]
    assert runs_shown[:1] == ["run 49"]


async def test_a_handoff_says_up_to_where_its_instructions_speak_and_the_holders_progress_follows(agent: Agent) -> None:
    key = await agent.session()
    await agent.says(key, "The task.")
    summary = {"type": "summary", "content": "Half done."}
    await agent.ok("update_context", agent="alice", session_key=key, entries=[summary])
    handoff_id = await agent.offer(key, instructions="Half is done.")
    await agent.accept(handoff_id)
    progress = [{"type": "summary", "content": "All done but the tests."}, {"type": "message", "content": "So on."}]
    await agent.ok("update_context", agent="bob", session_key=key, entries=progress)

    made = (await agent.ok("get_context", agent="alice", session_key=key))["brief"]

    offer, follows, *rest = made["parts"]
    assert (offer["state"], offer["as_of_sequence"], offer["entries_since"]) == ("accepted", 3, 2)
    assert (follows["kind"], follows["author"], follows["text"]) == ("summary", "bob", "All done but the tests.")
    assert [part["text"] for part in rest[:-1]] == ["The task.", "Half done.", "So on."]
    assert made["omitted"]["entries"] == 0


async def test_a_settled_handoff_shows_its_outcome_and_the_beginning_of_its_instructions(agent: Agent) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key, instructions="Do this and that. " * 100)
    token = await agent.accept(handoff_id)
    await agent.ok("resolve_handoff", agent="bob", handoff_id=handoff_id, token=token, action="complete", note="done " * 100)
    await agent.offer(key, to="carol", instructions="Check it.")

    made = (await agent.ok("get_context", agent="alice", session_key=key))["brief"]

    newest, settled = made["parts"][:2]
    assert (newest["state"], newest["text"]) == ("offered", "Check it.")
    assert (settled["state"], settled["cut"]) == ("completed", True)
    assert len(settled["text"]) == len(settled["outcome"]) == 201


async def test_what_supersedes_the_task_is_the_task(agent: Agent) -> None:
    key = await agent.session()
    await agent.says(key, "The task: use MySQL.")
    await agent.says(key, "Some talk.")
    await decide(agent, key, 0, 50)
    changed = {"type": "message", "content": "The task: use Postgres.", "supersedes": [2]}
    await agent.ok("update_context", agent="alice", session_key=key, entries=[changed])
    await agent.says(key, "And so on.")

    made = (await agent.ok("get_context", agent="alice", session_key=key, token_budget=600))["brief"]

    assert made["parts"][0]["text"] == changed["content"]


async def test_the_newest_note_of_each_file_is_shown_and_open_work_until_it_is_closed(agent: Agent) -> None:
    key = await agent.session()
    entries = [
        {"type": "file", "content": "begun", "metadata": {"path": "a.py"}},
        {"type": "file", "content": "half done, missing: the tests", "metadata": {"path": "a.py"}},
        {"type": "file", "content": "done", "metadata": {"path": "b.py"}},
        {"type": "message", "content": "write the tests of a.py", "metadata": {"todo": True}},
        {"type": "message", "content": "write the docs", "metadata": {"todo": True}},
    ]
    await agent.ok("update_context", agent="alice", session_key=key, entries=entries)
    closes = {"type": "tool_call", "content": "12 tests pass", "supersedes": [5]}
    await agent.ok("update_context", agent="alice", session_key=key, entries=[closes])

    made = (await agent.ok("get_context", agent="alice", session_key=key))["brief"]

    files = [(part["path"], part["text"]) for part in made["parts"] if part["kind"] == "file"]
    assert files == [("b.py", "done"), ("a.py", "half done, missing: the tests")]
    assert [part["text"] for part in made["parts"] if part["kind"] == "todo"] == ["write the docs"]
    assert [part["supersedes"] for part in made["parts"] if part["kind"] == "tool_call"] == [[5]]


async def test_a_retracted_entry_is_in_no_brief_and_marked_wherever_it_is_read_and_the_retraction_is_no_fact(
    agent: Agent,
) -> None:
    key = await agent.session()
    entries = [
        {"type": "message", "content": "The task concerns apples."},
        {"type": "decision", "content": "Ship apples on Friday."},
        {"type": "message", "content": "Apples or pears?", "metadata": {"question": True}},
        {"type": "message", "content": "More of apples."},
    ]
    await agent.ok("update_context", agent="alice", session_key=key, entries=entries)
    withdrawn = {
        "type": "decision",
        "content": "Never said: apples.",
        "metadata": {"retraction": True},
        "supersedes": [3, 4],
    }
    await agent.ok("update_context", agent="alice", session_key=key, entries=[withdrawn])
    replaced = {"type": "message", "content": "More of apples, again.", "supersedes": [5]}
    await agent.ok("update_context", agent="alice", session_key=key, entries=[replaced])

    made = (await agent.ok("get_context", agent="alice", session_key=key))["brief"]
    page = await agent.ok("get_context", agent="alice", session_key=key, view="entries")
    resource = await agent.read(f"handoff://context/{key}")
    decisions = await agent.read(f"handoff://context/{key}?type=decision")
    found = await agent.ok("search_context", agent="alice", query="apples", session_key=key)
    summary = await agent.read(f"handoff://summary/{key}")

    assert [part["text"] for part in made["parts"][:-1]] == ["The task concerns apples.", "More of apples, again."]
    assert made["omitted"] == {"entries": 0, "by_kind": {}, "superseded": 4, "cut": 0}
    marked = {3: (6, True), 4: (6, True), 5: (7, None)}
    for rows in (page["entries"], resource["entries"], found["matches"], decisions["entries"]):
        for row in rows:
            assert (row.get("superseded_by"), row.get("retracted")) == marked.get(row["sequence"], (None, None))
    assert len(found["matches"]) == 6
    assert "superseded_by" not in summary["last_message"]
    assert summary["key_points"] == []
    await agent.ok("update_context", agent="alice", session_key=key, entries=[withdrawn | {"supersedes": [2, 7]}])
    summary = await agent.read(f"handoff://summary/{key}")
    for edge in ("first_message", "last_message"):
        assert (summary[edge]["superseded_by"], summary[edge]["retracted"]) == (8, True)


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"metadata": {"retraction": True}}, "must name the entries that it withdraws in supersedes"),
        ({"metadata": {"retraction": True, "todo": True}, "supersedes": [1]}, "can't also be marked as 'todo'"),
        ({"metadata": {"retraction": "true"}, "supersedes": [1]}, "must be true or false"),
        ({"metadata": {"Retraction": True}, "supersedes": [1]}, "write 'retraction'"),
    ],
)
async def test_a_retraction_without_its_effect_is_refused(agent: Agent, entry: dict[str, Any], why: str) -> None:
    key = await agent.session()

    error = await agent.refused(
        "update_context", agent="alice", session_key=key, entries=[{"type": "message", "content": "x", **entry}]
    )

    assert error["code"] == "invalid_arguments"
    assert why in error["message"]
