"""A report in a real browser: nothing goes wrong or is loaded, and what a person does has an effect everywhere."""

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reporting.journals import Story

from ftae.reporting.document import report_of

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.faults,  # which run one at a time: without a graphics card a page takes a whole core
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium"),
]
PATIENCE = 600_000  # milliseconds: machines that run tests are busy


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a running search with pictures."""
    story = Story(tmp_path_factory.mktemp("browser") / "s")
    story.add("suggest", trial=0, params={}, kind="baseline")
    story.report(0, 0, 18.0, story.picture(0, 0))
    story.end(0, "finished")
    for number in range(1, 13):
        story.trial(number, "pruned" if number % 3 == 0 else "finished", **{"optimizer.lr": 10 ** (-1 - number / 5)})
    story.add("suggest", trial=13, params=story.params(), kind="sampled")
    for step in (30, 60, 90):
        story.report(13, step, 20 + step / 10, story.picture(13, step))
    story.end(13, "finished")
    path = story.folder / "report.html"
    path.write_bytes(report_of(story.write(), is_live=True))
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        options = ["--no-sandbox", "--enable-unsafe-swiftshader"]  # WebGL without a graphics card
        found = started.chromium.launch(executable_path=CHROMIUM, args=options)
        yield found
        found.close()


@pytest.fixture(scope="module")
def page(browser: Any, file: Path) -> Iterator[Any]:
    """The report, drawn; ``page.faults`` has what the browser complained of."""
    opened = browser.new_page(viewport={"width": 1200, "height": 900}, accept_downloads=True)
    opened.set_default_timeout(PATIENCE)
    opened.faults = []
    opened.on("console", lambda said: opened.faults.append(said.text) if said.type == "error" else None)
    opened.on("pageerror", lambda error: opened.faults.append(str(error)))
    opened.on("request", lambda request: opened.faults.append(request.url) if "://" in request.url[5:] else None)
    opened.goto(file.as_uri())
    opened.wait_for_selector("html[data-drawn]", timeout=PATIENCE)
    opened.faults = [fault for fault in opened.faults if fault != file.as_uri()]
    yield opened
    opened.close()


def column(page: Any, key: str) -> list[str]:
    script = """key => {
        const i = [...document.querySelectorAll('#board thead th')].findIndex(head => head.dataset.key === key);
        return [...document.querySelectorAll('#board tbody tr')].map(row => row.cells[i].textContent) }"""
    found: list[str] = page.evaluate(script, key)
    return found


def marked(page: Any, plot: str) -> int:
    """How many points of the selected trial a plot marks."""
    script = "name => document.getElementById(`plot-${name}`).data.at(-1).x.length"
    return int(page.evaluate(script, plot))


def test_nothing_is_wrong_and_nothing_is_loaded(page: Any) -> None:
    assert page.faults == []
    assert page.locator(".plot .main-svg").count() > 8


def test_a_click_on_a_head_sorts(page: Any) -> None:
    head = page.locator("#board th[data-key='params.optimizer.lr'] button")
    head.click()
    values = [float(text) for text in column(page, "params.optimizer.lr") if text]
    assert values == sorted(values)
    assert column(page, "params.optimizer.lr")[-1] == "", "the baseline has no value, and stands last"
    head.click()
    assert [float(text) for text in column(page, "params.optimizer.lr") if text] == values[::-1]
    head.click()
    assert column(page, "trial")[0] == page.evaluate(
        "JSON.parse(document.getElementById('data').textContent).rows[0][0]+''"
    )


def test_filters_leave_rows_out(page: Any) -> None:
    page.fill("#filter", "stopped lr < 0.01")
    assert set(column(page, "status")) == {"◇stopped"}
    assert all(float(text) < 0.01 for text in column(page, "params.optimizer.lr"))
    page.fill("#filter", "")
    page.click("#chips button:has-text('stopped')")
    assert "◇stopped" not in column(page, "status")
    page.click("#chips button:has-text('stopped')")
    assert len(column(page, "trial")) == 14


def test_a_row_selects_its_trial_in_every_plot(page: Any) -> None:
    page.focus("#board tr[data-trial='4']")
    page.keyboard.press("Enter")
    page.wait_for_function("document.getElementById('plot-curves').data.at(-1).x.length > 0")
    assert marked(page, "curves") == 10
    assert all(marked(page, name) > 0 for name in ("best-so-far", "slice-0", "trade-off-0", "timeline", "ranges"))
    assert page.evaluate("document.getElementById('plot-parallel').data[0].dimensions.at(-1).constraintrange") == [
        3.5,
        4.5,
    ]
    assert "trial 4" in page.inner_text("#card")
    page.keyboard.press("Escape")
    page.wait_for_function("document.getElementById('plot-curves').data.at(-1).x.length === 0")
    assert page.locator("#card").is_hidden()


def test_a_point_selects_its_trial_in_the_table(page: Any) -> None:
    point = page.locator("#plot-slice-0 .scatterlayer .points path").first
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#card:not([hidden])")
    page.mouse.down()
    page.mouse.up()
    page.wait_for_selector("#board tr[aria-selected=true]")
    number = page.get_attribute("#board tr[aria-selected=true]", "data-trial")
    assert f"trial {number}" in page.inner_text("#card")
    page.keyboard.press("Escape")


def test_sliders_change_the_pictures(page: Any) -> None:
    cell = "document.querySelector('#samples .sample .cell:nth-child(4) canvas').toDataURL()"
    before = page.evaluate(cell)
    assert page.locator("#samples .sample").count() == 12
    page.evaluate(
        "() => { const s = document.getElementById('look-step-b'); s.value = 0; s.dispatchEvent(new Event('input')) }"
    )
    page.wait_for_function(f"{cell} !== {before!r}")
    assert "step 30" in page.inner_text("#look-note")


def test_the_table_is_downloaded_as_csv(page: Any, tmp_path: Path) -> None:
    with page.expect_download() as download:
        page.click("#csv")
    download.value.save_as(tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 14
    assert {"trial", "val/psnr", "params.optimizer.lr", "params.max_grad_norm"} <= rows[0].keys()
    assert sorted(int(row["trial"]) for row in rows) == list(range(14))


def test_a_reload_keeps_place_selection_and_order(page: Any) -> None:
    page.click("#board th[data-key='trial'] button")
    page.click("#board tr[data-trial='5']")
    page.evaluate("scrollTo({top: 700, behavior: 'instant'})")
    page.wait_for_function("scrollY > 650")
    page.reload()
    page.wait_for_selector("html[data-drawn]", timeout=PATIENCE)
    page.wait_for_selector("#board tr[data-trial='5'][aria-selected=true]")
    assert column(page, "trial")[0] == "0"
    assert page.evaluate("scrollY") > 600


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(browser: Any, file: Path, scheme: str) -> None:
    phone = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    phone.set_default_timeout(PATIENCE)
    phone.goto(file.as_uri())
    phone.wait_for_selector("html[data-drawn]", timeout=PATIENCE)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 360
    phone.close()
