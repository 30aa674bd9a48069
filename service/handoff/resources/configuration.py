"""What is configured while the service runs, as a resource."""

from typing import Any

from handoff.context import Call
from handoff.resources.contract import NoQuery, Resource
from handoff.views import configuration_view


async def read_configuration(call: Call, _: dict[str, str], _query: NoQuery) -> dict[str, Any]:
    """What is in force, and which version that is."""
    return await configuration_view(call.app)


CONFIGURATION = Resource(
    "handoff://config",
    "config",
    "Retention policies, thresholds, job intervals and log levels in force, and who set them. Needs the scope admin.",
    NoQuery,
    read_configuration,
    scope="admin",
    is_subscribable=True,
)
