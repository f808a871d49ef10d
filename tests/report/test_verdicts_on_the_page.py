"""The page shows the verdicts on the claims of a file: what is said, what was measured, and what that decides."""

from collections.abc import Callable
from pathlib import Path

import pytest
from report_pages import HOSTILE, Page, make, write
from typer.testing import Result

from steerbench import SteerbenchError
from steerbench.report import write_report

Cli = Callable[..., Result]
CLAIMS = """
[[claim]]
claim = "CAA gains"
source = "a paper <b>"
study = "runs"
first = "caa"

[[claim]]
claim = "ITI gains"
source = "another paper"
study = "runs"
first = "iti"
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    write([make(m, s, seeds=[0, 1]) for m in ("unsteered", "caa") for s in (0, 1)], tmp_path / "runs")
    (tmp_path / "claims.toml").write_text(CLAIMS)
    return tmp_path


def test_verdicts_have_a_section_of_their_own(study: Path, cli: Cli) -> None:
    out = study / "report.html"
    done = cli("report", study / "runs", "--out", out, "--claims", study / "claims.toml")
    assert done.exit_code == 0, done.stderr
    page = Page(out.read_text(encoding="utf-8"))
    sections = [attrs.get("id") for tag, attrs in page.tags if tag == "section"]
    assert sections.index("verdicts") == sections.index("generations") - 1
    told = page.text.partition("Verdicts on claims")[2]
    for words in ("CAA gains", "holds", "a paper <b>", "reward of caa beside unsteered on testbed-shp, m", "8 × 2"):
        assert words in told
    assert told.index("ITI gains") < told.index("not measured")
    assert not any(tag == "b" and "paper" in str(attrs) for tag, attrs in page.tags)


def test_without_claims_there_is_no_such_section(study: Path) -> None:
    write_report([study / "runs"], study / "report.html")
    assert "Verdicts on claims" not in (study / "report.html").read_text(encoding="utf-8")


def test_a_claim_is_a_text(study: Path) -> None:
    (study / "claims.toml").write_text(CLAIMS.replace('"ITI gains"', f"'''{HOSTILE[:-2]}'''"))
    write_report([study / "runs"], study / "report.html", claims=study / "claims.toml")
    page = Page((study / "report.html").read_text(encoding="utf-8"))
    assert not any(tag == "img" for tag, _ in page.tags)
    assert HOSTILE[:-2] in page.text


def test_claims_that_cannot_be_read_are_a_mistake(study: Path) -> None:
    with pytest.raises(SteerbenchError, match=r"cannot read .*missing\.toml"):
        write_report([study / "runs"], study / "report.html", claims=study / "missing.toml")
