"""The page is light: a study is below 1.5 MB, plots lose nothing that is seen, and texts are sampled."""

import re
from importlib.resources import files
from pathlib import Path

import pytest
from report_pages import N, Page, html, make, some, write

from steerbench import Record
from steerbench.report import write_report
from steerbench.report.figures import scatters
from steerbench.report.generations import ROOM, as_json, generations
from steerbench.report.groups import grouped
from steerbench.report.small_svg import CLASSES, smaller

RESULTS = Path(__file__).parents[2] / "results"


def sampled(text: str, prompts: int = N, seeds: int = 2) -> list[Record]:
    found = [make(m, seed, texts=[text] * N, seeds=list(range(seeds))) for m in ("unsteered", "caa") for seed in (0, 1)]
    for record in found:
        record.examples["response"] = [f"{record.method} {record.seed} {i} {text}" for i in range(N)]
    return found


@pytest.mark.slow
def test_the_page_of_the_committed_records_is_below_its_bound(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    write_report([RESULTS], page, claims=RESULTS / "claims.toml")
    assert page.stat().st_size < 1_500_000
    text = page.read_text(encoding="utf-8")
    assert "of the first seed and sample of each method" in text
    assert "Generations of the other protocols are left out" in " ".join(text.split())
    assert "Verdicts on claims" in text


def test_small_studies_keep_all_generations() -> None:
    (found,) = generations(grouped(sampled("short")))
    assert [len(method["runs"]) for method in found["methods"]] == [2, 2]
    assert len(found["prompts"]) == N
    assert not found["first"]


def test_where_not_all_fit_the_first_run_of_each_method_is_there() -> None:
    (found,) = generations(grouped(sampled("x" * (ROOM // N // 3))))
    assert [len(method["runs"]) for method in found["methods"]] == [1, 1]
    assert found["first"]
    assert len(found["prompts"]) == N
    assert len(as_json(found)) <= ROOM


def test_where_one_run_does_not_fit_there_are_fewer_prompts_but_one_at_least() -> None:
    (found,) = generations(grouped(sampled("x" * (ROOM // N))))
    assert 1 <= len(found["prompts"]) < N
    assert len(as_json(found)) <= ROOM
    (only,) = generations(grouped(sampled("x" * ROOM)))
    assert len(only["prompts"]) == 1


def test_a_number_of_prompts_goes_before_the_room_and_for_all_protocols(tmp_path: Path) -> None:
    records = [*sampled("x" * ROOM), make("caa", max_new_tokens=9, seeds=[0, 1])]
    assert [len(found["prompts"]) for found in generations(grouped(records), 3)] == [3, 3]
    assert len(generations(grouped(records))) == 1
    write_report([write(records, tmp_path / "runs")], tmp_path / "report.html")
    told = " ".join(Page((tmp_path / "report.html").read_text(encoding="utf-8")).text.split())
    assert "Generations of the other protocols are left out of this file" in told
    assert "left out of this file" not in " ".join(Page(html(records, tmp_path / "all", n_examples=1)).text.split())


# the plots


def test_plots_refer_only_to_what_they_hold_and_name_nothing_else() -> None:
    (group,) = grouped(some())
    shown = [one.svg for one in scatters(group)]
    ids = [name for svg in shown for name in re.findall(r' id="([^"]*)"', svg)]
    assert len(set(ids)) == len(ids)
    for svg in shown:
        assert {*re.findall(r'(?:href="|url\()#([^")]+)', svg)} == {*re.findall(r' id="([^"]*)"', svg)}
        assert "<title>" in svg
        assert "clip-path" not in svg
        assert svg.count("<g") == svg.count("</g>")


def test_coordinates_are_rounded_and_values_are_not() -> None:
    path = '<path d="M 1.2345 2 \nL 3 4.56 \n" style="stroke-width: 0.45"/>'
    expected = '<svg><path d="M1.2 2L3 4.6" style="stroke-width:0.45"/><text>1.2345</text></svg>'
    assert smaller(f'<svg><g id="a">{path}</g><text>1.2345</text></svg>') == expected


def test_the_style_sheet_has_each_class_of_the_plots() -> None:
    style = files("steerbench.report").joinpath("style.css").read_text(encoding="utf-8")
    for styles, name in CLASSES.items():
        assert re.search(rf"\.{name}\b", style), name
        assert all(rule.split(":")[1] in style for rule in styles.split(";") if "var(" in rule)


def test_the_committed_styles_are_those_that_matplotlib_writes() -> None:
    (group,) = grouped(some())
    drawn = "".join(one.svg for one in scatters(group))
    assert {"pg", "pi", "pa", "pk", "px", "py"} <= {*re.findall(r' class="(\w+)"', drawn)}
