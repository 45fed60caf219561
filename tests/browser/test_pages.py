"""The pages in a real browser: Debian's Chromium, opening files from disk.

Skipped loudly where there is no chromium; `.ci/run` installs it.
"""

from html import unescape
from pathlib import Path

import pytest

from tests.children import smoke_run
from tests.stages.test_report import HOSTILE, make_facts
from tfigkd.report.charts import label
from tfigkd.report.run_page import page as run_page_of
from tfigkd.runtime.rows import read_rows
from tfigkd.study.page import page as study_page
from tfigkd.study.plan import read_study

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments" / "results"
# where each figure lies, the extent of its marks, lines, bars and cells, and what is written in it
MEASURE = """() => [...document.querySelectorAll('.plot')].map((plot) => {
    const drawing = plot.querySelector('svg.main-svg');
    const box = drawing.checkVisibility() ? drawing.getBoundingClientRect() : new DOMRect();
    const found = (what) => [...plot.querySelectorAll(what)];
    const boxes = (what) => found(what).map((one) => [one.textContent, one.getBoundingClientRect()]);
    return {
        name: plot.id, width: box.width, height: box.height, span: [box.left, box.right],
        marks: boxes('.point, .point path, .js-line, .hm image').map(([, one]) => one.width + one.height),
        texts: boxes('text').filter(([, one]) => one.width).map(([text, one]) => [text, one.left, one.right]),
    };
})"""
VIEWS = [(width, scheme) for width in (1440, 360) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def run_page(tmp_path_factory):
    """report.html of a small run of the command line."""
    return smoke_run(tmp_path_factory) / "runs/quickstart-smoke/0/report.html"


@pytest.fixture(scope="module")
def study_pages(tmp_path_factory):
    """Pages of the committed rows: a study that has begun, and one of which only the papers' runs are known."""
    folder, papers = tmp_path_factory.mktemp("studies"), read_rows(RESULTS / "papers.csv")
    for name in ("lowdata", "ablation"):
        text = study_page(read_study(name), read_rows(RESULTS / f"{name}.csv"), papers)
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(params=["run", "lowdata", "ablation"])
def path(request):
    if request.param == "run":
        return request.getfixturevalue("run_page")
    if request.param == "hostile":
        page = request.getfixturevalue("tmp_path") / "hostile.html"
        page.write_text(run_page_of(make_facts()), encoding="utf-8")
        return page
    return request.getfixturevalue("study_pages") / f"{request.param}.html"


@pytest.fixture
def visit(browser, path):
    """Opens the page at a width in a color scheme; closing, it checks what the page has said and asked for."""
    opened = []

    def visit(width, scheme, **options):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, **options)
        page, said, asked = context.new_page(), [], []
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}") or dialog.dismiss())
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        opened.append((context, said, asked))
        page.goto(path.as_uri())
        # the policy forbids wait_for_function, which evaluates text again at each poll
        page.locator("html[data-drawn]").wait_for()
        assert page.evaluate("document.documentElement.dataset.drawn") == "yes", said
        return page

    yield visit
    for context, said, asked in opened:
        context.close()
        assert said == []
        assert asked[0] == path.as_uri()
        assert all(url.startswith(("data:", "blob:")) for url in asked[1:]), asked


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_every_figure_is_seen_at_every_width_in_both_schemes(visit, width, scheme):
    page = visit(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    figures = page.evaluate(MEASURE)
    assert figures
    for figure in figures:
        name, (left, right) = figure["name"], figure["span"]
        assert figure["width"] > 200 and figure["height"] > 100, name
        assert left >= 0 and right <= width, name
        assert max(figure["marks"], default=0) > 1, f"{name}: no mark is to be seen"
        for text, start, end in figure["texts"]:
            assert left - 2 < start and end < right + 2, f"{name}: {text} is cut off"
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = max(int(part) for part in back[4:-1].split(",")) < 100
    assert dark == (scheme == "dark")
    ink = page.locator(".plot .xtick text").first.evaluate("one => getComputedStyle(one).fill")
    assert (min(int(part) for part in ink[4:-1].split(",")) > 120) == (scheme == "dark")


def test_figures_follow_a_change_of_the_color_scheme(visit):
    from playwright.sync_api import expect

    page = visit(1440, "light")
    tick = page.locator(".plot .xtick text").first
    before = tick.evaluate("one => getComputedStyle(one).fill")
    page.emulate_media(color_scheme="dark")
    expect(tick).not_to_have_css("fill", before)


@pytest.mark.parametrize("width", [1440, 360])
def test_the_keyboard_reaches_everything(visit, width):
    page = visit(width, "light")
    wanted = page.evaluate(
        """() => {
            const found = [...document.querySelectorAll('a[href], button, summary, [tabindex="0"]')]
                .filter((one) => one.checkVisibility({ visibilityProperty: true }));
            found.forEach((one, index) => (one.dataset.number = index));
            return found.length;
        }"""
    )
    reached = set()
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.dataset.number"))
    assert reached >= {str(number) for number in range(wanted)}
    summary = page.locator("summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator("details").first.get_attribute("open") is not None
    copy = page.locator("button.copy:visible").first
    copy.focus()
    page.keyboard.press("Enter")
    assert copy.text_content() == "Copied"
    # the figures' own buttons zoom
    button = page.locator('.plot .modebar-btn[aria-label="Zoom in"]').first
    ticks = page.locator(".plot").first.locator(".xtick text")
    before = ticks.all_text_contents()
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_timeout(500)
    assert ticks.all_text_contents() != before


def test_what_is_seen_has_words(visit):
    page = visit(1440, "light")
    for alternative, size in page.evaluate(
        "[...document.images].map((one) => [one.alt, one.getBoundingClientRect().width])"
    ):
        assert alternative and size > 20
    drawings = "[...document.querySelectorAll('.plot')].map((one) => [one, one.querySelector('svg.main-svg')])"
    named = page.evaluate(f"{drawings}.map(([plot, one]) => [plot.ariaLabel, one.role, one.ariaLabel])")
    for title, role, text in named:
        assert title and role == "img" and len(text) > 20
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button')].filter((one) => !one.textContent.trim() && !one.ariaLabel).length"
    )
    assert unnamed == 0
    assert page.evaluate("document.querySelectorAll('h1').length") == 1
    assert page.evaluate("document.documentElement.lang") == "en"


def test_a_mouse_over_a_mark_shows_its_numbers(visit):
    from playwright.sync_api import expect

    page = visit(1440, "light")
    plot = page.locator(".plot").first
    plot.scroll_into_view_if_needed()
    mark = plot.locator(".point").last.bounding_box()
    page.mouse.move(mark["x"] + mark["width"] / 2, mark["y"] + mark["height"] / 2)
    expect(page.locator(".hoverlayer").first).to_contain_text("%")


def test_without_javascript_the_numbers_are_there(browser, path):
    context = browser.new_context(java_script_enabled=False, viewport={"width": 1440, "height": 800})
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("noscript, .missing").first.is_visible()
    assert page.locator("figure details table").count() == page.locator(".plot").count() > 0
    context.close()


@pytest.mark.parametrize("path", ["hostile"], indirect=True)
def test_names_that_are_markup_are_shown_and_never_run(visit):
    """No dialog, no image that fails to load, no message of the policy; and the figures write the names out."""
    page = visit(1440, "light")
    written = page.evaluate("[...document.querySelectorAll('#recalls .ytick text')].map((one) => one.textContent)")
    assert sorted(written) == sorted(unescape(label(name, 16)) for name in HOSTILE)
    assert page.locator(".plot script, .plot img").count() == 0
