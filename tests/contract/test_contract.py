"""The contract suite: what must pass it, what it must catch, and what a user sees of it.

A suite that finds nothing proves nothing, so every invariant meets methods that are broken in just that way. Most of
them are mistakes that other steering libraries make, or made, without a word.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import combinations, cycle, product
from pathlib import Path

import pytest
from method_corpus import BROKEN, CANDIDATES, CHOICE, CHOOSE, COMPANIONS, GOOD, RIGHT, bias, edit, home_of, method
from runnable import GIVEN
from thorough import mostly_slow
from typer.testing import CliRunner

import steerbench
from steerbench.bench.method import Method
from steerbench.cli import app, console
from steerbench.contract import check as contract
from steerbench.contract import invariants, tiny
from steerbench.contract.case import Case
from steerbench.contract.check import check, check_family, check_method, families, holds_on_one_fit
from steerbench.contract.invariants import INVARIANTS, batch_equals_single, fit_is_reproducible, fit_leaves_no_trace
from steerbench.errors import SteerbenchError
from steerbench.plugins import registry
from steerbench.plugins.spec import build, parse
from steerbench.steering.instructions import AskedPart
from steerbench.steering.parts import Edit, PlacedEdit, RankedEdit
from steerbench.steering.steering import Steering

QUICK = {
    "re_control": "re_control:epochs=3",
    "alignez": "alignez:n_queries=4",
    "blockwise_decoding": "blockwise_decoding:epochs=3:block=2",
    "cards": "cards:entropy=3.4:tries=6",
    "transfer_q": "transfer_q:candidates=3:lookahead=2",
    "deal": "deal:block=2:lookahead=1",
    "ta2": "ta2:n_queries=4",
    **GIVEN,
}
"""No invariant depends on how well a value function is trained, nor on what is in a file."""
METHODS = [QUICK.get(name, name) for name in steerbench.names("methods")]

ALIKE = (
    ("llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3"),  # rotated positions, gated feed-forward parts
    ("gpt2", "gpt_neo", "opt"),  # learned positions
    ("falcon", "gpt_neox"),  # attention and feed-forward part side by side
)
"""Families of one structure: by default each kind of part meets one of each."""
REPRESENTATIVES = {
    "prompt": "static_prompt",
    "logits": "classifier_free",
    "choice": "best_of_n",
    "edit": "caa",
    "edit with a state": "act_add",
    "contest of edits": "alignez",
    "edit behind a gate": "cast",
    "prompt that asks": "prime_guard",
}
"""Kind of part -> a method that has it: by default these are composed, each with each."""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the plugins of a test."""
    monkeypatch.setattr(registry, "_files", {})
    yield
    for name in [name for name in sys.modules if name.startswith("steerbench_plugins.")]:
        del sys.modules[name]


def add(folder: Path, name: str, source: str) -> Method:
    """Register a method from a file."""
    path = folder / f"{name}.py"
    path.write_text(source)
    registry.add_plugin(path)
    return named(name)


def named(text: str) -> Method:
    (spec,) = parse(text)
    return Method(spec, build(spec))


def problems(method: Method, family: str = "llama") -> dict[str, str]:
    """Return the invariants that a method breaks, each with the sentence that says how."""
    results = zip(INVARIANTS, check_family(method, family), strict=True)
    return {invariant.__name__: result.problem for invariant, result in results if result.problem}


def in_turn(names: Iterable[str]) -> list[tuple[str, str]]:
    """Give each name a family, one after the other."""
    return list(zip(names, cycle(tiny.FAMILIES), strict=False))


def kinds(steering: Steering) -> set[str]:
    """Return the kinds of part that a steering has."""
    found = {"prompt that asks" if isinstance(part, AskedPart) else "prompt" for part in steering.prompt}
    found |= {"logits"} if steering.logits else set()
    found |= {"choice"} if steering.decode else set()
    return found | set(map(kind_of_edit, steering.edits))


def kind_of_edit(placed: PlacedEdit) -> str:
    if isinstance(placed.edit, RankedEdit):
        return "contest of edits"
    if placed.gate is not None:
        return "edit behind a gate"
    return "edit" if type(placed.edit).start is Edit.start else "edit with a state"


# What passes


SEARCHES = {"best_of_n", "inf_align", *(QUICK[name] for name in ("blockwise_decoding", "cards", "transfer_q", "deal"))}
"""Choices among candidates, of which two cannot be composed."""
COSTLY = {*SEARCHES, "cast", "infer_aligner", "linear_act", "prime_guard", QUICK["alignez"], QUICK["ta2"]}


def sampled() -> set[tuple[str, str]]:
    """Return what runs by default: each kind of part in one family of each structure, any other method in one family.

    A kind that is costly is met in one, too.
    """
    several = [name for name in METHODS if name in REPRESENTATIVES.values() and name not in COSTLY]
    turns = [cycle(families) for families in ALIKE]
    structures = {(name, next(turn)) for name in several for turn in turns}
    return structures | set(in_turn(name for name in METHODS if name not in several))


SAMPLE = sampled()


@pytest.mark.parametrize(("name", "on"), mostly_slow(product(METHODS, tiny.FAMILIES), SAMPLE.__contains__))
def test_every_method_keeps_every_invariant(name: str, on: str) -> None:
    assert problems(named(name), on) == {}


def test_every_family_is_met_by_a_method() -> None:
    assert sorted(family for alike in ALIKE for family in alike) == sorted(tiny.FAMILIES)
    assert {on for _, on in SAMPLE} == set(tiny.FAMILIES)
    assert {name for name, _ in SAMPLE} == set(METHODS)


PAIRS = in_turn("+".join(pair) for pair in combinations(METHODS, 2) if not SEARCHES.issuperset(pair))


def represents_kinds(pair: tuple[str, str]) -> bool:
    """Say whether a pair runs by default: each kind with an edit, and a prompt that is asked twice."""
    names = {name.split(":")[0] for name in pair[0].split("+")}
    alone = "caa" in names or names == {"static_prompt", "classifier_free"}
    return names <= set(REPRESENTATIVES.values()) and alone


@pytest.mark.parametrize(("pair", "on"), mostly_slow(PAIRS, represents_kinds))
def test_every_pair_of_methods_composes(pair: str, on: str) -> None:
    assert problems(named(pair), on) == {}


def test_every_kind_of_part_has_a_representative() -> None:
    found = {name: kinds(Case.fitted(named(name), "llama").steering) for name in METHODS}
    assert set().union(*found.values()) == REPRESENTATIVES.keys()
    for kind, name in REPRESENTATIVES.items():
        assert kind in found[QUICK.get(name, name)]


def test_a_fault_that_not_every_fit_shows_is_found(tmp_path: Path) -> None:
    """Rounding may be to blame for what one fit shows; a fault that another one shows, too, is a fault."""
    mixing = edit("return h + self.strength * h.mean(0, keepdim=True) if self.strength > 0 else h")
    source = mixing.replace("self.vector(context), self.strength", "self.vector(context), WHEN")
    assert source.count("WHEN") == 1
    for name, when, broken in (("often", "context.seed in (0, 2)", True), ("once", "context.seed == 0", False)):
        found = add(tmp_path, name, source.replace("WHEN", f"self.strength * float({when})"))
        assert (check(found, "llama", batch_equals_single) is not None) == broken


@pytest.mark.parametrize(("name", "on"), in_turn(GOOD))
def test_methods_of_every_kind_pass(tmp_path: Path, name: str, on: str) -> None:
    """Each part of a steering, state of one generation, and gradients at generation time."""
    assert problems(add(tmp_path, name, GOOD[name]), on) == {}


def test_hyperparameters_and_compositions_can_be_checked() -> None:
    results = check_method('caa:scope=all:strength=0.5+static_prompt:text="a, b"', ["gpt2"])
    assert [r.problem for r in results] == [None] * len(INVARIANTS)
    assert {r.family for r in results} == {"gpt2"}


def test_only_one_method_at_a_time() -> None:
    with pytest.raises(SteerbenchError, match="'caa,unsteered' are 2 methods; check one at a time"):
        check_method("caa,unsteered", ["llama"])


# What is caught


def test_every_invariant_meets_methods_that_break_it() -> None:
    names = [name for cases in BROKEN.values() for name in cases]
    assert list(BROKEN) == [invariant.__name__ for invariant in INVARIANTS]
    assert [home_of(name)[0] for name in COMPANIONS] == list(BROKEN)
    assert len(names) == len(set(names))


ONE_OF_TWO_VIEWS = {"global_generator", "mean_of_positions"}
"""Broken for the fit, and in the cache."""
BROKEN_NAMES = [name for cases in BROKEN.values() for name in cases]
ONE_FAMILY_EACH = set(in_turn(BROKEN_NAMES))


@pytest.mark.parametrize(
    ("name", "on"), mostly_slow(product(BROKEN_NAMES, tiny.FAMILIES), ONE_FAMILY_EACH.__contains__)
)
def test_what_is_broken_is_caught(tmp_path: Path, name: str, on: str) -> None:
    """Twice, as the suite does it: on one fit together with all other invariants, and then by its own invariant."""
    caught_by, source = home_of(name)
    broken = add(tmp_path, name, source)
    assert not holds_on_one_fit(broken, on)
    assert check(broken, on, vars(invariants)[caught_by])


@pytest.mark.parametrize("name", mostly_slow(COMPANIONS, ONE_OF_TWO_VIEWS.__contains__))
def test_only_what_is_broken_is_named(tmp_path: Path, name: str) -> None:
    invariant, source = home_of(name)
    assert set(problems(add(tmp_path, name, source))) == {invariant} | COMPANIONS[name]


WEAK = (
    "first_row_only",
    "first_row_of_the_logits",
    "mean_of_the_batch",
    "start_reads_padding",
    "state_of_the_first_row",
)


@pytest.mark.parametrize(("name", "on"), mostly_slow(product(WEAK, tiny.FAMILIES), set(in_turn(WEAK)).__contains__))
def test_a_weak_edit_that_changes_no_token_is_caught_too(tmp_path: Path, name: str, on: str) -> None:
    """Tokens alone would show almost none of these: a hundredth of the vector rarely changes one."""
    weak = add(tmp_path, name, home_of(name)[1].replace("strength: float = 1.0", "strength: float = 0.01"))
    assert check(weak, on, batch_equals_single)


# One fit for all invariants

FIRST_USE = {
    "steering_leaves_no_trace": bias(
        processor="old, self.strength = self.strength, self.strength and 2.0\nreturn Bias(old)"
    ),
    "generation_is_reproducible": bias(
        processor="""
        strength = self.strength + (self.strength != 0 and not hasattr(self, "used"))
        self.used = True
        return Bias(strength)
        """
    ),
}
"""Invariant -> what breaks it where a steering is used for the first time, and never again."""


@pytest.mark.parametrize("invariant", FIRST_USE)
def test_no_invariant_uses_a_steering_up_for_the_next(tmp_path: Path, invariant: str) -> None:
    assert invariant in problems(add(tmp_path, "mine", FIRST_USE[invariant]))


@pytest.mark.parametrize(
    ("name", "on"),
    mostly_slow(
        in_turn(["caa", "static_prompt", QUICK["re_control"], "best_of_n", QUICK["alignez"]]),
        lambda case: case[0] not in ("best_of_n", QUICK["alignez"]),
    ),
)
def test_no_invariant_leaves_a_trace(name: str, on: str) -> None:
    case = Case.fitted(named(name), on)
    digest = case.steering.digest()
    for invariant in INVARIANTS:
        assert invariant(case.untouched()) is None
        assert case.changed(case.before) is None, invariant.__name__
        assert case.steering.digest() == digest


def test_a_trace_that_no_invariant_sees_is_none_on_one_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is behind an invariant that damages the model proves nothing."""

    def damages(case: Case) -> None:
        case.lm.model.get_input_embeddings().weight.data[7] += 1

    monkeypatch.setattr(contract, "INVARIANTS", (damages,))
    assert not holds_on_one_fit(named("unsteered"), "llama")


def test_what_is_sound_is_fitted_once_for_all_that_need_no_fit_of_their_own(tmp_path: Path) -> None:
    counting = method("Mine.fits = getattr(Mine, 'fits', 0) + 1\n" + RIGHT)
    sound = add(tmp_path, "mine", counting)
    assert problems(sound) == {}
    # again with the same seed, with an eye on what is shared, switched off, in bfloat16
    assert vars(type(sound.steerers[0]))["fits"] == 1 + 4


# What it says


@pytest.mark.parametrize(
    ("source", "invariant", "expected"),
    [
        (method("raise ValueError('too few pairs')"), "half_precision_works", "ValueError: too few pairs (mine.py:"),
        (
            method("return context.rollout"),
            "fit_leaves_no_trace",
            "AttributeError: 'FitContext' object has no attribute 'rollout' (mine.py:",
        ),
        (method("return None"), "fit_leaves_no_trace", "fit of Mine returned None; it must return a Steering."),
        (edit("raise KeyError('head 9')"), "batch_equals_single", "KeyError: 'head 9' (mine.py:"),
        (
            method(CHOOSE, CHOICE.format("return 7"), CANDIDATES),
            "batch_equals_single",
            "IndexError: list index out of range",
        ),
        (BROKEN["logits_are_numbers"]["edit_gives_nan"], "logits_are_numbers", "the edit Own at resid_post.1 gave NaN"),
        (
            BROKEN["off_is_bit_equal"]["no_off"],
            "off_is_bit_equal",
            "AttributeError: 'Mine' object has no attribute 'off'",
        ),
        (
            BROKEN["fit_leaves_no_trace"]["leaves_a_hook"],
            "fit_leaves_no_trace",
            "fit changed the hooks of model.layers.1; leave the model as it is, and let the engine place edits.",
        ),
        (
            BROKEN["edits_compute_in_float32"]["casts_in_between"],
            "edits_compute_in_float32",
            "Own computes in torch.bfloat16; stay in the float32 it is given.",
        ),
        (
            BROKEN["hyperparameters_round_trip"]["no_json"],
            "hyperparameters_round_trip",
            "Mine: a hyperparameter is no plain JSON value: Object of type dtype is not JSON serializable.",
        ),
    ],
)
def test_a_problem_is_one_sentence(tmp_path: Path, source: str, invariant: str, expected: str) -> None:
    problem = check(add(tmp_path, "mine", source), "llama", vars(invariants)[invariant])
    assert problem is not None
    assert problem.startswith(expected)
    assert "\n" not in problem


def test_families() -> None:
    assert families(None) == list(tiny.FAMILIES)
    assert families("gpt2") == ["gpt2"]
    with pytest.raises(SteerbenchError, match=r"^unknown family 'lama'. Did you mean 'llama'\? Known: "):
        families("lama")


# The command


def run(*arguments: object) -> tuple[int, str]:
    """Return the exit code and what was printed, on one line."""
    result = CliRunner().invoke(app, ["check", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


def test_command_on_a_file_that_passes(tmp_path: Path) -> None:
    add(tmp_path, "mine", GOOD["logits_bias"])
    code, text = run(tmp_path / "mine.py", "--family", "qwen2")
    n = len(INVARIANTS)
    assert code == 0
    assert text.count("holds ") == n
    assert text.endswith(f"mine: {n} of {n} checks hold, {n} invariants on 1 model families.")


def test_command_on_a_broken_file(tmp_path: Path) -> None:
    add(tmp_path, "mine", BROKEN["fit_is_reproducible"]["global_generator"])
    code, text = run(tmp_path / "mine.py", "--family", "gpt2")
    n = len(INVARIANTS)
    assert code == 2
    assert "broken The same seed gives the same bytes. gpt2: two fits with the same seed differ; draw from" in text
    assert text.count("broken ") == 2  # the state of the global generator, too
    assert text.endswith(f"mine: {n - 2} of {n} checks hold, {n} invariants on 1 model families.")
    assert "Traceback" not in text


def shown(*arguments: object) -> tuple[int, list[str]]:
    """Return the exit code and the lines on a terminal that is wide enough for them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(console.out, "width", 300)
        result = CliRunner().invoke(app, ["check", *map(str, arguments)])
    return result.exit_code, result.stdout.splitlines()


def test_command_on_a_fit_that_fails_says_so_once(tmp_path: Path) -> None:
    counted = "Mine.fits = getattr(Mine, 'fits', 0) + 1\nraise ValueError('too few [pairs]')"
    failing = add(tmp_path, "mine", method(counted))
    line = (tmp_path / "mine.py").read_text().splitlines().index("        raise ValueError('too few [pairs]')") + 1
    n = len(tiny.FAMILIES)
    assert shown(tmp_path / "mine.py") == (
        2,
        [
            "broken  Fit returns a steering.",
            f"        {', '.join(tiny.FAMILIES)}: ValueError: too few [pairs] "
            f"(mine.py:{line}: raise ValueError('too few [pairs]'))",
            f"mine: fit fails on {n} of {n} model families, so {n * len(INVARIANTS)} of {n * len(INVARIANTS)} checks "
            f"could not be made.",
        ],
    )
    assert vars(type(failing.steerers[0]))["fits"] == n


def test_command_on_a_fit_that_fails_on_some_families_checks_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (contract, invariants):
        monkeypatch.setattr(module, "INVARIANTS", (fit_is_reproducible, fit_leaves_no_trace))
    monkeypatch.setattr(contract, "families", lambda name: ["llama", "gpt2", "opt"])
    add(tmp_path, "mine", method(f"if 'gpt2' in context.lm.name:\n    1 / 0\n{RIGHT}"))
    line = (tmp_path / "mine.py").read_text().splitlines().index("            1 / 0") + 1
    assert shown(tmp_path / "mine.py") == (
        2,
        [
            "broken  Fit returns a steering.",
            f"        gpt2: ZeroDivisionError: division by zero (mine.py:{line}: 1 / 0)",
            "holds   The same seed gives the same bytes.",
            "holds   Fit leaves the model as it found it.",
            "mine: 4 of 4 checks hold, 2 invariants on 2 model families.",
            "mine: fit fails on 1 of 3 model families, so 2 of 6 checks could not be made.",
        ],
    )


def test_progress_is_that_of_families_and_invariants(tmp_path: Path) -> None:
    done: dict[str, list[int]] = {}

    @contextmanager
    def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
        counts = done[label] = [0, total]

        def advance(n: int) -> None:
            counts[0] += n

        yield advance

    n = len(INVARIANTS)
    add(tmp_path, "mine", method(RIGHT))
    check_method("mine", ["llama", "gpt2"], progress)
    each = "each invariant by itself"
    assert done == {"fit mine": [2, 2], "check mine": [2, 2], "llama": [n, n], "gpt2": [n, n]}
    done.clear()
    add(tmp_path, "broken", BROKEN["fit_is_reproducible"]["global_generator"])
    check_method("broken", ["opt"], progress)
    assert done == {"fit broken": [1, 1], "check broken": [1, 1], "opt": [0, n], f"opt, {each}": [n, n]}


@pytest.mark.parametrize(
    ("argument", "more", "expected"),
    [
        ("caa", ["--family", "lama"], "error: unknown family 'lama'. Did you mean 'llama'? Known: "),
        ("missing.py", [], "missing.py does not exist; check the path."),
        ("caaa", [], "error: unknown method 'caaa'. Did you mean 'caa'? Known: "),
        ("caa:strenth=2", [], "error: unknown hyperparameter of 'caa' 'strenth'. Did you mean 'strength'?"),
        ("caa,unsteered", [], "error: 'caa,unsteered' are 2 methods; check one at a time"),
    ],
)
def test_command_on_a_mistake(argument: str, more: list[str], expected: str) -> None:
    code, text = run(argument, *more)
    assert code == 2
    assert expected in text


def test_command_on_a_task(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from steerbench import Task\n\n\nclass Mine(Task):\n    version = 1\n"
        "    def parse(self, row):\n        raise ValueError\n"
    )
    code, text = run(path)
    assert code == 2
    assert text.endswith("is a task; the contract suite checks methods.")


def test_command_on_a_composition() -> None:
    code, text = run("caa:strength=2+static_prompt", "--family", "opt")
    assert code == 0
    assert text.endswith("invariants on 1 model families.")
