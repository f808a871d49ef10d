"""The report: one HTML file that shows records, and a plot for a README. The same records give the same bytes."""

from collections.abc import Sequence
from pathlib import Path

from steerbench.output import write_whole
from steerbench.records import Record, records_in
from steerbench.report.groups import grouped
from steerbench.report.page import page
from steerbench.report.readme_plot import readme_plot
from steerbench.report.timings import timings_in

N_EXAMPLES = 64
"""Prompts per task whose generations the page holds."""


def write_report(folders: Sequence[Path], out: Path, n_examples: int = N_EXAMPLES) -> None:
    """Write the report of all records in folders, and of the timings in their `latency/`, to one HTML file.

    Raises SteerbenchError if there are no records, or the file cannot be written.
    """
    write_whole(out, page(grouped(records_in(folders)), timings_in(folders), n_examples))


def write_plot(records: Sequence[Record], path: Path) -> None:
    """Write one SVG: reward gain against gold gain of each method with 95 % intervals, tasks side by side.

    Without a gold score, the held-out reward takes its place. Raises SteerbenchError if there is neither.
    """
    write_whole(path, readme_plot(grouped(records)))
