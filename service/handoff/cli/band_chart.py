"""Charts as SVG for a page that holds everything: no script, and the colours are the page's, so that it can be dark.

Only figures are drawn: names belong into the page, beside the chart. Loads matplotlib, so import it where it is used.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import tzinfo
from io import StringIO
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib import dates
from matplotlib.figure import Figure

from handoff.analytics.columns import Double, Index

COLUMNS: Final = 1_200  # of the chart; of more points than that, each shows the lowest and the highest
_SIZE_IN: Final = (11.0, 3.2)
# matplotlib knows no CSS variables: each colour is drawn as one that nothing else has, and replaced.
INK, FAINT, LINE, BAND, ALERT = "#000001", "#000002", "#000003", "#000004", "#000005"
_VARIABLES: Final = {INK: "--ink", FAINT: "--faint", LINE: "--line", BAND: "--band", ALERT: "--alert"}
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


def band_chart(
    t: Index, x: Double, lower: Double, upper: Double, marks: Sequence[Mark], zone: tzinfo, label: str, number: int
) -> str:
    """A series with the band in which it was usual, as `<svg>`.

    Args:
        t: times in seconds since 1970, ascending.
        x: values; NaN leaves a gap.
        lower: the lower end of the band; NaN where there is none.
        upper: its upper end.
        marks: points to mark.
        zone: the time zone of the axis.
        label: what the chart is, for those who can't see it. Escaped here.
        number: of the chart in its page.
    """
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": str(number), "path.simplify": True}):
        figure = Figure(figsize=_SIZE_IN, layout="constrained")
        figure.patch.set_alpha(0)
        axes: Any = figure.add_subplot()
        axes.patch.set_alpha(0)
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
        _dress(axes, zone)
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(text.getvalue(), label)


def reduced(t: Index, x: Double) -> tuple[Index, Double, Double]:
    """The beginning, the lowest and the highest of each column of the chart; NaN where nothing was measured."""
    if len(t) <= COLUMNS:
        return t, x, x
    edges = np.linspace(0, len(t), COLUMNS + 1).astype(np.int64)[:-1]
    return t[edges], np.fmin.reduceat(x, edges), np.fmax.reduceat(x, edges)


def _days(t: Index) -> Double:
    return t / 86_400.0  # since 1970, as matplotlib counts


def _dress(axes: Any, zone: tzinfo) -> None:
    locator = dates.AutoDateLocator(tz=zone, maxticks=12)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator, tz=zone))
    axes.xaxis.get_offset_text().set_color(INK)
    axes.yaxis.get_offset_text().set_color(INK)
    axes.margins(x=0.01)
    axes.grid(color=FAINT, linewidth=0.5)
    axes.tick_params(colors=INK, labelsize=9)
    for spine in axes.spines.values():
        spine.set_color(FAINT)


def _inline(svg: str, label: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    # The size is the page's, not the figure's; the ids of several charts must not meet.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r' id="(figure|axes|patch|matplotlib|line2d|text|xtick|ytick|FillBetween|PolyCollection)[\w.]*"', "", svg)
    escaped = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg", f'<svg class="chart" role="img" aria-label="{escaped}"', 1)
