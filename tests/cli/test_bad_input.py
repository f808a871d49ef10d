"""What a user gets wrong: one sentence with the fix, exit code 2, and nothing already measured is lost."""

import errno
import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from brief_timing import brief
from given_options import last_of_each
from thorough import mostly_slow
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import Result

from steerbench import Options, Protocol, Store, run
from steerbench.bench import run as harness

Cli = Callable[..., Result]

PLUGIN = """
from dataclasses import dataclass
import torch
from steerbench import Steerer, Steering
from steerbench.edits import Add, PlacedEdit, Site

@dataclass(frozen=True, kw_only=True)
class Plugin(Steerer):
    off = {{"strength": 0.0}}
    strength: float = 1.0

    def fit(self, context):
        {fit}
"""


def add(vector: str, strength: str = "self.strength") -> str:
    """Return the body of a `fit` that adds a vector."""
    return f"return Steering(edits=(PlacedEdit(Site('resid_post', 1), Add({vector}, {strength})),))"


@pytest.fixture
def plugin(tmp_path: Path) -> Callable[[str, str], Path]:
    """Return a function that writes a method made of one line of `fit`, in a folder with a space."""
    folder = tmp_path / "my plugins"
    folder.mkdir()

    def write(name: str, fit: str) -> Path:
        (folder / f"{name}.py").write_text(PLUGIN.format(fit=fit))
        return folder / f"{name}.py"

    return write


def refused(result: Result, says: str) -> None:
    """Check for one sentence that says a thing, and exit code 2."""
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stderr.rstrip()[-1] in ".)"
    assert "Traceback" not in result.stderr
    assert isinstance(result.exception, SystemExit)


def files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Return time and content of every file, to see that none was touched."""
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


# Options

OPTIONS = {
    "no method": (["--methods", ""], "expected the name of a method"),
    "method left out": (["--methods", "caa,,"], "found ',' at column 5"),
    "unknown method": (["--methods", "ca"], "unknown method 'ca'. Did you mean 'caa'? Known: "),
    "unknown part": (["--methods", "caa+statik_prompt"], "Did you mean 'static_prompt'?"),
    "unknown hyperparameter": (["--methods", "caa:strenght=2"], "'strenght'. Did you mean 'strength'?"),
    "no number": (["--methods", "caa:strength=abc"], "caa:strength must be a finite number, not 'abc'"),
    "infinite": (["--methods", "caa:strength=inf"], "caa:strength must be a finite number, not 'inf'"),
    "unknown choice": (["--methods", "caa:pool=foo"], "or last_response or last_prompt, not 'foo'"),
    "open quote": (["--methods", 'static_prompt:text="Hi'], "the quote at column 20 is not closed"),
    "no batch": (["--batch-size", "0"], "--batch-size '0' must be auto, or a whole number of 1 or more"),
    "a batch of words": (
        ["--batch-size", "large"],
        "--batch-size 'large' must be auto, or a whole number of 1 or more",
    ),
    "no task": (["--tasks", ","], "expected the name of a task, found ',' at column 1"),
    "unknown task": (["--tasks", "sph"], "unknown task 'sph'. Did you mean 'shp'?"),
    "second task unknown": (["--tasks", "hh_rlhf,foo"], "unknown task 'foo'"),
    "no seed": (["--seeds", ""], "--seeds is empty; give it a value, or leave it out."),
    "seed no number": (["--seeds", "0,a"], "--seeds '0,a' must be whole numbers separated by commas"),
    "seeds backwards": (
        ["--seeds", "2-0"],
        "--seeds '2-0' must be whole numbers separated by commas, or ranges: 0,1,2",
    ),
    "seeds without end": (["--seeds", "0-"], "--seeds '0-' must be whole numbers"),
    "seed twice": (["--seeds", "0,00"], "must be different numbers"),
    "seed twice in a range": (["--seeds", "0-2,1"], "must be different numbers"),
    "too many seeds": (["--seeds", "0-9999999999999"], "give up to 1000 numbers below 2**63"),
    "too many seeds in all": (["--seeds", "0-600,1000-1600"], "give up to 1000 numbers below 2**63"),
    "seed too large": (["--seeds", "9223372036854775808"], "give up to 1000 numbers below 2**63"),
    "seed below 0": (["--seeds", "-1"], "none below 0"),
    "too many new tokens": (["--max-new-tokens", "300"], "do not fit the context of 256 of lm; lower --max-new-tokens"),
    "no room": (["--max-new-tokens", "256"], "do not fit the context of 256 of lm; lower --max-new-tokens"),
    "too long prompts": (["--max-prompt-tokens", "251"], "prompts of 251 tokens and 6 new tokens do not fit"),
    "too short prompts": (["--max-prompt-tokens", "1"], "has at most 1 tokens; raise --max-prompt-tokens"),
    "no mass": (["--temperature", "1", "--top-p", "0"], "top_p 0.0 (above 0, up to 1)"),
    "greedy with top-p": (["--top-p", "0.5"], "top_p 0.5 change nothing at temperature 0"),
    "greedy with top-k": (["--top-k", "5"], "give a temperature above 0"),
    "too hot": (["--temperature", "inf"], "generation settings are out of range"),
    "no such GPU": (["--device", "cuda:99"], "device 'cuda:99' is not there. Here: auto, cpu"),
    "no such device": (["--device", "nonsense"], "device 'nonsense' is not there"),
    "no numbers there": (["--device", "meta"], "device 'meta' is not there"),
    "unknown data type": (["--dtype", "float8"], "unknown dtype 'float8'. Did you mean 'float32'?"),
    "no data": (["--data", "nowhere.jsonl"], "no data at nowhere.jsonl: No such file or directory. Check"),
    "unknown suffix": (["--data", __file__], "its name must end in one of .jsonl"),
    "data of another task": (
        ["--tasks", "shp"],
        "64 x missing field post_id. The last one has the fields chosen, rejected. Give records in",
    ),
    "no model there": (["--model", "./nowhere"], "there is no model folder at './nowhere'; check the path"),
    "no model of that name": (["--model", "nobody/nothing"], "Check the name, "),
    "no name": (["--model", ""], "--model is empty; give it a value, or leave it out."),
    "no folder": (["--out", ""], "--out is empty; give it a value, or leave it out."),
    "no reward there": (["--reward-model", "./nowhere"], "there is no model folder"),
    "no plugin": (["--plugin", "nowhere.py"], "nowhere.py does not exist; check the path"),
    "plugin no code": (["--plugin", "README.md"], "README.md is not a Python file; give the path of a .py file"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_an_option_out_of_range_is_told(run_cli: Cli, tmp_path: Path, case: str) -> None:
    args, says = OPTIONS[case]
    refused(run_cli("--methods", "caa", *args), says)
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize("option", ["--n-examples=0", "--n-train=0", "--temperature=-1", "--max-prompt-tokens=0"])
def test_a_number_out_of_range_is_told_with_the_usage(run_cli: Cli, option: str) -> None:
    done = run_cli("--methods", "caa", option)
    assert done.exit_code == 2
    assert f"Invalid value for '{option.partition('=')[0]}'" in done.stderr


@pytest.mark.parametrize("below", [".", "sub/folder"])
def test_a_folder_for_records_that_is_a_file(run_cli: Cli, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    refused(run_cli("--methods", "caa", "--out", tmp_path / "file" / below), "choose another folder with --out")
    assert (tmp_path / "file").read_text() == "mine"


def test_fewer_examples_than_asked_for_are_shown(run_cli: Cli, tmp_path: Path) -> None:
    done = run_cli("--methods", "unsteered", "--n-examples", "1000", "--n-train", "1000")
    (record,) = Store(tmp_path / "runs").records()
    assert len(record.examples) == record.protocol["n_examples"] < 64
    assert f"on {record.protocol['n_examples']} test prompts" in done.stdout


# Models that are none


@pytest.fixture
def saved(world: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies a model of the tiny world and changes it."""

    def change(name: str, **config: Any) -> Path:
        folder = shutil.copytree(world / name, tmp_path / f"changed-{name}")
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**values, **config}))
        return folder

    return change


MODELS = {
    "encoder as model": ("--model", "encoder", "is no causal language model: its checkpoint lacks"),
    "reward as model": ("--model", "reward", "is no causal language model: its checkpoint lacks"),
    "folder of models": ("--model", ".", "is not a model folder: it has no config.json"),
    "model as reward": (
        "--reward-model",
        "lm",
        "'lm' is not a trained reward model: its checkpoint lacks score.weight",
    ),
    "encoder as reward": ("--reward-model", "encoder", "'encoder' is not a trained reward model"),
    "model as held-out reward": ("--held-out-reward", "lm", "Use a sequence-classification checkpoint"),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_of_another_kind_is_refused(run_cli: Cli, world: Path, case: str) -> None:
    option, name, says = MODELS[case]
    refused(run_cli("--methods", "caa", option, world / name), says)


def test_a_classifier_is_no_reward_model(run_cli: Cli, world: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(
        world / "reward", num_labels=2, ignore_mismatched_sizes=True
    )
    model.save_pretrained(tmp_path / "two")
    AutoTokenizer.from_pretrained(world / "reward").save_pretrained(tmp_path / "two")
    says = "'two' is a classifier with 2 labels; a reward model has one"
    refused(run_cli("--methods", "caa", "--reward-model", tmp_path / "two"), says)


def test_a_damaged_model_is_told(run_cli: Cli, saved: Callable[..., Path]) -> None:
    folder = saved("lm")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(run_cli("--methods", "caa", "--model", folder), "cannot be loaded")
    weights.unlink()
    refused(run_cli("--methods", "caa", "--model", folder), "Use a complete checkpoint")


def test_a_model_without_tokenizer_is_told(run_cli: Cli, saved: Callable[..., Path]) -> None:
    folder = saved("lm")
    for file in folder.glob("token*"):
        file.unlink()
    refused(run_cli("--methods", "caa", "--model", folder), "Save it beside the model.")


def test_an_architecture_with_code_of_its_own_is_refused(run_cli: Cli, saved: Callable[..., Path]) -> None:
    folder = saved("lm", model_type="mine", auto_map={"AutoConfig": "code.Config"})
    (folder / "code.py").write_text("raise SystemExit('code of the model was run')")
    refused(run_cli("--methods", "caa", "--model", folder), "without remote code")


def test_a_model_without_pad_token_gives_the_same_scores(run_cli: Cli, world: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(world / "lm", tmp_path / "no_pad")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    for file in ("config.json", "generation_config.json"):
        values = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**values, "pad_token_id": None}))
    assert AutoTokenizer.from_pretrained(folder).pad_token is None
    run_cli("--methods", "caa", "--out", tmp_path / "with")
    done = run_cli("--methods", "caa", "--out", tmp_path / "without", "--model", folder)
    assert done.exit_code == 0, done.stderr
    both = zip(Store(tmp_path / "with").records(), Store(tmp_path / "without").records(), strict=True)
    for one, other in both:
        pd.testing.assert_frame_equal(one.examples, other.examples)


def test_a_model_that_says_nothing_is_counted(run_cli: Cli, saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = saved("lm", eos_token_id=[0, 2])
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all logits are equal, so the first id wins, and it ends the response
    model.generation_config.eos_token_id = [0, 2]
    model.save_pretrained(folder)
    done = run_cli("--methods", "static_prompt", "--model", folder)
    assert done.exit_code == 0, done.stderr
    for record in Store(tmp_path / "runs").records():
        assert set(record.examples["response"]) == {""}
        assert (record.metrics["empty"], record.metrics["truncated"], record.metrics["diversity"]) == (1, 0, 0)


def test_prompts_beyond_the_context_are_counted(run_cli: Cli, world: Path, tmp_path: Path) -> None:
    long = "\n\nHuman: " + "word " * 60 + "{i}\n\nAssistant:"
    extra = [{"chosen": long.format(i=i) + " Yes.", "rejected": long.format(i=i) + " No."} for i in range(40)]
    data = tmp_path / "long.jsonl"
    data.write_text((world / "hh_rlhf.jsonl").read_text() + "".join(json.dumps(row) + "\n" for row in extra))
    done = run_cli("--methods", "unsteered", "--data", data, "--n-examples", "100")
    (record,) = Store(tmp_path / "runs").records()
    count = record.counts["prompt longer than 167 tokens"]
    assert count > 0
    missing = 100 - len(record.examples)
    told = f"{count} prompt longer than 167 tokens, {missing} test prompts asked for that are not there."
    assert f"Left out: {told}" in done.stdout


def test_unusable_records_are_counted(run_cli: Cli, world: Path, tmp_path: Path) -> None:
    data = tmp_path / "some.jsonl"
    empty = {"chosen": "\n\nHuman: a\n\nAssistant:", "rejected": "\n\nHuman: a\n\nAssistant: b"}
    data.write_text((world / "hh_rlhf.jsonl").read_text() + "{broken\n" + json.dumps(empty) + "\n")
    done = run_cli("--methods", "unsteered", "--data", data)
    assert "Left out: 1 broken line, 1 empty reply." in done.stdout


# Methods that fail


FAULTS = {
    "nan": (add("torch.full((32,), float('nan'))"), "fit of Plugin returned NaN in Add.vector at resid_post.1; "),
    "too_strong": (add("torch.ones(32)", "torch.inf"), "gave NaN or infinite logits; lower its strength"),
    "nothing": ("return None", "fit of Plugin returned None; it must return a Steering."),
    "typo": ("raise SteerbenchError('')", "NameError: name 'SteerbenchError' is not defined"),
    "wrong_width": (add("torch.zeros(7)"), "must match the size of tensor b (7)"),
    "boom": ("raise RuntimeError('boom')", 'boom.py", line 13, in fit'),
    "too_large": ("raise torch.OutOfMemoryError('CUDA')", "the GPU is out of memory; lower --batch-size"),
    "no_layer": ("return Steering(edits=(PlacedEdit(Site('resid_post', 9), Add(torch.zeros(32))),))", "0..2"),
}


@pytest.mark.parametrize("fault", mostly_slow(FAULTS, {"too_strong", "boom"}.__contains__))
def test_a_method_that_fails_is_reported_and_the_others_go_on(
    run_cli: Cli, plugin: Callable[[str, str], Path], tmp_path: Path, fault: str
) -> None:
    fit, says = FAULTS[fault]
    done = run_cli("--plugin", plugin(fault, fit), "--methods", f"{fault},static_prompt")
    assert done.exit_code == 2
    assert isinstance(done.exception, SystemExit)
    assert f"failed: {fault} (seed 0): " in done.stderr
    assert says in done.stderr
    assert sorted(r.method for r in Store(tmp_path / "runs").records()) == ["static_prompt", "unsteered"]
    assert "2 records in" in done.stdout


def test_a_prompt_that_a_method_makes_too_long_is_reported(run_cli: Cli) -> None:
    done = run_cli("--methods", f"static_prompt:text={'x' * 300},static_prompt:text=Hi")
    assert done.exit_code == 2
    assert "do not fit the context of 256" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "2 records in" in done.stdout


def test_the_layer_of_another_model_is_reported(run_cli: Cli) -> None:
    done = run_cli("--methods", "caa:layer=99")
    assert done.exit_code == 2
    assert "error: caa:layer must be a whole number from 0 to 2, or " in done.stderr
    assert done.stderr.endswith(", or none, not 99 on lm.\n")


FILES = {
    "syntax.py": ("def f(:\n", "syntax.py has a syntax error at"),
    "empty.py": ("", "defines no Steerer and no Task; add one."),
    "needs.py": ("import no_such_package\n", "needs the package 'no_such_package', which is not installed"),
    "raises.py": ("raise ValueError('no')\n", "cannot be imported: ValueError: no"),
    "caa.py": (PLUGIN.format(fit="return Steering()"), "has the name of method 'caa' (built in); rename the file."),
    "my-method.py": (PLUGIN.format(fit="return Steering()"), "rename it to a Python identifier"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_plugin_file_that_is_none(run_cli: Cli, cli: Cli, tmp_path: Path, name: str) -> None:
    text, says = FILES[name]
    path = tmp_path / name
    path.write_text(text)
    for done in (run_cli("--methods", "caa", "--plugin", path), cli("check", path, "--family", "llama")):
        assert done.exit_code == 2
        assert says in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_plugin_given_twice_is_one(run_cli: Cli, plugin: Callable[[str, str], Path]) -> None:
    path = plugin("nothing_new", "return Steering()")
    again = path.parent / ".." / path.parent.name / path.name
    done = run_cli("--plugin", path, "--plugin", path, "--plugin", again, "--methods", "nothing_new")
    assert done.exit_code == 0, done.stderr


# Records


@pytest.fixture(scope="module")
def measured(protocol: Protocol, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of the unsteered model and a static prompt, measured once."""
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "latency", brief)
        assert len(run(protocol, "static_prompt", Options(out=folder)).records) == 2
    return folder


@pytest.fixture
def runs(measured: Path, tmp_path: Path) -> Path:
    """A folder with the records of the unsteered model and a static prompt, where `run_cli` looks for them."""
    return shutil.copytree(measured, tmp_path / "runs")


def folder_of(runs: Path, method: str) -> Path:
    (folder,) = runs.glob(f"*--{method}--*")
    return folder


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut off": (
        lambda f: (f / "record.json").write_text((f / "record.json").read_text()[:100]),
        "record.json is damaged",
    ),
    "empty": (lambda f: (f / "record.json").write_bytes(b""), "record.json is damaged"),
    "binary": (lambda f: (f / "record.json").write_bytes(b"\xff\xfe\x00"), "record.json is damaged"),
    "other schema": (
        lambda f: (f / "record.json").write_text('{"schema_version": 99}'),
        "record.json has schema 99, and this",
    ),
    "field missing": (lambda f: (f / "record.json").write_text('{"schema_version": 1}'), "record.json is damaged"),
    "no parquet": (lambda f: (f / "examples.parquet").unlink(), "examples.parquet is missing"),
    "empty parquet": (lambda f: (f / "examples.parquet").write_bytes(b""), "examples.parquet is damaged"),
}


@pytest.mark.parametrize("damage", mostly_slow(DAMAGE, {"cut off", "no parquet"}.__contains__))
def test_a_damaged_record_is_told_and_the_others_are_kept(run_cli: Cli, cli: Cli, runs: Path, damage: str) -> None:
    spoil, says = DAMAGE[damage]
    bad, good = folder_of(runs, "static_prompt"), folder_of(runs, "unsteered")
    spoil(bad)
    before = files(good)
    refused(cli("leaderboard", runs), says)
    done = run_cli("--methods", "static_prompt,caa")
    assert done.exit_code == 2
    assert f"{bad}/{says}" in done.stderr
    assert "2 records in" in done.stdout  # caa was measured
    assert files(good) == before
    shutil.rmtree(bad)  # out of the way, as the message says
    done = run_cli("--methods", "static_prompt,caa")
    assert "3 records in" in done.stdout
    assert "2 of them from before" in done.stdout


def test_a_task_that_cannot_be_read_leaves_the_table_of_the_others(run_cli: Cli, tmp_path: Path) -> None:
    done = run_cli("--methods", "static_prompt", "--tasks", "hh_rlhf,shp")
    refused(done, "Give records in the schema of stanfordnlp/SHP.")
    assert "2 records in" in done.stdout
    assert len(Store(tmp_path / "runs").records()) == 2


def full(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_ends_the_run_and_keeps_what_is_there(
    run_cli: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(runs)
    measured: list[str] = []
    measure = harness.measure

    def spy(bench: Any, method: Any, *rest: Any) -> Any:
        measured.append(str(method.spec))
        return measure(bench, method, *rest)

    monkeypatch.setattr(harness, "measure", spy)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        done = run_cli("--methods", "static_prompt,caa,random_direction")
    refused(done, f"cannot write to {runs}: No space left on device; free some space and run the same command again")
    assert measured == ["caa"], "no time is spent on what cannot be kept"
    assert files(runs) == before
    done = run_cli("--methods", "static_prompt,caa,random_direction")
    assert done.exit_code == 0
    assert "4 records in" in done.stdout
    assert "2 of them from before" in done.stdout


def test_a_disk_too_full_for_the_table_still_shows_it(
    run_cli: Cli, cli: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steerbench.files.write_whole", full)
    for done in (run_cli("--methods", "static_prompt"), cli("leaderboard", runs, "--csv", runs / "t.csv")):
        refused(done, "No space left on device; choose another file.")
        assert "static_prompt" in done.stdout


def test_a_full_disk_anywhere_else_is_told_too(cli: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steerbench.cli.tables.show", full)
    refused(cli("leaderboard", runs), "No space left on device; free some space")


def test_another_error_of_the_system_keeps_its_traceback(cli: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("steerbench.cli.tables.show", fail)
    assert isinstance(cli("leaderboard", runs).exception, OSError)


def test_a_limit_on_the_size_of_files_is_told(run_cli: Cli, tmp_path: Path) -> None:
    """A real refusal of the system, without a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        done = run_cli("--methods", "unsteered")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    refused(done, "File too large; choose another folder with --out")
    assert list((tmp_path / "runs").iterdir()) == []


def test_interrupted_between_two_methods_nothing_is_lost(
    run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = harness.measure

    def interrupt(bench: Any, method: Any, *rest: Any) -> Any:
        if str(method.spec) == "caa":
            raise KeyboardInterrupt
        return measure(bench, method, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(harness, "measure", interrupt)
        done = run_cli("--methods", "static_prompt,caa")
    assert done.exit_code == 130
    assert done.stderr == "interrupted. Finished records are kept; the same command goes on from there.\n"
    before = files(tmp_path / "runs")
    assert "3 records in" in run_cli("--methods", "static_prompt,caa").stdout
    assert before.items() <= files(tmp_path / "runs").items()


# leaderboard, generate, new


def test_a_folder_without_records_is_told(cli: Cli, tmp_path: Path) -> None:
    refused(cli("leaderboard", tmp_path), "there are no records in")
    refused(cli("leaderboard", tmp_path / "none"), "is not there; `steerbench run --out FOLDER` makes one")
    refused(cli("leaderboard", __file__), "is no folder")


def test_a_metric_of_another_name_is_told(cli: Cli, tmp_path: Path) -> None:
    refused(cli("power", tmp_path, "--metric", "rewrd"), "unknown metric 'rewrd'. Did you mean 'reward'? Known: ")


def test_a_csv_that_cannot_be_written_is_told(cli: Cli, runs: Path) -> None:
    done = cli("leaderboard", runs, "--csv", runs)
    refused(done, f"cannot write {runs}: Is a directory; choose another file.")
    assert "static_prompt" in done.stdout


GENERATE = {
    "task": (["--method", "static_prompt", "--task", "sph"], "unknown task 'sph'. Did you mean 'shp'?"),
    "method": (["--method", "static_promt"], "unknown method 'static_promt'. Did you mean 'static_prompt'?"),
    "data": (["--method", "caa", "--data", "nowhere.jsonl"], "no data at nowhere.jsonl"),
    "tokens": (["--method", "static_prompt", "--max-new-tokens", "300"], "do not fit the context of 256"),
    "long prompt": (["--method", "static_prompt", "long " * 60], "do not fit the context of 256"),
    "bytes": (["--method", "static_prompt", "caf\udce9"], "is not UTF-8; convert it first."),
    "strength": (["--method", "caa", "--strength", "1,x"], "--strength '1,x' must be numbers separated by commas"),
    "infinite": (["--method", "caa", "--strength", "inf"], "--strength 'inf' must be numbers separated by commas"),
    "no strength": (["--strength", "1"], "--strength needs a method; give one that has, such as --methods caa."),
    "none to set": (["--method", "static_prompt", "--strength", "1"], "static_prompt has no strength to set; give one"),
    "set twice": (["--method", "caa:strength=2", "--strength", "1"], "caa:strength=2 sets strength already; leave it"),
    "train": (["--method", "caa", "--max-new-tokens", "230"], "no training prompt of hh_rlhf has at most 13 tokens"),
}


@pytest.mark.parametrize("case", GENERATE)
def test_generate_refuses_what_it_cannot_do(cli: Cli, world: Path, case: str) -> None:
    args, says = GENERATE[case]
    options = ["--model", world / "lm", "--data", world / "hh_rlhf.jsonl", "--max-new-tokens", "4"]
    refused(cli("generate", *last_of_each([*options, *args]), "Hi"), says)


def test_generate_shows_what_was_made_before_an_error(cli: Cli, world: Path) -> None:
    options = ["--model", world / "lm", "--max-new-tokens", "4", "--method", f"static_prompt:text={'x' * 300}"]
    done = cli("generate", *options, "Hi")
    refused(done, "do not fit the context of 256")
    assert done.stdout.startswith("unsteered\n")


def test_generate_names_the_option_for_a_reward(cli: Cli, world: Path, plugin: Callable[[str, str], Path]) -> None:
    path = plugin("asks", "context.reward.score([], []); return Steering()")
    options = ["--model", world / "lm", "--max-new-tokens", "4", "--plugin", path, "--method", "asks"]
    refused(cli("generate", *options, "Hi"), "this method learns from a reward; give one with --reward-model.")


@pytest.mark.parametrize("name", ["1x", "a-b", "class", "_", "_1", "../x", "a b", "é"])
def test_a_name_that_cannot_be_a_file_is_refused(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in ("method", "task"):
        refused(cli("new", kind, name), f"cannot name a {kind}; use letters, digits and underscores")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["json", "torch"])
def test_a_name_that_would_hide_a_module_is_refused(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in ("method", "task"):
        refused(cli("new", kind, name), f"{name}.py would hide the Python module {name!r} from all that runs here")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_taken_is_refused(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(cli("new", "method", "caa"), "caa exists; choose another name.")
    (tmp_path / "mine.py").write_text("mine")
    refused(cli("new", "method", "mine"), "mine.py exists; choose another name.")
    assert (tmp_path / "mine.py").read_text() == "mine"
    refused(cli("new", "task", "shp"), "shp exists; choose another name.")
    (tmp_path / "test_yours.py").write_text("yours")
    refused(cli("new", "task", "yours"), "test_yours.py exists; choose another name.")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.py", "test_yours.py"]


def test_a_folder_that_cannot_be_written_is_told(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("steerbench.cli.new_command.write_whole", full)
    refused(cli("new", "method", "mine"), "cannot write mine.py: No space left on device; go to another folder.")


def test_check_refuses_what_is_no_method(cli: Cli, tmp_path: Path) -> None:
    refused(cli("check", "foo"), "unknown method 'foo'. Known: ")
    refused(cli("check", "caa", "--family", "lama"), "unknown family 'lama'. Did you mean 'llama'?")
    refused(cli("check", tmp_path / "nowhere.py"), "nowhere.py does not exist; check the path")
    task = "from steerbench import Task\nclass T(Task):\n    version = 1\n    def parse(self, row): ...\n"
    (tmp_path / "a_task.py").write_text(task)
    refused(cli("check", tmp_path / "a_task.py"), "a_task.py is a task; the contract suite checks methods.")


def test_a_model_too_large_for_the_gpu_is_told(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(harness, "load_bench", fail)
    refused(run_cli("--methods", "caa"), "the GPU is out of memory; lower --batch-size or --max-new-tokens")


def test_a_bug_keeps_its_traceback(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(harness, "load_bench", fail)
    assert isinstance(run_cli("--methods", "caa").exception, ZeroDivisionError)
