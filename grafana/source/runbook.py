"""What does an alert mean, and what should be done about it?"""

import re
from pathlib import Path
from typing import Final

from grafana.source.page import Page
from grafana.source.panels import text_panel

_TEXT: Final = (Path(__file__).parents[2] / "prometheus" / "runbook.md").read_text()


def _foldable(markdown: str) -> str:
    """Turn each alert's section into an entry that unfolds, because Grafana gives headings no anchors to link to."""
    head, *sections = re.split(r"^## (\w+)\n+\*(.+?)[.]\* ", markdown, flags=re.MULTILINE)
    alerts = zip(sections[::3], sections[1::3], sections[2::3], strict=True)
    entries = (
        f"<details><summary><b>{name}</b> ({severity_and_component})</summary>\n\n{text.strip()}\n\n</details>\n"
        for name, severity_and_component, text in alerts
    )
    introduction = head.partition("\n")[2].strip()
    page = "\n".join([introduction + "\n", *entries])
    return re.sub(r"\[([^]]+)\]\([^)]*\)", r"**\1**", page)


PAGE: Final = Page(
    "runbook",
    "Runbook",
    "What does an alert mean, and what should be done about it?",
    rows=[
        (
            "Select an alert",
            [
                text_panel(
                    "Runbook",
                    "The content of prometheus/runbook.md at the time the dashboards were generated. Select an alert to unfold its entry.",
                    _foldable(_TEXT),
                    height=40,
                )
            ],
        )
    ],
)
