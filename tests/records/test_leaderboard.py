"""The leaderboard ranks what was measured alike, and says which field differs otherwise."""

import io
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_records import make
from rich.console import Console

from steerbench import Decoding, Protocol, Record, SteerbenchError, leaderboard
from steerbench.cli import tables
from steerbench.records.identity import fingerprint
from steerbench.records.leaderboard import write_csv
from steerbench.records.statistics import paired_interval


def both(method: str, **protocol: Any) -> list[Record]:
    return [make(method, seed, **protocol) for seed in (0, 1)]


def test_rows_are_means_over_seeds_in_order_of_reward() -> None:
    table = leaderboard([*both("unsteered"), *both("caa")])
    assert list(table["method"]) == ["caa", "unsteered"]
    assert list(table["rank"]) == [1, 2]
    assert list(table["reward"]) == [2.0, 1.0]
    assert list(table["seeds"]) == [2, 2]


def test_ties_are_shown_as_ties() -> None:
    table = leaderboard([*both("one"), *both("two"), *both("unsteered")])
    assert list(table["rank"]) == [1, 1, 3]


def test_a_method_without_all_seeds_has_no_rank() -> None:
    table = leaderboard([*both("unsteered"), make("caa", 1)])
    ranks = dict(zip(table["method"], table["rank"], strict=True))
    assert ranks["unsteered"] == 1
    assert pd.isna(ranks["caa"])


def test_one_seed_measured_twice_is_refused() -> None:
    """Else a method that lacks seeds could be ranked, and the variance of fits would be too small."""
    once = make("caa", 0)
    again = replace(once, protocol={**once.protocol, "temperature": 0})  # as JSON another number, and so another record
    assert once.identity != again.identity
    with pytest.raises(SteerbenchError, match="caa was measured twice with seed 0"):
        leaderboard([make("unsteered", 0), once, again])


def test_whole_numbers_and_fractions_are_one_protocol() -> None:
    for one, other in ((1, 1.0), (0, 0.0)):
        both_ways = [asdict(Decoding(temperature=t, top_p=1 if t is one else 1.0)) for t in (one, other)]
        assert fingerprint(both_ways[0]) == fingerprint(both_ways[1])
    matched = [Protocol(match_kl=kl).match_kl for kl in (1, 1.0)]
    assert fingerprint(matched[0]) == fingerprint(matched[1])


def test_tasks_are_ranked_apart() -> None:
    table = leaderboard([*both("unsteered"), *both("caa"), *both("caa", task="hh_rlhf")])
    assert list(zip(table["task"], table["rank"], strict=True)) == [("hh_rlhf", 1), ("shp", 1), ("shp", 2)]


FIELDS: dict[str, Any] = {
    "task_version": 2,
    "data": "sha256:other",
    "split": "validation",
    "n_examples": 3,
    "examples": "other",
    "n_train": 9,
    "train_examples": "other",
    "max_prompt_tokens": 7,
    "model": "sha256:b",
    "dtype": "bfloat16",
    "prompt_format": "plain-v2",
    "max_new_tokens": 1,
    "temperature": 0.5,
    "top_k": 5,
    "top_p": 0.5,
    "reward_model": "sha256:c",
    "held_out_reward": "sha256:d",
    "encoder": "sha256:e",
    "tuning_budget": 4,
    "seeds": [0, 1, 2],
    "steerbench": "9.9",
}


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_the_protocol_must_be_equal(field: str) -> None:
    records = [*both("unsteered"), *both("caa", **{field: FIELDS[field]})]
    with pytest.raises(SteerbenchError, match=rf"not measured alike.*{field}: .* != "):
        leaderboard(records)


def test_device_batch_size_and_labels_do_not_count() -> None:
    caa = [
        replace(r, environment={"device": "gpu", "batch_size": 7}, labels={**r.labels, "model": "elsewhere"})
        for r in both("caa")
    ]
    table = leaderboard([*both("unsteered"), *caa])
    assert list(table["rank"]) == [1, 2]


def test_two_sources_of_one_method_are_two_rows_with_different_names() -> None:
    changed = [replace(r, parts=[{**r.parts[0], "source": "changed"}]) for r in both("caa")]
    table = leaderboard([*both("caa"), *changed])
    assert table["method"].nunique() == 2
    assert all(name.startswith("caa #") for name in table["method"])


def test_missing_scores_stay_empty() -> None:
    table = leaderboard(both("caa"))
    assert table["held_out_reward"].isna().all()


def test_nothing_to_rank_is_told() -> None:
    with pytest.raises(SteerbenchError, match="no records"):
        leaderboard([])


def test_csv_has_numbers_in_full_and_a_fixed_order(tmp_path: Path) -> None:
    table = leaderboard([*both("unsteered"), *both("caa")])
    table.loc[0, "diversity"] = 1 / 3
    write_csv(table, tmp_path / "new" / "table.csv")
    text = (tmp_path / "new" / "table.csv").read_bytes()
    assert b"\r" not in text
    again = pd.read_csv(tmp_path / "new" / "table.csv")
    assert list(again.columns[:4]) == ["task", "rank", "method", "reward"]
    assert again.loc[0, "diversity"] == 1 / 3
    shuffled = leaderboard([*both("caa"), *both("unsteered")])
    write_csv(shuffled, tmp_path / "b.csv")
    write_csv(leaderboard([*both("unsteered"), *both("caa")]), tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_a_difference_of_hashes_is_told_with_names() -> None:
    caa = [
        replace(r, labels={**r.labels, "model": "other"}, protocol={**r.protocol, "model": "sha256:b"})
        for r in both("caa")
    ]
    with pytest.raises(SteerbenchError, match=r"model: sha256:a != sha256:b \(m and other\)"):
        leaderboard([*both("unsteered"), *caa])


def test_a_protocol_that_is_quite_another_is_told_in_short() -> None:
    other = [replace(r, protocol={**r.protocol, **FIELDS}) for r in both("caa")]
    with pytest.raises(SteerbenchError, match=r"cannot be ranked together: (\w+: [^;]*; ){5}and \d+ more \(") as told:
        leaderboard([*both("unsteered"), *other])
    assert len(str(told.value)) < 600


# Gains over the unsteered model


N_PROMPTS = 60


def scored(method: str, seed: int = 0, scores: tuple[str, ...] = ("reward",), scale: float = 1.0, n: int = 2) -> Record:
    """Return a record whose prompts stand in groups of `n`, with scores that depend on method and seed."""
    generator = np.random.default_rng([len(method), seed])
    values = {name: scale * generator.normal(len(method) - 8, 1, N_PROMPTS) for name in scores}
    ids = [f"p{i}" for i in range(N_PROMPTS)]
    examples = pd.DataFrame({"id": ids, "group": [f"g{i // n}" for i in range(N_PROMPTS)], **values})
    record: Record = make(method, seed)
    return replace(record, examples=examples, metrics={name: float(v.mean()) for name, v in values.items()})


def gains(table: pd.DataFrame, method: str, name: str = "reward") -> list[Any]:
    row = table.set_index("method").loc[method]
    return [None if pd.isna(row[f"{name}_gain{end}"]) else row[f"{name}_gain{end}"] for end in ("", "_low", "_high")]


def shown(records: list[Record], width: int = 80, terminal: bool = False) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    tables.show(console, leaderboard(records), records)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


SCORES = ("reward", "held_out_reward", "gold")


def test_gains_are_paired_with_the_unsteered_record_of_the_seed() -> None:
    unsteered, steered = ([scored(method, seed, SCORES) for seed in (0, 1)] for method in ("unsteered", "caa"))
    table = leaderboard([*unsteered, *steered])
    for name in SCORES:
        wanted = paired_interval([r.examples for r in steered], [r.examples for r in unsteered], name)
        assert gains(table, "caa", name) == list(wanted)
        caa, own = table.set_index("method").loc[["caa", "unsteered"], name]
        assert wanted.mean == pytest.approx(caa - own)
        assert gains(table, "unsteered", name) == [0.0, 0.0, 0.0]


def test_the_rounding_of_a_reward_model_is_no_gain() -> None:
    """The same responses, whose scores another batch has rounded otherwise, upwards all."""
    base = [scored("unsteered", seed) for seed in (0, 1)]
    same = [replace(r, method="same", parts=make("same").parts, examples=shifted(r.examples, 1e-7)) for r in base]
    table = leaderboard([*base, *same]).set_index("method")
    assert list(table["rank"]) == [1, 1]
    assert gains(table.reset_index(), "same") == [0, 0, 0]
    assert table.loc["same", "reward_gain_p"] == 1


def test_rounding_does_not_tell_two_steered_methods_apart() -> None:
    base = [scored("unsteered", seed) for seed in (0, 1)]
    pair = [
        replace(r, method=name, parts=make(name).parts, examples=shifted(r.examples, by))
        for r in base
        for name, by in (("one", 1.0), ("two", 1.0 + 1e-7))
    ]
    assert list(leaderboard([*base, *pair]).set_index("method").loc[["one", "two"], "rank"]) == [1, 1]


def shifted(examples: pd.DataFrame, by: float) -> pd.DataFrame:
    return examples.assign(reward=examples["reward"] + by)


def test_gains_of_a_part_of_the_seeds_are_those_of_that_part() -> None:
    unsteered, steered = [scored("unsteered", seed) for seed in (0, 1)], scored("caa", 1)
    wanted = paired_interval([steered.examples], [unsteered[1].examples], "reward")
    assert gains(leaderboard([*unsteered, steered]), "caa") == list(wanted)


def test_gains_are_empty_where_there_is_nothing_to_compare() -> None:
    nothing = [None, None, None]
    both_seeds = [scored("caa", 0), scored("caa", 1)]
    assert gains(leaderboard(both_seeds), "caa") == nothing
    assert gains(leaderboard([scored("unsteered", 0), *both_seeds]), "caa") == nothing
    table = leaderboard([scored("unsteered", 0), scored("caa", 0, SCORES)])
    assert gains(table, "caa", "gold") == gains(table, "unsteered", "gold") == nothing
    assert None not in gains(table, "caa")
    lost = scored("caa", 0)
    lost.examples.loc[3, "reward"] = float("nan")
    assert gains(leaderboard([scored("unsteered", 0), lost]), "caa") == nothing
    without = [replace(r, examples=r.examples.drop(columns="group")) for r in (*both("unsteered"), *both("caa"))]
    assert gains(leaderboard(without), "caa") == nothing
    assert leaderboard(without)["rank"].isna().all()


def test_one_group_of_prompts_has_a_gain_without_an_interval() -> None:
    table = leaderboard([scored("unsteered", n=N_PROMPTS), scored("caa", n=N_PROMPTS)])
    mean, *ends = gains(table, "caa")
    assert isinstance(mean, float)
    assert ends == [None, None]
    assert gains(table, "unsteered") == [0.0, 0.0, 0.0]


def test_the_newest_of_two_unsteered_records_counts() -> None:
    new = replace(scored("unsteered"), parts=[{"source": "new"}], created="2026-02-01T00:00:00+00:00")
    new = replace(new, examples=new.examples.assign(reward=0.0))
    wanted = scored("caa").examples["reward"].mean()
    for records in ([new, scored("unsteered"), scored("caa")], [scored("caa"), scored("unsteered"), new]):
        assert gains(leaderboard(records), "caa")[0] == pytest.approx(wanted)


def test_other_prompts_under_one_protocol_are_refused() -> None:
    damaged = scored("caa")
    damaged = replace(damaged, examples=damaged.examples[1:])
    with pytest.raises(SteerbenchError, match="different test prompts: 'p0'"):
        leaderboard([scored("unsteered"), damaged])


def test_csv_has_gains_after_the_metrics_whatever_the_order_of_the_records(tmp_path: Path) -> None:
    records = [scored(method, seed, SCORES) for method in ("unsteered", "caa", "iti_2") for seed in range(7)]
    table = leaderboard(records)
    write_csv(table, tmp_path / "a.csv")
    write_csv(leaderboard(records[::-1]), tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    again = pd.read_csv(tmp_path / "a.csv")
    start = list(again.columns).index("reward_gain")
    ends = ("", "_low", "_high", "_p", "_p_holm", "_fit_sd", "_sampling_sd")
    names = [f"{name}_gain{end}" for name in SCORES for end in ends]
    assert list(again.columns[start - 1 : start + 22]) == ["matching", *names, "length_controlled_gain"]
    pd.testing.assert_frame_equal(again[names], table[names], check_exact=True)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_a_terminal_of_80_columns_shows_whole_names_and_whole_gains(scale: float) -> None:
    names = ["unsteered", "caa", "random_direction:strength=2"]
    lines = shown([scored(name, 0, SCORES, scale) for name in names], terminal=True)
    start = lines.index("over unsteered, 95 % interval")
    block = lines[start : next(i for i, line in enumerate(lines) if line.startswith("m on"))]
    assert max(map(len, block)) <= 80
    heads = block[1].split()
    *gained, told = (line for line in block[3:] if line)
    assert heads[:2] == ["method", "reward"]
    assert sorted([*heads[1:], *told.partition(": ")[2].partition(".")[0].split(", ")]) == ["gold", "held", "reward"]
    assert sorted(line.split()[0] for line in gained) == sorted(names[1:])
    for line in gained:
        assert line.count("(") == line.count(")") == line.count(" to ") == len(heads) - 1


def test_a_wide_terminal_shows_gains_with_three_decimals() -> None:
    records = [scored("unsteered", 0, SCORES), scored("caa", 0, SCORES)]
    table = leaderboard(records)
    cells = ["{:+.3f} ({:.3f} to {:.3f})".format(*gains(table, "caa", name)) for name in SCORES]
    (line,) = (line for line in shown(records, 120) if line.startswith("caa") and "(" in line)
    assert [cell.strip() for cell in line.split("  ") if cell.strip()] == ["caa", *cells]
    narrow = shown([scored("unsteered"), scored("caa")], 20)
    assert any(line.split("  ")[-1].strip() == cells[0] for line in narrow if "(" in line)


def test_what_the_intervals_hold_is_told_where_there_are_some() -> None:
    text = "\n".join(shown([scored("unsteered"), scored("caa")]))
    assert "Intervals: over the prompts" in text
    for records in ([scored("unsteered")], [scored("caa")], both("caa")):
        text = "\n".join(shown(records))
        assert "over unsteered" not in text
        assert "ntervals" not in text


def test_gaps_in_the_table_of_gains_are_told() -> None:
    text = "\n".join(shown([scored("unsteered"), scored("caa"), scored("iti_2", 1)]))
    assert "iti_2" in text.split("over unsteered")[1]
    assert "(no interval)" in "\n".join(shown([scored("unsteered", n=N_PROMPTS), scored("caa", n=N_PROMPTS)]))


def test_a_gain_that_rounds_to_zero_has_no_minus() -> None:
    steered = replace(scored("caa"), examples=scored("unsteered").examples)
    steered.examples["reward"] -= 1e-5
    (line,) = (line for line in shown([scored("unsteered"), steered]) if " (" in line and " to " in line)
    assert line.split("  ")[-1].strip() == "+0.000 (0.000 to 0.000)"


# Seeds that give several steerings


def steered(seeds: tuple[int, ...], digests: str, **changed: Any) -> list[Record]:
    """Return records of the unsteered model, and of one method whose steerings have these digests."""
    base = [scored("unsteered", seed) for seed in seeds]
    return [*base, *(replace(scored("caa", s), steering=d, **changed) for s, d in zip(seeds, digests, strict=True))]


def row_of(records: list[Record]) -> Any:
    return leaderboard(records).set_index("method").loc["caa"]


def test_seeds_widen_an_interval_where_they_gave_several_steerings() -> None:
    same, several = (row_of(steered((0, 1), digests)) for digests in ("aa", "ab"))
    assert (same["fits"], several["fits"]) == (1, 2)
    assert same["reward_gain"] == pytest.approx(several["reward_gain"])
    widths = [row["reward_gain_high"] - row["reward_gain_low"] for row in (same, several)]
    assert widths[1] != pytest.approx(widths[0], rel=0.01)


def test_nothing_is_claimed_of_one_seed_where_another_may_steer_otherwise() -> None:
    known, unknown = (row_of(steered((0,), "a", report=report)) for report in ({"seeded": False}, {}))
    assert known["reward_gain_p_holm"] < 0.05
    assert pd.isna(unknown["fits"])
    assert pd.isna(unknown["reward_gain_p"])
    assert pd.isna(unknown["reward_gain_p_holm"])
    assert unknown["reward_gain_low"] == known["reward_gain_low"]


def test_the_gain_on_validation_is_that_of_the_chosen_trial() -> None:
    trials = [{"hyperparameters": {"strength": x}, "reward": 2.0 + x} for x in (1, 3)]
    tuning = {"trials": trials, "chosen": {"strength": 3}, "unsteered": {"reward": 1.5}}
    assert row_of(steered((0,), "a", tuning=tuning))["validation_gain"] == 3.5
    assert pd.isna(row_of(steered((0,), "a"))["validation_gain"])
