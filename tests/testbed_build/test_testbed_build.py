"""Building a testbed: the data it writes, the training loop, and a whole build with next to no training."""

import gzip
import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from steerbench.data.dialogue import Turn, parse_hh, plain_text, user
from steerbench.data.splits import folder_of, load_data
from steerbench.errors import SteerbenchError
from steerbench.plugins import registry
from steerbench.progress import silent
from steerbench.testbed import MANIFEST, Testbed, around, named
from steerbench.testbed import preferences as records
from steerbench.testbed.gold import gold, on_template
from steerbench.testbed.instructions import Instruction
from steerbench.testbed.world import World
from steerbench.testbed_build import bounds
from steerbench.testbed_build.build import RECIPES, build
from steerbench.testbed_build.language import (
    SHARPNESS,
    Reading,
    Row,
    asked_at,
    blank,
    ids_of,
    meaning,
    settle,
    texts,
)
from steerbench.testbed_build.manifest import damage
from steerbench.testbed_build.muon import Muon, orthogonal
from steerbench.testbed_build.quality import interval
from steerbench.testbed_build.rewards import (
    TEMPERATURE,
    WRECKED,
    bradley_terry,
    info_nce,
    pairs,
    sinusoids,
    train_encoder,
    train_held_out,
)
from steerbench.testbed_build.tokenizer import CONTEXT, VOCABULARY, for_chat, for_encoder, learn
from steerbench.testbed_build.training import Recipe, Setting, batches_of, padded, train

SHP_FIELDS = {
    "post_id": str,
    "domain": str,
    "upvote_ratio": float,
    "history": str,
    "c_root_id_A": str,
    "c_root_id_B": str,
    "created_at_utc_A": int,
    "created_at_utc_B": int,
    "score_A": int,
    "score_B": int,
    "human_ref_A": str,
    "human_ref_B": str,
    "labels": int,
    "seconds_difference": float,
    "score_ratio": float,
}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


# Data


SIZES = {split: size // 5 for split, size in records.SIZES.items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """A fifth of the records of a testbed; `tests/testbed` has those that ship."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "SIZES", SIZES)
        return folder, records.write(World(0), folder)


@pytest.mark.parametrize("task", ["hh_rlhf", "shp"])
def test_every_record_written_can_be_used(data: tuple[Path, set[str]], task: str) -> None:
    found = load_data(registry.load("tasks", task)(), folder_of(task, data[0]))
    assert not found.skipped
    assert {name: len(getattr(found, name)) for name in records.SIZES} == SIZES
    assert records.SIZES["train"] >= 2000
    assert records.SIZES["validation"] >= 300
    assert records.SIZES["test"] >= 500


@pytest.mark.parametrize("task", ["hh_rlhf", "shp"])
def test_splits_share_no_opening(data: tuple[Path, set[str]], task: str) -> None:
    found = load_data(registry.load("tasks", task)(), folder_of(task, data[0]))
    openings = [{e.prompt[0].text for e in getattr(found, name)} for name in records.SIZES]
    assert not openings[0] & openings[1] | openings[0] & openings[2] | openings[1] & openings[2]
    assert openings[1] | openings[2] <= data[1]
    assert not openings[0] & data[1]


def test_hh_rlhf_records_have_its_schema(data: tuple[Path, set[str]]) -> None:
    for row in rows(data[0] / "hh_rlhf" / "train.jsonl.gz"):
        assert set(row) == {"chosen", "rejected"}
        assert all(text.startswith("\n\nHuman: ") for text in row.values())
        chosen, rejected = (parse_hh(text) for text in row.values())
        assert chosen[:-1] == rejected[:-1]
        assert [turn.role for turn in chosen] == ["user", "assistant"] * (len(chosen) // 2)


def test_shp_records_have_all_fields_of_its_schema(data: tuple[Path, set[str]]) -> None:
    found = [row for split in records.SIZES for row in rows(data[0] / "shp" / f"{split}.jsonl.gz")]
    for row in found:
        assert {name: type(value) for name, value in row.items()} == SHP_FIELDS
        assert row["labels"] == (row["score_A"] > row["score_B"])
        assert row["score_ratio"] == pytest.approx(
            max(row["score_A"], row["score_B"]) / min(row["score_A"], row["score_B"]), abs=1e-5
        )
        assert row["seconds_difference"] == row["created_at_utc_B"] - row["created_at_utc_A"]
        assert row["domain"].startswith("testbed")
    assert 0.4 < np.mean([row["labels"] for row in found]) < 0.6


def test_judges_prefer_gold_with_the_odds_of_bradley_and_terry(data: tuple[Path, set[str]]) -> None:
    examples = load_data(registry.load("tasks", "hh_rlhf")(), data[0] / "hh_rlhf").train
    gaps = np.array([gold(e.prompt, e.chosen) - gold(e.prompt, e.rejected) for e in examples])
    assert 0.75 < (gaps[gaps != 0] > 0).mean() < 0.95
    for low, high in ((0.0, 1.0), (1.0, 2.0), (2.0, 4.0)):
        band = gaps[(abs(gaps) > low) & (abs(gaps) <= high)]
        expected = np.mean(1 / (1 + np.exp(-abs(band) / records.NOISE)))
        assert (band > 0).mean() == pytest.approx(expected, abs=4 * math.sqrt(0.25 / len(band)))


def test_equal_seeds_write_equal_bytes(
    data: tuple[Path, set[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "SIZES", SIZES)
    records.write(World(0), tmp_path)
    for path in sorted(data[0].rglob("*.gz")):
        assert path.read_bytes() == (tmp_path / path.relative_to(data[0])).read_bytes()


def test_the_opening_of_a_dialogue_is_its_question_without_the_persona() -> None:
    assert records.opening(user("How do I sing?")) == "How do I sing?"
    assert records.opening((Turn("system", "Be kind."), *user("You are good.\nHow do I sing?"))) == "How do I sing?"


# Tokens


@pytest.fixture(scope="module")
def learned() -> Any:
    return learn(turn.text for text in texts(World(0), "tokenizer", 1000) for turn in text.dialogue)


def test_the_tokenizer_gives_back_any_text(learned: Any) -> None:
    chat = for_chat(learned)
    for text in ("How do I boil eggs? I see.", "Zoë’s\tnaïve 🎻\n", "<|user|>"):
        ids = chat(text, add_special_tokens=False)["input_ids"]
        assert chat.decode(ids, clean_up_tokenization_spaces=False) == text
    assert len(chat) <= VOCABULARY


def test_dialogues_are_written_with_one_mark_for_each_turn(learned: Any) -> None:
    chat = for_chat(learned)
    dialogue = (Turn("system", "Be kind."), Turn("user", "Hello."), Turn("assistant", "Hi."))
    [ids] = ids_of(chat, [dialogue])
    assert chat.decode(ids) == "<|system|>Be kind.<|end|><|user|>Hello.<|end|><|assistant|>Hi.<|end|>"
    assert ids[-1] == chat.eos_token_id


def test_texts_for_the_encoder_stand_between_marks(learned: Any) -> None:
    bare = for_encoder(learned)
    assert bare.decode(bare("Hello.")["input_ids"]) == "<|cls|>Hello.<|sep|>"


# Training


def test_batches_hold_every_row_once_in_a_pass_and_stay_within_bounds() -> None:
    rng = random.Random(0)
    rows = [list(range(rng.randint(1, 40))) for _ in range(500)]
    batches = batches_of(rows, rng, len, lambda n, longest: n * longest <= 200)
    seen: list[list[int]] = []
    while len(seen) < len(rows):
        batch = next(batches)
        assert len(batch) * max(map(len, batch)) <= 200
        seen += batch
    assert sorted(map(len, seen)) == sorted(map(len, rows))


def test_padding_is_on_the_right_and_masked() -> None:
    ids, mask = padded([[5, 6], [7]], 0, torch.device("cpu"))
    assert ids.tolist() == [[5, 6], [7, 0]]
    assert mask.tolist() == [[1, 1], [1, 0]]


def test_the_training_loop_minimises_the_loss() -> None:
    """Linear regression has a known answer."""
    torch.manual_seed(0)
    model, weights, bias = nn.Linear(16, 16), torch.randn(16, 16), torch.linspace(-0.3, 0.3, 16)

    def batches() -> Iterator[torch.Tensor]:
        while True:
            yield torch.randn(64, 16)

    def loss_of(x: torch.Tensor) -> torch.Tensor:
        return torch.mean((model(x).float() - x @ weights.T - bias) ** 2)

    setting = Setting(World(0), set(), torch.device("cpu"), silent)
    loss = train("a line", model, batches(), loss_of, Recipe(steps=1000, batch=64, rate=0.05), setting)
    assert loss < 0.01
    assert torch.allclose(model.weight, weights, atol=0.05)
    assert torch.allclose(model.bias, bias, atol=0.05)
    assert not model.training


def test_preferences_are_learned_by_the_loss_of_bradley_and_terry() -> None:
    chosen, rejected = [2.0, 0.5, -1.0], [1.0, 1.5, -3.0]
    expected = np.mean([-math.log(1 / (1 + math.exp(b - a))) for a, b in zip(chosen, rejected, strict=True)])
    assert bradley_terry(torch.tensor(chosen + rejected)).item() == pytest.approx(expected)


def test_the_encoder_learns_to_find_both_ways() -> None:
    prompts, replies = torch.eye(3)[[0, 1, 1]], torch.eye(3)[[0, 1, 2]]
    scores = (prompts @ replies.T / TEMPERATURE).double()
    forward = [-math.log(math.exp(row[i]) / sum(map(math.exp, row))) for i, row in enumerate(scores.tolist())]
    backward = [-math.log(math.exp(row[i]) / sum(map(math.exp, row))) for i, row in enumerate(scores.T.tolist())]
    assert info_nce(prompts, replies).item() == pytest.approx(np.mean(forward) + np.mean(backward), rel=1e-5)


def test_a_step_to_the_next_place_is_one_linear_map() -> None:
    codes = sinusoids(64, 8).double()
    step = torch.linalg.lstsq(codes[:-1], codes[1:]).solution
    assert torch.allclose(codes[:-1] @ step, codes[1:], atol=1e-4)
    assert float(codes.square().mean()) == pytest.approx(1.0)


def test_the_places_of_the_encoder_start_as_sinusoids(learned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steerbench.testbed_build.rewards.train", lambda *_: 0.0)
    setting = Setting(World(0), set(), torch.device("cpu"), silent)
    model = train_encoder(setting, learned, Recipe(steps=1, batch=4, rate=0.0)).model
    places = model.embeddings.position_embeddings.weight.data
    codes = sinusoids(*places.shape)
    assert torch.allclose(places / places.square().mean().sqrt(), codes / codes.square().mean().sqrt(), atol=1e-3)


@pytest.mark.slow
def test_rewards_rank_the_chosen_above_the_rejected_after_a_few_steps(learned: Any) -> None:
    """The sign, from end to end: a few steps on a handful of pairs, and the pairs are learned."""
    setting = Setting(World(0), set(), torch.device("cpu"), silent)
    encoder, tokenizer, _ = train_encoder(setting, learned, Recipe(steps=1, batch=4, rate=0.0))
    recipe = Recipe(steps=40, batch=2, rate=0.01)
    trained = train_held_out(setting, encoder, tokenizer, Recipe(steps=1, batch=2, rate=0.0), recipe)
    seen = pairs(setting, "held-out reward", recipe)
    gaps = []
    for each in seen:
        rows = tokenizer([plain_text(each.prompt, reply) for reply in (each.chosen, each.rejected)])["input_ids"]
        ids, mask = padded(rows, tokenizer.pad_token_id, torch.device("cpu"))
        chosen, rejected = trained.model(input_ids=ids, attention_mask=mask).logits[:, 0].tolist()
        gaps.append(chosen - rejected)
    assert np.mean(gaps) > 0


def test_a_quarter_of_the_pairs_of_a_reward_hold_a_wreck_and_none_of_the_encoders() -> None:
    setting, recipe = Setting(World(0), set(), torch.device("cpu"), silent), Recipe(steps=1, batch=400, rate=0.0)
    shares = [
        np.mean([not on_template(each.rejected) for each in pairs(setting, "share", recipe, wrecked=wrecked)])
        for wrecked in (0.0, WRECKED)
    ]
    assert shares[0] == 0
    assert shares[1] == pytest.approx(WRECKED * 5 / 6, abs=0.07)  # what is off topic is on the template


def test_settling_scales_the_logits_and_shortens_the_states(learned: Any) -> None:
    torch.manual_seed(0)
    model, ids = blank(for_chat(learned)), torch.tensor([[5, 6, 7, 300]])
    for layer in model.model.layers:  # states as long as Muon leaves them
        layer.mlp.down_proj.weight.data.mul_(3e4)
        layer.self_attn.o_proj.weight.data.mul_(3e3)
    model.model.embed_tokens.weight.data.mul_(50)
    with torch.no_grad():
        found = model(input_ids=ids, output_hidden_states=True)
        before, long = found.logits, float(found.hidden_states[3].square().mean().sqrt())
        settle(model)
        after = model(input_ids=ids, output_hidden_states=True)
    assert torch.allclose(after.logits, SHARPNESS * before, rtol=1e-2, atol=2e-2 * float(before.std()))
    assert 0.3 < float(after.hidden_states[3].square().mean().sqrt()) < 3 < long
    assert model.dtype == torch.float32


# What instructions mean


def test_maps_are_asked_where_an_instruction_ends_and_where_replies_begin(learned: Any) -> None:
    chat = for_chat(learned)
    question, reply = Turn("user", "How do I sing?"), Turn("assistant", "Not again.")
    dialogues = [
        (Turn("system", "Be kind."), question, reply, question, reply),
        (Turn("user", "Be kind.\nHow do I sing?"), reply),
        (question, reply),
    ]
    rows = [
        Row(ids, told) for ids, told in zip(ids_of(chat, dialogues), [(1, 0, 2, 0), (0, 0, 1, 1), None], strict=True)
    ]
    ids, _ = padded([row.ids for row in rows], chat.pad_token_id, torch.device("cpu"))
    fronts, replies, told = asked_at(chat, rows, ids)
    read = [[chat.decode(row[: int(i) + 1]) for i in mask.nonzero()] for row, mask in zip(ids, fronts, strict=True)]
    assert read == [["<|system|>Be kind.<|end|>"], ["<|user|>Be kind.\n"], []]
    assert [chat.decode(row[mask]) for row, mask in zip(ids, replies, strict=True)] == [
        "<|assistant|><|assistant|>",
        "<|assistant|>",
        "",
    ]
    assert told.tolist() == [[1, 0, 2, 0], [0, 0, 1, 1], [0, 0, 0, 0]]


def test_the_loss_of_the_maps_is_their_mean_cross_entropy(learned: Any) -> None:
    torch.manual_seed(0)
    reading = Reading(blank(for_chat(learned)))
    width = reading.model.config.hidden_size
    states = [torch.randn(2, 5, width) for _ in range(6)]
    fronts, replies = torch.zeros(2, 5, dtype=torch.bool), torch.zeros(2, 5, dtype=torch.bool)
    fronts[0, 1] = fronts[1, 2] = replies[1, 4] = True
    told = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]])
    expected = []
    for head, block, where in ((reading.front, 3, [(0, 1), (1, 2)]), (reading.reply, 4, [(1, 4)])):
        costs = []
        for row, position in where:
            state = states[block][row, position]
            answers = head(state / state.square().mean().sqrt()).reshape(4, 3).log_softmax(-1)
            costs += [-answers[attribute, told[row, attribute]].item() for attribute in range(4)]
        expected.append(np.mean(costs))
    assert reading.loss(states, fronts, replies, told).item() == pytest.approx(np.mean(expected), rel=1e-4)
    nothing = torch.zeros(2, 5, dtype=torch.bool)
    assert reading.loss(states, nothing, nothing, told).item() == 0


def test_the_meaning_of_an_instruction_is_the_way_it_moves_each_attribute() -> None:
    assert meaning(Instruction("Be rude, but not short.", (0.0, 3.0, -3.0, 0.0))) == (0, 1, 2, 0)
    assert meaning(None) is None


# Muon


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
def test_muon_steps_as_the_one_of_torch(shape: tuple[int, int]) -> None:
    """But for the precision: torch's multiplies in bf16."""
    torch.manual_seed(0)
    start = [torch.randn(shape) for _ in range(3)]
    ours, theirs = ([each.clone().requires_grad_() for each in start] for _ in range(2))
    optimisers = [Muon(ours, lr=0.1), torch.optim.Muon(theirs, lr=0.1, weight_decay=0.0, momentum=0.95)]
    for _ in range(4):
        for own, other in zip(ours, theirs, strict=True):
            own.grad = torch.randn(shape)
            other.grad = own.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    for own, other, before in zip(ours, theirs, start, strict=True):
        assert (own - other).norm() < 0.03 * (own - before).norm()


def test_muon_leaves_a_matrix_that_the_loss_does_not_reach() -> None:
    torch.manual_seed(0)
    reached, other = (torch.randn(12, 12).requires_grad_() for _ in range(2))
    before = [each.detach().clone() for each in (reached, other)]
    optimiser = Muon([reached, other], lr=0.1)
    torch.autograd.backward(reached.square().sum())
    optimiser.step()
    assert not torch.equal(reached, before[0])
    assert torch.equal(other, before[1])


def test_steps_of_muon_are_nearly_orthogonal() -> None:
    torch.manual_seed(0)
    for shape in ((2, 30, 50), (3, 50, 30)):
        singular = torch.linalg.svdvals(orthogonal(torch.randn(shape)).float())
        assert 0.5 < float(singular.min()) < float(singular.max()) < 1.3


# A whole build


@pytest.fixture(scope="module", params=[pytest.param(None, marks=pytest.mark.slow)], ids=["seed 7"])
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A testbed whose models have seen one batch."""
    folder = tmp_path_factory.mktemp("built") / "seven"
    recipes = {part: replace(recipe, steps=1, batch=recipe.batch // 16) for part, recipe in RECIPES.items()}
    build(folder, 7, "cpu", recipes=recipes, n_quality=4)
    return folder


def test_a_built_testbed_is_whole(built: Path) -> None:
    home = named(str(built))
    assert home == Testbed(built)
    assert home.name == "testbed-seed7"
    assert not damage(home)
    assert home.manifest["seed"] == 7
    assert set(home.manifest["training"]) == set(RECIPES) - {"questions"}
    assert home.manifest["bytes"] == sum(
        p.stat().st_size for p in built.rglob("*") if p.is_file() and p.name != MANIFEST
    )


def test_its_models_load_with_any_tool_in_half_precision(built: Path) -> None:
    kinds = {
        "lm": AutoModelForCausalLM,
        "reward": AutoModelForSequenceClassification,
        "held_out_reward": AutoModelForSequenceClassification,
        "encoder": AutoModel,
    }
    for part, kind in kinds.items():
        model = kind.from_pretrained(built / part)
        tokenizer = AutoTokenizer.from_pretrained(built / part)
        assert model.dtype == torch.float16
        assert len(tokenizer) == model.config.vocab_size
        assert tokenizer.model_max_length == CONTEXT
        assert model.config.max_position_embeddings >= 512
    assert AutoModelForCausalLM.from_pretrained(built / "lm").config.model_type == "llama"


def test_its_files_can_be_read_by_everybody(built: Path) -> None:
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in built.rglob("*") if path.is_file())


def test_damage_is_named(built: Path) -> None:
    home, extra, readme = Testbed(built), built / "lm" / "extra.txt", built / "lm" / "config.json"
    extra.write_text("x")
    original = readme.read_bytes()
    readme.write_bytes(original + b" ")
    try:
        assert damage(home) == ["lm/config.json has changed", "lm/extra.txt does not belong there"]
    finally:
        extra.unlink()
        readme.write_bytes(original)
    assert not damage(home)


def test_a_folder_that_holds_something_is_refused(built: Path) -> None:
    with pytest.raises(SteerbenchError, match=r"is not empty; give a new folder with --out"):
        build(built, 0)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SteerbenchError, match=r"cannot make .*; give another folder with --out"):
        build(tmp_path / "file" / "world")


def test_nothing_of_a_build_is_left_beside_it(built: Path) -> None:
    assert [path.name for path in built.parent.iterdir()] == [built.name]


def test_what_lies_in_a_testbed_is_known(built: Path, tmp_path: Path) -> None:
    assert around(built / "data" / "shp" / "test.jsonl.gz") == Testbed(built)
    assert around(built / "lm") == Testbed(built)
    assert around(tmp_path) is None


def test_a_damaged_manifest_is_told(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("{", encoding="utf-8")
    with pytest.raises(SteerbenchError, match="cannot be read"):
        _ = Testbed(tmp_path).manifest
    (tmp_path / MANIFEST).write_text("{}", encoding="utf-8")
    with pytest.raises(SteerbenchError, match="is not in the format"):
        _ = Testbed(tmp_path).manifest


# Figures


def figures(**changes: float) -> dict[str, Any]:
    low, high = bounds.AT_LEAST, bounds.AT_MOST
    both = {name: (low[name] + high[name]) / 2 for name in low if name in high}
    good: dict[str, Any] = dict.fromkeys(low, 1.5) | dict.fromkeys(high, -0.1) | both
    return good | changes


def test_figures_out_of_bounds_are_named() -> None:
    assert not bounds.shortfalls(figures())
    assert bounds.shortfalls(figures(on_template=0.89)) == ["on_template is 0.890, below 0.9"]
    assert bounds.shortfalls(figures(random_direction=-0.5)) == ["random_direction is -0.500, above 0.25"]
    assert bounds.shortfalls(figures(negated=0.1)) == ["negated is 0.100, above 0.0"]
    assert bounds.shortfalls(figures(guide_above_echoed=0.4)) == ["guide_above_echoed is 0.400, below 0.5"]
    assert bounds.shortfalls(figures(state_norm=900.0)) == ["state_norm is 900.000, above 100.0"]
    assert bounds.shortfalls(figures(persona=float("nan"))) == ["persona is nan, below 1.0"]


def test_figures_that_moved_are_named() -> None:
    effect = {"mean": 2.0, "low": 1.0, "high": 3.0}
    assert not bounds.drift({"a": 1.0, "b": effect, "samples": [1]}, {"a": 1.04, "b": effect, "samples": [2]})
    assert bounds.drift({"a": 1.0}, {"a": 1.2}) == ["a was 1.000 and is 1.200"]


def test_an_effect_has_an_interval_around_its_mean() -> None:
    found = interval(np.random.default_rng(0).normal(1.0, 2.0, 400))
    assert found.low < found.mean < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * 2.0 / math.sqrt(400), rel=0.15)
    assert interval(np.ones(5)) == (1.0, 1.0, 1.0)
