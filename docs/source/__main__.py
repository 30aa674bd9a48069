"""Fill the generated parts of the pages and of compose.yaml: `python -m docs.source [--check] [FOLDER]`.

With --check, write nothing, name the files that are not current, and exit with 1 if there are any. A FOLDER has pages only.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from docs.source import answers, calls, configuration, errors, operations, settings, signals, thresholds

PAGES: Final = Path(__file__).parents[1]
PARTS: Final[Mapping[str, Callable[[], str]]] = {
    "tools": calls.tools,
    "resources": calls.resources,
    "prompts": calls.prompts,
    "limits": calls.limits,
    "answers": answers.answers,
    "errors": errors.error_codes,
    "refusals": errors.http_refusals,
    "settings": settings.settings,
    "metrics": signals.metrics_table,
    "labels": signals.labels,
    "variables": signals.variables,
    "alerts": operations.alerts,
    "jobs": operations.jobs,
    "thresholds": thresholds.thresholds,
}
_PART: Final = re.compile(r"(?<=^<!-- generated: )([\w-]+) -->\n.*?(?=^<!-- end -->$)", re.DOTALL | re.MULTILINE)


def filled(page: str, parts: Mapping[str, Callable[[], str]] = PARTS) -> str:
    """The page with its generated parts as they are now. Raises KeyError for a part that nothing generates."""
    return _PART.sub(lambda found: f"{found[1]} -->\n\n{parts[found[1]]().strip()}\n\n", page)


def main() -> int:
    """Fill the pages of a folder, or check them."""
    parser = argparse.ArgumentParser(prog="docs.source", description="Fill the generated parts of the pages in docs/.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is not current")
    parser.add_argument("folder", nargs="?", type=Path, default=PAGES)
    arguments = parser.parse_args()
    outdated = 0
    files: list[tuple[Path, Callable[[str], str]]] = [(path, filled) for path in sorted(arguments.folder.glob("*.md"))]
    if arguments.folder.resolve() == PAGES:
        files.append((configuration.COMPOSE, configuration.labelled))
    for path, fill in files:
        before = path.read_text(encoding="utf-8")
        after = fill(before)
        if after == before:
            continue
        outdated += 1
        if arguments.check:
            print(f"{path} is not what the code says now. Run `make docs` and commit the file.")
        else:
            path.write_text(after, encoding="utf-8")
            print(path)
    return 1 if arguments.check and outdated else 0


if __name__ == "__main__":
    sys.exit(main())
