"""What the drills measured, as docs/alerts.md has it."""

from collections.abc import Mapping
from typing import Final

from tests.stack.bundle import ROOT
from tests.stack.drills.drill import Measured
from tests.stack.drills.pace import Pace
from tests.stack.rules import alerts

DOCUMENT: Final = ROOT / "docs" / "alerts.md"
_HEAD: Final = """# Each alert, and the fault that fires it

Written by `.venv/bin/pytest tests/stack/drills --write-alerts`, which does each fault to a running stack, repairs
it, and looks at what came. The stack is the shipped one at a quicker pace: rules are evaluated each second, their windows
are shortened (5 minutes to 6 s, 3 days to 46 s), and `for` to 1 to 5 s. So the seconds tell how things follow one another,
not how long they take in the field. There an alert waits for what the last column says, on top of the 15 s of a scrape and
an evaluation, and of 10 s in Alertmanager (tickets outside: 30 s) for what belongs together to come together.

*Told* is when it was stored from Alertmanager's notification; *over* counts from the repair. *Pages* are the notifications
that people were paged with for that fault, all its alerts together: one, if one of them is critical, or the drill fails.

| Alert | Severity | Fault | Fires after (s) | Told after (s) | Over after (s) | Pages | Shipped: waits |
|---|---|---|---|---|---|---|---|
"""
_SHIPPED: Final = """
## At the shipped pace

Written by the same command with `--pace shipped`, a fault at a time: nothing is shortened, a stack is six minutes at work
before its fault is done, and it is not waited for the end. A row names the fault that it was measured with.

| Alert | Fault | Fires after (s) | Told after (s) |
|---|---|---|---|
"""


def table(measured: Mapping[str, Measured], pace: Pace) -> list[str]:
    """The table's lines, an alert each."""
    rules = alerts()
    lines: list[str] = []
    for name, it in sorted(measured.items()):
        seconds = f"{it.firing_s:.1f} | {it.told_s:.1f}"
        if pace.quick:
            rule = rules.get(name.partition(" ")[0])
            severity, waits = (rule["labels"]["severity"], rule["for"]) if rule else ("critical", "4m of silence")
            lines.append(f"| {name} | {severity} | {it.fault} | {seconds} | {it.resolved_s:.1f} | {it.pages} | {waits} |")
        else:
            lines.append(f"| {name} | {it.fault} | {seconds} |")
    return lines


def write(measured: Mapping[str, Measured], pace: Pace) -> None:
    """Write the page's table for a pace: the quick one anew, of the shipped one the lines that were measured."""
    quick, _, shipped = DOCUMENT.read_text().partition(_SHIPPED)
    if pace.quick:
        quick = _HEAD + "".join(f"{line}\n" for line in table(measured, pace))
    else:
        lines = {line.split("|")[1]: line for line in [*shipped.splitlines(), *table(measured, pace)]}
        shipped = "".join(f"{line}\n" for _, line in sorted(lines.items()))
    DOCUMENT.write_text(quick + _SHIPPED + shipped)
