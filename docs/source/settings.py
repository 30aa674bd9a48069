"""The table of settings: the variable, its default, its bounds, and the string below the field in settings.py."""

import ast
import inspect
from typing import Any, Final

from annotated_types import Ge, Gt, Le
from pydantic.fields import FieldInfo

from docs.source.markdown import code, escaped, table
from handoff import settings as module
from handoff.settings import Settings

_PREFIX: Final = str(Settings.model_config["env_prefix"])  # pyright: ignore[reportTypedDictNotRequiredAccess] - it has one


def settings() -> str:
    """Every setting, in the order of the code. Raises ValueError if one has no description."""
    described = descriptions(inspect.getsource(module))
    if missing := Settings.model_fields.keys() - described.keys():
        raise ValueError(f"settings.py: no string below {', '.join(sorted(missing))}")
    return table(
        ("Variable", "Default", "Bounds", "What it sets"),
        [
            (code(f"{_PREFIX}{name}".upper()), _default(field), _bounds(field), escaped(described[name]))
            for name, field in Settings.model_fields.items()
        ],
    )


def descriptions(source: str) -> dict[str, str]:
    """The strings that stand below the fields of the class Settings, by the field's name."""
    (settings_class,) = [
        node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == Settings.__name__
    ]
    found: dict[str, str] = {}
    for field, below in zip(settings_class.body, settings_class.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = text
            case _:
                pass
    return found


def _default(field: FieldInfo) -> str:
    match field.default:
        case None | ():
            return ""
        case bool(flag):
            return code(str(flag).lower())
        case float(number):
            return code(f"{number:g}")
        case other:
            return code(str(other))


def _bounds(field: FieldInfo) -> str:
    low, high = "", ""
    for it in field.metadata:
        match it:
            case Ge(ge=bound):
                low = _number(bound)
            case Gt(gt=bound):
                low = f"above {_number(bound)}, up"
            case Le(le=bound):
                high = _number(bound)
            case _:
                pass
    return f"{low} to {high}" if low and high else ""


def _number(bound: Any) -> str:
    return f"{bound:,}"
