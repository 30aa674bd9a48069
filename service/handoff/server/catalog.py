"""The list of tools and resources, and what models are shown of them."""

from functools import cache
from typing import Any, Final

import mcp_types as types

from handoff.model import NAME_PATTERN, SEQUENCE_MAX
from handoff.resources import alerts as alerts_resources
from handoff.resources import context as context_resources
from handoff.resources import handoffs as handoff_resources
from handoff.resources import operations as operations_resources
from handoff.resources import sessions as session_resources
from handoff.resources.contract import Resource
from handoff.settings import Settings
from handoff.telemetry import metrics
from handoff.tools import context, leases, offers, sessions
from handoff.tools.contract import Tool

TOOLS: Final[tuple[Tool[Any], ...]] = (
    sessions.REGISTER_SESSION,
    context.UPDATE_CONTEXT,
    context.GET_CONTEXT,
    context.SEARCH_CONTEXT,
    offers.REQUEST_HANDOFF,
    offers.GET_INBOX,
    leases.ACCEPT_HANDOFF,
    leases.RENEW_HANDOFF,
    leases.RESOLVE_HANDOFF,
    sessions.CLOSE_SESSION,
)
ADMIN_TOOLS: Final[tuple[Tool[Any], ...]] = (leases.LAPSE_HANDOFF,)
RESOURCES: Final[tuple[Resource[Any], ...]] = (
    session_resources.SESSIONS,
    session_resources.SESSION,
    session_resources.LIFECYCLE,
    context_resources.CONTEXT,
    context_resources.SUMMARY,
    handoff_resources.INBOX,
    session_resources.AGENT_SESSIONS,
    handoff_resources.HANDOFF,
    operations_resources.HEALTH,
    operations_resources.METRICS,
    alerts_resources.ALERTS,
)
metrics.RESOURCE.admit(*(resource.name for resource in RESOURCES))


# Every caller pays for each byte of tools/list. In JSON Schema \\w is ASCII only, so this is NAME_PATTERN with its length.
_SHORT_PATTERN: Final = r"^\w[\w.:@+=~-]{0,%d}$"
_REDUNDANT: Final = (("default", None), ("maximum", SEQUENCE_MAX), ("additionalProperties", True))


@cache
def tools_of(*, admin: bool) -> dict[str, Tool[Any]]:
    """The tools that the service offers, by name; with `admin`, those for operators too."""
    return {tool.name: tool for tool in (*TOOLS, *(ADMIN_TOOLS if admin else ()))}


def list_tools(settings: Settings) -> list[types.Tool]:
    """The tools as models are shown them: every limit is in the schema, and nothing redundant is."""
    return [
        types.Tool(
            name=tool.name,
            description=" ".join((tool.arguments.__doc__ or "").split()),
            input_schema=_terse(tool.arguments.model_json_schema(), settings),
            output_schema=tool.result,
            annotations=types.ToolAnnotations(  # values that equal the protocol's default are left out
                read_only_hint=tool.read_only or None,
                idempotent_hint=tool.idempotent or None,
                destructive_hint=None if tool.read_only or tool.destructive else False,
            ),
        )
        for tool in tools_of(admin=settings.admin).values()
    ]


def list_resources() -> list[types.Resource]:
    """The resources whose URI is fixed."""
    return [
        types.Resource(uri=resource.path, name=resource.name, description=resource.description, mime_type=resource.mime_type)
        for resource in RESOURCES
        if resource.is_fixed
    ]


def list_resource_templates() -> list[types.ResourceTemplate]:
    """All resources, as RFC 6570 templates."""
    return [
        types.ResourceTemplate(
            uri_template=resource.uri_template,
            name=resource.name,
            description=resource.description,
            mime_type=resource.mime_type,
        )
        for resource in RESOURCES
    ]


def _terse(schema: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """A JSON schema with references resolved, and without what is redundant: titles, descriptions, and null as a value."""
    definitions: dict[str, Any] = schema.pop("$defs", {})

    def terse(node: Any, *, is_names: bool = False) -> Any:
        if isinstance(node, list):
            return [terse(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return terse(definitions[node["$ref"].rsplit("/", 1)[1]])
        if "anyOf" in node:
            rest = [option for option in node["anyOf"] if option != {"type": "null"}]
            others = {name: value for name, value in node.items() if name not in ("anyOf", "default", "title")}
            return terse({**rest[0], **others}) if len(rest) == 1 else {**node, "anyOf": [terse(option) for option in rest]}
        if node.get("pattern") == NAME_PATTERN:
            return {"type": "string", "pattern": _SHORT_PATTERN % (node["maxLength"] - 1)}
        return {
            name: terse(value, is_names=name == "properties")
            for name, value in node.items()
            if is_names or (name not in ("title", "description") and (name, value) not in _REDUNDANT)
        }

    out: dict[str, Any] = terse(schema)
    if "entries" in out["properties"]:
        entry = out["properties"]["entries"]["items"]["properties"]
        entry["content"]["maxLength"] = settings.content_bytes_max
    if "lease_seconds" in out["properties"]:
        out["properties"]["lease_seconds"]["default"] = settings.lease_s_default
    return out
