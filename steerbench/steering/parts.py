"""The parts that a steering is made of: prompts, edits, logits, and the choice among candidates."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from steerbench.data.dialogue import Dialogue
from steerbench.errors import SteerbenchError, suggest
from steerbench.models.sites import Site
from steerbench.steering.blocks import Blocks, Candidate

if TYPE_CHECKING:
    from transformers import LogitsProcessor

    from steerbench.models.language_model import LanguageModel
    from steerbench.models.response import Response
    from steerbench.models.reward import Reward
    from steerbench.steering.decoding_context import DecodingContext


Scope = Literal["all", "prompt", "response"]
"""Which positions an edit touches.

- `all`: every position of prompt and response
- `prompt`: the positions of the prompt
- `response`: the last position of the prompt, which the first token is drawn from, and everything generated
"""


GatePool = Literal["last_prompt", "prompt_mean"]
"""Which positions of a prompt a gate reads.

- `last_prompt`: the last one, which the first token is drawn from
- `prompt_mean`: the mean over all of them
"""


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

    def __init_subclass__(cls) -> None:
        """Let a class with a `forward` of its own inherit no constant: it would be added in place of that `forward`."""
        super().__init_subclass__()
        if "forward" in vars(cls) and "constant" not in vars(cls):
            cls.constant = Edit.constant  # type: ignore[method-assign]

    start_reads_states: ClassVar[bool] = True
    """Whether `start` looks at the activations, and not just at the mask: engines without them can carry what does not.
    """

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

    def constant(self) -> Tensor | None:
        """Return the vector that the edit adds to every activation, (width,), float32, whatever the activation is.

        None, if it is no such edit. A constant takes no time: it is added once for all, or becomes a bias of the model.
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
    """How many of the contest act on a prompt."""

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


class GuidingPart(Part):
    """A part that guides decoding, with other models if it likes, with the reward, and with passes of its own."""

    @property
    def models(self) -> Mapping[str, str]:
        """Language models that it needs, by the role they play: `org/name@revision`, or a folder.

        The engine loads each once per process and hands it over in the context. A method whose parts name models
        lists them in `Steerer.models`, so that their revisions identify its records.
        """
        return {}

    asks_reward: bool = False
    """Whether the guide is asked about each token, or each choice: for the least that it costs."""


class LogitsPart(GuidingPart):
    """A factory of transformers logits processors. A subclass has one of the two functions.

    A processor sees the ids so far and gives the same for the same ids: a given response is scored with it as well.
    """

    def processor(self, lm: "LanguageModel", prompt_ids: Tensor, mask: Tensor) -> "LogitsProcessor":
        """Return the processor of one batch; `prompt_ids` and `mask` are (batch, positions), left padded."""
        raise NotImplementedError(f"{type(self).__name__} has neither `processor` nor `processor_in`")

    def processor_in(self, context: "DecodingContext") -> "LogitsProcessor":
        """Return the processor of one batch, of which it is given more: other models, the reward, the dialogues."""
        return self.processor(context.lm, context.prompt_ids, context.mask)


class DecodePart(GuidingPart):
    """How many candidates are drawn for a prompt, in which blocks, and which of them go on.

    A subclass has one of the three functions `choose`, `choose_in` and `select`.
    """

    candidates: int
    """How many candidates are drawn for each prompt, and again from what is kept of them at the end of a block."""

    @property
    def redraws(self) -> bool:
        """Whether `select` may refuse all candidates, which are drawn again then."""
        return False

    @property
    def blocks(self) -> Blocks:
        """Where a block ends. By default there is one, which is the whole response."""
        return Blocks()

    @property
    def site(self) -> Site | None:
        """Where the states of candidates are read, under the edits; None: nowhere."""
        return None

    @property
    def sequence_kl(self) -> float | None:
        """KL(chosen || drawn) of a whole response in nats, or an upper bound of it; None where it is not known."""
        return None

    def choice_kl(self, draws: Sequence[int]) -> float | None:
        """Return the KL(chosen || drawn) of one response, in nats; None where it is not known.

        `draws` says among how many candidates, drawn alike, each choice was made, one after another. By default the
        `sequence_kl`, if there is a choice.
        """
        return self.sequence_kl if any(n > 1 for n in draws) else 0.0

    asks_reward = True

    kl_is: Literal["bound", "estimate"] = "bound"
    """What `choice_kl` returns: an upper bound, or an estimate."""

    def choose(self, dialogue: Dialogue, candidates: Sequence[str], reward: "Reward") -> int:
        """Return the index of the response to keep."""
        raise NotImplementedError(f"{type(self).__name__} has neither `choose` nor `choose_in` nor `select`")

    def choose_in(self, context: "DecodingContext", candidates: Sequence["Response"]) -> int:
        """Return the index of the response to keep; the context is that of the one prompt."""
        return self.choose(context.dialogues[0], [c.text for c in candidates], context.reward)

    def select(self, context: "DecodingContext", rows: Sequence[Sequence[Candidate]]) -> Sequence[Sequence[int]]:
        """Return, for each prompt of the context, which of its candidates go on, one for each that is drawn next.

        A candidate that is named several times is continued in several ways. None of them: all are drawn again. Where
        all that are named are finished, the first of them is the response. By default, `choose_in` says which one is
        continued, in as many ways as there are candidates.
        """
        chosen = [self.choose_in(context.row(i), [c.response for c in candidates]) for i, candidates in enumerate(rows)]
        return [[i] * self.candidates for i in chosen]


class Gate(nn.Module, Part, ABC):
    """Decides for each prompt, before anything is generated, whether an edit acts on its row.

    What it decides by is the query: a state of the unsteered model at a site of its own, whatever site the edit is at.
    The decision holds for the whole generation. Any edit can have one: see `PlacedEdit`.
    """

    site: str
    """Where the query is read, as `str(site)` writes it. An argument of a subclass's constructor, as the next one."""
    pool: GatePool
    """Which positions of the prompt the query is."""

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def opens(self, query: Tensor) -> Tensor:
        """Return in which rows the edit is to act, (rows,), bool; `query` is (rows, width), float32."""


@dataclass(frozen=True)
class PlacedEdit:
    """An edit with its site and its scope, and the gate that it may have."""

    site: Site
    """Where it acts."""
    edit: Edit
    """What it does there."""
    scope: Scope = "response"
    """At which positions."""
    gate: Gate | None = None
    """On which prompts; None: on all."""

    def __post_init__(self) -> None:
        if self.scope not in get_args(Scope):
            raise SteerbenchError(suggest("scope", self.scope, list(get_args(Scope))))
