"""Fit a method and write its steering for other programs, with the recipe that it was made by."""

import json
from pathlib import Path

from steerbench.bench.method import methods_of
from steerbench.bench.protocol import FitSettings
from steerbench.bench.setup import Options, Setup
from steerbench.errors import SteerbenchError, suggest
from steerbench.exchange.folded_checkpoint import write_folded
from steerbench.exchange.formats import FORMATS, check_format, write_vectors
from steerbench.files import write_whole
from steerbench.records.identity import asset
from steerbench.version import __version__

RECIPE = "recipe.json"
"""Beside what was written as a folder; a safetensors file holds it among its metadata."""


def export(
    method: str, out: Path, form: str, settings: FitSettings, options: Options = Options(), seed: int = 0
) -> None:
    """Fit one method and write its steering in a format; nothing is written over.

    Raises SteerbenchError, also where the format cannot hold the steering.
    """
    known = [*FORMATS, "folded", "steering"]
    if form not in known:
        raise SteerbenchError(suggest("format", form, known))
    check_format(form)
    methods = methods_of(method)
    if len(methods) != 1:
        raise SteerbenchError(f"{method!r} are {len(methods)} methods; export one at a time.")
    setup = Setup(settings, options)
    setup.check_settings(methods)
    fresh(out)
    steering = methods[0].fit(setup.context(seed))
    recipe = {
        "steerbench": __version__,
        "method": methods[0].parts(tuned=False),
        "model": asset(setup.lm.name, setup.lm.revision),
        "task": setup.task_name,
        "n_train": settings.n_train,
        "seed": seed,
        "steering": steering.digest(),
    }
    if form in FORMATS:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_vectors(out, form, steering, setup.lm, recipe)
        return
    if form == "folded":
        write_folded(out, steering, setup.lm)
    else:
        steering.save(out)
    write_whole(out / RECIPE, json.dumps(recipe, indent=1, sort_keys=True))


def fresh(path: Path) -> None:
    """Raise SteerbenchError if there is something already."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise SteerbenchError(f"{path} exists already; give a new name.")
