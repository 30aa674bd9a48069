"""What is to be delivered to webhook endpoints, as a resource."""

import asyncio
from typing import Any

from handoff.context import Call
from handoff.errors import Unavailable
from handoff.resources.contract import NoQuery, Resource
from handoff.store import webhooks as store
from handoff.store.connect import connection
from handoff.webhooks import WebhooksFileError, read_endpoints


async def read_webhooks(call: Call, _: dict[str, str], _query: NoQuery) -> dict[str, Any]:
    """Each endpoint with what is pending and what was given up. Addresses and secrets are left out."""
    file = call.app.settings.webhooks_file
    try:
        endpoints = [] if file is None else await asyncio.to_thread(read_endpoints, file)
    except WebhooksFileError as error:
        raise Unavailable("webhooks_file", f"The file of webhooks can't be used: {error}.", "Correct the file.") from error
    async with connection(call.app.pool) as conn:
        found = {it["name"]: it for it in await store.state(conn, [it.name for it in endpoints])}
    return {
        "endpoints": [
            {
                "name": it.name,
                "agents": it.agents or "all",
                "events": it.events or "all",
                "secrets": len(it.secret_files),
                **{name: value for name, value in found[it.name].items() if name != "name" and value is not None},
            }
            for it in endpoints
        ]
    }


WEBHOOKS = Resource(
    "handoff://webhooks",
    "webhooks",
    "Webhook endpoints: what is yet to be delivered, how old it is, what was given up, and the last problem. Needs the "
    "scope admin.",
    NoQuery,
    read_webhooks,
    scope="admin",
)
