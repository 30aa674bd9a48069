"""What a tool declares, and the arguments and checks that tools share."""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Final, Generic, TypeVar

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from handoff.context import Call
from handoff.errors import Forbidden, Invalid
from handoff.model import AGENT_CHARS_MAX, NAME_PATTERN, SEQUENCE_MAX, SESSION_KEY_CHARS_MAX, Caller, Scope
from handoff.telemetry import metrics

METADATA_BYTES_MAX: Final = 16_384
METADATA_DEPTH_MAX: Final = 16
TEXT_CHARS_MAX: Final = 20_000


# Arguments that other agents will read, whose secrets are redacted; `entries` holds more of them.
READ_BY_OTHERS: Final = frozenset({"entries", "content", "metadata", "instructions", "note"})

# Optional numbers of which 0 is none, so that 0 can say that they are left out.
_NEVER_ZERO: Final = frozenset({"handoff_id", "token", "deadline_minutes", "version", "expected_version"})


class Arguments(BaseModel):
    """A tool's arguments, as they came: nothing is coerced, and unknown names are refused.

    The docstring of a subclass is the tool's description for models. Every caller pays for its length.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @classmethod
    def given(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments without those that say that they are left out, as clients write that must fill in every one.

        These are null for any optional argument, an empty text for an optional text, and 0 for an optional number of
        _NEVER_ZERO. Nothing else is read as anything but what it is.
        """
        for value in arguments.values():
            if not value:
                empty = _types_left_out(cls)
                return {name: value for name, value in arguments.items() if value or type(value) not in empty.get(name, ())}
        return arguments

    def read_by_others(self) -> list[str]:
        """The texts in the arguments that other agents will read, and the objects among them as JSON."""
        return texts_read_by_others(self)

    def asked(self) -> dict[str, Any]:
        """The arguments that differ from their default."""
        fields = type(self).model_fields
        return {name: value for name, value in self.__dict__.items() if value != fields[name].default}


@cache
def fields_read_by_others(model: type[BaseModel]) -> tuple[str, ...]:
    """The names of a model's fields that other agents will read."""
    return tuple(name for name in model.model_fields if name in READ_BY_OTHERS)


def texts_read_by_others(args: BaseModel) -> list[str]:
    """The texts in a model that other agents will read, and the objects among them as JSON."""
    found: list[str] = []
    for name in fields_read_by_others(type(args)):
        value = args.__dict__[name]
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, list):
            found += [text for item in value for text in texts_read_by_others(item)]
        elif value is not None:
            found.append(orjson.dumps(value).decode())
    return found


@cache
def _types_left_out(model: type[Arguments]) -> dict[str, set[type]]:
    """The types of the empty values by which each optional argument of a tool is left out."""
    found: dict[str, set[type]] = {}
    for name, schema in model.model_json_schema()["properties"].items():
        if not model.model_fields[name].is_required():
            found[name] = {type(None)}
            if any(option.get("type") == "string" for option in (schema, *schema.get("anyOf", ()))):
                found[name].add(str)
            elif name in _NEVER_ZERO:
                found[name].add(int)
    return found


A = TypeVar("A", bound=Arguments)


@dataclass(frozen=True, slots=True)
class Tool(Generic[A]):
    """A tool's declaration. `result` is the JSON schema of its structured content."""

    name: str
    arguments: type[A]
    run: Callable[[Call, A], Awaitable[dict[str, Any]]]
    result: dict[str, Any]
    scope: Scope
    read_only: bool = False
    idempotent: bool = False
    destructive: bool = False
    waits: bool = False  # may wait for something to happen; such a call ends when its client goes away
    changes_handoff: bool = False  # its traces are preferred, because together they tell the handoff's story
    takes_key: bool = field(init=False)  # whether a call can be repeated by its idempotency key
    takes_text: bool = field(init=False)  # whether a call brings what other agents will read

    def __post_init__(self) -> None:
        """Allow the name as a value of the metrics' label."""
        metrics.TOOL.admit(self.name)
        object.__setattr__(self, "takes_key", "idempotency_key" in self.arguments.model_fields)
        object.__setattr__(self, "takes_text", not READ_BY_OTHERS.isdisjoint(self.arguments.model_fields))


def no_nul(value: str) -> str:
    """The text, if Postgres can store it. Raises ValueError on U+0000."""
    if "\0" in value:
        raise ValueError("must not contain the character U+0000")
    return value


def metadata_fits(value: dict[str, Any]) -> dict[str, Any]:
    """The metadata, if jsonb can store it within the limits.

    Raises ValueError on more than METADATA_BYTES_MAX bytes or METADATA_DEPTH_MAX levels, on U+0000, and on numbers that are
    not finite or have more than 64 bits.
    """
    _check_values(value)
    try:
        encoded = orjson.dumps(value)
    except (TypeError, ValueError) as error:
        raise ValueError("must contain only valid Unicode, and integers of at most 64 bits") from error
    if len(encoded) > METADATA_BYTES_MAX:
        raise ValueError(f"must have at most {METADATA_BYTES_MAX} bytes as JSON")
    if b"\\u0000" in encoded and b"\\u0000" in encoded.replace(rb"\\", b""):  # a backslash before u0000 is harmless
        raise ValueError("must not contain the character U+0000")
    return value


def _check_values(metadata: dict[str, Any]) -> None:
    level: list[Any] = [metadata]
    for _ in range(METADATA_DEPTH_MAX):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, float) and not math.isfinite(item):
                raise ValueError("must contain only finite numbers")
            if len(below) > METADATA_BYTES_MAX:  # each takes more than a byte, so the rest need not be looked at
                raise ValueError(f"must have at most {METADATA_BYTES_MAX} bytes as JSON")
        level = below
    if level:
        raise ValueError(f"must not be nested deeper than {METADATA_DEPTH_MAX} levels")


AgentArg = Annotated[str | None, Field(max_length=AGENT_CHARS_MAX, pattern=NAME_PATTERN)]
TargetArg = Annotated[str | None, Field(max_length=AGENT_CHARS_MAX, pattern=NAME_PATTERN)]
SessionKeyArg = Annotated[str, Field(max_length=SESSION_KEY_CHARS_MAX, pattern=NAME_PATTERN)]
IdempotencyKeyArg = Annotated[str | None, Field(max_length=255), AfterValidator(lambda v: v and no_nul(v))]
MetadataArg = Annotated[dict[str, Any], AfterValidator(metadata_fits)]
HandoffIdArg = Annotated[int, Field(ge=1, le=SEQUENCE_MAX)]
TokenArg = Annotated[int, Field(ge=0, le=SEQUENCE_MAX)]
LeaseArg = Annotated[int | None, Field(ge=5, le=86_400)]
BudgetArg = Annotated[int, Field(ge=200, le=20_000)]
TextArg = Annotated[str, Field(max_length=TEXT_CHARS_MAX), AfterValidator(no_nul)]


def acting_agent(caller: Caller, named: str | None) -> str:
    """The agent that acts: the one that the token names or, without tokens, the one that the call names.

    Raises Forbidden when the call names an agent other than its token's, and Invalid when neither names one.
    """
    if caller.agent is None:
        if named is None:
            raise Invalid(
                "agent_required",
                "This call does not say which agent is making it.",
                "Repeat the call with your own name as agent, the same name in every call.",
            )
        return named
    if named is not None and named != caller.agent:
        raise Forbidden(
            "agent_mismatch",
            f"You are connected as {caller.agent!r}, so you can't act as {named!r}.",
            "Repeat the call without agent.",
        )
    return caller.agent


def result_with(name: str, type_: str) -> dict[str, Any]:
    """The JSON schema of a result: an object that has at least this property."""
    return {"type": "object", "properties": {name: {"type": type_}}, "required": [name]}


HANDOFF_RESULT: Final = result_with("handoff_id", "integer")
