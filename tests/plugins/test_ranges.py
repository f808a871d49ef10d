"""The ranges that settings declare: what they hold, how they are said, and that every method and task keeps them."""

import math
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest

from steerbench import FitContext, Protocol, SteerbenchError, Steerer, Steering, fit, load, run
from steerbench.contract import tiny
from steerbench.learn import Count, Heads, Layer, NotNegative, Positive, Range, Share, Whole
from steerbench.models.shape import shape, shape_of
from steerbench.plugins import registry
from steerbench.plugins.plugin import KINDS
from steerbench.plugins.settings import expected, fits
from steerbench.plugins.spec import Part, build_task, parse, parse_tasks
from steerbench.plugins.spec import build as build_methods

MODEL = {"last_layer": 3, "n_heads": 8, "width": 16}
PLUGINS = [(kind, name) for kind in KINDS for name in registry.names(kind)]


@pytest.mark.parametrize(
    ("hint", "inside", "outside", "words"),
    [
        (Whole, [0, 7], [-1, 1.0, True, 10**400], "a whole number of 0 or more"),
        (Count, [1, 7], [0, -3], "a whole number of 1 or more"),
        (Positive, [1e-9, 3], [0, -1, math.nan, math.inf], "a finite number above 0"),
        (NotNegative, [0, 2.5], [-1e-9, math.nan, 10**400], "a finite number of 0 or more"),
        (Share, [0, 1, 0.5], [-0.1, 1.1], "a finite number from 0 to 1"),
        (Annotated[int, Range(1, 64)], [1, 64], [0, 65], "a whole number from 1 to 64"),
        (Annotated[float, Range(0, below=1)], [0, 0.99], [1, -0.1], "a finite number from 0 to below 1"),
        (Annotated[float, Range(above=0, most=1)], [0.1, 1], [0, 1.1], "a finite number above 0 and up to 1"),
        (Annotated[float, Range(most=2)], [-9, 2], [2.1], "a finite number of 2 or less"),
        (Annotated[float, Range(below=2)], [-9, 1.9], [2], "a finite number below 2"),
        (
            Layer,
            [0, 99, 0.0, 0.99],
            [-1, 1.0, -0.1],
            "a whole number of 0 or more, or a finite number from 0 to below 1",
        ),
        (Heads, [1, 9, 0.5], [0, 1.0, 0.0], "a whole number of 1 or more, or a finite number above 0 and below 1"),
        (Annotated[int | None, Range(1)], [None, 1], [0, -1], "a whole number or none of 1 or more"),
        (Count | None, [None, 1], [0, "none"], "a whole number of 1 or more, or none"),
    ],
)
def test_a_range_holds_what_it_says(hint: Any, inside: list[Any], outside: list[Any], words: str) -> None:
    assert expected(hint) == words
    assert [value for value in inside if not fits(value, hint)] == []
    assert [value for value in outside if fits(value, hint)] == []


def test_a_range_may_end_with_a_number_of_the_model() -> None:
    assert fits(3, Layer, MODEL)
    assert not fits(4, Layer, MODEL)
    assert fits(8, Heads, MODEL)
    assert not fits(9, Heads, MODEL)
    assert expected(Heads, MODEL) == "a whole number from 1 to 8, or a finite number above 0 and below 1"
    assert fits(9, Heads, {"last_layer": 3}), "a model that does not say how many"


def options(hint: Any) -> list[Any]:
    return [o for one in get_args(hint) for o in options(one)] if get_origin(hint) in (Union, UnionType) else [hint]


def beyond(hint: Any) -> list[str]:
    """Return texts of numbers just outside of the ranges of a hint."""
    texts = []
    for kind, bounds in (get_args(option) for option in options(hint) if get_origin(option) is Annotated):
        step = 1 if kind is int else 1e-6
        low = bounds.least - step if bounds.least > -math.inf else bounds.above
        high = bounds.most + step if isinstance(bounds.most, int | float) else math.inf
        ends = [low, high if high < math.inf else bounds.below]
        texts += [str(kind(end)) for end in ends if math.isfinite(end) and not fits(kind(end), hint)]
    return texts


@pytest.mark.parametrize(("kind", "name"), PLUGINS, ids=[name for _, name in PLUGINS])
def test_every_number_beyond_a_range_is_refused_by_its_name(kind: Any, name: str) -> None:
    cls = registry.load(kind, name)
    hints = get_type_hints(cls, include_extras=True)
    needed = {f.name: "x" for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
    for field in fields(cls):
        for text in beyond(hints[field.name]):
            spec = str(Part(name, needed | {field.name: text}))
            with pytest.raises(SteerbenchError) as told:
                build_task(parse_tasks(spec)[0]) if kind == "tasks" else build_methods(parse(spec)[0])
            assert str(told.value) == f"{name}:{field.name} must be {expected(hints[field.name])}, not {text!r}."


@pytest.mark.parametrize("name", registry.names("methods"))
def test_what_is_searched_or_switches_off_is_in_range(name: str) -> None:
    cls: type[Any] = load("methods", name)
    hints = get_type_hints(cls, include_extras=True)
    tried = [(field, value) for field, values in cls.search.items() for value in values] + list(cls.off.items())
    assert [(field, value) for field, value in tried if not fits(value, hints[field])] == []


def test_counts_and_rates_have_a_range() -> None:
    """What is an `int`, a rate of learning or a size cannot be any number: who adds one says which."""
    bare = [
        f"{name}:{field.name}"
        for kind, name in PLUGINS
        for field in fields(registry.load(kind, name))
        for option in options(get_type_hints(registry.load(kind, name), include_extras=True)[field.name])
        if option is int or (option is float and field.name in ("lr", "td_lambda", "layer"))
    ]
    assert bare == []


@dataclass(frozen=True, kw_only=True)
class Wide(Steerer):
    """A method of somebody else's."""

    off = {"rank": 0}  # noqa: RUF012

    rank: Annotated[int, Range(0, "width")] = 2

    def fit(self, context: FitContext) -> Steering:
        return Steering()


def test_a_method_of_ones_own_has_the_same() -> None:
    with pytest.raises(SteerbenchError, match=r"^Wide: rank must be a whole number of 0 or more, not -1\.$"):
        Wide(rank=-1)
    lm = tiny.language_model()
    with pytest.raises(SteerbenchError, match=rf"^Wide:rank must be .* from 0 to {tiny.WIDTH}, not 99 on {lm.name}\.$"):
        fit(Wide(rank=99), lm, [("Why?", "Good.", "Bad.")])


def test_the_model_is_asked_before_data_and_rewards(tmp_path: Path) -> None:
    lm = tiny.language_model()
    lm.model.save_pretrained(tmp_path)
    assert shape_of(str(tmp_path)) == shape(lm.model.config)
    assert shape(lm.model.config)["last_layer"] == lm.n_layers - 1
    nothing = Protocol(model=str(tmp_path), reward_model="no/reward", data=tmp_path / "nowhere.jsonl")
    with pytest.raises(SteerbenchError, match=rf"^caa:layer must be .*, not {lm.n_layers} on {tmp_path.name}\.$"):
        run(nothing, f"caa:layer={lm.n_layers}")
    with pytest.raises(SteerbenchError, match=r"^no data at "):
        run(nothing, f"caa:layer={lm.n_layers - 1}")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_configuration_says_what_the_model_has(family: str) -> None:
    lm = tiny.language_model(family)
    heads = sum(lm.anatomy.n_heads(layer) for layer in range(lm.n_layers))
    assert shape(lm.model.config) == {"last_layer": lm.n_layers - 1, "n_heads": heads, "width": tiny.WIDTH}
