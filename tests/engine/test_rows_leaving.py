"""Rows that have ended leave the batch under parts that re-weight tokens, and what reads along goes with the rest."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from thorough import mostly_slow
from torch import Tensor
from transformers import LlamaConfig, LlamaForSequenceClassification

from steerbench import Decoding, LanguageModel, Steering, generate
from steerbench.contract import tiny
from steerbench.data import Dialogue, Turn, user
from steerbench.edits import Add, PlacedEdit, PromptPart, Reweighting, Site, Step, Twin
from steerbench.engine import generate as engine
from steerbench.models.reward import RewardModel

PROMPTS = [user(text) for text in ("Hi", "How do I bake a cake, and what for?", "x", "Why is it so?", "So", "And then")]
DECODINGS = {"greedy": Decoding(max_new_tokens=10), "sampled": Decoding(max_new_tokens=10, temperature=2.0)}
VECTOR = torch.linspace(-3, 3, tiny.WIDTH)
EDIT = PlacedEdit(Site("resid_post", 1), Add(VECTOR), "response")


class Scored(Reweighting):
    """The score is a function of the step."""

    top = 6

    def __init__(self, of: Callable[[Step, Tensor], Tensor], beta: float = 1.0) -> None:
        self.of, self.beta = of, beta

    def score(self, step: Step, tokens: Tensor) -> Tensor:
        return self.of(step, tokens)


class Looking(Scored):
    reads_states = True


class Reading(Scored):
    models = {"guide": ""}  # noqa: RUF012 - set by the test


class Bracket(PromptPart):
    def __call__(self, dialogue: Dialogue) -> Dialogue:
        return (*dialogue[:-1], Turn("user", f"[{dialogue[-1].text}]"))


class Twinned(Scored):
    twin = Twin((Bracket(),))


class Differing(Scored):
    twin = Twin(edits=(EDIT,))


def ahead(step: Step, tokens: Tensor) -> Tensor:
    return (step.ahead(tokens) - step.states[:, None]).mean(-1) * 10


def of_guide(step: Step, tokens: Tensor) -> Tensor:
    return step.logits_of("guide").gather(1, tokens)


def of_twin(step: Step, tokens: Tensor) -> Tensor:
    return step.logits_of_twin().gather(1, tokens)


def of_reward(step: Step, tokens: Tensor) -> Tensor:
    assert len(step.dialogues) == len(tokens)
    return step.rewards_ahead(tokens) * 3


PARTS = {
    "states": (Looking(ahead),),
    "another model": (Reading(of_guide),),
    "twin": (Twinned(of_twin, -0.7),),
    "edited twin": (Differing(of_twin, -0.7),),
    "reward": (Scored(of_reward),),
    "states beside a twin": (
        Looking(lambda step, tokens: step.states.mean(-1, keepdim=True) * tokens),
        Twinned(of_twin),
    ),
}
CASES = [(part, edited, how) for part in PARTS for edited in (False, True) for how in DECODINGS]


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    folder = tmp_path_factory.mktemp("reward")
    LlamaForSequenceClassification(
        LlamaConfig(**sizes, vocab_size=320, num_labels=1, initializer_range=0.3)
    ).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return RewardModel.load(str(folder))


def shapes(lm: LanguageModel, run: Callable[[], object]) -> list[tuple[int, int]]:
    """Return rows and columns of each pass."""
    found: list[tuple[int, int]] = []

    def note(module: object, args: object, kwargs: dict[str, Tensor]) -> None:
        found.append((*kwargs["input_ids"].shape,))

    handle = lm.model.register_forward_pre_hook(note, with_kwargs=True)
    run()
    handle.remove()
    return found


@pytest.mark.parametrize(
    ("name", "edited", "how"),
    mostly_slow(CASES, lambda case: case[2] == "sampled" and case[1] == (case[0] == "states")),
)
def test_rows_leave_and_nothing_changes(
    name: str, edited: bool, how: str, world: Path, reward: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny.language_model()
    lm.end_ids = list(range(2, 259, 5))
    monkeypatch.setattr(Reading, "models", {"guide": str(world / "lm")})
    steering = Steering(edits=(EDIT,) if edited else (), logits=PARTS[name])

    def run(batch_size: int = 16) -> list[tuple[int, ...]]:
        found = generate(lm, PROMPTS, steering, DECODINGS[how], reward=reward, batch_size=batch_size)
        return [response.ids for response in found]

    together = run()
    assert together == run(1)
    left = shapes(lm, run)
    with monkeypatch.context() as patched:
        patched.setattr(engine, "follows", lambda part: False)
        assert together == run()
        stayed = shapes(lm, run)
    if how == "sampled":
        assert len({len(ids) for ids in together}) > 2
    twins = name == "edited twin" and not edited  # whose rows are told apart by where they are
    assert (steps(left) < steps(stayed)) != (twins or len({len(ids) for ids in together}) == 1)
    if name != "edited twin":
        assert sum(columns > Scored.top for _, columns in left) == 1  # nothing is read again because rows have left


def steps(found: list[tuple[int, int]]) -> int:
    """Return the rows of all passes that continue them by one token."""
    return sum(rows for rows, columns in found if columns == 1)
