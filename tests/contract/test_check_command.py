"""What the contract suite says, and what a user sees of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from checked_methods import add
from method_corpus import BROKEN, CANDIDATES, CHOICE, CHOOSE, GOOD, RIGHT, edit, method
from typer.testing import CliRunner

from steerbench.cli import app, console
from steerbench.contract import check as contract
from steerbench.contract import invariants, tiny
from steerbench.contract.check import check, check_method, families
from steerbench.contract.invariants import INVARIANTS, fit_is_reproducible, fit_leaves_no_trace
from steerbench.errors import SteerbenchError


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


def test_progress_is_that_of_families_and_invariants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: dict[str, list[int]] = {}

    @contextmanager
    def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
        counts = done[label] = [0, total]

        def advance(n: int) -> None:
            counts[0] += n

        yield advance

    for module in (contract, invariants):
        monkeypatch.setattr(module, "INVARIANTS", (fit_is_reproducible, fit_leaves_no_trace))
    n = 2
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
