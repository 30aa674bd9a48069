"""The page that `handoff backtest --html` writes: each series with its band and its alerts, at several sensitivities."""

from collections.abc import Sequence
from datetime import datetime, tzinfo
from importlib.resources import files
from typing import Final

from jinja2 import Environment

from handoff.cli.backtest import Judged
from handoff.cli.band_chart import STYLE, Mark, band_chart
from handoff.encoding import counted

SENSITIVITIES: Final = (0.5, 0.7, 1.0, 1.4, 2.0)
_SHOWN_MAX: Final = 500  # alerts listed per series; the chart has all
_WEEK_S: Final = 7 * 86_400
_TEMPLATE: Final = files("handoff.cli").joinpath("backtest.html")


def page(series: Sequence[Judged], sensitivity: float, zone: tzinfo, left_out: int) -> str:
    """The page, which needs no other file; it says how many series were left out."""
    weaker = f"{SENSITIVITIES[-1]:g}" if sensitivity < SENSITIVITIES[-1] else ""
    shown = [_shown(it, sensitivity, zone) for it in series]
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_TEMPLATE.read_text("utf-8"))
    return template.render(style=STYLE, sensitivity=f"{sensitivity:g}", weaker=weaker, series=shown, left_out=left_out)


def _shown(it: Judged, sensitivity: float, zone: tzinfo) -> dict[str, object]:
    found = it.found
    weeks = float(found.t[-1] - found.t[0]) / _WEEK_S
    alerts = found.alerts(sensitivity)
    weaker = [told for told in found.alerts(max(*SENSITIVITIES, sensitivity)) if told not in alerts]
    marks = [Mark(at, finding.value, faint) for told, faint in ((alerts, False), (weaker, True)) for at, finding in told]
    label = f"{it.name}: {counted(len(alerts), 'alert')}"
    chart = band_chart(found.t, found.x, found.lower, found.upper, marks, zone, label)
    return {
        "name": it.name,
        "said": it.said,
        "chart": chart,
        "rates": [
            {
                "sensitivity": f"{level:g}",
                "count": (count := len(found.alerts(level))),
                "per_week": f"{count / weeks:.1f}" if weeks >= 1 else "",
                "is_chosen": level == sensitivity,
            }
            for level in sorted({*SENSITIVITIES, sensitivity})
        ],
        "alerts": [
            {
                "at": f"{datetime.fromtimestamp(at, zone):%Y-%m-%d %H:%M %Z}",
                "strength": f"{told.strength * sensitivity:.1f}",
                "confidence": f"{told.confidence:.0%}",
                "sentence": told.sentence,
            }
            for at, told in alerts[:_SHOWN_MAX]
        ],
        "left_out": max(0, len(alerts) - _SHOWN_MAX),
    }
