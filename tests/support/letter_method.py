"""A method that repeats a letter, and a reward that likes some letters more than others: tuning can be foretold."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from steerbench import Reward
from steerbench.bench.method import Method
from steerbench.bench.units import plan
from steerbench.data.dialogue import Dialogue
from steerbench.plugins import registry

# A method whose hyperparameter is the letter that its responses repeat, so that a reward can rank the candidates.
PLUGIN = """
from dataclasses import dataclass
from transformers import LogitsProcessor
from steerbench import FitContext, Steerer, SteerbenchError, Steering
from steerbench.edits import LogitsPart

class Add(LogitsProcessor):
    def __init__(self, token, weight):
        self.token, self.weight = token, weight
    def __call__(self, ids, scores):
        scores = scores.clone()
        scores[:, self.token] += self.weight
        return scores

class Letter(LogitsPart):
    def __init__(self, letter: str, weight: float) -> None:
        self.letter, self.weight = letter, weight
    def processor(self, lm, prompt_ids, mask):
        return Add(lm.tokenizer.encode(self.letter)[-1], self.weight)

@dataclass(frozen=True, kw_only=True)
class Say(Steerer):
    off = {{"weight": 0.0}}
    search = {search}

    letter: str = "x"
    weight: float = 1e4

    def fit(self, context: FitContext) -> Steering:
        context.report["letter"] = self.letter
        context.rollouts()
        if self.letter == "!":
            raise SteerbenchError("cannot say it.")
        if self.letter == "?":
            raise ZeroDivisionError
        return Steering(logits=(Letter(self.letter, self.weight),))
"""
LETTERS = {"letter": ["x", "e", "o"]}

Say = Callable[..., str]


class Judge(Reward):
    """Scores a response by its first letter, and remembers the dialogues it was asked about."""

    name, revision = "judge", "1"

    def __init__(self, liked: dict[str, float], elsewhere: dict[str, float] | None = None) -> None:
        self.liked, self.elsewhere = liked, liked if elsewhere is None else elsewhere
        self.home: set[Dialogue] = set()
        """Where `liked` holds, if there is an elsewhere."""
        self.seen: list[Dialogue] = []

    def score(self, dialogues: Sequence[Dialogue], responses: Sequence[str], progress: Any = None) -> torch.Tensor:
        self.seen += dialogues
        likings = [self.liked if d in self.home else self.elsewhere for d in dialogues]
        return torch.tensor([liking.get(r[:1], 0.0) for liking, r in zip(likings, responses, strict=True)])


def saying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Return a function that registers a method with a search space; the fixture `say`."""
    monkeypatch.setattr(registry, "_files", dict(registry._files))

    def make(search: dict[str, list[Any]], name: str = "say") -> str:
        path = tmp_path / f"{name}.py"
        path.write_text(PLUGIN.format(search=search))
        registry.add_plugin(path)
        return str(path)

    return make


def planned(text: str) -> Method:
    return plan(text, tuned=True)[-1]
