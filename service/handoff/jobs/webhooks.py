"""Delivers webhooks: tells each endpoint what happened to handoffs, in order per handoff, until it has answered with 2xx."""

import asyncio
import socket
from contextlib import suppress
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import structlog
from asyncpg import Record

from handoff import __version__
from handoff.context import App
from handoff.encoding import to_json
from handoff.store import webhooks as store
from handoff.store.connect import Connection, connection, transact
from handoff.telemetry import metrics
from handoff.webhooks import Endpoint, WebhooksFileError, read_endpoints, signatures

if TYPE_CHECKING:
    from aiohttp.abc import AbstractResolver

log = structlog.get_logger(__name__)

INTERVAL_S: Final = 0.5
TIMEOUT_S: Final = 5.0  # for an answer, from the resolution of the name on
ATTEMPTS_MAX: Final = 16  # over seven hours
_PAUSE_S: Final = (5.0, 3_600.0)  # after the first failure, and at most; twice as long each time
_AT_ONCE_MAX: Final = 20
_RUN_S_MAX: Final = 20.0  # after which no further deliveries are begun
_GONE: Final = 410  # Standard Webhooks: the receiver wants no more of this


class _NotAllowed(Exception):
    """The endpoint's name leads to an address where it may not be."""


async def run(app: App) -> None:
    """Distribute the outbox, and deliver what is due, for as long as there is something and the time allows it."""
    if app.settings.webhooks_file is None:
        return
    endpoints = {it.name: it for it in await asyncio.to_thread(read_endpoints, app.settings.webhooks_file)}
    names, end = list(endpoints), monotonic() + _RUN_S_MAX

    def wanting(row: Record) -> list[str]:
        return [it.name for it in endpoints.values() if it.wants(row["kind"], row["agents"])]

    async def distribute(conn: Connection) -> int:
        return await store.distribute(conn, wanting)

    while True:
        moved = await transact(app.pool, distribute)
        async with connection(app.pool) as conn:
            due = await store.due(conn, names, _AT_ONCE_MAX)
        await asyncio.gather(*(_deliver(app, endpoints[row["endpoint"]], row) for row in due))
        if not (moved or due) or monotonic() > end:
            break


async def _deliver(app: App, endpoint: Endpoint, row: Record) -> None:
    """Make one attempt, and note how it went."""
    problem, is_reached = await _attempt(endpoint, row)
    about: dict[str, Any] = {"endpoint": endpoint.name, "handoff": row["handoff_id"], "kind": row["kind"]}
    if problem is None:
        async with connection(app.pool) as conn:
            await store.delivered(conn, row)
        metrics.WEBHOOK_DELIVERIES.add(1, "delivered")
        log.info("webhook.delivered", **about, attempts=row["attempts"] + 1)
        return
    attempts = row["attempts"] + 1
    is_over = attempts >= ATTEMPTS_MAX or problem == str(_GONE)
    again_s = None if is_over else min(_PAUSE_S[1], _PAUSE_S[0] * 2 ** row["attempts"])
    async with connection(app.pool) as conn:
        await store.failed(conn, row, problem, again_s, pause=not is_reached)
    metrics.WEBHOOK_DELIVERIES.add(1, "dead" if is_over else "failed")
    log.warning(
        "webhook.dead" if is_over else "webhook.failed", **about, attempts=attempts, problem=problem, retry_s=again_s
    )


async def _attempt(endpoint: Endpoint, row: Record) -> tuple[str | None, bool]:
    """What went wrong, None if nothing did, and whether the endpoint answered at all. The address is never in it."""
    import aiohttp  # a large package, for what most processes never do

    message_id, sent_at = f"evt_{row['event_id']}", int(time())
    body = to_json({"type": row["kind"], "timestamp": row["at"], "data": row["data"]})
    try:
        headers = {
            "content-type": "application/json",
            "user-agent": f"handoff/{__version__}",
            "webhook-id": message_id,
            "webhook-timestamp": str(sent_at),
            "webhook-signature": signatures(await asyncio.to_thread(endpoint.secrets), message_id, sent_at, body),
        }
        _check_literal(endpoint)
        connector = aiohttp.TCPConnector(resolver=_resolver(endpoint), use_dns_cache=False, force_close=True)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as http,
            http.post(endpoint.url, data=body, headers=headers, allow_redirects=False) as answer,
        ):
            return (None if 200 <= answer.status < 300 else str(answer.status)), True
    except WebhooksFileError as error:
        log.warning("webhook.secret_unusable", endpoint=endpoint.name, error=str(error))
        return "secret_unusable", False
    except _NotAllowed:
        return "address_not_allowed", False
    except TimeoutError:
        return "timeout", False
    except (aiohttp.ClientError, OSError) as error:
        return type(error).__name__, False


def _check_literal(endpoint: Endpoint) -> None:
    """Raise _NotAllowed if the host is an IP address where the endpoint may not be: such a host is not resolved."""
    host = urlsplit(endpoint.url).hostname or ""
    with suppress(ValueError):
        if not endpoint.may_be_at(host):
            raise _NotAllowed


def _resolver(endpoint: Endpoint) -> "AbstractResolver":
    """Resolves a name once and returns only addresses where the endpoint may be: what it returns is what is connected to."""
    from aiohttp.abc import AbstractResolver, ResolveResult

    class Checked(AbstractResolver):
        async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_UNSPEC) -> list[ResolveResult]:
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
            allowed = [(kind, str(address[0])) for kind, _, _, _, address in found if endpoint.may_be_at(str(address[0]))]
            if not allowed:
                raise _NotAllowed
            return [
                ResolveResult(hostname=host, host=ip, port=port, family=kind, proto=0, flags=socket.AI_NUMERICHOST)
                for kind, ip in allowed
            ]

        async def close(self) -> None:
            pass

    return Checked()
