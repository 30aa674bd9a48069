"""What is needed to understand a failure, written into one folder while the stack still is as it failed."""

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from time import strftime
from typing import Any, Final

import psutil

ROOT: Final = Path(__file__).parent.parent.parent
RESULTS: Final = ROOT / "results" / "failed"  # not committed
_RUN: Final = f"{strftime('%Y-%m-%dT%H-%M-%S')}-{os.getpid()}"


def folder_of(test: str) -> Path:
    """The folder for a test of this run, given as pytest names it."""
    file, _, name = re.sub(r" \((setup|call|teardown)\)$", "", test).partition("::")
    return RESULTS / _RUN / re.sub(r"[^\w.]+", "-", f"{Path(file).stem} {name}").strip("-")[:150]


def leave(parts: Mapping[str, Callable[[], Any]], folder: Path) -> Path:
    """Write each part into a file of its name: text as it is, anything else as JSON. Returns the folder.

    What is there already stays: it was written closer to the failure. A part that can't be had says why in its file.
    """
    if not folder.exists():
        folder.mkdir(parents=True)
        for name, part in parts.items():
            try:
                found = part()
                text = found if isinstance(found, str) else json.dumps(found, indent=1)
            except Exception as error:  # noqa: BLE001 - whatever it is, the other parts are still wanted
                text = f"not to be had: {error}\n"
            (folder / name).write_text(text)
    return folder


def machine() -> str:
    """How busy this machine is, and with what."""
    load = " ".join(f"{it:.1f}" for it in os.getloadavg())
    memory = psutil.virtual_memory()
    lines = [f"load {load} on {os.cpu_count()} processors, {memory.percent:.0f}% of {memory.total >> 20} MiB of memory used"]
    running = list(psutil.process_iter(["pid", "cmdline", "name"]))
    for it in running:
        with suppress(psutil.NoSuchProcess):
            it.cpu_percent()  # the first call begins the measurement
    lines.append(f"{psutil.cpu_percent(1):.0f}% of all processors in use during the second in which this was written, by:")
    used: list[tuple[float, str]] = []
    for it in running:
        with suppress(psutil.NoSuchProcess):
            used.append((it.cpu_percent(), f"{it.pid} {' '.join(it.info['cmdline'] or [it.info['name']])[:150]}"))
    return "\n".join(lines + [f"{share:6.1f}%  {what}" for share, what in sorted(used, reverse=True)[:20]]) + "\n"
