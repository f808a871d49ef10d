"""The report: one HTML file that shows records, and a plot for a README. The same records give the same bytes."""

from collections.abc import Sequence
from pathlib import Path

from steerbench.errors import SteerbenchError
from steerbench.files import write_asked
from steerbench.records.damage import LeftOut
from steerbench.records.store import records_in
from steerbench.records.verdicts import decided
from steerbench.report.answer_plot import answer_plot
from steerbench.report.groups import Group, grouped
from steerbench.report.page import page
from steerbench.report.readme_plot import readme_plot
from steerbench.report.timings import timings_in


def write_report(
    folders: Sequence[Path],
    out: Path,
    n_examples: int | None = None,
    plot: Path | None = None,
    left_out: LeftOut | None = None,
    claims: Path | None = None,
) -> None:
    """Write the report of all records in folders, and of the timings in their `latency/`, to one HTML file.

    What `n_examples` means stands at `generations`, and `left_out` at `Store.records`; `plot` is where `write_plot`
    writes to, and `claims` a file of claims to show the verdicts on. Raises SteerbenchError if there are no records, or
    a file cannot be read or written.
    """
    _check(out, ".html")
    if plot:
        _check(plot, ".svg")
    found = decided(claims, left_out) if claims else []
    groups = grouped(records_in(folders, left_out))
    write_asked(out, page(groups, timings_in(folders), n_examples, found))
    if plot:
        write_plot(groups, plot)


def _check(path: Path, suffix: str) -> None:
    """Raise SteerbenchError for what a page or plot cannot be written to, before records are read."""
    if path.is_dir():
        raise SteerbenchError(f"cannot write {path}: Is a directory; choose another file.")
    if path.suffix.lower() != suffix:
        raise SteerbenchError(f"{path} would hold {suffix[1:].upper()}; give it a name that ends in {suffix}.")


def write_plot(groups: Sequence[Group], path: Path) -> None:
    """Write one SVG: reward gain against gold gain of each method with 95 % intervals, tasks side by side.

    Without a gold score, the held-out reward takes its place; without a reward, what given answers score over strength.
    Raises SteerbenchError if there is none of these.
    """
    rewarded = any(group.has("reward_gain") for group in groups)
    write_asked(path, (not rewarded and answer_plot(groups)) or readme_plot(groups))
