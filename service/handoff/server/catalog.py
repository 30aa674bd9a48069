"""The list of tools, resources and prompts, and what models are shown of them."""

from functools import cache
from typing import Any, Final

import mcp_types as types

from handoff.model import NAME_PATTERN, SEQUENCE_MAX
from handoff.prompts import handoffs as handoff_prompts
from handoff.prompts.contract import Prompt
from handoff.resources import alerts as alerts_resources
from handoff.resources import analytics as analytics_resources
from handoff.resources import configuration as configuration_resources
from handoff.resources import context as context_resources
from handoff.resources import handoffs as handoff_resources
from handoff.resources import jobs as jobs_resources
from handoff.resources import lifecycle as lifecycle_resources
from handoff.resources import operations as operations_resources
from handoff.resources import sessions as session_resources
from handoff.resources import storage as storage_resources
from handoff.resources import webhooks as webhook_resources
from handoff.resources.contract import Resource
from handoff.settings import Settings
from handoff.telemetry import metrics
from handoff.tools import backtest, configuration, context, incidents, jobs, leases, offers, session_data, sessions, webhooks
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
ADMIN_TOOLS: Final[tuple[Tool[Any], ...]] = (
    leases.LAPSE_HANDOFF,
    session_data.SESSION_DATA,
    configuration.CONFIGURATION,
    jobs.JOB,
    incidents.EXPLAIN_ANOMALY,
    backtest.BACKTEST,
    webhooks.RETRY_WEBHOOKS,
)
RESOURCES: Final[tuple[Resource[Any], ...]] = (
    session_resources.SESSIONS,
    session_resources.SESSION,
    session_resources.LIFECYCLE,
    context_resources.CONTEXT,
    context_resources.SUMMARY,
    handoff_resources.OPEN,
    handoff_resources.INBOX,
    handoff_resources.SENT,
    session_resources.AGENT_SESSIONS,
    lifecycle_resources.LIFECYCLE,
    handoff_resources.HANDOFF,
    handoff_resources.ACCEPTED_BRIEF,
    operations_resources.HEALTH,
    operations_resources.METRICS,
    alerts_resources.ALERTS,
    configuration_resources.CONFIGURATION,
    storage_resources.STORAGE,
    webhook_resources.WEBHOOKS,
    jobs_resources.JOBS,
    jobs_resources.JOB,
    analytics_resources.ANALYTICS,
)
PROMPTS: Final[dict[str, Prompt[Any]]] = {
    prompt.name: prompt for prompt in (handoff_prompts.HAND_OVER, handoff_prompts.TAKE_OVER, handoff_prompts.CATCH_UP)
}
metrics.RESOURCE.admit(*(resource.name for resource in RESOURCES))
metrics.PROMPT.admit(*PROMPTS)


# The list keeps to what the converters of all common clients accept; tests/server/test_dialects.py runs them on it.
# llama.cpp's grammars know no \\w or \\d and no pattern without ^ and $, and repeat nothing as often as this.
_REPETITIONS_MAX: Final = 1_999
_LISTED_PATTERN: Final = NAME_PATTERN.removesuffix("*$") + "{0,%d}"
# "default" is not permitted in OpenAI's strict mode. Of several values the first is the default, as INSTRUCTIONS say.
_UNLISTED: Final = frozenset({"title", "description", "default"})
_REDUNDANT: Final = (("maximum", SEQUENCE_MAX), ("additionalProperties", True))


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
            annotations=_annotations(tool),
        )
        for tool in tools_of(admin=settings.admin).values()
    ]


def _annotations(tool: Tool[Any]) -> types.ToolAnnotations | None:
    """The tool's hints, without those that equal the protocol's default."""
    hints: dict[str, Any] = {
        "read_only_hint": tool.read_only or None,
        "idempotent_hint": tool.idempotent or None,
        "destructive_hint": None if tool.read_only or tool.destructive else False,
    }
    return types.ToolAnnotations(**hints) if any(hint is not None for hint in hints.values()) else None


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


def list_prompts() -> list[types.Prompt]:
    """The prompts, with what people are asked for."""
    return [
        types.Prompt(
            name=prompt.name,
            title=prompt.title,
            description=prompt.description,
            arguments=[
                types.PromptArgument(name=name, description=argument.description, required=argument.is_required())
                for name, argument in prompt.arguments.model_fields.items()
            ],
        )
        for prompt in PROMPTS.values()
    ]


def _terse(schema: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """A JSON schema with references resolved, and without what is redundant: titles, descriptions, and null as a value.

    Limits that are too large for some clients as a keyword become descriptions.
    """
    definitions: dict[str, Any] = schema.pop("$defs", {})

    def terse(node: Any, *, is_names: bool = False, is_optional: bool = False) -> Any:
        if isinstance(node, list):
            return [terse(item) for item in node]
        if not isinstance(node, dict):
            return node
        if is_names:
            return {name: terse(value, is_optional="default" in value) for name, value in node.items()}
        if "$ref" in node:
            return terse(definitions[node["$ref"].rsplit("/", 1)[1]])
        if "anyOf" in node:  # a value, or null for none
            (rest,) = (option for option in node["anyOf"] if option != {"type": "null"})
            return terse(
                {**rest, **{name: value for name, value in node.items() if name != "anyOf"}}, is_optional=is_optional
            )
        out = {
            name: terse(value, is_names=name == "properties")
            for name, value in node.items()
            if name not in _UNLISTED and (name, value) not in _REDUNDANT
        }
        return _with_bounds(out, is_optional=is_optional)

    out: dict[str, Any] = terse(schema)
    if "entries" in out["properties"]:
        entry = out["properties"]["entries"]["items"]["properties"]
        entry["content"]["description"] = f"At most {settings.content_bytes_max} bytes"
    if "lease_seconds" in out["properties"]:
        out["properties"]["lease_seconds"]["description"] = f"Default {settings.lease_s_default}"
    return out


def _with_bounds(schema: dict[str, Any], *, is_optional: bool) -> dict[str, Any]:
    """A schema with its pattern and length in the form that all clients accept. Optional names may be empty."""
    if schema.get("pattern") == NAME_PATTERN:
        pattern = _LISTED_PATTERN % (schema.pop("maxLength") - 1)
        schema["pattern"] = f"^({pattern[1:]})?$" if is_optional else f"{pattern}$"
    elif schema.get("maxLength", 0) > _REPETITIONS_MAX:
        schema["description"] = f"At most {schema.pop('maxLength')} characters"
    return schema
