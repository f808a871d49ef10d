"""The settings of methods and tasks: their fields, checked against what they are declared to be."""

import dataclasses
import json
import math
from abc import ABCMeta
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from steerbench.errors import WrongArgument, suggest
from steerbench.plugins.ranges import UNKNOWN, Range, Shape

_EXPECTED = {int: "a whole number", float: "a finite number", bool: "true or false", NoneType: "none", str: "text"}


class Checked(ABCMeta):
    """Checks names, types and ranges of the fields of a dataclass whenever an object is made, also by `replace`."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make an object. Raises WrongArgument, which is a SteerbenchError and a TypeError, naming the field."""
        fields = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
        if unknown := next((name for name in kwargs if name not in fields), None):
            raise WrongArgument(suggest(f"hyperparameter of {cls.__name__}", unknown, fields))
        made = super().__call__(*args, **kwargs)
        check_values(made, f"{cls.__name__}: ")
        return made


def check_values(made: Any, where: str, shape: Shape = UNKNOWN, model: str = "") -> None:
    """Check the settings of a method or a task, and those ranges that end with a number of a model by its shape.

    Raises WrongArgument: `where`, the setting, what it takes and what it is.
    """
    hints = _hints(type(made))
    for field in (f.name for f in dataclasses.fields(made) if f.init and f.name in hints):
        hint, value = hints[field], getattr(made, field)
        if not fits(value, hint, shape):
            near = get_close_matches(str(value), [o for o in get_args(hint) if isinstance(o, str)], n=1)
            advice = f" Did you mean {near[0]!r}?" if near else ""
            on = f" on {model}" if model else ""
            raise WrongArgument(f"{where}{field} must be {expected(hint, shape)}, not {value!r}{on}.{advice}")


def _hints(cls: type[Any]) -> dict[str, Any]:
    try:
        return get_type_hints(cls, include_extras=True)
    except NameError:  # a name that only type checkers import
        return {}


def fits(value: Any, hint: Any, shape: Shape = UNKNOWN) -> bool:
    """Tell whether a value is what a field is declared to be. A whole number will do for a float, and what is not
    finite for none; what is in a list, and hints of other kinds, are not looked into.
    """
    if get_origin(hint) is Annotated:
        kind, *notes = get_args(hint)
        ranges = [note for note in notes if isinstance(note, Range) and isinstance(value, int | float)]
        return fits(value, kind, shape) and all(one.holds(value, shape) for one in ranges)
    if get_origin(hint) is Literal:
        return any(type(option) is type(value) and option == value for option in get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        return any(fits(value, option, shape) for option in get_args(hint))
    if hint is Any:
        return True
    if hint in (int, float):
        number = isinstance(value, int | float if hint is float else int) and not isinstance(value, bool)
        return number and _is_finite(value)
    kind = get_origin(hint) or hint
    return not isinstance(kind, type) or isinstance(value, kind)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number above all that a float can be
        return False


def takes_whole_numbers(cls: type[Any], name: str) -> bool:
    """Tell whether a field is declared to take `int`: a layer or a count, and not a strength."""
    hint = _hints(cls).get(name)
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return any(int in (option, *get_args(option)[:1]) for option in options)


def largest(cls: type[Any], name: str) -> float:
    """Return the largest number that a field takes, by its `Range`; infinity where that names none."""
    hint = _hints(cls).get(name)
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    notes = [note for option in options if get_origin(option) is Annotated for note in get_args(option)[1:]]
    ranges = [note for note in notes if isinstance(note, Range)]
    ends = [one.most for one in ranges if not isinstance(one.most, str)]
    return min(
        [*ends, *(math.nextafter(one.below, -math.inf) for one in ranges if one.below < math.inf)], default=math.inf
    )


def expected(hint: Any, shape: Shape = UNKNOWN) -> str:
    """Return in words what a field takes, on a model of this shape."""
    if get_origin(hint) is Annotated:
        kind, *notes = get_args(hint)
        return " ".join([expected(kind), *(note.text(shape) for note in notes if isinstance(note, Range))])
    if get_origin(hint) is Literal:
        return " or ".join(map(option_text, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        options = [expected(option, shape) for option in get_args(hint)]
        ranged = any(get_origin(option) is Annotated for option in get_args(hint))
        return (", or " if ranged else " or ").join(options)
    return _EXPECTED[hint] if hint in _EXPECTED else str(getattr(hint, "__name__", hint))


def option_text(option: object) -> str:
    """Return a value as it is written in a specification."""
    return option if isinstance(option, str) else "none" if option is None else json.dumps(option, default=str)
