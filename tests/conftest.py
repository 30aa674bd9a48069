"""Fixtures with real dependencies: one Postgres per run, and a database of its own for each test."""

import asyncio
import itertools
import signal
from collections.abc import AsyncGenerator, Generator
from typing import Any

import asyncpg
import orjson
import pytest
from mcp import Client
from pydantic import SecretStr

from handoff.app import open_app, open_telemetry
from handoff.cli.embedded import postgres
from handoff.context import App
from handoff.server.protocol import build_server
from handoff.settings import Settings
from handoff.store.migrate import migrate
from handoff.telemetry.logs import configure_logs, forward_logs
from tests.agents import Agent
from tests.collector import Collector, collecting
from tests.processes import Service, passable_folder, serving

pytest_plugins = ["tests.hung", "tests.report"]
_numbers = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of tests/stack: pytest reads options only from the conftest.py files of its root folder."""
    parser.addoption("--project", default="handoff-tests", help="the Compose project of the stack")
    parser.addoption("--pace", default="quick", choices=["quick", "shipped"], help="pace of the drills; shipped takes hours")
    parser.addoption("--write-alerts", action="store_true", help="write docs/alerts.md from the measurements of the drills")


def pytest_configure() -> None:
    """Let the programs under test take SIGINT: they would ignore it, too, if a shell started the tests in the background."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Use uvloop, as the service does."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(autouse=True)
def logged() -> Generator[list[dict[str, Any]]]:
    """The lines logged during the test, parsed; they are also written to standard error."""
    lines: list[dict[str, Any]] = []
    configure_logs("info")
    forward_logs(lambda line: lines.append(orjson.loads(line[3])))
    yield lines
    forward_logs(None)


@pytest.fixture(scope="session")
def postgres_url() -> Generator[str]:
    """A Postgres from the wheel, without fsync: these tests kill processes, but never the machine."""
    with passable_folder() as folder, postgres(folder) as url:
        asyncio.run(_prepare(url))
        yield url


async def _prepare(url: str) -> None:
    conn = await asyncpg.connect(url)
    for setting in ("fsync = off", "full_page_writes = off", "max_connections = 300"):
        await conn.execute(f"ALTER SYSTEM SET {setting}")
    await conn.execute("SELECT pg_reload_conf()")
    await conn.execute("CREATE DATABASE template_handoff")
    await conn.close()
    await migrate(Settings(database_url=SecretStr(_named(url, "template_handoff"))))


def _named(url: str, name: str) -> str:
    return url.replace("/postgres?", f"/{name}?", 1)


@pytest.fixture
def empty_database_url(postgres_url: str) -> Generator[str]:
    """An empty database."""
    yield from _database(postgres_url, "template0")


@pytest.fixture
def database_url(postgres_url: str) -> Generator[str]:
    """A migrated database for this test."""
    yield from _database(postgres_url, "template_handoff")


@pytest.fixture(scope="module")
def module_database_url(postgres_url: str) -> Generator[str]:
    """A migrated database for the tests of a module, for a service that they share."""
    yield from _database(postgres_url, "template_handoff")


@pytest.fixture(scope="module")
def service(module_database_url: str) -> Generator[Service]:
    """A service that the tests of a module share: those that neither change nor end it, and tell their own data apart."""
    with serving(database_url=module_database_url) as running:
        yield running


def _database(url: str, template: str) -> Generator[str]:
    name = f"test_{next(_numbers)}"
    asyncio.run(_execute(url, f"CREATE DATABASE {name} TEMPLATE {template}"))
    yield _named(url, name)
    asyncio.run(_execute(url, f"DROP DATABASE {name} WITH (FORCE)"))


async def _execute(url: str, statement: str) -> None:
    conn = await asyncpg.connect(url)
    await conn.execute(statement)
    await conn.close()


@pytest.fixture
def settings(database_url: str) -> Settings:
    """Settings for the test's database. Handoffs are settled only when a test asks for it."""
    return Settings(database_url=SecretStr(database_url), settle_interval_s=3_600)


@pytest.fixture
async def app(settings: Settings) -> AsyncGenerator[App]:
    """An open App."""
    async with open_app(settings) as opened:
        yield opened


@pytest.fixture
async def agent(app: App) -> AsyncGenerator[Agent]:
    """Test agents of a service in this process: `await agent.ok("get_inbox", agent="bob")`."""
    async with Client(build_server(app)) as client:
        yield Agent(client)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Generator[Collector]:
    """A collector for the signals of services that are started after it."""
    with collecting() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.url)
        monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "200")
        yield running


@pytest.fixture
async def observed(settings: Settings, collector: Collector) -> AsyncGenerator[App]:
    """An open App whose signals go to the collector."""
    watched = settings.model_copy(update={"telemetry": True})
    async with open_telemetry(watched) as signals, open_app(watched, signals=signals) as opened:
        yield opened


@pytest.fixture
async def db(database_url: str) -> AsyncGenerator[asyncpg.Connection]:
    """A direct connection to the test's database, bypassing the service."""
    conn = await asyncpg.connect(database_url)
    yield conn
    await conn.close()
