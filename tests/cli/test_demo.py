"""The demo does what it says, leaves real work alone, and says what to do where it can't run."""

import ast
import hashlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters

from handoff.cli import demo
from handoff.cli.run import _print_banner
from handoff.cli.start import mcp_address
from handoff.settings import Settings
from handoff.tools import contract
from handoff.tools.context import ENTRIES_PER_CALL_MAX, GetContext
from handoff.tools.offers import GetInbox, RequestHandoff
from tests.agents import Agent
from tests.processes import HANDOFF, PATIENCE_S, Service, environment, serving

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
CLIENTS = (ROOT / "docs" / "clients.md").read_text()
ERRORS = (ROOT / "docs" / "errors.md").read_text()
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
MODULES = sorted((ROOT / "service" / "handoff" / "store").glob("*.py"))


def run_demo(url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HANDOFF, "demo", "--url", url], env=environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def functions(path: Path) -> int:
    return sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(ast.parse(path.read_text())))


async def test_one_agent_finishes_what_another_began_and_all_of_it_can_be_read(service: Service) -> None:
    done = run_demo(service.url)
    assert (done.returncode, done.stderr) == (0, "")
    key = re.findall(r"register_session +(s-[0-9a-f]{16})$", done.stdout, re.MULTILINE)[0]
    async with Client(service.url) as client:
        agent = Agent(client)
        uris = [uri.rstrip() for uri in re.findall(r"^  (handoff://\S+)", done.stdout, re.MULTILINE)]
        summary, _, lifecycle = [await agent.read(uri) for uri in uris]
        context = await agent.read(f"{uris[1]}?limit=100")
        handoff_id = next(event["handoff_id"] for event in lifecycle["events"] if event["kind"] == "handoff.offered")
        handoff = await agent.read(f"handoff://handoffs/{handoff_id}")
        brief = (await agent.ok("get_context", agent="ada", session_key=key))["brief"]

    total = f"{len(MODULES)} modules, {sum(len(path.read_text().splitlines()) for path in MODULES)} lines, "
    total += f"{sum(map(functions, MODULES))} functions"
    assert (summary["status"], summary["started_by"], summary["owner"]) == ("completed", "ada", "grace")
    assert (handoff["state"], handoff["holder"], handoff["outcome"]) == ("completed", "grace", f"{total}.")
    assert f"The result: {total}. Counted directly, it is the same." in done.stdout

    found = {entry["metadata"]["path"]: entry for entry in context["entries"] if entry["type"] == "file"}
    assert sorted(found) == [path.name for path in MODULES]
    assert all(found[path.name]["metadata"]["functions"] == functions(path) for path in MODULES)
    assert len({entry["author"] for entry in found.values()}) == 2, "each agent did a part"
    assert "question" not in {part["kind"] for part in brief["parts"]}, "the question was answered"
    kinds = [event["kind"] for event in lifecycle["events"]]
    assert [kind for kind in kinds if kind.startswith("handoff.")] == [
        "handoff.offered", "handoff.accepted", "handoff.completed",
    ]  # fmt: skip

    hashes = [bytes.fromhex(entry["content_hash"]) for entry in context["entries"]]
    digest = hashlib.sha256(b"".join(hashes[: handoff["as_of_sequence"]])).hexdigest()
    assert done.stdout.count(f"digest {digest[:12]}…") == 2
    assert max(map(len, done.stdout.splitlines())) <= demo.COLUMNS


async def test_what_an_interrupted_demo_left_is_resolved_and_real_work_is_left_alone(database_url: str) -> None:
    with serving(database_url=database_url) as service:
        async with Client(service.url) as client:
            agent = Agent(client)
            for state in ("offered", "accepted"):
                old = await agent.offer(await agent.session("ada"), "grace", agent="ada", instructions=demo.INSTRUCTIONS)
                if state == "accepted":
                    await agent.ok("accept_handoff", agent="grace", handoff_id=old)
            assert run_demo(service.url).returncode == 0
            real = await agent.offer(await agent.session(), "grace", instructions="real work")
            refused = run_demo(service.url)
            inbox = (await agent.ok("get_inbox", agent="grace"))["handoffs"]

    assert refused.returncode == 1
    assert f"handoff {real} from alice" in refused.stdout
    assert [(row["handoff_id"], row["state"]) for row in inbox] == [(real, "offered")]


def test_a_server_that_is_not_a_handoff_service_is_named(service: Service) -> None:
    with something_else() as stranger:
        for url in (stranger, service.url.replace("/mcp", "/")):
            done = run_demo(url)
            assert (done.returncode, done.stderr) == (1, "")
            assert done.stdout.count("\n") == 1
            assert f"The server at {url} is not a Handoff service" in done.stdout
            assert "make run" in done.stdout


@contextmanager
def something_else() -> Generator[str]:
    """An HTTP server that knows nothing of MCP."""

    class Stranger(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(501)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/mcp"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("tampered", ["count", "digest"])
async def test_a_wrong_result_is_a_failure(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tampered: str
) -> None:
    real = demo.DemoAgent.entries

    async def entries(self: demo.DemoAgent, session_key: str) -> list[dict[str, object]]:
        found = await real(self, session_key)
        if tampered == "count" and self.name == "grace":
            next(entry for entry in found if entry["type"] == "file")["metadata"]["lines"] += 1
        if tampered == "digest" and self.name == "ada":
            found[0]["content_hash"] = "00" * 32
        return found

    monkeypatch.setattr(demo.DemoAgent, "entries", entries)
    assert await demo.run_demo(service.url, {}) == 1

    said = capsys.readouterr().out
    assert "The demo failed." in said
    assert "it is the same" not in said


def shown(page: str, before: str) -> str:
    """The first code block of a page behind some words."""
    return page.split(before, 1)[1].split("```", 2)[1].split("\n", 1)[1]


async def test_claude_desktop_as_shown_works_beside_the_service_and_on_its_data(
    service: Service, module_database_url: str
) -> None:
    server = json.loads(shown(CLIENTS, "Claude Desktop starts"))["mcpServers"]["handoff"]
    name, folder = re.findall(r"/(\w+)\?host=(.+)$", module_database_url)[0]
    url = server["env"]["HANDOFF_DATABASE_URL"].replace("/path/to/data/postgres", folder)
    environ = environment(database_url=url.replace("/handoff?", f"/{name}?"))
    desktop = StdioServerParameters(command=str(HANDOFF), args=server["args"], env=environ)
    async with Client(service.url) as beside, Client(desktop) as client:
        key = await Agent(beside).session()
        offered = await Agent(beside).offer(key, "claude-desktop")
        inbox = (await Agent(client).ok("get_inbox"))["handoffs"]

    assert Path(server["command"]).name == HANDOFF.name
    assert [row["handoff_id"] for row in inbox] == [offered]


def test_claude_code_is_connected_as_make_run_says(capsys: pytest.CaptureFixture[str]) -> None:
    _print_banner(Settings(), mcp_address("127.0.0.1", 8642))

    line = re.findall(r"claude mcp add .*", capsys.readouterr().out)[0]
    assert f"`{line}`" in CLIENTS


def test_a_python_client_with_a_token_works_as_shown(database_url: str, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    line = re.findall(r"^    (printf .* >> )tokens$", SETTINGS, re.MULTILINE)[0]
    subprocess.run(["sh", "-c", f"{line}{tokens}"], env=environment() | {"TOKEN": "secret"}, check=True)
    with serving(database_url=database_url, tokens_file=tokens) as service:
        code = shown(SETTINGS, "Where the service needs a token").replace("http://127.0.0.1:8642/mcp", service.url)
        code = code.replace('"wait_seconds": 5', '"wait_seconds": 0')
        done = run(code, service, TOKEN="secret")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("{'handoffs': [], 'mark': ")


def run(code: str, service: Service, **variables: str) -> subprocess.CompletedProcess[str]:
    assert service.url in code
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


async def test_an_error_looks_as_shown(agent: Agent) -> None:
    error = await agent.refused("get_context", agent="alice", session_key="s-1")

    assert {"error": error} == json.loads(shown(ERRORS, "# Errors and retries"))


def test_the_limits_are_those_of_the_code() -> None:
    table = dict(re.findall(r"^\| ([^`|]+) \| (.+) \|$", SETTINGS.split("## Limits")[1], re.MULTILINE))
    numbers = {name: [int(it.replace(",", "")) for it in re.findall(r"[\d,]*\d", text)] for name, text in table.items()}

    def bounds(arguments: type[contract.Arguments], name: str) -> list[int]:
        schema = arguments.model_json_schema()["properties"][name]
        schema = next((it for it in schema.get("anyOf", ()) if it["type"] != "null"), schema)
        keys = ("minimum", "maximum", "maxLength", "maxItems")
        return [schema[key] for key in keys if schema.get(key)]  # a minimum of 0 is none

    assert numbers["entries per call"] == [ENTRIES_PER_CALL_MAX]
    assert numbers["metadata"] == [contract.METADATA_BYTES_MAX, contract.METADATA_DEPTH_MAX]
    assert numbers["instructions, or a note"] == bounds(RequestHandoff, "instructions")
    assert numbers["a session key"] == bounds(GetContext, "session_key")
    assert numbers["an agent's or a capability's name"] == bounds(GetContext, "agent")
    assert numbers["capabilities per agent"] == bounds(GetInbox, "capabilities")
    budget = GetContext.model_fields["token_budget"]
    assert numbers["a brief"] == [*bounds(GetContext, "token_budget"), budget.default]
    assert numbers["a deadline"] == bounds(RequestHandoff, "deadline_minutes")
    assert numbers["a wait for the inbox"] == bounds(GetInbox, "wait_seconds")
