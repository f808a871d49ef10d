"""What `fit` returns: a frozen description of everything needed at generation time, and nothing else."""

import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from steerbench import registry
from steerbench.dialogue import Dialogue
from steerbench.errors import SteerbenchError, suggest
from steerbench.sites import Site

if TYPE_CHECKING:
    from transformers import LogitsProcessor

    from steerbench.lm import LanguageModel
    from steerbench.reward import Reward

Scope = Literal["all", "prompt", "response"]
SCHEMA_VERSION = 1


class Part:
    """A piece of a steering. Its constructor's arguments are its whole state.

    Each argument is a plain JSON value, a tensor or a list of tensors, and is readable under its own name. That is
    what is saved, hashed and handed to the constructor again.
    """


class PromptPart(Part, ABC):
    """dialogue -> dialogue."""

    @abstractmethod
    def __call__(self, dialogue: Dialogue) -> Dialogue:
        """Return the dialogue that the model is to see."""


class PerPosition(NamedTuple):
    """State of an edit that differs between the positions of the prompt."""

    values: Tensor
    """(batch, prompt positions, width of its own)."""

    def columns(self, start: int, stop: int) -> Tensor:
        """Return the values of some columns of the batch, (batch, columns, width): zeros behind the prompt."""
        inside = self.values[:, start:stop]
        return nn.functional.pad(inside, (0, 0, 0, stop - start - inside.shape[1]))


class Edit(nn.Module, Part, ABC):
    """An operator h -> h' at a site. Tensors are kept as buffers; the engine casts and places them.

    The engine hands over whole batches, in float32, and discards what falls outside the scope. So an edit must treat
    each position by itself, and it must not write into `h`.
    """

    def __init__(self) -> None:  # that of nn.Module takes *args, which would count as state
        super().__init__()

    def start(self, prompt: Tensor, mask: Tensor) -> Any:
        """Return the state of one generation, computed afresh at each prefill and kept per row.

        `prompt` (batch, positions, width) holds the activations of the prompt at this site, after the edits that come
        before this one, and `mask` (batch, positions) says which are real. At `final` only the last prompt
        position is there.

        A state of the type `PerPosition` holds one vector for each of these positions. Of it `forward` gets a tensor
        with the vectors of just the positions in `h`, (batch, positions of `h`, width): zeros for padding and for
        positions behind the prompt.
        """
        return None

    @abstractmethod
    def forward(self, h: Tensor, state: Any) -> Tensor:
        """Return the edited activations; `h` is (batch, positions, width), `state` what `start` returned."""


class RankedEdit(Edit, ABC):
    """An edit that competes with others for each prompt: of those of one contest, the `keep` with the best score act.

    What they compete by is the query: the state of the unsteered model at the edit's site and the last prompt position.
    Both fields are arguments of a subclass's constructor.
    """

    contest: str
    """Name of the contest. Of edits of equal score the one that a steering lists first is ahead."""
    keep: int

    @abstractmethod
    def score(self, query: Tensor) -> Tensor:
        """Return the score of each row, (rows,); `query` is (rows, width), float32. The highest scores win."""

    @abstractmethod
    def begin(self, query: Tensor, chosen: Tensor) -> Any:
        """Return the state of one generation; `chosen` (rows,) says in which rows the edit is to act."""

    def start(self, prompt: Tensor, mask: Tensor) -> Any:
        """Begin without a contest: chosen in every row. The engine holds the contest and calls `begin` itself."""
        last = (mask.long() * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
        rows = torch.arange(len(mask), device=mask.device)
        return self.begin(prompt[rows, last].float(), torch.ones_like(rows, dtype=torch.bool))


class LogitsPart(Part, ABC):
    """A factory of transformers logits processors."""

    @abstractmethod
    def processor(self, lm: "LanguageModel", prompt_ids: Tensor, mask: Tensor) -> "LogitsProcessor":
        """Return the processor of one batch; `prompt_ids` and `mask` are (batch, positions), left padded."""


class DecodePart(Part, ABC):
    """How many candidates are drawn for a prompt, and which is taken."""

    candidates: int

    @property
    def sequence_kl(self) -> float | None:
        """KL(chosen || drawn) of a whole response in nats, or an upper bound of it; None where it is not known."""
        return None

    @abstractmethod
    def choose(self, dialogue: Dialogue, candidates: Sequence[str], reward: "Reward") -> int:
        """Return the index of the response to keep."""


@dataclass(frozen=True)
class PlacedEdit:
    """An edit with its site and its scope."""

    site: Site
    edit: Edit
    scope: Scope = "response"

    def __post_init__(self) -> None:
        if self.scope not in get_args(Scope):
            raise SteerbenchError(suggest("scope", self.scope, list(get_args(Scope))))


@dataclass(frozen=True)
class Steering:
    """What to do at generation time. `a + b` joins two steerings: prompts, edits and logits of `a` come first."""

    prompt: tuple[PromptPart, ...] = ()
    edits: tuple[PlacedEdit, ...] = ()
    logits: tuple[LogitsPart, ...] = ()
    decode: DecodePart | None = None

    JSON: ClassVar[str] = "steering.json"
    TENSORS: ClassVar[str] = "steering.safetensors"

    def __add__(self, other: "Steering") -> "Steering":
        if self.decode and other.decode:
            raise SteerbenchError("two methods that each choose among candidates cannot be composed; keep one of them.")
        return Steering(
            self.prompt + other.prompt,
            self.edits + other.edits,
            self.logits + other.logits,
            self.decode or other.decode,
        )

    def apply_prompt(self, dialogue: Dialogue) -> Dialogue:
        """Return the dialogue after every prompt part, in order."""
        for part in self.prompt:
            dialogue = part(dialogue)
        return dialogue

    def digest(self) -> str:
        """Return a hash of everything that `save` writes."""
        text, tensors = self._pack()
        return hashlib.sha256(text.encode() + save(tensors)).hexdigest()

    def save(self, folder: Path) -> None:
        """Write `steering.json` and `steering.safetensors` into a folder, which is made if need be."""
        text, tensors = self._pack()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / self.TENSORS).write_bytes(save(tensors))
        (folder / self.JSON).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Steering":
        """Read what `save` wrote. Runs constructors of known parts only: files are data, never code."""
        try:
            record = json.loads((folder / cls.JSON).read_text(encoding="utf-8"))
            tensors = load_file(folder / cls.TENSORS)
            schema = record["schema_version"]
        except (OSError, ValueError, TypeError, KeyError, SafetensorError, RecursionError) as error:
            raise SteerbenchError(f"{folder} holds no saved steering: {error!r}") from error
        if schema != SCHEMA_VERSION:
            raise SteerbenchError(f"{folder} has schema {schema}, not {SCHEMA_VERSION}; fit it again.")
        try:
            return cls._unpack(record, tensors)
        except SteerbenchError:
            raise
        except Exception as error:  # constructors fail in many ways at arguments that they never gave
            raise SteerbenchError(f"{folder} does not fit the classes it names: {error!r}. Fit it again.") from error

    def _pack(self) -> tuple[str, dict[str, Tensor]]:
        tensors: dict[str, Tensor] = {}
        record = {
            "schema_version": SCHEMA_VERSION,
            "prompt": [_pack(part, f"prompt.{i}", tensors) for i, part in enumerate(self.prompt)],
            "edits": [
                {"site": str(p.site), "scope": p.scope, "edit": _pack(p.edit, f"edits.{i}", tensors)}
                for i, p in enumerate(self.edits)
            ],
            "logits": [_pack(part, f"logits.{i}", tensors) for i, part in enumerate(self.logits)],
            "decode": self.decode and _pack(self.decode, "decode", tensors),
        }
        return json.dumps(record, indent=1, sort_keys=True), tensors

    @classmethod
    def _unpack(cls, record: dict[str, Any], tensors: dict[str, Tensor]) -> "Steering":
        def parts(key: str, kind: type[Part]) -> tuple[Any, ...]:
            return tuple(_unpack(saved, f"{key}.{i}", tensors, kind) for i, saved in enumerate(record[key]))

        edits = tuple(
            PlacedEdit(Site.parse(p["site"]), _unpack(p["edit"], f"edits.{i}", tensors, Edit), p["scope"])
            for i, p in enumerate(record["edits"])
        )
        decode = record["decode"] and _unpack(record["decode"], "decode", tensors, DecodePart)
        return cls(parts("prompt", PromptPart), edits, parts("logits", LogitsPart), decode)


def _pack(part: Part, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Split a part into a JSON record and named tensors."""
    values: dict[str, Any] = {}
    for name in list(inspect.signature(type(part)).parameters):
        value = getattr(part, name)
        if isinstance(value, Tensor):
            tensors[f"{prefix}.{name}"] = _own(value)
        elif _is_tensors(value):
            tensors |= {f"{prefix}.{name}.{i}": _own(t) for i, t in enumerate(value)}
        else:
            values[name] = value
    return {"class": registry.qualified(type(part)), "values": values}


def _unpack(saved: dict[str, Any], prefix: str, tensors: dict[str, Tensor], kind: type[Part]) -> Any:
    cls = registry.resolve(saved["class"])
    if not issubclass(cls, kind):
        raise SteerbenchError(f"{saved['class']} is no {kind.__name__}.")
    values = dict(saved["values"])
    lists: dict[str, list[Tensor]] = {}
    for key in (k for k in tensors if k.startswith(prefix + ".")):
        name, _, index = key.removeprefix(prefix + ".").partition(".")
        if index:
            lists.setdefault(name, []).append(tensors[f"{prefix}.{name}.{len(lists.get(name, []))}"])
        else:
            values[name] = tensors[key]
    return cls(**values, **lists)


def _own(tensor: Tensor) -> Tensor:
    """Return a copy: safetensors refuses tensors that share memory, as rows of a matrix do, and parts used twice."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _is_tensors(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(v, torch.Tensor) for v in value)
