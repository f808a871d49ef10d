"""Nudging: where the model is not sure of its next token, a small aligned model says the next word.

Paper: Fei et al. 2025, "Nudging: Inference-time Alignment of LLMs via Guided Decoding", ACL 2025, arXiv 2410.09300.

    if max_z p_0(z | x, y_<t) < gamma:   y <- y + next word of the guide behind x, y;   else the model goes on

The word, with the blanks in front of it, is written in the model's own tokens, which are taken one by one, so that the
two may have any tokenizers. The guide reads the dialogue in its own chat template, and the response as text.

Differences from the authors' code (fywalter/nudging @2ffbf1f): theirs takes further words of the guide until the model
accepts one, and splits at blanks, which loses new lines; here it is one word at a time, after which the model is asked
again, and blanks are kept as they are. Where a script has no blanks, a word is what 16 tokens of the guide say.

Defaults: gamma 0.3 as published. No guide is named: name one, or it is the model itself. Cost: nothing to fit; for each
nudged word some passes of the guide, which reads its text from the beginning.

Pitfalls: the guide is aligned already: report it alone beside. KL counts a nudged token as certain.

Learns from: nothing. Touches: logits.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import LogitsProcessor

from steerbench import FitContext, LanguageModel, Steerer, Steering
from steerbench.data import Dialogue
from steerbench.edits import Companion, DecodingContext, LogitsPart
from steerbench.learn import Share

AHEAD = 16
"""Tokens of the guide that are looked at for a word."""


class Nudge(LogitsPart):
    """Takes the guide's next word wherever the most likely token has less than `gamma`."""

    def __init__(self, guide: str, gamma: float) -> None:
        self.guide, self.gamma = guide, gamma

    @property
    def models(self) -> Mapping[str, str]:
        """The guide."""
        return {"guide": self.guide} if self.guide else {}

    def processor_in(self, context: DecodingContext) -> LogitsProcessor:
        """Return what nudges the rows of one batch."""
        return _Nudging(self, context)


class _Nudging(LogitsProcessor):
    """Knows for each row the response at which a word was begun, and the word's tokens."""

    def __init__(self, part: Nudge, context: DecodingContext) -> None:
        self._gamma, self._context = part.gamma, context
        self._words: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        guide = self._context.models.get("guide")
        if guide is None or not self._gamma:
            return scores
        unsure = (scores.softmax(-1).amax(-1) < self._gamma).tolist()
        start, ends = self._context.prompt_ids.shape[1], set(self._context.lm.end_ids)
        scores = scores.clone()
        for row, ids in enumerate(input_ids[:, start:].tolist()):
            if ends & set(ids):
                continue
            token = self._pending(row, tuple(ids))
            if token is None and unsure[row]:
                word = next_word(self._context.lm, guide, self._context.dialogues[row], ids)
                self._words[row] = (tuple(ids), word)
                token = word[0]
            if token is not None:
                scores[row] = torch.full_like(scores[row], -torch.inf).index_fill(0, torch.tensor(token), 0.0)
        return scores

    def _pending(self, row: int, ids: tuple[int, ...]) -> int | None:
        """Return the next token of a word that is under way in just this response."""
        begun, word = self._words.get(row, ((), ()))
        done = len(ids) - len(begun)
        if not 0 < done < len(word) or ids[: len(begun)] != begun or ids[len(begun) :] != word[:done]:
            return None
        return word[done]


def next_word(lm: LanguageModel, guide: LanguageModel, dialogue: Dialogue, ids: Sequence[int]) -> tuple[int, ...]:
    """Return the guide's next word behind a response, in the model's tokens; an end token where the guide ends."""
    text = _text(lm, ids)
    behind = guide.tokens(dialogue, text) if text else guide.tokens(dialogue)
    start, said = [*behind.prompt, *behind.response], list[int]()
    reading, real = Companion(guide), torch.ones(1, len(start), dtype=torch.long, device=guide.device)
    while len(said) < AHEAD:
        with torch.no_grad():
            logits = reading.logits(torch.tensor([start + said], device=guide.device), real)
        said.append(int(logits[0].argmax()))
        if said[-1] in guide.end_ids or re.match(r"\s*\S+\s", _text(guide, said)):
            break
    found = re.match(r"\s*\S+", _text(guide, said))
    word = lm.tokenizer(found[0], add_special_tokens=False)["input_ids"] if found else []
    return tuple(word) or tuple(lm.end_ids[:1])


def _text(lm: LanguageModel, ids: Sequence[int]) -> str:
    text: str = lm.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


@dataclass(frozen=True, kw_only=True)
class Nudging(Steerer):
    """Words of a guide where the model is not sure.

    - `guide`: a model, `org/name@revision` or a folder; empty: none
    - `gamma`: probability of the most likely token below which the guide is asked
    """

    engines = ("transformers",)
    off: ClassVar[Mapping[str, Any]] = {}  # with no guide, as by default, it is the model
    search: ClassVar[Mapping[str, Sequence[Any]]] = {"gamma": (0.1, 0.2, 0.3, 0.4, 0.5, 0.7)}

    guide: str = ""
    gamma: Share = 0.3

    @property
    def models(self) -> Sequence[str]:
        """Whose revision identifies the records."""
        return [self.guide] if self.guide else []

    def fit(self, context: FitContext) -> Steering:
        """Nothing to learn."""
        return Steering(logits=(Nudge(self.guide, self.gamma),))
