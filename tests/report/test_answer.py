"""The page opens with what works, at what price and how sure that is; and says no more than the records do."""

from pathlib import Path
from typing import Any

import pytest
from report_pages import Page, html, make

from steerbench import Record
from steerbench.report.answer import Judged, Sentence, counting_score, judged, sentences
from steerbench.report.dot_plot import DotPlot, dot_plot
from steerbench.report.groups import Group, grouped

SEEDS = [0, 1]


def group(*methods: tuple[str, float], seeds: list[int] | None = None, **values: Any) -> Group:
    """Return the group of the unsteered model and methods with what each lifts; gold goes the other way."""
    (found,) = grouped(records(*methods, seeds=seeds, **values))
    return found


def records(*methods: tuple[str, float], seeds: list[int] | None = None, **values: Any) -> list[Record]:
    seeds = seeds or SEEDS
    return [
        make(name, seed, lift, seeds=seeds, **values) for name, lift in (("unsteered", 0.0), *methods) for seed in seeds
    ]


def without(found: list[Record], *columns: str) -> Group:
    """Return the group of records that lack scores."""
    for record in found:
        for name in columns:
            del record.examples[name], record.metrics[name]
    (only,) = grouped(found)
    return only


def told(found: list[Sentence]) -> list[str]:
    return [" ".join([one.lead, *(f"{method} {text};" for method, text in one.methods)]) for one in found]


def plot(found: Group) -> DotPlot:
    drawn = dot_plot(found)
    assert drawn is not None
    return drawn


# the sentences


def test_sure_gains_come_first_with_the_highest_and_its_price() -> None:
    found = told(sentences(group(("caa", -1.0), ("iti", -0.5))))
    assert found[0] == "Surely better than the unsteered model: caa +0.98; iti +0.50;"
    assert found[1].startswith("Highest gold gain of them, and the fastest: caa +0.98 (")
    assert found[1].endswith("0.90 × the time, KL 0.100 per token;")
    assert len(found) == 2


def test_what_is_far_from_the_unsteered_model_is_said() -> None:
    near, far = group(("caa", -1.0)), group(("caa", -4.0))
    assert not any("nat per token" in line for line in told(sentences(near)))
    assert told(sentences(far))[-1].endswith("from the unsteered model, mostly other tokens: caa 1.60;")


def test_one_sure_gain_is_told_with_its_price_alone() -> None:
    found = told(sentences(group(("caa", -1.0))))
    assert found[1].startswith("Its gold gain and price: caa +0.98 (")


def test_the_fastest_is_named_where_it_is_not_the_highest() -> None:
    found = records(("caa", -1.0), ("iti", -0.5))
    for record in found:
        record.latency["decode_ratio"] = {"caa": 4.0, "iti": 1.25}.get(record.method, 1.0)
    (only,) = grouped(found)
    lines = told(sentences(only))
    assert lines[1].startswith("Highest gold gain of them: caa")
    assert "4.00 × the time" in lines[1]
    assert lines[2].startswith("Fastest of them: iti")


def test_what_may_be_as_good_as_the_highest_is_named_with_its_gain_and_time() -> None:
    found = told(sentences(group(("caa", -1.0), ("repe", -1.01))))
    (near,) = (line for line in found if line.startswith("The intervals of these overlap with its own:"))
    assert near.endswith("× the time;")
    assert "KL" not in near


def test_a_gain_on_the_guide_that_gold_does_not_bear_out_is_damage() -> None:
    (first, damage) = told(sentences(group(("caa", 1.0))))
    assert first == "No method is surely better than the unsteered model."
    assert damage.startswith(
        "Gains that do not hold up, as the guiding reward surely rose and gold surely fell: caa guide"
    )
    assert "gold -1.0" in damage


def test_a_gain_on_the_guide_with_gold_unsure_is_told_apart() -> None:
    found = records(("caa", 1.0))
    base = {record.seed: record.examples["gold"] for record in found if record.method == "unsteered"}
    for record in found:
        if record.method == "caa":
            record.examples["gold"] = base[record.seed] + [1, -1] * 4
    (only,) = grouped(found)
    assert any(line.startswith("Gains that may not hold up") and "caa" in line for line in told(sentences(only)))


def test_a_fall_of_both_is_surely_worse() -> None:
    found = records(("caa", -1.0))
    for record in found:
        record.examples["gold"] = record.examples["reward"]
    (only,) = grouped(found)
    assert [line.split(" caa")[0] for line in told(sentences(only))][-1] == "Surely worse than the unsteered model:"


def test_nothing_is_sure_of_one_seed_where_another_may_steer_otherwise() -> None:
    (found,) = grouped(drawn(records(("caa", -1.0), seeds=[0])))
    first, best = told(sentences(found))
    assert first == "No method is surely better than the unsteered model: each was measured with one seed alone."
    assert best.startswith("Highest gold gain measured, and not sure: caa +0.98 (")
    assert {dot.judged for dot in plot(found).dots} == {Judged.ONE_SEED}


def test_one_seed_is_enough_where_no_other_would_steer_otherwise() -> None:
    """As for a prompt, or the best of some replies."""
    found = group(("caa", -1.0), seeds=[0])
    assert told(sentences(found))[0] == "Surely better than the unsteered model: caa +0.98;"
    assert {dot.judged for dot in plot(found).dots} == {Judged.BETTER}


def test_one_method_of_one_seed_is_not_sure_among_others_that_are() -> None:
    some = [r for r in records(("caa", -1.0), ("iti", -1.0)) if (r.method, r.seed) != ("iti", 1)]
    (found,) = grouped(drawn(some))
    lines = told(sentences(found))
    assert "iti" not in lines[0]
    assert lines[-1] == "Measured with one seed alone, so never sure: 1 method."


def drawn(found: list[Record]) -> list[Record]:
    """Let the fits of steered records depend on their seeds."""
    for record in found:
        record.report["seeded"] = record.method != "unsteered"
    return found


def test_where_nothing_is_sure_no_gain_is_promised() -> None:
    found = records(("caa", 0.0), ("iti", 0.0))
    lines = told(sentences(grouped(found)[0]))
    assert lines[0].startswith("No method is surely better than the unsteered model")
    assert not any(line.startswith(("Surely", "Gains")) for line in lines)


def test_an_interval_off_zero_is_not_sure_without_the_corrected_test() -> None:
    (row,) = [row for row in group(("caa", -1.0)).rows if not row.is_unsteered]
    assert judged(row, "gold_gain") is Judged.BETTER
    row.values["gold_gain_p_holm"] = 0.06
    assert judged(row, "gold_gain") is Judged.OPEN
    row.values["gold_gain_p_holm"] = None
    assert judged(row, "gold_gain") is Judged.OPEN


def test_without_gold_the_held_out_reward_counts_and_then_the_guide() -> None:
    found = without(records(("caa", 1.0)), "gold")
    assert counting_score(found) == "held_out_reward_gain"
    assert told(sentences(found))[0].startswith("Surely better than the unsteered model: caa +0.48")
    assert plot(found).guide
    bare = without(records(("caa", 1.0)), "gold", "held_out_reward")
    assert counting_score(bare) == "reward_gain"
    assert not plot(bare).guide
    assert not any("hold up" in line for line in told(sentences(bare)))


def test_without_the_unsteered_model_there_is_no_answer(tmp_path: Path) -> None:
    (alone,) = grouped([make("caa")])
    assert (counting_score(alone), sentences(alone), dot_plot(alone)) == (None, [], None)
    assert "No method here has a gain over the unsteered model" in Page(html([make("caa")], tmp_path)).text


def test_a_sentence_names_six_methods_and_counts_the_rest() -> None:
    found = records(*((f"m{i}", -1.0 - i / 10) for i in range(5)))
    (only,) = grouped(found)
    (first, *_) = sentences(only)
    assert [len(first.methods), first.more] == [5, 0]
    # with eight clusters and more methods the correction leaves nothing sure, so the gains here are unsure ones
    many = sentences(group(*((f"m{i}", 1.0) for i in range(8))))
    assert many[0].lead.startswith("No method is surely better")


# the plot


def test_the_plot_is_ranked_by_what_counts_and_keeps_its_marks_inside() -> None:
    drawn = plot(group(("caa", -1.0), ("iti", 0.5), ("repe", -0.25)))
    assert [dot.row.method for dot in drawn.dots] == ["caa", "repe", "iti"]
    assert [dot.judged for dot in drawn.dots] == [Judged.BETTER, Judged.BETTER, Judged.WORSE]
    for dot in drawn.dots:
        places = (dot.low, dot.at, dot.high, dot.guide or 0.0, drawn.zero, *(tick.at for tick in drawn.ticks))
        assert all(0.0 <= place <= 100.0 for place in places)
        assert dot.low <= dot.at <= dot.high
    assert [column.name for column in drawn.prices] == ["kl", "worse", "decode_ratio"]
    assert drawn.kinds == [Judged.BETTER, Judged.WORSE]


def test_an_interval_far_beyond_the_dots_is_cut_and_marked() -> None:
    found = group(("caa", -1.0), ("iti", -0.5))
    wide = next(row for row in found.rows if row.method == "iti")
    wide.values.update({"gold_gain_low": -100.0, "gold_gain_high": 100.0})
    drawn = plot(found)
    dot = next(dot for dot in drawn.dots if dot.row is wide)
    assert (dot.low, dot.high, dot.cut_low, dot.cut_high) == (0.0, 100.0, True, True)
    assert not any(other.cut_low or other.cut_high for other in drawn.dots if other is not dot)


@pytest.mark.parametrize("kind", ["better", "worse", "one"])
def test_every_mark_has_a_shape_and_a_word(kind: str, tmp_path: Path) -> None:
    several = [
        make(m, s, lift, seeds=[0, 1]) for m, lift in (("unsteered", 0), ("caa", -1.0), ("iti", 1.0)) for s in (0, 1)
    ]
    page = Page(html([*several, make("repe", 0, seeds=[0, 1])], tmp_path))
    ids = {attrs.get("id") for _, attrs in page.tags}
    assert f"mark-{kind}" in ids
    assert {"one": "one seed"}.get(kind, kind) in page.text


def test_the_answer_stands_before_all_else(tmp_path: Path) -> None:
    page = Page(html(records(("caa", -1.0)), tmp_path))
    sections = [attrs.get("id") for tag, attrs in page.tags if tag == "section"]
    assert sections[0] == "answer"
    assert sections[2:] == ["generations", "protocol", "reported", "machines"]
    assert page.text.index("Surely better than the unsteered model") < page.text.index("Ranking by the guiding reward")
