"""What is committed under `results/`, and the README, is what the committed records give: what `make results` makes."""

import re
import shlex
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from steerbench import Store, names
from steerbench.cli import app

ROOT = Path(__file__).parents[2]
STUDIED = {
    "ablation",
    "alignez",
    "best_of_n",
    "best_prompt",
    "caa",
    "controlled_decoding",
    "iti",
    "random_direction",
    "re_control",
    "repe",
    "shuffled_labels",
    "static_prompt",
    "static_re",
    "unsteered",
    *("urial", "prime_guard", "meta_align", "cast", "infer_aligner", "bipo", "lofit", "reps", "reft"),
    *("pref_ctrl", "ode_steer", "linear_act", "angular", "ta2", "act_add"),
}
"""The methods of the tuned study, and of that at one KL."""
FEWER = {"kl-0.05": [("testbed-shp", "alignez:identify=ccs", 4)]}
"""Rows with fewer than five seeds: in one, no layer told good answers from bad, and nothing could be fitted."""
DECODING = {"kl-0.02": 0.02, "decoding": 0.05, "kl-0.1": 0.1}
"""The studies with guided decoding, and their equal KLs in nats per token."""
READMES = (
    *("README.md", "docs/results.md", "docs/smollm2.md", "docs/verdicts.md", "results/README.md"),
    *(f"results/{folder}/README.md" for folder in (*DECODING, "curves", "truthful_qa", "strength")),
)
TABLES = (*READMES, *(f"results/{name}.csv" for name in ("leaderboard", "kl-0.05", "smollm2")))
REPORT = "results/report.html"
PLOTS = ("results/gains.svg", "results/curves/matching.svg")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the commands of `make results` that make tables, with everything they write in another folder."""
    there = tmp_path_factory.mktemp("made")
    for name in READMES:
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    for command in ("leaderboard", "across", "agree", "verdicts"):
        _run(command, there)
    return there


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the command of `make results` that makes the report and its plot."""
    there = tmp_path_factory.mktemp("drawn")
    (there / "results" / "curves").mkdir(parents=True)
    _run("report", there)
    return there


def _run(command: str, there: Path) -> None:
    recipe = re.search(r"^results:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert recipe
    lines = [shlex.split(line) for line in recipe[1].splitlines()]
    commands = [["$(BIN)/steerbench", name] for name in ("leaderboard", "across", "agree", "verdicts", "report")]
    assert all(line[:2] in commands for line in lines)
    for _, *arguments in (line for line in lines if line[1] == command):
        done = CliRunner().invoke(app, [_placed(text, there) for text in arguments])
        assert done.exit_code == 0, done.output


def _placed(argument: str, there: Path) -> str:
    if argument in (*TABLES, REPORT, *PLOTS, "results/curves/report.html"):
        return str(there / argument)
    return str(ROOT / argument) if (ROOT / argument).exists() else argument


@pytest.mark.parametrize("name", TABLES)
def test_what_is_committed_is_what_the_records_give(tables: Path, name: str) -> None:
    if name.endswith(".csv"):  # another processor may round the last digit otherwise
        one, other = (pd.read_csv(folder / name) for folder in (tables, ROOT))
        pd.testing.assert_frame_equal(one, other, rtol=1e-9)
    else:
        assert (tables / name).read_text(encoding="utf-8") == (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("plot", PLOTS)
def test_a_plot_that_is_committed_is_what_the_records_give(drawn: Path, plot: str) -> None:
    one, other = ((folder / plot).read_text(encoding="utf-8") for folder in (drawn, ROOT))
    assert NUMBER.sub("", one) == NUMBER.sub("", other)
    places = [[float(number) for number in NUMBER.findall(text)] for text in (one, other)]
    assert places[0] == pytest.approx(places[1], abs=0.11)  # another processor may round the last digit otherwise


def test_the_report_names_every_row_of_the_leaderboard(drawn: Path) -> None:
    page = unescape((drawn / REPORT).read_text(encoding="utf-8"))
    methods = set(pd.read_csv(ROOT / "results" / "leaderboard.csv")["method"])
    assert not {method for method in methods if method not in page}


def test_rows_come_in_the_order_of_what_they_gain() -> None:
    """Not of their rank: methods whose few seeds differ share the first."""
    table = pd.read_csv(ROOT / "results" / "leaderboard.csv")
    for _, rows in table.groupby("task"):
        assert rows["reward"].is_monotonic_decreasing
        assert not rows["rank"].is_monotonic_increasing


@pytest.mark.parametrize("name", ["leaderboard", "kl-0.05"])
def test_every_method_is_there_on_both_tasks_with_five_seeds(name: str) -> None:
    table = pd.read_csv(ROOT / "results" / f"{name}.csv")
    assert set(table["task"]) == {"testbed-hh_rlhf", "testbed-shp"}
    fewer = table[table["seeds"] != 5]
    assert [*zip(fewer["task"], fewer["method"], fewer["seeds"], strict=True)] == FEWER.get(name, [])
    for _, rows in table.groupby("task"):
        parts = {part.split(":")[0] for method in rows["method"] for part in method.split("+")}
        assert parts == STUDIED
        assert set(names("methods")) > STUDIED


def test_every_row_had_the_same_budget() -> None:
    records = Store(ROOT / "results" / "testbed").records()
    assert {r.protocol["tuning_budget"] for r in records} == {8}
    assert max(len(r.tuning.get("trials", [])) for r in records) == 8


def test_every_row_of_the_other_study_was_matched_to_one_kl() -> None:
    records = Store(ROOT / "results" / "kl-0.05").records()
    assert {r.protocol["match_kl"] for r in records} == {0.05}
    assert all(r.tuning["target"] == 0.05 for r in records if r.tuning)


def test_the_real_study_names_its_weights_and_rewards() -> None:
    records = Store(ROOT / "results" / "smollm2").records()
    assert {r.labels["model"] for r in records} == {"SmolLM2-135M-Instruct-Q4_1"}
    assert {r.protocol["match_kl"] for r in records} == {0.05}
    for record in records:
        criterion = record.labels["task"].rpartition("=")[2]
        assert record.labels["reward_model"] == f"{criterion}-guide"
        assert record.labels["held_out_reward"] == f"{criterion}-held-out"


@pytest.mark.parametrize("study", DECODING)
def test_guided_decoding_was_matched_to_its_kl_with_three_seeds(study: str) -> None:
    records = Store(ROOT / "results" / study).records()
    assert all(r.tuning["target"] == DECODING[study] for r in records if r.tuning)
    rows = {(r.labels["task"], r.method, r.seed) for r in records}
    methods = {method for _, method, _ in rows}
    assert rows == {(f"testbed-{task}", m, seed) for task in ("hh_rlhf", "shp") for m in methods for seed in range(3)}
    assert {"re_control", "controlled_decoding", "args", "genarm", "best_of_n"} <= methods
