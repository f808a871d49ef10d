"""Fit a method outside of a benchmark, on a model and examples of one's own."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import reduce
from operator import add
from typing import Any

import torch

from steerbench.data.dialogue import Dialogue, dialogues_of
from steerbench.data.task import Example
from steerbench.errors import SteerbenchError
from steerbench.learn.context import FitContext
from steerbench.learn.steerer import Composition, Steerer
from steerbench.models.language_model import LanguageModel
from steerbench.models.reward import Reward, RewardModel
from steerbench.models.shape import shape
from steerbench.plugins.settings import check_values
from steerbench.plugins.spec import build, parse
from steerbench.progress import Progress, silent
from steerbench.steering.parts import Edit, Part
from steerbench.steering.steering import Steering

MethodLike = str | Steerer | type[Steerer] | Composition
"""A specification such as `caa:layer=13+static_prompt`, a method, its class, or several composed with `+`."""
Triple = tuple[str | Dialogue, str, str]
"""A prompt with the preferred and the other reply."""


def fit(
    method: MethodLike,
    lm: LanguageModel | str,
    examples: Sequence[Example | Triple],
    reward: Reward | str | None = None,
    seed: int = 0,
) -> Steering:
    """Fit a method to a model and return its steering.

    `method` is a specification such as `"caa:layer=13"` or `"caa+static_prompt"`, a method such as `CAA(layer=13)`, its
    class, or `CAA() + ITI()`. `lm` and `reward` may be names: a folder, or `org/name@revision` of the Hub. Examples are
    `Example`s or (prompt, preferred reply, other reply). Raises SteerbenchError where a method needs what is not there.
    """
    steerers = steerers_of(method)
    given = [_example(e, i) for i, e in enumerate(examples)]
    lm = LanguageModel.load(lm) if isinstance(lm, str) else lm
    if not isinstance(lm, LanguageModel):
        raise SteerbenchError(
            f"fit needs a LanguageModel or the name of one, not a {type(lm).__name__}; "
            f"wrap a model of yours: LanguageModel(model, tokenizer)."
        )
    guide = NoReward() if reward is None else RewardModel.load(reward) if isinstance(reward, str) else reward
    context = FitContext(lm=lm, examples=given, reward=guide, seed=seed)
    return joined(steerers, [type(s).__name__ for s in steerers], context)


class NoReward(Reward):
    """Stands in where no reward was given, and says so when it is asked."""

    name, revision = "none", "none"

    def check(self) -> None:
        """Raise SteerbenchError: there is none."""
        raise SteerbenchError(
            "this method learns from a reward; give one with --reward-model. In Python: fit(..., reward='org/name')."
        )

    def score(
        self, dialogues: Sequence[Dialogue], responses: Sequence[str], progress: Progress = silent
    ) -> torch.Tensor:
        """Raise like `check`."""
        self.check()
        return torch.zeros(0)


def steerers_of(method: MethodLike) -> list[Steerer]:
    """Return the parts of a method, ready to be fitted. Raises SteerbenchError for what is none."""
    if isinstance(method, str):
        specs = parse(method)
        if len(specs) > 1:
            raise SteerbenchError(f"{method!r} are {len(specs)} methods; fit one at a time, or compose them with '+'.")
        return build(specs[0])
    if isinstance(method, Composition):
        return list(method.steerers)
    if isinstance(method, type) and issubclass(method, Steerer):
        return [method()]
    if isinstance(method, Steerer):
        return [method]
    raise SteerbenchError(
        f"{method!r} is no method; give a specification such as 'caa:layer=13', a Steerer, or its class."
    )


class _Noting(FitContext):
    """What one part learns from, which notes whether the part asked for the seed."""

    asked = False

    @property
    def seed(self) -> int:
        self.asked = True
        return self._seed

    @seed.setter
    def seed(self, value: int) -> None:
        self._seed = value


_Noting.__name__ = FitContext.__name__  # by which the errors of an author's mistakes name it


def joined(steerers: Sequence[Steerer], labels: Sequence[str], context: FitContext) -> Steering:
    """Fit every part by itself and join what they return; what each reports stands under its label, as it is."""
    known = shape(context.lm.model.config)
    for label, steerer in zip(labels, steerers, strict=True):
        check_values(steerer, f"{label}:", known, context.lm.name)
    fitted = []
    for label, steerer in zip(labels, steerers, strict=True):
        own = _Noting(**{f.name: getattr(context, f.name) for f in fields(context)} | {"report": {}})
        steering = steerer.fit(own)
        context.seeded |= own.asked
        if not isinstance(steering, Steering):
            raise SteerbenchError(f"fit of {type(steerer).__name__} returned {steering!r}; it must return a Steering.")
        if unlisted := set(steering.models) - set(steerer.models):
            raise SteerbenchError(
                f"a part of {type(steerer).__name__} names the model {min(unlisted)!r}, which its `models` does not "
                f"list; list it there, so that the model's revision identifies the record."
            )
        _check_numbers(type(steerer).__name__, steering)
        fitted.append(steering)
        if own.report:
            context.report[label] = own.report
    return reduce(add, fitted)


def _check_numbers(method: str, steering: Steering) -> None:
    """Raise SteerbenchError for NaN in a part, and for infinity in an edit: a logits part may forbid tokens with it."""
    places: list[tuple[Part, str]] = [(placed.edit, f" at {placed.site}") for placed in steering.edits]
    places += [(part, "") for part in (*steering.prompt, *steering.logits, steering.decode) if part is not None]
    for part, where in places:
        for name, tensor in _tensors(part):
            nan = bool(tensor.isnan().any())
            if nan or (isinstance(part, Edit) and bool(tensor.isinf().any())):
                raise SteerbenchError(
                    f"fit of {method} returned {'NaN' if nan else 'infinity'} in {type(part).__name__}.{name}{where}; "
                    f"look for a division by zero, as where all rewards are equal."
                )


def _tensors(part: Part) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor that a part keeps, with its name."""
    kept = part.state_dict() if isinstance(part, Edit) else {}
    for name, value in {**vars(part), **kept}.items():
        several = isinstance(value, list | tuple)
        for i, tensor in enumerate(value if several else [value]):
            if isinstance(tensor, torch.Tensor):
                yield f"{name}[{i}]" if several else name, tensor


def _example(given: Any, index: int) -> Example:
    """Return an example; one that came as three texts is a group of its own."""
    if isinstance(given, Example):
        return given
    if not isinstance(given, tuple | list) or len(given) != 3 or not all(isinstance(reply, str) for reply in given[1:]):
        raise SteerbenchError(
            f"example {index} is {given!r}; give an Example, or (prompt, preferred reply, other reply) as texts."
        )
    prompt, chosen, rejected = given
    return Example(str(index), str(index), dialogues_of([prompt])[0], chosen, rejected)
