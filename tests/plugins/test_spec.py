"""The language of `--methods`: reading, writing, and setting hyperparameters."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pytest

from steerbench.data.task import Task
from steerbench.errors import SteerbenchError
from steerbench.learn.context import FitContext
from steerbench.learn.steerer import Steerer
from steerbench.plugins import registry
from steerbench.plugins.spec import (
    MethodSpec,
    Part,
    build,
    build_task,
    changed_settings,
    hyperparameters,
    label_of,
    parse,
    parse_tasks,
    part_labels,
)
from steerbench.steering.steering import Steering


@dataclass(frozen=True, kw_only=True)
class Sample(Steerer):
    """One hyperparameter of each kind."""

    off: ClassVar[Mapping[str, Any]] = {}
    count: int = 3
    rate: float = 0.5
    flag: bool = False
    text: str = "hello"
    mode: Literal["ccs", "iti", 3, True, None] = "ccs"
    layer: int | None = None
    strength: float | Literal["auto"] = "auto"
    label: str | int = "x"
    layers: tuple[int, ...] = (1, 2)
    either: int | float = 1

    def fit(self, context: FitContext) -> Steering:
        return Steering()


@dataclass(frozen=True, kw_only=True)
class Strict(Steerer):
    """A hyperparameter that must be given, and one that is checked."""

    off: ClassVar[Mapping[str, Any]] = {}
    path: str
    steps: int = 1
    weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("steps must be at least 1")

    def fit(self, context: FitContext) -> Steering:
        return Steering()


@pytest.fixture(autouse=True)
def classes(monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[str, type[Steerer]] = {"sample": Sample, "strict": Strict}
    monkeypatch.setattr(registry, "load", lambda kind, name: known[name])


def one(text: str) -> Any:
    (spec,) = parse(text)
    (steerer,) = build(spec)
    return steerer


def refusal(text: str) -> str:
    with pytest.raises(SteerbenchError) as error:
        one(text)
    return str(error.value)


# Reading and writing


def test_the_example_of_the_design() -> None:
    text = "re_control:n_steps=50:step_size=0.5,alignez:identify=ccs,re_control+static_prompt"
    specs = parse(text)
    assert specs == [
        MethodSpec((Part("re_control", {"n_steps": "50", "step_size": "0.5"}),)),
        MethodSpec((Part("alignez", {"identify": "ccs"}),)),
        MethodSpec((Part("re_control", {}), Part("static_prompt", {}))),
    ]
    assert ",".join(map(str, specs)) == text


def test_settings_belong_to_the_part_they_follow() -> None:
    (spec,) = parse("a:x=1+b:y=2:z=3+c")
    assert [part.settings for part in spec.parts] == [{"x": "1"}, {"y": "2", "z": "3"}, {}]


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("a:y=2:x=1", "a:x=1:y=2"),
        (" a , b : x = 1 + c ", "a,b:x=1+c"),
        ("a,b,a", "a,b"),
        ("a:x=1:y=2,a:y=2:x=1", "a:x=1:y=2"),
        ("b+a,a+b", "b+a,a+b"),
        ('a:x="1"', "a:x=1"),
        ("a:x=-1e-3", "a:x=-1e-3"),
        ("a:x=Be nice, b", "a:x=Be nice,b"),
        ("a:x=C\\dir", r'a:x="C\\dir"'),
    ],
)
def test_canonical_text(text: str, canonical: str) -> None:
    assert ",".join(map(str, parse(text))) == canonical


@pytest.mark.parametrize(
    "value",
    [
        *("", " ", " x ", "a  b", "tab\t", "two\nlines", "\r\n", "-1", "none", "naïve 漢字", "x" * 5000),
        *("Be nice, please: now", 'say "hi"', "a=b+c", "back\\slash", "\\", '\\"', "\\n"),
    ],
)
def test_every_text_round_trips_as_a_value(value: str) -> None:
    spec = MethodSpec((Part("a", {"x": value, "y": "1"}), Part("b", {"z": value})))
    assert parse(f"{spec},c") == [spec, *parse("c")]
    assert [str(again) for again in parse(str(spec))] == [str(spec)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected the name of a method, found the end at column 1"),
        ("a,", "expected the name of a method, found the end at column 3"),
        ("a,,b", "expected the name of a method, found ',' at column 3"),
        ("a++b", "expected the name of a method, found '+' at column 3"),
        ('"a"', "expected the name of a method, found 'a' at column 1"),
        ("a:", "expected the name of a hyperparameter, found the end at column 3"),
        ("a:x", "expected '=' after 'x', found the end at column 4"),
        ("a:x,b", "expected '=' after 'x', found ',' at column 4"),
        ("a:x=", "expected a value for 'x', found the end at column 5"),
        ("a:x==1", "expected a value for 'x', found '=' at column 5"),
        ("a:x=1=2", "found '=' at column 6"),
        ("a=1", "expected ',', '+', ':' or the end"),
        ('a:x=say "hi"', "found 'hi' at column 9"),
        ('a:x="hi" there', "found 'there' at column 10"),
        ('a:x="hi', "the quote at column 5 is not closed"),
        (r'a:x="\d"', "a backslash in it is not doubled"),
        ("a:x=1:x=2", "expected each hyperparameter once, found 'x' at column 7"),
    ],
)
def test_mistakes_are_located(text: str, expected: str) -> None:
    with pytest.raises(SteerbenchError) as error:
        parse(text)
    assert str(error.value).startswith(f"cannot read {text!r}: ")
    assert expected in str(error.value)


# Setting hyperparameters


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("count=50", 50),
        ("count=-2", -2),
        ("rate=1", 1.0),
        ("rate=1e-3", 0.001),
        ("flag=true", True),
        ("flag=false", False),
        ('text="Be nice, please: now"', "Be nice, please: now"),
        ("text=none", "none"),
        ("text=true", "true"),
        ("mode=iti", "iti"),
        ("mode=3", 3),
        ("mode=true", True),
        ("mode=none", None),
        ("layer=4", 4),
        ("layer=none", None),
        ("strength=auto", "auto"),
        ("strength=2", 2.0),
        ("label=5", 5),
        ("label=five", "five"),
    ],
)
def test_text_becomes_the_type_of_the_field(setting: str, value: object) -> None:
    found = getattr(one(f"sample:{setting}"), setting.partition("=")[0])
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("count=1.5", "sample:count must be a whole number, not '1.5'."),
        ("count=true", "sample:count must be a whole number, not 'true'."),
        ("rate=fast", "sample:rate must be a finite number, not 'fast'."),
        ("rate=nan", "sample:rate must be a finite number, not 'nan'."),
        ("rate=-inf", "sample:rate must be a finite number, not '-inf'."),
        ("rate=1e999", "sample:rate must be a finite number, not '1e999'."),
        ("flag=1", "sample:flag must be true or false, not '1'."),
        ("flag=True", "sample:flag must be true or false, not 'True'."),
        ("mode=cca", "sample:mode must be ccs or iti or 3 or true or none, not 'cca'."),
        ("layer=last", "sample:layer must be a whole number or none, not 'last'."),
        ("strength=nan", "sample:strength must be a finite number or auto, not 'nan'."),
        ("layers=1", "sample:layers cannot be given as text; set it in Python."),
        ("off=1", "unknown hyperparameter of 'sample' 'off'."),
        ("cuont=1", "unknown hyperparameter of 'sample' 'cuont'. Did you mean 'count'? Known: count, either, flag, "),
        ("text=__import__('os')", ""),
    ],
)
def test_a_wrong_value_says_what_is_accepted(setting: str, expected: str) -> None:
    if expected:
        assert refusal(f"sample:{setting}").startswith(expected)
    else:
        assert one(f"sample:{setting}").text == "__import__('os')"


def test_a_required_hyperparameter_is_asked_for() -> None:
    assert refusal("strict") == "method 'strict' needs a value for 'path': strict:path=..."
    assert one("strict:path=p").path == "p"


def test_a_check_of_the_method_names_the_method() -> None:
    assert refusal("strict:path=p:steps=0") == "method strict:path=p:steps=0: steps must be at least 1"


def test_a_composition_builds_every_part_in_order() -> None:
    (spec,) = parse("strict:path=p+sample:count=1")
    assert [type(steerer) for steerer in build(spec)] == [Strict, Sample]


# Hyperparameters of a record


def test_hyperparameters_are_plain_json_and_complete() -> None:
    values = hyperparameters(Sample(rate=2, strength=1))
    assert json.dumps(values) == json.dumps(
        {
            "count": 3,
            "rate": 2.0,
            "flag": False,
            "text": "hello",
            "mode": "ccs",
            "layer": None,
            "strength": 1.0,
            "label": "x",
            "layers": [1, 2],
            "either": 1,
        }
    )


def test_equal_hyperparameters_give_equal_records() -> None:
    values = hyperparameters(Sample(rate=2, strength=1))
    assert repr(values) == repr(hyperparameters(one("sample:rate=2:strength=1.0")))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(value: Any) -> None:
    with pytest.raises(SteerbenchError, match=rf"^Sample: rate must be a finite number, not {value}\.$"):
        Sample(rate=value)


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(SteerbenchError, match=r"^Strict: a hyperparameter is no plain JSON value"):
        hyperparameters(Strict(path="p", weights={"a": math.nan}))


# Tasks


@dataclass(frozen=True, kw_only=True)
class Posts(Task):
    """A task with settings."""

    ratio: float = 1.0
    only: str | None = None

    def parse(self, row: Mapping[str, Any]) -> Any:
        raise NotImplementedError


@pytest.fixture
def posts(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {("tasks", "posts"): Posts}
    monkeypatch.setattr(registry, "load", lambda kind, name: known[kind, name])


def test_tasks_are_written_as_methods_are() -> None:
    text = 'posts:only="a, b":ratio=2,other'
    parts = parse_tasks(text)
    assert parts == [Part("posts", {"ratio": "2", "only": "a, b"}), Part("other", {})]
    assert ",".join(map(str, parts)) == text
    assert parse_tasks("posts:ratio=2, posts : ratio = 2") == [Part("posts", {"ratio": "2"})]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected the name of a task, found the end at column 1"),
        ("a,", "expected the name of a task, found the end at column 3"),
        ("a+b", "expected ',', ':' or the end"),
        ("a:", "expected the name of a setting, found the end at column 3"),
        ("a:x=1:x=2", "expected each setting once, found 'x' at column 7"),
    ],
)
def test_mistakes_in_tasks_are_located(text: str, expected: str) -> None:
    with pytest.raises(SteerbenchError) as error:
        parse_tasks(text)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("posts:ratoi=2", "unknown setting of 'posts' 'ratoi'. Did you mean 'ratio'? Known: only, ratio."),
        ("posts:ratio=much", "posts:ratio must be a finite number, not 'much'."),
    ],
)
def test_a_wrong_setting_of_a_task_says_what_is_accepted(posts: None, text: str, expected: str) -> None:
    with pytest.raises(SteerbenchError) as error:
        build_task(parse_tasks(text)[0])
    assert str(error.value) == expected


@pytest.mark.parametrize(
    ("text", "changed", "label"),
    [
        ("posts", {}, "posts"),
        ("posts:ratio=1:only=none", {}, "posts"),
        ("posts:ratio=2", {"ratio": 2.0}, "posts:ratio=2.0"),
        ("posts:ratio=2.0:only=x", {"ratio": 2.0, "only": "x"}, "posts:only=x:ratio=2.0"),
    ],
)
def test_equal_tasks_have_one_label(posts: None, text: str, changed: dict[str, Any], label: str) -> None:
    task = build_task(parse_tasks(text)[0])
    assert changed_settings(task) == changed
    assert label_of("posts", task) == label


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["caa"], ["caa"]),
        (["caa", "static_prompt"], ["caa", "static_prompt"]),
        (["caa", "static_prompt", "caa"], ["caa[0]", "static_prompt", "caa[1]"]),
    ],
)
def test_parts_of_one_name_are_counted(names: list[str], labels: list[str]) -> None:
    assert part_labels(names) == labels


@pytest.mark.parametrize("value", [{1, 2}, b"x"])
def test_what_no_hyperparameter_is_made_of_is_refused_at_once(value: Any) -> None:
    with pytest.raises(SteerbenchError, match=r"^Sample: rate must be a finite number"):
        Sample(rate=value)
