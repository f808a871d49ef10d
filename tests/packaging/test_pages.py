"""Pages for people lead where they say: links, headings, and files of this repository."""

import re
from pathlib import Path

import pytest

from steerbench import names

ROOT = Path(__file__).parents[2]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/README.md"))]
PAGES += sorted((ROOT / "docs").glob("*.md"))


def anchors(page: Path) -> set[str]:
    """Return what GitHub calls the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_are_named_are_there(page: Path) -> None:
    folders = r"(?:steerbench|methods|tasks|tests|docs|examples|results)/"
    for name in re.findall(rf"`({folders}[\w./]+\.(?:py|md|csv|svg|json))`", page.read_text(encoding="utf-8")):
        assert (ROOT / name).exists() or "my_" in name or name == "results/report.html", name


def test_the_page_of_methods_has_a_row_and_a_paragraph_for_each() -> None:
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    rows = {name for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    paragraphs = {
        name
        for start in re.findall(r"^(\*\*`.*)", page, re.MULTILINE)
        for name in re.findall(r"\*\*`(\w+)`\*\*", start)
    }
    shipped = {path.stem for path in (ROOT / "methods").glob("[!_]*.py")}
    assert shipped <= set(names("methods"))
    assert shipped == rows
    assert shipped - {"unsteered"} == paragraphs
