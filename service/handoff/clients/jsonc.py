"""Edits JSON with comments and trailing commas without touching anything else in the text.

The editors that we found for Python either drop comments, need Node, or have had no release for years.
"""

import json
import re
from dataclasses import dataclass
from json.decoder import scanstring  # pyright: ignore[reportAttributeAccessIssue] - no stub
from typing import Any, Final

_SPACE: Final = re.compile(r"(?:[ \t\r\n]+|//[^\r\n]*|/\*.*?\*/)*", re.DOTALL)
_COMMENT: Final = re.compile(r"(?:[ \t]*/\*[^\r\n]*?\*/)*(?:[ \t]*//[^\r\n]*)?")  # on the same line
_SCALAR: Final = re.compile(r"-?\d[\d.eE+-]*|true|false|null")
_DEPTH_MAX: Final = 100


class NotJson(Exception):
    """The text can't be read. The message says where, as a sentence's end: `line 3: expected a comma`."""


@dataclass(slots=True)
class _Member:
    start: int  # where its key begins
    end: int  # after its value
    value: "_Node"


@dataclass(slots=True)
class _Node:
    start: int
    end: int
    value: Any
    members: dict[str, _Member] | None = None  # of an object
    items: "list[_Node] | None" = None  # of an array


def parse(text: str) -> Any:
    """The value of a text. An empty text is an empty object. Raises NotJson."""
    return _root(text).value


def put(text: str, path: tuple[str, ...], value: Any) -> str:
    """Set the value at a path of keys; objects on the way are created. Raises NotJson."""
    root = _root(text)
    if root.members is None:
        raise NotJson("line 1: expected an object")
    if root.start == root.end:
        return json.dumps(_nested(path, value), indent=2, ensure_ascii=False) + "\n"
    node, depth = root, 0
    while depth < len(path) and node.members is not None and path[depth] in node.members:
        node, depth = node.members[path[depth]].value, depth + 1
    if depth == len(path):
        if node.value == value:
            return text
        return text[: node.start] + _dumped(text, value, depth) + text[node.end :]
    if node.members is None:
        raise NotJson(f"line {_line(text, node.start)}: expected an object")
    unit = _unit(text)
    pair = f"{json.dumps(path[depth])}: {_dumped(text, _nested(path[depth + 1 :], value), depth + 1)}"
    if not node.members:
        inside = text[node.start + 1 : node.end - 1].rstrip()
        return f"{text[: node.start + 1]}{inside}\n{unit * (depth + 1)}{pair}\n{unit * depth}{text[node.end - 1 :]}"
    last = list(node.members.values())[-1]
    before = text.rfind("\n", 0, last.start) + 1
    lead = text[before : last.start]
    joint = f"\n{lead}" if lead.strip() == "" and before > node.start else " "
    comma = _after_space(text, last.end)
    trailing = "," if text[comma] == "," else ""  # which stays one
    rest = comma + 1 if trailing else last.end
    if joint[0] == "\n":
        rest = _COMMENT.match(text, rest).end()  # pyright: ignore[reportOptionalMemberAccess] - it matches nothing, too
    first = "" if trailing else ","
    return f"{text[: last.end]}{first}{text[last.end : rest]}{joint}{pair}{trailing}{text[rest:]}"


def remove(text: str, path: tuple[str, ...]) -> str:
    """Remove the member at a path, with its comma and its line. Objects that this leaves empty stay. Raises NotJson."""
    node = _root(text)
    for key in path[:-1]:
        if node.members is None or key not in node.members:
            return text
        node = node.members[key].value
    members = node.members or {}
    if path[-1] not in members:
        return text
    gone, names = members[path[-1]], list(members)
    at = names.index(path[-1])
    after = _after_space(text, gone.end)
    if text[after] == ",":
        # From the end of what stands before, so that the comments of the member before stay and the line goes.
        start = len(text[: gone.start].rstrip(" \t"))
        start = start - 1 if start and text[start - 1] == "\n" else gone.start
        return text[:start] + (text[after + 1 :] if start != gone.start else text[after + 1 :].lstrip(" "))
    if at == 0:  # the only one
        inner = text[node.start + 1 : gone.start].rstrip() + text[gone.end : node.end - 1].strip()
        return text[: node.start + 1] + inner + text[node.end - 1 :]
    comma = _after_space(text, members[names[at - 1]].end)
    return text[:comma] + text[comma + 1 : gone.start].rstrip() + text[gone.end :]


def add(text: str, path: tuple[str, ...], item: Any) -> str:
    """Add an item to the end of the list at a path, which is created if it is absent. Raises NotJson."""
    node = _find(text, path)
    if node is None:
        return put(text, path, [item])
    if node.items is None:
        raise NotJson(f"line {_line(text, node.start)}: expected a list")
    if not node.items:
        return text[: node.start] + _dumped(text, [item], len(path)) + text[node.end :]
    last = node.items[-1]
    before = text.rfind("\n", 0, last.start) + 1
    lead = text[before : last.start]
    joint = f"\n{lead}" if lead.strip() == "" and before > node.start else " "
    return f"{text[: last.end]},{joint}{_dumped(text, item, len(path) + 1)}{text[last.end :]}"


def take_out(text: str, path: tuple[str, ...], place: int) -> str:
    """Remove an item of the list at a path, with its comma. A list that this leaves empty stays. Raises NotJson."""
    node = _find(text, path)
    if node is None or node.items is None or place >= len(node.items):
        return text
    items = node.items
    if place:
        return text[: items[place - 1].end] + text[items[place].end :]
    if len(items) > 1:
        return text[: items[0].start] + text[items[1].start :]
    return f"{text[: node.start]}[]{text[node.end :]}"


def _find(text: str, path: tuple[str, ...]) -> _Node | None:
    node = _root(text)
    for depth, key in enumerate(path):
        if node.members is None:
            raise NotJson(f"line {_line(text, node.start)}: {'.'.join(path[:depth]) or 'the file'} is not an object")
        if key not in node.members:
            return None
        node = node.members[key].value
    return node


def _nested(path: tuple[str, ...], value: Any) -> Any:
    for key in reversed(path):
        value = {key: value}
    return value


def _unit(text: str) -> str:
    """What the text indents by."""
    found = re.search(r"\n([ \t]+)\"", text)
    return found[1] if found else "  "


def _dumped(text: str, value: Any, depth: int) -> str:
    unit = _unit(text)
    return json.dumps(value, indent=unit, ensure_ascii=False).replace("\n", "\n" + unit * depth)


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _root(text: str) -> _Node:
    start = _after_space(text, 1 if text.startswith("\ufeff") else 0)
    if start == len(text):
        return _Node(start, start, {}, {})
    node = _node(text, start, 0)
    if (end := _after_space(text, node.end)) != len(text):
        raise NotJson(f"line {_line(text, end)}: expected the end of the file")
    return node


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _node(text: str, at: int, depth: int) -> _Node:
    if depth > _DEPTH_MAX:
        raise NotJson(f"line {_line(text, at)}: nested too deeply")
    match text[at : at + 1]:
        case '"':
            string, end = _string(text, at)
            return _Node(at, end, string)
        case "{":
            return _object(text, at, depth)
        case "[":
            return _array(text, at, depth)
        case _:
            found = _SCALAR.match(text, at)
            if found is None:
                raise NotJson(f"line {_line(text, at)}: expected a value")
            try:
                return _Node(at, found.end(), json.loads(found[0]))
            except ValueError:
                raise NotJson(f"line {_line(text, at)}: expected a number") from None


def _string(text: str, at: int) -> tuple[str, int]:
    if text[at : at + 1] != '"':
        raise NotJson(f"line {_line(text, at)}: expected a name in double quotes")
    try:
        return scanstring(text, at + 1, True)  # noqa: FBT003 - its signature
    except ValueError:
        raise NotJson(f"line {_line(text, at)}: a text in double quotes does not end") from None


def _object(text: str, start: int, depth: int) -> _Node:
    members: dict[str, _Member] = {}
    at = _after_space(text, start + 1)
    while text[at : at + 1] != "}":
        key_at = at
        key, at = _string(text, at)
        at = _after_space(text, at)
        if text[at : at + 1] != ":":
            raise NotJson(f"line {_line(text, at)}: expected a colon")
        value = _node(text, _after_space(text, at + 1), depth + 1)
        if key in members:
            raise NotJson(f"line {_line(text, key_at)}: the name {json.dumps(key)} occurs twice")
        members[key] = _Member(key_at, value.end, value)
        at = _separated(text, value.end, "}")
    return _Node(start, at + 1, {key: it.value.value for key, it in members.items()}, members)


def _array(text: str, start: int, depth: int) -> _Node:
    items: list[_Node] = []
    at = _after_space(text, start + 1)
    while text[at : at + 1] != "]":
        item = _node(text, at, depth + 1)
        items.append(item)
        at = _separated(text, item.end, "]")
    return _Node(start, at + 1, [it.value for it in items], items=items)


def _separated(text: str, end: int, closing: str) -> int:
    at = _after_space(text, end)
    if text[at : at + 1] == ",":
        return _after_space(text, at + 1)
    if text[at : at + 1] != closing:
        raise NotJson(f"line {_line(text, at)}: expected a comma or {closing}")
    return at
