"""The report: one HTML file that shows records, and a plot for a README. The same records give the same bytes."""

from collections.abc import Sequence
from pathlib import Path

from steerbench.errors import SteerbenchError
from steerbench.records import Record, Store
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
    _write(out, page(grouped(records_in(folders)), timings_in(folders), n_examples))


def write_plot(records: Sequence[Record], path: Path) -> None:
    """Write one SVG: reward gain against gold gain of each method with 95 % intervals, tasks side by side.

    Without a gold score, the held-out reward takes its place. Raises SteerbenchError if there is neither.
    """
    _write(path, readme_plot(grouped(records)))


def records_in(folders: Sequence[Path]) -> list[Record]:
    """Return the records in folders, in the order of their paths. Raises SteerbenchError if there is none."""
    records = [record for folder in folders for record in Store(folder).records()]
    if not records:
        names = ", ".join(map(str, folders))
        raise SteerbenchError(f"there are no records in {names}; `steerbench run --out FOLDER` makes some.")
    return records


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise SteerbenchError(f"cannot write {path}: {error.strerror or error}; choose another file.") from error
