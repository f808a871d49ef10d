"""A method of a run: its specification and the steerers it is composed of."""

import dataclasses
import json
from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any, NamedTuple

from steerbench.errors import SteerbenchError
from steerbench.registry import source_hash
from steerbench.spec import MethodSpec, Part, hyperparameters
from steerbench.steerer import FitContext, Steerer
from steerbench.steering import Steering


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
                "hyperparameters": hyperparameters(s),
                "source": source_hash(type(s)),
                **({"searched": sorted(space)} if space else {}),
            }
            for part, s, space in zip(self.spec.parts, self.steerers, spaces, strict=True)
        ]

    def fit(self, context: FitContext) -> Steering:
        """Fit every part by itself and join what they return; what each reports stands under its label."""
        fitted = []
        for label, steerer in zip(self.labels, self.steerers, strict=True):
            own = dataclasses.replace(context, report={})
            fitted.append(_checked(steerer.fit(own), steerer))
            if own.report:
                context.report[label] = _plain(own.report, label)
        return reduce(add, fitted)

    @property
    def labels(self) -> list[str]:
        """The names of the parts, as `part[1]` where one is there twice."""
        names = [part.name for part in self.spec.parts]
        return [f"{n}[{names[:i].count(n)}]" if names.count(n) > 1 else n for i, n in enumerate(names)]


def _space(part: Part, cls: type[Steerer]) -> dict[str, Sequence[Any]]:
    known = [field.name for field in dataclasses.fields(cls)]
    for name, values in cls.search.items():
        if name not in known or not values:
            fault = "has no values" if name in known else "is none of its hyperparameters"
            raise SteerbenchError(f"search of method {part.name!r}: {name!r} {fault}; correct it in {cls.__name__}.")
    return {name: values for name, values in cls.search.items() if name not in part.settings}


def _plain(report: dict[str, Any], label: str) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(json.dumps(report, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise SteerbenchError(f"{label}: its report is not made of plain JSON values: {error}.") from error
    return plain


def _checked(steering: object, steerer: Steerer) -> Steering:
    if not isinstance(steering, Steering):
        raise SteerbenchError(f"fit of {type(steerer).__name__} returned {steering!r}; it must return a Steering.")
    return steering
