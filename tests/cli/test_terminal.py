"""What commands print on a terminal of 80 columns, in whole lines."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from made_records import make
from rich.console import Console
from typer.testing import Result

from steerbench import Store
from steerbench.bench.try_out import Sample
from steerbench.cli import console
from steerbench.cli.replies import show_beside
from steerbench.contract.invariants import INVARIANTS
from steerbench.learn import Response
from steerbench.plugins import registry
from steerbench.plugins.template import METHOD

Cli = Callable[..., Result]


@pytest.fixture
def terminal(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Call the command line on a terminal without colours, and return the lines."""
    for name, value in {"width": 80, "_force_terminal": True, "_color_system": None}.items():
        monkeypatch.setattr(console.out, name, value)
    return lambda *args: [line.rstrip() for line in cli(*args).stdout.splitlines()]


def test_list(terminal: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {"methods": ("iti", "controlled_decoding", "cards"), "tasks": ("shp",)}
    every = registry.sources
    monkeypatch.setattr(registry, "sources", lambda kind: [one for one in every(kind) if one.name in shown[kind]])
    assert terminal("list") == [
        "methods",
        "  by what they touch: name, what it learns from, what it does",
        "  activations",
        "    iti                  pairs           ITI, inference-time intervention: shift",
        "                                         the attention heads that best tell",
        "                                         preferred from other replies.",
        "  logits",
        "    controlled_decoding  rollouts with   Controlled decoding, token by token:",
        "                         rewards         the next tokens are re-weighted by what",
        "                                         a value function expects behind them.",
        "  choice of responses",
        "    cards                rollouts with   CARDS: draw a segment, keep it if the",
        "                         rewards and     guide likes the text so far well",
        "                         reward at test  enough, and draw it again if not.",
        "                         time",
        "tasks",
        "    shp    SHP, the Stanford Human Preferences: pairs of comments on a Reddit",
        "           post, the better one by its votes.",
    ]


def test_list_of_one_method(terminal: Callable[..., list[str]]) -> None:
    lines = terminal("list", "caa")
    assert lines[0] == "caa  built in"
    start = next(i for i, line in enumerate(lines) if line.startswith("hyperparameter"))
    assert lines[start : start + 6] == [
        "hyperparameter   default         takes                   meaning",
        "─" * 80,
        "strength         1.0             float                   in units of the",
        "                                                         vector's own length;",
        "                                                         0.0 switches the method",
        "                                                         off",
    ]
    assert lines[-2:] == ["", "Given as --methods 'caa:relative_norm=0.05'"]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    for method in ("unsteered", "caa"):
        record = make(method)
        record.examples["reward"] += [0.1 * (i % 5) * (method == "caa") for i in range(len(record.examples))]
        Store(tmp_path / "runs").write(record)
    return tmp_path / "runs"


def test_power_without_a_difference(terminal: Callable[..., list[str]], runs: Path) -> None:
    assert terminal("power", runs) == [
        "shp",
        "method     SD  prompts  smallest    2 ×    4 ×",
        "──────────────────────────────────────────────",
        "caa     0.145       20     0.091  0.064  0.045",
        "",
        "smallest: the true difference in reward that as many prompts as measured find in",
        "80% of studies at the 0.05 level; 2 ×, 4 ×: that many times the prompts. How",
        "many a difference takes: --difference.",
    ]


def test_replies_beside_each_other() -> None:
    def one(method: str, strength: str, text: str, kl: float) -> Sample:
        return Sample(method, [Response(text, (1,), "length")], {}, [kl], strength)

    stream = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    plain = "Mix flour with water and let it rise."
    show_beside(
        stream,
        ["How do I bake bread?"],
        [one("unsteered", "", plain, 0.0), one("caa:strength=2", "strength 2", plain, 0.0123)],
    )
    assert [line.rstrip() for line in stream.file.getvalue().splitlines()] == [  # type: ignore[attr-defined]
        "How do I bake bread?",
        "unsteered                               caa:strength=2",
        "                                        strength 2",
        "                                        KL 0.012",
        "──────────────────────────────────────────────────────────────────────",
        "Mix flour with water and let it rise.   (equal to the unsteered reply)",
        "",
        "KL: of the steered against the unsteered model, mean over the tokens of the",
        "reply, in nats.",
    ]


def test_check_of_a_fit_that_gives_nan(terminal: Callable[..., list[str]], tmp_path: Path) -> None:
    nan = "return Steering(edits=(PlacedEdit(site, Shift(vector, self.strength), "
    (tmp_path / "no_number.py").write_text(METHOD.replace(nan, nan.replace("vector,", "vector * float('nan'),")))
    n = len(INVARIANTS)
    assert terminal("check", tmp_path / "no_number.py", "--family", "llama") == [
        "broken  Fit returns a steering.",
        "        llama: fit of MyMethod returned NaN in Shift.vector at resid_post.1; look for a division by zero, "
        "as where all rewards are equal.",
        f"no_number: fit fails on 1 of 1 model families, so {n} of {n} checks could not be made.",
    ]
