"""Entries of any size: read in parts that are exact, and found by their words."""

import hashlib
from typing import Any

import orjson
import pytest

from tests.agents import Agent

CUT = ["a" * 150_000, "\x01" * 30_000, "é𝄞\n\\" * 20_000, "数据库" * 20_000]


@pytest.mark.parametrize("content", CUT, ids=["ASCII", "control characters", "mixed", "Chinese"])
async def test_a_long_entry_is_read_in_parts_that_are_exact_and_fit_a_page(agent: Agent, content: str) -> None:
    key = await agent.session()
    await agent.says(key, content)
    await agent.says(key, "after it")

    for token_budget, bytes_max in ((None, 65_536), (1_000, 4_000)):
        read, offset = "", 0
        while True:
            arguments = {"session_key": key, "view": "entries", "after_sequence": 1, "offset": offset}
            arguments |= {"token_budget": token_budget} if token_budget is not None else {}
            page = await agent.ok("get_context", agent="alice", **arguments)
            (part,) = page["entries"]
            assert len(orjson.dumps(part)) <= bytes_max
            assert (part["chars"], part["offset"], page["next_after_sequence"]) == (len(content), offset, 2)
            read += part["content"]
            if "next_offset" not in part:
                break
            assert f"repeat this call with offset={part['next_offset']}" in page["hint"]
            assert part["next_offset"] > offset
            offset = part["next_offset"]
        assert read == content
        assert part["content_hash"] == hashlib.sha256(content.encode()).hexdigest()

    whole = (await agent.read(f"handoff://context/{key}?after=1"))["entries"]
    assert (
        whole == (await agent.ok("get_context", agent="alice", session_key=key, view="entries", after_sequence=1))["entries"]
    )
    offset = whole[0]["next_offset"]
    (rest,) = (await agent.read(f"handoff://context/{key}?after=1&offset={offset}"))["entries"]
    assert rest["content"] == content[offset : offset + len(rest["content"])]


async def test_an_offset_past_the_end_is_refused_and_short_entries_are_whole(agent: Agent) -> None:
    key = await agent.session()
    await agent.says(key, "short")

    page = await agent.ok("get_context", agent="alice", session_key=key, view="entries", after_sequence=1)
    assert page["entries"][0].keys().isdisjoint({"chars", "offset", "next_offset"})
    arguments = {"session_key": key, "view": "entries", "after_sequence": 1}
    (part,) = (await agent.ok("get_context", agent="alice", **arguments, offset=2))["entries"]
    assert (part["content"], part["chars"], "next_offset" in part) == ("ort", 5, False)
    refused = await agent.refused("get_context", agent="alice", **arguments, offset=5)
    assert "has 5 characters" in refused["message"]


async def test_search_finds_words_phrases_and_exclusions_best_first(agent: Agent) -> None:
    key, other = await agent.session(), await agent.session()
    await agent.says(key, "The migration of the ledger failed on Tuesday.")
    await agent.says(key, "Ledger ledger ledger: three migrations.")
    await agent.says(other, "The ledger is fine.")
    await agent.says(await agent.session("carol"), "A ledger of carol's.", agent="carol")

    async def found(query: str, **more: Any) -> list[tuple[str, int]]:
        matches = (await agent.ok("search_context", agent="alice", query=query, **more))["matches"]
        return [(match["session_key"], match["sequence"]) for match in matches]

    assert sorted(await found("ledger")) == sorted([(key, 2), (key, 3), (other, 2)])
    assert (await found("ledger", session_key=key))[0] == (key, 3)
    assert await found('"ledger failed"') == [(key, 2)]
    assert sorted(await found("ledger -migration")) == [(other, 2)]
    assert await found("'; drop table session;--") == []
    first = await agent.ok("search_context", agent="alice", query="ledger", limit=1)
    assert (len(first["matches"]), first["more"]) == (1, True)
    assert "**" in first["matches"][0]["snippet"]


@pytest.mark.parametrize("text", ["", " ".join(f"w{number}" for number in range(150_000)), "x" * 1_000_000])
async def test_an_entry_of_any_size_is_stored_even_if_search_can_index_only_part_of_it(agent: Agent, text: str) -> None:
    key = await agent.session()
    content = text[:1_048_000] + " needle"

    await agent.says(key, content)

    read = ""
    offset: int | None = 0
    while offset is not None:
        arguments = {"session_key": key, "view": "entries", "after_sequence": 1, "offset": offset}
        (part,) = (await agent.ok("get_context", agent="alice", **arguments))["entries"]
        read += part["content"]
        offset = part.get("next_offset")
    assert read == content
