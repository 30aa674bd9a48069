"""The pages at /ui, over HTTP as a browser asks for them; what agents write into them is hostile."""

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client

from handoff.app import open_app
from handoff.context import App
from handoff.operations.readiness import Readiness
from handoff.server.calls import call_tool
from handoff.server.edge import Edge
from handoff.server.http import pages_of
from handoff.server.protocol import build_server
from handoff.settings import Settings
from tests.agents import Agent, until
from tests.collector import Collector
from tests.server.test_auth import line, said

BASE = "http://127.0.0.1:8642"
FORM = {"origin": BASE, "sec-fetch-site": "same-origin"}
HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>\"'{{ 7*7 }}\u202egnp.exe\x1b[2J"
ELEMENTS = re.compile(
    "html|head|meta|title|link|body|a|header|footer|strong|nav|main|h1|h2|form|label|input|button|select|option|textarea|p|pre|"
    "ol|ul|li|dl|dt|dd|div|table|thead|tbody|tr|th|td|span|bdi|time|code|details|summary"
)


class Page(HTMLParser):
    """A page's elements, and the text that it shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.links: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links |= {value or "" for name, value in attrs if name in ("href", "src", "action")}

    def handle_data(self, data: str) -> None:
        self.text += data


@asynccontextmanager
async def browsing(app: App) -> AsyncGenerator[httpx2.AsyncClient]:
    server = build_server(app)
    edge = Edge(
        server,
        app.settings,
        readiness=Readiness(app.health.probe).problem,
        tokens=app.tokens,
        call_tool=partial(call_tool, app),
        pages=pages_of(app),
    )
    transport = httpx2.ASGITransport(edge)
    async with server.session_manager.run(), httpx2.AsyncClient(transport=transport, base_url=BASE) as client:
        yield client


@pytest.fixture
async def browser(app: App) -> AsyncGenerator[httpx2.AsyncClient]:
    async with browsing(app) as client:
        yield client


@pytest.fixture
async def guarded(settings: Settings, tmp_path: Path) -> AsyncGenerator[App]:
    tokens = tmp_path / "tokens"
    tokens.write_text(
        line("alice", "read,write") + line("bob", "read,write") + line("reader", "read") + line("root", "admin")
    )
    async with open_app(settings.model_copy(update={"tokens_file": tokens})) as app:
        yield app


async def shown(browser: httpx2.AsyncClient, path: str, status: int = 200) -> Page:
    """A page, which has nothing in it that could run or load anything, and no character that could mislead."""
    answer = await browser.get(path)
    assert answer.status_code == status, answer.text
    page = Page(answer.text)
    assert all(map(ELEMENTS.fullmatch, page.elements)), page.elements
    assert not {it for it in page.attributes if it.startswith("on") or it in ("style", "srcset")}
    assert all(it.startswith(("/ui", "#")) for it in page.links), page.links
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", answer.text)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["cache-control"] == "no-store"
    return page


async def test_a_person_follows_a_handoff_through_the_pages(browser: httpx2.AsyncClient, agent: Agent) -> None:
    key = await agent.session(session_key="team:1+a@b")
    for type_, metadata in (("decision", {}), ("message", {"question": True}), ("message", {"pinned": True})):
        entry = {"type": type_, "content": f"{type_} {sorted(metadata)}", "metadata": metadata}
        await agent.ok("update_context", agent="alice", session_key=key, entries=[entry])
    offered = await agent.offer(key, instructions="Migrate the ledger.", deadline_minutes=90)

    inbox = await shown(browser, "/ui/inbox")
    for words in ("alice", "bob", "Migrate the ledger.", "1 h left"):
        assert words in inbox.text
    assert f"/ui/handoffs/{offered}" in inbox.links
    assert "Nobody holds a handoff." in (await shown(browser, "/ui/inbox?state=held")).text
    assert "/ui/sessions/team%3A1%2Ba%40b" in (await shown(browser, "/ui/sessions?status=active&agent=alice")).links
    trail = await shown(browser, "/ui/sessions/team%3A1%2Ba%40b")
    for words in ("decision []", "message ['question']", "handoff.offered", "offered"):
        assert words in trail.text
    for only, words in (("decision", "decision []"), ("question", "message ['question']"), ("pinned", "message ['pinned']")):
        some = (await shown(browser, f"/ui/sessions/{key}?only={only}")).text
        assert words in some
        assert some.count("message [") + some.count("decision [") == 1
    handoff = await shown(browser, f"/ui/handoffs/{offered}")
    receipt = await agent.read(f"handoff://handoffs/{offered}")
    assert receipt["context_digest"] in handoff.text
    assert "Migrate the ledger." in (await shown(browser, f"/ui/sessions/{key}/brief")).text
    health = (await shown(browser, "/ui/health")).text
    assert "The service is" in health
    assert "database" in health
    found = await shown(browser, "/ui/sessions?text=decision&agent=alice")
    assert "**decision**" in found.text
    assert "enter the agent" in (await shown(browser, "/ui/sessions?text=decision")).text
    await shown(browser, "/ui/sessions/unknown", 404)
    await shown(browser, "/ui/handoffs/999", 404)
    await shown(browser, "/ui/nothing", 404)
    assert (await browser.get("/ui")).headers["location"] == "/ui/inbox"
    assert (await browser.get("/ui/style.css")).headers["content-type"].startswith("text/css")


async def test_what_agents_write_is_shown_as_text(browser: httpx2.AsyncClient, agent: Agent) -> None:
    key = await agent.session(metadata={HOSTILE: HOSTILE})
    entry = {"type": "decision", "content": HOSTILE, "metadata": {"pinned": True, "path": HOSTILE}}
    await agent.ok("update_context", agent="alice", session_key=key, entries=[entry])
    offered = await agent.offer(key, instructions=HOSTILE)
    await agent.ok("resolve_handoff", agent="bob", handoff_id=offered, action="reject", note=HOSTILE)
    await agent.offer(key, instructions=HOSTILE)

    paths = ["/ui/inbox", f"/ui/sessions/{key}", f"/ui/sessions/{key}/brief", f"/ui/handoffs/{offered}"]
    for path in paths:
        page = await shown(browser, path)
        assert "<script>alert(1)</script>" in page.text
        assert "\\u202egnp.exe\\x1b[2J" in page.text
    assert "**alert**" in (await shown(browser, "/ui/sessions?agent=alice&text=alert")).text
    hostile = "%22%3E%3Cscript%3Ealert(1)%3C/script%3E"
    assert (await browser.get(f"/ui/sessions?agent={hostile}")).status_code == 400
    await shown(browser, f"/ui/sessions?text={hostile}&status={hostile}")
    await shown(browser, f"/ui/sessions/{hostile}", 404)


async def test_a_person_offers_and_cancels_and_a_form_of_another_site_changes_nothing(
    browser: httpx2.AsyncClient, agent: Agent
) -> None:
    key = await agent.session()
    form = {
        "agent": "alice",
        "target_agent": "bob",
        "instructions": "Go on.\r\nSoon.",
        "priority": "7",
        "idempotency_key": "k",
    }
    path = f"/ui/sessions/{key}/offer"
    others: list[dict[str, str]] = [
        {},
        {"origin": "null"},
        {"origin": "https://evil.example"},
        {"origin": "http://127.0.0.1:9999"},
        {**FORM, "sec-fetch-site": "same-site"},
    ]
    for headers in others:
        assert (await browser.post(path, data=form, headers=headers)).status_code == 403
    assert (await agent.read("handoff://handoffs"))["handoffs"] == []

    sent = [await browser.post(path, data=form, headers=FORM) for _ in range(2)]  # a form that is sent twice offers once
    (offered,) = (await agent.read("handoff://handoffs"))["handoffs"]
    assert {(it.status_code, it.headers["location"]) for it in sent} == {(303, f"/ui/handoffs/{offered['handoff_id']}")}
    assert (offered["instructions"], offered["priority"]) == ("Go on.\nSoon.", 7)
    refused = await browser.post(path, data={**form, "target_agent": "alice", "idempotency_key": "l"}, headers=FORM)
    assert refused.status_code == 400
    assert "nobody can hand over to themselves" in Page(refused.text).text

    resolve = f"/ui/handoffs/{offered['handoff_id']}/resolve"
    assert (await browser.post(resolve, data={"action": "complete"}, headers=FORM)).status_code == 409
    assert (await browser.post(resolve, data={"action": "cancel"}, headers=FORM)).status_code == 303
    assert (await agent.read(f"handoff://handoffs/{offered['handoff_id']}"))["state"] == "cancelled"
    assert (await browser.post(path, content=b"x" * 300_000, headers=FORM)).status_code == 413
    assert (await browser.post(path, content=b"\xff=1", headers=FORM)).status_code == 400


async def test_the_brief_is_shown_as_it_was_received_and_the_lease_is_renewed(settings: Settings) -> None:
    tracing = settings.model_copy(update={"trace_url": "https://traces.example/trace/"})
    async with open_app(tracing) as app, browsing(app) as browser, Client(build_server(app)) as client:
        agent = Agent(client)
        key = await agent.session()
        entry = {"type": "decision", "content": "Then: sqlite."}
        await agent.ok("update_context", agent="alice", session_key=key, entries=[entry])
        offered = await agent.offer(key)
        await shown(browser, f"/ui/handoffs/{offered}/brief", 404)
        await agent.accept(offered)
        newer = {"type": "decision", "content": "Now: Postgres.", "supersedes": [2]}
        await agent.ok("update_context", agent="bob", session_key=key, entries=[newer])

        assert "Then: sqlite." in (received := (await shown(browser, f"/ui/handoffs/{offered}/brief")).text)
        assert "Now: Postgres." not in received
        assert "Then: sqlite." not in (await shown(browser, f"/ui/sessions/{key}/brief")).text
        before = await agent.read(f"handoff://handoffs/{offered}")
        page = Page((await browser.get(f"/ui/handoffs/{offered}")).text)
        assert re.search(r"Holderbob, \d+ min left", page.text)
        assert f"https://traces.example/trace/{before['trace_id']}" in page.links
        renew = f"/ui/handoffs/{offered}/renew"
        assert renew in page.links
        assert (await browser.post(renew, headers={"origin": "https://evil.example"})).status_code == 403
        assert (await browser.post(renew, headers=FORM)).status_code == 303
        after = await agent.read(f"handoff://handoffs/{offered}")
        assert after["lease_expires_at"] > before["lease_expires_at"]
        await agent.ok("resolve_handoff", agent="bob", handoff_id=offered, action="block", token=1, note="Why?")
        assert "Resume" in Page((await browser.get(f"/ui/handoffs/{offered}")).text).text
        assert (await browser.post(renew, headers=FORM)).status_code == 303
        assert "Why?" not in Page((await browser.get(f"/ui/handoffs/{offered}")).text).text
        assert "Why?" in (await shown(browser, f"/ui/sessions/{key}")).text
        await agent.ok("resolve_handoff", agent="bob", handoff_id=offered, action="complete", token=1, note="Done.")
        assert (await browser.post(renew, headers=FORM)).status_code == 409
        assert "HolderbobType" in Page((await browser.get(f"/ui/handoffs/{offered}")).text).text
        assert "no handoff's id" in (await shown(browser, "/ui/handoffs/abc", 404)).text


def test_traces_have_a_web_address() -> None:
    with pytest.raises(ValueError, match="must begin with http"):
        Settings(trace_url="javascript:alert(1)//")


async def test_a_token_signs_in_and_decides_what_is_shown(guarded: App) -> None:
    async with browsing(guarded) as browser:

        async def as_(name: str) -> None:
            browser.cookies.clear()
            signed = await browser.post("/ui/sign-in", data={"token": f"token-of-{name}"}, headers=FORM)
            assert signed.status_code == 303
            cookie = signed.headers["set-cookie"]
            assert "HttpOnly" in cookie
            assert "SameSite=Strict" in cookie
            assert "Secure" not in cookie
            assert f"token-of-{name}" not in cookie

        for path in ("/ui", "/ui/inbox", "/ui/sessions/x", "/ui/health"):
            assert "Token" in (await shown(browser, path, 401)).text
        wrong = await browser.post("/ui/sign-in", data={"token": "wrong"}, headers=FORM)
        assert wrong.status_code == 401
        assert "set-cookie" not in wrong.headers
        foreign = await browser.post(
            "/ui/sign-in", data={"token": "token-of-alice"}, headers={"origin": "https://evil.example"}
        )
        assert foreign.status_code == 403
        tls = {"origin": "https://127.0.0.1:8642"}
        secure = await browser.post("/ui/sign-in", data={"token": "token-of-alice"}, headers=tls)
        assert "Secure" in secure.headers["set-cookie"]

        await as_("alice")
        made: dict[str, Any] = {"target_agent": "bob", "instructions": "Go on."}
        key = (await said(browser, "alice", "register_session"))["session_key"]
        sent = await browser.post(f"/ui/sessions/{key}/offer", data=made, headers=FORM)
        where = sent.headers["location"]
        assert "Cancel" in (await shown(browser, where)).text
        for name, status, can in (("bob", 200, "Reject"), ("reader", 404, ""), ("root", 200, "")):
            await as_(name)
            page = await shown(browser, where, status)
            assert [it for it in ("Cancel", "Reject", "Complete") if it in page.text] == [can][: bool(can)]
            assert (where in (await shown(browser, "/ui/inbox")).links) == (status == 200)
        await as_("reader")
        assert (await browser.post(f"/ui/sessions/{key}/offer", data=made, headers=FORM)).status_code == 403
        await as_("alice")
        out = await browser.post("/ui/sign-out", headers=FORM)
        assert "Max-Age=0" in out.headers["set-cookie"]
        assert guarded.settings.tokens_file is not None
        browser.cookies.clear()
        browser.cookies.set("handoff_token", "!!", domain="127.0.0.1")
        await shown(browser, "/ui/inbox", 401)


async def test_pages_leave_a_metric_a_span_and_a_log_line(observed: App, collector: Collector) -> None:
    async with browsing(observed) as browser:
        assert (await browser.get("/ui/inbox")).status_code == 200
        assert (await browser.get("/ui/sessions/unknown")).status_code == 404
    await until(lambda: {"GET /ui/inbox", "GET /ui/sessions/{}"} <= {it.name for it in collector.spans()})
    by_id = {it.span_id: it for it in collector.spans()}
    reads = {it.name for it in by_id.values() if it.parent_span_id in by_id}
    assert "resources/read" in reads
    await until(lambda: [it["page"] for it in collector.lines() if it["event"] == "ui.shown"] == ["/ui/inbox"])

    def routes() -> set[str]:
        metric = collector.metrics().get("http.server.request.duration")
        points = metric.histogram.data_points if metric is not None else []
        return {it.value.string_value for point in points for it in point.attributes if it.key == "http.route"}

    await until(lambda: collector.bodies["metrics"] and {"/ui/inbox", "/ui/sessions/{}"} <= routes())
