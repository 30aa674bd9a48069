"""What does an alert mean, and what should be done about it?"""

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from grafana.source.page import Page
from grafana.source.panels import Panel, text_panel

_TEXT: Final = (Path(__file__).parents[2] / "prometheus" / "runbook.md").read_text()


@dataclass(frozen=True)
class _Entry:
    kind: str  # its severity and component
    text: str


def panel_of(alert: str) -> int:
    """The number of the panel with an alert's entry. It depends on nothing but the name, so that links in old notifications stay right."""
    return 1000 + zlib.crc32(alert.encode()) % 1_000_000


def link_to_entry(alert: str) -> str:
    """What follows the address of the runbook in a link: Grafana opens the panel, any other page that shows the file its heading."""
    return f"?viewPanel=panel-{panel_of(alert)}#{alert.lower()}"


def _entries() -> tuple[str, Mapping[str, _Entry]]:
    head, *sections = re.split(r"^## (\w+)\n+\*(.+?)[.]\* ", _TEXT, flags=re.MULTILINE)
    found = zip(sections[::3], sections[1::3], sections[2::3], strict=True)
    return head.partition("\n")[2].strip(), {name: _Entry(kind, text.strip()) for name, kind, text in found}


_INTRODUCTION, _ENTRIES = _entries()


def _linked(markdown: str) -> str:
    """Links between entries lead to their panels. Links to other files lead nowhere in Grafana, so their text stays alone."""
    names = {name.lower(): name for name in _ENTRIES}

    def link(found: re.Match[str]) -> str:
        text, target = found.groups()
        alert = names.get(target.removeprefix("#"))
        return f"**{text}**" if alert is None else f"[{text}](/d/handoff-runbook{link_to_entry(alert)})"

    return re.sub(r"\[([^]]+)\]\(([^)]*)\)", link, markdown)


def _index() -> str:
    lines = [f"- [{name}](#{name.lower()}): {_ENTRIES[name].kind}" for name in sorted(_ENTRIES)]
    return _linked("\n".join([_INTRODUCTION, "", *lines]))


def _entry_panel(name: str, entry: _Entry, width: int) -> Panel:
    description = "An alert's entry in prometheus/runbook.md at the time the dashboards were generated."
    text = _linked(f"*{entry.kind}.* {entry.text}")
    return text_panel(name, description, text, width=width, height=14, number=panel_of(name))


def _entry_panels() -> list[Panel]:
    """Two in a row; the last fills its row."""
    names = list(_ENTRIES)
    widths = [12] * (len(names) - len(names) % 2) + [24] * (len(names) % 2)
    return [_entry_panel(name, _ENTRIES[name], width) for name, width in zip(names, widths, strict=True)]


PAGE: Final = Page(
    "runbook",
    "Runbook",
    "What does an alert mean, and what should be done about it?",
    rows=[
        (
            "Select an alert",
            [
                text_panel(
                    "Alerts",
                    "The introduction of prometheus/runbook.md and a link to each of its entries. The link in a notification opens the entry itself.",
                    _index(),
                    height=24,
                )
            ],
        ),
        ("The entries", _entry_panels()),
    ],
)
