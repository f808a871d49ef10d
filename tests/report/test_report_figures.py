"""What the report draws: fronts, curves, best of N, colours, labels, and the plot."""

from collections.abc import Sequence
from itertools import combinations
from math import log
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from report_pages import make, some

from steerbench import Record, SteerbenchError, leaderboard
from steerbench.report import write_plot
from steerbench.report.curves import sweeps, tuned
from steerbench.report.figures import scatters, verdict
from steerbench.report.frontier import best_of_n_kl, best_of_n_win_rate, measured_best_of_n, pareto, win_rate_bound
from steerbench.report.groups import Group, grouped, letters
from steerbench.report.labels import Box, places
from steerbench.report.plots import Point, Scatter, log_ticks, scatter
from steerbench.report.svg import BLUE, ORANGE, RED

# fronts and curves


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_what_nothing_beats(seed: int, lower: bool) -> None:
    drawn = np.random.default_rng(seed).integers(0, 6, (20, 2)).astype(float)  # whole numbers, so that there are ties
    points = [(float(x), float(y)) for x, y in drawn]

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        no_worse_x = a[0] <= b[0] if lower else a[0] >= b[0]
        return no_worse_x and a[1] >= b[1] and a != b

    naive = {i for i, point in enumerate(points) if not any(beats(other, point) for other in points)}
    found = pareto(points, lower)
    assert set(found) == naive
    assert [points[i] for i in found] == sorted(points[i] for i in naive)
    assert pareto([], lower) == []


def group(records: Sequence[Record]) -> Group:
    (only,) = grouped(records)
    return only


def test_best_of_n_stands_at_its_closed_form() -> None:
    anchors = [make(f"best_of_n:n={n}", lift=log(n) / 4, hyperparameters={"n": n}) for n in (8, 2, 4)]
    other = make("tree", hyperparameters={"n": 16})
    found = measured_best_of_n(group([make("unsteered"), *anchors, other]), "reward_gain")
    table = leaderboard([make("unsteered"), *anchors, other]).set_index("method")
    assert [a.n for a in found] == [2, 4, 8]
    for anchor in found:
        row = table.loc[f"best_of_n:n={anchor.n}"]
        assert (anchor.kl, anchor.value) == (row["kl"], row["reward_gain"])
    assert best_of_n_kl(1) == 0
    assert [round(best_of_n_kl(n), 3) for n in (8, 16, 32, 64, 128)] == [1.204, 1.835, 2.497, 3.175, 3.86]
    assert [round(best_of_n_win_rate(n), 3) for n in (1, 8, 64)] == [0.5, 0.889, 0.985]
    assert [a.n for a in win_rate_bound(group([make("unsteered")]))] == [1, 2, 4, 16, 64, 256]
    assert win_rate_bound(group([make("caa")])) == []


@pytest.mark.parametrize("decoding", [{"temperature": 0.0}, {"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 5}])
def test_no_bound_is_drawn_where_responses_are_drawn_otherwise(decoding: dict[str, Any]) -> None:
    assert win_rate_bound(group([make("unsteered", **decoding)])) == []


def test_best_of_n_is_drawn_beside_the_methods() -> None:
    records = [make("unsteered"), make("caa"), make("best_of_n:n=4", hyperparameters={"n": 4})]
    notes = {shown.title: shown.note + shown.svg for shown in scatters(group(records))}
    assert "(log N - (N-1)/N)" in notes["Reward gain against KL"]
    assert "N=4" in notes["Reward gain against KL"]
    assert "N/(N+1)" in notes["Win rate against KL"]
    without = {shown.title: shown.note for shown in scatters(group(records[:2]))}
    assert "best-of-N" not in without["Reward gain against KL"]


@pytest.mark.parametrize(("slow", "ticks"), [(20.0, {"1", "2", "5", "10", "20"}), (1.5, {"1.0", "1.2", "1.4"})])
def test_times_far_apart_stand_on_a_logarithmic_scale(slow: float, ticks: set[str]) -> None:
    records = [make("unsteered"), make("caa")]
    records[1].latency["decode_ratio"] = slow
    (svg,) = [shown.svg for shown in scatters(group(records)) if shown.title == "Reward gain against decoding time"]
    texts = {"".join(node.itertext()) for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")}
    assert ticks <= texts


def test_records_that_differ_in_one_number_make_a_curve() -> None:
    swept = [
        make(f"caa:strength={s}", lift=s, hyperparameters={"strength": s, "layer": 1, "on": True}) for s in (2, 1, 0.5)
    ]
    other_layer = make("caa:layer=2", hyperparameters={"strength": 4.0, "layer": 2, "on": True})
    pair = [make(f"iti:alpha={a}", hyperparameters={"alpha": a}) for a in (1, 2)]
    (curve,) = sweeps(group([make("unsteered"), *swept, other_layer, *pair]))
    assert (curve.label, curve.dial, curve.values) == ("caa", "strength", [0.5, 1, 2])
    assert [row.method for row in curve.rows] == ["caa:strength=0.5", "caa:strength=1", "caa:strength=2"]


def test_tuned_records_make_no_sweep() -> None:
    tuning = {"trials": [{"hyperparameters": {"strength": 1.0}, "score": 1.0}]}
    records = [make(f"caa:strength={s}", hyperparameters={"strength": s}, tuning=tuning) for s in (1, 2, 3)]
    assert sweeps(group(records)) == []


def test_trials_over_one_number_make_a_curve_of_the_guide() -> None:
    def tuning(shift: float) -> dict[str, Any]:
        trials = [
            {"hyperparameters": {"strength": s}, "score": 0.0, "reward": shift + s, "kl": 1.0} for s in (4.0, 1.0, 2.0)
        ]
        failed = {"hyperparameters": {"strength": 8.0}, "error": "too strong"}
        return {"trials": [*trials, failed], "chosen": {"strength": 4.0}, "unsteered": {"score": 9.0, "reward": shift}}

    (found,) = tuned(group([make("caa", seed, tuning=tuning(seed), seeds=[0, 1]) for seed in (0, 1)]))
    assert found.values == [1.0, 2.0, 4.0]
    assert found.mean == [1.5, 2.5, 4.5]
    assert found.seeds == [[1.0, 2.0, 4.0], [2.0, 3.0, 5.0]]
    assert (found.unsteered, found.chosen, found.dial) == (0.5, [4.0, 4.0], "strength")


def test_a_default_that_is_no_number_is_no_point_of_the_curve() -> None:
    trials = [{"hyperparameters": {"layer": layer}, "score": 0.0, "reward": 2.0} for layer in (None, 0.2, 0.4, 0.6)]
    tuning = {"trials": trials, "chosen": {"layer": None}, "unsteered": {"score": 0.0, "reward": 1.0}}
    (found,) = tuned(group([make("caa", tuning=tuning)]))
    assert (found.values, found.chosen) == ([0.2, 0.4, 0.6], [])


def test_trials_over_two_numbers_make_no_curve() -> None:
    trials = [{"hyperparameters": {"strength": s, "layer": s}, "score": s} for s in (1, 2, 3)]
    assert tuned(group([make("caa", tuning={"trials": trials, "unsteered": 0.0, "chosen": {}})])) == []


def test_over_optimised_methods_are_coloured() -> None:
    """All methods of these records lose gold where they gain reward, and gain half in the held-out reward."""
    shown = {s.title: s.svg for s in scatters(group(some()))}
    gold = shown["Guide against gold, the truth of the testbed"]
    assert gold.count("var(--red)") > 0
    assert "var(--orange)" not in gold
    held_out = shown["Guide against held-out reward"]
    assert 'class="pm"' in held_out  # blue, by the page's style sheet
    assert "var(--red)" not in held_out


@pytest.mark.parametrize(
    ("guide", "other", "colour"),
    [
        ((0.5, 1.5), (0.1, 0.9), BLUE),
        ((0.5, 1.5), (-0.1, 0.9), ORANGE),
        ((0.5, 1.5), (-0.9, -0.1), RED),
        ((-0.5, 1.5), (-0.9, -0.1), RED),
        ((-0.5, 1.5), (0.1, 0.9), BLUE),
        ((-0.5, -0.1), (-0.9, -0.1), BLUE),
    ],
)
def test_signs_alone_decide_the_colour(guide: tuple[float, float], other: tuple[float, float], colour: str) -> None:
    assert verdict(sum(guide) / 2, sum(other) / 2, guide, other) == colour
    assert verdict(1.0, -1.0, None, None) == RED


def test_labels_do_not_cover_one_another() -> None:
    points = [(100 + 3.0 * i, 100 + 2.0 * (i % 3)) for i in range(12)]
    found = places(points, [letters(i) for i in range(12)], Box(0, 0, 300, 300))
    assert all(abs(a[0] - b[0]) >= 7.5 or abs(a[1] - b[1]) >= 9 for a, b in combinations(found, 2))
    assert all(max(abs(x - u), abs(y - v)) <= 60 for (x, y), (u, v) in zip(points, found, strict=True))
    assert [letters(i) for i in (0, 25, 26, 27, 52, 702)] == ["A", "Z", "AA", "AB", "BA", "AAA"]


# the plot


def test_the_settings_of_matplotlib_do_not_matter_and_stay(tmp_path: Path) -> None:
    import matplotlib as mpl

    write_plot(grouped(some()), tmp_path / "one.svg")
    with mpl.rc_context({"font.size": 30.0, "svg.fonttype": "path"}):
        write_plot(grouped(some()), tmp_path / "two.svg")
        assert mpl.rcParams["font.size"] == 30.0
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_the_plot_names_every_method_once(tmp_path: Path) -> None:
    others = [make(m, task="testbed-hh_rlhf", lift=0.7) for m in ("unsteered", "iti", "$x_$ é" + "long " * 20)]
    write_plot(grouped([*some(), *others]), tmp_path / "plot.svg")
    root = ElementTree.fromstring((tmp_path / "plot.svg").read_text(encoding="utf-8"))
    texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    for name in ("testbed-shp", "testbed-hh_rlhf", "iti", "caa:layer=1", "gold gain"):
        assert texts.count(name) == 1
    assert any(text.startswith("$x_$ \\xe9long") for text in texts)
    assert "unsteered" not in texts


def test_the_plot_has_one_panel_for_each_task(tmp_path: Path) -> None:
    swept = [make(m, seeds=[0, 1]) for m in ("unsteered", "caa")]  # another protocol, with fewer records
    write_plot(grouped([*some(), *swept]), tmp_path / "both.svg")
    write_plot(grouped(some()), tmp_path / "one.svg")
    assert (tmp_path / "both.svg").read_bytes() == (tmp_path / "one.svg").read_bytes()


def test_without_gold_the_plot_shows_the_held_out_reward(tmp_path: Path) -> None:
    records = [make(m, task="shp") for m in ("unsteered", "caa")]
    for record in records:
        del record.examples["gold"]
    write_plot(grouped(records), tmp_path / "plot.svg")
    assert "held-out gain" in (tmp_path / "plot.svg").read_text(encoding="utf-8")
    with pytest.raises(SteerbenchError, match="--held-out-reward"):
        write_plot(grouped([make("caa")]), tmp_path / "none.svg")


# ticks


@pytest.mark.parametrize("low", [0.0, 0.02, 0.87, 2.1])
@pytest.mark.parametrize("ratio", [4.1, 7.0, 30.0, 400.0, 1e5])
def test_an_axis_over_decades_has_three_labels_or_more(low: float, ratio: float) -> None:
    high = (low or 0.001) * ratio
    ticks = log_ticks(low, high)
    assert 3 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))
    assert low <= ticks[0] < ticks[-1] <= high


def test_few_methods_have_a_kl_axis_that_can_be_read() -> None:
    plot = Scatter("few", "few", "KL", "gain", [Point("a", "a", 0.04, 1.0), Point("b", "b", 0.06, 2.0)], scale="symlog")
    texts = [element.text for element in ElementTree.fromstring(scatter(plot)).iter() if element.tag.endswith("text")]
    assert texts[: texts.index("KL")] == ["0", "0.01", "0.02", "0.05"]
