"""The totals of a run, as they are printed."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from handoff.encoding import counted
from handoff.simulation.steps import Answer, Step, error_code

_UNEXPECTED_SHOWN: Final = 5


@dataclass(slots=True)
class Totals:
    """What happened so far.

    `unexpected` counts by error code the calls that were refused and should not have been, and as "success" the mistakes
    that were not refused.
    """

    calls: int = 0
    completed: int = 0
    refused: int = 0
    unexpected: Counter[str] = field(default_factory=Counter[str])

    def add(self, step: Step, answer: Answer) -> None:
        """Count a call that was answered."""
        code = error_code(answer)
        self.calls += 1
        self.refused += bool(code)
        self.completed += answer.get("state") == "completed" and step.arguments.get("action") == "complete"
        if code not in (step.expected_errors or ("",)):
            self.unexpected[code or "success"] += 1

    def __str__(self) -> str:
        totals = f"{counted(self.calls, 'call')}, {counted(self.completed, 'handoff')} completed, {self.refused} refused"
        if self.unexpected:
            shown = ", ".join(f"{count} {code}" for code, count in self.unexpected.most_common(_UNEXPECTED_SHOWN))
            totals += f" (unexpected: {shown})"
        return totals
