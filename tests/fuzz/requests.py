"""Requests that no client would send: made from the listed schemas and then mutated, or mutated byte by byte."""

import json
import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from handoff.server.catalog import list_resource_templates, list_tools
from handoff.settings import Settings
from tests.requests import META, PROTOCOL, headers

TOOLS: Final[dict[str, dict[str, Any]]] = {tool.name: tool.input_schema for tool in list_tools(Settings())}
URIS: Final = [template.uri_template for template in list_resource_templates()]
OLDER: Final = ("2025-03-26", "2025-06-18", "2025-11-25")
METHODS: Final = (
    "tools/list",
    "resources/list",
    "resources/templates/list",
    "prompts/list",
    "prompts/get",
    "completion/complete",
    "server/discover",
    "ping",
    "no/such",
    "initialize",
)
# Few names, so that calls meet what others have made. They are all that a schema leaves open.
NAMES: Final = {
    "agent": [f"agent-{number}" for number in range(4)],
    "target_agent": [f"agent-{number}" for number in range(4)],
    "session_key": [f"session-{number}" for number in range(6)],
    "target_capability": ["review", "deploy"],
    "idempotency_key": [f"key-{number}" for number in range(40)],
}
ODD: Final[tuple[Callable[[random.Random], Any], ...]] = (
    lambda _: None,
    lambda _: "",
    lambda _: [],
    lambda _: {},
    lambda _: True,
    lambda _: "\0",
    lambda _: "\ud83d",
    lambda _: float("nan"),
    lambda _: 1e308,
    lambda _: 0.5,
    lambda _: "0001-01-01T00:00:00+14:00",
    lambda _: "'; DROP TABLE session; --",
    lambda _: json.loads("[" * 200 + "]" * 200),
    lambda rng: "x" * rng.choice((101, 256, 2_001, 30_000)),
    lambda rng: rng.choice((-1, 1)) * rng.choice((0, 1, 2**31, 2**53, 2**63, 2**64, 10**30)),
    lambda rng: "".join(rng.choices(string.printable, k=rng.randrange(40))),
    lambda rng: "".join(chr(rng.choice((0x7F, 0x202E, 0xE9, 0x961F, 0x1F600))) for _ in range(rng.randrange(9))),
    lambda rng: {"".join(rng.choices("abc_", k=3)): rng.random() for _ in range(rng.randrange(40))},
)


@dataclass(frozen=True, slots=True)
class Request:
    """A request over HTTP."""

    path: str
    headers: list[tuple[str, str]]
    body: bytes


def request(rng: random.Random) -> Request:
    """Return a request: mostly a tool call, in the current protocol or an older one, often mutated in one place or more."""
    if rng.random() < 0.03:
        notification = {
            "version": "4",
            "alerts": [{"fingerprint": "f", "status": "firing", "startsAt": "2026-01-01T00:00:00Z"}],
        }
        return Request("/alerts", [("content-type", "application/json")], _encoded(rng, _mutated(rng, notification)))
    kind = rng.random()
    if kind < 0.75:
        method, name = "tools/call", rng.choice(list(TOOLS))
        params: dict[str, Any] = {"name": name, "arguments": arguments(rng, name)}
    elif kind < 0.9:
        method, name = "resources/read", uri(rng)
        params = {"uri": name}
    else:
        method, name, params = rng.choice(METHODS), None, {}
    version = PROTOCOL if rng.random() < 0.6 else rng.choice(OLDER)
    sent = headers(method, name if name is None or name.isascii() else None) | {"mcp-protocol-version": version}
    if version == PROTOCOL:
        params["_meta"] = META
    message: Any = {"jsonrpc": "2.0", "id": rng.randrange(1_000), "method": method, "params": params}
    if rng.random() < 0.1:
        message = _mutated(rng, message)
    if rng.random() < 0.05:
        sent[rng.choice(list(sent))] = rng.choice(("", "*/*", "text/plain", "2026-07-28", "x" * 300))
    return Request("/mcp", [(name, value) for name, value in sent.items() if value.isprintable()], _encoded(rng, message))


def arguments(rng: random.Random, tool: str) -> Any:
    """Return arguments that the tool's schema allows, of which half are mutated."""
    made = _fitting(rng, TOOLS[tool], "")
    if rng.random() < 0.5:
        made = _mutated(rng, made)
    if isinstance(made, dict) and made.get("wait_seconds"):
        made["wait_seconds"] = 0  # a wait would be served, and last
    return made


def uri(rng: random.Random) -> str:
    """Return the URI of a resource, with values for its variables that are often odd."""
    path, _, query = rng.choice(URIS).partition("{?")
    for name, choices in (("key", "session_key"), ("agent", "agent")):
        path = path.replace(f"{{{name}}}", rng.choice(NAMES[choices]))
    path = path.replace("{id}", str(rng.randrange(1, 60)))
    odd = (
        "",
        "%00",
        "1",
        "-1",
        "9" * 30,
        "2026-01-01T00:00:00Z",
        "0001-01-01T00:00:00%2B14:00",
        "WzFd",
        "todo",
        "a%0ab",
        "é",
    )
    pairs = [f"{name}={rng.choice(odd)}" for name in query.rstrip("}").split(",") if name and rng.random() < 0.3]
    return f"{path}?{'&'.join(pairs)}" if pairs else path


def _fitting(rng: random.Random, schema: dict[str, Any], name: str) -> Any:
    if name in NAMES:
        return rng.choice(NAMES[name])
    match schema["type"]:
        case "string" if "enum" in schema:
            return rng.choice(schema["enum"])
        case "string" if "pattern" in schema:
            return "".join(rng.choices(string.ascii_letters, k=rng.randrange(1, 12)))
        case "string":
            return "".join(rng.choices(string.ascii_letters + " \n", k=rng.randrange(1, 60)))
        case "integer":
            return rng.randrange(schema.get("minimum", 0), min(schema.get("maximum", 60), 60 + schema.get("minimum", 0)) + 1)
        case "boolean":
            return rng.random() < 0.5
        case "array":
            return [_fitting(rng, schema["items"], "") for _ in range(rng.randrange(schema.get("minItems", 0), 4))]
        case _:
            return {
                key: _fitting(rng, part, key)
                for key, part in schema["properties"].items()
                if key in schema.get("required", ()) or rng.random() < 0.5
            }


def _mutated(rng: random.Random, value: Any) -> Any:
    """Return a value in which one part is replaced by something odd, repeated, renamed or removed."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(ODD)(rng)
    if isinstance(value, list):
        place = rng.randrange(len(value))
        return [*value[:place], _mutated(rng, value[place]), *value[place + 1 :] * rng.choice((0, 1, 1, 60))]
    name = rng.choice(list(value))
    rest = {key: part for key, part in value.items() if key != name}
    change = rng.random()
    if change < 0.1:
        return rest
    if change < 0.2:
        return rest | {rng.choice((name.upper(), name + " ", "__proto__", "\0")): value[name]}
    return rest | {name: _mutated(rng, value[name])}


def _encoded(rng: random.Random, message: Any) -> bytes:
    """Return a message as JSON, sometimes as a batch, in another encoding, or with bytes that are changed or missing."""
    text = json.dumps([message] * rng.randrange(3) if rng.random() < 0.02 else message)
    encoded = text.encode(rng.choice(("utf-8",) * 60 + ("utf-16", "utf-32", "utf-8-sig")))
    if rng.random() > 0.08:
        return encoded
    mutated = bytearray(encoded)
    for _ in range(rng.randrange(1, 6)):
        mutated[rng.randrange(len(mutated))] = rng.randrange(256)
    return bytes(mutated[: rng.choice((None, rng.randrange(len(mutated))))])
