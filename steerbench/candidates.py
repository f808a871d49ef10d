"""A method at other values of what it searches: the points that tuning, matching and sweeps try."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from steerbench.method import Method
from steerbench.spec import MethodSpec, Part, hyperparameters


class Knob(NamedTuple):
    """A hyperparameter to search."""

    part: int
    """Index of its part in the method."""
    name: str
    values: Sequence[Any]

    @property
    def is_strength(self) -> bool:
        """Whether all its values are numbers above zero, written as fractions: what can be moved without steps."""
        return all(isinstance(v, float) and v > 0 for v in self.values)


Knobs = Mapping[str, Knob]
"""What is searched, as `field`; composed as `part.field`, or `part[1].field` where a part is there twice."""


def knobs_of(method: Method) -> Knobs:
    """Return what is left to search. Raises SteerbenchError if `search` names what is no hyperparameter."""
    return dict(_knobs(method))


def _knobs(method: Method) -> Iterator[tuple[str, Knob]]:
    for i, (label, space) in enumerate(zip(method.labels, method.spaces, strict=True)):
        prefix = f"{label}." if len(method.labels) > 1 else ""
        for field, values in space.items():
            yield prefix + field, Knob(i, field, values)


def candidate(method: Method, knobs: Knobs, point: Mapping[str, Any]) -> Method:
    """Return the method with the values of a point; its spec stays that of the user."""
    new: list[dict[str, Any]] = [{} for _ in method.steerers]
    for label, value in point.items():
        new[knobs[label].part][knobs[label].name] = value
    return method._replace(steerers=[replace(s, **values) for s, values in zip(method.steerers, new, strict=True)])


def searched(method: Method, knobs: Knobs) -> dict[str, Any]:
    """Return the values of what is searched, as the plain JSON values of a record."""
    plain = [hyperparameters(steerer) for steerer in method.steerers]
    return {label: plain[knob.part][knob.name] for label, knob in knobs.items()}


def strength_of(method: Method) -> tuple[str, Knob] | None:
    """Return what sets how strongly a method acts: the first of what it searches that is a number above zero.

    Whole numbers are none: layers and counts cannot be moved without steps. None where there is none.
    """
    return next(((label, knob) for label, knob in knobs_of(method).items() if knob.is_strength), None)


def sweep(method: Method) -> list[Method]:
    """Return the method at each strength of its search space, as if the user had given it; itself if it has none."""
    found = strength_of(method)
    if found is None:
        return [method]
    label, knob = found
    at = (candidate(method, {label: knob}, {label: value}) for value in knob.values)
    return [new._replace(spec=_given(method.spec, knob, value)) for new, value in zip(at, knob.values, strict=True)]


def _given(spec: MethodSpec, knob: Knob, value: object) -> MethodSpec:
    parts = list(spec.parts)
    part = parts[knob.part]
    parts[knob.part] = Part(part.name, {**part.settings, knob.name: str(value)})
    return MethodSpec(tuple(parts))
