"""The charts of a report. Only figures are drawn: names belong into the page, beside the chart."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from handoff.cli import amounts
from handoff.cli.svg import BAD, FIRST, SECOND, styled, written

_TICKS_S: Final = (0.1, 1, 10, 60, 300, 900, 3_600, 10_800, 43_200, 86_400, 259_200, 604_800)
_SIZE_INCHES: Final = (7.6, 2.4)


@dataclass(frozen=True, slots=True)
class Values:
    """A value per bucket, or None where there is none; its name in the legend, and its colour."""

    name: str
    colour: str
    values: Sequence[float | None]


def bars(starts: Sequence[datetime], parts: Sequence[Values], unit: str) -> str:
    """Stacked bars, one per bucket."""
    figure, axes = _axes(unit)
    width = 0.85 * (starts[1] - starts[0]).total_seconds() / 86_400 if len(starts) > 1 else 0.5
    bottom = [0.0] * len(starts)
    for part in parts:
        heights = [value or 0.0 for value in part.values]
        axes.bar(_times(starts), heights, width, bottom=bottom, color=part.colour, label=part.name, align="edge")
        bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
    axes.margins(x=0.01)
    return _svg(figure, axes, legend=len(parts) > 1)


def durations(starts: Sequence[datetime], parts: Sequence[Values]) -> str:
    """A line per part of seconds, with gaps where there is no value; equal steps are equal factors."""
    figure, axes = _axes("")
    for part in parts:
        values = [float("nan") if value is None else value for value in part.values]
        axes.plot(_times(starts), values, color=part.colour, label=part.name, marker="o", markersize=2.5, linewidth=1.4)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator(_TICKS_S))
    axes.yaxis.set_major_formatter(FuncFormatter(_duration))
    axes.minorticks_off()
    return _svg(figure, axes, legend=True)


def _duration(value: float, _: int) -> str:
    return amounts.seconds(value)


def fan(
    known: tuple[Sequence[datetime], Sequence[float]],
    ahead: Sequence[tuple[datetime, float, float, float]],
    limit: float | None,
    unit: str,
) -> str:
    """What is known, the forecast of (time, low, expected, high) behind it, and a limit."""
    figure, axes = _axes(unit)
    times, values = _times(known[0]), list(known[1])
    axes.plot(times, values, color=FIRST, label="measured", linewidth=1.4)
    coming = _times([known[0][-1], *(it[0] for it in ahead)])
    low, expected, high = ([values[-1], *path] for path in zip(*(it[1:] for it in ahead), strict=True))
    axes.fill_between(coming, low, high, color=SECOND, alpha=0.25, linewidth=0, label="interval of 90 %")
    axes.plot(coming, expected, color=SECOND, label="forecast", linewidth=1.4, linestyle="--")
    if limit is not None:
        axes.axhline(limit, color=BAD, linewidth=1.2, label="limit")
    axes.set_ylim(bottom=0)
    return _svg(figure, axes, legend=True)


def _times(starts: Sequence[datetime]) -> Any:
    return date2num(list(starts))


def _axes(unit: str) -> tuple[Figure, Axes]:
    with styled():
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        axes = figure.add_subplot()
    axes.set_ylabel(unit)
    return figure, axes


def _svg(figure: Figure, axes: Axes, *, legend: bool) -> str:
    locator = AutoDateLocator(maxticks=10)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    if legend:
        with styled():
            axes.legend(loc="upper left", ncols=4, fontsize=8, bbox_to_anchor=(0, 1.16), borderaxespad=0)
    return written(figure)
