"""Records told to an experiment tracker: a run each, with its settings as configuration and its means as metrics."""

import importlib
import math
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, Final

from steerbench.errors import SteerbenchError, suggest
from steerbench.records.record import Record

PROJECT: Final = "steerbench"
"""Under which name the runs are found, unless another is given."""


def teller(tracker: str, project: str = PROJECT) -> Callable[[Record], None]:
    """Return what tells a tracker of a record: `trackio`, `wandb` (Weights & Biases) or `mlflow`, as it is set up here.

    A tracker that fails is told of in a warning and then left alone: the records lie in their folder all the same.
    Raises SteerbenchError for an unknown tracker, or one whose package is not installed.
    """
    if tracker not in _TELL:
        raise SteerbenchError(suggest("tracker", tracker, list(_TELL)))
    if not find_spec(tracker):
        raise SteerbenchError(
            f"--log {tracker} needs the package {tracker}, which is not installed: pip install 'steerbench[{tracker}]'."
        )
    broken = False

    def tell(record: Record) -> None:
        nonlocal broken
        if broken:
            return
        try:
            _TELL[tracker](importlib.import_module(tracker), project, record)
        except Exception as error:  # whatever it is: no record is lost by it
            broken = True
            warnings.warn(
                f"{tracker} could not be told ({type(error).__name__}: {error}) and is asked no more; "
                "the records are written all the same.",
                stacklevel=2,
            )

    return tell


def settings_of(record: Record) -> dict[str, Any]:
    """Return what a record was measured with: method, seed, labels, the settings of each part, and its identity."""
    parts = {f"{part['name']}.{key}": value for part in record.parts for key, value in _settings(part).items()}
    own = {"method": record.method, "seed": record.seed, "steerbench": record.steerbench, "identity": record.identity}
    return {**own, **record.labels, **parts}


def numbers_of(record: Record) -> dict[str, float]:
    """Return the means of a record that are numbers, and how long its steps took, as `seconds/fit`."""
    seconds = {f"seconds/{name}": value for name, value in record.seconds.items()}
    return {name: float(value) for name, value in {**record.metrics, **seconds}.items() if _is_number(value)}


def _settings(part: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = part.get("hyperparameters", {})
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _as_wandb(module: Any, project: str, record: Record) -> None:
    """Tell Weights & Biases, or trackio, which has the same three calls."""
    module.init(project=project, name=record.folder_name, config=settings_of(record))
    try:
        module.log(numbers_of(record))
    finally:
        module.finish()


def _as_mlflow(module: Any, project: str, record: Record) -> None:
    module.set_experiment(project)
    with module.start_run(run_name=record.folder_name):
        module.log_params(settings_of(record))
        module.log_metrics(numbers_of(record))


_TELL: Final[Mapping[str, Callable[[Any, str, Record], None]]] = {
    "trackio": _as_wandb,
    "wandb": _as_wandb,
    "mlflow": _as_mlflow,
}
