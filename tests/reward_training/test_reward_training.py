"""Training a reward: the fit against the formula and a planted truth, states against single passes, the folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel
from typer.testing import Result

from steerbench.data.dialogue import user
from steerbench.data.splits import load_data
from steerbench.models.checkpoint import find, load_model, load_tokenizer
from steerbench.models.pooled_block import BlockStates
from steerbench.models.reward import RewardModel
from steerbench.models.reward_text import REPLY, RewardText
from steerbench.models.training_prompts import trained_on
from steerbench.plugins.spec import build_task, parse_tasks
from steerbench.reward_training import backbone
from steerbench.reward_training.bradley_terry import Head, Pairs, fit_head
from steerbench.reward_training.evidence import calibration, correlation, evidence, failing, probe_figures
from steerbench.reward_training.kept_states import Kept, Reader, complete
from steerbench.reward_training.reward_check import RewardCheck, check_rewards
from steerbench.reward_training.reward_folder import verdicts
from steerbench.reward_training.scenes import (
    Scene,
    SceneTokens,
    joined_length,
    read_apart,
    read_joined,
    shares_prompts,
    tokens_of,
)

Cli = Callable[..., Result]
SCENES = [
    Scene(user("How do I bake bread?"), ("Slowly, with yeast.", "Slower.")),
    Scene(user("Why?"), ("", "Because.")),
]


def tokens(folder: Path, scenes: list[Scene]) -> list[SceneTokens]:
    writer = RewardText(load_tokenizer(find(str(folder))), "tiny")
    return [tokens_of(writer, scene) for scene in scenes]


def states(folder: Path, *blocks: int) -> BlockStates:
    return BlockStates(load_model(AutoModel, find(str(folder)), torch.float32)[0], blocks)


def planted(n: int, seed: int, *, by_length: float) -> Pairs:
    """Pairs whose first feature is quality and whose second follows the length, which raters like too."""
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.normal(3, 0.7, (n, 2)))
    features = rng.normal(size=(n, 2, 6))
    features[..., 1] = np.log1p(lengths) + 0.3 * rng.normal(size=(n, 2))
    logit = 1.5 * (features[:, 0, 0] - features[:, 1, 0]) + by_length * (
        np.log1p(lengths[:, 0]) - np.log1p(lengths[:, 1])
    )
    swap = rng.random(n) > 1 / (1 + np.exp(-logit))
    features[swap], lengths[swap] = features[swap][:, ::-1], lengths[swap][:, ::-1]
    return Pairs(features, lengths)


def test_pooled_states_are_those_of_a_plain_pass(world: Path) -> None:
    """Against the model's own hidden states, one text at a time, and the reply found by its characters."""
    whole, tokenizer = AutoModel.from_pretrained(world / "lm"), load_tokenizer(find(str(world / "lm")))
    scene = tokens(world / "lm", SCENES[:1])[0]
    found = read_apart(states(world / "lm", 0, 1), [scene], 0)[0]
    for reply, row, marks, mine in zip(SCENES[0].replies, scene.rows, scene.marks, found, strict=True):
        assert reply in tokenizer.decode([i for i, mark in zip(row, marks, strict=True) if mark == REPLY])
        hidden = whole(torch.tensor([row]), output_hidden_states=True).hidden_states
        where = torch.tensor(marks) == REPLY
        torch.testing.assert_close(mine[0], hidden[1][0, where].mean(0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mine[1], hidden[2][0, where].mean(0), atol=1e-5, rtol=1e-5)


def test_a_dialogue_is_read_once_for_its_replies_where_that_changes_nothing(world: Path) -> None:
    read, scenes = states(world / "lm", 0, 2), tokens(world / "lm", SCENES)
    with torch.no_grad():
        together = read_joined(read, scenes, 0)
        apart = torch.cat([read_apart(read, [scene], 0) for scene in scenes])
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)
    assert joined_length(scenes[0]) < sum(map(len, scenes[0].rows))
    assert shares_prompts(read, scenes, 0)
    assert not shares_prompts(
        states(world / "encoder", 0), tokens(world / "encoder", SCENES), 0
    )  # it sees what follows


def test_kept_states_are_not_computed_again_and_a_broken_file_is(world: Path, tmp_path: Path) -> None:
    scenes, kept, calls = tokens(world / "lm", SCENES), Kept(tmp_path), list[int]()

    def reader() -> Reader:
        calls.append(1)
        return Reader(states(world / "lm", 0), 0, 2)

    first = complete(kept, reader, scenes)
    again = complete(kept, reader, scenes[::-1])
    assert len(calls) == 1
    assert all(torch.equal(a, b) for a, b in zip(first, again[::-1], strict=True))
    (file,) = tmp_path.glob("*.safetensors")
    file.unlink()  # what was read is mapped from it
    file.write_bytes(b"cut off")
    assert all(torch.equal(a, b) for a, b in zip(complete(kept, reader, scenes), first, strict=True))
    assert len(calls) == 2


@pytest.mark.parametrize("length_neutral", [False, True])
def test_the_head_is_where_the_gradient_of_the_penalised_loss_vanishes(length_neutral: bool) -> None:
    pairs, c = planted(300, 0, by_length=1.0), 0.01
    head = fit_head(pairs, c, length_neutral=length_neutral)
    scale = pairs.differences.std(axis=0)
    x, w = pairs.differences / scale, head.weight * scale
    p = 1 / (1 + np.exp(-(x @ w + head.length * pairs.log_lengths)))  # of the chosen reply
    gradient = w - c * x.T @ (1 - p)
    if length_neutral:  # length has no penalty, and the margins must be orthogonal to it
        along = x.T @ pairs.log_lengths / np.linalg.norm(x.T @ pairs.log_lengths)
        gradient -= (gradient @ along) * along
        assert abs(c * float(pairs.log_lengths @ (1 - p))) < 2e-3
        assert abs(correlation(head.margins(pairs), pairs.log_lengths)) < 1e-6
    np.testing.assert_allclose(gradient, 0, atol=2e-3)
    assert abs(float(head.scores(pairs.states).mean())) < 1e-9


def test_a_length_neutral_head_finds_the_planted_quality_and_not_the_length() -> None:
    train, test = planted(3000, 1, by_length=2.0), planted(1000, 2, by_length=2.0)
    plain, neutral = (fit_head(train, 1e-2, length_neutral=on) for on in (False, True))
    found = [abs(correlation(head.margins(test), test.log_lengths)) for head in (plain, neutral)]
    assert found[0] > 0.3
    assert found[1] < 0.15
    assert neutral.weight[0] > 5 * abs(neutral.weight[1])
    assert neutral.length > 0.5


def test_good_replies_that_are_long_are_not_found_by_their_length() -> None:
    """The states that tell quality go with length, so that to leave the covariate out is not enough."""
    train, test = (planted(3000, seed, by_length=2.0) for seed in (1, 2))
    mixed = []
    for pairs in (train, test):
        states = pairs.states.copy()
        states[..., 0] += 0.7 * np.log1p(pairs.lengths)
        mixed.append(pairs._replace(states=states))
    head = fit_head(mixed[0], 1e-2, length_neutral=True)
    assert abs(correlation(head.margins(mixed[1]), mixed[1].log_lengths)) < 0.05
    quality = test.differences[:, 0]
    assert correlation(head.margins(mixed[1]), quality) > 0.8


def test_the_figures_of_known_margins() -> None:
    assert correlation(np.array([1.0, -2.0]), np.array([2.0, -4.0])) == pytest.approx(1)
    assert correlation(np.array([1.0, 1.0]), np.array([1.0, -1.0])) == 0
    probes = probe_figures(np.array([[1.0, 0.0, 2.0, 1.0]] * 40), ("low", "high", "tied"))
    assert [probes[name]["mean"] for name in ("low", "high", "tied")] == [1.0, 0.0, 0.5]
    assert failing(probes) == ["high", "tied"]


def test_margins_drawn_from_their_own_probabilities_are_calibrated() -> None:
    rng = np.random.default_rng(0)
    size = np.abs(rng.normal(0, 1.5, 20_000))
    margins = np.where(rng.random(len(size)) < 1 / (1 + np.exp(-size)), size, -size)
    assert calibration(margins)["slope"] == pytest.approx(1, abs=0.05)
    assert calibration(margins)["expected error"] < 0.02
    assert calibration(3 * margins)["slope"] == pytest.approx(1 / 3, abs=0.02)
    assert calibration(3 * margins)["expected error"] > 0.1


@pytest.fixture
def trained(world: Path, tmp_path: Path, cli: Cli) -> Callable[..., tuple[Path, dict[str, Any]]]:
    def train(name: str, *options: str, backbone: str = "lm") -> tuple[Path, dict[str, Any]]:
        out = tmp_path / name
        paths = {"--backbone": world / backbone, "--data": world / "hh_rlhf.jsonl", "--out": out}
        given = [str(text) for option in paths.items() for text in option]
        result = cli("reward", "train", *given, "--states", str(tmp_path / "states"), "--dtype", "float32", *options)
        assert result.exit_code == 0, result.output
        return out, json.loads((out / "manifest.json").read_text())

    return train


@pytest.mark.parametrize("backbone", ["lm", "encoder"])
def test_the_folder_scores_as_it_was_fitted(trained: Any, backbone: str) -> None:
    out, manifest = trained("plain", backbone=backbone)
    reward = RewardModel.load(str(out))
    good = [f"Happy to help you make {x}. Start small and take your time." for x in ("tea", "soup")]
    bad = [f"No idea about {x}." for x in ("tea", "soup")]
    prompts = [user(f"How do I make {x}?") for x in ("tea", "soup")] * 2
    scores = reward.score(prompts, good + bad)
    assert (scores[:2] > scores[2:]).all()
    assert manifest["held out"]["accuracy"]["mean"] > 0.9
    alone = torch.cat([reward.score([p], [r]) for p, r in zip(prompts, good + bad, strict=True)])
    torch.testing.assert_close(scores, alone, atol=1e-4, rtol=1e-4)
    assert len(reward._model.layers if backbone == "lm" else reward._model.encoder.layer) == manifest["block"] + 1
    assert "| accuracy |" in (out / "README.md").read_text()


def test_the_same_folder_again_is_the_same_and_reads_no_model_state_twice(trained: Any, tmp_path: Path) -> None:
    first, _ = trained("one")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "states").rglob("*.safetensors")}
    second, _ = trained("two")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "states").rglob("*.safetensors")} == kept
    one, two = (RewardModel.load(str(folder)) for folder in (first, second))
    assert one.revision == two.revision
    assert one.revision != RewardModel.load(str(trained("three", "--length-neutral")[0])).revision


def test_one_of_the_blocks_that_are_tried_needs_no_states_of_its_own(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone, "_DEPTHS", (0.0, 0.5))
    _, manifest = trained("tried")
    kept = set((tmp_path / "states").rglob("*.safetensors"))
    tried = sorted({choice["block"] for choice in manifest["tried on validation"]})
    losses = [[one["loss"] for one in manifest["tried on validation"] if one["block"] == block] for block in tried]
    assert losses[0] != losses[1]
    for block in tried:
        _, alone = trained(f"alone{block}", "--block", str(block))
        assert alone["block"] == block
        assert alone["tried on validation"] == [one for one in manifest["tried on validation"] if one["block"] == block]
    assert tried == [0, 1]
    assert set((tmp_path / "states").rglob("*.safetensors")) == kept


def test_reward_and_model_are_moved_together(
    trained: Any, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where both are below the working directory, as in a project that is cloned elsewhere."""
    (tmp_path / "project" / "models").mkdir(parents=True)
    shutil.copytree(world / "lm", tmp_path / "project" / "models" / "lm")
    monkeypatch.chdir(tmp_path / "project")
    out, _ = trained("project/rewards/one", backbone=str(Path.cwd() / "models" / "lm"))
    assert json.loads((out / "config.json").read_text())["backbone"] == "./../../models/lm"
    before = RewardModel.load(str(out)).revision
    (tmp_path / "project").rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert RewardModel.load("elsewhere/rewards/one").revision == before
    shutil.rmtree("elsewhere/models")
    with pytest.raises(Exception, match=r"no longer where it was; put that model, or a link to it, at .*one/backbone"):
        RewardModel.load("elsewhere/rewards/one")


def test_the_last_blocks_are_trained_and_loaded(trained: Any, world: Path) -> None:
    out, manifest = trained("tuned", "--block", "1", "--finetune", "1", "--batch-size", "4")
    losses = manifest["finetuning"]["validation losses"]
    assert min(losses) <= losses[0]
    assert manifest["held out"]["accuracy"]["mean"] == 1.0
    assert not (out / "latest.safetensors").exists()
    assert RewardModel.load(str(out)).score([user("Why?")], ["So."]).isfinite().all()


def test_prompts_that_a_reward_was_trained_on_are_refused(trained: Any, run_cli: Cli) -> None:
    out, _ = trained("seen")
    assert run_cli("--methods", "unsteered", "--reward-model", str(out)).exit_code == 0  # its splits are the study's
    listed = out / "training_prompts.json"
    held = json.loads(listed.read_text())
    from steerbench.contract import tiny

    assert held["prompts"]
    listed.write_text(trained_on(tiny.examples()).write())
    result = run_cli("--methods", "unsteered", "--reward-model", str(out))
    assert result.exit_code == 2
    assert "was trained on 4 of the 4 test and validation" in result.output.replace("\n", " ")


def test_two_halves_have_no_prompt_in_common(trained: Any) -> None:
    whole, both = trained("whole"), [trained(f"half{half}", "--half", str(half)) for half in (0, 1)]
    seen = [set(json.loads((out / "training_prompts.json").read_text())["prompts"]) for out, _ in (whole, *both)]
    assert seen[1] | seen[2] == seen[0]
    assert not seen[1] & seen[2]
    assert abs(len(seen[1]) - len(seen[2])) <= 1
    assert [manifest.get("half") for _, manifest in (whole, *both)] == [None, 0, 1]
    assert all(manifest["pairs"]["test"] == whole[1]["pairs"]["test"] for _, manifest in both)


def test_a_backbone_that_was_moved_or_changed(trained: Any, world: Path, tmp_path: Path) -> None:
    out, _ = trained("moved")
    before = RewardModel.load(str(out)).revision
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"backbone": "/nowhere"}))
    with pytest.raises(Exception, match="no longer where it was"):
        RewardModel.load(str(out))
    shutil.copytree(world / "lm", out / "backbone")
    assert RewardModel.load(str(out)).revision == before
    (out / "backbone" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(Exception, match="fitted on another model"):
        RewardModel.load(str(out))


def test_evidence_is_of_pairs_and_their_groups() -> None:
    from steerbench.contract import tiny

    examples = tiny.examples()[:8]
    margins = np.array([1.0, -1, 1, 1, 1, 1, 1, -1])
    found = evidence(examples, margins, np.array([0.1, 0.1, 0.1, -0.1, 2, 2, 2, 2]))
    assert found["accuracy"]["mean"] == 0.75
    assert found["longer wins"]["mean"] == pytest.approx(7 / 8)
    assert found["accuracy at equal length"]["pairs"] == 4
    assert found["accuracy"]["low"] < 0.75 < found["accuracy"]["high"]
    assert Head(np.ones(2), 0.5).scores(np.ones((3, 2))).tolist() == [2.5] * 3


def test_a_check_has_the_figures_that_the_training_told(trained: Any, world: Path, cli: Cli) -> None:
    """On the task that the reward was trained for; its own scores, pair by pair."""
    out, manifest = trained("checked")
    other, _ = trained("other", "--block", "0", "--length-neutral")
    given = ("--data", str(world / "hh_rlhf.jsonl"))
    found = check_rewards(RewardCheck(rewards=[str(out), str(other)], data=world / "hh_rlhf.jsonl"))
    told = found["rewards"][str(out)]
    assert told["held out"] == approximately(manifest["held out"])
    assert told["probes"] == manifest["probes"]
    assert [one["length neutral"] for one in found["rewards"].values()] == [False, True]
    assert set(found["agreement"]) == {"same side", "rank correlation"}
    result = cli("reward", "check", str(out), str(out), *given)
    assert result.exit_code == 0, result.output
    assert "same side" in result.output
    assert "1.000" in result.output
    assert cli("reward", "check", str(out), "--max-tokens", "2", *given).exit_code == 2


def approximately(figures: Any) -> Any:
    """Return figures such that others that are equal but for the last bits of scores compare as equal."""
    if isinstance(figures, dict):
        return {name: approximately(value) for name, value in figures.items()}
    return pytest.approx(figures, rel=0.02, abs=1e-3)


def test_prompts_that_a_reward_was_trained_on_are_no_evidence(trained: Any, world: Path) -> None:
    out, _ = trained("known")
    data = world / "hh_rlhf.jsonl"
    before = check_rewards(RewardCheck(rewards=[str(out)], data=data))
    task = build_task(parse_tasks("hh_rlhf")[0])
    (out / "training_prompts.json").write_text(trained_on(load_data(task, data).test[:3]).write())
    found = check_rewards(RewardCheck(rewards=[str(out)], data=data))
    left = found["left out"]["prompt that one of them was trained on"]
    assert left >= 3
    pairs = [one["rewards"][str(out)]["held out"]["pairs"] for one in (before, found)]
    assert pairs[0] - pairs[1] == left


def test_a_length_neutral_reward_may_not_go_by_length_and_is_weak_where_it_does_not_beat_it() -> None:
    def told(*, neutral: bool, at_equal: float) -> list[str]:
        figures = {"accuracy over longer wins": {"low": -0.01}, "accuracy at equal length": {"low": at_equal}}
        return verdicts({"held out": figures, "probes": {}, "length neutral": neutral})

    assert told(neutral=True, at_equal=0.55)[0].startswith("It is weak: not surely better")
    assert told(neutral=True, at_equal=0.5) == told(neutral=False, at_equal=0.55)
    assert told(neutral=False, at_equal=0.55)[0].endswith("do not use it as a reward.")
