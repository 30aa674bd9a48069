"""A series with the band in which it was usual. Only figures are drawn: names belong into the page, beside the chart."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Final

import numpy as np
from matplotlib import dates
from matplotlib.figure import Figure

from handoff.analytics.columns import Double, Index
from handoff.cli.svg import ALERT, BAND, LINE, styled, written

COLUMNS: Final = 1_200  # of the chart; of more points than that, each shows the lowest and the highest
_SIZE_IN: Final = (11.0, 3.2)
STYLE: Final = """
:root { --paper: #fff; --ink: #1b1f24; --faint: #c9ced6; --line: #2458c5; --band: #dbe6fb; --alert: #c81e3a; }
@media screen and (prefers-color-scheme: dark) {
  :root { --paper: #15181d; --ink: #e4e7eb; --faint: #3d444f; --line: #7fa8ff; --band: #25345a; --alert: #ff6b81; }
}
svg.chart { width: 100%; height: auto; }
svg.chart text { font-family: inherit !important; }
"""


@dataclass(frozen=True, slots=True)
class Mark:
    """A point to mark, in seconds since 1970; hollow if it is `faint`."""

    at: int
    value: float
    faint: bool = False


def band_chart(t: Index, x: Double, lower: Double, upper: Double, marks: Sequence[Mark], zone: tzinfo, label: str) -> str:
    """A series with the band in which it was usual, as `<svg>`.

    Args:
        t: times in seconds since 1970, ascending.
        x: values; NaN leaves a gap.
        lower: the lower end of the band; NaN where there is none.
        upper: its upper end.
        marks: points to mark.
        zone: the time zone of the axis.
        label: what the chart is, for those who can't see it. Escaped here.
    """
    with styled():
        figure = Figure(figsize=_SIZE_IN, layout="constrained")
        axes = figure.add_subplot()
        at, low, high = reduced(t, x)
        line_t, line_x = np.repeat(at, 2), np.column_stack((low, high)).ravel()
        if len(t) <= COLUMNS:
            line_t, line_x = t, x
        band_t, band_low, _ = reduced(t, lower)
        _, _, band_high = reduced(t, upper)
        axes.fill_between(_days(band_t), band_low, band_high, color=BAND, linewidth=0)
        axes.plot(_days(line_t), line_x, color=LINE, linewidth=1)
        for is_faint in (True, False):
            chosen = [it for it in marks if it.faint == is_faint]
            axes.plot(
                _days(np.array([it.at for it in chosen], np.int64)),
                [it.value for it in chosen],
                "o",
                markersize=6,
                markeredgecolor=ALERT,
                markerfacecolor="none" if is_faint else ALERT,
            )
        locator = dates.AutoDateLocator(tz=zone, maxticks=12)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator, tz=zone))
        axes.margins(x=0.01)
    escaped = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return written(figure).replace("<svg", f'<svg class="chart" role="img" aria-label="{escaped}"', 1)


def reduced(t: Index, x: Double) -> tuple[Index, Double, Double]:
    """The beginning, the lowest and the highest of each column of the chart; NaN where nothing was measured."""
    if len(t) <= COLUMNS:
        return t, x, x
    edges = np.linspace(0, len(t), COLUMNS + 1).astype(np.int64)[:-1]
    return t[edges], np.fmin.reduceat(x, edges), np.fmax.reduceat(x, edges)


def _days(t: Index) -> Double:
    return t / 86_400.0  # since 1970, as matplotlib counts
