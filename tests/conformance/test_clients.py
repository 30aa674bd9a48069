"""The real service with third-party clients: mcpcheck and the Inspector's command line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conformance import npm

pytestmark = [pytest.mark.external, pytest.mark.timeout(npm.INSTALL_TIMEOUT_S + npm.RUN_TIMEOUT_S)]

TOOL_IS_ERROR: Final = 5  # the Inspector's exit status


def test_mcpcheck_passes_all_its_checks(service_url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mcpcheck", service_url, "--probe", "all", "--strict", "--json"],
        capture_output=True,
        timeout=npm.RUN_TIMEOUT_S,
        check=False,
    )

    report = json.loads(done.stdout)
    verdicts = {check["name"]: check["status"] for check in report["checks"]}
    checks = ("handshake", "session", "discover", "protocol", "schemas", "errors", "cache", "origin")
    assert verdicts == dict.fromkeys(checks, "pass"), report["checks"]
    assert done.returncode == 0


@pytest.fixture(params=["legacy", "modern"])  # the Inspector's names for 2025-11-25 and 2026-07-28
def inspector(request: pytest.FixtureRequest, service_url: str, npm_packages: Path, tmp_path: Path) -> "Inspector":
    return Inspector(service_url, request.param, npm_packages, tmp_path)


def test_the_inspector_completes_a_handoff_with_all_ten_tools(inspector: "Inspector") -> None:
    key, ada, bob = (f"{name}-{inspector.era}" for name in ("migration", "ada", "bob"))
    listed = {tool["name"] for tool in inspector.list_tools()}

    session = inspector.call("register_session", agent=ada, session_key=key, metadata='{"ticket":7}')
    assert session["owner"] == ada
    entries = '[{"type":"decision","content":"The ledger lives in Postgres"}]'
    assert not inspector.call("update_context", agent=ada, session_key=key, entries=entries)["replayed"]
    found = inspector.call("search_context", agent=ada, query="ledger", session_key=key)
    assert [match["type"] for match in found["matches"]] == ["decision"]
    brief = inspector.call("get_context", agent=ada, session_key=key)["brief"]
    assert "lives in Postgres" in json.dumps(brief["parts"])

    work = {"target_agent": bob, "instructions": "Write the migration"}
    offer = inspector.call("request_handoff", agent=ada, session_key=key, **work)
    inbox = inspector.call("get_inbox", agent=bob)["handoffs"]
    assert [handoff["handoff_id"] for handoff in inbox] == [offer["handoff_id"]]
    taken = inspector.call("accept_handoff", agent=bob, handoff_id=offer["handoff_id"])
    assert "lives in Postgres" in json.dumps(taken["brief"]["parts"])
    held = {"agent": bob, "handoff_id": offer["handoff_id"], "token": taken["handoff"]["token"]}
    assert inspector.call("renew_handoff", **held, lease_seconds=60)["state"] == "accepted"
    assert inspector.call("resolve_handoff", **held, action="complete", note="Done")["state"] == "completed"
    assert inspector.call("close_session", agent=ada, session_key=key)["status"] == "completed"

    assert listed == inspector.called
    assert len(listed) == 10


def test_the_inspector_shows_a_tool_error_with_its_hint(inspector: "Inspector") -> None:
    result = inspector.run("tools/call", "--tool-name", "get_context", "--tool-arg", "agent=ada", "session_key=nowhere")

    assert result["isError"]
    error = json.loads(result["content"][0]["text"])["error"]
    assert error["code"] == "session_not_found"
    assert "register_session" in error["try"]


class Inspector:
    """The Inspector's command line, one process per call. `called` holds the names of the tools called."""

    def __init__(self, url: str, era: str, packages: Path, home: Path) -> None:
        self.era = era
        self.called: set[str] = set()
        self._packages = packages
        self._home = home
        self._options = ("--cli", url, "--transport", "http", "--protocol-era", era, "--format", "json")

    def list_tools(self) -> list[dict[str, Any]]:
        """Return the tools; --strict fails on a schema that some model's API would reject."""
        return self.run("tools/list", "--strict")["tools"]

    def call(self, tool: str, **arguments: str | int) -> dict[str, Any]:
        self.called.add(tool)
        pairs = [f"{name}={value}" for name, value in arguments.items()]
        result = self.run("tools/call", "--tool-name", tool, "--tool-arg", *pairs)
        assert not result["isError"], result
        return result["structuredContent"]

    def run(self, method: str, *further: str) -> dict[str, Any]:
        options = (*self._options, "--method", method, *further)
        done = npm.run(self._packages, npm.INSPECTOR, *options, home=self._home)
        assert done.returncode in {0, TOOL_IS_ERROR}, done.stderr
        return json.loads(done.stdout)["result"]
