"""Error codes, collected from the source: wherever the package makes a HandoffError, or refuses an HTTP request."""

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Final

import handoff
from docs.source.markdown import code, escaped, sentence, table
from handoff.errors import HandoffError

PACKAGE: Final = Path(handoff.__file__).parent
_REFUSE: Final = (
    "refuse"  # server/asgi.py: refuse(scope, send, status, code, message); server/connections.py: without the first two
)
_REFUSE_BODY: Final = "refuse_body"  # server/bodies.py: refuse_body(refusals, scope, send, refused, message)
_UNKNOWN: Final = "…"


@dataclass(frozen=True, slots=True)
class Raised:
    """An error as one place in the code makes it. `message` and `hint` hold `{name}` for what varies."""

    code: str
    kind: str  # the class
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """An HTTP request that is refused before it becomes a call."""

    status: int
    code: str
    message: str


class NotLiteral(Exception):
    """A code that is computed can't be listed."""


def error_codes() -> str:
    """A table of the codes for each class of errors, with what the callers read."""
    by_kind: defaultdict[str, dict[str, list[Raised]]] = defaultdict(dict)
    for it in sorted(set(raised()), key=lambda it: (it.code, it.message)):
        by_kind[it.kind].setdefault(it.code, []).append(it)
    parts: list[str] = []
    for kind in sorted(by_kind, key=lambda name: (name == HandoffError.__name__, name)):
        error = kinds()[kind]
        name, about = (kind, sentence(error.__doc__)) if error is not HandoffError else ("Any other", "The service failed.")
        again = "Retryable." if error.retryable else "Not retryable."
        if error is HandoffError:
            again = "Retryable once, but not if it was a write without an idempotency_key."
        rows = [
            (code(it.code), escaped(it.message), escaped(it.hint)) for entries in by_kind[kind].values() for it in entries
        ]
        parts += [f"**{name}.** {about} {again}"]
        parts += [table(("Code", "Message", "What to try"), rows)]
    return "\n\n".join(parts)


def http_refusals() -> str:
    """The codes of requests that are refused before they become a call."""
    found = sorted(set(refusals()), key=lambda it: (it.status, it.code, it.message))
    return table(("Status", "Code", "Message"), [(str(it.status), code(it.code), escaped(it.message)) for it in found])


def kinds() -> dict[str, type[HandoffError]]:
    """HandoffError and its subclasses, by name. Imports every module, so that none is missed."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name != "__main__.py":
            import_module(_module_of(path))
    found, left = dict[str, type[HandoffError]](), [HandoffError]
    while left:
        kind = left.pop()
        found[kind.__name__] = kind
        left += kind.__subclasses__()
    return found


def raised(package: Path = PACKAGE) -> Iterator[Raised]:
    """Every place at which a HandoffError is made. Raises NotLiteral for a code that is not written out."""
    names, constants = kinds(), _constants(package)
    for path, call in _calls(package):
        kind = _called(call)
        if kind in names:
            if len(call.args) != 3:
                raise NotLiteral(f"{path}:{call.lineno}: {kind} takes its code, message and hint by position")
            yield Raised(_literal(path, call, 0), kind, *(_template(it, constants) for it in call.args[1:]))


def refusals(package: Path = PACKAGE) -> Iterator[Refusal]:
    """Every HTTP request that is refused with a code of its own. One that passes on a HandoffError's code is not."""
    constants = _constants(package)
    for path, call in _calls(package):
        if _called(call) == _REFUSE_BODY:
            yield Refusal(413, "body_too_large", _template(call.args[-1], constants))
        if _called(call) == _REFUSE:
            match call.args:
                case [_, _, ast.Constant(), ast.Constant(), ast.Name(), *_]:  # passes on the message of refuse_body
                    pass
                case [_, _, ast.Constant(value=int(status)), ast.Constant(value=str(refused)), message, *_] | [
                    ast.Constant(value=int(status)),
                    ast.Constant(value=str(refused)),
                    message,
                ]:
                    yield Refusal(status, refused, _template(message, constants))
                case [_, _, _, ast.Attribute(attr="code"), *_]:
                    pass
                case _:
                    raise NotLiteral(f"{path}:{call.lineno}: the status and the code of a refusal are written out")


def _calls(package: Path) -> Iterator[tuple[Path, ast.Call]]:
    for path, tree in _modules(package):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield path, node


@cache
def _modules(package: Path) -> tuple[tuple[Path, ast.Module], ...]:
    return tuple((path, ast.parse(path.read_text(encoding="utf-8"))) for path in sorted(package.rglob("*.py")))


def _constants(package: Path) -> dict[str, str]:
    """The package's constants that are texts, by name."""
    found: dict[str, str] = {}
    for _, tree in _modules(package):
        for node in tree.body:
            match node:
                case (
                    ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(text)))
                    | ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=str(text)))
                ) if name.isupper():
                    found[name] = text
                case _:
                    pass
    return found


def _called(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


def _literal(path: Path, call: ast.Call, position: int) -> str:
    match call.args[position]:
        case ast.Constant(value=str(text)):
            return text
        case _:
            raise NotLiteral(f"{path}:{call.lineno}: write the code of the error out, so that it can be listed")


def _template(node: ast.expr, constants: Mapping[str, str]) -> str:
    """A text as a reader can follow it: `{name}` stands for what varies, `…` for what is computed elsewhere."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return _once("".join(_template(part, constants) for part in parts))
        case ast.FormattedValue(value=ast.Name(id=name)) if name in constants:
            return constants[name]
        case ast.FormattedValue(value=ast.Name(id=name) | ast.Attribute(attr=name)):
            return f"{{{name.lower()}}}"
        case ast.FormattedValue(value=ast.Subscript(slice=ast.Constant(value=str(name)))):
            return f"{{{name}}}"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _once(_template(left, constants) + _template(right, constants))
        case ast.IfExp(body=body, orelse=orelse):
            return f"{_template(body, constants)} / {_template(orelse, constants)}"
        case _:
            return _UNKNOWN


def _once(text: str) -> str:
    return text.replace(_UNKNOWN * 2, _UNKNOWN).replace(f"{_UNKNOWN}.", _UNKNOWN)


def _module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
