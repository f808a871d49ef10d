"""Steer a model around any code of the user's: its own `generate` calls and its plain forward passes.

No prompt is known beforehand. A pass without a past begins anew, and what its mask says is real is the prompt; a pass
with a cache continues. Inside of `model.generate`, a pass without a cache continues, too, if its texts are those of the
pass before and one token more.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from steerbench.engine.forward_passes import given_cache
from steerbench.engine.hooks import hook
from steerbench.engine.install import Editor
from steerbench.engine.positions import Positions
from steerbench.engine.ranked import decided
from steerbench.errors import SteerbenchError
from steerbench.models.language_model import Batch, LanguageModel
from steerbench.models.self_check import check_in_memory, check_unhashed
from steerbench.models.sites import Anatomy, Place
from steerbench.steering.parts import Edit, PlacedEdit
from steerbench.steering.steering import Steering

_REFUSED: dict[str, tuple[Any, str]] = {
    "num_beams": (1, "beam search moves rows while it generates; leave num_beams at 1"),
    "assistant_model": (None, "assisted decoding takes tokens back; leave assistant_model out"),
    "prompt_lookup_num_tokens": (None, "assisted decoding takes tokens back; leave prompt_lookup_num_tokens out"),
    "assistant_early_exit": (None, "assisted decoding takes tokens back; leave assistant_early_exit out"),
    "use_mtp": (False, "multi-token prediction takes tokens back; leave use_mtp out"),
    "guidance_scale": (1, "guidance runs the model on other prompts in between; leave guidance_scale out"),
    "custom_generate": (None, "the order of its passes is not known; leave custom_generate out"),
    "inputs_embeds": (None, "its positions are told from input_ids; give those instead of inputs_embeds"),
    "token_healing": (False, "it changes the prompt; leave token_healing out"),
}
"""Arguments of `model.generate` that cannot be steered right: the value that is harmless, and why and what to do."""


@contextmanager
def steered(model: PreTrainedModel | LanguageModel, steering: Steering) -> Iterator[None]:
    """Steer a model inside the context, whatever runs it: `model.generate(...)` or plain forward passes.

    `model` is a decoder-only transformers model, or a LanguageModel, whose `.model` is steered. In `generate`, the
    tokens behind the prompt are the response, and a row that has ended is edited no more. In forward passes of your
    own, one without a past is a prompt, and what follows with its cache is the response. On exit the model is as it
    was, bit for bit.

    Raises SteerbenchError for a steering that is not made of edits alone, and where a site is not there; a pass raises
    it where nobody can say which positions it holds.
    """
    _refuse_other_parts(steering)
    plain = model.model if isinstance(model, LanguageModel) else model
    if not isinstance(plain, PreTrainedModel):
        raise SteerbenchError(f"steered takes a transformers model or a LanguageModel, not a {type(model).__name__}.")
    check_in_memory(plain, type(plain).__name__)
    check_unhashed(plain, type(plain).__name__)
    anatomy = model.anatomy if isinstance(model, LanguageModel) else Anatomy(plain)
    end_ids = model.end_ids if isinstance(model, LanguageModel) else _ids(plain.generation_config.eos_token_id)
    if not steering.edits:
        yield
        return
    session = _Session(plain, anatomy, steering.edits, end_ids)
    with ExitStack() as stack:
        session.install(stack)
        yield


def _refuse_other_parts(steering: Steering) -> None:
    if not isinstance(steering, Steering):
        raise SteerbenchError(f"steered takes the Steering that fit returned, not a {type(steering).__name__}.")
    parts = {"prompt": steering.prompt, "logits": steering.logits, "decode": steering.decode}
    if given := [name for name, part in parts.items() if part]:
        raise SteerbenchError(
            f"this steering has a {given[0]} part, which cannot be applied around code of yours; "
            f"use steerbench.generate(lm, prompts, steering)."
        )


class _Session:
    """Follows the passes of a model, and gives each place the editor of the prompts that are under way."""

    def __init__(
        self, model: PreTrainedModel, anatomy: Anatomy, edits: Sequence[PlacedEdit], end_ids: Sequence[int]
    ) -> None:
        self._model, self._anatomy, self._edits, self._end_ids = model, anatomy, edits, end_ids
        self._places = [anatomy.place(p.site) for p in edits]
        self._positions: Positions | None = None
        self._seen: list[Tensor] = []
        """The ids of the prompts under way, pass by pass."""
        self._editors: dict[Place, Editor] = {}
        self._aside = False
        """Whether the model runs unsteered now, to hold a contest."""
        self._call: _Call | None = None
        """The call of `model.generate` that is under way."""

    def install(self, stack: ExitStack) -> None:
        """Put hooks into the model, and a `generate` before its own; the stack takes them out again."""
        stack.callback(self._model.register_forward_pre_hook(self._note, with_kwargs=True).remove)
        for place in dict.fromkeys(self._places):
            stack.callback(hook(place, self._editing(place)).remove)
        own = vars(self._model).get("generate")
        generate = self._model.generate
        self._model.__dict__["generate"] = self._generating(generate)
        stack.callback(_put_back, self._model, own)

    def _editing(self, place: Place) -> Callable[[Tensor], Tensor | None]:
        return lambda activation: None if self._aside else self._editors[place](activation)

    def _generating(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._call = _Call(self._model, args, kwargs)
            self._positions = None
            try:
                # compiled code would not see which positions a later pass holds
                return generate(*args, **{**kwargs, "disable_compile": True})
            finally:
                self._call = self._positions = None

        return call

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take note of a forward pass that begins now."""
        if self._aside:
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise SteerbenchError("a steered forward pass needs input_ids; embeddings do not say where a row ends.")
        cache = given_cache(kwargs)
        past = 0 if cache is None else int(cache.get_seq_length())
        mask = kwargs.get("attention_mask")
        mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        if self._begins(ids, past, cached=cache is not None):
            self._begin(ids, mask, past)
        assert self._positions is not None
        self._positions.advance(ids, mask, past=past)
        self._seen = [*self._seen, ids] if self._positions.past else [ids]

    def _begins(self, ids: Tensor, past: int, *, cached: bool) -> bool:
        """Tell whether a pass begins anew. Raises SteerbenchError if it does not, and does not continue either."""
        positions = self._positions
        if positions is None or (past == 0 and (cached or self._call is None)):
            return True
        if past == 0 and not self._repeats(ids):
            raise SteerbenchError(
                f"a pass of generate over {tuple(ids.shape)} ids neither continues the one before it nor repeats its "
                f"texts, so that nobody can say which positions it holds; generate with steerbench.generate instead."
            )
        if past == 0:
            return False
        if len(ids) != positions.rows or past != positions.past + positions.width:
            raise SteerbenchError(
                f"a steered pass over {len(ids)} rows behind {past} columns does not continue the one before it, of "
                f"{positions.rows} rows up to column {positions.past + positions.width}; begin anew without a cache."
            )
        return False

    def _repeats(self, ids: Tensor) -> bool:
        """Tell whether a pass holds all that was seen and one token more: without a cache, or to rebuild it."""
        seen = torch.cat(self._seen, dim=1)
        return ids.shape == (len(seen), seen.shape[1] + 1) and torch.equal(ids[:, :-1], seen)

    def _begin(self, ids: Tensor, mask: Tensor | None, past: int) -> None:
        """Begin with new prompts: fresh positions, and fresh edits."""
        batch = self._call.batch(ids, mask, past) if self._call else _batch(ids, mask, past)
        whole = batch.input_ids.shape[1] == ids.shape[1]
        if not whole and (name := next((type(p.edit).__name__ for p in self._edits if _reads_prompt(p.edit)), None)):
            raise SteerbenchError(
                f"the edit {name} is computed from the whole prompt, which does not come in one pass; leave "
                f"prefill_chunk_size out, and begin without a cache."
            )
        end_ids = self._call.end_ids if self._call else self._end_ids
        positions = Positions(batch, end_ids, cached=True)
        positions.past = past
        self._editors = self._new_editors(batch, positions)
        self._positions = positions

    def _new_editors(self, batch: Batch, positions: Positions) -> dict[Place, Editor]:
        self._aside = True
        try:
            edits = decided(self._model, self._anatomy, self._edits, self._places, batch)
        finally:
            self._aside = False
        groups: dict[Place, list[PlacedEdit]] = {}
        for place, edit in zip(self._places, edits, strict=True):
            groups.setdefault(place, []).append(edit)
        return {place: Editor(group, positions, place) for place, group in groups.items()}


class _Call:
    """What a call of `model.generate` says about its prompts. Raises SteerbenchError if it cannot be steered."""

    def __init__(self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._configs = [kwargs.get("generation_config"), model.generation_config]
        self._given = {**dict(zip(("inputs", "generation_config"), args, strict=False)), **kwargs}
        self._configs[0] = self._given.get("generation_config")
        for name, (harmless, reason) in _REFUSED.items():
            if (value := self._setting(name)) is not None and value != harmless:
                raise SteerbenchError(f"generate cannot be steered with {name}: {reason}.")
        self.end_ids = _ids(self._setting("eos_token_id"))

    def _setting(self, name: str) -> Any:
        """Return what counts for this call: its own argument, that of its configuration, or the model's."""
        values = [self._given.get(name), *(getattr(config, name, None) for config in self._configs)]
        return next((value for value in values if value is not None), None)

    def batch(self, ids: Tensor, mask: Tensor | None, past: int) -> Batch:
        """Return the whole prompts, of which the first pass, `ids`, may be a part: behind a cache, or in chunks."""
        given = self._given.get("input_ids", self._given.get("inputs"))
        real = self._given.get("attention_mask")
        width = past + ids.shape[1]
        if given is None or len(ids) % len(given):
            return _batch(ids, mask, past)
        copies = len(ids) // len(given)
        whole = given.to(ids.device).repeat_interleave(copies, 0)
        if whole.shape[1] < width:  # only what is new was given
            whole = nn.functional.pad(whole, (width - whole.shape[1], 0))
        if real is None:
            real = mask if mask is not None and mask.shape == whole.shape else self._inferred(whole)
        else:
            real = real.to(ids.device).repeat_interleave(copies, 0)
        return Batch(whole, real, [whole.shape[1]] * len(whole))

    def _inferred(self, ids: Tensor) -> Tensor:
        """Return what `model.generate` takes for the mask where it is given none: pads, unless they end texts, too."""
        pad = self._setting("pad_token_id")
        ones = torch.ones_like(ids)
        return ones if pad is None or int(pad) in self.end_ids or not bool((ids == pad).any()) else (ids != pad).long()


def _batch(ids: Tensor, mask: Tensor | None, past: int) -> Batch:
    """Return what is real in a pass as prompts; each ends with its last real column."""
    if past:
        raise SteerbenchError(
            f"a steered pass continues a cache of {past} columns that was not filled in this context; "
            f"begin without a cache."
        )
    real = torch.ones_like(ids) if mask is None else mask
    columns = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    return Batch(ids, real, (real.bool() * columns).amax(1).clamp_min(1).tolist())


def _reads_prompt(edit: Edit) -> bool:
    return type(edit).start is not Edit.start


def _ids(declared: Any) -> list[int]:
    """Return end tokens as a list, however they were declared."""
    if declared is None:
        return []
    return torch.as_tensor(declared).flatten().tolist()


def _put_back(model: PreTrainedModel, own: Any) -> None:
    del model.__dict__["generate"]
    if own is not None:
        model.__dict__["generate"] = own
