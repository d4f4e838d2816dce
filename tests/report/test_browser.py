"""The page in a real browser, without a network: Debian's chromium, driven by playwright (pip install -e ".[browser]")."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bigtrain.report.page import report
from tests.report.report_runs import RECIPE, evaluation, make_run, picture, row, warning
from tests.report.test_page import HOSTILE

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason='needs playwright: pip install -e ".[browser]"')
if CHROMIUM is None:
    pytest.skip("needs chromium, such as Debian's: apt-get install chromium", allow_module_level=True)

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens the page of runs from the disk, with the network off. Afterwards: nothing was asked for but the file, and nothing
    was said on the console, which is where a violated policy and an error of a script are said."""
    said: list[str] = []
    asked: list[str] = []
    contexts = []

    def open_(*runs: Path, width: int = 1280, scheme: str = "light", before: str = "", slowness: int = 1) -> Any:
        path = tmp_path / "report.html"
        path.write_text(report(runs))
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": slowness})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(f"a dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.add_init_script(
            "window.shifts = []; new PerformanceObserver((list) => shifts.push(...list.getEntries().map((one) => one.value)))"
            f".observe({{type: 'layout-shift', buffered: true}}); {before}"
        )
        page.goto(path.as_uri())
        page.wait_for_function(
            "document.querySelectorAll('.plot canvas').length >= document.querySelectorAll('.plot').length"
        )
        return page

    yield open_
    for context in contexts:
        context.close()
    assert said == []
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    rows = [*(row(step, **{"lr/vae": 0.01 / step}) for step in range(1, 61)), warning(20, "a jump")]
    pictures = {f"samples/step_{step:08d}.png": picture(step) for step in range(10, 70, 10)}
    environment = {"versions": {}, "starts": [{"step": 0, "when": ""}, {"step": 30, "when": "2026-11-29 09:00 UTC"}]}
    return make_run(tmp_path / "small", rows=rows, pictures=pictures, environment=environment)


def ink_of(page: Any, chart: int) -> list[list[int]]:
    """The colours of a chart's canvas that are not its background's."""
    found: list[list[int]] = page.evaluate(
        """(chart) => {
          const canvas = document.querySelectorAll(".plot canvas")[chart];
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          const colours = new Map();
          for (let at = 0; at < data.length; at += 4)
            if (data[at + 3] === 255) colours.set(data.slice(at, at + 3).join(), [...data.slice(at, at + 3)]);
          return [...colours.values()];
        }""",
        chart,
    )
    return found


def test_curves_are_drawn_and_nothing_moves_while_the_page_opens(opened: Open, run: Path) -> None:
    page = opened(run, slowness=40)  # slow enough to paint the page before all of it is parsed, if it were allowed to
    assert [43, 92, 138] in ink_of(page, 0)  # --c0
    assert sum(page.evaluate("shifts")) == 0


def test_the_slider_shows_the_picture_of_its_step(opened: Open, run: Path) -> None:
    page = opened(run)
    slider, image, shown = page.locator(".slider input"), page.locator(".stage img"), page.locator(".step-shown")
    assert shown.inner_text() == "step 60"
    newest = image.get_attribute("src")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert shown.inner_text() == "step 50"
    assert image.get_attribute("src") != newest
    page.keyboard.press("Home")
    assert shown.inner_text() == "step 10"
    page.locator(".next").click()
    assert shown.inner_text() == "step 20"
    page.locator(".sheet button").last.click()
    assert shown.inner_text() == "step 60"
    assert image.get_attribute("src") == newest
    assert sum(page.evaluate("shifts")) == 0


def test_dark_follows_the_system_and_the_switch(opened: Open, run: Path) -> None:
    def paper(page: Any) -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    page = opened(run, scheme="dark")
    dark = paper(page)
    assert [121, 171, 220] in ink_of(page, 0)
    page.locator("[name=theme][value=light]").check(force=True)
    light = paper(page)
    assert light != dark
    assert [43, 92, 138] in ink_of(page, 0)
    page.locator("[name=theme][value=auto]").check(force=True)
    assert paper(page) == dark
    page.emulate_media(color_scheme="light")
    assert paper(page) == light
    page.wait_for_function("!document.querySelector('[data-theme=dark]')")
    assert [43, 92, 138] in ink_of(page, 0)


def test_the_pointer_and_the_arrow_keys_read_values_off_a_curve(opened: Open, run: Path) -> None:
    page = opened(run)
    plot, at, value = page.locator(".plot").first, page.locator(".chart-at").first, page.locator(".value").first
    assert (at.inner_text(), value.inner_text()) == ("last", "0.08197")
    plot.focus()
    page.keyboard.press("Home")
    assert (at.inner_text(), value.inner_text()) == ("step 1", "2.5")
    page.keyboard.press("ArrowRight")
    assert (at.inner_text(), value.inner_text()) == ("step 2", "1.667")
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 17, box["y"] + 60)
    assert at.inner_text() == "step 60"


def test_scale_axis_and_smoothing_change_what_is_drawn(opened: Open, run: Path) -> None:
    page = opened(run)

    def drawn() -> str:
        return str(page.evaluate("document.querySelector('.plot canvas').toDataURL()"))

    seen = [drawn()]
    for name, value in (("scale", "log"), ("axis", "wall")):
        page.locator(f"[name={name}][value={value}]").check(force=True)
        seen.append(drawn())
    page.locator("[name=smoothing]").focus()
    page.keyboard.press("End")
    seen.append(drawn())
    assert len(set(seen)) == len(seen)


def test_a_drag_enlarges_and_the_key_0_shows_all(opened: Open, run: Path) -> None:
    page = opened(run)
    plot = page.locator(".plot").first
    plot.scroll_into_view_if_needed()
    whole = page.evaluate("document.querySelector('.plot canvas').toDataURL()")
    box = plot.bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 180, box["y"] + 60, steps=5)
    page.mouse.up()
    assert page.evaluate("document.querySelector('.plot canvas').toDataURL()") != whole
    plot.focus()
    page.keyboard.press("0")
    assert page.evaluate("document.querySelector('.plot canvas').toDataURL()") == whole


def test_a_single_row_that_stands_out_of_many_is_drawn_to_its_height(opened: Open, tmp_path: Path) -> None:
    rows = [{"step": step, "loss/vae": 100.0 if step == 4321 else 1.0 + step % 2} for step in range(20_000)]
    page = opened(make_run(tmp_path / "small", rows=rows))
    top = page.evaluate(
        """() => {
          const canvas = document.querySelector(".plot canvas"), context = canvas.getContext("2d");
          const { data, width } = context.getImageData(60, 0, canvas.width - 60, canvas.height);
          for (let at = 0; at < data.length; at += 4)
            if (data[at + 3] > 40 && data[at + 2] - data[at] > 60) return Math.floor(at / 4 / width);
        }"""
    )
    assert top < 25  # of 172 pixels
    page.locator(".plot").first.focus()
    page.keyboard.press("End")
    assert page.locator(".value").first.inner_text().endswith(" (1 to 2)")


def test_runs_are_hidden_by_their_switch_and_share_a_slider(opened: Open, run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", recipe=RECIPE | {"train": {"steps": 80}})
    page = opened(run, other)
    assert [192, 86, 27] in ink_of(page, 0)  # --c1
    page.locator(".shows-run").nth(1).uncheck()
    assert [192, 86, 27] not in ink_of(page, 0)
    page.locator(".slider input").focus()
    page.keyboard.press("Home")
    assert page.locator(".shown-step").all_inner_texts() == ["step 10", "step 20"]


@pytest.mark.parametrize("width", [400, 1280])
def test_a_page_is_as_wide_as_the_window(width: int, opened: Open, run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / ("other_" * 20), evaluations={1: evaluation(1, 0.5, **{"key_" * 40: "value_" * 60})})
    page = opened(run, other, width=width)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_keyboard_reaches_every_control_and_shows_where_it_is(opened: Open, run: Path) -> None:
    page = opened(run)
    wanted = page.evaluate(
        "document.querySelectorAll('a, button:not(.sheet button):enabled, summary, .plot, .scroll').length"
    )
    reached = set()
    for _ in range(wanted + 30):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            """() => {
              const one = document.activeElement, label = one.type === "radio" ? one.nextElementSibling : one;
              if (!one.dataset.n) document.querySelectorAll("*").forEach((each, n) => { each.dataset.n = n; });
              return [one.dataset.n, one.tagName, getComputedStyle(label).outlineStyle, one.className];
            }"""
        )
        if focused[1] == "BODY":
            break
        assert focused[2] != "none", focused
        reached.add(focused[0])
    names = "a, button:not(.sheet button):enabled, summary, .plot, .scroll, input[type=range]"
    missing = page.evaluate(
        "([names, reached]) => [...document.querySelectorAll(names)].filter((e) => !reached.includes(e.dataset.n))"
        ".map((e) => e.outerHTML.slice(0, 200))",
        [names, sorted(reached)],
    )
    assert missing == []


def test_hostile_text_runs_nothing(opened: Open, run: Path, tmp_path: Path) -> None:
    """Nor would it if it were not escaped: an element that is put into the page is stopped by its policy."""
    name = HOSTILE.replace("/", "_")
    rows = [row(step, **{HOSTILE: float(step)}) for step in (1, 2)]
    hostile = make_run(tmp_path / name, rows=[*rows, warning(1, HOSTILE)], environment={HOSTILE: HOSTILE})
    page = opened(hostile, run, before="window.ran = 0; window.alert = () => { ran += 1; };")
    assert page.evaluate("ran") == 0
    assert page.evaluate("document.querySelectorAll('script').length") == 3
    assert page.title().startswith(name[:20])


def test_the_policy_stops_scripts_that_are_not_the_pages(browser: Any, run: Path, tmp_path: Path) -> None:
    broken = report([run]).replace(
        "<main>",
        "<main><script>window.ran = 1</script><img src=x onerror='window.ran = 2'><p onclick='ran = 3' id=p>p</p>",
    )
    (tmp_path / "report.html").write_text(broken)
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto((tmp_path / "report.html").as_uri())
    page.locator("#p").click()
    assert page.evaluate("window.ran") is None
    assert len([text for text in said if "Content Security Policy" in text]) >= 3
    page.close()


def test_a_page_without_rows_and_pictures_opens(opened: Open, tmp_path: Path) -> None:
    page = opened(make_run(tmp_path / "small", rows=[], pictures={}, evaluations={}))
    assert page.locator("main").inner_text().count("There is nothing to draw.") == 1
