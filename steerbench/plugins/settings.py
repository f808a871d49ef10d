"""The settings of methods and tasks: their fields, checked against what they are declared to be."""

import dataclasses
import json
from abc import ABCMeta
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from steerbench.errors import WrongArgument, suggest

_EXPECTED = {int: "a whole number", float: "a finite number", bool: "true or false", NoneType: "none", str: "text"}


class Checked(ABCMeta):
    """Checks names and types of the fields of a dataclass whenever an object is made, also by `dataclasses.replace`."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make an object. Raises WrongArgument, which is a SteerbenchError and a TypeError, naming the field."""
        fields = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
        if unknown := next((name for name in kwargs if name not in fields), None):
            raise WrongArgument(suggest(f"hyperparameter of {cls.__name__}", unknown, fields))
        made = super().__call__(*args, **kwargs)
        hints = _hints(cls)
        for name in (name for name in fields if name in hints):
            if not fits(value := getattr(made, name), hints[name]):
                near = get_close_matches(str(value), [o for o in get_args(hints[name]) if isinstance(o, str)], n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise WrongArgument(f"{cls.__name__}: {name} must be {expected(hints[name])}, not {value!r}.{hint}")
        return made


def _hints(cls: type[Any]) -> dict[str, Any]:
    try:
        return get_type_hints(cls)
    except NameError:  # a name that only type checkers import
        return {}


def fits(value: Any, hint: Any) -> bool:
    """Tell whether a value is what a field is declared to be. A whole number will do for a float; what is in a list,
    and hints of other kinds, are not looked into.
    """
    if get_origin(hint) is Literal:
        return any(type(option) is type(value) and option == value for option in get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        return any(fits(value, option) for option in get_args(hint))
    if hint is Any:
        return True
    if hint in (int, float):
        return isinstance(value, int | float if hint is float else int) and not isinstance(value, bool)
    kind = get_origin(hint) or hint
    return not isinstance(kind, type) or isinstance(value, kind)


def takes_whole_numbers(cls: type[Any], name: str) -> bool:
    """Tell whether a field is declared to take `int`: a layer or a count, and not a strength."""
    hint = _hints(cls).get(name)
    return int in (hint, *get_args(hint))


def expected(hint: Any) -> str:
    """Return in words what a field takes."""
    if get_origin(hint) is Literal:
        return " or ".join(map(option_text, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(expected, get_args(hint)))
    return _EXPECTED[hint] if hint in _EXPECTED else str(getattr(hint, "__name__", hint))


def option_text(option: object) -> str:
    """Return a value as it is written in a specification."""
    return option if isinstance(option, str) else "none" if option is None else json.dumps(option, default=str)
