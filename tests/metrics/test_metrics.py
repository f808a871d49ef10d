"""The metric modules: definitions against naive ones, use through `evaluate`, and what must not pass silently."""

import math
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import evaluate
import pytest
import torch

from steerbench import metrics
from steerbench.data.dialogue import Dialogue, Turn, user
from steerbench.errors import SteerbenchError
from steerbench.metrics import (
    AverageReward,
    Coherence,
    Diversity,
    Length,
    Repetition,
    WinRate,
    coherence_of,
    diversity_of,
    wins,
)
from steerbench.metrics.average_reward import as_dialogue
from steerbench.metrics.wording import words
from steerbench.models.encoder import SentenceEncoder
from steerbench.models.reward import Reward
from steerbench.progress import Progress, silent


class Letters(Reward):
    """Scores the number of letters, and remembers what it was asked."""

    name, revision = "letters", "1"

    def __init__(self) -> None:
        self.dialogues: list[Dialogue] = []

    def score(
        self, dialogues: Sequence[Dialogue], responses: Sequence[str], progress: Progress = silent
    ) -> torch.Tensor:
        self.dialogues = list(dialogues)
        return torch.tensor([float(len(r)) if r != "nan" else math.nan for r in responses])


def two_ways(text: str, truncate: str) -> list[float]:
    """Return a unit vector made of the first letters of a text, or the last."""
    kept = text[-3:] if truncate == "left" else text[:3]
    vector = torch.tensor([1.0 + kept.count(letter) for letter in "abc"])
    return cast("list[float]", (vector / vector.norm()).tolist())


def encoder() -> SentenceEncoder:
    def encode(texts: Sequence[str], truncate: str = "right", progress: Progress = silent) -> torch.Tensor:
        return torch.tensor([two_ways(text, truncate) for text in texts]).reshape(-1, 3)

    return cast("SentenceEncoder", SimpleNamespace(encode=encode))


# diversity


@pytest.mark.parametrize(("count", "expected"), [(128, 0.977), (50, 0.94), (20, 0.85), (10, 0.70), (3, 0.0), (0, 0.0)])
def test_diversity_without_repetition(count: int, expected: float) -> None:
    assert diversity_of(" ".join(f"w{i}" for i in range(count))) == pytest.approx(expected, abs=0.005)


def naive_diversity(tokens: list[str]) -> float:
    product = 1.0
    for n in (2, 3, 4):
        grams = ["\0".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
        product *= len(set(grams)) / (len(grams) + 1)
    return product


@pytest.mark.parametrize(
    "text", ["a a a a a a", "to be or not to be or not", "one two three four five", "x . x . x . y"]
)
def test_diversity_with_repetition(text: str) -> None:
    assert diversity_of(text) == pytest.approx(naive_diversity(text.split()))


def test_repetition_lowers_diversity() -> None:
    assert diversity_of("no no no no no no no no") < 0.02 < diversity_of("this is said only once and never again")


# each right side is what NLTK 3.10 gives: " ".join(nltk.word_tokenize(text))
NLTK = {
    "I don't think it's $3.88, is it?": "I do n't think it 's $ 3.88 , is it ?",
    "You can't, you cannot; they won't!": "You ca n't , you can not ; they wo n't !",
    "A self-made man and/or (a) 10,000 dollars...": "A self-made man and/or ( a ) 10,000 dollars ...",
    "we'll -- they've: I'm gonna": "we 'll -- they 've : I 'm gon na",
    "the U.S. army at 3:15": "the U.S. army at 3:15",
}


@pytest.mark.parametrize("text", NLTK)
def test_words_are_those_of_nltk(text: str) -> None:
    assert " ".join(words(text)) == NLTK[text]


def test_words_of_a_hostile_text_take_no_time() -> None:
    for text in ("a" * 50_000, "-a" * 20_000, "n't" * 20_000, "a'" * 20_000, "." * 50_000, "1," * 20_000):
        assert words(text)


def test_the_module_counts_and_keeps_empty_responses() -> None:
    result = Diversity().compute(predictions=["one two three four five", "", " \n"])
    value = naive_diversity(["one", "two", "three", "four", "five"])
    assert result == {"diversity": pytest.approx(value / 3), "per_example": [pytest.approx(value), 0, 0], "empty": 2}


def test_the_module_of_repetition_is_that_of_each_response() -> None:
    result = Repetition().compute(predictions=["a b c d a b c d", "one two three four five", ""])
    assert result == {"repetition": pytest.approx(0.2 / 3), "per_example": [pytest.approx(0.2), 0, 0], "empty": 1}
    assert Repetition().compute(predictions=["a b a b"], n=2)["repetition"] == pytest.approx(1 / 3)


# coherence


def test_coherence_is_the_cosine_and_keeps_the_end_of_the_prompt() -> None:
    prompts, responses = ["aaa---bbb", "abc", "abc"], ["bbb---aaa", "", "abc"]
    values = coherence_of(encoder(), prompts, responses)
    assert values == [pytest.approx(1.0), 0.0, pytest.approx(1.0)]
    result = Coherence().compute(predictions=responses, references=prompts, encoder=encoder())
    assert result == {"coherence": pytest.approx(2 / 3), "per_example": pytest.approx(values), "empty": 1}


def test_coherence_of_a_real_encoder(assets: Path) -> None:
    real = SentenceEncoder.load(str(assets / "models" / "minilm-encoder"))
    opening, end = "Tell me about the weather in Norway. " * 60, "How do I bake bread? " * 60
    prompt = f"Human: {opening}\n\nAssistant: It rains.\n\nHuman: {end}\n\nAssistant:"
    on, off = coherence_of(
        real, [prompt, prompt], ["Mix flour, water and yeast and bake the loaf.", "Norway is rainy."]
    )
    assert on > off  # the end of the prompt is what counts


# reward


def test_reward_reads_hh_text_and_plain_text() -> None:
    reward = Letters()
    prompts = ["\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: why\n\nAssistant:", "Human: hi", "What is a Human: or not?"]
    result = AverageReward().compute(predictions=["abc", "", "a"], references=prompts, reward=reward)
    assert result == {"reward": pytest.approx(4 / 3), "per_example": [3.0, 0.0, 1.0], "empty": 1}
    first = (Turn("user", "hi"), Turn("assistant", "yes?"), Turn("user", "why"))
    assert reward.dialogues == [first, user("hi"), user("What is a Human: or not?")]
    assert as_dialogue("Human: a\n\nAssistant: b") == (Turn("user", "a"), Turn("assistant", "b"))


def test_the_held_out_reward_has_its_own_name() -> None:
    result = AverageReward("held_out_reward").compute(predictions=["ab"], references=["x"], reward=Letters())
    assert result == {"held_out_reward": 2.0, "per_example": [2.0], "empty": 0}


# length and win rate


def test_length_in_words_and_tokens() -> None:
    assert Length().compute(predictions=["one, two", ""]) == {"length": 1.0, "per_example": [2, 0], "empty": 1}
    result = Length().compute(predictions=["one, two", ""], token_counts=[5, 1])
    assert result["length_in_tokens"] == 3.0
    assert result["tokens_per_example"] == [5, 1]
    with pytest.raises(ValueError, match="1 token counts for 2 responses"):
        Length().compute(predictions=["a", "b"], token_counts=[5])


def test_a_tie_is_half_a_win() -> None:
    assert wins([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]) == [0.0, 0.5, 1.0]
    result = WinRate().compute(predictions=[1.0, 2.0, 3.0, 4.0], references=[2.0] * 4)
    assert result == {"win_rate": 0.625, "per_example": [0.0, 0.5, 1.0, 1.0]}


def test_win_rates_of_two_sides_add_up_to_one() -> None:
    a, b = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).round(decimals=1).tolist()
    assert sum(wins(a, b)) + sum(wins(b, a)) == 50


def test_the_noise_of_a_batch_is_a_tie() -> None:
    assert wins([1.00001], [1.0]) == [0.5]
    assert wins([1.00001], [1.0], tolerance=0) == [1.0]
    assert WinRate().compute(predictions=[1.2], references=[1.0], tolerance=0.5)["win_rate"] == 0.5


# what must not pass silently

CALLS: list[tuple[type[Any], dict[str, Any]]] = [
    (Diversity, {"predictions": []}),
    (Repetition, {"predictions": []}),
    (Length, {"predictions": []}),
    (Coherence, {"predictions": [], "references": [], "encoder": encoder()}),
    (AverageReward, {"predictions": [], "references": [], "reward": Letters()}),
    (AverageReward, {"predictions": ["a", "nan"], "references": ["x", "y"], "reward": Letters()}),
    (WinRate, {"predictions": [], "references": []}),
    (WinRate, {"predictions": [1.0, math.nan], "references": [1.0, 1.0]}),
    (WinRate, {"predictions": [1.0, 1.0], "references": [1.0, -math.inf]}),
]


@pytest.mark.parametrize(("metric", "inputs"), CALLS)
def test_nothing_and_not_finite_are_refused(metric: type[Any], inputs: dict[str, Any]) -> None:
    reason = "nothing to score" if not inputs["predictions"] else r"1 of 2 values are not finite \(first: example 1\)"
    with pytest.raises(SteerbenchError, match=reason):
        metric().compute(**inputs)


def test_inputs_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="Mismatch"):
        WinRate().compute(predictions=[1.0], references=[1.0, 2.0])


def test_a_module_collects_batches_and_can_be_used_twice() -> None:
    metric = WinRate()
    for score in (1.0, 3.0):
        metric.add_batch(predictions=[score], references=[2.0])
    assert metric.compute() == {"win_rate": 0.5, "per_example": [0.0, 1.0]}
    assert metric.compute(predictions=[3.0], references=[2.0])["win_rate"] == 1.0


# through evaluate, offline


def test_the_plain_functions_need_no_evaluate() -> None:
    code = "import sys; from steerbench.metrics import diversity_of, repetition_of, wins; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"datasets", "evaluate", "torch"} & set(done.stdout.split())


@pytest.mark.parametrize("metric", [AverageReward, Coherence, Diversity, Length, Repetition, WinRate])
def test_evaluate_loads_the_file_offline(metric: type[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for cache in ("HF_MODULES_CACHE", "HF_METRICS_CACHE"):
        monkeypatch.setattr(evaluate.config, cache, str(tmp_path / cache))
    for name in [name for name in sys.modules if name.startswith("evaluate_modules")]:
        monkeypatch.delitem(sys.modules, name)
    module = evaluate.load(str(Path(metrics.__file__).parent / f"{metric.__module__.rpartition('.')[2]}.py"))
    assert type(module).__name__ == metric.__name__
    assert type(module).__module__.startswith("evaluate_modules.")
    if metric is Diversity:
        assert module.compute(predictions=["one two three"])["diversity"] == 0


def test_use_writes_nothing_to_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "cache"))
    Diversity().compute(predictions=["a"])
    assert not (tmp_path / "cache").exists()


def test_every_module_describes_itself() -> None:
    for metric in (AverageReward(), Coherence(), Diversity(), Length(), Repetition(), WinRate()):
        assert metric.description
        assert all(re.search(rf"\b{name}\b", metric.inputs_description) for name in metric.features)
