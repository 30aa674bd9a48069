"""What callers use: the tables of tools, resources and limits."""

import re
from collections.abc import Iterable
from typing import Any, Final

from pydantic import BaseModel

from docs.source.markdown import code, escaped, table
from handoff.operations import alerts as notifications
from handoff.operations import port
from handoff.operations.health import HISTORY_MAX
from handoff.resources.contract import Resource
from handoff.resources.sessions import SessionsQuery
from handoff.server import admission, auth, connections, edge, gate, protocol, waiting
from handoff.server.catalog import ADMIN_TOOLS, PROMPTS, RESOURCES, TOOLS
from handoff.settings import CERTIFICATES_MAX
from handoff.store import migrate as migrations
from handoff.store import search
from handoff.store.handoffs import WRITERS_MAX
from handoff.tools import contract
from handoff.tools.context import ENTRIES_PER_CALL_MAX, Entry
from handoff.tools.contract import Tool

_ADMIN: Final = "; only with `--admin`"


def tools() -> str:
    """Every tool: what its docstring tells models, its arguments, the scope it needs."""
    rows = [_tool(tool, "") for tool in TOOLS] + [_tool(tool, _ADMIN) for tool in ADMIN_TOOLS]
    return table(("Tool", "What it does", "Arguments", "Scope"), rows)


def resources() -> str:
    """Every resource: its URI, what its query takes, the scope it needs."""
    return table(("URI", "What it shows", "Query", "Scope"), [_resource(resource) for resource in RESOURCES])


def prompts() -> str:
    """Every prompt: what it asks the model to do, and its arguments."""
    rows = [(code(it.name), escaped(it.description), _arguments(it.arguments)) for it in PROMPTS.values()]
    return table(("Prompt", "What it asks the model to do", "Arguments"), rows)


def limits() -> str:
    """Every limit that is no setting."""
    of = {tool.name: tool.arguments for tool in TOOLS}
    tokens = f"{_lower(of['get_context'], 'token_budget')} to {_upper(of['get_context'], 'token_budget')} tokens"
    indexed = f"the first {_indexed_chars()} characters of an entry"
    ranked = f"the newest {_n(search.RANKED_MAX)} matches are ranked"
    values = _n(notifications.VALUES_MAX)
    rows = (
        ("the headers of a request", f"{_n(connections.HEAD_BYTES_MAX)} bytes, {connections.FIELDS_MAX} fields"),
        ("the path of a request with its query", f"{_n(connections.TARGET_BYTES_MAX)} bytes"),
        ("JSON values per request, names included", _n(edge.JSON_VALUES_MAX)),
        ("entries per call", _n(ENTRIES_PER_CALL_MAX)),
        ("entries that one entry supersedes", _upper(Entry, "supersedes")),
        ("metadata", f"{_n(contract.METADATA_BYTES_MAX)} bytes of JSON, {contract.METADATA_DEPTH_MAX} levels deep"),
        ("instructions, or a note", f"{_upper(of['request_handoff'], 'instructions')} characters"),
        ("a session key", f"{_upper(of['get_context'], 'session_key')} characters"),
        ("an agent's or a capability's name", f"{_upper(of['get_context'], 'agent')} characters"),
        ("an idempotency key", f"{_upper(of['request_handoff'], 'idempotency_key')} characters"),
        ("capabilities per agent", _upper(of["get_inbox"], "capabilities")),
        ("writers per session", _n(WRITERS_MAX)),
        ("a brief", f"{tokens}; {_n(of['get_context'].model_fields['token_budget'].default)} by default"),
        (
            "a lease",
            f"{_lower(of['accept_handoff'], 'lease_seconds')} to {_upper(of['accept_handoff'], 'lease_seconds')} seconds",
        ),
        ("a deadline", f"{_upper(of['request_handoff'], 'deadline_minutes')} minutes"),
        ("a wait for the inbox", f"{_upper(of['get_inbox'], 'wait_seconds')} seconds"),
        ("silence while a call waits, in a stream of events", f"{waiting.KEEP_ALIVE_S:.0f} seconds"),
        ("a browser's memory of a preflight", f"{_n(gate.PREFLIGHT_S)} seconds"),
        ("items per page of a resource", _upper(SessionsQuery, "limit")),
        ("a search query", f"{_upper(of['search_context'], 'query')} characters"),
        ("matches per search", _upper(of["search_context"], "limit")),
        ("text that search sees", f"{indexed}; {ranked}"),
        (
            "subscriptions",
            f"{_n(admission.SUBSCRIPTIONS_MAX)} per process, each of {_n(protocol._SUBSCRIBED_URIS_MAX)} URIs",
        ),
        ("health changes shown", _n(HISTORY_MAX)),
        ("tokens in the tokens file", _n(auth._TOKENS_MAX)),
        (
            "a notification from Alertmanager",
            f"{_n(notifications.BODY_BYTES_MAX)} bytes, {values} JSON values",
        ),
        ("alerts kept while Postgres is down", _n(notifications.WAITING_MAX)),
        ("connections to the operations port", f"{port._CONNECTIONS_MAX}, each for {port._CONNECTION_S_MAX} seconds"),
        ("certificates to watch", _n(CERTIFICATES_MAX)),
    )
    return table(("What", "At most"), rows)


def _tool(tool: Tool[Any], note: str) -> tuple[str, str, str, str]:
    fields = tool.arguments.model_fields
    order = sorted(fields, key=lambda name: not fields[name].is_required())
    return code(tool.name), escaped(tool.arguments.__doc__ or ""), _arguments(tool.arguments, order), f"{tool.scope}{note}"


def _arguments(model: type[BaseModel], order: Iterable[str] | None = None) -> str:
    fields = model.model_fields
    return ", ".join(code(name) if fields[name].is_required() else f"{code(name)}?" for name in order or fields)


def _resource(resource: Resource[Any]) -> tuple[str, str, str, str]:
    return (
        code(resource.path),
        escaped(resource.description),
        _listed(resource.query.model_fields),
        resource.scope,
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(code, names))


def _schema(arguments: type[BaseModel], name: str) -> dict[str, Any]:
    schema: dict[str, Any] = arguments.model_json_schema()["properties"][name]
    return next((it for it in schema.get("anyOf", ()) if it["type"] != "null"), schema)


def _upper(arguments: type[BaseModel], name: str) -> str:
    schema = _schema(arguments, name)
    (bound,) = [schema[key] for key in ("maximum", "maxLength", "maxItems") if key in schema]
    return _n(bound)


def _lower(arguments: type[BaseModel], name: str) -> str:
    return _n(_schema(arguments, name)["minimum"])


def _indexed_chars() -> str:
    """How much of an entry is indexed, as the last migration that says so has it."""
    found = [number for it in migrations.migrations() for number in re.findall(r"left\(content, (\d+)\)", it.sql)]
    return _n(int(found[-1]))


def _n(number: int) -> str:
    return f"{number:,}"
