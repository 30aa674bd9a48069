"""The admin tool that has what was given up at a webhook endpoint tried once more."""

from functools import partial
from typing import Annotated, Any, Final

import structlog
from pydantic import Field

from handoff.context import Call
from handoff.errors import NotFound
from handoff.model import AGENT_CHARS_MAX, NAME_PATTERN
from handoff.store import audit, webhooks
from handoff.store.connect import Connection, after_commit, transact
from handoff.tools.contract import AgentArg, Arguments, Tool, acting_agent, result_with

log = structlog.get_logger(__name__)

RETRIED_MAX: Final = 1_000  # per call


class RetryWebhooks(Arguments):
    """Deliver again what was given up at an endpoint of handoff://webhooks."""

    agent: AgentArg = None
    endpoint: Annotated[str, Field(max_length=AGENT_CHARS_MAX, pattern=NAME_PATTERN)]


async def retry_webhooks(call: Call, args: RetryWebhooks) -> dict[str, Any]:
    """Make the oldest of it pending again, and return how much. Raises NotFound when there is nothing for the endpoint."""
    actor, name = acting_agent(call.caller, args.agent), args.endpoint

    async def work(conn: Connection) -> dict[str, Any]:
        retried = await webhooks.retry(conn, name, RETRIED_MAX)
        (found,) = await webhooks.state(conn, [name])
        if not found["pending"] and not found["dead"]:
            raise NotFound(
                "webhook_not_found",
                f"There is no message to a webhook endpoint {name!r}, neither pending nor given up.",
                "Read handoff://webhooks, which lists the endpoints and how many messages were given up at each.",
            )
        await audit.append(conn, actor=actor, action="webhooks.retry", target=name, details={"messages": retried})
        after_commit(partial(log.info, "webhooks.retried", endpoint=name, messages=retried, agent=actor))
        return {"endpoint": name, "retried": retried, "pending": found["pending"], "dead": found["dead"]}

    return await transact(call.app.pool, work)


RETRY_WEBHOOKS = Tool(
    "retry_webhooks", RetryWebhooks, retry_webhooks, result_with("retried", "integer"), "admin", destructive=False
)
