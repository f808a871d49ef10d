"""One plot of given answers for a README: their score over the strength of each method, on each task. An SVG."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from matplotlib.figure import Figure

from steerbench.records.columns import CHOICE_SCORES, COLUMNS
from steerbench.report import svg
from steerbench.report.choice_curves import score_panel
from steerbench.report.curves import sweeps
from steerbench.report.groups import Group
from steerbench.report.plots import MARKS, Panel, draw_panel, shared_span
from steerbench.report.svg import BLUE, CARD, GREEN, INK, LINE, ORANGE, PRINTED, RED

_COLOURS = (BLUE, ORANGE, GREEN, RED)
_PANEL, _HEIGHT = 270.0, 250.0


def answer_plot(groups: Sequence[Group]) -> str:
    """Return the SVG: a panel for each task, the score of given answers over strength, with 95 % intervals.

    The unsteered model is dashed. Empty where no method was measured at several strengths.
    """
    panels = {group.title: found for group in groups if (found := dict(_curves(group)))}
    if not panels:
        return ""
    width = len(panels) * _PANEL
    around = {"left": 48 / width, "right": 1 - 12 / width, "bottom": 62 / _HEIGHT, "top": 1 - 26 / _HEIGHT}
    span = shared_span([panel for found in panels.values() for panel in found.values()])
    with svg.style():
        made, axes = svg.figure(width, _HEIGHT, len(panels), wspace=0.2, **around)
        made.patch.set(facecolor=CARD, edgecolor=LINE, linewidth=1)
        for each, (title, found) in zip(axes, panels.items(), strict=True):
            each.set_title(title, loc="left", fontsize=9, color=INK)
            for panel in found.values():
                draw_panel(each, panel, span)
        _legend(made, {label: panel.lines[-1].colour for found in panels.values() for label, panel in found.items()})
        return '<?xml version="1.0" encoding="utf-8"?>\n' + svg.svg(made, "steerbench", PRINTED)


def _curves(group: Group) -> Iterator[tuple[str, Panel]]:
    """Yield what is drawn of each curve of a task, by its label: the first score that the records have."""
    score = next((name for name in CHOICE_SCORES if group.has(name)), "")
    for i, one in enumerate(sweeps(group)):
        panel = score_panel(group, i, one, score)
        if panel:
            *spans, mean = panel.lines
            lines = [*spans, replace(mean, colour=_COLOURS[i % len(_COLOURS)])]
            yield f"{COLUMNS[score].title} of {one.label} over {one.dial}", replace(panel, lines=lines)


def _legend(made: Figure, colours: dict[str, str]) -> None:
    width = made.get_figwidth() * 72
    for i, (label, colour) in enumerate(colours.items()):
        x = 16 + i * _PANEL
        svg.mark(made, MARKS[colour], colour, x / width, 17 / _HEIGHT)
        made.text((x + 10) / width, 14 / _HEIGHT, label, fontsize=9, color=INK)
