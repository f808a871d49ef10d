"""`steerbench latency`: the models it makes, the command, the records, the machine. No test waits for a clock."""

import inspect
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from given_options import last_of_each
from transformers import FalconConfig, T5Config
from typer.testing import Result

from steerbench import SteerbenchError, Steering
from steerbench.bench.method import Method
from steerbench.cli.run_command import run
from steerbench.contract import tiny
from steerbench.engine import timing
from steerbench.latency import clocks
from steerbench.latency import grid as grids
from steerbench.latency.grid import AGAIN
from steerbench.latency.latency_record import load_latency, write_latency
from steerbench.latency.shapes import SHAPES, _made, _read, random_model
from steerbench.models.reward import RewardModel
from steerbench.report.timings import timings_in

Cli = Callable[..., Result]

CPU = torch.device("cpu")
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


def by_method(cell: dict[str, Any]) -> dict[str, Any]:
    return {arm["method"]: arm for arm in cell["arms"]}


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
    return cli("latency", *last_of_each(["--config", config, *small, "--out", config / "out", *args]))


def test_a_configuration_alone(cli: Cli, config: Path) -> None:
    found = timings(cli, config, "--methods", "caa,iti+static_prompt", "--batch-sizes", "1,2", "--rounds", 6)
    assert found.exit_code == 0, found.output
    (record,) = load_latency(config / "out")
    (path,) = (config / "out").iterdir()
    assert path.name.startswith("small--")
    assert f"written: {path}" in found.stdout
    assert "small: batch 2, 32 prompt tokens" in found.stdout
    assert "The weights are random" in found.stdout
    assert "Noise: unsteered beside itself came out prefill" in found.stdout
    assert "median and 95 % interval by bootstrap" in found.stdout
    assert "chooses among candidates" not in found.stdout
    assert record["model"]["weights"] == "random"
    assert (record["model"]["vocabulary"], record["model"]["layers"]) == (4100, 2)
    assert (record["model"]["dtype"], record["model"]["attention"]) == ("float32", "sdpa")
    assert list(record["methods"]) == ["caa", "iti+static_prompt"]
    assert [part["name"] for part in record["methods"]["iti+static_prompt"]] == ["iti", "static_prompt"]
    assert record["machine"]["threads"] == torch.get_num_threads()
    assert record["grid"]["rounds"] == 6
    assert [(cell["batch_size"], cell["prompt_tokens"]) for cell in record["cells"]] == [(1, 32), (2, 32)]
    for cell in record["cells"]:
        arms = by_method(cell)
        assert list(arms) == ["unsteered", AGAIN, *record["methods"]]
        assert arms["iti+static_prompt"]["prompt_tokens"] > 32 == arms["caa"]["prompt_tokens"]
        for arm in arms.values():
            assert len(arm["seconds"]["first"]) == len(arm["seconds"]["all"]) == 6
            assert set(arm["ratios"]) == (set() if arm["method"] == "unsteered" else {"prefill", "decode", "total"})
            assert min(arm[n] for n in ("prefill_ms", "decode_ms_per_token", "tokens_per_s", "peak_memory_mb")) > 0


def test_another_family_in_half_precision(cli: Cli, tmp_path: Path) -> None:
    FalconConfig(vocab_size=4096, hidden_size=32, num_hidden_layers=2, num_attention_heads=4).save_pretrained(tmp_path)
    found = timings(cli, tmp_path, "--methods", "caa", "--dtype", "bfloat16")
    assert found.exit_code == 0, found.output
    (record,) = load_latency(tmp_path / "out")
    assert {ratio["low"] for ratio in by_method(record["cells"][0])["caa"]["ratios"].values()} == {None}
    assert "median alone: an interval needs 6 rounds" in found.stdout
    assert "interval by bootstrap" not in found.stdout
    assert "Noise" not in found.stdout
    assert (record["model"]["type"], record["model"]["dtype"]) == ("falcon", "bfloat16")


def trained(cli: Cli, world: Path, folder: Path, *args: object) -> Result:
    small = ["--batch-sizes", 1, "--prompt-tokens", "24,240", "--new-tokens", 2, "--rounds", 1, "--n-train", 4]
    return cli("latency", *last_of_each(["--model", world / "lm", *small, "--out", folder, *args]))


def test_a_trained_model_of_a_folder(cli: Cli, world: Path, tmp_path: Path) -> None:
    found = trained(cli, world, tmp_path, "--methods", "caa,static_prompt:text=Be brief and kind.")
    assert found.exit_code == 0, found.output
    assert re.search(r"\nstatic_prompt:\S.*: 2\d\d prompt tokens and 2 new ones do not fit the context", found.stdout)
    (record,) = load_latency(tmp_path)
    assert record["model"]["weights"] == "trained"
    assert "random" not in found.stdout


def test_what_is_timed_in_no_cell_has_failed(cli: Cli, world: Path, tmp_path: Path) -> None:
    long = f"static_prompt:text={'Be brief. ' * 30}"
    found = trained(cli, world, tmp_path, "--methods", f"caa,{long}")
    assert found.exit_code == 2
    (record,) = load_latency(tmp_path)
    _, name = record["methods"]
    assert f"failed: {name}: timed in no cell; the reasons stand below the cells.\n" in found.stderr
    assert "prompt tokens and 2 new ones do not fit" in found.stdout


def test_without_a_timing_in_any_cell_nothing_was_measured(
    cli: Cli, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(grids, "timed", timed)
    found = trained(cli, world, tmp_path, "--methods", "static_prompt:text=Hi.")
    assert found.exit_code == 2
    assert re.search("failed: unsteered, static_prompt:.*: timed in no cell", found.stderr)


def test_the_time_of_choosing_is_explained_where_a_method_chooses(cli: Cli, config: Path) -> None:
    told = "Where a method chooses among candidates, the time of the testbed's small reward model is in it."
    assert told not in timings(cli, config, "--methods", "static_prompt").stdout
    assert told in timings(cli, config, "--methods", "static_prompt,best_of_n:n=2").stdout
    found = {tuple(record["methods"]): record["choosing"] for record in load_latency(config / "out")}
    assert found == {("static_prompt",): [], ("static_prompt", "best_of_n:n=2"): ["best_of_n:n=2"]}


def test_timings_are_written_beside_the_records_of_runs(
    cli: Cli, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--batch-sizes", 1, "--prompt-tokens", 24, "--new-tokens", 2, "--rounds", 1, "--n-train", 4]
    assert cli("latency", "--model", world / "lm", "--methods", "static_prompt", *small).exit_code == 0
    (timing,) = timings_in([tmp_path / inspect.signature(run).parameters["folder"].default])
    assert timing.title.startswith("lm on ")


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
        (("--prompt-tokens", "100000"), "100000 prompt tokens and 64 new ones do not fit the context of 512"),
        (("--prompt-tokens", "32,449"), "lower --prompt-tokens or --new-tokens"),
        (("--new-tokens", "500"), "256 prompt tokens and 500 new ones do not fit"),
    ],
)
def test_mistakes_are_told_before_anything_is_fitted_or_timed(
    cli: Cli, tmp_path: Path, args: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grids, "timed", lambda *_: pytest.fail("timed"))
    monkeypatch.setattr(Method, "fit", lambda *_: pytest.fail("fitted"))
    if "fit the context" in message:
        monkeypatch.setattr(grids, "fixed_prompts", lambda *_: pytest.fail("written"))
        monkeypatch.setattr(RewardModel, "load", lambda *_, **__: pytest.fail("loaded"))
    found = cli("latency", *args, "--out", tmp_path / "out")
    assert found.exit_code == 2
    assert message in found.stderr
    assert found.stdout == ""
    assert [*tmp_path.glob("out/*")] == []


# records


def record(**more: Any) -> dict[str, Any]:
    made = {"kind": "latency", "schema_version": 1, "created": "2030-01-02T03:04:05+00:00", "device": "Some GPU, 80GB"}
    model = {"name": "org/some-model", "parameters": 7, "dtype": "float32", "attention": "sdpa", "weights": "random"}
    arms = [{"method": "unsteered", "ratios": {}}, {"method": "caa", "problem": "out of memory"}]
    cell = {"batch_size": 1, "prompt_tokens": 32, "arms": arms}
    return made | {"model": model, "grid": {"new_tokens": 2, "rounds": 2}, "cells": [cell]} | more


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
    for text, message in (
        ("{", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ("[]", "is no record of timings"),
        (json.dumps({}), "is no record"),
    ):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(SteerbenchError, match=message):
            load_latency(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps(record(schema_version=2)))
    with pytest.raises(SteerbenchError, match="with schema 1"):
        load_latency(tmp_path)
    with pytest.raises(SteerbenchError, match="choose another folder with --out"):
        write_latency(record(), tmp_path / "a.json")


@pytest.mark.parametrize("text", ["../../x", "/etc/x", ".x", "a\0b"])
def test_the_name_of_a_model_never_leads_out_of_the_folder(tmp_path: Path, text: str) -> None:
    timed = record()
    path = write_latency(timed | {"model": timed["model"] | {"name": text}, "device": text}, tmp_path / "out")
    assert (path.parent, path.name.startswith(".")) == (tmp_path / "out", False)


DAMAGED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no time": (lambda r: r.pop("created"), "it has no 'created'"),
    "time as a number": (lambda r: r.update(created=3), "created is 3"),
    "no model": (lambda r: r.pop("model"), "it has no 'model'"),
    "a model without its name": (lambda r: r["model"].pop("name"), "model has no 'name'"),
    "a model as text": (lambda r: r.update(model="lm"), "model has no 'name'"),
    "no cells": (lambda r: r.pop("cells"), "it has no 'cells'"),
    "cells as a number": (lambda r: r.update(cells=3), "one of cells has no 'batch_size'"),
    "a cell without arms": (lambda r: r["cells"][0].pop("arms"), "one of cells has no 'arms'"),
    "an arm without its method": (lambda r: r["cells"][0]["arms"][1].pop("method"), "one of arms has no 'method'"),
    "an arm without ratios": (lambda r: r["cells"][0]["arms"][0].pop("ratios"), "one of arms has no 'ratios'"),
}


@pytest.mark.parametrize(("damage", "told"), DAMAGED.values(), ids=DAMAGED)
def test_a_record_that_lacks_something_is_damaged(
    tmp_path: Path, damage: Callable[[dict[str, Any]], Any], told: str
) -> None:
    path = write_latency(record(), tmp_path)
    found = record()
    damage(found)
    path.write_text(json.dumps(found))
    with pytest.raises(SteerbenchError, match=rf"^{re.escape(str(path))} is damaged \({re.escape(told)}\); delete it"):
        load_latency(tmp_path)


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
    monkeypatch.setattr(timing, "generate_fixed", lambda *_: asked.append(("run", _[0].device)))
    gpu = torch.device("cuda")
    lm: Any = SimpleNamespace(device=gpu)
    assert timing.timed(lm, [], Steering(), tiny.VowelReward(), 2).peak == 1
    once = ["synchronize", "run", "synchronize"]
    assert [name for name, _ in asked] == ["reset_peak_memory_stats", *once, *once, "max_memory_allocated"]
