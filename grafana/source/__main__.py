"""Write every page to ../dashboards, or to another folder: `python -m grafana.source [FOLDER]`."""

import json
import sys
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana.source import (
    agents,
    analytics,
    context,
    database,
    handoffs,
    lifecycle,
    logs,
    overview,
    pipeline,
    runbook,
    tools,
)
from grafana.source.page import Page

PAGES: Final[tuple[Page, ...]] = tuple(
    module.PAGE
    for module in (overview, tools, handoffs, context, database, agents, analytics, lifecycle, pipeline, logs, runbook)
)
DASHBOARDS: Final = Path(__file__).parents[1] / "dashboards"


def page_json(page: Page) -> str:
    """The content of a page's file."""
    return json.dumps(page.build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DASHBOARDS
    for page in PAGES:
        (folder / f"{page.uid}.json").write_text(page_json(page))
        print(f"{folder / page.uid}.json")
