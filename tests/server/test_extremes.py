"""Values at the ends of what types hold are refused or taken, and never answered as a defect of the service."""

import base64
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx2
import pytest

from handoff.context import App
from handoff.server.catalog import list_tools
from handoff.settings import Settings
from tests.agents import Agent
from tests.operations.test_alerts import alert, notification
from tests.requests import body, call, headers
from tests.server.test_catalog import GOOD
from tests.server.test_http import edge

LISTED: dict[str, dict[str, Any]] = {tool.name: tool.input_schema["properties"] for tool in list_tools(Settings())}
OF_TYPE = {
    kind: [(tool, name) for tool, listed in LISTED.items() for name, schema in listed.items() if schema["type"] == kind]
    for kind in ("integer", "string")
}
TIMES = [
    "0001-01-01T00:00:00+14:00",
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00-14:00",
    "9999-12-31T23:59:59.999999-14:00",
    "9999-12-31T23:59:59.999999+14:00",
    "0000-00-00T00:00:00Z",
    "2026-02-30T00:00:00Z",
    "292277026596-12-04T15:30:08Z",
    "-0001-01-01T00:00:00Z",
]


@pytest.fixture
async def http(app: App) -> AsyncGenerator[httpx2.AsyncClient]:
    async with edge(app) as client:
        yield client


@pytest.mark.parametrize("field", ["startsAt", "endsAt"])
async def test_an_alert_of_any_time_is_stored(http: httpx2.AsyncClient, field: str) -> None:
    for time in TIMES:
        for status in ("firing", "resolved"):
            answer = await http.post("/alerts", json=notification(alert(status) | {field: time}))
            assert (answer.status_code, answer.json()) == (200, {"stored": 1}), (field, time, status)


@pytest.mark.parametrize(("tool", "name"), OF_TYPE["integer"])
async def test_an_integer_of_any_size_is_refused_by_its_name(http: httpx2.AsyncClient, tool: str, name: str) -> None:
    key = {"idempotency_key": "k"} if "idempotency_key" in LISTED[tool] else {}
    for number in (-(10**30), -(2**64), -(2**63) - 1, -(2**63), 2**63, 2**64, 10**30, 10**400):
        answer = await call(http, tool, GOOD[tool] | key | {name: number})
        error = json.loads(answer.json()["result"]["content"][0]["text"])["error"]
        assert (error["code"], error["message"].partition(":")[0]) == ("invalid_arguments", name), number


@pytest.mark.parametrize(("tool", "name"), OF_TYPE["string"])
async def test_a_text_with_u0000_is_refused_by_its_name(agent: Agent, tool: str, name: str) -> None:
    for text in ("\0", "a\0", "\0a"):
        error = await agent.refused(tool, **(GOOD[tool] | {name: text}))
        assert error["code"] == "invalid_arguments", text
        assert name in error["message"], error


def cursor(*position: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


async def test_a_cursor_with_u0000_is_refused(http: httpx2.AsyncClient, agent: Agent) -> None:
    time = "2026-01-01T00:00:00Z"
    for text in ("\0", "a\0", "1:2:\0"):
        for uri in (
            f"handoff://alerts?cursor={cursor(0, time, text)}",
            f"handoff://agents/bob/inbox?cursor={cursor(1, 1, text)}",
            f"handoff://sessions?cursor={cursor(text, 1)}",
            f"handoff://context/s?cursor={cursor(text)}",
        ):
            written = f"=?base64?{base64.b64encode(uri.encode()).decode()}?="
            answer = await http.post(
                "/mcp", json=body("resources/read", uri=uri), headers=headers("resources/read", written)
            )
            assert answer.json()["error"]["data"]["code"] in ("invalid_arguments", "session_not_found"), (uri, answer.text)
        for arguments in ({"mark": cursor(text, time, 0)}, {"cursor": cursor(1, 1, text)}):
            error = await agent.refused("get_inbox", agent="bob", **arguments)
            assert error["code"] == "invalid_arguments"


async def test_a_resources_query_with_u0000_or_a_time_at_the_ends_is_no_defect(http: httpx2.AsyncClient) -> None:
    for query in (
        *(f"sessions?{name}=%00" for name in ("status", "agent", "since", "cursor", "limit")),
        *(f"metrics?name={text}" for text in ("%00", "a%00")),
        *(f"context/s?{name}=a%00" for name in ("after", "cursor", "limit", "type", "only")),
        *(f"alerts?{name}=%00" for name in ("status", "cursor", "limit")),
        *(f"sessions?since={time.replace('+', '%2B')}" for time in TIMES),
    ):
        uri = f"handoff://{query}"
        written = f"=?base64?{base64.b64encode(uri.encode()).decode()}?="
        answer = (
            await http.post("/mcp", json=body("resources/read", uri=uri), headers=headers("resources/read", written))
        ).json()
        assert "error" not in answer or answer["error"]["code"] == -32602, (uri, answer)
