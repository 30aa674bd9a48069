"""The JSON form of everything that is sent or stored as jsonb, the opaque cursors of lists, and texts as people see them."""

import base64
import binascii
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from handoff.errors import Invalid

_ESCAPED: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # control, format, surrogates, separators
_PRINTED: Final = "\n\t\u200c\u200d"  # the last two join letters and emoji
_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC


def to_json(value: Any) -> bytes:
    """Return `value` as UTF-8 JSON: dataclasses as objects, times in RFC 3339 in UTC with a Z."""
    return orjson.dumps(value, option=_OPTIONS)


def that_fit(items: Sequence[dict[str, Any]], bytes_max: int) -> list[dict[str, Any]]:
    """Return the first of `items`: as many as have at most `bytes_max` bytes of JSON together, but at least one."""
    room = bytes_max
    for count, item in enumerate(items):
        room -= len(to_json(item)) + 1  # the comma
        if room < 0:
            return list(items[: max(1, count)])
    return list(items)


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return how many there are of something, in words: "1 entry"; without a `plural`, the noun takes an s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def to_cursor(*position: int | str | datetime) -> str:
    """Return a position in a list as an opaque string."""
    return base64.urlsafe_b64encode(to_json(position)).rstrip(b"=").decode()


def from_cursor(cursor: str, *kinds: type | range) -> list[Any]:
    """Return the position in a cursor made by `to_cursor`.

    Each of `kinds` is the type that the value at that place must have: int, str, datetime, or a range of int. Raises Invalid
    if the cursor does not match.
    """
    try:
        values = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if not isinstance(values, list) or len(values) != len(kinds):
            raise ValueError("wrong shape")
        return [_as(kind, value) for kind, value in zip(kinds, values, strict=True)]
    except (ValueError, OverflowError, binascii.Error, TypeError) as error:
        raise Invalid(
            "invalid_arguments",
            "This cursor does not belong to this list.",
            "Pass next_cursor exactly as the previous page returned it, or omit cursor to start from the first page.",
        ) from error


def _as(kind: type | range, value: Any) -> Any:
    if isinstance(kind, range):
        if type(value) is not int or value not in kind:
            raise ValueError("out of range")
        return value
    if kind is datetime:
        time = datetime.fromisoformat(value)
        if time.tzinfo is None:
            raise ValueError("no time zone")
        return time.astimezone(UTC)
    if type(value) is not kind or (kind is int and not -(2**63) <= value < 2**63):
        raise ValueError("wrong type")
    if kind is str and "\0" in value:
        raise ValueError("a text that Postgres can't hold")
    return value


def printable(text: str) -> str:
    """Return the text with control and format characters as their escapes, except line breaks, tabs and joiners.

    What agents write is hostile until proven otherwise: an escape sequence could rewrite a terminal's screen, and
    a character that reverses the order of text could make it read as something else.
    """
    if text.isprintable():
        return text
    return "".join(it if it in _PRINTED or unicodedata.category(it) not in _ESCAPED else _escaped(it) for it in text)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
