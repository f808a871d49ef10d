"""The report says what the records say, is safe with hostile texts, and is the same file each time."""

import base64
import csv
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from report_pages import HOSTILE, N, Page, html, make, some, usual, write
from typer.testing import Result

from steerbench import Record, SteerbenchError, Store, leaderboard
from steerbench.records.columns import COLUMNS
from steerbench.report import write_plot, write_report
from steerbench.report.generations import as_json, generations
from steerbench.report.groups import grouped
from steerbench.report.ranking_table import ranking

Cli = Callable[..., Result]


# the numbers


def test_the_ranking_is_the_leaderboard() -> None:
    page = Page(usual())
    table = leaderboard(some()).set_index("method")
    (head, *rows) = page.rankings[0]
    names = [text for _, text in head]
    assert [row[1][0] for row in rows] == list(table.sort_values("rank", kind="stable").index)
    for row in rows:
        values = table.loc[row[1][0]]
        cells = dict(zip(names, row, strict=True))
        assert cells["#"][0] == str(values["rank"])
        for name, column in {"reward": "reward", "gold": "gold", "diversity": "diversity", "KL": "kl"}.items():
            assert float(cells[name][0]) == pytest.approx(values[column], abs=1e-6)
            assert cells[name][1].split()[0] == f"{values[column]:.{COLUMNS[column].digits}f}"
        if row[1][0] != "unsteered":
            low, high = values["reward_gain_low"], values["reward_gain_high"]
            assert cells["reward gain"][1] == f"{values['reward_gain']:+.2f} {low:.2f} to {high:.2f}"


def test_methods_that_cannot_be_told_apart_share_a_rank() -> None:
    page = Page(usual())
    ranks = {row[1][0]: row[0][1] for row in page.rankings[0][1:]}
    assert ranks == {"iti": "1", "caa:layer=1": "=2", "caa:layer=2": "=2", "unsteered": "4"}


def test_a_method_without_all_seeds_has_no_rank_and_comes_last(tmp_path: Path) -> None:
    records = [make(m, s, seeds=[0, 1]) for m in ("unsteered", "caa") for s in (0, 1)] + [make("iti", 0, seeds=[0, 1])]
    page = Page(html(records, tmp_path))
    assert page.rankings[0][-1][0] == ("", "–")
    assert page.rankings[0][-1][1][0] == "iti"


def test_a_column_without_numbers_is_not_there(tmp_path: Path) -> None:
    records = some()
    for record in records:
        for name in ("gold", "kl"):
            record.metrics.pop(name)
        del record.examples["gold"]
    text = html(records, tmp_path)
    names = [name for _, name in Page(text).rankings[0][0]]
    assert "reward gain" in names
    assert not {"gold", "gold gain", "KL", "perplexity"} & set(names)
    assert "Reward gain against KL" not in text
    assert "Reward gain against diversity" in text


def test_records_with_scores_alone_make_a_page(tmp_path: Path) -> None:
    """No unsteered model, no groups, no texts, no latency: what is there is shown."""
    record = make()
    for name in ("group", "prompt", "response"):
        del record.examples[name]
    record.latency.clear()
    record.metrics.clear()
    record.metrics["reward"] = 1.0
    page = Page(html([record], tmp_path))
    heads = ["#", "method", "reward", "agreement", "gold agreement", "fit s", "seeds", "fits"]
    assert [name for _, name in page.rankings[0][0]] == heads
    assert not any(tag == "svg" for tag, _ in page.tags)
    assert not any(attrs.get("id") == "generations" for _, attrs in page.tags)


def test_protocols_are_never_ranked_together(tmp_path: Path) -> None:
    records = [*some(), make("caa", lift=3.0, max_new_tokens=9), make("caa", task="shp", lift=2.0)]
    page = Page(html(records, tmp_path))
    assert [len(table) - 1 for table in page.rankings] == [1, 4, 1]
    assert [table[1][0][1] for table in page.rankings] == ["1", "1", "1"]
    assert "max_new_tokens: None != 9" in page.text
    assert "testbed-shp · max_new_tokens 9" in page.text
    assert {group.task: group.is_testbed for group in grouped(records)} == {"shp": False, "testbed-shp": True}


def test_the_warning_of_the_testbed_is_for_the_testbed(tmp_path: Path) -> None:
    assert "no evidence about your model" in usual()
    assert "no evidence about your model" not in html([make("caa", task="shp")], tmp_path / "real")


def test_every_field_of_the_protocol_and_every_trial_is_told(tmp_path: Path) -> None:
    trials = [
        {"hyperparameters": {"strength": 0.5}, "score": 0.125, "reward": 1.25, "kl": 0.0625},
        {"hyperparameters": {"strength": 9.0}, "error": "far too strong"},
    ]
    tuning = {"objective": "sum", "split": "validation", "n": 7, "unsteered": {"score": 0.0, "reward": 0.75}}
    record = make("caa", tuning={**tuning, "trials": trials, "chosen": {"strength": 0.5}}, top_p=0.625)
    page = Page(html([record], tmp_path))
    for name, value in record.protocol.items():
        plain = value if isinstance(value, str) else json.dumps(value)
        assert re.search(rf"(?m)^{name}{re.escape(plain)}", page.text)
    for told in ("strength = 0.5", "0.125", "1.250", "chosen", "far too strong", "objective sum, on 7 validation"):
        assert told in page.text
    assert "score 0.000, reward 0.750" in page.text


# safety


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    record = make(f"caa:text={HOSTILE}", texts=[HOSTILE] * N)
    record.examples["prompt"] = HOSTILE
    record.labels["model"] = HOSTILE
    record.environment["device"] = HOSTILE
    page = Page(html([record, make("unsteered")], tmp_path))
    assert not any(tag == "img" for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert [attrs.get("type") for attrs, _ in page.scripts] == ["application/json", None]
    (first,) = page.data
    assert first["prompts"] == [HOSTILE] * N
    assert HOSTILE in first["texts"]
    assert HOSTILE in page.text


def test_embedded_json_is_ascii_without_markup() -> None:
    text = as_json({"a": [HOSTILE, "<!--", "]]>", "é\ud800"]})
    assert text.isascii()
    assert not set("<>&'") & set(text)
    assert json.loads(text) == {"a": [HOSTILE, "<!--", "]]>", "é\ud800"]}


def test_nothing_is_fetched_and_only_the_own_script_runs() -> None:
    text = usual()
    page = Page(text)
    assert "://" not in text
    assert not {"link", "img", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    for name in ("src", "href", "action", "srcset", "xlink:href", "data"):
        assert all((attrs.get(name) or "#").startswith("#") for _, attrs in page.tags)
    assert not re.search(r"@import|url\((?!#)", text)
    (policy,) = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(page.scripts[-1][1].encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith(f"default-src 'none'; script-src 'sha256-{digest}';")


def test_ids_are_unique_and_every_reference_has_its_target(tmp_path: Path) -> None:
    page = Page(html([*some(), *(make(m, task="shp") for m in ("unsteered", "caa"))], tmp_path))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    referred = {attrs[name] for _, attrs in page.tags for name in ("href", "xlink:href") if attrs.get(name)}
    assert {reference.lstrip("#") for reference in referred if reference} <= set(ids)


# the generations


def test_generations_are_those_of_the_records(tmp_path: Path) -> None:
    records = [make("unsteered"), make("caa", texts=["same"] * N)]
    (found,) = Page(html(records, tmp_path)).data
    assert found["prompts"] == list(records[0].examples["prompt"])
    for method in found["methods"]:
        (record,) = [r for r in records if r.method == method["name"]]
        (run,) = method["runs"]
        assert (run["seed"], run["sample"]) == (0, 0)
        assert [found["texts"][row[0]] for row in run["rows"]] == list(record.examples["response"])
        assert [row[1] for row in run["rows"]] == pytest.approx(list(record.examples["reward"]), abs=1e-4)
        assert [row[3] for row in run["rows"]] == pytest.approx(list(record.examples["gold"]), abs=1e-4)
    assert found["texts"].count("same") == 1


def test_samples_are_runs_of_their_own() -> None:
    record = make()
    twice = pd.concat([record.examples.assign(sample=0), record.examples.assign(sample=1, response="second")])
    (found,) = generations(grouped([replace(record, examples=twice)]), 64)
    runs = found["methods"][0]["runs"]
    assert [run["sample"] for run in runs] == [0, 1]
    assert {found["texts"][row[0]] for row in runs[1]["rows"]} == {"second"}
    assert len(found["prompts"]) == N


def test_no_more_prompts_than_asked_for_and_the_page_says_so(tmp_path: Path) -> None:
    page = Page(html(some(), tmp_path, n_examples=3))
    (found,) = page.data
    assert len(found["prompts"]) == 3
    assert all(len(run["rows"]) == 3 for method in found["methods"] for run in method["runs"])
    assert "the first 3 of 8 prompts are in this file" in " ".join(page.text.split())


# the file


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    folder = write([*some(), make("caa", task="shp")], tmp_path / "runs")
    write_report([folder], tmp_path / "one.html")
    write_report([folder, folder], tmp_path / "two.html")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    write_plot(grouped(some()), tmp_path / "one.svg")
    write_plot(grouped(some()[::-1]), tmp_path / "two.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_a_folder_without_records_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(SteerbenchError, match=r"there are no records in .*steerbench run --out"):
        write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(SteerbenchError, match="is not there"):
        write_report([tmp_path / "missing"], tmp_path / "report.html")


def test_two_spellings_of_a_method_are_one_row() -> None:
    """As the leaderboard has it: the generations of both are shown."""
    one, other = (make(method, seed, seeds=[0, 1]) for seed, method in enumerate(("caa", "caa:strength=1.0")))
    base = [make("unsteered", seed, seeds=[0, 1]) for seed in (0, 1)]
    (found,) = grouped([one, other, *base])
    assert [len(row.records) for row in found.rows] == [2, 2]


def test_a_seed_that_missed_its_kl_is_told(tmp_path: Path) -> None:
    def matched(seed: int, met: bool) -> Record:
        trials = [{"hyperparameters": {"strength": 0.5}, "score": 0.0, "kl": 0.1}]
        tuning = {"objective": "kl", "target": 0.1, "matched": met, "unsteered": {"reward": 0.5 + seed}, "n": 7}
        return make("caa", seed, tuning={**tuning, "trials": trials, "chosen": {"strength": 0.5}}, seeds=[0, 1])

    page = Page(html([matched(0, True), matched(1, False)], tmp_path))
    assert "target 0.1 nats per token; not matched with seed 1. Unsteered: reward 1.000." in page.text


def test_a_page_without_javascript_says_what_is_missing() -> None:
    assert "This part needs JavaScript" in Page(usual()).text


def test_the_page_says_how_ranks_are_made() -> None:
    text = " ".join(Page(usual()).text.split())
    assert "by a test corrected for the number of pairs (Holm, 5 %)" in text


def test_a_file_that_cannot_be_written_is_a_mistake(tmp_path: Path) -> None:
    folder = write([make()], tmp_path / "runs")
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "runs", tmp_path / "file" / "report.html"):
        with pytest.raises(SteerbenchError, match=r"cannot write .*choose another file"):
            write_report([folder], out)


# timings, and what papers reported


def timing() -> dict[str, Any]:
    """Return a record of timings with one cell."""
    ratio = {"median": 1.25, "low": 1.125, "high": 1.375}
    arms = [
        {"method": "unsteered", "ratios": {}},
        {"method": "iti", "ratios": {"prefill": ratio, "decode": ratio, "total": {**ratio, "low": None}}},
        {"method": "caa", "problem": "Traceback\nout of memory"},
    ]
    return {
        "kind": "latency",
        "schema_version": 1,
        "created": "2026-01-01T00:00:00+00:00",
        "model": {"name": "timed/lm", "parameters": 7e9, "dtype": "bfloat16", "attention": "sdpa", "weights": "random"},
        "device": "GPU",
        "grid": {"new_tokens": 8, "rounds": 3},
        "cells": [{"batch_size": 2, "prompt_tokens": 32, "arms": arms}],
    }


def test_timings_beside_the_records_are_shown(tmp_path: Path) -> None:
    assert "Timed apart from quality" not in usual()
    folder = tmp_path / "runs" / "latency"
    folder.mkdir(parents=True)
    (folder / "one.json").write_text(json.dumps(timing()))
    page = Page(html(some(), tmp_path))
    for told in ("timed/lm on GPU", "7,000.0 M", "batch 2, prompt 32", "1.25 (1.12 to 1.38)", "out of memory"):
        assert told in page.text
    assert "floor" not in page.text.partition("timed/lm on GPU")[2]
    known = timing()
    known["cells"][0]["arms"][1]["decode_floor"] = 1.0625
    (folder / "one.json").write_text(json.dumps(known))
    assert "1.25 (1.12 to 1.38), floor 1.06" in Page(html(some(), tmp_path)).text
    (folder / "two.json").write_text("{")
    with pytest.raises(SteerbenchError, match=r"two\.json is damaged"):
        html(some(), tmp_path)


def test_reported_numbers_are_marked_and_complete() -> None:
    text = files("steerbench.report").joinpath("reported.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert list(rows[0]) == ["paper", "model", "task", "method", "metric", "value", "setting"]
    assert all(all(row.values()) for row in rows)
    keys = [(row["paper"], row["model"], row["task"], row["method"]) for row in rows]
    cells: dict[tuple[str, ...], dict[str, float]] = {key: {} for key in keys}
    for key, row in zip(keys, rows, strict=True):
        assert row["metric"] not in cells[key]
        cells[key][row["metric"]] = float(row["value"])
    judged = [cell for cell in cells.values() if "win - lose, points" in cell]
    assert len(judged) == 4 * 4 * 3
    assert all(abs(c["win, %"] - c["lose, %"] - c["win - lose, points"]) < 0.11 for c in judged)
    page = Page(usual())
    assert "Not comparable with the tables above." in page.text
    assert "80.3" in page.text


# the command


def test_the_command_makes_page_and_plot_from_real_records(run_cli: Cli, cli: Cli, tmp_path: Path) -> None:
    assert run_cli("--methods", "caa,static_prompt").exit_code == 0
    out, plot = tmp_path / "new" / "report.html", tmp_path / "plot.svg"
    done = cli("report", tmp_path / "runs", "--out", out, "--examples", 2)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"written: {out}\n"
    page = Page(out.read_text(encoding="utf-8"))
    table = leaderboard(Store(tmp_path / "runs").records())
    assert {row[1][0] for row in page.rankings[0][1:]} == set(table["method"])
    assert len(page.data[0]["prompts"]) == 2
    refused = cli("report", tmp_path / "runs", "--out", out, "--plot", plot)
    assert refused.exit_code == 2
    assert "nothing to plot" in refused.stderr


def test_the_command_writes_a_plot(cli: Cli, tmp_path: Path) -> None:
    folder = write(some(), tmp_path / "runs")
    done = cli("report", folder, "--out", tmp_path / "report.html", "--plot", tmp_path / "plot.svg")
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "plot.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_help_loads_nothing_heavy_and_a_report_no_models(tmp_path: Path) -> None:
    folder = write([make()], tmp_path / "runs")
    code = "import sys; from steerbench.cli import app; app(sys.argv[1:], standalone_mode=False); print(*sys.modules)"
    heavy = {"matplotlib", "jinja2", "pandas", "numpy", "torch"}
    for command, banned in (
        (["report", "--help"], heavy),
        (["report", str(folder), "--out", str(tmp_path / "r.html")], {"torch", "transformers", "evaluate"}),
    ):
        done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
        assert not banned & set(done.stdout.splitlines()[-1].split())


def test_whether_the_kl_was_matched_is_shown(tmp_path: Path) -> None:
    told: dict[str, Any] = {"match_kl": 0.1}
    records = [make("unsteered", **told), make("caa", tuning={"matched": True}, **told), make("iti", **told)]
    (only,) = grouped(records)
    table = ranking(only)
    place = [column.name for column in table.columns].index("matched")
    assert {row.method: cells[place].text for row, _, cells in table.rows} == {"unsteered": "–", "caa": "1", "iti": "0"}
