"""Arguments as they came, checked: what is accepted becomes an instance of its model, and a refusal says what was sent.

What counts as left out is decided in `tools/contract.py`.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from handoff.encoding import counted
from handoff.errors import Invalid
from handoff.model import NAME_PATTERN
from handoff.tools.context import ENTRIES_PER_CALL_MAX

A = TypeVar("A", bound=BaseModel)

NAMES_MAX: Final = 32  # of arguments, or within an item of a list; pydantic builds an error for each unknown one
_ERRORS_SHOWN: Final = 3
_ERROR_CHARS_MAX: Final = 300
_TEXT_CHARS_SHOWN: Final = 40  # of a text that has the form of a name, and so can't be an instruction to whoever reads it
_NAME: Final = re.compile(NAME_PATTERN)

# What is wanted, by pydantic's type of error; its context has the limits.
_WANTED: Final[Mapping[str, str]] = {
    "bool_type": "true or false",
    **dict.fromkeys(
        ("datetime_from_date_parsing", "datetime_parsing", "datetime_type", "timezone_aware"),
        "a time with a time zone, as in 2026-01-31T09:00:00Z",
    ),
    "dict_type": "an object",
    "greater_than_equal": "at least {ge}",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "int_type": "an integer, without quotes",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_type": "an object",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_type": "text",
    "string_unicode": "valid Unicode, without half of a surrogate pair",
}
# The same of a length: its limit in the context, and what is counted.
_WANTED_LENGTH: Final[Mapping[str, tuple[str, str, str]]] = {
    "string_too_long": ("text of at most", "max_length", "character"),
    "string_too_short": ("text of at least", "min_length", "character"),
    "too_long": ("a list of at most", "max_length", "item"),
    "too_short": ("a list of at least", "min_length", "item"),
}


def validated(model: type[A], arguments: dict[str, Any]) -> A:
    """The arguments as an instance of `model`. Raises Invalid, which says what was sent and what is wanted.

    It repeats no text that was sent, unless it has the form of a name.
    """
    _check_names(arguments)
    try:
        return model.__pydantic_validator__.validate_python(arguments)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    shown = [_problem(model, problem)[:_ERROR_CHARS_MAX] for problem in problems[:_ERRORS_SHOWN]]
    more = f" (and {len(problems) - _ERRORS_SHOWN} more)" if len(problems) > _ERRORS_SHOWN else ""
    raise Invalid(
        "invalid_arguments",
        "; ".join(shown) + more + ".",
        "Correct the values named here and repeat the call. Nothing was changed.",
    )


def _problem(model: type[BaseModel], problem: Mapping[str, Any]) -> str:
    where = ".".join(str(part)[:100] for part in problem["loc"]) or "arguments"
    kind = problem["type"]
    if kind == "missing":
        return f"{where}: is required and was not sent"
    if kind == "extra_forbidden":
        return f"{where}: no such name; the names are {', '.join(_names(model, problem['loc'][:-1]))}"
    if kind == "value_error":
        return f"{where}: {problem['msg'].removeprefix('Value error, ')}"
    context = problem.get("ctx", {})
    if kind in _WANTED_LENGTH:
        words, limit, noun = _WANTED_LENGTH[kind]
        wanted = f"{words} {counted(context[limit], noun)}"
    elif kind in _WANTED:
        wanted = _WANTED[kind].format_map(context)
    else:
        return f"{where}: {problem['msg']}"
    return f"{where}: must be {wanted}, not {_sent(problem['input'])}"


def _names(model: type[BaseModel], where: tuple[int | str, ...]) -> list[str]:
    """The names that the object at this place of the arguments takes."""
    for part in where:
        if isinstance(part, str):
            model = _model_within(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _model_within(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_within(part)) is not None), None)


def _sent(value: Any) -> str:
    """What was sent, in a few words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if abs(value) < 10**18 else "an integer of more than 18 digits"
    if isinstance(value, float):
        return f"the number {value!r}"
    if isinstance(value, str):
        is_name = len(value) <= _TEXT_CHARS_SHOWN and _NAME.fullmatch(value)
        return f"the text {value!r}" if is_name else f"a text of {counted(len(value), 'character')}"
    return f"a list of {counted(len(value), 'item')}" if isinstance(value, list) else "an object"


def _check_names(arguments: dict[str, Any]) -> None:
    """Raise Invalid if the arguments, or an item of a list among them, have more names than any of our models.

    This costs the same however many there are. Lists that are too long cost nothing more: pydantic stops at their limit.
    """
    if len(arguments) > NAMES_MAX:
        raise _too_many_names("arguments", len(arguments))
    for name, value in arguments.items():
        if type(value) is list:
            for place, item in enumerate(value[: ENTRIES_PER_CALL_MAX + 1]):
                if type(item) is dict and len(item) > NAMES_MAX:
                    raise _too_many_names(f"{name[:100]}.{place}", len(item))


def _too_many_names(where: str, count: int) -> Invalid:
    return Invalid(
        "invalid_arguments",
        f"{where}: has {count} names, which is more than any tool takes.",
        "Use only the names in the tool's schema and repeat the call. Nothing was changed.",
    )
