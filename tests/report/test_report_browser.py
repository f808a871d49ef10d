"""The report in a real browser: it opens from a file, sorts, filters, fetches nothing, and fits a phone."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from report_pages import HOSTILE, N, make, write

from steerbench import Record
from steerbench.report import write_report

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver on the PATH")


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for option in (*OPTIONS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


def records() -> list[Record]:
    """Return records of two tasks; in the second, with samples and hostile texts."""
    texts = [f"{'crumbly' if i == 3 else 'plain'} loaf {i}" for i in range(N)]
    names = ["caa:layer=1:pool=last_response:a_long_name_that_needs_room=true", "iti"]
    first = [make("unsteered"), *(make(name, lift=1.0 - 2 * i, texts=texts) for i, name in enumerate(names))]
    second = [
        make(m, seed, texts=[HOSTILE] * N, task="shp", seeds=[0, 1]) for m in ("unsteered", "caa") for seed in (0, 1)
    ]
    return [*first, *second]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    write_report([write(records(), folder / "runs")], folder / "report.html")
    return (folder / "report.html").as_uri()


@pytest.fixture
def page(chrome: Any, report: str) -> Any:
    """The report, freshly opened in a window as wide as a desk's."""
    size(chrome, 1280)
    chrome.get_log("browser"), chrome.get_log("performance")  # forget those of the test before
    chrome.get(report)
    return chrome


def size(chrome: Any, width: int) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def texts(page: Any, selector: str) -> list[str]:
    return [element.text for element in page.find_elements(By.CSS_SELECTOR, selector)]


def choose(page: Any, name: str, value: str) -> None:
    Select(page.find_element(By.ID, name)).select_by_visible_text(value)


def boxes(page: Any) -> list[Any]:
    return list(page.find_elements(By.CSS_SELECTOR, "#b-methods input"))


def test_it_opens_without_a_complaint_and_asks_for_nothing(page: Any) -> None:
    assert page.title == "steerbench report"
    assert page.get_log("browser") == []
    sent = [
        entry["message"] for entry in page.get_log("performance") if "Network.requestWillBeSent" in entry["message"]
    ]
    assert len(sent) == 1
    assert "report.html" in sent[0]
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_the_policy_stops_whatever_would_be_fetched_or_run(page: Any) -> None:
    script = """
        const done = arguments[arguments.length - 1];
        const blocked = [];
        document.addEventListener("securitypolicyviolation", (event) => blocked.push(event.effectiveDirective));
        const image = new Image();
        image.src = "https://example.org/x.png";
        const inline = document.createElement("script");
        inline.textContent = "window.ran = true";
        document.body.append(image, inline);
        fetch("https://example.org/").catch(() => setTimeout(() => done([blocked.sort(), window.ran ?? false]), 100));
    """
    assert page.execute_async_script(script) == [["connect-src", "img-src", "script-src-elem"], False]


def test_a_click_on_a_head_sorts(page: Any) -> None:
    page.find_element(By.CSS_SELECTOR, "#answer details summary").click()
    table = page.find_element(By.CSS_SELECTOR, "table.ranking")
    heads = table.find_elements(By.CSS_SELECTOR, "thead th")
    at = next(i for i, head in enumerate(heads) if head.text.startswith("gold gain"))

    def column() -> list[str]:
        script = "return [...arguments[0].tBodies[0].rows].map((row) => row.cells[arguments[1]].dataset.sort)"
        return list(page.execute_script(script, table, at))

    before = [float(value) for value in column() if value]
    button = heads[at].find_element(By.TAG_NAME, "button")
    button.click()
    assert heads[at].get_attribute("aria-sort") == "descending"
    assert [float(value) for value in column()[:-1]] == sorted(before, reverse=True)
    button.send_keys(Keys.ENTER)
    assert heads[at].get_attribute("aria-sort") == "ascending"
    assert [float(value) for value in column()[:-1]] == sorted(before)
    assert not column()[-1]  # what is missing stays last


def test_methods_are_chosen_and_stand_side_by_side(page: Any) -> None:
    choose(page, "b-group", "testbed-shp")
    assert [len(texts(page, ".example")), len(texts(page, ".example:first-of-type .answer"))] == [N, 2]
    for box in boxes(page):
        if not box.is_selected():
            box.click()
    assert len(texts(page, ".example:first-of-type .answer")) == 3
    lefts = {e.rect["x"] for e in page.find_elements(By.CSS_SELECTOR, ".example:first-of-type .answer")}
    assert len(lefts) == 3
    scores = texts(page, ".example:first-of-type .scores")
    assert scores[0].startswith("reward ")
    assert all("held-out" in score and "gold" in score for score in scores)


def test_search_finds_a_text_and_marks_it(page: Any) -> None:
    choose(page, "b-group", "testbed-shp")
    page.find_element(By.ID, "b-search").send_keys("CRUMBLY")
    assert texts(page, ".example h3") == ["prompt 4"]
    assert set(texts(page, ".example mark")) == {"crumbly"}
    assert texts(page, "#b-count") == ["1 of 1 matching prompts, out of 8."]


def test_prompts_are_filtered_by_where_the_reward_went(page: Any) -> None:
    choose(page, "b-group", "testbed-shp")
    for box in boxes(page):
        if not box.is_selected():
            box.click()
    up, down = (name for name in texts(page, "#b-of option") if "shown" not in name)
    assert "iti" in down
    for change, method, expected in (
        ("where the reward rose", up, N),
        ("where the reward fell", up, 0),
        ("where the reward fell", down, N),
        ("where the reward rose", "any shown method", N),
    ):
        choose(page, "b-change", change)
        choose(page, "b-of", method)
        assert len(texts(page, ".example")) == expected, (change, method)


def test_a_seed_is_chosen(page: Any) -> None:
    choose(page, "b-group", "shp")
    first = texts(page, ".example:first-of-type .scores")
    choose(page, "b-seed", "1")
    assert texts(page, ".example:first-of-type .scores") != first
    assert not page.find_element(By.ID, "b-sample").is_displayed()  # there is one alone


def test_hostile_texts_are_shown_as_texts(page: Any) -> None:
    choose(page, "b-group", "shp")
    shown = texts(page, ".answer .text")[0]
    assert shown == HOSTILE.replace("\u202e", "U+202E").replace("\u2028", "U+2028")
    assert page.execute_script("return document.images.length") == 0
    assert page.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(page: Any, scheme: str) -> None:
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    size(page, 360)
    page.refresh()
    for details in page.find_elements(By.CSS_SELECTOR, "details"):
        page.execute_script("arguments[0].open = true", details)
    assert page.execute_script("return document.scrollingElement.scrollWidth") <= 360
    background = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (int(background.split("(")[1].split(",")[0]) > 128) == (scheme == "light")


@pytest.mark.slow
def test_it_is_readable_without_javascript(page: Any, report: str) -> None:
    page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page.get(report)
        shown = page.find_element(By.TAG_NAME, "body").text
    finally:
        page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert "This part needs JavaScript" in shown
    assert "Show more" not in shown
    assert "unsteered" in shown


MANY = 40


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of forty methods, one of them with one seed, another with a very long name."""
    folder = tmp_path_factory.mktemp("large")
    names = [f"method_{i}:layer=12:pool=last_response" for i in range(MANY - 2)]
    lifts = {name: 1.0 - i / 20 for i, name in enumerate(names)} | {"a" * 90: 0.5}
    found = [make(m, s, lift, seeds=[0, 1]) for m, lift in {"unsteered": 0.0, **lifts}.items() for s in (0, 1)]
    alone = replace(make("caa", seeds=[0, 1]), report={"seeded": True})
    write_report([write([*found, alone], folder / "runs")], folder / "report.html")
    return (folder / "report.html").as_uri()


def opened(chrome: Any, url: str, width: int, scheme: str) -> Any:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size(chrome, width)
    chrome.get(url)
    return chrome


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 700, 1280])
def test_forty_methods_fit_any_width(chrome: Any, large: str, width: int, scheme: str) -> None:
    page = opened(chrome, large, width, scheme)
    assert page.execute_script("return document.scrollingElement.scrollWidth") <= width
    beyond = """
        const inside = (box) => box.left >= 0 && box.right <= arguments[0] && box.width > 0 && box.height > 0;
        const parts = [...document.querySelectorAll(".dots tbody > tr > *, .said li, .legend-line > *")];
        return parts.filter((part) => !inside(part.getBoundingClientRect())).length;
    """
    assert page.execute_script(beyond, width) == 0
    assert len(texts(page, ".dots tbody tr")) == MANY
    assert {text.split()[-1] for text in texts(page, ".dots .sure")} <= {"better", "worse", "sure", "seed"}
    first = page.execute_script("return document.querySelector('.said li').getBoundingClientRect().bottom")
    assert first < 800  # the answer is on the first screen


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_marks_can_be_told_from_the_card_and_by_their_shape(chrome: Any, large: str, scheme: str) -> None:
    page = opened(chrome, large, 1280, scheme)
    script = """
        const marks = [...document.querySelectorAll(".dots .axis use:last-child")];
        const ground = getComputedStyle(document.querySelector("#answer")).backgroundColor;
        return [ground, marks.map((mark) => [mark.getAttribute("href"), getComputedStyle(mark).fill,
          getComputedStyle(mark).stroke, mark.getBoundingClientRect().width])];
    """
    ground, marks = page.execute_script(script)
    assert len({mark[0] for mark in marks}) > 1
    assert all(ground != (fill if stroke == "none" else stroke) and width > 5 for _, fill, stroke, width in marks)


def test_the_answer_is_reached_by_keyboard_and_named_for_a_reader(chrome: Any, large: str) -> None:
    page = opened(chrome, large, 1280, "light")
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    assert page.switch_to.active_element.text == "Skip to the results"
    stops = []
    for _ in range(40):
        page.switch_to.active_element.send_keys(Keys.TAB)
        stops.append(page.switch_to.active_element.text)
        if stops[-1].startswith("Ranking"):
            break
    page.switch_to.active_element.send_keys(Keys.ENTER)
    assert page.find_element(By.CSS_SELECTOR, "#answer table.ranking").is_displayed()
    roles = page.execute_script("return [...document.querySelectorAll('.dots tr:nth-child(2) > *')].map((c) => c.role)")
    assert roles == ["rowheader", *["cell"] * 7]
    for width in (360, 1280):  # a row is still a row where it is laid out otherwise
        size(page, width)
        assert page.find_element(By.CSS_SELECTOR, ".dots").aria_role == "table"


def test_paper_has_no_controls_and_no_generations(page: Any) -> None:
    hidden = ("nav", ".skip", "#generations", "#browser")
    displayed = "return arguments[0].map(s => getComputedStyle(document.querySelector(s)).display)"
    on_screen = page.execute_script(displayed, list(hidden))
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert set(page.execute_script(displayed, list(hidden))) == {"none"}
        assert page.execute_script(displayed, ["#answer", "table"]) == ["block", "table"]
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert "none" not in on_screen
