"""Gains of several studies side by side, from made records."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from made_records import make
from typer.testing import Result

from steerbench import Store
from steerbench.errors import SteerbenchError
from steerbench.records.across import END, START, across

Cli = Callable[..., Result]


@pytest.fixture
def studies(tmp_path: Path) -> list[Path]:
    """Return two studies: `caa` and `repe` in both, `iti` in the second one alone, where it gains most."""
    gains = {
        "one": {"unsteered": 0.0, "caa": 1.0, "repe": 0.25},
        "two": {"unsteered": 1.0, "caa": 1.5, "repe": 3.0, "iti": 4.0},
    }
    for study, rewards in gains.items():
        for method, reward in rewards.items():
            record = make(method, task="t", seeds=[0])
            latency = {**record.latency, "decode_ratio": reward}
            Store(tmp_path / study).write(
                replace(record, latency=latency, examples=record.examples.assign(reward=reward))
            )
    return [tmp_path / study for study in gains]


def test_each_gain_is_over_the_unsteered_model_of_its_own_study(studies: list[Path]) -> None:
    (found,) = across(studies, "reward")
    assert found.task == "t"
    assert found.studies == ("one", "two")
    assert list(found.rows) == ["iti", "repe", "caa"]
    means = {(m, s): found.gain(m, s) for m in found.rows for s in found.studies}
    assert means["iti", "one"] is None
    assert {key: gain[0] for key, gain in means.items() if gain} == {
        ("caa", "one"): 1.0,
        ("caa", "two"): 0.5,
        ("repe", "one"): 0.25,
        ("repe", "two"): 2.0,
        ("iti", "two"): 3.0,
    }


def test_the_command_writes_a_line_for_each_method_between_marks(studies: list[Path], tmp_path: Path, cli: Cli) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{START}\n{END}\nafter\n")
    result = cli("across", *map(str, studies), "--metric", "reward", "--markdown", str(page))
    assert result.exit_code == 0, result.output
    assert result.output.index("iti") < result.output.index("caa")
    text = page.read_text()
    assert "| reward, t | one | two | time × |" in text
    cells = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert [(line[0], line[1][:7], line[3]) for line in cells] == [
        ("| `iti`", "", "4.00 |"),
        ("| `repe`", "**+0.25", "0.25 to 3.00 |"),
        ("| `caa`", "**+1.00", "1.00 to 1.50 |"),
    ]
    assert (text.startswith("before\n"), text.endswith("after\n")) == (True, True)


def test_what_is_not_matched_says_its_own_kl(tmp_path: Path, cli: Cli) -> None:
    page = tmp_path / "page.md"
    protocol = {**make("caa", task="t", seeds=[0]).protocol, "match_kl": 0.05}
    for method, kl in (("unsteered", 0.0), ("best_of_n", 0.0123)):
        record = make(method, task="t", seeds=[0])
        metrics = {**record.metrics, "kl": kl}
        Store(tmp_path / "runs").write(replace(record, metrics=metrics, protocol=protocol))
    assert cli("across", str(tmp_path / "runs"), "--metric", "reward", "--markdown", str(page)).exit_code == 0
    assert " at 0.012 nats |" in page.read_text()


def test_other_metrics_and_studies_without_gains_are_refused(studies: list[Path]) -> None:
    with pytest.raises(SteerbenchError, match="unknown metric 'kl'"):
        across(studies, "kl")
    with pytest.raises(SteerbenchError, match="none of these has gains of gold"):
        across(studies, "gold")
