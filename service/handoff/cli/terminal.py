"""What commands print for people: text that can't steer the terminal, tables, and JSON.

Every text that an agent may have written goes through `printable`.
"""

import json
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from handoff.encoding import printable

if TYPE_CHECKING:
    from rich.console import Console

_CHARS_IN_FILES: Final = 200  # per line of what is read by other programs
_UNITS: Final = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
STATES: Final = {
    "offered": "yellow", "accepted": "cyan", "blocked": "magenta", "completed": "green", "rejected": "red",
    "cancelled": "dim", "expired": "red", "active": "green", "dormant": "dim", "archived": "dim",
}  # fmt: skip


def one_line(text: str, chars: int) -> str:
    """The beginning of a text on one line, safe to print."""
    short = " ".join(text[: 4 * chars].split())
    return printable(short if len(short) <= chars else short[: chars - 1] + "…")


def print_json(value: Any) -> None:
    """Print JSON in ASCII, so that no control character in it reaches a terminal."""
    print(json.dumps(value, ensure_ascii=True, indent=2).replace("\x7f", "\\u007f"))


def age(time: str) -> str:
    """How long ago an RFC 3339 time was, or how far it is ahead, in its largest unit."""
    seconds = int((datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds())
    unit, size_s = next(((it, size) for it, size in _UNITS if abs(seconds) >= size), _UNITS[-1])
    return f"{abs(seconds) // size_s} {unit}" + ("" if seconds >= 0 else " ahead")


def console() -> "Console":
    """Where commands print. Rich uses colours only on a terminal, and none with NO_COLOR."""
    from rich.console import Console

    out = Console(highlight=False, markup=False, emoji=False)
    return out if out.is_terminal else Console(highlight=False, markup=False, emoji=False, width=_CHARS_IN_FILES)


@contextmanager
def paged(out: "Console") -> Generator[None]:
    """Show what is printed in the block with the user's pager, if it goes to a terminal."""
    if not out.is_terminal:
        yield
        return
    os.environ.setdefault("LESS", "-FRX")  # as git does: quit if it fits, keep colours and the screen
    with out.pager(styles="R" in os.environ["LESS"]):
        yield


def print_table(out: "Console", columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of plain texts; those that name a state get its colour. The first column is never cut."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(columns):
        table.add_column(name, overflow="fold" if place == 0 else "ellipsis", no_wrap=place != 0)
    for row in rows:
        table.add_row(*(Text(printable(cell), style=STATES.get(cell, "")) for cell in row))
    out.print(table)


def print_text(out: "Console", text: str, style: str = "") -> None:
    """Print a text as it is, but for what could steer the terminal."""
    from rich.text import Text

    out.print(Text(printable(text), style=style))
