"""What `fit` returns: a frozen description of everything needed at generation time, and nothing else."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from steerbench.data.dialogue import Dialogue
from steerbench.errors import SteerbenchError
from steerbench.files import write_whole
from steerbench.models.sites import Site
from steerbench.steering.parts import DecodePart, Edit, Gate, LogitsPart, Part, PlacedEdit, PromptPart
from steerbench.steering.saving import SCHEMA_VERSION, pack, unpack


@dataclass(frozen=True)
class Steering:
    """What to do at generation time. `a + b` joins two steerings: prompts, edits and logits of `a` come first."""

    prompt: tuple[PromptPart, ...] = ()
    """Rewrite the dialogue, in order."""
    edits: tuple[PlacedEdit, ...] = ()
    """Change activations; at one site, in order."""
    logits: tuple[LogitsPart, ...] = ()
    """Change the scores of the next token, in order."""
    decode: DecodePart | None = None
    """Chooses among several responses."""

    JSON: ClassVar[str] = "steering.json"
    """Name of the file of what is no tensor."""
    TENSORS: ClassVar[str] = "steering.safetensors"
    """Name of the file of tensors."""

    def __add__(self, other: "Steering") -> "Steering":
        if self.decode and other.decode:
            raise SteerbenchError("two methods that each choose among candidates cannot be composed; keep one of them.")
        return Steering(
            self.prompt + other.prompt,
            self.edits + other.edits,
            self.logits + other.logits,
            self.decode or other.decode,
        )

    @property
    def models(self) -> list[str]:
        """Names of the other models that its parts need, each once."""
        guiding = [*self.logits, *([self.decode] if self.decode else [])]
        return sorted({name for part in guiding for name in part.models.values()})

    def apply_prompt(self, dialogue: Dialogue) -> Dialogue:
        """Return the dialogue after every prompt part, in order. Raises SteerbenchError for one that asks the model."""
        for part in self.prompt:
            dialogue = part(dialogue)
        return dialogue

    def digest(self) -> str:
        """Return a hash of everything that `save` writes."""
        text, tensors = self._pack()
        return hashlib.sha256(text.encode() + save(tensors)).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write `steering.json` and `steering.safetensors` into a folder, which is made if need be."""
        text, tensors, folder = *self._pack(), Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / self.TENSORS, save(tensors))
        write_whole(folder / self.JSON, text)

    @classmethod
    def load(cls, folder: str | Path) -> "Steering":
        """Read what `save` wrote. Runs constructors of known parts only: files are data, never code."""
        folder = Path(folder)
        try:
            record = json.loads((folder / cls.JSON).read_text(encoding="utf-8"))
            tensors = load_file(folder / cls.TENSORS)
            schema = record["schema_version"]
        except (OSError, ValueError, TypeError, KeyError, SafetensorError, RecursionError) as error:
            raise SteerbenchError(
                f"{folder} holds no saved steering that can be read ({error!r}); give a folder that "
                "`steerbench export` or `Steering.save` wrote."
            ) from error
        if schema != SCHEMA_VERSION:
            raise SteerbenchError(f"{folder} has schema {schema}, not {SCHEMA_VERSION}; fit it again.")
        try:
            return cls._unpack(record, tensors)
        except SteerbenchError as error:
            raise SteerbenchError(f"{folder} holds a damaged or foreign steering: {error}") from error
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise SteerbenchError(f"{folder} holds a damaged steering: {error!r}; fit it again.") from error

    def _pack(self) -> tuple[str, dict[str, Tensor]]:
        tensors: dict[str, Tensor] = {}
        record = {
            "schema_version": SCHEMA_VERSION,
            "prompt": [pack(part, f"prompt.{i}", tensors) for i, part in enumerate(self.prompt)],
            "edits": [_pack_edit(p, f"edits.{i}", tensors) for i, p in enumerate(self.edits)],
            "logits": [pack(part, f"logits.{i}", tensors) for i, part in enumerate(self.logits)],
            "decode": self.decode and pack(self.decode, "decode", tensors),
        }
        return json.dumps(record, indent=1, sort_keys=True), tensors

    @classmethod
    def _unpack(cls, record: dict[str, Any], tensors: dict[str, Tensor]) -> "Steering":
        def parts(key: str, kind: type[Part]) -> tuple[Any, ...]:
            return tuple(unpack(saved, f"{key}.{i}", tensors, kind) for i, saved in enumerate(record[key]))

        edits = tuple(_unpack_edit(saved, f"edits.{i}", tensors) for i, saved in enumerate(record["edits"]))
        decode = record["decode"] and unpack(record["decode"], "decode", tensors, DecodePart)
        steering = cls(parts("prompt", PromptPart), edits, parts("logits", LogitsPart), decode)
        if tensors:
            raise SteerbenchError(f"no part has the tensor {min(tensors)!r}.")
        return steering


def _pack_edit(placed: PlacedEdit, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the record of an edit; one without a gate has no such entry, as in files from before there were gates."""
    edit = {"site": str(placed.site), "scope": placed.scope, "edit": pack(placed.edit, prefix, tensors)}
    if placed.gate is None:
        return edit
    return {**edit, "gate": pack(placed.gate, f"gates.{prefix}", tensors)}


def _unpack_edit(saved: dict[str, Any], prefix: str, tensors: dict[str, Tensor]) -> PlacedEdit:
    gate = unpack(saved["gate"], f"gates.{prefix}", tensors, Gate) if "gate" in saved else None
    return PlacedEdit(Site.parse(saved["site"]), unpack(saved["edit"], prefix, tensors, Edit), saved["scope"], gate)
