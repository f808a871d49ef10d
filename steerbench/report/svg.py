"""Matplotlib for the page: SVG of the same bytes each time, in the colours of the page, and safe inside HTML."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape
from io import StringIO
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from steerbench.report.labels import Box, places
from steerbench.report.small_svg import smaller

# stand-ins, replaced in the SVG: matplotlib knows no CSS variables
INK, MUTED, LINE, CARD = "#000001", "#000002", "#000003", "#000004"
BLUE, GREEN, ORANGE, RED = "#000005", "#000006", "#000007", "#000008"
_NAMES = ("ink", "muted", "line", "card", "blue", "green", "orange", "red")
PAGE = {f"#00000{i}": f"var(--{name})" for i, name in enumerate(_NAMES, 1)}
"""The colours of the page, which has a light and a dark scheme."""
_LITERAL = ("#1f2328", "#59636e", "#d1d9e0", "#ffffff", "#0a58ca", "#1a7f37", "#bc4c00", "#cf222e")
PRINTED = {f"#00000{i}": colour for i, colour in enumerate(_LITERAL, 1)}
"""Colours of a plot that stands alone, on its own white card."""

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "steerbench",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine sets the same page
    "font.size": 10.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "none",
    "figure.dpi": 72,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw with our settings and no others, whatever the user's matplotlib says; then put the user's back."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def figure(width: float, height: float, columns: int = 1, **around: float) -> tuple[Figure, list[Any]]:
    """Return a figure of a size in points, and its axes side by side. `around` says where they lie, as fractions."""
    made = Figure(figsize=(width / 72, height / 72))
    axes = made.subplots(1, columns, squeeze=False)[0]
    made.subplots_adjust(**around)
    return made, list(axes)


def svg(made: Figure, name: str, colours: Mapping[str, str], titles: Mapping[str, str] | None = None) -> str:
    """Return a figure as an `<svg>` element, with a tooltip for each named artist, and ids that begin with a name."""
    buffer = StringIO()
    made.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"font: ([^;\"]*?)px [^;\"]*", r"font: \1px system-ui, sans-serif", text)
    text = re.sub("#00000[1-8]", lambda found: colours[found[0]], text)
    for gid, title in (titles or {}).items():
        text = text.replace(f'<g id="{gid}">', f'<g id="{gid}"><title>{escape(title)}</title>')
    text = re.sub(r'\bid="', f'id="{name}-', text)
    return re.sub(r'(href="|url\()#', rf"\1#{name}-", text)


def inline(made: Figure, name: str, label: str, titles: Mapping[str, str] | None = None) -> str:
    """Return a figure for a page: as wide as there is room, with a text for those who cannot see it."""
    text = svg(made, name, PAGE, titles)
    view = re.search(r'viewBox="[^"]*"', text)
    if view is None:
        raise ValueError("matplotlib wrote an SVG without a view box")
    opening = f'<svg class="plot" role="img" aria-label="{escape(label)}" {view[0]}>'
    return smaller(re.sub(r"^<svg[^>]*>", lambda _: opening, text).replace("xlink:href", "href").rstrip())


def mark(made: Figure, shape: str, colour: str, x: float, y: float) -> None:
    """Draw a point at fractions of a figure."""
    made.lines.append(Line2D([x], [y], marker=shape, color=colour, ms=6, ls="", transform=made.transFigure))


def write_labels(axes: Any, points: list[tuple[float, float]], texts: list[str]) -> None:
    """Write a text beside each point of finished axes, with a thin line to it where it had to go far."""
    at = [tuple(map(float, axes.transData.transform(point))) for point in points]
    frame = axes.get_window_extent()
    found = places([(x, y) for x, y in at], texts, Box(frame.x0, frame.y0, frame.x1, frame.y1))
    for point, start, place, text in zip(points, at, found, texts, strict=True):
        offset = (place[0] - start[0], place[1] - start[1])
        far = offset[0] ** 2 + offset[1] ** 2 > 150
        axes.annotate(
            text,
            point,
            offset,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=9.5,
            color=INK,
            arrowprops={"arrowstyle": "-", "color": MUTED, "lw": 0.6, "shrinkA": 0, "shrinkB": 3} if far else None,
        )
