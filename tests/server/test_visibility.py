"""Who sees what: existence, handoffs that are settled, capabilities, and what cursors carry."""

import base64
import json
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest

from handoff.app import open_app
from handoff.context import App
from handoff.server.auth import Tokens
from handoff.server.catalog import RESOURCES, TOOLS
from handoff.settings import Settings
from tests.agents import PAST, until
from tests.server.test_auth import code, line, read, said
from tests.server.test_http import edge

ENTRY = {"type": "message", "content": "x"}
TOKENS = (
    line("alice", "read,write")
    + line("bob", "read,write capabilities=review,deploy")
    + line("carol", "read,write capabilities=review")
    + line("dave", "read,write capabilities=*")
    + line("root", "admin")
    + line("eve", "read,write")
)


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(TOKENS)
    return path


@pytest.fixture
async def guarded(settings: Settings, tokens_file: Path) -> AsyncGenerator[App]:
    changed = {"tokens_file": tokens_file, "settle_interval_s": 0.05}
    async with open_app(settings.model_copy(update=changed)) as app:
        yield app


@pytest.fixture
async def http(guarded: App) -> AsyncGenerator[httpx2.AsyncClient]:
    async with edge(guarded) as client:
        yield client


# A call of each tool that names a session or a handoff, and the URI of each resource that does.
OF_SESSION: dict[str, dict[str, Any]] = {
    "close_session": {},
    "update_context": {"entries": [ENTRY]},
    "get_context": {},
    "search_context": {"query": "x"},
    "request_handoff": {"target_agent": "dave", "instructions": "x"},
}
OF_HANDOFF: dict[str, dict[str, Any]] = {
    "accept_handoff": {},
    "renew_handoff": {"token": 1},
    "resolve_handoff": {"action": "reject", "note": "x"},
}
ASKS_NEITHER = {"register_session", "get_inbox"}


async def test_who_may_not_see_a_session_gets_the_answers_of_one_that_does_not_exist(http: httpx2.AsyncClient) -> None:
    assert set(OF_SESSION) | set(OF_HANDOFF) | ASKS_NEITHER == {tool.name for tool in TOOLS}
    await said(http, "alice", "register_session", session_key="there")
    asked = {"session_key": "there", "target_agent": "dave", "instructions": "Go on."}
    number: int = (await said(http, "alice", "request_handoff", **asked))["handoff_id"]
    pairs: dict[str, tuple[str | int, str | int]] = {
        "key": ("there", "nowhere"),
        "id": (number, number + 1_000),
        "agent": ("alice", "nobody"),
    }

    def alike(kind: str, answers: list[dict[str, Any]]) -> bool:
        texts = [json.dumps({name: value for name, value in it.items() if name != "id"}) for it in answers]
        one, other = (re.sub(rf"\b{name}\b", "NAME", text) for name, text in zip(pairs[kind], texts, strict=True))
        return one == other

    for tool, more in OF_SESSION.items():
        answers = [await said(http, "eve", tool, session_key=it, **more) for it in pairs["key"]]
        assert answers[0]["error"]["code"] == "session_not_found", tool
        assert alike("key", answers), tool
    amends = {"instructions": "x", "session_key": "there"}
    for tool, more in [*OF_HANDOFF.items(), ("request_handoff", amends)]:
        answers = [await said(http, "eve", tool, handoff_id=it, **more) for it in pairs["id"]]
        assert answers[0]["error"]["code"] == "handoff_not_found", tool
        assert alike("id", answers), tool
    for resource in RESOURCES:
        for kind in [it for it in pairs if f"{{{it}}}" in resource.path]:
            answers = [await read(http, "eve", resource.path.format(**{kind: it})) for it in pairs[kind]]
            assert alike(kind, answers), resource.path


async def test_a_key_that_is_taken_by_a_foreign_session_is_refused_without_a_word_about_that(
    http: httpx2.AsyncClient,
) -> None:
    await said(http, "alice", "register_session", session_key="taken")

    refused = (await said(http, "eve", "register_session", session_key="taken"))["error"]
    assert (refused["code"], refused["message"]) == ("session_exists", "The session key 'taken' is taken.")
    assert set(refused) == {"code", "message", "try", "retryable"}
    assert (await said(http, "alice", "register_session", session_key="taken"))["error"]["owner"] == "alice"
    assert (await said(http, "root", "register_session", session_key="taken"))["error"]["owner"] == "alice"


async def test_a_token_declares_only_the_capabilities_that_its_line_allows(http: httpx2.AsyncClient) -> None:
    for who, capabilities, allowed in (
        ("bob", ["deploy", "review"], True),
        ("bob", ["deploy", "other"], False),
        ("alice", ["review"], False),
        ("alice", [], True),
        ("dave", ["whatever"], True),
        ("root", ["whatever"], True),
    ):
        answer = await said(http, who, "get_inbox", capabilities=capabilities)
        assert ("handoffs" in answer) is allowed, (who, capabilities)
    refused = (await said(http, "carol", "get_inbox", capabilities=["review", "deploy"]))["error"]
    assert refused["code"] == "capability_not_allowed"
    assert "'deploy'" in refused["message"]
    assert "no other capabilities than 'review'" in refused["try"]


async def test_capabilities_that_are_taken_from_a_token_are_taken_from_its_agent(
    http: httpx2.AsyncClient, guarded: App, tokens_file: Path, db: asyncpg.Connection
) -> None:
    await said(http, "bob", "get_inbox", capabilities=["review", "deploy"])
    await said(http, "dave", "get_inbox", capabilities=["deploy"])
    await said(http, "alice", "register_session", session_key="s")
    await said(http, "alice", "request_handoff", session_key="s", target_capability="deploy", instructions="Go on.")
    assert "error" not in await said(http, "bob", "get_context", session_key="s")

    tokens_file.write_text(TOKENS.replace("review,deploy", "review"))
    left = "SELECT capabilities FROM agent WHERE name = 'bob'"
    while await db.fetchval(left) != ["review"]:
        await until(lambda: guarded.tokens is not None and guarded.tokens.version > 1)
    assert await code(http, "bob", "get_context", session_key="s") == "session_not_found"
    assert await db.fetchval("SELECT capabilities FROM agent WHERE name = 'dave'") == ["deploy"]


async def test_a_handoff_is_shown_only_to_those_whom_it_still_concerns(
    http: httpx2.AsyncClient, db: asyncpg.Connection
) -> None:
    for who in ("bob", "carol"):
        await said(http, who, "get_inbox", capabilities=["review"])

    async def offered(**target: str) -> int:
        asked = {"session_key": "s", "instructions": "the launch code is rosebud", **target}
        return (await said(http, "alice", "request_handoff", **asked))["handoff_id"]

    async def seen_by(number: int) -> set[str]:
        everyone = ("alice", "bob", "carol", "dave", "eve")
        answers = {who: json.dumps(await read(http, who, f"handoff://handoffs/{number}")) for who in everyone}
        return {who for who, answer in answers.items() if "rosebud" in answer}

    await said(http, "alice", "register_session", session_key="s")
    number = await offered(target_capability="review")
    assert await seen_by(number) == {"alice", "bob", "carol"}
    token = (await said(http, "bob", "accept_handoff", handoff_id=number))["handoff"]["token"]
    assert await seen_by(number) == {"alice", "bob"}
    late = (await said(http, "carol", "accept_handoff", handoff_id=number))["error"]
    assert late["code"] == "wrong_state"
    assert "rosebud" not in json.dumps(late)
    await db.execute(PAST)
    assert await seen_by(number) == {"alice", "bob", "carol"}  # its lease has lapsed, so it can be accepted again
    token = (await said(http, "bob", "accept_handoff", handoff_id=number))["handoff"]["token"]
    await said(http, "bob", "resolve_handoff", handoff_id=number, action="complete", token=token)
    assert await seen_by(number) == {"alice", "bob"}

    number = await offered(target_agent="dave")
    await said(http, "alice", "resolve_handoff", handoff_id=number, action="cancel")
    assert await seen_by(number) == {"alice", "bob"}  # bob takes part in the session by now
    number = await offered(target_agent="dave")
    await said(http, "dave", "resolve_handoff", handoff_id=number, action="reject", note="No time.")
    assert await seen_by(number) == {"alice", "bob", "dave"}


async def test_a_cursor_of_the_list_of_sessions_carries_nothing_of_a_session_that_the_caller_may_not_see(
    http: httpx2.AsyncClient, db: asyncpg.Connection
) -> None:
    mine: set[int] = set()
    for number in range(12):
        who = "eve" if number % 4 == 0 else "alice"
        key = f"s{number}"
        await said(http, who, "register_session", session_key=key)
        if who == "eve":
            offer = {"session_key": key, "target_agent": "alice", "instructions": "Go on."}
            taken = await said(http, "eve", "request_handoff", **offer)
            await said(http, "alice", "accept_handoff", handoff_id=taken["handoff_id"])
            mine.add(await db.fetchval("SELECT id FROM session WHERE key = $1", key))

    uri, found, pages = "handoff://agents/alice/sessions?limit=1", list[str](), 0
    while uri:
        page = json.loads((await read(http, "eve", uri))["result"]["contents"][0]["text"])
        found += [it["session_key"] for it in page["sessions"]]
        cursor = page.get("next_cursor", "")
        if cursor:
            assert json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))[1] in mine
        uri = f"handoff://agents/alice/sessions?limit=1&cursor={cursor}" if cursor else ""
        pages += 1
    assert found == ["s8", "s4", "s0"]
    assert pages <= 4


@pytest.mark.parametrize("word", ["capabilities=", "capabilities=a,,b", "capability=a", "capabilities=a,*", "review"])
def test_a_line_with_a_wrong_list_of_capabilities_is_refused(tmp_path: Path, word: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(line("bob", f"read {word}"))
    with pytest.raises(ValueError, match=":1: the last word must be"):
        Tokens(path)
