"""Whether two tables agree in the order of methods: against SciPy, a naive count of places, and made records."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_records import make
from scipy.stats import spearmanr
from typer.testing import Result

from steerbench import Store
from steerbench.errors import SteerbenchError
from steerbench.records.order_agreement import END, START, agreement_of, order_agreements, shown

Cli = Callable[..., Result]


def test_the_correlation_is_spearmans_over_the_methods_of_both() -> None:
    rng = np.random.default_rng(0)
    names = [f"m{i}" for i in range(12)]
    ones, others = rng.normal(size=12), rng.normal(size=12).round(1)
    others[3] = others[4]  # a tie
    found = agreement_of("a", pd.Series(ones, names), "b", pd.Series([*others, 9.0], [*names, "only here"]))
    expected = spearmanr(ones, others).statistic
    assert found.methods == 12
    assert found.correlation is not None
    assert found.correlation.mean == pytest.approx(expected)
    half = 1.96 * np.sqrt(1.06 / 9)
    assert found.correlation[1:] == pytest.approx(np.tanh(np.arctanh(expected) + np.array([-half, half])))


def test_the_interval_holds_as_often_as_it_says() -> None:
    """Over draws of twelve methods; a normal pair with correlation rho has the rank correlation 6/pi asin(rho/2)."""
    rng, rho, held = np.random.default_rng(1), 0.6, 0
    truth = 6 / np.pi * np.arcsin(rho / 2)
    for _ in range(400):
        drawn = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], 12)
        correlation = agreement_of("a", pd.Series(drawn[:, 0]), "b", pd.Series(drawn[:, 1])).correlation
        assert correlation is not None
        assert correlation.low is not None
        assert correlation.high is not None
        held += correlation.low <= truth <= correlation.high
    assert 0.91 <= held / 400 <= 0.99


def test_what_is_furthest_apart_is_named_with_its_places() -> None:
    found = agreement_of(
        "a", pd.Series({"w": 4.0, "x": 3.0, "y": 2.0, "z": 1.0}), "b", pd.Series({"w": 1.0, "x": 3.0, "y": 4.0, "z": 2})
    )
    assert found.apart == (("w", 1.0, 4.0), ("y", 3.0, 1.0), ("z", 4.0, 3.0))
    alike = agreement_of("a", pd.Series({"w": 2.0, "x": 1.0}), "b", pd.Series({"w": 5.0, "x": 3.0}))
    assert alike.apart == ()
    assert shown(alike.correlation) == "1.00"
    assert shown(agreement_of("a", pd.Series({"w": 2.0}), "b", pd.Series({"w": 5.0})).correlation) == "–"


@pytest.fixture
def studies(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder, order in zip(folders, ([0.0, 1, 2, 3, 4], [0.0, 2, 1, 3, 4]), strict=True):
        for method, gain in zip(("unsteered", "caa", "iti", "repe", "ablation"), order, strict=True):
            record = make(method, task="t", seeds=[0])
            Store(folder).write(replace(record, examples=record.examples.assign(reward=gain)))
    return folders


def test_the_command_reads_each_folder_as_a_study(studies: list[Path], tmp_path: Path, cli: Cli) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{START}\n{END}\nafter\n")
    result = cli("agree", *map(str, studies), "--metric", "reward", "--markdown", str(page))
    assert result.exit_code == 0, result.output
    assert "+0.800" in result.output
    line = "| one, t | two, t | 4 | 0.80 (-0.73 to 1.00) | `caa` (4, 3), `iti` (3, 4) |"
    assert line in page.read_text()
    assert page.read_text().startswith("before\n")


def test_two_folders_of_one_name_are_told_apart(studies: list[Path]) -> None:
    homes = [studies[0].parent / home for home in ("a", "b")]
    for folder, home in zip(studies, homes, strict=True):
        home.mkdir()
        folder.rename(home / "runs")
    (found,) = order_agreements([home / "runs" for home in homes], "reward")
    assert (found.first, found.second) == tuple(f"{home / 'runs'}, t" for home in homes)


def test_one_table_and_unknown_metrics_are_refused(studies: list[Path]) -> None:
    with pytest.raises(SteerbenchError, match="takes two tables to agree, and 1 of these have"):
        order_agreements(studies[:1], "reward")
    with pytest.raises(SteerbenchError, match="unknown metric 'kl'"):
        order_agreements(studies, "kl")
