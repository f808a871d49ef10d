"""What the mean gains hide, each number against one that is written out, and what older records still tell."""

from dataclasses import replace
from itertools import permutations
from math import exp, log
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_records import make
from scipy.stats import spearmanr

from steerbench import Record, SteerbenchError, Store, leaderboard
from steerbench.records.agreement import agreement
from steerbench.records.columns import COLUMNS, SIDE_EFFECTS
from steerbench.records.length_control import length_controlled
from steerbench.records.markdown import markdown
from steerbench.records.ngrams import repetition_of
from steerbench.records.noise_floor import worse_floor
from steerbench.records.per_token import per_response, pooled_perplexity
from steerbench.records.regression import coefficients, interval_ends, moments, resampled_coefficients

ROOT = Path(__file__).parents[2]
N = 12


def drawn(seed: int, samples: int = 2, **columns: Any) -> pd.DataFrame:
    """Return responses with scores that are drawn, prompts two to a group."""
    rng, n = np.random.default_rng(seed), N * samples
    scores = {name: rng.normal(size=n).round(1) for name in ("reward", "held_out_reward", "gold")}
    table = {
        "id": [f"p{i:02d}" for i in range(N)] * samples,
        "group": [f"g{i // 2}" for i in range(N)] * samples,
        "sample": np.repeat(np.arange(samples), N),
        "response": [f"a b c d a b c d {i}" for i in range(n)],
        "length": rng.integers(0, 40, n).astype(float),
        "tokens": rng.integers(1, 40, n),
        "kl": rng.random(n),
        "nll": rng.random(n),
    }
    return pd.DataFrame(table | scores | columns)


def record(method: str, seed: int, table: pd.DataFrame) -> Record:
    return replace(make(method, seed), examples=table, metrics={"reward": float(table["reward"].mean())})


def naive_line(x: list[float], y: list[float]) -> float:
    """Return where the line of least squares crosses zero."""
    slope = sum((a - fmean(x)) * (b - fmean(y)) for a, b in zip(x, y, strict=True)) / sum(
        (a - fmean(x)) ** 2 for a in x
    )
    return fmean(y) - slope * fmean(x)


def test_the_gain_at_equal_length_is_the_intercept_of_a_line() -> None:
    pairs = [(drawn(1), drawn(2)), (drawn(3), drawn(4).sample(frac=1, random_state=0))]
    x, y = [], []
    for steered, unsteered in pairs:
        for _, row in steered.iterrows():
            same = (unsteered["id"] == row["id"]) & (unsteered["sample"] == row["sample"])
            other = unsteered[same].iloc[0]
            x.append(log((1 + row["length"]) / (1 + other["length"])))
            y.append(row["reward"] - other["reward"])
    found = length_controlled({"caa": pairs})["caa"]
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.mean == pytest.approx(naive_line(x, y))
    assert found.low < found.mean < found.high


def test_what_length_alone_pays_is_no_gain_at_equal_length() -> None:
    plain = drawn(0, length=20.0)
    length = np.random.default_rng(1).integers(20, 80, len(plain)).astype(float)
    reward = plain["reward"] + 2 * np.log((1 + length) / 21)
    found = length_controlled({"long": [(plain.assign(length=length, reward=reward), plain)]})["long"]
    assert found is not None
    assert found == pytest.approx((0.0, 0.0, 0.0), abs=1e-9)


def test_at_equal_length_the_gain_is_the_gain_and_at_one_ratio_nothing_is_known() -> None:
    plain = drawn(0, length=20.0)
    same, doubled = plain.assign(reward=plain["reward"] + 1), plain.assign(length=41.0)
    found = length_controlled({"same": [(same, plain)], "doubled": [(doubled, plain)]})
    assert found["same"] == pytest.approx((1.0, 1.0, 1.0))
    assert found["doubled"] is None
    alone = [table.assign(group="g") for table in (drawn(1), drawn(2))]
    (only,) = length_controlled({"caa": [(alone[0], alone[1])]}).values()
    assert only is not None
    assert (only.low, only.high) == (None, None)
    assert length_controlled({}) == {}


def test_fits_are_those_of_numpy_and_resamples_those_of_whole_clusters() -> None:
    rng = np.random.default_rng(0)
    first, second, target = rng.normal(size=(3, 60))
    codes = np.repeat(np.arange(20), 3)
    cells = moments(first, second, target, codes)
    expected = np.linalg.lstsq(np.stack([first, second], 1), target, rcond=None)[0]
    assert coefficients(cells.sum(axis=0)) == pytest.approx(expected)
    draws = resampled_coefficients([cells, 2 * cells], 2000)
    assert draws[:, 0] == pytest.approx(draws[:, 1])
    naive = []
    for _ in range(1000):
        rows = np.concatenate([np.flatnonzero(codes == k) for k in rng.integers(0, 20, 20)])
        design = np.stack([first[rows], second[rows]], 1)
        naive.append(np.linalg.lstsq(design, target[rows], rcond=None)[0])
    for i in range(2):
        ends = np.quantile(np.array(naive)[:, i], [0.025, 0.975])
        assert interval_ends(draws[:, 0, i]) == pytest.approx(ends, abs=0.15 * (ends[1] - ends[0]))


def test_repetition_is_the_share_of_ngrams_that_were_there_before() -> None:
    for text, n in (("a b a b a b a b", 4), ("to be or not to be or not to be", 2), ("no no no", 1), ("a b c d e", 4)):
        words, seen, repeated = text.split(), [], 0
        for i in range(len(words) - n + 1):
            repeated += words[i : i + n] in seen
            seen.append(words[i : i + n])
        assert repetition_of(text, n) == pytest.approx(repeated / len(seen))
    assert repetition_of("a b c") == repetition_of("") == 0.0
    assert repetition_of("no " * 1000) > 0.99


def test_perplexity_is_pooled_over_all_tokens_of_all_seeds() -> None:
    tables = [drawn(1), drawn(2)]
    nats = [nll for table in tables for nll, n in zip(table["nll"], table["tokens"], strict=True) for _ in range(n)]
    assert pooled_perplexity(tables) == pytest.approx(exp(fmean(nats)))
    assert pooled_perplexity([tables[0], tables[1].drop(columns="nll")]) is None
    assert pooled_perplexity([drawn(1, nll=float("nan"))]) is None


def test_one_broken_response_does_not_make_the_perplexity_of_all() -> None:
    nll = np.where(np.arange(2 * N) == 0, 14.0, 0.3)
    table = drawn(1, nll=nll, tokens=30)
    assert np.exp(nll).mean() > 50_000
    assert pooled_perplexity([table]) == pytest.approx(exp(0.3 + 13.7 / (2 * N)))


def test_the_kl_of_a_response_is_that_of_its_tokens_together() -> None:
    table = drawn(1)
    rows = zip(table["kl"], table["tokens"], strict=True)
    assert per_response(table, "kl") == pytest.approx(fmean(sum([kl] * n) for kl, n in rows))
    silent = pd.DataFrame({"kl": [0.5, float("nan")], "tokens": [4, 0]})
    assert per_response(silent, "kl") == 1.0
    assert per_response(silent.assign(tokens=4), "kl") is None
    assert per_response(table.drop(columns="kl"), "kl") is None


def test_the_floor_of_worse_is_that_of_every_two_draws_both_ways() -> None:
    tables = [drawn(1), drawn(2)]
    draws = [t[t["sample"] == k].sort_values("id")["reward"].tolist() for t in tables for k in (0, 1)]
    naive = [fmean(a < b - 1e-4 for a, b in zip(one, other, strict=True)) for one, other in permutations(draws, 2)]
    assert worse_floor([tables[0], tables[1].sample(frac=1, random_state=0)]) == pytest.approx(fmean(naive))
    assert worse_floor([drawn(1, samples=1)]) is None
    one = worse_floor([drawn(1)])
    assert worse_floor([drawn(1), drawn(1)]) == pytest.approx(2 / 3 * (one or 0.0))  # equal draws tie: 2 pairs of 6
    greedy = drawn(1, samples=1)
    assert worse_floor([greedy, greedy.assign(reward=greedy["reward"] + 5e-5)]) == 0
    with pytest.raises(SteerbenchError, match="hold different test prompts"):
        worse_floor([greedy, greedy.assign(id=[f"q{i}" for i in range(N)])])


def test_agreement_is_the_rank_correlation_of_scipy() -> None:
    table = drawn(1)
    assert agreement(table, "reward", "gold") == pytest.approx(spearmanr(table["reward"], table["gold"]).statistic)
    assert agreement(table.assign(gold=-table["reward"]), "reward", "gold") == pytest.approx(-1)
    for nothing in (1.0, float("nan"), "text"):
        assert agreement(table.assign(gold=nothing), "reward", "gold") is None
    assert agreement(table.drop(columns="gold"), "reward", "gold") is None


def test_the_leaderboard_has_them_for_each_row() -> None:
    plain, steered = [drawn(1), drawn(2)], [drawn(3), drawn(4)]
    records = [record("unsteered", i, t) for i, t in enumerate(plain)]
    records += [record("caa", i, t) for i, t in enumerate(steered)]
    rows = leaderboard(records).set_index("method")
    caa, unsteered = rows.loc["caa"], rows.loc["unsteered"]
    for name, other in (("agreement", "held_out_reward"), ("agreement_gold", "gold")):
        means = [fmean(spearmanr(t["reward"], t[other]).statistic for t in tables) for tables in (steered, plain)]
        assert caa[name] == pytest.approx(means[0])
        assert caa[f"{name}_change"] == pytest.approx(means[0] - means[1])
        assert unsteered[f"{name}_change"] == 0
        n = steered[0]["group"].nunique()
        ends = np.tanh(np.arctanh(means[0]) + 1.96 * np.sqrt(1.06 / (n - 3)) * np.array([-1, 1]))
        assert [caa[f"{name}_low"], caa[f"{name}_high"]] == pytest.approx(list(ends))
        said = f"reward and {COLUMNS[other].title} over the unsteered replies: {means[1]:.2f} ("
        assert said in markdown(leaderboard(records))
    gain = length_controlled({"caa": list(zip(steered, plain, strict=True))})["caa"]
    assert gain == tuple(caa[f"length_controlled_gain{end}"] for end in ("", "_low", "_high"))
    assert caa["perplexity"] == pooled_perplexity(steered)
    assert caa["kl_response"] == fmean(per_response(t, "kl") or 0.0 for t in steered)
    assert caa["repetition"] == pytest.approx(1 / 6)
    assert caa["worse_floor"] == unsteered["worse_floor"] == worse_floor(plain)
    assert pd.isna(unsteered["length_controlled_gain"])


def test_what_is_kept_of_repetition_counts_before_what_the_text_says() -> None:
    assert leaderboard([record("caa", 0, drawn(1, repetition=0.5))]).loc[0, "repetition"] == 0.5


def test_a_record_of_scores_alone_has_none_of_them() -> None:
    table = leaderboard([make("unsteered"), make("caa")]).set_index("method")
    assert table.loc["caa", "reward_gain"] == 1.0
    assert table.loc["caa", [*SIDE_EFFECTS, "repetition", "perplexity"]].isna().all()
    lone = leaderboard([record("caa", 0, drawn(1))]).iloc[0]
    assert lone[["length_controlled_gain", "worse_floor", "agreement_change"]].isna().all()
    assert lone[["agreement", "kl_response", "perplexity"]].notna().all()


def test_the_first_records_have_what_can_be_derived() -> None:
    table = leaderboard(Store(ROOT / "tests/support/first_layout").records())
    assert table[["repetition", "perplexity", "kl_response", "agreement"]].notna().all(axis=None)
