"""Tables in Markdown."""

import re
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table. Cells are Markdown; `escaped` makes them of plain text."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(re.sub(r"\|  (?=\|)", "| ", f"| {' | '.join(line)} |") for line in lines)


def escaped(text: str) -> str:
    """Plain text as Markdown for one line."""
    return re.sub(r"([|<*\[\]\\])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Text as code, which a table may hold."""
    return f"`{text}`".replace("|", r"\|")


def sentence(docstring: str | None) -> str:
    """The first sentence of a docstring, on one line. Raises ValueError if there is none."""
    if not docstring:
        raise ValueError("a docstring is missing")
    return re.split(r"(?<=[.?!])\s", " ".join(docstring.split()), maxsplit=1)[0]
