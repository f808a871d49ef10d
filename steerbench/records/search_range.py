"""What tuning could choose from, and whether the choice lies at an end of it: a better value may then lie beyond."""

from collections.abc import Mapping, Sequence
from typing import Any


def is_ordered(values: Sequence[Any]) -> bool:
    """Tell whether values are numbers, so that some are neighbours and two are ends."""
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def ends_of(searched: Mapping[str, Sequence[Any]], chosen: Mapping[str, Any]) -> list[str]:
    """Return the hyperparameters whose chosen value is the smallest or the largest of several numbers searched.

    A smallest of 0, such as the first layer, has nothing beyond it and does not count.
    """
    ranges = {name: set(values) for name, values in searched.items() if is_ordered(values)}
    ends = {name: ({min(values)} - {0}) | {max(values)} for name, values in ranges.items() if len(values) > 1}
    return [name for name, both in ends.items() if chosen[name] in both]


def ends_chosen(tuning: Mapping[str, Any]) -> list[str]:
    """Return what `ends_of` does for `Record.tuning`; where older records name no range, it is what was tried."""
    chosen = tuning.get("chosen")
    if not chosen or "target" in tuning:  # a strength that is solved for has no range
        return []
    tried: dict[str, list[Any]] = {name: [t["hyperparameters"][name] for t in tuning["trials"]] for name in chosen}
    return ends_of(tuning.get("searched") or tried, chosen)
