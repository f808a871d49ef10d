"""`steerbench latency`: what is timed, in which order, the arithmetic, the record. No test waits for a clock."""

import itertools
import json
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import FalconConfig, T5Config
from typer.testing import Result

from steerbench import (
    Add,
    Edit,
    LanguageModel,
    PlacedEdit,
    PromptPart,
    Site,
    SteerbenchError,
    Steering,
    Turn,
    latency,
    tiny,
)
from steerbench.latency import Timing, clocks
from steerbench.latency import grid as grids
from steerbench.latency.grid import AGAIN, Grid, grid_prompts, orders, ratio, time_grid
from steerbench.latency.prompts import fixed_prompts
from steerbench.latency.records import load_latency, write_latency
from steerbench.latency.shapes import SHAPES, _made, _read, random_model
from steerbench.testbed import Testbed, named
from steerbench.tiny import VowelReward

Cli = Callable[..., Result]

CPU = torch.device("cpu")
SHIFT = Steering(edits=(PlacedEdit(Site("resid_post", 1), Add(torch.ones(32))),))
SMALL = {
    "model_type": "llama",
    "vocab_size": 4100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": 7,
}
PLUGIN = """
from dataclasses import dataclass
from steerbench import FitContext, Steerer, Steering
@dataclass(frozen=True, kw_only=True)
class Broken(Steerer):
    off = {}
    def fit(self, context: FitContext) -> Steering:
        raise ZeroDivisionError("my own fault")
"""


class Prefix(PromptPart):
    def __call__(self, dialogue: Any) -> Any:
        return (Turn("system", "Be brief."), *dialogue)


def run(lm: LanguageModel, grid: Grid, **steerings: Steering) -> list[dict[str, Any]]:
    return time_grid(lm, steerings, VowelReward(), grid, grid_prompts(lm, grid))


def grid(**settings: Any) -> Grid:
    few: dict[str, Any] = {"batch_sizes": (1,), "prompt_tokens": (24,), "new_tokens": 3, "rounds": 2}
    return Grid(**few | settings)


def by_method(cell: dict[str, Any]) -> dict[str, Any]:
    return {arm["method"]: arm for arm in cell["arms"]}


def hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# order


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_order_changes_and_is_balanced(count: int) -> None:
    found = list(orders(count, 20, seed=0))
    assert found == list(orders(count, 20, seed=0))
    assert all(sorted(order) == list(range(count)) for order in found)
    assert all(a != b for a, b in itertools.pairwise(found))
    before = Counter((a, b) for order in found for i, a in enumerate(order) for b in order[i + 1 :])
    assert set(before.values()) == {10}  # of 20 rounds
    assert count == 2 or found != list(orders(count, 20, seed=1))


def test_arms_are_timed_in_turns_and_compared_within_rounds(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []

    def fake(lm: Any, dialogues: Sequence[Any], steering: Steering, reward: Any, new: int) -> Timing:
        """Pretend that each round is twice as slow, and that steering costs half as much again after the prefill."""
        slow = 2.0 ** (len(calls) // 4)
        calls.append((len(dialogues), len(steering.edits)))
        cost = 1 + len(steering.edits) / 2
        return Timing(slow, slow + slow * cost * (new - 1), peak=len(calls))

    monkeypatch.setattr(grids, "timed", fake)
    (cell,) = run(llama, grid(batch_sizes=(2,), new_tokens=5, rounds=6), one=SHIFT, two=SHIFT + SHIFT)
    rounds = [calls[i : i + 4] for i in range(0, len(calls), 4)]
    assert len(rounds) == 7  # the first warms up
    assert all(sorted(calls) == [(2, 0), (2, 0), (2, 1), (2, 2)] for calls in rounds)
    assert len({tuple(calls) for calls in rounds}) > 2
    arms = by_method(cell)
    assert list(arms) == ["unsteered", AGAIN, "one", "two"]
    assert arms["unsteered"]["ratios"] == {}
    for name, total in ((AGAIN, 1.0), ("one", 7 / 5), ("two", 9 / 5)):
        ratios = arms[name]["ratios"]
        decode = 1.0 if name == AGAIN else {"one": 1.5, "two": 2.0}[name]
        for what, expected in (("prefill", 1.0), ("decode", decode), ("total", total)):
            assert ratios[what] == pytest.approx({"median": expected, "low": expected, "high": expected})
    assert arms["one"]["seconds"]["first"] == [2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
    assert arms["one"]["prefill_ms"] == 12_000  # between 8 and 16
    assert arms["one"]["decode_ms_per_token"] == 18_000
    assert arms["two"]["tokens_per_s"] == pytest.approx(2 * 5 / (9 * 12))
    assert max(arm["peak_memory_mb"] for arm in arms.values()) == 28


def test_ratios_against_a_fake_clock(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass through the model takes a second, and one through the edit a quarter."""
    now = [0.0]

    class Slow(Edit):
        def forward(self, h: Tensor, state: Any) -> Tensor:
            now[0] += 0.25
            return h + 1

    def tick(*_: Any) -> None:
        now[0] += 1

    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    handle = llama.model.register_forward_pre_hook(tick)
    slow = Steering(edits=(PlacedEdit(Site("resid_post", 0), Slow()),))
    (cell,) = run(llama, grid(batch_sizes=(4,), new_tokens=5), slow=slow)
    handle.remove()
    base, arm = by_method(cell)["unsteered"], by_method(cell)["slow"]
    assert (base["prefill_ms"], base["decode_ms_per_token"], base["tokens_per_s"]) == (1000, 1000, 4.0)
    assert (arm["prefill_ms"], arm["decode_ms_per_token"], arm["tokens_per_s"]) == (1250, 1250, 3.2)
    assert {name: r["median"] for name, r in arm["ratios"].items()} == dict.fromkeys(
        ("prefill", "decode", "total"), 1.25
    )


def test_the_ratio_is_the_median_within_rounds() -> None:
    pairs = [(2.0, 1.0), (30.0, 10.0), (4.0, 4.0), (50.0, 10.0), (6.0, 4.0)]  # 2, 3, 1, 5, 1.5
    found = ratio(pairs)
    assert found["median"] == 2
    generator = torch.Generator().manual_seed(3)
    values = torch.tensor([2, 3, 1, 5, 1.5])
    medians = values[torch.randint(5, (20_000, 5), generator=generator)].median(dim=1).values
    assert [found["low"], found["high"]] == medians.quantile(torch.tensor([0.025, 0.975])).tolist()
    assert ratio(pairs[:1]) == {"median": 2, "low": None, "high": None}


# prompts


@pytest.mark.parametrize("n_tokens", [22, 23, 33, 100])
def test_prompts_have_the_length_asked_for(llama: LanguageModel, n_tokens: int) -> None:
    prompts = fixed_prompts(llama, n_tokens, 5)
    assert {len(llama.tokens(prompt).prompt) for prompt in prompts} == {n_tokens}
    assert len(set(prompts)) == 5
    assert fixed_prompts(llama, n_tokens, 2) == prompts[:2]
    assert fixed_prompts(llama, n_tokens, 1, seed=1) != prompts[:1]


def test_prompts_with_a_chat_template() -> None:
    home = named("testbed")
    assert isinstance(home, Testbed)
    lm = LanguageModel.load(home.part("lm"))
    for n_tokens in (8, 32, 33, 200):
        assert {len(lm.tokens(prompt).prompt) for prompt in fixed_prompts(lm, n_tokens, 4)} == {n_tokens}


def test_a_prompt_too_short_for_the_format(llama: LanguageModel) -> None:
    with pytest.raises(SteerbenchError, match=r"has 20 tokens with a single word in it; raise --prompt-tokens from 19"):
        fixed_prompts(llama, 19, 1)


def test_every_pass_has_whole_rows_and_there_are_as_many_as_tokens(llama: LanguageModel) -> None:
    """Nothing is padded, and every run makes all of its tokens: the steered prompt is longer by what was added."""
    seen: list[tuple[int, ...]] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(tuple(kwargs["input_ids"].shape))
        mask = kwargs.get("attention_mask")
        assert mask is None or bool(mask.all())

    handle = llama.model.register_forward_pre_hook(note, with_kwargs=True)
    (cell,) = run(llama, grid(batch_sizes=(3,), new_tokens=4, rounds=1), prompt=Steering(prompt=(Prefix(),)))
    handle.remove()
    added = len("Be brief.\n\n")
    passes = Counter(seen)
    runs = 2 * 2  # rounds, with the one that warms up, and twice in each
    assert passes == {(3, 24): 2 * runs, (3, 24 + added): runs, (3, 1): 3 * runs // 2 * 3}
    assert [arm["prompt_tokens"] for arm in cell["arms"]] == [24, 24, 24 + added]


# what goes wrong in a cell


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_a_method_without_memory_in_one_cell_stops_no_other(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    real = latency.timed

    def timed(lm: Any, dialogues: Any, steering: Steering, *rest: Any) -> Timing:
        if len(dialogues) == 2 and steering.edits:
            raise error
        return real(lm, dialogues, steering, *rest)

    monkeypatch.setattr(grids, "timed", timed)
    cells = run(llama, grid(batch_sizes=(1, 2, 3)), shift=SHIFT, plain=Steering())
    assert [("problem" in by_method(cell)["shift"]) for cell in cells] == [False, True, False]
    assert by_method(cells[1])["shift"] == {"method": "shift", "prompt_tokens": 24, "problem": "out of memory"}
    for cell in cells:
        for name in ("unsteered", AGAIN, "plain"):
            assert by_method(cell)[name]["tokens_per_s"] > 0


def test_without_the_unsteered_model_a_cell_is_empty(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def timed(lm: Any, dialogues: Any, *rest: Any) -> Timing:
        tried.append(len(dialogues))
        if len(dialogues) == 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return Timing(1.0, 2.0, 3.0)

    monkeypatch.setattr(grids, "timed", timed)
    cells = run(llama, grid(batch_sizes=(2, 1)), shift=SHIFT)
    assert cells[0]["arms"][0]["problem"] == "out of memory"
    assert {arm["problem"] for arm in cells[0]["arms"]} <= {"out of memory", "the unsteered model: out of memory"}
    assert tried.count(2) <= 3
    assert all("problem" not in arm for arm in cells[1]["arms"])


def test_what_does_not_fit_the_context_is_said(llama: LanguageModel) -> None:
    """tiny models read 256 tokens: the plain prompt fits to the last token, the longer one does not."""
    (cell,) = run(llama, grid(prompt_tokens=(253,), rounds=1), prompt=Steering(prompt=(Prefix(),)))
    arms = by_method(cell)
    assert arms["prompt"]["problem"] == "264 prompt tokens and 3 new ones do not fit the context of 256"
    assert arms["unsteered"]["prefill_ms"] > 0


def test_a_bug_of_a_plugin_is_shown_and_no_hook_stays(llama: LanguageModel) -> None:
    class Broken(Edit):
        def forward(self, h: Tensor, state: Any) -> Tensor:
            raise ZeroDivisionError("my own fault")

    before = hooks(llama.model)
    broken = Steering(edits=(PlacedEdit(Site("resid_post", 0), Broken()),))
    (cell,) = run(llama, grid(), broken=broken, shift=SHIFT)
    assert "ZeroDivisionError: my own fault" in by_method(cell)["broken"]["problem"]
    assert "Traceback" in by_method(cell)["broken"]["problem"]
    assert by_method(cell)["shift"]["ratios"]["total"]["median"] > 0
    assert hooks(llama.model) == before


@pytest.mark.parametrize("settings", [{"rounds": 0}, {"new_tokens": 1}, {"batch_sizes": (0,)}, {"prompt_tokens": ()}])
def test_a_grid_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises((SteerbenchError, ValueError), match="must be 1 or more"):
        grid(**settings)


# shapes


def test_the_shapes_are_as_large_as_the_published_models() -> None:
    sizes = {"llama-3-8b": 8_030_261_248, "vicuna-7b": 6_738_415_616, "falcon-7b": 6_921_720_704}
    for name in SHAPES:
        shape = _read(name)
        model = _made(name, shape, torch.device("meta"), shape.dtype, seed=0)
        assert sum(p.numel() for p in model.parameters()) == sizes[name]
        assert {p.dtype for p in model.parameters()} == {{"vicuna-7b": torch.float16}.get(name, torch.bfloat16)}
        assert {p.device.type for p in model.parameters()} == {"meta"}  # made there, and nowhere before
        assert model.generation_config.eos_token_id is None
    assert (shape.multi_query, shape.parallel_attn, shape.rotary) == (True, True, True)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Return the folder of a small configuration."""
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMALL))
    return folder


def test_random_weights_come_from_the_seed_alone(config: Path) -> None:
    state = torch.get_rng_state()
    models = [random_model(str(config / "config.json"), device=CPU, seed=seed).model for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    one, same, other = (model.get_input_embeddings().weight for model in models)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert random_model(str(config), device=CPU).dtype == torch.float32
    assert random_model(str(config), device=CPU, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_ids_that_the_tokenizer_lacks_are_read_as_others(config: Path) -> None:
    lm = random_model(str(config), device=CPU)
    known = len(lm.tokenizer)
    word = lm.tokenizer(" bread", add_special_tokens=False)["input_ids"][0]
    assert lm.cut([word + known, word]) == lm.cut([word, word])
    assert lm.cut([word + known]).text


def test_what_is_no_configuration_is_said(tmp_path: Path, config: Path) -> None:
    named = "llama-3-8b, vicuna-7b, falcon-7b"
    with pytest.raises(SteerbenchError, match=f"'llama-3-9b' is none of {named}; give one of {named}"):
        random_model("llama-3-9b", device=CPU)
    with pytest.raises(SteerbenchError, match=r"has no config\.json; give one of llama-3-8b"):
        random_model(str(tmp_path), device=CPU)
    (config / "config.json").write_text(json.dumps(SMALL | {"vocab_size": 300}))
    with pytest.raises(SteerbenchError, match=r"a vocabulary of 300, and the testbed's tokenizer.* needs 4096"):
        random_model(str(config), device=CPU)
    (config / "config.json").write_text("{")
    with pytest.raises(SteerbenchError, match=r"config\.json cannot be read"):
        random_model(str(config), device=CPU)
    T5Config(d_model=32).save_pretrained(config)
    with pytest.raises(SteerbenchError, match="no causal language model can be made from --config"):
        random_model(str(config), device=CPU)


# the command


def timings(cli: Cli, config: Path, *args: object) -> Result:
    small = ["--batch-sizes", 2, "--prompt-tokens", 32, "--new-tokens", 2, "--rounds", 2, "--n-train", 6]
    return cli("latency", "--config", config, *small, "--out", config / "out", *args)


def test_a_configuration_alone(cli: Cli, config: Path) -> None:
    found = timings(cli, config, "--methods", "caa,iti+static_prompt,re_control", "--batch-sizes", "1,2")
    assert found.exit_code == 0, found.output
    (record,) = load_latency(config / "out")
    (path,) = (config / "out").iterdir()
    assert path.name.startswith("small--")
    assert f"written: {path}" in found.stdout
    assert "small: batch 2, 32 prompt tokens" in found.stdout
    assert "The weights are random" in found.stdout
    assert "Noise: unsteered beside itself came out prefill" in found.stdout
    assert record["model"]["weights"] == "random"
    assert (record["model"]["vocabulary"], record["model"]["layers"]) == (4100, 2)
    assert (record["model"]["dtype"], record["model"]["attention"]) == ("float32", "sdpa")
    assert list(record["methods"]) == ["caa", "iti+static_prompt", "re_control"]
    assert [part["name"] for part in record["methods"]["iti+static_prompt"]] == ["iti", "static_prompt"]
    assert record["machine"]["threads"] == torch.get_num_threads()
    assert record["grid"]["rounds"] == 2
    assert [(cell["batch_size"], cell["prompt_tokens"]) for cell in record["cells"]] == [(1, 32), (2, 32)]
    for cell in record["cells"]:
        arms = by_method(cell)
        assert list(arms) == ["unsteered", AGAIN, *record["methods"]]
        assert arms["iti+static_prompt"]["prompt_tokens"] > 32 == arms["caa"]["prompt_tokens"]
        for arm in arms.values():
            assert len(arm["seconds"]["first"]) == len(arm["seconds"]["all"]) == 2
            assert set(arm["ratios"]) == (set() if arm["method"] == "unsteered" else {"prefill", "decode", "total"})
            assert min(arm[n] for n in ("prefill_ms", "decode_ms_per_token", "tokens_per_s", "peak_memory_mb")) > 0


def test_another_family_in_half_precision(cli: Cli, tmp_path: Path) -> None:
    FalconConfig(vocab_size=4096, hidden_size=32, num_hidden_layers=2, num_attention_heads=4).save_pretrained(tmp_path)
    found = timings(cli, tmp_path, "--methods", "caa", "--dtype", "bfloat16")
    assert found.exit_code == 0, found.output
    (record,) = load_latency(tmp_path / "out")
    assert (record["model"]["type"], record["model"]["dtype"]) == ("falcon", "bfloat16")


def test_a_trained_model_of_a_folder(cli: Cli, world: Path, tmp_path: Path) -> None:
    small = ["--batch-sizes", 1, "--prompt-tokens", "24,300", "--new-tokens", 2, "--rounds", 1, "--n-train", 4]
    found = cli("latency", "--model", world / "lm", "--methods", "caa", *small, "--out", tmp_path)
    assert found.exit_code == 0, found.output
    assert "unsteered, unsteered (again), caa: 300 prompt tokens and 2 new ones do not fit the context" in found.stdout
    (record,) = load_latency(tmp_path)
    assert record["model"]["weights"] == "trained"
    assert by_method(record["cells"][0])["caa"]["ratios"]["total"]["low"] is None  # a single round
    assert "random" not in found.stdout


def test_a_method_that_cannot_be_fitted_fails_alone(cli: Cli, config: Path) -> None:
    plugin = config / "broken.py"
    plugin.write_text(PLUGIN)
    found = timings(cli, config, "--plugin", plugin, "--methods", "broken,static_prompt")
    assert found.exit_code == 2
    (record,) = load_latency(config / "out")
    assert "ZeroDivisionError: my own fault" in record["failures"]["broken"]
    assert list(by_method(record["cells"][0])) == ["unsteered", AGAIN, "static_prompt"]
    alone = timings(cli, config, "--plugin", plugin, "--methods", "broken")
    assert alone.exit_code == 2
    assert "no method could be fitted. broken: Traceback" in alone.stderr
    assert len(load_latency(config / "out")) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--config", "llama"), "'llama' is none of llama-3-8b, vicuna-7b, falcon-7b"),
        (("--config", "vicuna-7b", "--model", "org/name"), "leave out --model"),
        (("--batch-sizes", "1,two"), "--batch-sizes '1,two' must be whole numbers above 0"),
        (("--prompt-tokens", "0"), "--prompt-tokens '0' must be whole numbers above 0"),
        (("--methods", "nonsense"), "nonsense"),
        (("--prompt-tokens", "2"), "raise --prompt-tokens from 2"),
    ],
)
def test_mistakes_are_told_before_anything_is_timed(
    cli: Cli, tmp_path: Path, args: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grids, "timed", lambda *_: pytest.fail("timed"))
    found = cli("latency", *args, "--out", tmp_path / "out")
    assert found.exit_code == 2
    assert message in found.stderr
    assert found.stdout == ""


# records


def record(**more: Any) -> dict[str, Any]:
    made = {"kind": "latency", "schema_version": 1, "created": "2030-01-02T03:04:05+00:00", "device": "Some GPU, 80GB"}
    return made | {"model": {"name": "org/some-model"}} | more


def test_records_are_whole_and_never_overwritten(tmp_path: Path) -> None:
    later = record(created="2031-01-01T00:00:00+00:00")
    paths = {write_latency(r, tmp_path / "out") for r in (later, record(), record(cells=[]))}
    assert len(paths) == 3
    assert {path.parent for path in paths} == {tmp_path / "out"}
    assert {path for path in (tmp_path / "out").iterdir()} == paths
    names = sorted(path.name.rpartition("-")[0] for path in paths)
    assert names[0] == "org-some-model--Some-GPU-80GB--20300102T030405"
    assert load_latency(tmp_path / "out")[-1] == later
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_latency(record(cells=[float("nan")]), tmp_path / "out")
    assert {path for path in (tmp_path / "out").iterdir()} == paths


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SteerbenchError, match="is no folder"):
        load_latency(tmp_path / "none")
    assert load_latency(tmp_path) == []
    for text, message in (("{", "is damaged"), ("[]", "is no record of timings"), (json.dumps({}), "is no record")):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(SteerbenchError, match=message):
            load_latency(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps(record(schema_version=2)))
    with pytest.raises(SteerbenchError, match="with schema 1"):
        load_latency(tmp_path)
    with pytest.raises(SteerbenchError, match="choose another folder with --out"):
        write_latency(record(), tmp_path / "a.json")


# the machine


def test_the_clocks_of_a_gpu_come_from_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def answer(command: list[str], **_: Any) -> Any:
        asked.append(command)
        clocks_ = "1980, 2619, 345.12, [N/A]\n"
        return SimpleNamespace(stdout="570.1\n" if "driver_version" in command[2] else clocks_)

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12-34"))
    monkeypatch.setattr(subprocess, "run", answer)
    gpu = torch.device("cuda", 1)
    found = clocks.conditions(gpu)
    assert {k: found[k] for k in ("sm_mhz", "memory_mhz", "power_w")} == {
        "sm_mhz": 1980,
        "memory_mhz": 2619,
        "power_w": 345.12,
    }
    assert "celsius" not in found
    assert clocks.driver(gpu) == {"cuda": str(torch.version.cuda), "driver": "570.1"}
    assert {command[1] for command in asked} == {"--id=GPU-12-34"}

    def missing(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", missing)
    assert "sm_mhz" not in clocks.conditions(gpu)
    assert clocks.driver(gpu)["driver"] == "unknown"
    assert clocks.driver(CPU) == {}
    assert clocks.conditions(CPU).keys() <= {"load_average", "cpu_mhz"}


def test_the_peak_of_an_earlier_run_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, torch.device]] = []
    for name in ("reset_peak_memory_stats", "synchronize", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name: asked.append((name, device)) or 2**20)  # type: ignore[func-returns-value]
    monkeypatch.setattr(latency, "generate_fixed", lambda *_: asked.append(("run", _[0].device)))
    gpu = torch.device("cuda")
    lm: Any = SimpleNamespace(device=gpu)
    assert latency.timed(lm, [], Steering(), tiny.VowelReward(), 2).peak == 1
    once = ["synchronize", "run", "synchronize"]
    assert [name for name, _ in asked] == ["reset_peak_memory_stats", *once, *once, "max_memory_allocated"]
