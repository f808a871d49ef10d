"""One plot for a README: what methods gain on the guide, and what that is worth. An SVG that stands alone."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from steerbench.errors import SteerbenchError
from steerbench.records.columns import COLUMNS
from steerbench.report import svg
from steerbench.report.figures import truth_points
from steerbench.report.groups import Group, letters
from steerbench.report.plots import MARKS, Point, Scatter, fill
from steerbench.report.svg import BLUE, CARD, INK, LINE, MUTED, ORANGE, PRINTED, RED

_PANEL, _HEIGHT, _LINE = 400.0, 330.0, 14.0
_COLUMNS = 3
_LONGEST = 46
"""Characters of a method's name that fit into a column of the legend."""
_MEANING = (
    (BLUE, "as the guide says, or better"),
    (ORANGE, "only the guide surely rose"),
    (RED, "surely fell, and the guide did not: over-optimised"),
)


def readme_plot(groups: Sequence[Group]) -> str:
    """Return the SVG: a panel for each task, reward gain against gold (else held-out) gain, and a legend of letters.

    Of several protocols of a task, the first is drawn, which has most records. A method has the same letter in all
    panels. Raises SteerbenchError if no group has both gains.
    """
    groups = list({group.task: group for group in reversed(groups)}.values())[::-1]
    column = "gold_gain" if any(truth_points(group, "gold_gain") for group in groups) else "held_out_reward_gain"
    panels = [(group, points) for group in groups if (points := truth_points(group, column))]
    if not panels:
        raise SteerbenchError(
            "there is nothing to plot: the records have no reward gain beside a gold or held-out gain. Give a folder "
            "that holds the unsteered model too, or measure with --held-out-reward."
        )
    names = list(dict.fromkeys(row.method for group, _ in panels for row in group.rows if not row.is_unsteered))
    keys = {name: letters(i) for i, name in enumerate(names)}
    with svg.style():
        return _drawn(panels, keys, COLUMNS[column].title)


def _drawn(panels: Sequence[tuple[Group, list[Point]]], keys: dict[str, str], y_label: str) -> str:
    width = max(2, len(panels)) * _PANEL
    lines = -(-len(keys) // _COLUMNS) + 1
    height = _HEIGHT + lines * _LINE + 30
    foot = (height - _HEIGHT + 50) / height
    made, axes = svg.figure(
        width, height, len(panels), left=52 / width, right=1 - 14 / width, bottom=foot, top=1 - 26 / height, wspace=0.17
    )
    made.patch.set(facecolor=CARD, edgecolor=LINE, linewidth=1)
    for each, (group, points) in zip(axes, panels, strict=True):
        methods = {row.key: row.method for row in group.rows}
        renamed = [Point(keys[methods[p.key]], *list(vars(p).values())[1:]) for p in points]
        each.set_title(_plain(group.title), loc="left", fontsize=11, color=INK, fontweight="bold")
        each.set(xlabel=f"{COLUMNS['reward_gain'].title} (the guide)", ylabel=y_label if each is axes[0] else "")
        fill(each, Scatter(group.name, group.title, "", "", renamed, diagonal=True))
    _legend(made, keys, width, height)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + svg.svg(made, "steerbench", PRINTED)


def _legend(made: Figure, keys: dict[str, str], width: float, height: float) -> None:
    per_column = -(-len(keys) // _COLUMNS)
    top = height - _HEIGHT + 2
    for i, (name, key) in enumerate(keys.items()):
        x, y = 16 + (i // per_column) * (width - 24) / _COLUMNS, top - (i % per_column) * _LINE
        made.text(x / width, y / height, key, fontsize=9, color=INK, fontweight="bold")
        made.text((x + 16) / width, y / height, _plain(name), fontsize=9, color=INK)
    x = 16.0
    for colour, text in _MEANING:
        svg.mark(made, MARKS[colour], colour, (x + 4) / width, 17 / height)
        made.text((x + 14) / width, 14 / height, text, fontsize=9, color=MUTED)
        x += 30 + 5.4 * len(text)


def _plain(text: str) -> str:
    """Return a text in ASCII, for which there is a font everywhere, and short enough for its column."""
    ascii_text = text.encode("ascii", "backslashreplace").decode()
    return ascii_text if len(ascii_text) <= _LONGEST else ascii_text[: _LONGEST - 3] + "..."
