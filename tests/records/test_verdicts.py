"""What records decide of a claim: the rule by intervals that are known, and claims that cannot be read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_records import make

from steerbench import Record, SteerbenchError
from steerbench.plugins.spec import build, parse
from steerbench.records.verdicts import Claim, Says, markdown, read_claims, verdicts


def record(method: str, seed: int, mean: float, sd: float = 0.1) -> Record:
    """A record whose rewards have a mean, and vary otherwise than those of any other record."""
    made, drawn = make(method, seed), np.random.default_rng([*method.encode(), seed]).normal(size=20)
    rewards = mean + sd * (drawn - drawn.mean())
    return replace(made, metrics={"reward": float(rewards.mean())}, examples=made.examples.assign(reward=rewards))


def claim(says: Says = "higher", margin: float = 0.2, first: str = "caa", second: str = "unsteered") -> Claim:
    return Claim(claim="c", source="s", study="made", first=first, second=second, says=says, margin=margin)


@pytest.mark.parametrize(
    ("difference", "sd", "higher", "lower", "equal"),
    [
        (1.0, 0.1, "holds", "does not hold", "does not hold"),
        (-1.0, 0.1, "does not hold", "holds", "does not hold"),
        (0.0, 0.1, "does not hold", "does not hold", "holds"),
        (0.1, 3.0, "cannot tell", "cannot tell", "cannot tell"),
        (0.15, 0.02, "holds", "does not hold", "holds"),  # surely above zero, and surely less than what matters
    ],
)
def test_intervals_decide(difference: float, sd: float, higher: str, lower: str, equal: str) -> None:
    means = {"caa": difference, "unsteered": 0.0}
    records = [record(name, seed, mean, sd) for seed in (0, 1) for name, mean in means.items()]
    claims = [claim("higher"), claim("lower"), claim("equal")]
    found = verdicts(claims, {"made": records})
    assert [one.verdict for one in found] == [higher, lower, equal]
    assert found[0].n_examples == 20
    assert found[0].n_seeds == 2
    assert found[0].smallest == pytest.approx(2.8 * sd * np.sqrt(2 / 40), rel=0.5)


def test_what_one_random_fit_shows_decides_nothing() -> None:
    records = [replace(record(name, 0, mean), report={}) for name, mean in (("caa", 1.0), ("unsteered", 0.0))]
    assert verdicts([claim()], {"made": records})[0].verdict == "cannot tell"


def test_many_claims_are_corrected_for() -> None:
    """What looks sure by itself does not beside thirty differences of nothing."""
    nothing = [f"m{i}" for i in range(30)]
    means = {"caa": 0.05, "unsteered": 0.0} | dict.fromkeys(nothing, 0.0)
    records = [record(name, seed, mean) for seed in (0, 1) for name, mean in means.items()]
    claims = [claim(first=name, margin=0.0) for name in ("caa", *nothing)]
    assert verdicts(claims[:1], {"made": records})[0].verdict == "holds"
    assert verdicts(claims, {"made": records})[0].verdict == "cannot tell"


def test_what_was_not_measured_is_said() -> None:
    found = verdicts([claim(), claim(first="iti")], {"made": [record("caa", 0, 1.0), record("unsteered", 0, 0.0)]})
    assert [one.verdict for one in found] == ["holds", "not measured"]
    lines = markdown(found).splitlines()
    assert lines[2].startswith("| c | s | reward of `caa` beside `unsteered` on shp, m | 20 × 1 | +")
    assert lines[2].endswith(" | **holds** |")
    assert lines[3] == "| c | s | reward of `iti` beside `unsteered` |  |  |  | not measured |"
    with pytest.raises(SteerbenchError, match="have no gold for 'c'"):
        verdicts([replace(claim(), metric="gold")], {"made": [record("caa", 0, 1.0), record("unsteered", 0, 0.0)]})


def choices(method: str, seed: int, odds: list[float], right: list[float]) -> Record:
    """A record of questions by their log-odds, and by which of a capability check it got right."""
    made = make(method, seed)
    examples = made.examples.head(len(odds)).assign(matching_log_odds=odds)
    return replace(made, examples=examples, report=made.report | {"capability": {"scores": right}})


def test_a_difference_is_held_against_the_value_that_is_named() -> None:
    """None at all is surely more than -1, and not surely more than nothing."""
    records = [record(name, seed, 0.0) for seed in (0, 1) for name in ("caa", "unsteered")]
    found = verdicts([replace(claim(margin=0.0), value=value) for value in (0.0, -1.0, 1.0)], {"made": records})
    assert [one.verdict for one in found] == ["cannot tell", "holds", "does not hold"]
    assert len({one.difference for one in found}) == 1


def test_shares_and_capability_are_claimed_about() -> None:
    """One question in four goes down, and one in four of the check is lost: by hand."""
    plain, moved = [0.0] * 20, [1.0, 1.0, 1.0, -1.0] * 5
    kept, lost = [1.0] * 80, [1.0, 1.0, 1.0, 0.0] * 20
    records = [choices("caa", 0, moved, lost), choices("unsteered", 0, plain, kept)]
    share = replace(claim("equal", 0.3), metric="anti_steerable", value=0.25)
    damage = replace(claim("lower", 0.02), metric="capability")
    sides = [replace(share, says="lower", value=value) for value in (0.1, 0.9)]
    found = verdicts([share, damage, *sides], {"made": records})
    assert [one.difference.mean for one in found] == [0.25, -0.25, 0.25, 0.25]
    assert found[1].n_examples == 80
    assert [one.verdict for one in found] == ["holds", "holds", "does not hold", "holds"]
    with pytest.raises(SteerbenchError, match="have no capability for 'c'"):
        verdicts([damage], {"made": [record("caa", 0, 1.0), record("unsteered", 0, 0.0)]})
    with pytest.raises(SteerbenchError, match="have no anti_steerable for 'c'"):
        verdicts([share], {"made": [record("caa", 0, 1.0), record("unsteered", 0, 0.0)]})


GOOD = '[[claim]]\nclaim = "c"\nsource = "s"\nstudy = "made"\nfirst = "caa"\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", r"has no claims; each begins with a line \[\[claim\]\]"),
        ("[[claim", "cannot read"),
        (GOOD.replace('first = "caa"\n', ""), "claim 1: first is missing"),
        (GOOD + 'metrik = "gold"', "claim 1: unknown key 'metrik'. Did you mean 'metric'"),
        (GOOD + GOOD + 'metric = "glod"', "claim 2: unknown metric 'glod'. Did you mean 'gold'"),
        (GOOD + 'says = "more"', "claim 1: unknown says 'more'"),
        (GOOD + 'margin = "much"', "claim 1: margin is 'much', of the wrong kind"),
        (GOOD + "margin = -1", "the margin must be"),
        (GOOD + 'says = "equal"', "the margin must be a number above 0 for what is equal"),
        (GOOD + "margin = nan", "the margin must be"),
        (GOOD + "value = inf", "the value must be a number"),
    ],
)
def test_a_mistake_in_the_claims_is_told(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "claims.toml").write_text(text, encoding="utf-8")
    with pytest.raises(SteerbenchError, match=told):
        read_claims(tmp_path / "claims.toml")


def test_claims_are_read(tmp_path: Path) -> None:
    (tmp_path / "claims.toml").write_text(GOOD + "margin = 1", encoding="utf-8")
    assert read_claims(tmp_path / "claims.toml") == [replace(claim(margin=1), claim="c")]
    with pytest.raises(SteerbenchError, match=r"cannot read .*: No such file or directory\."):
        read_claims(tmp_path / "others.toml")


def test_the_committed_claims_are_of_methods_and_studies_that_are_there() -> None:
    folder = Path(__file__).parents[2] / "results"
    claims = read_claims(folder / "claims.toml")
    assert len({one.claim for one in claims}) == len(claims)
    for one in claims:
        assert (folder / one.study / "records.jsonl").is_file()
        for method in (one.first, one.second):
            assert build(*parse(method))
