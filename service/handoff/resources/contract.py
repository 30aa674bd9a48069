"""What a resource declares, and how a URI is matched and its query parsed."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Any, Generic, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from handoff.context import Call
from handoff.errors import Invalid
from handoff.model import AGENT_CHARS_MAX, NAME_PATTERN, SESSION_KEY_CHARS_MAX, Scope

CursorArg = Annotated[str | None, Field(max_length=200)]
LimitArg = Annotated[int, Field(ge=1, le=100)]


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be between the years 1 and 9999 in UTC") from None


TimeArg = Annotated[AwareDatetime, AfterValidator(_in_utc)]
_NAME = re.compile(NAME_PATTERN)
_ENCODED = re.compile("%[0-9A-Fa-f]{2}")


class Query(BaseModel):
    """The parameters in the query part of a resource's URI. Unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoQuery(Query):
    """The query of a resource that has no parameters."""


Q = TypeVar("Q", bound=Query)


@dataclass(frozen=True)
class Resource(Generic[Q]):
    """A resource's declaration. `path` is its URI without the query, with `{name}` for each part that varies."""

    path: str
    name: str
    description: str
    query: type[Q]
    read: Callable[[Call, dict[str, str], Q], Awaitable[dict[str, Any] | str]]
    is_subscribable: bool = False  # subscribers are notified when it changes
    scope: Scope = "read"
    mime_type: str = "application/json"
    ttl_ms: int = 0  # for how long a client may keep it: not at all what agents act on, else as long as it is measured for

    @cached_property
    def uri_template(self) -> str:
        """The RFC 6570 template, query included."""
        names = ",".join(self.query.model_fields)
        return f"{self.path}{{?{names}}}" if names else self.path

    @cached_property
    def is_fixed(self) -> bool:
        """Whether nothing in its path varies."""
        return "{" not in self.path

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """What a URI without its query must match; the groups are still percent-encoded."""
        return re.compile("^" + re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/?#]+)", re.escape(self.path)) + "$")


def match(resources: tuple[Resource[Any], ...], uri: str) -> tuple[Resource[Any], dict[str, str], str] | None:
    """The resource that a URI names, the values of the parts that vary, and the query. None if no resource has this URI.

    Raises Invalid when one of the values can't be the name of a session or agent, or a handoff's id.
    """
    if "#" in uri or not uri.isprintable():  # urlsplit would drop a line break, and a fragment is not looked at
        return None
    try:
        parts = urlsplit(uri)
    except ValueError:
        return None
    # Scheme and authority have no case, and a character that needs no percent-encoding may have it.
    path = f"{parts.scheme}://{parts.netloc.lower()}{_ENCODED.sub(_decoded, parts.path)}"
    for resource in resources:
        if found := resource.pattern.match(path):
            return resource, {name: _named(name, unquote(value)) for name, value in found.groupdict().items()}, parts.query
    return None


def _decoded(found: re.Match[str]) -> str:
    character = chr(int(found[0][1:], 16))
    return character if character.isascii() and (character.isalnum() or character in "-._~") else found[0]


def _named(name: str, value: str) -> str:
    chars_max = AGENT_CHARS_MAX if name == "agent" else SESSION_KEY_CHARS_MAX
    if len(value) > chars_max or not _NAME.fullmatch(value):
        raise Invalid(
            "invalid_arguments",
            f"{name}: this part of the URI must match {NAME_PATTERN} and have at most {chars_max} characters.",
            "Repeat the call with the name exactly as the service returned it.",
        )
    return value


def parsed_query(query: str) -> dict[str, str]:
    """The parameters in a URI's query, by name. Raises Invalid when it is malformed or contains a name twice."""
    try:
        # Only HTML forms write a space as +; in the query of an RFC 6570 template it is a plus, as in 10:00+02:00.
        pairs = (
            parse_qsl(query.replace("+", "%2B"), strict_parsing=True, keep_blank_values=True, max_num_fields=20)
            if query
            else []
        )
    except ValueError as error:
        raise Invalid(
            "invalid_arguments", "The URI's query is malformed.", "Write it as name=value&name=value, percent-encoded."
        ) from error
    if len({name for name, _ in pairs}) != len(pairs):
        raise Invalid("invalid_arguments", "The URI's query contains a name twice.", "Repeat the call with each name once.")
    return dict(pairs)
