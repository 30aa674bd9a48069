"""The bundle as it ships, started under its own project name and ports, and the queries that tests make."""

import json
import os
import socket
import subprocess
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any, Final

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from testcontainers.compose import DockerCompose

from tests.agents import Agent
from tests.stack.evidence import folder_of, leave, machine
from tests.stack.turns import ARRIVALS, EVALUATIONS, EXPECTED_AGAIN, TURNS, Times, Turns, Vain, eventually

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


# No machine is so slow: a command or a request that takes longer hangs.
COMMAND_S: Final = 1_800
ANSWER_S: Final = 60
# `up --wait` fails when something becomes unhealthy. So a service may take as long as it needs to become healthy; afterwards
# what ships decides how many of its checks may fail.
PATIENT: Final = {"start_period": f"{COMMAND_S}s", "timeout": f"{ANSWER_S}s"}
LATEST: Final = 5


class Failed(AssertionError):
    """A command failed. The message contains its output."""


def run(*command: str, cwd: Path = ROOT, given: str | None = None) -> str:
    """Run a command with this input and return its output. Raises Failed on a non-zero exit status, or if it hangs."""
    try:
        done = subprocess.run(command, cwd=cwd, input=given, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{' '.join(command)}: not done after {COMMAND_S} s") from error
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def docker_answers() -> bool:
    """Whether a Docker engine with Compose is available."""
    try:
        run("docker", "version")
        run("docker", "compose", "version")
    except (Failed, FileNotFoundError):
        return False
    return True


def image_at_hand(image: str) -> bool:
    """Whether an image exists locally or can be pulled."""
    try:
        run("docker", "image", "inspect", image)
    except Failed:
        try:
            run("docker", "pull", "-q", image)
        except Failed:
            return False
    return True


def shipped(*profiles: str) -> dict[str, Any]:
    """compose.yaml as Compose resolves it, without the overlays of the tests and without a local .env."""
    chosen = [word for name in profiles for word in ("--profile", name)]
    command = ["docker", "compose", "-f", "compose.yaml", "--env-file", "/dev/null", *chosen, "config", "--format", "json"]
    return json.loads(run(*command))


def _reserved_ports() -> Generator[int]:
    """Ports below the ephemeral range, from ranges that only this process uses: it listens on the first port of each.

    Stacks start beside one another, and a port that is free now must still be free when Docker publishes it.
    """
    for first in range(20_000, 32_000, 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", first)):
            yield from range(first + 1, first + 100)
            yield from _reserved_ports()


_reserved = _reserved_ports()


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens."""
    found: list[int] = []
    while len(found) < count:
        port = next(_reserved)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
    return found


class Stack:
    """The bundle under a project name. `settings` is what its .env would contain, `root` the checkout that it runs."""

    def __init__(
        self, folder: Path, project: str, overlays: Sequence[str], settings: Mapping[str, str], root: Path = ROOT
    ) -> None:
        self.project = project
        self.root = root
        self.given = folder / "given"
        self.given.mkdir()
        self.turns_s: list[float] = []  # how many seconds each of the latest turns took, as far as a wait has looked
        self.evidence: dict[str, Callable[[], Any]] = {}  # what else a failed test leaves, by file name
        self.settings = {
            "COMPOSE_PROJECT_NAME": project,
            "SECRETS_DIR": str(self.given),
            "HANDOFF_IMAGE": f"{project}:tests",
            **dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True)),
            **settings,
        }
        env_file = folder / "env"
        env_file.write_text("".join(f"{name}={value}\n" for name, value in self.settings.items()))
        patient = folder / "patient.json"
        patient.write_text(json.dumps({"services": {name: {"healthcheck": PATIENT} for name in _checked()}}))
        files = ["compose.yaml", *(str(ROOT / HERE / name) for name in overlays), str(patient)]
        # One client, because each loads all CA certificates; no keep-alive, because services restart between requests.
        self._http = httpx2.Client(timeout=ANSWER_S, limits=httpx2.Limits(max_keepalive_connections=0))
        self._compose = DockerCompose(root, compose_file_name=files, env_file=str(env_file), wait=True)

    def compose(self, *arguments: str) -> str:
        """Run `docker compose` and return its output."""
        return run(*self._compose.docker_compose_command(), *arguments, cwd=self.root)

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

    def eventually(self, what: Callable[[], Any], most: int = TURNS, show: Callable[[], Any] = str) -> Any:
        """Call `what()` until it returns something true, and return that. Failed requests and commands are retried.

        Fails after `most` turns of this stack, and leaves the evidence in a folder that it names.
        """
        turns = self.turns()
        try:
            return eventually(what, show=show, turns=turns, most=most, retried=(httpx2.HTTPError, Failed))
        except Vain as vain:
            vain.add_note(f"what is needed to understand it is in {self.leave_evidence()}")
            raise
        finally:
            self.turns_s = [*self.turns_s, *turns.took_s][-LATEST:]

    def turns(self) -> Turns:
        """Counts the turns of this stack from now on."""
        return Turns(self._seen)

    def leave_evidence(self) -> Path:
        """Write what is needed to understand a failure of the running test. Returns the folder."""
        parts: dict[str, Callable[[], Any]] = {
            "machine.txt": machine,
            "containers.json": lambda: [
                {"name": it["Name"], "state": it["State"], "restarts": it["RestartCount"]} for it in self.containers()
            ],
            "usage.txt": lambda: run(
                "docker", "stats", "--no-stream", *(it["Name"][1:] for it in self.containers() if it["State"]["Running"])
            ),
            "rules.json": lambda: self.get("PROMETHEUS_PORT", "/api/v1/rules"),
            "alerts.json": lambda: self.get("PROMETHEUS_PORT", "/api/v1/alerts"),
            "targets.json": lambda: self.get("PROMETHEUS_PORT", "/api/v1/targets"),
            "alertmanager.json": lambda: self.get("ALERTMANAGER_PORT", "/api/v2/alerts/groups"),
            "health.json": lambda: self.get("HANDOFF_OPS_PORT", "/health"),
            "stored-alerts.txt": lambda: self.sql("SELECT * FROM reporting.alert ORDER BY starts_at DESC LIMIT 200"),
            **self.evidence,
        }
        for it in self.compose("config", "--services").split():
            parts[f"logs-{it}.txt"] = lambda it=it: self.compose("logs", "--no-color", "--timestamps", "--tail=5000", it)
        return leave(parts, folder_of(os.environ.get("PYTEST_CURRENT_TEST", self.project)))

    def _seen(self) -> tuple[Times, Times]:
        """When anything last arrived in Prometheus, and when each group of rules was last evaluated."""
        found = self.get(
            "PROMETHEUS_PORT", "/api/v1/query", query=f"{ARRIVALS} or {EVALUATIONS}", lookback_delta=EXPECTED_AGAIN
        )
        times: dict[bool, dict[str, float]] = {False: {}, True: {}}
        for it in found["data"]["result"]:
            times["rule_group" in it["metric"]][str(it["metric"])] = float(it["value"][1])
        return times[False], times[True]

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

    def script(self, text: str) -> str:
        """Run a script of psql as the superuser; it may contain what COPY reads."""
        return self._psql("-h", "/var/run/postgresql", "-U", "postgres", "-f", "-", given=text)

    def _psql(self, *arguments: str, given: str | None = None, **environment: str) -> str:
        variables = [word for name, value in environment.items() for word in ("-e", f"{name}={value}")]
        psql = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "handoff", *arguments]
        return run("docker", "exec", "-i", *variables, f"{self.project}-postgres-1", *psql, given=given).strip()

    @asynccontextmanager
    async def agent(self, token: str) -> AsyncGenerator[Agent]:
        """An MCP client that uses a token."""
        headers = {"Authorization": f"Bearer {token}"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=ANSWER_S) as http,
            Client(streamable_http_client(self.url("HANDOFF_PORT", "/mcp"), http_client=http)) as client,
        ):
            yield Agent(client)


def _checked() -> list[str]:
    """The services with a health check, which those of our own image bring along."""
    checks = {
        name: it.get("healthcheck", {"disable": not it["image"].startswith("handoff:")})
        for name, it in shipped("*")["services"].items()
    }
    return [name for name, check in checks.items() if not check.get("disable")]


def _each(statements: Sequence[str]) -> list[str]:
    return [word for statement in statements for word in ("-c", statement)]
