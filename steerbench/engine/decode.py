"""Choosing among candidates: what a decode part is handed, while the edits rest."""

from collections.abc import Sequence

import torch

from steerbench.decoding import Decoding
from steerbench.engine.guidance import Given, Passes
from steerbench.engine.search import Select
from steerbench.errors import SteerbenchError
from steerbench.models.language_model import Batch, LanguageModel
from steerbench.models.reward import Reward
from steerbench.steering.blocks import Candidate
from steerbench.steering.parts import DecodePart


def check_choice(part: DecodePart, decoding: Decoding, reward: Reward | None) -> None:
    """Raise SteerbenchError if there is nothing to choose by, or nothing to choose among."""
    if reward is None:
        raise SteerbenchError("this steering chooses among candidates and needs a reward model; give one.")
    alike = decoding.temperature == 0 and not part.blocks.top
    if alike and (part.candidates > 1 or part.redraws):
        raise SteerbenchError("greedy candidates are all alike; to choose among them, set --temperature above 0.")


def choosing(part: DecodePart, lm: LanguageModel, prompts: Batch, given: Given, passes: Passes) -> Select:
    """Return how a part chooses among candidates of some of these prompts; the first are taken without a reward."""

    def select(rows: Sequence[int], candidates: Sequence[Sequence[Candidate]]) -> Sequence[Sequence[int]]:
        if given.reward is None:
            return [[0] * part.candidates for _ in rows]
        chosen = torch.tensor(rows, device=prompts.input_ids.device)
        of_rows = Batch(
            prompts.input_ids[chosen], prompts.attention_mask[chosen], [prompts.prompt_ends[i] for i in rows]
        )
        theirs = given.of(rows)._replace(generators=[given.generators[i] for i in rows])
        with passes.unsteered():
            return part.select(theirs.context(part, lm, of_rows, passes), candidates)

    return select
