"""The public interface, used as a new user would."""

import importlib
import linecache
import pkgutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
import torch
from transformers import AutoModelForCausalLM

import steerbench
from steerbench import (
    Decoding,
    Example,
    FitContext,
    LanguageModel,
    Options,
    Protocol,
    SteerbenchError,
    Steerer,
    Steering,
    add_plugin,
    fit,
    generate,
    load,
    run,
)
from steerbench.bench import run as harness
from steerbench.contract import tiny
from steerbench.data import Turn, user
from steerbench.edits import Add, PlacedEdit, Site
from steerbench.engine.timing import latency
from steerbench.plugins import registry
from steerbench.plugins.settings import fits
from steerbench.plugins.spec import build, parse

NAMESPACES = ["steerbench", "steerbench.edits", "steerbench.learn", "steerbench.data", "steerbench.contract"]
TRIPLES = [(f"How do I make {x}?", f"Gladly. Take your {x}, and begin.", "No idea.") for x in ("tea", "soup", "jam")]
CAA: Any = load("methods", "caa")
Static: Any = load("methods", "static_prompt")


@dataclass(frozen=True, kw_only=True)
class Shift(Steerer):
    """Adds a constant; in a module of the user's."""

    off = {"strength": 0.0}  # noqa: RUF012

    strength: float = 0.5
    layers: int | None = 1
    where: Literal["all", "response"] = "all"

    def fit(self, context: FitContext) -> Steering:
        edit = Add(torch.ones(tiny.WIDTH), self.strength)
        return Steering(edits=(PlacedEdit(Site("resid_post", self.layers), edit, self.where),))


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_files", dict(registry._files))
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _this())


def _this() -> ModuleType:
    module = ModuleType(__name__)
    module.__dict__.update(globals())
    return module


@pytest.mark.parametrize("name", NAMESPACES)
def test_no_public_name_is_hidden_by_a_submodule(name: str) -> None:
    """Importing `steerbench.x.y` sets the attribute `y` of `steerbench.x`: a public name `y` would be gone."""
    module = importlib.import_module(name)
    submodules = {m.name for m in pkgutil.iter_modules(getattr(module, "__path__", []))}
    assert not submodules & set(dir(module))
    for public in dir(module):
        assert getattr(module, public).__class__ is not ModuleType


def test_the_names_are_lazy() -> None:
    code = (
        "import sys, steerbench, steerbench.contract, steerbench.learn; print({'torch', 'pytest'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# fit


def test_fit_takes_specs_objects_classes_and_compositions(llama: LanguageModel) -> None:
    expected = fit("caa:layer=1", llama, TRIPLES).digest()
    assert fit(CAA(layer=1), llama, TRIPLES).digest() == expected
    assert fit(CAA, llama, TRIPLES).digest() == fit("caa", llama, TRIPLES).digest()
    composed = fit("caa:layer=1+static_prompt", llama, TRIPLES)
    assert composed.prompt
    assert composed.edits
    assert fit(CAA(layer=1) + Static(), llama, TRIPLES).digest() == composed.digest()
    assert len(fit(CAA() + Static() + CAA(layer=0), llama, TRIPLES).edits) == 2


def test_fit_takes_examples_and_triples_alike(llama: LanguageModel) -> None:
    examples = [Example(str(i), str(i), user(p), c, r) for i, (p, c, r) in enumerate(TRIPLES)]
    dialogues = [(user(p), c, r) for p, c, r in TRIPLES]
    digests = {fit("caa", llama, given).digest() for given in (examples, dialogues, TRIPLES)}
    assert len(digests) == 1
    for bad in ([("a", "b")], ["abc"], [(1, "b", "c")]):
        with pytest.raises(SteerbenchError, match=r"example 0|no prompt"):
            fit("caa", llama, bad)  # type: ignore[arg-type]


def test_fit_asks_for_a_reward_only_where_one_is_needed(llama: LanguageModel, world: Path) -> None:
    examples = tiny.examples()[:8]
    with pytest.raises(SteerbenchError, match="learns from a reward; give one"):
        fit("re_control", llama, examples)
    by_name = fit("re_control:epochs=1", str(world / "lm"), examples, reward=str(world / "reward"))
    assert by_name.edits
    assert fit("re_control:epochs=1", llama, examples, reward=tiny.VowelReward()).edits


def test_fit_refuses_what_is_no_method_and_no_model(llama: LanguageModel) -> None:
    for bad, word in ((3, "no method"), ("caa,iti", "2 methods"), ("caaa", "'caa'")):
        with pytest.raises(SteerbenchError, match=word):
            fit(bad, llama, TRIPLES)  # type: ignore[arg-type]
    with pytest.raises(SteerbenchError, match="LanguageModel\\(model, tokenizer\\)"):
        fit("caa", llama.model, TRIPLES)


# prompts and paths


def test_prompts_are_texts_dialogues_or_one_of_them(llama: LanguageModel) -> None:
    few = Decoding(max_new_tokens=4)
    expected = generate(llama, [user("Hi there")], decoding=few)
    for given in ("Hi there", ["Hi there"], user("Hi there"), [user("Hi there")], [[Turn("user", "Hi there")]]):
        assert generate(llama, given, decoding=few) == expected  # type: ignore[arg-type]
    for bad in ([{"role": "user", "content": "Hi"}], [3], [()]):
        with pytest.raises(SteerbenchError, match="no prompt"):
            generate(llama, bad, decoding=few)  # type: ignore[arg-type]


def test_a_folder_may_be_a_text(llama: LanguageModel, tmp_path: Path) -> None:
    steering = fit("caa", llama, TRIPLES)
    steering.save(str(tmp_path / "a" / "b"))
    assert Steering.load(str(tmp_path / "a" / "b")).digest() == steering.digest()


# settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": "big"}, "CAA: strength must be a finite number, not 'big'"),
        ({"strength": True}, "not True"),
        (
            {"layer": "deep"},
            "layer must be a whole number of 0 or more, or .* from 0 to below 1, or none, not 'deep'",
        ),
        ({"scope": "responses"}, "scope must be all or prompt or response, not 'responses'"),
        ({"strenght": 2}, "Did you mean 'strength'"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], message: str) -> None:
    for kind in (SteerbenchError, TypeError):
        with pytest.raises(kind, match=message):
            CAA(**settings)


def test_whole_numbers_are_fine_for_floats() -> None:
    assert CAA(strength=2) == CAA(strength=2.0)
    assert fits([1], list[int])
    assert not fits("a", list[str])
    assert fits(object(), Any)


# run


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    from functools import partial

    monkeypatch.setattr(harness, "latency", partial(latency, new_tokens=2, rounds=1))
    return Options(out=tmp_path / "runs", device="cpu")


def test_run_takes_objects_and_finds_the_records_of_their_specs(protocol: Protocol, options: Options) -> None:
    first = run(protocol, "caa:layer=1,caa:layer=1+static_prompt", options)
    assert not first.failures
    again = run(protocol, [CAA(layer=1), CAA(layer=1) + Static()], options)
    assert (again.found, len(again.records)) == (3, 3)
    assert run(protocol, Static, options).found == 1
    assert str(first.records[1].method) == again.records[1].method


def test_run_takes_a_class_of_the_users(protocol: Protocol, options: Options) -> None:
    outcome = run(protocol, [Shift(strength=2), Shift], options)
    assert not outcome.failures
    assert [r.method for r in outcome.records] == ["unsteered", "shift:strength=2.0", "shift"]
    assert run(protocol, "shift", options).found == 2


def test_run_takes_a_loaded_model(protocol: Protocol, options: Options) -> None:
    from dataclasses import replace

    loaded = LanguageModel.load(str(protocol.model))
    run(protocol, "caa", options)
    open_ = replace(protocol, model="testbed")
    assert run(open_, "caa", options, lm=loaded).found == 2
    own = LanguageModel(loaded.model, loaded.tokenizer, name="mine")
    ours = run(open_, "caa", options, lm=own)
    assert ours.found == 0
    assert own.revision in ours.records[0].protocol["model"]
    assert run(open_, "caa", options, lm=LanguageModel(loaded.model, loaded.tokenizer, name="mine")).found == 2
    with torch.no_grad():
        loaded.model.lm_head.weight[0, 0] += 1
    changed = LanguageModel(loaded.model, loaded.tokenizer, name="mine")
    assert run(open_, "caa", options, lm=changed).found == 0
    with pytest.raises(SteerbenchError, match="leave the former out"):
        run(protocol, "caa", options, lm=own)
    with pytest.raises(SteerbenchError, match="dtype"):
        run(replace(open_, dtype="bfloat16"), "caa", options, lm=own)


# plugins that are classes


NOTEBOOK = """
from dataclasses import dataclass
from steerbench import Steerer, Steering
from steerbench.edits import Add
FACTOR = {factor}
def twice(x): return {twice}
class MyEdit(Add):
    def helper(self): return 1
@dataclass(frozen=True, kw_only=True)
class MyMethod(Steerer):
    off = {{"strength": 0.0}}
    strength: float = 1.0
    def fit(self, context):
        return Steering() if twice(FACTOR) == MyEdit else Steering()
"""


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a cell as a notebook does: a module without a file, and the text of the cell in the cache of lines."""
    count = iter(range(100))

    def run_cell(text: str, cached: bool = True) -> Any:
        module, name = ModuleType("the_notebook"), f"<ipython-input-{next(count)}>"
        monkeypatch.setitem(sys.modules, "the_notebook", module)
        if cached:
            monkeypatch.setitem(linecache.cache, name, (len(text), None, text.splitlines(keepends=True), name))
        exec(compile(text, name, "exec"), module.__dict__)
        return module

    return run_cell


def test_a_class_of_a_notebook_has_an_identity(notebook: Any) -> None:
    def identity(text: str) -> str:
        return registry.source_hash(notebook(text).MyMethod)

    first = identity(NOTEBOOK.format(factor=1, twice="2 * x"))
    assert identity(NOTEBOOK.format(factor=1, twice="2 * x")) == first
    assert identity(NOTEBOOK.format(factor=1, twice="3 * x")) != first
    module = notebook(NOTEBOOK.format(factor=1, twice="2 * x"))
    module.FACTOR = 7  # another cell, run later
    assert registry.source_hash(module.MyMethod) != first
    assert add_plugin(module.MyMethod) == ("methods", "my_method")
    assert build(parse("my_method:strength=3")[0])[0] == module.MyMethod(strength=3.0)
    assert add_plugin(module.MyMethod) == ("methods", "my_method")
    assert registry.resolve(registry.qualified(module.MyEdit)) is module.MyEdit
    again = notebook(NOTEBOOK.format(factor=1, twice="5 * x")).MyMethod
    assert add_plugin(again) == ("methods", "my_method")
    assert load("methods", "my_method") is again


def test_a_class_without_an_identity_is_refused(notebook: Any) -> None:
    with pytest.raises(SteerbenchError, match="move it into"):
        add_plugin(notebook(NOTEBOOK.format(factor=1, twice="x"), cached=False).MyMethod)
    hidden = notebook(NOTEBOOK.format(factor="object()", twice="x"))
    with pytest.raises(SteerbenchError, match="'FACTOR', whose content cannot be told"):
        add_plugin(hidden.MyMethod)

    @dataclass(frozen=True, kw_only=True)
    class Local(Shift):
        pass

    with pytest.raises(SteerbenchError, match="top of its module"):
        add_plugin(Local)
    for cls in (Steerer, int):
        with pytest.raises(SteerbenchError, match=f"{cls.__name__} is no finished"):
            add_plugin(cls)


def test_a_built_in_class_is_known_already() -> None:
    assert add_plugin(CAA) == ("methods", "caa")


# a model that was handed over


def test_a_model_leaves_as_it_came(world: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(world / "lm").train()
    model.generation_config.temperature, model.generation_config.do_sample = 0.3, True
    settings, config = model.generation_config, model.generation_config.to_dict()
    lm = LanguageModel(model, tiny.tokenizer())
    steering = fit("caa", lm, TRIPLES)
    generate(lm, "Hi", steering, Decoding(max_new_tokens=3))
    fit("re_control", lm, tiny.examples()[:8], tiny.VowelReward())
    lm.anatomy.place(Site("z", 1))
    assert model.generation_config is settings
    assert settings.to_dict() == config
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert lm.to("cpu") is lm


def test_dropout_of_a_model_in_training_is_off(llama: LanguageModel) -> None:
    gpt = tiny.language_model("gpt2")
    expected = generate(gpt, "Hi there", decoding=Decoding(max_new_tokens=8))
    gpt.model.train()
    assert generate(gpt, "Hi there", decoding=Decoding(max_new_tokens=8)) == expected


# the contract


@pytest.mark.slow
def test_the_contract_in_pytest_of_the_authors(tmp_path: Path) -> None:
    method = Path(str(sys.modules[CAA.__module__].__file__)).read_text()
    (tmp_path / "good_one.py").write_text(method)
    (tmp_path / "bad_one.py").write_text(method.replace('{"strength": 0.0}', '{"strength": 0.5}'))
    (tmp_path / "test_them.py").write_text(
        "import steerbench.contract\n"
        "@steerbench.contract.parametrize('good_one.py', on=['llama'])\n"
        "def test_good(check): check()\n"
        "@steerbench.contract.parametrize('bad_one.py', on=['llama'])\n"
        "def test_bad(check): check()\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "-k", "off_is", "test_them.py"]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    assert "1 failed, 1 passed" in out, out
    assert "FAILED test_them.py::test_bad[off_is_bit_equal-llama]" in out
    assert "the logits differ from the unsteered model's" in out


def test_a_check_of_the_contract_fails_with_the_problem(tmp_path: Path) -> None:
    method = Path(str(sys.modules[CAA.__module__].__file__)).read_text()
    (tmp_path / "bad.py").write_text(method.replace('{"strength": 0.0}', '{"strength": 0.5}'))
    good, bad = (
        steerbench.contract.parametrize(one, on=["llama"]).mark.args[1] for one in ("caa", tmp_path / "bad.py")
    )
    names = [f"{invariant.__name__}-llama" for invariant in steerbench.contract.INVARIANTS]
    assert [case.id for case in good] == [case.id for case in bad] == names
    off = names.index("off_is_bit_equal-llama")
    good[off].values[0]()
    with pytest.raises(pytest.fail.Exception, match="the logits differ from the unsteered model's"):
        bad[off].values[0]()


def test_the_contract_takes_classes_and_specs() -> None:
    everything = steerbench.contract.parametrize(CAA).mark.args[1]
    assert len(everything) == len(steerbench.contract.INVARIANTS) * len(tiny.FAMILIES)
    assert len({case.id for case in everything}) == len(everything)
    with pytest.raises(SteerbenchError, match="2 methods"):
        steerbench.contract.parametrize("caa,iti")
    with pytest.raises(SteerbenchError, match="family"):
        steerbench.contract.parametrize("caa", on=["lama"])
