"""The bundle as it ships, started under its own project name and ports, and the queries that tests make."""

import itertools
import json
import os
import socket
import subprocess
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from testcontainers.compose import DockerCompose

from tests.agents import Agent

ROOT: Final = Path(__file__).parent.parent.parent
HERE: Final = Path("tests/stack")
PORTS: Final = (
    "HANDOFF_PORT",
    "HANDOFF_OPS_PORT",
    "GRAFANA_PORT",
    "PROMETHEUS_PORT",
    "ALERTMANAGER_PORT",
    "JAEGER_PORT",
    "OTLP_PORT",
    "PROXY_PORT",
    "LOKI_PORT",
    "PROMETHEUS_SCRAPE_PORT",
    "CATCHER_PORT",
)


class Failed(AssertionError):
    """A command failed. The message contains its output."""


def run(*command: str, timeout_s: float = 300, cwd: Path = ROOT) -> str:
    """Run a command and return its output. Raises Failed on a non-zero exit status or a timeout."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{' '.join(command)}: not done after {timeout_s:.0f} s") from error
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def docker_answers() -> bool:
    """Whether a Docker engine with Compose is available."""
    try:
        run("docker", "version", timeout_s=10)
        run("docker", "compose", "version", timeout_s=10)
    except (Failed, FileNotFoundError):
        return False
    return True


def image_at_hand(image: str) -> bool:
    """Whether an image exists locally or can be pulled."""
    try:
        run("docker", "image", "inspect", image, timeout_s=10)
    except Failed:
        try:
            run("docker", "pull", "-q", image, timeout_s=300)
        except Failed:
            return False
    return True


def shipped(*profiles: str) -> dict[str, Any]:
    """compose.yaml as Compose resolves it, without the overlays of the tests and without a local .env."""
    chosen = [word for name in profiles for word in ("--profile", name)]
    command = ["docker", "compose", "-f", "compose.yaml", "--env-file", "/dev/null", *chosen, "config", "--format", "json"]
    return json.loads(run(*command, timeout_s=30))


# Below the ephemeral range, with a separate range per process: stacks start in parallel, and a port that is free now must
# still be free when Docker publishes it.
_ports = itertools.count(20_000 + os.getpid() % 120 * 100)


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens."""
    found: list[int] = []
    while len(found) < count:
        port = next(_ports)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
    return found


class Stack:
    """The bundle under a project name. `settings` is what its .env would contain."""

    def __init__(self, folder: Path, project: str, overlays: Sequence[str], settings: Mapping[str, str]) -> None:
        self.project = project
        self.given = folder / "given"
        self.given.mkdir()
        self.settings = {
            "COMPOSE_PROJECT_NAME": project,
            "SECRETS_DIR": str(self.given),
            "HANDOFF_IMAGE": f"{project}:tests",
            **dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True)),
            **settings,
        }
        env_file = folder / "env"
        env_file.write_text("".join(f"{name}={value}\n" for name, value in self.settings.items()))
        files = ["compose.yaml", *(str(HERE / name) for name in overlays)]
        # One client, because each loads all CA certificates; no keep-alive, because services restart between requests.
        self._http = httpx2.Client(timeout=10, limits=httpx2.Limits(max_keepalive_connections=0))
        self._compose = DockerCompose(ROOT, compose_file_name=files, env_file=str(env_file), wait=True)

    def compose(self, *arguments: str, timeout_s: float = 300) -> str:
        """Run `docker compose` and return its output."""
        return run(*self._compose.docker_compose_command(), *arguments, timeout_s=timeout_s)

    def up(self, *more: str) -> float:
        """Start everything and wait until it is healthy. Returns the seconds that it took."""
        began = monotonic()
        self.compose("up", "--detach", "--wait", *more)
        return monotonic() - began

    def down(self, *more: str) -> None:
        """Stop and remove the containers; with `--volumes`, also the data."""
        self.compose("--profile", "*", "down", *more)

    def url(self, port: str, path: str = "") -> str:
        """An address of the running stack; `port` is the name of a port setting in .env.example."""
        return f"http://127.0.0.1:{self.settings[port]}{path}"

    def get(self, port: str, path: str, **parameters: str) -> Any:
        """The JSON response at an address. Raises httpx2.HTTPError."""
        answer = self._http.get(self.url(port, path), params=parameters)
        answer.raise_for_status()
        return answer.json()

    def promql(self, query: str, port: str = "PROMETHEUS_PORT") -> list[dict[str, Any]]:
        """The samples that an instant query returns."""
        return self.get(port, "/api/v1/query", query=query)["data"]["result"]

    def logql(self, query: str) -> list[dict[str, str]]:
        """The log lines of the last hour, each with its labels and structured metadata."""
        found = self.get("LOKI_PORT", "/loki/api/v1/query_range", query=query, since="1h", limit="5000")["data"]["result"]
        return [{**stream["stream"], "line": line} for stream in found for _, line in stream["values"]]

    def trace(self, trace_id: str) -> list[dict[str, Any]]:
        """The spans of a trace; empty if the trace is unknown."""
        answer = self._http.get(self.url("JAEGER_PORT", f"/api/v3/traces/{trace_id}"))
        if answer.status_code == 404:
            return []
        resources = answer.raise_for_status().json()["result"]["resourceSpans"]
        return [span for resource in resources for scope in resource["scopeSpans"] for span in scope["spans"]]

    def instance(self) -> str:
        """A label selector for the service process that answers now; an earlier one may still have series."""
        return f'service_name="handoff", service_instance_id="{self.get("HANDOFF_OPS_PORT", "/health")["instance"]}"'

    def containers(self) -> list[dict[str, Any]]:
        """`docker inspect` of every container, one-shots included."""
        return json.loads(run("docker", "inspect", *self.compose("ps", "--all", "--quiet").split()))

    def containers_left(self) -> str:
        """The ids of the containers of this project that still exist; empty if there are none."""
        return run("docker", "ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={self.project}")

    def container(self, service: str) -> dict[str, Any]:
        """The container of a service."""
        return next(it for it in self.containers() if it["Config"]["Labels"]["com.docker.compose.service"] == service)

    def in_volume(self, volume: str, *command: str) -> str:
        """Run a command in a container with a volume mounted at /volume, and return its output."""
        mount = f"{self.project}_{volume}:/volume:ro"
        return run("docker", "run", "--rm", "--network=none", "-v", mount, "busybox:1.37", *command)

    def secret(self, name: str) -> str:
        """A secret, read with the command in docs/stack.md."""
        return self.compose("run", "--rm", "--no-deps", "-T", "secrets", "show", name).strip()

    def psql(self, role: str, password: str, *statements: str) -> str:
        """Run statements as a role, over the network, one transaction each. Raises Failed if one is refused."""
        return self._psql("-h", "127.0.0.1", "-U", role, *_each(statements), PGPASSWORD=password)

    def sql(self, *statements: str) -> str:
        """Run statements as the superuser, one transaction each."""
        return self._psql("-h", "/var/run/postgresql", "-U", "postgres", *_each(statements))

    def _psql(self, *arguments: str, **environment: str) -> str:
        given = [word for name, value in environment.items() for word in ("-e", f"{name}={value}")]
        psql = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "handoff", *arguments]
        return run("docker", "exec", *given, f"{self.project}-postgres-1", *psql).strip()

    @asynccontextmanager
    async def agent(self, token: str) -> AsyncGenerator[Agent]:
        """An MCP client that uses a token."""
        headers = {"Authorization": f"Bearer {token}"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=40) as http,
            Client(streamable_http_client(self.url("HANDOFF_PORT", "/mcp"), http_client=http)) as client,
        ):
            yield Agent(client)


def _each(statements: Sequence[str]) -> list[str]:
    return [word for statement in statements for word in ("-c", statement)]


def eventually(what: Callable[[], Any], within_s: float = 40, show: Callable[[], Any] = str) -> Any:
    """Call `what()` until it returns something true, and return that. Failed requests are retried.

    After `within_s` seconds it fails, with the result of `show()` in the message.
    """
    give_up = monotonic() + within_s
    while True:
        try:
            found = what()
        except httpx2.HTTPError:
            found = None
        if found:
            return found
        assert monotonic() < give_up, f"nothing after {within_s:.0f} s {show()}"
        sleep(0.5)
