"""A matplotlib figure as an inline SVG: its colours are the page's, its ids its own, nothing in it leads elsewhere."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

# Colours that stand for the page's own, which differ between light, dark and print.
INK, MUTED, GRID, PAPER, GAIN, LOSS = (f"#01020{index}" for index in range(6))
NAMES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper", GAIN: "gain", LOSS: "loss"}
SERIES = 8
"""Colours for runs; after that they begin anew, with other dashes."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MARKERS = "osD^vPX*"

FONT_SIZE = 11.5
SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dynsparse",
    "text.parse_math": False,  # Names of runs and layers are text, whatever characters they have.
    "font.size": FONT_SIZE,
    "axes.titlesize": FONT_SIZE,
    "axes.labelsize": FONT_SIZE,
    "xtick.labelsize": FONT_SIZE - 1,
    "ytick.labelsize": FONT_SIZE - 1,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
}

_COLOUR = re.compile(r"#(?:01020[0-5]|030[0-9]00)")
_NUMBER = re.compile(r"-?\d+\.\d{2,}")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


@dataclass(frozen=True)
class Chart:
    """A figure of the page."""

    title: str
    svg: Markup
    summary: str
    """Words for people who do not see the chart."""
    hover: str = ""
    """JSON for page.js: where the plot lies in the drawing, and its values."""
    note: str = ""
    least_width: int = 0
    """Pixels under which it is scrolled rather than shrunk; 0 for charts that may shrink."""


def series_colour(index: int) -> str:
    """Return the colour that stands for the page's own colour of a run."""
    return f"#030{index % SERIES}00"


def series_dash(index: int) -> Any:
    """Return the dashes of a run's line. There are four kinds, so that no neighbours are alike."""
    return DASHES[(index + index // SERIES) % len(DASHES)]


def series_marker(index: int) -> str:
    """Return the marker of a run's points, as matplotlib names it."""
    return MARKERS[(index + index // SERIES) % len(MARKERS)]


@contextmanager
def drawing() -> Iterator[None]:
    """Draw with the report's settings of matplotlib, whatever the user's are; they come back in the end."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


def figure(width: float, height: float) -> Figure:
    """Return a figure of so many CSS pixels. Matplotlib keeps nothing of it."""
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04)
    return Figure(figsize=(width / 72, height / 72), dpi=72, layout=layout)


def inline(drawn: Figure, prefix: str) -> Markup:
    """Return the figure as an SVG element. Its ids begin with `prefix`, which no other figure of the page has."""
    file = io.BytesIO()
    drawn.savefig(file, format="svg", transparent=True)
    root = ElementTree.fromstring(file.getvalue())  # noqa: S314 - written by matplotlib just now
    for parent in root.iter():
        for child in [c for c in parent if _local(c.tag) in ("metadata", "style")]:
            parent.remove(child)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    renamed = {old: f"{prefix}-{number}" for number, old in enumerate(ids) if old}
    wanted = _wanted(root)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = dict(_attributes(element.attrib, renamed, wanted))
    root.attrib = {"viewBox": root.attrib["viewBox"], "aria-hidden": "true", "focusable": "false"}
    return Markup(ElementTree.tostring(root, encoding="unicode", method="html"))  # noqa: S704 - escaped by it


def _wanted(root: ElementTree.Element) -> set[str]:
    """Return the ids that something refers to."""
    values = [(key, value) for element in root.iter() for key, value in element.attrib.items()]
    linked = {value[1:] for key, value in values if _local(key) == "href" and value.startswith("#")}
    return linked | {name for _, value in values for name in _REFERENCE.findall(value)}


def _attributes(given: Mapping[str, str], renamed: Mapping[str, str], wanted: set[str]) -> Iterator[tuple[str, str]]:
    for key, value in given.items():
        name = _local(key)
        if name == "id":
            if value in wanted:
                yield "id", renamed[value]
        elif name == "href":
            yield "href", f"#{renamed[value[1:]]}" if value.startswith("#") else value
        elif name != "style":
            yield name, _shorter(_REFERENCE.sub(lambda match: f"url(#{renamed[match[1]]})", value), name)
        else:
            yield "style", _COLOUR.sub(lambda match: f"var(--{_page_colour(match[0])})", value)


def _page_colour(colour: str) -> str:
    return NAMES.get(colour) or f"series-{colour[4]}"


def _shorter(value: str, name: str) -> str:
    """Return coordinates to a hundredth of a pixel."""
    if name not in ("d", "x", "y", "width", "height", "points"):
        return value
    return re.sub(r"\s+", " ", _NUMBER.sub(lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), value))


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def plot_box(drawn: Figure, axes: Axes) -> list[float]:
    """Return the place of the plot in the drawn figure: left, top, width, height, as fractions of the whole."""
    box = axes.get_position()
    return [round(float(value), 5) for value in (box.x0, 1 - box.y1, box.width, box.height)]


def rounded(values: Sequence[float]) -> list[float | None]:
    """Return four digits of each value, and None for NaN, which JSON does not know."""
    return [None if value != value else float(f"{value:.4g}") for value in values]


def as_json(content: Mapping[str, Any]) -> str:
    """Return JSON without spaces. ValueError for NaN."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False)
