"""What methods and tasks have in common: both are found by name, and their fields are their settings."""

from typing import ClassVar, Literal, get_args

from steerbench.plugins.settings import Checked

Kind = Literal["methods", "tasks"]
KINDS: tuple[Kind, ...] = get_args(Kind)
BASES: dict[Kind, str] = {"methods": "Steerer", "tasks": "Task"}
"""Name of the class that a plugin of each kind subclasses."""


class Plugin(metaclass=Checked):
    """A method or a task: one class in a file of its own, a frozen dataclass whose fields are its settings."""

    kind: ClassVar[Kind]
