"""What an alert means, and what to do about it."""

import re
from pathlib import Path
from typing import Final

from grafana.source.page import Page
from grafana.source.panels import text_panel

_TEXT: Final = (Path(__file__).parents[2] / "prometheus" / "runbook.md").read_text()


def _folded(markdown: str) -> str:
    """Each alert as a line that unfolds, for Grafana gives headings no anchors that a link could lead to."""
    head, *sections = re.split(r"^## (\w+)\n+\*(.+?)[.]\* ", markdown, flags=re.MULTILINE)
    alerts = zip(sections[::3], sections[1::3], sections[2::3], strict=True)
    lines = (
        f"<details><summary><b>{name}</b> ({what})</summary>\n\n{said.strip()}\n\n</details>\n"
        for name, what, said in alerts
    )
    text = "\n".join([head.partition("\n")[2].strip() + "\n", *lines])
    return re.sub(r"\[([^]]+)\]\([^)]*\)", r"**\1**", text)


PAGE: Final = Page(
    "runbook",
    "Runbook",
    "What does an alert mean, and what is to be done?",
    rows=[
        (
            "Open an alert",
            [text_panel("Runbook", "prometheus/runbook.md, as it was when this page was made.", _folded(_TEXT), height=40)],
        )
    ],
)
