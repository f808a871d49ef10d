"""The command line does what it says: every command on tiny models, its output compared with what was measured."""

import inspect
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from given_options import last_of_each
from rich.console import Console
from thorough import mostly_slow
from typer.testing import Result

import steerbench
from steerbench import LanguageModel, Store, fit, generate
from steerbench import cli as commands
from steerbench.bench.protocol import FitSettings
from steerbench.bench.try_out import Sample, sample
from steerbench.cli import console
from steerbench.cli.console import visible
from steerbench.cli.replies import KL, show_below, show_beside
from steerbench.data import Turn, user
from steerbench.engine.effect import effect
from steerbench.learn import Response
from steerbench.plugins import registry
from steerbench.plugins.docstrings import head
from steerbench.plugins.plugin import KINDS
from steerbench.plugins.template import METHOD

Cli = Callable[..., Result]

POST = {
    "domain": "askbaking_test",
    "upvote_ratio": 0.98,
    "created_at_utc_A": 1600000000,
    "created_at_utc_B": 1600003600,
    "score_A": 4,
    "score_B": 12,
    "labels": 0,
    "seconds_difference": 3600.0,
    "score_ratio": 3.0,
}


def posts(path: Path) -> None:
    """Write 30 posts in the schema of SHP, all 15 columns."""
    rows: list[dict[str, Any]] = [
        {
            **POST,
            "post_id": f"p{i}",
            "c_root_id_A": f"a{i}",
            "c_root_id_B": f"b{i}",
            "history": f"Why does loaf number {i} crumble?",
            "human_ref_A": "Bad luck.",
            "human_ref_B": f"Let it cool for {i} hours.",
        }
        for i in range(30)
    ]
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def data(world: Path, tmp_path: Path) -> Path:
    """One folder per task."""
    posts(tmp_path / "data" / "shp" / "test.jsonl")
    (tmp_path / "data" / "hh_rlhf").mkdir()
    (tmp_path / "data" / "hh_rlhf" / "all.jsonl").write_bytes((world / "hh_rlhf.jsonl").read_bytes())
    return tmp_path / "data"


def rows(output: str) -> list[list[str]]:
    """Return the cells of the lines of a table that hold a rank."""
    lines = [line for line in output.splitlines() if " records in " not in line]
    return [line.split() for line in lines if line.split(" ")[0].isdigit()]


# run and leaderboard


def test_methods_and_tasks_given_one_by_one_are_all_measured(
    run_cli: Cli, cli: Cli, run_args: list[str], data: Path, tmp_path: Path
) -> None:
    wanted = run_cli("--tasks", "hh_rlhf,shp", "--data", data, "--methods", 'caa:strength=2,static_prompt:text="a, b"')
    shared = last_of_each([*run_args, "--data", data, "--out", tmp_path / "again"])
    methods = ["--method", "caa:strength=2", "--methods", 'static_prompt:text="a, b"']
    done = cli("run", *shared, *methods, "--tasks", "hh_rlhf", "--task=shp")
    assert done.exit_code == wanted.exit_code == 0, done.stderr
    found = [(r.labels["task"], r.method) for r in Store(tmp_path / "again").records()]
    assert found == [(r.labels["task"], r.method) for r in Store(tmp_path / "runs").records()]
    assert len(set(found)) == 6


def test_two_tasks_are_measured_and_ranked(run_cli: Cli, data: Path, tmp_path: Path) -> None:
    done = run_cli("--tasks", "hh_rlhf,shp", "--data", data, "--methods", "caa,static_prompt:text=Hi")
    assert done.exit_code == 0, done.stderr
    assert done.stderr == ""
    records = Store(tmp_path / "runs").records()
    assert sorted((r.labels["task"], r.method) for r in records) == [
        (task, method) for task in ("hh_rlhf", "shp") for method in ("caa", "static_prompt:text=Hi", "unsteered")
    ]
    for task in ("hh_rlhf", "shp"):
        ranked = sorted((r for r in records if r.labels["task"] == task), key=lambda r: -r.metrics["reward"])
        _, shown = done.stdout.split(f"{task}\n", 1)
        cells = [(r.method, f"{r.metrics['reward']:.3f}") for r in ranked]
        assert [(row[1], row[2]) for row in rows(shown)[:3]] == cells
    assert f"6 records in {tmp_path / 'runs'}, 0 of them from before" in done.stdout


def test_a_setting_of_a_task_is_another_protocol_and_named_everywhere(run_cli: Cli, data: Path, tmp_path: Path) -> None:
    """Half of the posts have a ratio of 3; without settings a key is what it was before there were any."""
    path = data / "shp" / "test.jsonl"
    posts_ = [json.loads(line) for line in path.read_text().splitlines()]
    for i, post in enumerate(posts_):
        post["score_B"], post["labels"] = (12 if i % 2 else 5), 0
    path.write_text("".join(json.dumps(post) + "\n" for post in posts_))
    tasks = "shp,shp:min_ratio=3,shp:min_ratio=3.0"
    done = run_cli("--tasks", tasks, "--data", data, "--methods", "unsteered", "--n-train", "3", "--n-examples", "2")
    assert done.exit_code == 0, done.stderr
    records = {r.labels["task"]: r for r in Store(tmp_path / "runs").records()}
    assert list(records) == ["shp", "shp:min_ratio=3.0"]
    plain, strict = records.values()
    assert (plain.protocol["task"], strict.protocol["task"]) == ("shp", "shp")
    assert "task_settings" not in plain.protocol
    assert strict.protocol["task_settings"] == {"min_ratio": 3.0}
    assert strict.counts["score ratio too low"] == 15
    assert strict.folder_name.startswith("shp-min_ratio=3.0--unsteered--seed0--")
    assert (tmp_path / "runs" / strict.folder_name / "record.json").is_file()
    assert "shp:min_ratio=3.0" in done.stdout


def test_the_csv_holds_every_record_in_full(run_cli: Cli, tmp_path: Path) -> None:
    run_cli("--methods", "caa", "--seeds", "0,1", "--temperature", "1")
    table = pd.read_csv(tmp_path / "runs" / "leaderboard.csv").set_index("method")
    records = [r for r in Store(tmp_path / "runs").records() if r.method == "caa"]
    assert [r.seed for r in records] == [0, 1]
    assert table.loc["caa", "reward"] == sum(r.metrics["reward"] for r in records) / 2
    assert table.loc["caa", "seeds"] == 2


def test_the_same_command_again_measures_nothing(run_cli: Cli, tmp_path: Path) -> None:
    first = run_cli("--methods", "caa")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/*")}
    second = run_cli("--methods", "caa")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/*")} == before
    assert second.stdout == first.stdout.replace("0 of them from before", "2 of them from before")


def test_one_method_in_two_spellings_is_one_row(run_cli: Cli) -> None:
    done = run_cli("--methods", "unsteered,caa,caa:strength=1,caa:strength=1.0")
    ranked = [row[:2] for row in sorted(rows(done.stdout), key=lambda row: row[1])]
    assert ranked == [["1", "caa"], ["1", "unsteered"]]  # four prompts tell nothing apart
    assert "2 records in" in done.stdout


def test_another_protocol_in_the_same_folder_prints_its_own_table(run_cli: Cli, cli: Cli, tmp_path: Path) -> None:
    run_cli("--methods", "caa")
    done = run_cli("--methods", "caa", "--max-new-tokens", "5", "--max-prompt-tokens", "100")
    assert done.exit_code == 0
    assert len(rows(done.stdout)) == 2
    assert "2 records in" in done.stdout
    refused = cli("leaderboard", tmp_path / "runs")
    assert refused.exit_code == 2
    assert "not measured alike" in refused.stderr
    assert "max_new_tokens: " in refused.stderr


def test_the_leaderboard_is_that_of_the_run(run_cli: Cli, cli: Cli, tmp_path: Path) -> None:
    run = run_cli("--methods", "caa,static_prompt").stdout
    csv = tmp_path / "new" / "table.csv"
    again = cli("leaderboard", tmp_path / "runs", tmp_path / "runs", "--csv", csv)  # given twice, counted once
    assert again.exit_code == 0
    assert again.stdout.split("\n\n")[0] == run.split("\n\n")[0]
    assert f"written: {csv}" in again.stdout
    assert csv.read_bytes() == (tmp_path / "runs" / "leaderboard.csv").read_bytes()


def test_a_run_that_shows_test_prompts_is_compared_with_no_other(run_cli: Cli, cli: Cli, tmp_path: Path) -> None:
    methods = ["--methods", "alignez:n_queries=4:edit=add:strength=4"]
    run_cli(*methods)
    done = run_cli(*methods, "--transductive")
    assert done.exit_code == 0, done.stderr
    assert "2 records in" in done.stdout
    records = Store(tmp_path / "runs").records()
    assert sorted(r.protocol.get("transductive", False) for r in records) == [False, False, True, True]
    queries = {
        r.protocol.get("transductive", False): {p["query"] for p in part["self_generated"]["first"]}
        for r in records
        for part in r.report["fit"].values()
    }
    assert queries[True].isdisjoint(queries[False])
    refused = cli("leaderboard", tmp_path / "runs")
    assert refused.exit_code == 2
    assert "not measured alike" in refused.stderr
    assert "transductive: " in refused.stderr


def test_a_held_out_reward_has_its_column(run_cli: Cli, other_reward: Path) -> None:
    done = run_cli("--methods", "unsteered", "--held-out-reward", other_reward)
    assert "held-out" in done.stdout
    ((_, _, reward, held_out, *_),) = rows(done.stdout)
    assert reward == held_out


def test_names_are_shown_as_they_are(run_cli: Cli) -> None:
    """No mark-up, no emoji, no letter lost."""
    done = run_cli("--methods", 'static_prompt:text="[/b] [bold] :smile: héllo, wörld"')
    assert done.exit_code == 0, done.stderr
    assert 'static_prompt:text="[/b] [bold] :smile: héllo, wörld"' in done.stdout


def test_a_pipe_gets_tables_as_wide_as_they_are(run_cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(console.out, "width", 30)
    method = "caa:pool=last_response:strength=2+static_prompt"
    done = run_cli("--methods", method)
    records = {r.method: r for r in Store(tmp_path / "runs").records()}
    shown = {row[1]: row[2:] for row in rows(done.stdout)}
    assert set(shown) == set(records) == {"unsteered", method}
    for name, cells in shown.items():
        assert cells[0] == f"{records[name].metrics['reward']:.3f}"
        assert cells[-2:] == [f"{records[name].latency[what]:.3f}" for what in ("decode_ratio", "decode_floor")]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode_gets_the_table_too(
    run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    run_cli("--methods", "static_prompt:text=日本")
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "argv", ["steerbench", "leaderboard", str(tmp_path / "runs")])
    with pytest.raises(SystemExit) as end:
        commands.main()
    stream.flush()
    text = stream.buffer.getvalue().decode(encoding)
    assert end.value.code == 0
    assert "static_prompt:text=??" in text


# list, generate, new, check


def test_list_says_what_each_does_in_groups_by_what_it_touches(cli: Cli) -> None:
    lines = [line.rstrip() for line in cli("list").stdout.splitlines()]
    for kind in KINDS:
        for source in registry.sources(kind):
            said = head(source)
            (line,) = (line for line in lines if line.split()[:1] == [source.name])
            assert line.endswith(said.summary)
            assert f" {said.learns_from} " in line
    groups = [line.strip() for line in lines if re.fullmatch(r"  \S[\w ]*", line)]
    assert groups == ["prompt", "activations", "logits", "choice of responses", "nothing"]
    for source in registry.sources("methods"):
        (place,) = (i for i, line in enumerate(lines) if line.split()[:1] == [source.name])
        above = next(line.strip() for line in reversed(lines[:place]) if line.strip() in groups)
        assert above == head(source).touches
    assert "caa" not in cli("list", "tasks").stdout
    assert "shp" not in cli("list", "methods").stdout


def test_list_of_one_shows_its_settings_and_its_card(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.out, "width", 200)
    done = cli("list", "static_re").stdout
    assert "arXiv 2406.05954" in done
    assert re.search(
        r"^strength +0\.1 +float +length of the shift.*; 0\.0 switches the method off; --tune draws", done, re.M
    )
    assert re.search(
        r"^layer +none +int of 0 or more \| float from 0 to below 1 \| none +with `site=resid_post`", done, re.M
    )
    assert "Given as --methods 'static_re:strength=0.05'" in done
    assert "It has no hyperparameters." in cli("list", "unsteered").stdout
    assert re.search(r"^min_ratio +1\.0 +float of 1 or more +votes of", cli("list", "shp").stdout, re.M)
    assert "It has no settings." in cli("list", "xstest").stdout
    wrong = cli("list", "method")
    assert wrong.exit_code == 2
    assert "unknown method or task 'method'. Did you mean 'methods'?" in wrong.stderr


def test_list_long_shows_the_card_of_each(cli: Cli) -> None:
    for kind in KINDS:
        done = cli("list", kind, "--long")
        assert done.exit_code == 0
        expected = f"{kind}\n\n"
        for source in registry.sources(kind):
            docstring = inspect.cleandoc(sys.modules[registry.load(kind, source.name).__module__].__doc__ or "")
            card = "".join(f"  {line}\n" if line else "\n" for line in docstring.splitlines())
            expected += f"{source.name}  {source.origin}\n{card}\n"
        assert done.stdout == expected
    assert cli("list", "--long").stdout == "".join(cli("list", kind, "--long").stdout for kind in KINDS)


def test_a_broken_plugin_does_not_sink_the_long_list(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal is narrow: cards and complaints are not wrapped, and mark-up in them is text."""
    (tmp_path / "cli_syntax.py").write_text("def f(:")
    (tmp_path / "cli_marked.py").write_text('"""[bold]Marked[/b] :smile:"""\nraise RuntimeError')
    monkeypatch.syspath_prepend(tmp_path)
    modules = ("cli_syntax", "cli_missing", "cli_marked")
    points = [EntryPoint(f"a_{name}", name, "steerbench.methods") for name in modules]
    gone = registry.Source("methods", "a_gone", str(tmp_path / "gone.py"), f"{registry.PLUGINS}.gone")
    monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in points if p.group == group])
    monkeypatch.setitem(registry._files, gone.module, gone)
    monkeypatch.setattr(console.out, "width", 30)
    done = cli("list", "--long")
    assert done.exit_code == 0
    assert done.stdout.startswith(
        "methods\n\n"
        f"a_cli_marked  an entry point\n  [bold]Marked[/b] :smile:\n\n"
        "a_cli_missing  an entry point\n  no card: no file of module 'cli_missing' was found; "
        "reinstall or upgrade its distribution.\n\n"
        f"a_cli_syntax  an entry point\n  no card: {tmp_path / 'cli_syntax.py'} is no Python source: "
    )
    assert f"a_gone  {gone.origin}\n  no card: cannot read {gone.origin}: No such file" in done.stdout
    assert "The model as it is: the baseline of every table." in done.stdout
    monkeypatch.setattr(console.out, "width", 200)
    _, broken = cli("list", "methods").stdout.split("\n  broken")
    for name, why in {"marked": "defines no class that subclasses Steerer", "syntax": "is no Python source"}.items():
        assert re.search(rf"a_cli_{name} .*cli_{name}\.py {why}", " ".join(broken.split()))
    assert "a_gone" in broken
    assert "defines no class that subclasses Steerer" in cli("list", "a_cli_marked").stdout


def test_generate_shows_the_responses_beside_the_unsteered_ones(cli: Cli, world: Path) -> None:
    """Without --data, because a static prompt learns nothing."""
    prompts = ["How do I bake bread?", "Why?"]
    options = ["--model", world / "lm", "--max-new-tokens", "6"]
    done = cli("generate", *options, "--method", "static_prompt:text=Hi", *prompts)
    lm = LanguageModel.load(str(world / "lm"))
    settings = steerbench.Decoding(max_new_tokens=6)
    plain = [visible(r.text) for r in generate(lm, [user(p) for p in prompts], decoding=settings)]
    system = [(Turn("system", "Hi"), *user(p)) for p in prompts]
    steered = [visible(r.text) for r in generate(lm, system, decoding=settings)]
    assert plain != steered
    responses = generate(lm, system, decoding=settings)
    kl = effect(lm, [user(p) for p in prompts], responses, fit("static_prompt:text=Hi", lm, []), decoding=settings).kl
    shown = [f"KL {value:.3f}  {text}" for value, text in zip(kl, steered, strict=True)]
    wanted = ["unsteered", *plain, "static_prompt:text=Hi", *shown, KL]
    assert done.exit_code == 0, done.stderr
    assert min(kl) > 0
    assert [line.strip() for line in done.stdout.splitlines()] == [line.strip() for line in wanted]


def test_generate_learns_from_data(cli: Cli, world: Path) -> None:
    options = ["--model", world / "lm", "--data", world / "hh_rlhf.jsonl", "--max-new-tokens", "6", "--n-train", "4"]
    done = cli("generate", *options, "--method", "caa:strength=0,caa:strength=9", "How do I bake bread?")
    _, unsteered, _, off, _, on, _ = done.stdout.splitlines()
    assert off == "  KL 0.000  (equal to the unsteered reply)"
    assert on not in (unsteered, off)
    alone = cli("generate", *options, "How do I bake bread?")
    assert alone.stdout == f"unsteered\n{unsteered}\n"


def test_generate_shows_the_pairs_that_a_method_wrote(cli: Cli, world: Path) -> None:
    options = ["--model", world / "lm", "--data", world / "hh_rlhf.jsonl", "--max-new-tokens", "6", "--n-train", "6"]
    methods = "caa,alignez:n_queries=3"
    shown = cli("generate", *options, "--method", methods, "--show-pairs", "Why?")
    settings = FitSettings(
        model=str(world / "lm"),
        data=world / "hh_rlhf.jsonl",
        n_train=6,
        decoding=steerbench.Decoding(max_new_tokens=6),
    )
    *_, caa, alignez = sample(["Why?"], methods, settings)
    written = alignez.report["alignez"]["self_generated"]
    assert "self_generated" not in caa.report.get("caa", {})
    dropped = "".join(f", {reason}: {n}" for reason, n in written["dropped"].items() if n)
    lines = [f"  pairs that alignez wrote: {written['kept']} kept{dropped}; the first {written['kept']}:"]
    for pair in written["first"]:
        lines += [f"  ? {pair['query']}", f"    + {pair['good_description']}", f"    + {pair['good']}"]
        lines += [f"    - {pair['bad_description']}", f"    - {pair['bad']}"]
    expected = visible("".join(f"{line}\n" for line in lines))
    assert written["kept"] == len(written["first"]) > 1
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout == cli("generate", *options, "--method", methods, "Why?").stdout + expected
    assert "alignez:n_queries=3  (strength 1)\n" in shown.stdout
    alone = ["--method", "caa", "Why?"]
    none = "no pairs to show: none of the methods writes its own.\n"
    assert cli("generate", *options, "--show-pairs", *alone).stdout == cli("generate", *options, *alone).stdout + none


def test_generate_shows_each_strength(cli: Cli, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--model", world / "lm", "--data", world / "hh_rlhf.jsonl", "--max-new-tokens", "6", "--n-train", "4"]
    given = ["generate", *options, "--method", "caa:layer=0,static_prompt:text=Hi", "--strength"]
    methods = ["unsteered", "caa:layer=0:strength=0.5", "caa:layer=0:strength=9", "static_prompt:text=Hi"]
    monkeypatch.setattr(console.out, "width", 100)
    below = cli(*given, "0.5,9", "How?", "Why?").stdout
    assert [line for line in below.splitlines() if line in methods] == methods
    assert cli(*given, "0.5", "--strength", "9", "How?", "Why?").stdout == below
    monkeypatch.setattr(console.out, "width", 140)
    beside = cli(*given, "0.5,9", "How?", "Why?").stdout
    found = re.findall(r"KL \d+\.\d{3}", below)
    assert len(set(found)) > 3
    _, how, why = re.split(r"^(?:How|Why)\?\s*$", beside, flags=re.MULTILINE)
    for block, kl in ((how, found[::2]), (why, found[1::2])):
        assert {word for word in block.split() if word in methods} == {*methods}
        assert re.findall(r"KL \d+\.\d{3}", block) == kl


def test_replies_with_mark_up_and_without_kl_are_shown_as_they_are() -> None:
    def one(method: str, text: str, kl: float) -> Sample:
        return Sample(method, [Response(text, (1,), "length")], {}, [kl], "")

    stream = Console(file=io.StringIO(), width=80)
    shown = [one("unsteered", "[bold]a[/b]", 0.0), one("best", "", nan)]
    show_below(stream, shown)
    show_beside(stream, ["[i]Why?"], shown)
    text = stream.file.getvalue()  # type: ignore[attr-defined]
    assert "unsteered\n  [bold]a[/b]\nbest\n  KL not known  (empty)\n" in text
    assert re.search(r"\[i\]Why\?.*\n.*best.*\n.*KL not known.*\n.*\n\[bold\]a\[/b\] +\(empty\)", text)


def test_new_check_and_run_belong_together(cli: Cli, run_cli: Cli, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli("new", "method", "my_method")
    assert done.stdout == "written: my_method.py. Next: steerbench check my_method.py\n"
    assert "class MyMethod(Steerer)" in (tmp_path / "my_method.py").read_text()
    listed = cli("list", "--plugin", "my_method.py", "my_method").stdout
    assert "Learns from: pairs. Touches: activations." in listed
    assert re.search(r"^strength +1\.0 +float +in units of the vector's own length; 0\.0", listed, re.MULTILINE)
    checked = cli("check", "my_method.py", "--family", "llama")
    assert checked.exit_code == 0, checked.stdout
    assert "my_method: " in checked.stdout
    assert "broken" not in checked.stdout
    measured = run_cli("--plugin", "my_method.py", "--methods", "my_method:strength=2,my_method+caa")
    assert measured.exit_code == 0, measured.stderr
    assert {row[1] for row in rows(measured.stdout)} == {"unsteered", "my_method:strength=2", "my_method+caa"}


def test_a_new_task_can_be_run(cli: Cli, run_cli: Cli, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli("new", "task", "good_bread")
    assert done.exit_code == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"good_bread.py", "good_bread.csv", "test_good_bread.py"}
    assert "class GoodBread(Task)" in (tmp_path / "good_bread.py").read_text()
    (command,) = re.findall("steerbench run (.*)", done.stdout)
    measured = run_cli(*command.replace("good_bread --data", "good_bread:min_words=5 --data").split())
    assert measured.exit_code == 0, measured.stderr
    assert {row[1] for row in rows(measured.stdout)} == {"unsteered", "caa", "static_prompt"}
    (record, *_) = Store(tmp_path / "runs").records()
    assert (record.protocol["task"], record.protocol["n_examples"]) == ("good_bread", 4)
    assert record.protocol["task_settings"] == {"min_words": 5}


@pytest.mark.slow
def test_check_fails_where_an_invariant_is_broken(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "never_off.py"
    path.write_text(METHOD.replace("h + self.strength * self.vector", "h + self.vector"))
    done = cli("check", path, "--family", "llama")
    assert done.exit_code == 2
    assert "broken" in done.stdout


WITHOUT_MODELS = ("--help", "list", "list --long", "list caa")


@pytest.mark.parametrize("command", mostly_slow(WITHOUT_MODELS, lambda command: command != "list"))
def test_help_and_list_load_nothing_heavy(command: str) -> None:
    code = "import sys; from steerbench.cli import app; app(sys.argv[1:], standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *command.split()], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1].split()
    heavy = {"torch", "transformers", "datasets", "evaluate", "pandas", "numpy", "matplotlib", "jinja2"}
    assert not heavy & set(loaded)


def test_the_leaderboard_loads_no_models(run_cli: Cli, tmp_path: Path) -> None:
    run_cli("--methods", "unsteered")
    code = "import sys; from steerbench.cli import app; app(sys.argv[1:], standalone_mode=False); print(*sys.modules)"
    command = [sys.executable, "-c", code, "leaderboard", str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "unsteered" in done.stdout
    assert not {"torch", "transformers", "evaluate"} & set(done.stdout.splitlines()[-1].split())
