"""A method of a run: its specification, the steerers it is composed of, and what of it can be searched."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from steerbench.engine.guidance import identified
from steerbench.errors import SteerbenchError
from steerbench.files import content_hash
from steerbench.learn.context import FitContext
from steerbench.learn.fitting import MethodLike, joined, steerers_of
from steerbench.learn.steerer import Steerer
from steerbench.models.revision import is_folder
from steerbench.plugins.registry import source_hash
from steerbench.plugins.settings import largest, takes_whole_numbers
from steerbench.plugins.spec import MethodSpec, Part, build, hyperparameters, parse, part_labels, part_of
from steerbench.steering.steering import Steering


class Method(NamedTuple):
    """One entry of `--methods`, built: a steerer for each part of its specification."""

    spec: MethodSpec
    steerers: list[Steerer]

    @property
    def spaces(self) -> list[dict[str, Sequence[Any]]]:
        """The values that tuning draws from, for each part: its `search` less what was given.

        Raises SteerbenchError if `search` names what is no hyperparameter.
        """
        return [_space(part, type(s)) for part, s in zip(self.spec.parts, self.steerers, strict=True)]

    def parts(self, *, tuned: bool) -> list[dict[str, Any]]:
        """Return what identifies it: names, all hyperparameters, and the source that was run.

        Under tuning also the names of what is searched: there `caa` and `caa:strength=1` are not the same.
        """
        spaces = self.spaces if tuned else [{} for _ in self.steerers]
        return [
            {
                "name": part.name,
                "hyperparameters": _without_paths(s),
                "source": source_hash(type(s)),
                **({"models": [identified(name) for name in s.models]} if s.models else {}),
                **({"files": [content_hash(Path(file).expanduser()) for file in s.files]} if s.files else {}),
                **({"searched": sorted(space)} if space else {}),
            }
            for part, s, space in zip(self.spec.parts, self.steerers, spaces, strict=True)
        ]

    def fit(self, context: FitContext) -> Steering:
        """Fit every part by itself and join what they return; what each reports stands under its label."""
        own = dataclasses.replace(context, report={})
        steering = joined(self.steerers, self.labels, own)
        context.seeded |= own.seeded
        context.report |= {label: _plain(report, label) for label, report in own.report.items()}
        return steering

    @property
    def labels(self) -> list[str]:
        """What tells its parts apart."""
        return part_labels([part.name for part in self.spec.parts])


MethodsLike = MethodLike | Sequence[MethodLike]
"""A list such as `caa:strength=2,caa+static_prompt`, or methods made in Python."""


def methods_of(given: MethodsLike) -> list[Method]:
    """Return the methods of a list. Raises SteerbenchError for what is none."""
    if isinstance(given, str):
        return [Method(spec, build(spec)) for spec in parse(given)]
    if isinstance(given, list | tuple):
        return [method for one in given for method in methods_of(one)]
    steerers = steerers_of(given)  # type: ignore[arg-type]
    return [Method(MethodSpec(tuple(map(part_of, steerers))), steerers)]


def _space(part: Part, cls: type[Steerer]) -> dict[str, Sequence[Any]]:
    known = [field.name for field in dataclasses.fields(cls)]
    for name, values in cls.search.items():
        if name not in known or not values:
            fault = "has no values" if name in known else "is none of its hyperparameters"
            raise SteerbenchError(f"search of method {part.name!r}: {name!r} {fault}; correct it in {cls.__name__}.")
    return {name: values for name, values in cls.search.items() if name not in part.settings}


def _without_paths(steerer: Steerer) -> dict[str, Any]:
    """Return all hyperparameters; of files and models only the names, whose contents stand beside them."""
    paths = {*steerer.files, *steerer.models}
    values = hyperparameters(steerer).items()
    return {name: Path(value).name if value in paths and is_folder(value) else value for name, value in values}


def _plain(report: dict[str, Any], label: str) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(json.dumps(report, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise SteerbenchError(f"{label}: its report is not made of plain JSON values: {error}.") from error
    return plain


# What can be searched


class Knob(NamedTuple):
    """A hyperparameter to search."""

    part: int
    """Index of its part in the method."""
    name: str
    values: Sequence[Any]
    takes_whole: bool = False
    """Whether it may be a whole number: a layer or a count, of which fractions are shares."""
    most: float = inf
    """The largest number that it may be."""

    @property
    def is_strength(self) -> bool:
        """Whether all its values are numbers above zero, written as fractions: what can be moved without steps."""
        return not self.takes_whole and all(isinstance(v, float) and v > 0 for v in self.values)


Knobs = Mapping[str, Knob]
"""What is searched, as `field`; composed as `part.field`, or `part[1].field` where a part is there twice."""


def knobs_of(method: Method) -> Knobs:
    """Return what is left to search. Raises SteerbenchError if `search` names what is no hyperparameter."""
    prefixes = [f"{label}." if len(method.labels) > 1 else "" for label in method.labels]
    return {
        prefix + field: _knob(i, type(method.steerers[i]), field, values)
        for i, (prefix, space) in enumerate(zip(prefixes, method.spaces, strict=True))
        for field, values in space.items()
    }


def _knob(part: int, steerer: type[Steerer], field: str, values: Sequence[Any]) -> Knob:
    return Knob(part, field, values, takes_whole_numbers(steerer, field), largest(steerer, field))


def at_point(method: Method, knobs: Knobs, point: Mapping[str, Any]) -> Method:
    """Return the method with the values of a point; its spec stays that of the user."""
    new: list[dict[str, Any]] = [{} for _ in method.steerers]
    for label, value in point.items():
        new[knobs[label].part][knobs[label].name] = value
    return method._replace(
        steerers=[dataclasses.replace(s, **values) for s, values in zip(method.steerers, new, strict=True)]
    )


def searched(method: Method, knobs: Knobs) -> dict[str, Any]:
    """Return the values of what is searched, as the plain JSON values of a record."""
    plain = [hyperparameters(steerer) for steerer in method.steerers]
    return {label: plain[knob.part][knob.name] for label, knob in knobs.items()}


def strength_of(method: Method) -> tuple[str, Knob] | None:
    """Return what sets how strongly a method acts: the first of what a part searches that is a number above zero.

    None where no part has one that is left to set. Whole numbers are none, nor what may be one: layers and counts
    cannot be moved without steps.
    """
    for label, knob in knobs_of(method).items():
        steerer = type(method.steerers[knob.part])
        if steerer.graded and knob.name == _first_fraction(steerer):
            return label, knob
    return None


def _first_fraction(steerer: type[Steerer]) -> str | None:
    knobs = (_knob(0, steerer, field, values) for field, values in steerer.search.items())
    return next((knob.name for knob in knobs if knob.is_strength), None)


def sweep(method: Method) -> list[Method]:
    """Return the method at each strength of its search space, as if the user had given it; itself if it has none."""
    found = strength_of(method)
    if found is None:
        return [method]
    label, knob = found
    at = (at_point(method, {label: knob}, {label: value}) for value in knob.values)
    return [new._replace(spec=_given(method.spec, knob, value)) for new, value in zip(at, knob.values, strict=True)]


def spread_over(methods: str, given: Sequence[str]) -> str:
    """Return a list of methods with each at every value of some settings, given as `layer=0,2,4`.

    A method that lacks a setting, or sets it already, stays as it is. Raises SteerbenchError if no method has it.
    """
    specs = [method.spec for method in methods_of(methods)]
    seen: set[str] = set()
    for text in given:
        name, _, values = text.partition("=")
        name, chosen = name.strip(), [value.strip() for value in values.split(",") if value.strip()]
        if not name or not chosen:
            raise SteerbenchError(f"--over {text!r} must be a setting and its values, such as layer=0,2,4.")
        if name in seen:
            raise SteerbenchError(f"--over goes over {name!r} twice; give all of its values at once.")
        seen.add(name)
        dials = [_unset(spec, name) for spec in specs]
        if not any(dials):
            raise SteerbenchError(f"no method of {methods!r} has a setting {name!r} to go over; see `steerbench list`.")
        specs = [
            each
            for spec, dial in zip(specs, dials, strict=True)
            for each in ([_given(spec, dial, value) for value in chosen] if dial else [spec])
        ]
    return ",".join(map(str, specs))


def _unset(spec: MethodSpec, name: str) -> Knob | None:
    """Return the first part's setting of that name which the user left open."""
    for i, steerer in enumerate(build(spec)):
        if name in {field.name for field in dataclasses.fields(steerer)} and name not in spec.parts[i].settings:
            return Knob(i, name, ())
    return None


def dial_of(method: Method) -> Knob | None:
    """Return what a user turns: the hyperparameter `strength` of the first part that has one, or what tuning moves.

    None where there is neither.
    """
    for i, steerer in enumerate(method.steerers):
        if any(field.name == "strength" for field in dataclasses.fields(steerer)):
            return Knob(i, "strength", ())
    found = strength_of(method)
    return found and found[1]


def at_strengths(method: Method, strengths: Sequence[float]) -> list[Method]:
    """Return the method at each strength, as if the user had given it; itself if it has none to set."""
    dial = dial_of(method)
    if dial is None:
        return [method]
    if dial.name in method.spec.parts[dial.part].settings:
        raise SteerbenchError(f"{method.spec} sets {dial.name} already; leave it out there, or drop --strength.")
    specs = [_given(method.spec, dial, repr(float(value)).removesuffix(".0")) for value in strengths]
    return [Method(spec, build(spec)) for spec in specs]


def _given(spec: MethodSpec, knob: Knob, value: object) -> MethodSpec:
    parts = list(spec.parts)
    part = parts[knob.part]
    parts[knob.part] = Part(part.name, {**part.settings, knob.name: str(value)})
    return MethodSpec(tuple(parts))
