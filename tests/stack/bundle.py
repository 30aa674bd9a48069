"""The bundle as it ships, started under a name and on ports of its own, and what the tests ask of it."""

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
    """A command failed; the message holds what it printed."""


def run(*command: str, timeout_s: float = 300, cwd: Path = ROOT) -> str:
    """What a command prints. Raises Failed if it does not end well, or in time."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{' '.join(command)}: not done after {timeout_s:.0f} s") from error
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def docker_answers() -> bool:
    """Whether there is an engine, and Compose."""
    try:
        run("docker", "version", timeout_s=10)
        run("docker", "compose", "version", timeout_s=10)
    except (Failed, FileNotFoundError):
        return False
    return True


def image_at_hand(image: str) -> bool:
    """Whether an image is here, or can be pulled."""
    try:
        run("docker", "image", "inspect", image, timeout_s=10)
    except Failed:
        try:
            run("docker", "pull", "-q", image, timeout_s=300)
        except Failed:
            return False
    return True


def shipped(*profiles: str) -> dict[str, Any]:
    """compose.yaml as Compose reads it, without anything from the tests or from this machine's .env."""
    chosen = [word for name in profiles for word in ("--profile", name)]
    command = ["docker", "compose", "-f", "compose.yaml", "--env-file", "/dev/null", *chosen, "config", "--format", "json"]
    return json.loads(run(*command, timeout_s=30))


# Below those that the kernel gives to whoever asks, and for each process its own: stacks start beside one another, and what
# is free now has to be free still when Docker publishes it.
_ports = itertools.count(20_000 + os.getpid() % 120 * 100)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    found: list[int] = []
    while len(found) < count:
        port = next(_ports)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
    return found


class Stack:
    """The bundle under a project's name: `settings` is what its .env would hold."""

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
        # One client, for each reads all certificates anew; no connection outlives an answer, for services restart.
        self._http = httpx2.Client(timeout=10, limits=httpx2.Limits(max_keepalive_connections=0))
        self._compose = DockerCompose(ROOT, compose_file_name=files, env_file=str(env_file), wait=True)

    def compose(self, *arguments: str, timeout_s: float = 300) -> str:
        """What `docker compose` prints."""
        return run(*self._compose.docker_compose_command(), *arguments, timeout_s=timeout_s)

    def up(self, *more: str) -> float:
        """Start all and wait until all are healthy; the seconds it took."""
        began = monotonic()
        self.compose("up", "--detach", "--wait", *more)
        return monotonic() - began

    def down(self, *more: str) -> None:
        """Stop and remove the containers; with `--volumes` the data too."""
        self.compose("--profile", "*", "down", *more)

    def url(self, port: str, path: str = "") -> str:
        """An address of the running stack, by the name of its port in .env.example."""
        return f"http://127.0.0.1:{self.settings[port]}{path}"

    def get(self, port: str, path: str, **parameters: str) -> Any:
        """The JSON that stands there."""
        answer = self._http.get(self.url(port, path), params=parameters)
        answer.raise_for_status()
        return answer.json()

    def promql(self, query: str, port: str = "PROMETHEUS_PORT") -> list[dict[str, Any]]:
        """The samples of an instant query."""
        return self.get(port, "/api/v1/query", query=query)["data"]["result"]

    def logql(self, query: str) -> list[dict[str, str]]:
        """The lines of the last hour, each with its labels and structured metadata."""
        found = self.get("LOKI_PORT", "/loki/api/v1/query_range", query=query, since="1h", limit="5000")["data"]["result"]
        return [{**stream["stream"], "line": line} for stream in found for _, line in stream["values"]]

    def trace(self, trace_id: str) -> list[dict[str, Any]]:
        """The spans of a trace, or nothing."""
        answer = self._http.get(self.url("JAEGER_PORT", f"/api/v3/traces/{trace_id}"))
        if answer.status_code == 404:
            return []
        resources = answer.raise_for_status().json()["result"]["resourceSpans"]
        return [span for resource in resources for scope in resource["scopeSpans"] for span in scope["spans"]]

    def instance(self) -> str:
        """The service that answers now, as its metrics name it: one that was there before may still have series."""
        return f'service_name="handoff", service_instance_id="{self.get("HANDOFF_OPS_PORT", "/health")["instance"]}"'

    def containers(self) -> list[dict[str, Any]]:
        """Each container that there is, one-shots included, as `docker inspect` shows it."""
        return json.loads(run("docker", "inspect", *self.compose("ps", "--all", "--quiet").split()))

    def containers_left(self) -> str:
        """The containers of this project that the engine still knows, if any."""
        return run("docker", "ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={self.project}")

    def container(self, service: str) -> dict[str, Any]:
        """The container of a service."""
        return next(it for it in self.containers() if it["Config"]["Labels"]["com.docker.compose.service"] == service)

    def in_volume(self, volume: str, *command: str) -> str:
        """What a command prints that sees a volume at /volume."""
        mount = f"{self.project}_{volume}:/volume:ro"
        return run("docker", "run", "--rm", "--network=none", "-v", mount, "busybox:1.37", *command)

    def secret(self, name: str) -> str:
        """A secret, read as docs/stack.md says."""
        return self.compose("run", "--rm", "--no-deps", "-T", "secrets", "show", name).strip()

    def psql(self, role: str, password: str, *statements: str) -> str:
        """What a role gets over the network, each statement a transaction. Raises Failed if it is refused."""
        return self._psql("-h", "127.0.0.1", "-U", role, *_each(statements), PGPASSWORD=password)

    def sql(self, *statements: str) -> str:
        """What a superuser gets, each statement a transaction."""
        return self._psql("-h", "/var/run/postgresql", "-U", "postgres", *_each(statements))

    def _psql(self, *arguments: str, **environment: str) -> str:
        given = [word for name, value in environment.items() for word in ("-e", f"{name}={value}")]
        psql = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "handoff", *arguments]
        return run("docker", "exec", *given, f"{self.project}-postgres-1", *psql).strip()

    @asynccontextmanager
    async def agent(self, token: str) -> AsyncGenerator[Agent]:
        """A client that calls with a token."""
        headers = {"Authorization": f"Bearer {token}"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=40) as http,
            Client(streamable_http_client(self.url("HANDOFF_PORT", "/mcp"), http_client=http)) as client,
        ):
            yield Agent(client)


def _each(statements: Sequence[str]) -> list[str]:
    return [word for statement in statements for word in ("-c", statement)]


def eventually(what: Callable[[], Any], within_s: float = 40, show: Callable[[], Any] = str) -> Any:
    """What `what()` returns as soon as it is something; a failed connection is nothing yet. In vain, it tells `show()`."""
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
