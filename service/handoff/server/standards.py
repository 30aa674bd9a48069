"""What HTTP and URIs say is the same, however it is written: hosts, origins and media types."""

import ipaddress
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

from handoff.settings import Settings

_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}


class Allowed:
    """Allowed values of Host or Origin: `names` with any port or none, and `exact` values with their own port."""

    def __init__(self, names: Iterable[str], exact: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._exact = frozenset(exact)
        self._canonical = frozenset(map(_canonical, self._exact))

    def holds(self, value: str) -> bool:
        """Whether the value is allowed, however it is written."""
        # As nearly every client writes it, first: that costs a tenth.
        return self._holds(value, self._exact) or self._holds(_canonical(value), self._canonical)

    def _holds(self, value: str, exact: frozenset[str]) -> bool:
        if value in self._names or value in exact:
            return True
        name, _, port = value.rpartition(":")
        return name in self._names and port.isascii() and port.isdigit()


def _canonical(value: str) -> str:
    """A host or an origin in the form to compare: lower case, without the default port, a final dot, or percent-encoding."""
    scheme, mark, rest = value.rpartition("://")
    scheme, rest = scheme.lower(), rest.removesuffix("/") if mark else rest
    name, colon, port = rest.rpartition(":")
    if not colon or port.endswith("]"):
        name, port = rest, ""
    name = unquote(name).lower()
    if name.startswith("[") and name.endswith("]"):
        with suppress(ValueError):
            name = f"[{ipaddress.IPv6Address(name[1:-1])}]"
    elif not name.isascii():
        with suppress(UnicodeError):
            name = name.encode("idna").decode()
    if port == _DEFAULT_PORTS.get(scheme) or (not mark and port in _DEFAULT_PORTS.values()):
        port = ""
    return f"{scheme}{mark}{name.removesuffix('.')}{':' if port else ''}{port}"


def host_names(settings: Settings) -> list[str]:
    """The host names that this service answers to, without ports."""
    names = ["127.0.0.1", "localhost", "[::1]"]
    return names if settings.is_loopback else [*names, f"[{settings.host}]" if ":" in settings.host else settings.host]


@lru_cache(maxsize=64)  # clients send few different ones
def accepts(accept: str, media_type: str) -> bool:
    """Whether an Accept header allows a media type. One that is absent or empty allows all."""
    kind = f"{media_type.partition('/')[0]}/*"
    types = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    return types == [""] or "*/*" in types or media_type in types or kind in types


@lru_cache(maxsize=64)
def is_json(content_type: str) -> bool:
    """Whether a Content-Type is that of JSON, whatever its parameters."""
    return content_type.partition(";")[0].strip().lower() == "application/json"


def normalised(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of a request as the SDK compares them: one Accept, which names media types without parameters."""
    accept = b",".join(value for name, value in headers if name == b"accept")
    rest = [
        (name, value.strip(b" \t").lower() if name == b"content-type" else value.strip(b" \t"))
        for name, value in headers
        if name != b"accept"
    ]
    return [*rest, (b"accept", accept.lower() if accept.strip(b" \t,") else b"*/*")]
