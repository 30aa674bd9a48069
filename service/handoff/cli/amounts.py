"""Amounts as people read and write them."""

import re
from datetime import timedelta
from typing import Final

NONE: Final = "n/a"
SINCE_MAX: Final = timedelta(days=366)
_UNITS: Final = {"h": "hours", "d": "days", "w": "weeks"}


def share(value: float | None) -> str:
    """A part of 1 in per cent."""
    return NONE if value is None else f"{100 * value:.0f} %"


def change(value: float) -> str:
    """A relative change in per cent, with its sign."""
    return f"{100 * value:+.0f} %"


def probability(value: float) -> str:
    """A p-value."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def seconds(value: float) -> str:
    """A duration in its largest unit."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if value >= size:
            return f"{round(value / size, 1):g} {unit}"
    return f"{round(value, 1):g} s"


def size(value: float) -> str:
    """A number of bytes in its largest unit, a power of 1,000."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.1f} {unit}"
    return f"{value:.0f} bytes"


def length(value: timedelta) -> str:
    """A number of whole days, or else of hours."""
    hours = round(value.total_seconds() / 3_600)
    count, unit = (hours // 24, "day") if hours % 24 == 0 else (hours, "hour")
    return f"{count} {unit}{'' if count == 1 else 's'}"


def since(text: str) -> timedelta:
    """How far back an option --since reaches. Raises ValueError with a sentence for the user."""
    found = re.fullmatch(r"([1-9]\d{0,3})([hdw])", text, re.ASCII)
    if found is None or (span := timedelta(**{_UNITS[found[2]]: int(found[1])})) > SINCE_MAX:
        raise ValueError(
            f"--since must be a number of hours, days or weeks, at most {SINCE_MAX.days} days (24h, 7d, 4w), not {text!r}."
        )
    return span
