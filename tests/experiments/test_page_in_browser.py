"""The page of a report in a real browser: how it looks, and what it does.

Screenshots of every page, as wide as a laptop and a phone, light and dark, are left in
the folder that pytest gives the test, which ``--basetemp`` chooses.
"""

import io
import pathlib
import shutil

import pytest
from rich.console import Console
from stored_runs import cost_of, example, store_run

from experiments import bench, report

RESULTS = pathlib.Path(__file__).parents[2] / "experiments/results"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LAPTOP, PHONE = 1400, 400
COMMITTED = sorted(RESULTS.glob("**/report/report.html"))

pytestmark = pytest.mark.slow

# How far the page, and each part that may scroll by itself, is wider than its room.
OVERFLOW = """() => {
  const beyond = (e) => e.scrollWidth - e.clientWidth;
  return {
    page: beyond(document.documentElement),
    parts: [...document.querySelectorAll(".wide")].map(beyond),
  };
}"""
COLUMN = """(column) => [...document.querySelector("table").tBodies[0].rows]
  .map((row) => row.cells[column].textContent)"""


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright, which drives a browser, is missing"
    )
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_api.sync_playwright() as playwright:
        try:  # a root user has no sandbox; pages are our own
            started = playwright.chromium.launch(
                executable_path=found, args=["--no-sandbox"]
            )
        except sync_api.Error as error:
            if found:
                raise
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        yield started
        started.close()


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A page of many methods, long labels, a seed that is lost and a measurement."""
    folder = tmp_path_factory.mktemp("fresh")
    _, initial = example()
    for n, name in enumerate(("lamaml", "cmaml", "er", "derpp", "gem", "online")):
        accuracy, _ = example(0.5 + 0.03 * n)
        cost = cost_of(5.0 * (n + 1), 1000)
        store_run(folder / "runs" / name, name, accuracy, initial, cost=cost)
    variant = {"glances": 3, "learning_rate": 0.125, "lost": [1]}
    store_run(folder / "runs/variant", "er", **variant)
    rows = [
        {"devices": d, "seeds": s, "meta_updates_per_s": 100.0 * d + s}
        for d, s in [(1, 1), (1, 5), (2, 5)]
    ]
    record = bench.Record({"device": "cpu"}, [bench.Result("Seeds", rows)])
    bench.write(folder / "bench.json", {"scaling": record})
    made = report.make_report(
        [folder / "runs"],
        folder / "out",
        benches=[folder / "bench.json"],
        console=Console(file=io.StringIO()),
    )
    return made.page


def opened(browser, path, width, scheme="light"):
    """Opens a page; returns it, and what goes wrong or is fetched from then on."""
    page = browser.new_page(
        viewport={"width": width, "height": 900}, color_scheme=scheme
    )
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text))
    page.on(
        "request",
        lambda asked: (
            asked.url.startswith(("file:", "data:")) or wrong.append(asked.url)
        ),
    )
    page.goto(path.as_uri())
    return page, wrong


def check_page(browser, path, width, scheme, shots):
    page, wrong = opened(browser, path, width, scheme)
    page.evaluate("for (const image of document.images) image.loading = 'eager'")
    page.wait_for_function("[...document.images].every((image) => image.complete)")
    page.screenshot(path=shots / f"top-{width}-{scheme}.png")
    page.screenshot(path=shots / f"whole-{width}-{scheme}.png", full_page=True)
    beyond = page.evaluate(OVERFLOW)
    assert beyond["page"] == 0, "the page scrolls sideways"
    if width == LAPTOP:
        assert not any(beyond["parts"]), "a table or figure does not fit a laptop"
    else:
        assert any(beyond["parts"]), "on a phone, tables scroll by themselves"
    assert page.evaluate("[...document.images].every((image) => image.naturalWidth)")
    assert not wrong
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [LAPTOP, PHONE])
def test_a_page_fits_and_runs_without_an_error(browser, fresh, tmp_path, width, scheme):
    check_page(browser, fresh, width, scheme, tmp_path)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [LAPTOP, PHONE])
@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parts[-3])
def test_committed_pages_fit_and_run_without_an_error(
    browser, path, tmp_path, width, scheme
):
    check_page(browser, path, width, scheme, tmp_path)


def test_a_heading_sorts_its_table_and_back(browser, fresh):
    page, wrong = opened(browser, fresh, LAPTOP)
    heading = page.locator("table").first.locator("thead th").nth(1)
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    values = [float(text.split()[0]) for text in page.evaluate(COLUMN, 1)]
    assert values == sorted(values, reverse=True) and len(set(values)) > 3
    heading.locator("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    again = [float(text.split()[0]) for text in page.evaluate(COLUMN, 1)]
    assert again == sorted(values)
    name = page.locator("table").first.locator("thead th").first
    name.locator("button").click()
    methods = page.evaluate(COLUMN, 0)
    assert methods == sorted(methods, key=str.lower)
    assert not wrong
    page.close()


def test_the_contents_stay_in_sight_and_lead_to_their_sections(browser, fresh):
    for width in (LAPTOP, PHONE):
        page, _ = opened(browser, fresh, width)
        page.locator("nav a", has_text="Runs").click()
        page.wait_for_timeout(200)
        heading = page.locator("h2", has_text="Runs").bounding_box()
        contents = page.locator("nav").bounding_box()
        assert 0 <= heading["y"] < 900
        marked = page.locator("nav [aria-current]")
        assert marked.count() == 1 and marked.inner_text() == "Runs"
        assert abs(contents["y"]) < 1  # pixels; browsers round where they scroll to
        page.close()
