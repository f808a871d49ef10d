"""The judge: both orders, what a reply means, which pairs there are, and the intervals of win rates."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_judge import (
    Answer,
    FakeJudge,
    judged,
    longer,
    moody,
    noted_pauses,
    only,
    questions,
    record,
    said,
    serving,
    texts,
    two,
)
from scipy.stats import binomtest

from steerbench import Record, SteerbenchError
from steerbench.judge import ASKED, Replies, ask, verdict
from steerbench.judge.client import connect
from steerbench.judge.judgements import pairs, win_rates

server = pytest.fixture(serving)
pauses = pytest.fixture(autouse=True)(noted_pauses)


# What a pair scores


def test_a_judge_that_prefers_the_longer_response(server: FakeJudge, tmp_path: Path) -> None:
    row = only(judged(server, tmp_path, two()))
    wins = sum(len(c) > len(u) for u, c in zip(texts("u", 6), texts("c", 6), strict=True))
    assert 0 < wins < 6
    assert (row.method, row.task, row.win_rate, row.n) == ("caa", "shp", wins / 6, 6)
    assert (row.consistency, row["first"], row.failed, row.identical) == (1, 0.5, 0, 0)


def test_every_pair_is_shown_once_in_each_order(server: FakeJudge, tmp_path: Path) -> None:
    judged(server, tmp_path, two())
    u, c = texts("u", 6), texts("c", 6)
    wanted = [(f"Q p{i:03d}?", *order) for i in range(6) for order in ((c[i], u[i]), (u[i], c[i]))]
    assert Counter(server.calls) == Counter(wanted)


def test_the_request_is_that_of_chat_completions(server: FakeJudge, tmp_path: Path) -> None:
    judged(server, tmp_path, two(1))
    body = server.bodies[0]
    assert (body["path"], body["model"], body["temperature"]) == ("/v1/chat/completions", "judge", 0)
    assert [message["role"] for message in body["messages"]] == ["user"]


@pytest.mark.parametrize(("token", "first"), [("[[A]]", 1.0), ("[[B]]", 0.0)])
def test_a_judge_with_a_favourite_place_tells_nothing(
    server: FakeJudge, tmp_path: Path, token: str, first: float
) -> None:
    server.judge = lambda *_: token
    row = only(judged(server, tmp_path, two()))
    assert (row.win_rate, row.consistency, row["first"]) == (0.5, 0, first)


def test_ties_are_halves(server: FakeJudge, tmp_path: Path) -> None:
    server.judge = lambda *_: "[[C]]"
    row = only(judged(server, tmp_path, two()))
    assert (row.win_rate, row.consistency) == (0.5, 1)
    assert pd.isna(row["first"])


def test_a_judge_of_moods_agrees_with_counting_by_hand(server: FakeJudge, tmp_path: Path) -> None:
    server.judge = moody
    row = only(judged(server, tmp_path, two(40)))
    score, agree, places = 0.0, 0, Counter[str]()
    for i, (u, c) in enumerate(zip(texts("u", 40), texts("c", 40), strict=True)):
        ahead, behind = moody(f"Q p{i:03d}?", c, u)[2], moody(f"Q p{i:03d}?", u, c)[2]
        gained = {"A": 1, "B": 0, "C": 0.5}[ahead], {"A": 0, "B": 1, "C": 0.5}[behind]
        score += sum(gained) / 2
        agree += gained[0] == gained[1]
        places.update([ahead, behind])
    assert row.win_rate == pytest.approx(score / 40, abs=1e-12)
    assert row.consistency == agree / 40
    assert row["first"] == places["A"] / (places["A"] + places["B"])


def test_equal_responses_are_ties_that_nobody_sees(server: FakeJudge, tmp_path: Path) -> None:
    row = only(judged(server, tmp_path, [record("unsteered", ["a", "b"]), record("caa", ["a", "bb"])]))
    assert len(server.calls) == 2
    assert (row.win_rate, row.n, row.identical, row.consistency) == (0.75, 2, 1, 1)


def test_equal_responses_alone_need_no_judge(tmp_path: Path) -> None:
    found = pairs([record("unsteered", ["a"]), record("caa", ["a"])])
    assert not ask(questions(found), connect("http://127.0.0.1:1/v1", "judge"), Replies(tmp_path))
    assert only(win_rates(found, "judge", Replies(tmp_path))).win_rate == 0.5
    assert not (tmp_path / "replies.jsonl").exists()


# What a reply means


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ("A is right.\n[[A]]", "A"),
        ("[[B]]", "B"),
        ("Neither.\n\n**[[C]]**\n", "C"),
        ("Verdict: [[A]].", "A"),
        ("[[A]] it is, so:\n[[A]]", "A"),
        ("", None),
        ("A", None),
        ("[A]", None),
        ("[[D]]", None),
        ("[[a]]", None),
        ("[[A]] or [[B]]", None),
        ("It is [[A]], because B is cut o", None),
        ('{"verdict": "A"}', None),
    ],
)
def test_a_verdict_is_one_token_at_the_end(reply: str, wanted: str | None) -> None:
    assert verdict(reply) == wanted


MALFORMED = {
    "html": "<html><body>Welcome</body></html>",
    "nothing": "",
    "cut off": said("[[A]]")[:-9],
    "no choices": "{}",
    "empty choices": '{"choices": []}',
    "a list": "[1]",
    "a number": "3",
    "an error": '{"error": {"message": "model is loading"}}',
    "no message": '{"choices": [{"text": "[[A]]"}]}',
    "null": said(None),
    "text of another type": said(5),
    "text in parts": said([{"type": "text", "text": "[[A]]"}]),
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_an_answer_without_text_leaves_its_pair_out_and_is_asked_for_again(
    server: FakeJudge, tmp_path: Path, body: str
) -> None:
    server.judge = lambda prompt, a, b: (200, {}, body) if prompt == "Q p001?" else longer(prompt, a, b)
    row = only(judged(server, tmp_path, [record("unsteered", ["a"] * 4), record("caa", ["aa"] * 4)]))
    assert (row.win_rate, row.n, row.failed, row.consistency) == (1, 3, 1, 1)
    assert len(server.calls) == 2 * 3 + 2 * ASKED
    server.judge = longer  # such answers are the server's fault, and not the judge's opinion
    row = only(judged(server, tmp_path, [record("unsteered", ["a"] * 4), record("caa", ["aa"] * 4)]))
    assert (row.n, row.failed) == (4, 0)
    assert len(server.calls) == 2 * 3 + 2 * ASKED + 2


def test_a_reply_without_a_verdict_is_asked_for_again_but_not_for_ever(server: FakeJudge, tmp_path: Path) -> None:
    server.judge = lambda prompt, a, b: "Both are nice." if prompt == "Q p001?" else longer(prompt, a, b)
    first = judged(server, tmp_path, two(4))
    assert (only(first).n, only(first).failed) == (3, 1)
    assert Counter(server.calls).most_common(2)[1][1] == ASKED
    n_calls = len(server.calls)
    pd.testing.assert_frame_equal(judged(server, tmp_path, two(4)), first)
    assert len(server.calls) == n_calls


def test_a_pair_with_a_verdict_in_one_order_alone_is_left_out(server: FakeJudge, tmp_path: Path) -> None:
    server.judge = lambda _, a, b: "[[A]]" if len(a) > len(b) or a[0] != "x" else "?"
    row = only(judged(server, tmp_path, [record("unsteered", ["x", "u"]), record("caa", ["cc", "cc"])]))
    assert (row.n, row.failed, row.win_rate, row["first"]) == (1, 1, 0.5, 1)


def test_what_is_malformed_once_may_be_whole_the_next_time(server: FakeJudge, tmp_path: Path) -> None:
    seen: Counter[tuple[str, str, str]] = Counter()

    def judge(*question: str) -> Answer:
        seen[question] += 1  # type: ignore[index]
        return ["hm", (200, {}, "<p>"), longer(*question)][seen[question] - 1]  # type: ignore[index, return-value]

    server.judge = judge
    assert only(judged(server, tmp_path, two())).failed == 0
    assert set(seen.values()) == {3}


def test_a_judge_that_never_gives_a_verdict_is_given_up_early(server: FakeJudge, tmp_path: Path) -> None:
    server.judge = lambda *_: "I am a teapot."
    for _ in range(2):
        with pytest.raises(SteerbenchError, match=r"'judge' .* no verdict at all: its replies do not end with one"):
            judged(server, tmp_path, two(200), workers=2)
    assert len(server.calls) < 200
    small = tmp_path / "small"
    for _ in range(2):  # nor does a run without a call pass for a result
        with pytest.raises(SteerbenchError, match="no verdict at all"):
            judged(server, small, two(2))


# Which pairs there are


def drawn(records: list[Record], n: int, seed: int = 0) -> dict[str, list[str]]:
    """Return the ids drawn for each method."""
    found = pairs(records, n=n, seed=seed)
    return {method: [p.id for p in found if p.method == method] for method in sorted({p.method for p in found})}


def test_the_same_prompts_are_drawn_for_every_method_and_more_of_them_hold_fewer() -> None:
    records = [*two(50), record("iti", texts("i", 50))]
    ten, twenty, others = drawn(records, 10), drawn(records, 20), drawn(records, 10, seed=1)
    assert ten["caa"] == ten["iti"]
    assert len(set(ten["caa"])) == 10
    assert set(ten["caa"]) < set(twenty["caa"])
    assert ten != others
    assert ten == drawn(records[::-1], 10)
    assert ten["caa"] != sorted({*drawn(records, 50)["caa"]})[:10]


def test_every_prompt_is_drawn_about_equally_often() -> None:
    counts = Counter(id_ for seed in range(200) for id_ in drawn(two(10), 3, seed)["caa"])
    assert len(counts) == 10
    assert all(40 <= times <= 80 for times in counts.values())  # of 200, 60 in the mean


def test_responses_meet_their_own_seed_and_sample() -> None:
    records = [
        record(name, [f"{name} {seed} {i // 2} {i % 2}" for i in range(6)], seed=seed, samples=2)
        for name in ("unsteered", "caa")
        for seed in (0, 1)
    ]
    records[0] = replace(records[0], examples=records[0].examples.sort_values("sample", ascending=False))
    found = pairs(records, n=2)
    assert len(found) == 2 * 2 * 2
    assert all(p.response == p.other.replace("unsteered", "caa") for p in found)
    assert {int(p.id[1:]) for p in found} == {int(p.response.split()[2]) for p in found}


def test_seeds_and_samples_count_as_one_prompt(server: FakeJudge, tmp_path: Path) -> None:
    records = [
        record(name, [text * (1 + i) for i in range(4)], seed=seed, samples=2)
        for name, text, seed in [("unsteered", "xx", 0), ("unsteered", "xx", 1), ("caa", "y", 0), ("caa", "yyy", 1)]
    ]
    row = only(judged(server, tmp_path, records))
    assert (row.win_rate, row.n, row.pairs) == (0.5, 2, 8)


def test_methods_and_the_one_they_are_held_against_can_be_named(server: FakeJudge, tmp_path: Path) -> None:
    records = [*two(2), record("iti", texts("i", 2)), record("repe", texts("r", 2))]
    assert set(judged(server, tmp_path, records)["method"]) == {"caa", "iti", "repe"}
    assert {p.method for p in pairs(records, methods=["caa", "iti"])} == {"caa", "iti"}
    found = pairs(records, against="iti", methods=["caa"])
    assert [(p.response, p.other) for p in found] == list(zip(texts("c", 2), texts("i", 2), strict=True))


def test_two_sources_of_one_method_are_two_rows(server: FakeJudge, tmp_path: Path) -> None:
    newer = record("caa", texts("n", 3))
    newer.parts[0]["source"] = "changed"
    table = judged(server, tmp_path, [*two(3), newer])
    assert len(table) == 2
    assert all(name.startswith("caa #") for name in table["method"])


def test_each_task_is_judged_apart(server: FakeJudge, tmp_path: Path) -> None:
    other = [record("unsteered", texts("U", 3), task="hh"), record("caa", ["x" * 200] * 3, task="hh")]
    table = judged(server, tmp_path, [*two(3), *other])
    assert list(table["task"]) == ["hh", "shp"]
    assert table["win_rate"].iloc[0] == 1
    assert table["protocol"].nunique() == 2


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "unlike": (lambda: pairs([two()[0], record("caa", texts("c", 6), model="other")]), "not measured alike.*model"),
    "unknown": (lambda: pairs(two(), methods=["caq"]), "unknown method 'caq'.*'caa'"),
    "unknown against": (lambda: pairs(two(), against="unsterred"), "Did you mean 'unsteered'"),
    "no records": (lambda: pairs([]), "there are no records"),
    "without the unsteered model": (
        lambda: pairs(two()[1:]),
        "^these folders hold no record of 'unsteered'; measure it, or give --against METHOD.$",
    ),
    "alone": (lambda: pairs(two()[:1]), "no method to hold against 'unsteered'"),
    "without its seed": (lambda: pairs([*two(), record("caa", texts("c", 6), seed=1)]), "no 'unsteered' of its task"),
    "other prompts": (
        lambda: pairs([two()[0], record("caa", texts("c", 5), n_examples=6)]),
        "other test prompts",
    ),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_judged_is_told(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(SteerbenchError, match=message):
        call()


def test_records_without_texts_are_told() -> None:
    unsteered, caa = two()
    with pytest.raises(SteerbenchError, match="no response"):
        pairs([unsteered, replace(caa, examples=caa.examples.drop(columns="response"))])


# Intervals


def test_prompts_by_themselves_have_the_interval_of_wilson(server: FakeJudge, tmp_path: Path) -> None:
    row = only(judged(server, tmp_path, [record("unsteered", ["xx"] * 30), record("caa", ["x"] * 9 + ["xxx"] * 21)]))
    wanted = binomtest(21, 30).proportion_ci(method="wilson")
    assert (row.low, row.high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    assert (row.win_rate, row.interval) == (0.7, "wilson")


def test_clusters_widen_the_interval_as_a_loop_over_resamples_does(server: FakeJudge, tmp_path: Path) -> None:
    """Prompts of one cluster have one outcome, so there is no more to know than of the clusters."""
    groups = [f"g{i // 4}" for i in range(80)]
    wins = np.repeat(np.random.default_rng(0).random(20) < 0.6, 4)
    caa = record("caa", ["xxx" if win else "x" for win in wins], groups=groups)
    row = only(judged(server, tmp_path, [record("unsteered", ["xx"] * 80, groups=groups), caa]))
    generator = np.random.default_rng(1)
    means = [wins.reshape(20, 4)[generator.integers(0, 20, 20)].mean() for _ in range(5000)]
    assert row.interval == "clusters"
    assert [row.low, row.high] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.051)
    assert row.high - row.low > 1.5 * (binomtest(48, 80).proportion_ci().high - binomtest(48, 80).proportion_ci().low)


def test_clusters_that_all_agree_count_as_so_many_prompts(server: FakeJudge, tmp_path: Path) -> None:
    groups = [f"g{i // 2}" for i in range(10)]
    records = [record("unsteered", ["x"] * 10, groups=groups), record("caa", ["xx"] * 10, groups=groups)]
    row = only(judged(server, tmp_path, records))
    assert (row.win_rate, row.n) == (1, 10)
    assert row.low == pytest.approx(binomtest(5, 5).proportion_ci(method="wilson").low, abs=1e-12)


def test_one_cluster_has_no_interval(server: FakeJudge, tmp_path: Path) -> None:
    records = [record("unsteered", ["x"] * 3, groups=["g"] * 3), record("caa", ["xx"] * 3, groups=["g"] * 3)]
    row = only(judged(server, tmp_path, records))
    assert row.win_rate == 1
    assert pd.isna(row.low)
    assert pd.isna(row.high)
