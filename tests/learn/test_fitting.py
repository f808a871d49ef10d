"""What `fit` returns is looked at before anything is generated: for `run`, `check` and Python alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from method_corpus import method
from torch import Tensor
from typer.testing import Result

from steerbench import FitContext, LanguageModel, SteerbenchError, Steerer, Steering, fit
from steerbench.contract import tiny
from steerbench.edits import Add, LogitsPart, PlacedEdit, Site

NAN, INFINITY = float("nan"), float("inf")
WHERE = "look for a division by zero, as where all rewards are equal."
CAUSED = """
vector = self.vector(context)
return self.place(Shift(vector / (vector - vector).norm() * 0, self.strength))
"""


class Tokens(LogitsPart):
    """Adds to logits."""

    def __init__(self, added: Tensor, more: list[Tensor]) -> None:
        self.added, self.more = added, more


@dataclass(frozen=True, kw_only=True)
class Mine(Steerer):
    """Returns what it is given."""

    off: ClassVar[Mapping[str, Any]] = {}
    steering: Any = None

    def fit(self, context: FitContext) -> Steering:
        found: Steering = self.steering
        return found


def placed(value: float, site: str = "resid_post.1") -> PlacedEdit:
    return PlacedEdit(Site.parse(site), Add(torch.tensor([1.0, value])))


def tokens(*values: float) -> Tokens:
    return Tokens(torch.ones(3), [torch.tensor([value]) for value in values])


@pytest.mark.parametrize(
    ("steering", "says"),
    [
        (Steering(edits=(placed(NAN),)), "NaN in Add.vector at resid_post.1"),
        (Steering(edits=(placed(0.0), placed(INFINITY, "z.2"))), "infinity in Add.vector at z.2"),
        (Steering(edits=(placed(-INFINITY),)), "infinity in Add.vector at resid_post.1"),
        (Steering(logits=(tokens(0.0, NAN),)), "NaN in Tokens.more[1]"),
    ],
)
def test_what_is_no_number_is_named(llama: LanguageModel, steering: Steering, says: str) -> None:
    with pytest.raises(SteerbenchError) as raised:
        fit(Mine(steering=steering), llama, tiny.examples())
    assert str(raised.value) == f"fit of Mine returned {says}; {WHERE}"


def test_a_logits_part_may_forbid_tokens(llama: LanguageModel) -> None:
    steering = Steering(edits=(placed(1e38),), logits=(tokens(-INFINITY),))
    assert fit(Mine(steering=steering), llama, tiny.examples()) == steering


def test_run_and_check_say_the_same(cli: Callable[..., Result], run_cli: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(method(CAUSED))
    sentence = f"fit of Mine returned NaN in Shift.vector at resid_post.1; {WHERE}"
    measured = run_cli("--plugin", path, "--methods", "mine")
    assert measured.exit_code == 2
    assert measured.stderr == f"failed: mine (seed 0): {sentence}\n"
    checked = cli("check", path, "--family", "llama")
    assert checked.exit_code == 2
    assert " ".join(f"llama: {sentence}".split()) in " ".join(checked.stdout.split())
