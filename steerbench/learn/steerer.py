"""The interface of a steering method."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, overload

from steerbench.data.task import Task
from steerbench.decoding import ENGINES
from steerbench.learn.context import FitContext
from steerbench.plugins import registry
from steerbench.plugins.plugin import Kind, Plugin
from steerbench.steering.steering import Steering


@dataclass(frozen=True, kw_only=True)
class Steerer(Plugin):
    """A steering method. Fields are its hyperparameters with the paper's defaults; construction holds no logic."""

    kind: ClassVar[Kind] = "methods"
    """What it is in `steerbench list`."""
    off: ClassVar[Mapping[str, Any]]
    """Hyperparameter values at which the method does nothing, for example `{"strength": 0.0}`."""
    search: ClassVar[Mapping[str, Sequence[Any]]] = {}
    """Values worth trying, by hyperparameter: what tuning draws from."""
    graded: ClassVar[bool] = True
    """Whether the first fraction of `search` is a strength: near zero the method does nothing, more of it changes more,
    and the KL tells. It is what `--match-kl` and `--sweep` move."""
    engines: ClassVar[Sequence[str]] = ENGINES
    """Engines that can carry its steering, as far as that is known before `fit`: what it returns is looked at again."""

    @property
    def models(self) -> Sequence[str]:
        """Language models that the parts of its steering name, `org/name@revision` or a folder.

        Their revisions are in what identifies a record, which must be known before `fit`.
        """
        return ()

    @property
    def files(self) -> Sequence[str]:
        """Files and folders that `fit` reads. Their contents are in what identifies a record."""
        return ()

    @abstractmethod
    def fit(self, context: FitContext) -> Steering:
        """Learn from the train split and return what is needed at generation time. Changes nothing it is given."""

    def __add__(self, other: "Steerer | Composition") -> "Composition":
        """Compose two methods, as `+` does in a specification: each is fitted by itself."""
        return Composition((self,)) + other


@dataclass(frozen=True)
class Composition:
    """Several methods to be fitted each by itself and applied together."""

    steerers: tuple[Steerer, ...]

    def __add__(self, other: "Steerer | Composition") -> "Composition":
        if not isinstance(other, Steerer | Composition):
            return NotImplemented
        return Composition(self.steerers + (other.steerers if isinstance(other, Composition) else (other,)))


@overload
def load(kind: Literal["methods"], name: str) -> type[Steerer]: ...
@overload
def load(kind: Literal["tasks"], name: str) -> type[Task]: ...
def load(kind: Kind, name: str) -> type[Any]:
    """Import a method or a task and return its class. Raises SteerbenchError that says what to mend."""
    return registry.load(kind, name)
