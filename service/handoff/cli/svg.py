"""What all charts look like, and how they are written: as SVG that takes its colours from the page around it.

So the same chart is light, dark and printed. Loads matplotlib, so import it where it is used.
"""

import re
from contextlib import AbstractContextManager
from io import StringIO
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

# Matplotlib knows no variables of CSS: each colour is drawn as one that nothing else has, and replaced.
_VARIABLES: Final = {
    "#010101": "--ink",
    "#020202": "--faint",
    "#a10001": "--good",
    "#a20002": "--bad",
    "#a30003": "--open",
    "#a40004": "--first",
    "#a50005": "--second",
    "#a60006": "--line",
    "#a70007": "--band",
    "#a80008": "--alert",
}
INK, FAINT, GOOD, BAD, OPEN, FIRST, SECOND, LINE, BAND, ALERT = _VARIABLES
_STYLE: Final[Any] = {  # its keys are literals to the type checker
    "svg.fonttype": "none",  # text stays text: it can be searched and read aloud
    "text.parse_math": False,  # a name with dollar signs is a name
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.4,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
    "savefig.facecolor": "none",
}
_METADATA: Final = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_SIZE: Final = re.compile(r'(<svg[^>]*?) (?:width|height)="[^"]*"')  # the page's is meant, not the figure's
_GROUP: Final = re.compile(r'<g id="[^"]*">')  # ids that nothing refers to, and that would repeat on the page


def styled() -> AbstractContextManager[None]:
    """The style, in which axes are made and labelled: matplotlib reads colours when an element is made."""
    return mpl.rc_context(_STYLE)


def written(figure: Figure) -> str:
    """The figure as `<svg>`, to be put into a page that has the variables."""
    out = StringIO()
    with styled():
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = _METADATA.sub("", svg[svg.index("<svg") :])
    svg = _GROUP.sub("<g>", _SIZE.sub(r"\1", _SIZE.sub(r"\1", svg, count=1), count=1))
    for colour, name in _VARIABLES.items():
        svg = svg.replace(colour, f"var({name})")
    return svg
