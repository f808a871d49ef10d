"""The script whose numbers stand in the verdicts: what rewards know of beginnings."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = str(Path(__file__).parents[2] / "results" / "rewards_of_beginnings.py")


def test_pairs_of_one_prompt_are_counted_once_each_and_the_same_beginning_as_half() -> None:
    ends = torch.tensor([[1.0, 5.0], [2.0, 6.0], [3.0, 4.0]])
    guesses = torch.tensor([[0.0, 9.0], [7.0, 0.0], [7.0, 1.0]])
    known = torch.tensor([[True, True], [True, True], [True, False]])
    told = runpy.run_path(SCRIPT)["in_order"](guesses, ends, known)
    # of the first prompt two of three pairs are right and one is a tie; the known pair of the other is wrong
    assert told.startswith(f"{2.5 / 4:.2f} ")


@pytest.mark.slow  # three minutes: a thousand replies to the prompts of each task
def test_the_reward_is_arbitrary_on_short_beginnings_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [SCRIPT])
    runpy.run_path(SCRIPT, run_name="__main__")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    shares = [(int(line[0]), float(line[1]), float(line[5])) for line in lines if line and line[0].isdigit()]
    assert len(shares) == 10
    for length, of_reward, of_value in shares:
        assert of_reward < 0.52 if length <= 8 else of_reward > 0.55
        assert of_value > 0.55 or length > 8
