"""What the rewards are asked beside their pairs: how each sentence of a reply is related to the question.

Whether a question and a reply name the same thing, models this small do not find out from preferences. So they are
asked, behind each sentence, first in medleys of fitting and unfitting sentences, then in the replies of their pairs.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from steerbench.testbed.draw import Draw
from steerbench.testbed.gold import Sentence, parse, split
from steerbench.testbed.topics import GOALS, HARMFUL, Goal
from steerbench.testbed.world import Scene, World
from steerbench.testbed.wrecks import shuffled
from steerbench.testbed_build.training import padded

SERVES: Final = {"on": 1.0, "near": 0.5, "off": 0.0}
"""How well a sentence serves the goal asked about: it is on it, on another of its topic, or on something else."""
RELATIONS: Final = (*SERVES, "none", "unknown")
"""A sentence may also name no goal, as courtesies do, or be none that the world knows."""
_INDEX: Final = {goal.name: i for i, goal in enumerate((*GOALS, *HARMFUL))}
_TOPIC: Final = {goal.name: goal.topic for goal in (*GOALS, *HARMFUL)}
_IGNORED: Final = -100
_PART: Final = 2  # sentences of each of a medley's three replies
_SHUFFLED: Final = 0.2  # share of a medley's sentences whose words stand in a random order


class Asked(NamedTuple):
    """A question and a reply in tokens, and what is asked about them; indices of goals and of `RELATIONS`."""

    ids: list[int]
    start: int
    """The last token in front of the reply."""
    goal: int
    ends: tuple[int, ...]
    """The last token of each sentence of the reply."""
    goals: tuple[int, ...]
    """What each sentence is about; -100 for nothing that the world knows."""
    relations: tuple[int, ...]


def asked(tokenizer: Any, ids: list[int], start: int, goal: Goal, reply: str) -> Asked:
    """Return what is asked about a text whose reply follows the token at `start`."""
    marks = set(tokenizer.convert_tokens_to_ids([".", "!", "?"]))
    ends = [i for i in range(start + 1, len(ids)) if ids[i] in marks]
    found = parse(reply)[: len(ends)]  # words in a random order may end without a mark
    goals = tuple(_INDEX[each.about] if each and each.about else _IGNORED for each in found)
    relations = tuple(RELATIONS.index(relation(goal, each)) for each in found)
    return Asked(ids, start, _INDEX[goal.name], tuple(ends[: len(found)]), goals, relations)


def relation(goal: Goal, sentence: Sentence | None) -> str:
    """Return how a sentence is related to the goal asked about: one of `RELATIONS`."""
    if sentence is None:
        return "unknown"
    if not sentence.about:
        return "none"
    if sentence.about == goal.name:
        return "on"
    return "near" if _TOPIC[sentence.about] == goal.topic else "off"


def medley(world: World, draw: Draw, scene: Scene) -> str:
    """Draw sentences of replies to the scene, to another goal of its topic and to any goal, in a random order."""
    near = [goal for goal in GOALS if goal.topic == scene.goal.topic and goal != scene.goal] or GOALS
    fitting = (5.0, 1.0, 0.0, 0.0)  # nearly always on the goal, and long
    chosen: list[str] = []
    for goal in (scene.goal, draw.rng.choice(near), draw.rng.choice(GOALS)):
        found = split(world.reply(draw, scene._replace(goal=goal, shift=fitting)))
        chosen += draw.rng.sample(found, min(_PART, len(found)))
    draw.rng.shuffle(chosen)
    return " ".join(shuffled(draw, each) if draw.rng.random() < _SHUFFLED else each for each in chosen)


class Relevance(nn.Module):
    """A reward model that is asked, while it is trained, what each sentence is about and how it is related.

    A linear map behind the first block is asked for the goals, at the question's end and at each sentence's; the same
    map for both, so that equal goals have equal directions. The first head of the second block is to look from a
    sentence back at the question's end as far as it serves the goal asked about. A linear map behind the second block
    is asked for the relation. The maps are not shipped.
    """

    def __init__(self, model: Any, pad_id: int) -> None:
        super().__init__()
        self.model = model
        self.pad_id = pad_id
        width = model.config.hidden_size
        self.goal, self.relation = nn.Linear(width, len(_INDEX)), nn.Linear(width, len(RELATIONS))

    def forward(self, batch: Sequence[Asked]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rewards, (batch,), and the sum of the three mean losses."""
        ids, mask = padded([row.ids for row in batch], self.pad_id, self.model.device)
        found = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True, output_attentions=True)
        return found.logits[:, 0].float(), self.loss(batch, found.hidden_states, found.attentions[1][:, 0].float())

    def loss(self, batch: Sequence[Asked], states: Sequence[torch.Tensor], looks: torch.Tensor) -> torch.Tensor:
        """Return the sum of the three mean losses.

        `states` are those of all blocks, each (batch, length, width); `looks` (batch, length, length) is the attention
        of the head.
        """
        device = looks.device
        rows = torch.tensor([i for i, row in enumerate(batch) for _ in row.ends], device=device)
        ends = torch.tensor([end for row in batch for end in row.ends], device=device)
        starts = torch.tensor([row.start for row in batch], device=device)
        goals = torch.tensor([row.goal for row in batch] + [goal for row in batch for goal in row.goals], device=device)
        relations = torch.tensor([each for row in batch for each in row.relations], device=device)

        asked_for = torch.cat([states[1][torch.arange(len(batch), device=device), starts], states[1][rows, ends]])
        named = functional.cross_entropy(self.goal(_normed(asked_for)).float(), goals, ignore_index=_IGNORED)
        told = functional.cross_entropy(self.relation(_normed(states[2][rows, ends])).float(), relations)
        about = relations < len(SERVES)
        serves = torch.tensor(list(SERVES.values()), device=device)[relations[about]]
        looked = looks[rows, ends, starts[rows]][about].clamp(1e-6, 1 - 1e-6)
        return named + told + functional.binary_cross_entropy(looked, serves)


def _normed(states: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(states.float(), states.shape[-1:])
