"""What is logged, and what is never logged."""

import io
import json
import logging
import threading
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import structlog

from handoff.app import open_app
from handoff.context import App
from handoff.jobs.settle import settle_overdue
from handoff.settings import Settings
from handoff.telemetry.filters import Filters
from handoff.telemetry.logs import configure_logs, flush_logs, follow_filters, identify_logs
from tests.agents import PAST, Agent
from tests.processes import PATIENCE_S

SAID = "check failed\nDETAIL:  Failing row contains (1, rosebud\nand more rosebud).\nHINT: no"
log = structlog.get_logger("test")


def test_a_logged_stack_trace_omits_the_row_contents_in_postgres_errors() -> None:
    stream = io.StringIO()
    configure_logs("info", stream)
    try:
        try:
            raise ValueError(SAID)
        except ValueError as error:
            raise RuntimeError("the append failed") from error
    except RuntimeError:
        log.exception("append.failed")

    flush_logs()
    logged = json.loads(stream.getvalue())
    assert (logged["event"], logged["level"]) == ("append.failed", "error")
    assert "check failed" in logged["exception"]
    assert "the append failed" in logged["exception"]
    assert "rosebud" not in logged["exception"]


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("sent Authorization: Bearer abcdef123456", "abcdef123456"),
        ("could not reach postgresql://handoff:hunter22@postgres/handoff", "hunter22"),
        ("token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl was old", "eyJzdWIiOiIxIn0"),
        ("key sk-abcdefghijklmnop is wrong", "sk-abcdefghijklmnop"),
        ("host=postgres password=hunter22 user=x", "hunter22"),
        ("PassWord=hunter22", "hunter22"),
    ],
)
def test_text_that_looks_like_a_secret_is_redacted_in_any_field(
    logged: list[dict[str, Any]], text: str, secret: str
) -> None:
    log.info("test.said", detail=text, nested={"deep": {"er": text}})
    logging.getLogger("some.library").warning("it said: %s", text)

    assert len(logged) == 2
    assert secret not in str(logged)
    assert "[redacted]" in logged[0]["detail"]
    assert logged[1]["event"] == "library.logged"


def test_fields_named_like_secrets_or_content_are_redacted(logged: list[dict[str, Any]]) -> None:
    log.info("test.said", password="rosebud", nested={"authorization": "rosebud"}, content="rosebud", agent="alice")

    assert "rosebud" not in str(logged)
    assert logged[0]["agent"] == "alice"
    assert set(logged[0]) == {"time", "level", "event", "password", "nested", "content", "agent"}


def test_levels_are_set_per_event_and_follow_the_file(tmp_path: Path) -> None:
    file = tmp_path / "logging"
    filters = Filters("info")
    assert [filters.passes("x", level, {}) for level in (10, 20, 30)] == [False, True, True]

    file.write_text("# levels per event\n* warning\nx debug\ny off\n")
    filters.follow(file)
    assert [filters.passes(event, 10, {}) for event in ("x", "y", "z")] == [True, False, False]
    assert [filters.passes(event, 40, {}) for event in ("x", "y", "z")] == [True, False, True]

    file.write_text("* debug and more\nthis is no level: shout\n")
    filters.refresh()
    assert (filters.level, filters.events) == (20, {})  # invalid lines are ignored, and the default applies
    file.unlink()
    filters.refresh()
    assert filters.level == 20


def test_a_level_can_be_set_for_one_tool_agent_or_session(tmp_path: Path, logged: list[dict[str, Any]]) -> None:
    file = tmp_path / "logging"
    file.write_text(
        "* error\nagent=alice info  # and all that is offered to her\nsession='release 42' info\n"
        "tool.call tool=get_inbox agent=alice off\n"
        "agent= info\ninfo\na b info\ncolour=red info\nagent='alice info\n"
    )
    filters = follow_filters(file)
    for fields in (
        {"agent": "alice", "tool": "get_inbox"},
        {"agent": "alice", "tool": "update_context"},
        {"agent": "bob", "session": "release 42"},
        {"agent": "bob", "session": "release"},
    ):
        log.info("tool.call", **fields)
    log.info("handoff.changed", sender="bob", target_agent="alice")
    log.info("handoff.changed", sender="bob", target_agent="carol")

    said = [line for line in logged if line["event"] != "logging.changed"]
    assert [line.get("tool") or line.get("session") or line.get("target_agent") for line in said] == [
        "update_context",
        "release 42",
        "alice",
    ]
    assert filters.may_pass("tool.call", 20), "some calls are logged, so their fields must be computed"
    assert not filters.may_pass("tool.call", 10)
    file.write_text(
        "agent=alice warning\n* info\nunreadable\nagent= info\ninfo\na b info\ncolour=red info\nagent='alice info\n"
    )
    filters.refresh()
    assert (logged[-1]["rules"], logged[-1]["lines_wrong"]) == (1, 6)


def test_libraries_are_logged_from_warnings_up_and_their_errors_once_with_the_stack_trace(
    logged: list[dict[str, Any]],
) -> None:
    logging.getLogger("mcp.server").info("chatter")
    logging.getLogger("opentelemetry.exporter").error("already logged by us")
    try:
        raise ValueError("odd")
    except ValueError:
        logging.getLogger("asyncio").exception("it broke")

    assert [(line["event"], line["level"], line["message"]) for line in logged] == [("library.logged", "error", "it broke")]
    assert logged[0]["exception"].count("ValueError: odd") == 1


def test_what_the_exporters_use_logs_nothing_at_any_level_because_that_would_be_exported_too() -> None:
    stream = io.StringIO()
    configure_logs("debug", stream)
    for name in ("urllib3.connectionpool", "requests", "opentelemetry.sdk"):
        logging.getLogger(name).debug("POST /v1/logs 200")
    log.debug("test.said")

    flush_logs()
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["test.said"]


class Unprintable:
    """A value whose own methods raise."""

    def __repr__(self) -> str:
        raise RuntimeError

    __str__ = __repr__


def test_what_json_cannot_hold_is_logged_as_escaped_text(logged: list[dict[str, Any]]) -> None:
    stream = io.StringIO()
    configure_logs("info", stream)
    fields = {"text": "half \ud800", "deep": {"er": "\udfff", "password": "rosebud"}, "keys": {1: 2}, "big": 2**70}
    log.info("test.said", agent="alice", unprintable=Unprintable(), **fields)
    log.info("test.said", agent="bob")

    flush_logs()
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["agent"], first["text"], first["big"]) == ("alice", r"half \ud800", str(2**70))
    assert (r"\udfff" in first["deep"], first["keys"], first["unprintable"]) == (True, "{1: 2}", "(Unprintable)")
    assert "rosebud" not in str(first)
    assert second["agent"] == "bob"


@pytest.mark.parametrize(
    ("message", "arguments", "says"),
    [
        ("%d of %d", ("one",), "%d of %d"),
        ("half %s", ("\ud800",), r"half \ud800"),
        ("%s", (Unprintable(),), "RuntimeError"),
        (Unprintable(), (), "(unreadable)"),
    ],
)
def test_a_library_that_logs_something_odd_is_not_disturbed(
    logged: list[dict[str, Any]], message: Any, arguments: tuple[Any, ...], says: str
) -> None:
    [bridge] = [each for each in logging.getLogger().handlers if type(each).__module__ == configure_logs.__module__]
    logging.addLevelName(25, "bind")  # the name of a method of our logger, which it must not be taken for
    for level in (logging.INFO, 25):
        bridge.handle(logging.LogRecord("some.library", level, "", 0, message, arguments, None))

    assert [(line["event"], line["level"]) for line in logged] == [("library.logged", "info")] * 2
    assert all(says in line["message"] for line in logged)


def test_a_reader_that_hangs_does_not_delay_logging() -> None:
    reading = threading.Event()

    class Stuck(io.StringIO):
        def write(self, text: str, /) -> int:
            reading.wait(PATIENCE_S)
            return super().write(text)

    configure_logs("info", stream := Stuck())
    for _ in range(1_000):
        log.info("test.said")
    assert stream.getvalue() == "", "all was said before anything was read"
    reading.set()
    flush_logs()
    assert stream.getvalue().count("\n") == 1_000


async def test_the_log_tells_a_handoff_s_life_and_lapses_by_the_clock(
    app: App, agent: Agent, db: asyncpg.Connection, logged: list[dict[str, Any]]
) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key)
    await agent.accept(handoff_id)
    await db.execute(PAST)
    assert await settle_overdue(app) == 1

    lines = [line for line in logged if line["event"] == "handoff.changed"]
    told = [(line["handoff"], line["action"], line["state"], line["session"], line["by"]) for line in lines]
    assert told == [
        (handoff_id, "offer", "offered", key, "call"),
        (handoff_id, "accept", "accepted", key, "call"),
        (handoff_id, "lapse", "offered", key, "clock"),
    ]
    assert {"type", "sender", "target_agent"} <= set(lines[0])
    [registered] = [line for line in logged if line["event"] == "session.registered"]
    assert (registered["session"], registered["retention_policy"]) == (key, "standard")


async def test_the_line_of_an_append_says_what_was_written_and_where_its_time_went(
    agent: Agent, logged: list[dict[str, Any]]
) -> None:
    key = await agent.session()
    entries = [{"type": "message", "content": "rosebud"}, {"type": "decision", "content": "rosebud"}]
    await agent.ok("update_context", agent="alice", session_key=key, entries=entries)

    [line] = [line for line in logged if line.get("tool") == "update_context"]
    assert (line["entries"], line["types"], line["first_sequence"]) == (2, "decision,message", 2)
    assert 0 < line["statement_ms"] <= line["duration_ms"]
    assert 0 <= line["queued_ms"] <= line["duration_ms"]
    assert "rosebud" not in str(line)


async def test_a_crash_of_an_append_is_logged_once_with_its_call(
    app: App, agent: Agent, logged: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await agent.session()

    def crash(*_: Any) -> Any:
        raise RuntimeError("odd")

    monkeypatch.setattr("handoff.store.lane.columns", crash)
    entries = [{"type": "message", "content": "x"}]
    await agent.refused("update_context", agent="alice", session_key=key, entries=entries)

    [stack] = [line for line in logged if "exception" in line]
    assert (stack["event"], stack["tool"]) == ("tool.failed", "update_context")
    assert stack["trace_id"]
    [line] = [line for line in logged if line.get("outcome") == "internal"]
    assert (line["level"], line["cause"]) == ("error", "RuntimeError")


async def test_a_process_says_what_it_started_with_and_how_it_stopped(
    settings: Settings, logged: list[dict[str, Any]]
) -> None:
    async with open_app(settings):
        pass

    [started] = [line for line in logged if line["event"] == "process.started"]
    assert started["settings"] == {"database_url": "[redacted]", "settle_interval_s": "3600.0"}
    assert (started["kind"], started["telemetry"]) == ("service", "off")
    [stopped] = [line for line in logged if line["event"] == "process.stopped"]
    assert stopped["appends_drained"] is True


def test_every_line_on_the_stream_says_which_process_wrote_it() -> None:
    stream = io.StringIO()
    configure_logs("info", stream)
    identify_logs("handoff", "i-1", "9.9")
    log.info("test.said", agent="alice")

    flush_logs()
    line = json.loads(stream.getvalue())
    assert (line["agent"], line["service"], line["instance"], line["version"]) == ("alice", "handoff", "i-1", "9.9")
