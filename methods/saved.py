"""A steering that was made before: exported from here, or a vector of another library.

`file` is what `steerbench export` or `steerbench import` wrote, or a file of vectors as it came: a GGUF control vector
of llama.cpp and repeng, vectors by layer in safetensors, a file of lm-evaluation-harness' steered models.

    h <- h + strength * v        at the output of each block that the file has a vector for, at every position

A folder of `export --format steering` holds any steering, and runs as it is; `strength` multiplies its additions.

Differences from other programs: the sum is made in float32 and added once; repeng's `normalize` is not there.

Defaults: strength 1, the vector as it is in the file. Cost: no fit. A vector at every position is one addition per
token and block.

Pitfalls: a vector belongs to one model. One of another model of the same width is added without complaint, and is noise
there. Nothing says what it was fitted on: keep its training data away from the test prompts.

Learns from: nothing. Touches: activations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from steerbench import FitContext, SteerbenchError, Steerer, Steering
from steerbench.edits import Add, PlacedEdit
from steerbench.exchange.formats import read_steering


@dataclass(frozen=True, kw_only=True)
class Saved(Steerer):
    """What a file holds, added again.

    - `file`: a folder with a steering, or a file of vectors
    - `strength`: multiplies what is added
    """

    off: ClassVar[Mapping[str, Any]] = {"strength": 0.0}
    search: ClassVar[Mapping[str, Sequence[Any]]] = {"strength": (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)}

    file: str = ""
    strength: float = 1.0

    @property
    def files(self) -> Sequence[str]:
        """What identifies its records: the content of the file."""
        return [self.file] if self.file else []

    def fit(self, context: FitContext) -> Steering:
        """Read it."""
        if not self.file:
            raise SteerbenchError("saved needs a file; give one with saved:file=vectors.gguf.")
        steering = read_steering(Path(self.file).expanduser())
        return replace(steering, edits=tuple(self._scaled(placed) for placed in steering.edits))

    def _scaled(self, placed: PlacedEdit) -> PlacedEdit:
        edit = placed.edit
        if type(edit) is Add:
            return replace(placed, edit=Add(edit.vector, edit.strength * self.strength))
        if self.strength != 1:
            raise SteerbenchError(f"{type(edit).__name__} at {placed.site} has no strength to multiply; leave it at 1.")
        return placed
