"""Ratios of a module of benchmarks, to be shown side by side."""

from statistics import median
from typing import Any


class Ratios:
    """Name -> times beside the unsteered model, one for each round, and the least that it could be."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[list[float], float]] = {}

    def note(self, benchmark: Any, name: str, ratios: list[float], floor: float) -> None:
        """Keep what was measured, and write the median into the benchmark's own record."""
        self._found[name] = (sorted(ratios), floor)
        benchmark.extra_info.update(ratio=round(median(ratios), 2), floor=round(floor, 2))

    def lines(self) -> list[str]:
        """Return a table: median, lowest and highest round, and the floor of decoding."""
        width = max(map(len, self._found), default=0)
        head = f"{'time beside the unsteered model':{width}}  median  lowest  highest  floor"
        rows = [
            f"{name:{width}}  {median(found):6.2f}  {found[0]:6.2f}  {found[-1]:7.2f}  {floor:5.2f}"
            for name, (found, floor) in self._found.items()
        ]
        return [head, *rows]
