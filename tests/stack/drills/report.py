"""Writes what the drills measured to docs/alerts.md."""

from collections.abc import Mapping
from typing import Final

from tests.stack.bundle import ROOT
from tests.stack.drills.drill import Measured
from tests.stack.drills.pace import Pace
from tests.stack.rules import alerts

DOCUMENT: Final = ROOT / "docs" / "alerts.md"
_HEAD: Final = """# Each alert, and the fault that fires it

Written by `.venv/bin/pytest tests/stack/drills --write-alerts`, which injects each fault into a running stack, repairs it,
and records what happened. The stack is the shipped one at a quicker pace: rules are evaluated every second, their windows
are shortened (5 minutes to 6 s, 3 days to 46 s), and so is `for` (to 2 to 6 s); on a machine that is too busy to keep up,
all of them are twice or three times as long again. So these times show the order of events, not how long they take in
production. There, the condition has to hold for the time in the last column before the alert fires;
on top of that come up to 15 s each for the scrape and the evaluation, and 10 s (warnings to people: 30 s) in which
Alertmanager waits for alerts of the same group.

*Fires after* and *Notified after* count from the fault; notified means that the service stored Alertmanager's notification.
*Resolved after* counts from the repair. *Pages* is the number of pages sent to people for the fault, over all its alerts.
The drill fails unless a fault with a critical alert pages exactly once, and any other fault not at all.

| Alert | Severity | Fault | Fires after (s) | Notified after (s) | Resolved after (s) | Pages | Shipped `for` |
|---|---|---|---|---|---|---|---|
"""
_SHIPPED: Final = """
## At the shipped pace

Written by the same command with `--pace shipped`, one fault at a time. Nothing is shortened, the stack is under load for
6 minutes before the fault, and the drill does not wait until the alert resolves. Each row names the fault that was used.

| Alert | Fault | Fires after (s) | Notified after (s) |
|---|---|---|---|
"""


def table(measured: Mapping[str, Measured], pace: Pace) -> list[str]:
    """The rows of the table, one per alert."""
    rules = alerts()
    lines: list[str] = []
    for name, it in sorted(measured.items()):
        seconds = f"{it.firing_s:.1f} | {it.notified_s:.1f}"
        if pace.quick:
            rule = rules.get(name.partition(" ")[0])
            severity, waits = (rule["labels"]["severity"], rule["for"]) if rule else ("critical", "4m of silence")
            lines.append(f"| {name} | {severity} | {it.fault} | {seconds} | {it.resolved_s:.1f} | {it.pages} | {waits} |")
        else:
            lines.append(f"| {name} | {it.fault} | {seconds} |")
    return lines


def write(measured: Mapping[str, Measured], pace: Pace) -> None:
    """Write the table of a pace: the quick one is replaced, in the shipped one only the measured rows are."""
    quick, _, shipped = DOCUMENT.read_text().partition(_SHIPPED)
    if pace.quick:
        quick = _HEAD + "".join(f"{line}\n" for line in table(measured, pace))
    else:
        lines = {line.split("|")[1]: line for line in [*shipped.splitlines(), *table(measured, pace)]}
        shipped = "".join(f"{line}\n" for _, line in sorted(lines.items()))
    DOCUMENT.write_text(quick + _SHIPPED + shipped)
