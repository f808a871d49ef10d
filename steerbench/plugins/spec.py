r"""Reads specifications: `re_control:n_steps=50:step_size=0.5,alignez:identify=ccs,re_control+static_prompt`.

`,` separates methods, `+` composes, `:key=value` sets a hyperparameter of the part it follows. A value in double quotes
may hold any of these signs, and `\"`, `\\` and `\n` for a quote, a backslash and a line break. Tasks are written in the
same way, `hh_rlhf,shp:min_ratio=2`, and do not compose.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from steerbench.errors import SteerbenchError, suggest
from steerbench.plugins import registry
from steerbench.plugins.plugin import Kind
from steerbench.plugins.settings import expected, fits, option_text

UNSTEERED = "unsteered"
"""The method that does nothing, which every table holds."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A method or a task with the settings that were given, as text. Its `str` is canonical and reads back."""

    name: str
    settings: dict[str, str]

    def __str__(self) -> str:
        return ":".join([self.name, *(f"{key}={_quoted(value)}" for key, value in sorted(self.settings.items()))])


@dataclasses.dataclass(frozen=True)
class MethodSpec:
    """One entry of `--methods`: a method, or several to compose. Its `str` is canonical and reads back."""

    parts: tuple[Part, ...]

    def __str__(self) -> str:
        return "+".join(map(str, self.parts))


def parse(text: str) -> list[MethodSpec]:
    """Read a list of methods; an entry that is there twice is kept once. Raises SteerbenchError that says where."""
    return list({str(spec): spec for spec in _Reader(text, "methods").methods()}.values())


def check_names(kind: Kind, text: str, option: str = "") -> None:
    """Read a list of methods or tasks and look for each. Raises SteerbenchError; imports none of them.

    `option` is where the other kind is given.
    """
    parts = parse_tasks(text) if kind == "tasks" else [part for spec in parse(text) for part in spec.parts]
    for part in parts:
        registry.find(kind, part.name, option)


def part_labels(names: Sequence[str]) -> list[str]:
    """Return what tells the parts of a method apart: their names, as `name[0]`, `name[1]` where one is there twice."""
    return [f"{n}[{names[:i].count(n)}]" if names.count(n) > 1 else n for i, n in enumerate(names)]


def build(spec: MethodSpec) -> list[Any]:
    """Load the methods of a spec and set their hyperparameters. Raises SteerbenchError that says what is accepted."""
    return [_build("methods", part) for part in spec.parts]


def parse_tasks(text: str) -> list[Part]:
    """Read a list of tasks; an entry that is there twice is kept once. Raises SteerbenchError that says where."""
    return list({str(part): part for part in _Reader(text, "tasks").tasks()}.values())


def build_task(part: Part) -> Any:
    """Load a task and set its settings. Raises SteerbenchError that says what is accepted."""
    return _build("tasks", part)


def label_of(name: str, task: Any) -> str:
    """Return a task as text, with the settings that are not the defaults: equal tasks, equal texts."""
    return str(Part(name, {key: option_text(value) for key, value in changed_settings(task).items()}))


def changed_settings(plugin: Any) -> dict[str, Any]:
    """Return the settings that are not the defaults, as plain JSON values."""
    plain = hyperparameters(plugin)
    return {f.name: plain[f.name] for f in dataclasses.fields(plugin) if not _is_default(f, plugin)}


def part_of(steerer: Any) -> Part:
    """Return how a method is written that was made in Python: its name, and the settings that are not its defaults.

    Its class is made known as a plugin if need be.
    """
    _, name = registry.add_plugin(type(steerer))
    return Part(name, {key: option_text(value) for key, value in changed_settings(steerer).items()})


def _is_default(field: "dataclasses.Field[Any]", plugin: Any) -> bool:
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return bool(getattr(plugin, field.name) == default)


def hyperparameters(plugin: Any) -> dict[str, Any]:
    """Return all hyperparameters, or all settings of a task, as plain JSON values.

    A whole number in a field of type float becomes a float.
    """
    hints = get_type_hints(type(plugin))
    values = {f.name: _plain(getattr(plugin, f.name), hints[f.name]) for f in dataclasses.fields(plugin)}
    try:
        plain: dict[str, Any] = json.loads(json.dumps(values, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise SteerbenchError(f"{type(plugin).__name__}: a hyperparameter is no plain JSON value: {error}.") from error
    return plain


# Text -> spec

_SETTING: dict[Kind, str] = {"methods": "hyperparameter", "tasks": "setting"}

_TOKEN = re.compile(
    r"""\s* (?: (?P<sign> [,+:=] )
              | " (?P<quoted> (?: [^"\\] | \\["\\n] )* ) "
              | (?P<word> [^,+:="\s] (?: [^,+:="]* [^,+:="\s] )? )
              | (?P<end> $ ) )""",
    re.VERBOSE,
)
_BARE = re.compile(r'[^,+:="\s\\](?:[^,+:="\n\\]*[^,+:="\s\\])?')


def _quoted(value: str) -> str:
    if _BARE.fullmatch(value):
        return value
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda escape: "\n" if escape[1] == "n" else escape[1], text)


class _Token(NamedTuple):
    kind: str
    """The sign itself, or `quoted`, `word`, `end`."""
    text: str
    column: int


class _Reader:
    """Recursive descent over one text, one token ahead."""

    def __init__(self, text: str, kind: Kind) -> None:
        self._text = text
        self._kind = kind
        self._position = 0
        self._next = self._scan()

    def methods(self) -> list[MethodSpec]:
        specs = [self._method()]
        while self._skip(","):
            specs.append(self._method())
        self._end("',', '+', ':'")
        return specs

    def tasks(self) -> list[Part]:
        parts = [self._part()]
        while self._skip(","):
            parts.append(self._part())
        self._end("',', ':'")
        return parts

    def _method(self) -> MethodSpec:
        parts = [self._part()]
        while self._skip("+"):
            parts.append(self._part())
        return MethodSpec(tuple(parts))

    def _part(self) -> Part:
        setting = _SETTING[self._kind]
        part = Part(self._take("word", f"the name of a {self._kind.removesuffix('s')}"), {})
        while self._skip(":"):
            if self._next.text in part.settings:
                raise self._error(f"each {setting} once")
            key = self._take("word", f"the name of a {setting}")
            self._take("=", f"'=' after {key!r}")
            kind = "quoted" if self._next.kind == "quoted" else "word"
            part.settings[key] = self._take(kind, f"a value for {key!r}")
        return part

    def _end(self, signs: str) -> None:
        if self._next.kind != "end":
            raise self._error(f"{signs} or the end (put a value with special signs in double quotes)")

    def _skip(self, sign: str) -> bool:
        """Take a sign if it comes next, and tell whether it did."""
        if self._next.kind != sign:
            return False
        self._next = self._scan()
        return True

    def _take(self, kind: str, what: str) -> str:
        token = self._next
        if token.kind != kind:
            raise self._error(what)
        self._next = self._scan()
        return token.text

    def _scan(self) -> _Token:
        match = _TOKEN.match(self._text, self._position)
        if match is None or match.lastgroup is None:
            column = self._text.index('"', self._position) + 1
            fault = f"the quote at column {column} is not closed, or a backslash in it is not doubled"
            raise SteerbenchError(f"cannot read {self._text!r}: {fault}.")
        self._position = match.end()
        kind, text = match.lastgroup, match[match.lastgroup]
        column = match.start(match.lastgroup) + (kind != "quoted")  # from 1, and the quote itself counts
        return _Token(text if kind == "sign" else kind, _unescape(text) if kind == "quoted" else text, column)

    def _error(self, expected: str) -> SteerbenchError:
        found = "the end" if self._next.kind == "end" else repr(self._next.text)
        where = f"column {self._next.column}"
        return SteerbenchError(f"cannot read {self._text!r}: expected {expected}, found {found} at {where}.")


# Spec -> methods and tasks


def _build(kind: Kind, part: Part) -> Any:
    cls, what = registry.load(kind, part.name), kind.removesuffix("s")
    hints = get_type_hints(cls, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in part.settings:
        if key not in fields:
            raise SteerbenchError(suggest(f"{_SETTING[kind]} of {part.name!r}", key, list(fields)))
    missing = [name for name, field in fields.items() if _required(field) and name not in part.settings]
    if missing:
        raise SteerbenchError(f"{what} {part.name!r} needs a value for {missing[0]!r}: {part.name}:{missing[0]}=...")
    try:
        return cls(**{key: _value(part, key, hints[key]) for key in part.settings})
    except ValueError as error:
        raise SteerbenchError(f"{what} {part}: {error}") from error


def _required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _value(part: Part, key: str, hint: Any) -> Any:
    text = part.settings[key]
    try:
        return _convert(text, hint)
    except (ValueError, LookupError) as error:
        raise SteerbenchError(f"{part.name}:{key} must be {expected(hint)}, not {text!r}.") from error
    except TypeError as error:
        raise SteerbenchError(f"{part.name}:{key} cannot be given as text; set it in Python.") from error


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


_READERS: dict[Any, Callable[[str], Any]] = {
    int: int,
    float: _finite,
    bool: {"true": True, "false": False}.__getitem__,
    NoneType: {"none": None}.__getitem__,
    str: str,
}


def _convert(text: str, hint: Any) -> Any:
    """Read a value of a type. Raises ValueError or LookupError if the text is none, TypeError for an unknown type."""
    if get_origin(hint) is Annotated:
        value = _convert(text, get_args(hint)[0])
        if not fits(value, hint):
            raise ValueError(text)
        return value
    if get_origin(hint) is Literal:
        return {option_text(option): option for option in get_args(hint)}[text]
    if get_origin(hint) in (Union, UnionType):
        return _first(text, sorted(get_args(hint), key=lambda option: option is str))  # text last: it takes all
    if hint not in _READERS:
        raise TypeError(hint)
    return _READERS[hint](text)


def _first(text: str, hints: list[Any]) -> Any:
    for hint in hints:
        try:
            return _convert(text, hint)
        except (ValueError, LookupError):
            continue
    raise ValueError(text)


def _plain(value: Any, hint: Any) -> Any:
    """Make 1 and 1.0 one and the same hyperparameter: they make the same record."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return float(value) if type(value) is int and float in members and int not in members else value
