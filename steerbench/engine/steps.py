"""What re-weighting gets to see: the rows of a batch that is decoded, or the tokens of a response that is scored."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from steerbench.data.dialogue import Dialogue
from steerbench.engine.branches import can_branch, states_behind
from steerbench.engine.companions import Companion, check_vocabulary, forced_logits, same_size
from steerbench.engine.forward_passes import continued, final_states, left_cache, places
from steerbench.engine.guide_reading import GuideReader
from steerbench.engine.passes import Passes
from steerbench.engine.prompting import prompted
from steerbench.errors import SteerbenchError
from steerbench.models.language_model import Batch, LanguageModel, Tokens
from steerbench.models.reward import Reward
from steerbench.steering.decoding_context import DecodingContext
from steerbench.steering.parts import GuidingPart, PromptPart
from steerbench.steering.reweighting import Reweighting, Twin
from steerbench.steering.steering import Steering
from steerbench.steering.step import Step

_AT_ONCE = 1024
"""Candidates in one pass over a given response."""
_ROWS = 32
"""Rows of a pass that begins anew."""


class DecodingSteps:
    """Makes the steps of one batch for one part, and keeps what reads along from one to the next."""

    def __init__(self, context: DecodingContext, passes: Passes, part: GuidingPart) -> None:
        self.context, self.passes, self.part = context, passes, part
        self._companions: dict[str, Companion] = {}
        self._twin: _TwinRows | None = None
        self._guide: GuideReader | None = None

    def __call__(self, ids: Tensor, logits: Tensor) -> Step:
        """Return the step behind these ids."""
        return _DecodingStep(self, ids, logits)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the rows."""
        self.context = self.context.rows(rows)
        for one in (*self._companions.values(), self._twin, self._guide):
            if one is not None:
                one.keep(rows)

    def companion(self, role: str) -> Companion:
        """Return the model that plays a role, reading along."""
        if role not in self._companions:
            guide = self.context.models[role]
            check_vocabulary(self.context.lm, guide)
            self._companions[role] = Companion(guide)
        return self._companions[role]

    @property
    def guide(self) -> GuideReader:
        """The guide, reading along."""
        self._guide = self._guide or GuideReader(self.context.reward)
        return self._guide

    def twin_logits(self, ids: Tensor) -> Tensor:
        """Return the logits of the part's twin: of rows of the same pass, or else of one that reads along."""
        if (known := self.passes.twins.get(id(self.part))) is not None:
            return known
        if self._twin is None:
            self._twin = _TwinRows(self.context, self.passes, twin_of(self.part))
        return self._twin.logits(ids)


class _TwinRows:
    """A twin that reads along in passes of its own."""

    def __init__(self, context: DecodingContext, passes: Passes, twin: Twin) -> None:
        self._lm, self._passes = context.lm, passes
        self._width = context.prompt_ids.shape[1]
        self._edits = passes.edits if twin.edits is None else twin.edits
        self._prompts = twin_prompts(context, passes.prompt, twin)
        self._companion = Companion(context.lm)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the rows."""
        ids, mask, ends = self._prompts.input_ids, self._prompts.attention_mask, self._prompts.prompt_ends
        self._prompts = Batch(ids[list(rows)], mask[list(rows)], [ends[i] for i in rows])
        self._companion.keep(rows)

    def logits(self, ids: Tensor) -> Tensor:
        """Return the logits behind the twin's prompt and the response in `ids`, (rows, vocabulary), float32."""
        prompts = self._prompts
        whole = torch.cat([prompts.input_ids, ids[:, self._width :]], dim=1)
        if not self._edits:
            with self._passes.unsteered():
                return self._companion.logits(whole, prompts.attention_mask)
        mask = continued(prompts.attention_mask, whole)
        with self._passes.steered_as(self._edits, whole, mask, prompts.prompt_ends):
            return Companion(self._lm).logits(whole, prompts.attention_mask)


def twin_of(part: GuidingPart) -> Twin:
    """Return the twin that a part asks for. Raises SteerbenchError if it asks for none."""
    twin = getattr(part, "twin", None)
    if not isinstance(twin, Twin):
        raise SteerbenchError(f"{type(part).__name__} reads a twin of the model, and names none.")
    return twin


def twin_prompts(context: DecodingContext, prompt: Sequence[PromptPart], twin: Twin) -> Batch:
    """Return the prompts of a twin, left padded: those of the rows, unless the twin has another."""
    if not twin.prompt:
        return Batch(context.prompt_ids, context.mask, [context.prompt_ids.shape[1]] * len(context.mask))
    return context.lm.left_padded(twin_tokens(context.lm, context.dialogues, prompt, twin))


def twin_tokens(
    lm: LanguageModel, dialogues: Sequence[Dialogue], prompt: Sequence[PromptPart], twin: Twin
) -> list[Tokens]:
    """Return the prompts of a twin; `prompt` are the steering's own parts. Those that ask, ask the model as it is."""
    return [lm.tokens(d) for d in prompted(lm, Steering(prompt=(*prompt, *twin.prompt)), dialogues)]


def _texts_ahead(lm: LanguageModel, response: Sequence[int], tokens: Sequence[int]) -> list[str]:
    """Return the text of a response with each of several tokens behind it; none if it has ended."""
    return [] if set(response) & set(lm.end_ids) else [lm.cut([*response, z]).text for z in tokens]


class _DecodingStep(Step):
    """The rows of a batch."""

    def __init__(self, steps: DecodingSteps, ids: Tensor, logits: Tensor) -> None:
        self._steps, self._context, self._passes = steps, steps.context, steps.passes
        self.lm, self.logits, self._ids = steps.context.lm, logits, ids

    @cached_property
    def _mask(self) -> Tensor:
        return continued(self._context.mask, self._ids)

    @cached_property
    def states(self) -> Tensor:
        """Those of the pass that gave the logits, or where there was none over just these ids, of a new one."""
        last = self._passes.last
        known = None if last is None else last.of(self._ids)
        return self._afresh(self._ids, self._mask) if known is None else known

    def ahead(self, tokens: Tensor) -> Tensor:
        """Run the candidates on the cache of the batch; where there is none, from the beginning."""
        last = self._passes.last
        cache = None if last is None else last.cache_of(self._ids)
        if cache is not None and can_branch(self.lm):
            stops = torch.full_like(tokens, self._ids.shape[1])
            with self._passes.branching():
                return states_behind(self.lm, cache, self._mask, tokens, stops)
        rows, k = tokens.shape
        ids = torch.cat([self._ids.repeat_interleave(k, 0), tokens.reshape(-1, 1)], dim=1)
        mask = continued(self._mask.repeat_interleave(k, 0), ids)
        return self._afresh(ids, mask).reshape(rows, k, -1)

    def _afresh(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the last state of each row, (rows, width), of passes of their own under the steering's edits."""
        found = []
        for some, real in zip(torch.split(ids, _ROWS), torch.split(mask, _ROWS), strict=True):
            with self._passes.steered(some, real):
                states, _ = final_states(self.lm, some, real, position_ids=places(real), use_cache=False)
            found.append(states[:, -1])
        return torch.cat(found)

    def logits_of(self, role: str) -> Tensor:
        """Return those of a model that reads along."""
        logits = self._steps.companion(role).logits(self._ids, self._context.mask)
        return same_size(logits, self.logits.shape[-1])

    def logits_of_twin(self) -> Tensor:
        """Return those of twin rows of the same pass, or of passes of their own."""
        return self._steps.twin_logits(self._ids)

    def rewards_ahead(self, tokens: Tensor) -> Tensor:
        """Ask the guide, which goes on from what it has read before."""
        texts = [_texts_ahead(self.lm, r, z) for r, z in zip(self.responses, tokens.tolist(), strict=True)]
        scores = torch.zeros(tokens.shape)
        scores[[bool(row) for row in texts]] = self._steps.guide.scores(self.dialogues, texts).reshape(
            -1, tokens.shape[1]
        )
        return scores

    @property
    def responses(self) -> list[tuple[int, ...]]:
        """What follows the prompt's columns."""
        return [tuple(row) for row in self._ids[:, self._context.prompt_ids.shape[1] :].tolist()]

    @property
    def dialogues(self) -> Sequence[Dialogue]:
        """Those of the batch."""
        return self._context.dialogues

    @property
    def reward(self) -> Reward:
        """The guide."""
        return self._context.reward


class GivenStep(Step):
    """The tokens of one given response, each as a row: what it was drawn from."""

    def __init__(
        self, part: Reweighting, context: DecodingContext, passes: Passes, tokens: Tokens, logits: Tensor
    ) -> None:
        self._part, self._context, self._passes, self._tokens = part, context, passes, tokens
        self.lm, self.logits = context.lm, logits

    @cached_property
    def _ids(self) -> Tensor:
        return torch.tensor([self._tokens.prompt + self._tokens.response], device=self.lm.device)

    @property
    def _first(self) -> int:
        return len(self._tokens.prompt)

    @cached_property
    def states(self) -> Tensor:
        """One pass over all of the response."""
        mask = torch.ones_like(self._ids)
        with self._passes.steered(self._ids, mask):
            states, _ = final_states(self.lm, self._ids, mask, use_cache=False)
        return states[0, self._first - 1 : -1]

    def ahead(self, tokens: Tensor) -> Tensor:
        """Run the candidates of all prefixes on the cache of the response; from the beginning where that fails."""
        return self._on_one_cache(tokens) if can_branch(self.lm) else self._afresh(tokens)

    def _on_one_cache(self, tokens: Tensor) -> Tensor:
        ids = self._ids[:, :-1]  # nothing is drawn behind the last token, and no edit acts behind an end token
        mask, k = torch.ones_like(ids), tokens.shape[1]
        stops = torch.arange(self._first, self._first + len(tokens), device=mask.device).repeat_interleave(k)[None]
        candidates = tokens.reshape(1, -1)
        with self._passes.steered(ids, mask) as positions:
            _, out = final_states(self.lm, ids, mask, use_cache=True)
            found = []
            for some, where in zip(torch.split(candidates, _AT_ONCE, 1), torch.split(stops, _AT_ONCE, 1), strict=True):
                with positions.branching():
                    found.append(states_behind(self.lm, left_cache(out), mask, some, where)[0])
        return torch.cat(found).reshape(*tokens.shape, -1)

    def _afresh(self, tokens: Tensor) -> Tensor:
        """Run each prefix with each candidate, right padded with what followed: nobody looks back from there."""
        rows, k = tokens.shape
        ids = self._ids.repeat(rows * k, 1)
        at = torch.arange(self._first, self._first + rows, device=ids.device).repeat_interleave(k)
        ids[torch.arange(len(ids), device=ids.device), at] = tokens.reshape(-1)
        mask = (torch.arange(ids.shape[1], device=ids.device) <= at[:, None]).long()
        found = []
        for some, real, last in zip(*(torch.split(t, _ROWS) for t in (ids, mask, at)), strict=True):
            with self._passes.steered(some, real):
                states, _ = final_states(self.lm, some, real, use_cache=False)
            found.append(states[torch.arange(len(some), device=ids.device), last])
        return torch.cat(found).reshape(rows, k, -1)

    def logits_of(self, role: str) -> Tensor:
        """Return those of one pass of the other model."""
        guide = self._context.models[role]
        check_vocabulary(self.lm, guide)
        return same_size(forced_logits(guide, self._tokens), self.logits.shape[-1])

    def logits_of_twin(self) -> Tensor:
        """Return those of one pass behind the twin's prompt, under its edits."""
        twin, prompt = twin_of(self._part), self._tokens.prompt
        if twin.prompt:
            (whole,) = twin_tokens(self.lm, self._context.dialogues, self._passes.prompt, twin)
            prompt = whole.prompt
        tokens = Tokens(prompt, self._tokens.response)
        self.lm.check_fit([tokens], 0)
        edits = self._passes.edits if twin.edits is None else twin.edits
        ids = torch.tensor([tokens.prompt + tokens.response], device=self.lm.device)
        with self._passes.steered_as(edits, ids, torch.ones_like(ids), [len(prompt)]):
            return forced_logits(self.lm, tokens)

    def rewards_ahead(self, tokens: Tensor) -> Tensor:
        """Ask the guide about all of them at once."""
        rows = [_texts_ahead(self.lm, r, z) for r, z in zip(self.responses, tokens.tolist(), strict=True)]
        guide = GuideReader(self.reward)
        found = guide.scores([self._context.dialogues[0]], [[text for row in rows for text in row]])
        scores = torch.zeros(tokens.shape)
        scores[[bool(row) for row in rows]] = found.reshape(-1, tokens.shape[1])
        return scores

    @property
    def responses(self) -> list[tuple[int, ...]]:
        """The prefixes of the response."""
        return [self._tokens.response[:t] for t in range(len(self.logits))]

    @property
    def dialogues(self) -> Sequence[Dialogue]:
        """The one dialogue, for each token."""
        return [self._context.dialogues[0]] * len(self.logits)

    @property
    def reward(self) -> Reward:
        """The guide."""
        return self._context.reward
