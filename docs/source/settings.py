"""The table of settings: the variable, its default, its bounds, and the description of its field."""

from typing import Any, Final

from annotated_types import Ge, Gt, Le
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from docs.source.markdown import code, escaped, table
from handoff.settings import Settings

_PREFIX: Final = str(Settings.model_config["env_prefix"])  # pyright: ignore[reportTypedDictNotRequiredAccess] - it has one


def settings() -> str:
    """Every setting, in the order of the code. Raises ValueError if one has no description."""
    if missing := [name for name, field in Settings.model_fields.items() if not field.description]:
        raise ValueError(f"settings.py: {', '.join(missing)} needs a description")
    return table(
        ("Variable", "Default", "Bounds", "What it sets"),
        [
            (code(f"{_PREFIX}{name}".upper()), _default(field), _bounds(field), escaped(field.description or ""))
            for name, field in Settings.model_fields.items()
        ],
    )


def _default(field: FieldInfo) -> str:
    match field.default:
        case None | ():
            return ""
        case default if default is PydanticUndefined:  # depends on the machine; the description says how
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
