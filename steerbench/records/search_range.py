"""What tuning could choose from, and whether the choice lies at an end of it: a better value may then lie beyond."""

from collections.abc import Mapping, Sequence
from typing import Any


def is_ordered(values: Sequence[Any]) -> bool:
    """Tell whether values are numbers, so that some are neighbours and two are ends."""
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def ends_of(searched: Mapping[str, Sequence[Any]], chosen: Mapping[str, Any]) -> list[str]:
    """Return the hyperparameters whose chosen value is the smallest or the largest of several numbers searched.

    Or beyond them, where a default is. A smallest of 0, such as the first layer, has nothing beyond it and does not
    count, and a choice that is no number, such as a layer that the method finds, lies at no end.
    """
    ranges = {name: values for name, values in searched.items() if is_ordered(values) and is_ordered([chosen[name]])}
    return [name for name, values in ranges.items() if len(set(values)) > 1 and _is_at_an_end(chosen[name], values)]


def _is_at_an_end(value: float, values: Sequence[float]) -> bool:
    return value >= max(values) or (value <= min(values) and value != 0)


def ends_chosen(tuning: Mapping[str, Any]) -> list[str]:
    """Return what `ends_of` does for `Record.tuning`; where older records name no range, it is what was tried."""
    chosen = tuning.get("chosen")
    if not chosen or "target" in tuning:  # a strength that is solved for has no range
        return []
    tried: dict[str, list[Any]] = {name: [t["hyperparameters"][name] for t in tuning["trials"]] for name in chosen}
    return ends_of(tuning.get("searched") or tried, chosen)
