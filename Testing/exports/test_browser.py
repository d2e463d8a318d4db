"""The page in headless Chromium with software WebGL 2: it loads alone, goes where it is told, and answers to keys."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from VelvetMedLib import DRAFT_DISCLAIMER, RESEARCH_USE_ONLY
from VelvetMedLib.case import write_case
from VelvetMedLib.exports import niivue, review

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

# Software drawing on a busy machine is slow; nothing here depends on how slow.
PATIENCE_MS = 180_000
LIVER_RAS, NODULE_RAS = (28.0, -4.0, -12.0), (-30.0, 12.0, 20.0)
QUIET = ["--no-sandbox", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
SOFTWARE_WEBGL = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
CROSSHAIR = "(() => { const p = velvetmed.viewer.planes; return Array.from(p.frac2mm(p.scene.crosshairPos)).slice(0, 3); })()"
PAINTED = "label => velvetmed.viewer.planes.volumes.slice(1).reduce((n, v) => n + v.img.filter(x => x === label).length, 0)"


def until(page: Any, expression: str, *, seconds: float = 120.0) -> None:
    """Wait until a JavaScript expression is true. Playwright's own wait may call eval, which the page rightly forbids."""
    for _ in range(int(seconds * 10)):
        if page.evaluate(f"Boolean({expression})"):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"never true: {expression}")


@dataclass
class Opened:
    """A page that is ready, and everything it said or asked for on the way."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    first_crosshair: list[float] = field(default_factory=list)

    def crosshair(self) -> list[float]:
        return self.page.evaluate(CROSSHAIR)

    def settle(self) -> None:
        """Waits until what was asked for has been drawn."""
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def fresh(self) -> None:
        """Back to how a page looks when it opens, as far as one test can disturb another."""
        self.page.set_viewport_size({"width": 1440, "height": 900})
        self.page.keyboard.press("Escape")
        self.page.click("[data-layout=four]")
        self.page.click("[data-zoom=fit]")
        self.page.click("#tab-segments")
        self.page.click("[data-show=all]")
        self.page.click("#tab-report")
        self.settle()


def _open(browser: Any, path: Path, **options: Any) -> Opened:
    opened = Opened(browser.new_page(**options))
    opened.page.set_default_timeout(PATIENCE_MS)
    opened.page.on("console", lambda message: opened.complaints.append(f"{message.type}: {message.text}"))
    opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.page.on("dialog", lambda dialog: (opened.complaints.append("dialog"), dialog.dismiss()))
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.goto(path.as_uri())
    opened.page.wait_for_selector("html:not([data-state=loading])", state="attached")
    return opened


def _chromium(playwright: Any, *flags: str) -> Any:
    found = next(path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name)))
    return playwright.chromium.launch(executable_path=found, timeout=PATIENCE_MS, args=[*QUIET, *flags])


@pytest.fixture(scope="module")
def playwright() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def page_file(case_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if niivue.find() is None:
        pytest.skip("the NiiVue script is not installed (make setup fetches it with npm)")
    return review([case_folder], tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def browser(playwright: Any) -> Iterator[Any]:
    with _chromium(playwright, *SOFTWARE_WEBGL) as running:
        yield running


@pytest.fixture(scope="module")
def opened_once(browser: Any, page_file: Path) -> Opened:
    opened = _open(browser, page_file, viewport={"width": 1440, "height": 900})
    opened.first_crosshair = opened.crosshair()
    return opened


@pytest.fixture
def opened(opened_once: Opened) -> Opened:
    opened_once.fresh()
    return opened_once


def test_the_page_gets_ready_without_a_complaint_and_without_asking_for_anything(opened, page_file):
    assert opened.page.evaluate("document.documentElement.dataset.state") == "ready"
    assert opened.complaints == []
    assert opened.requests == [page_file.as_uri()]


def test_it_opens_at_the_present_finding(opened_once):
    assert opened_once.first_crosshair == pytest.approx(NODULE_RAS, abs=0.01)


@pytest.mark.parametrize(("text", "place"), [("No liver lesion.", LIVER_RAS), ("Nodule in the left lower lobe", NODULE_RAS)])
def test_a_click_on_a_sentence_moves_the_crosshair_to_its_millimetres(opened, text, place):
    opened.page.click(f"button.sentence:has-text('{text}')")
    assert opened.crosshair() == pytest.approx(place, abs=0.01)
    assert opened.page.get_attribute(f"button.sentence:has-text('{text}')", "aria-pressed") == "true"


def test_a_click_anywhere_on_a_findings_row_moves_the_crosshair(opened):
    opened.page.click("#tab-findings")
    opened.page.click("#findings tr:has-text('Liver lesion') td:nth-child(2)")
    assert opened.crosshair() == pytest.approx(LIVER_RAS, abs=0.01)
    opened.page.click("#findings button.name:has-text('Lung nodule')")
    assert opened.crosshair() == pytest.approx(NODULE_RAS, abs=0.01)


def test_segments_and_answers_lead_to_their_place_too(opened):
    opened.page.click("#tab-segments")
    opened.page.click("#segments button.name:has-text('Liver')")
    assert opened.crosshair() == pytest.approx(LIVER_RAS, abs=0.01)
    opened.page.click("#tab-answers")
    opened.page.click("#pane-answers [data-link]")
    assert opened.crosshair() == pytest.approx(NODULE_RAS, abs=0.01)


def test_the_status_line_names_place_density_and_segment_under_the_crosshair(opened):
    opened.page.click("button.sentence:has-text('No liver lesion.')")
    assert opened.page.inner_text("#status-place").split() == ["R", "28.0", "P", "4.0", "I", "12.0", "mm"]
    assert opened.page.inner_text("#status-segment") == "Liver"
    assert abs(int(re.match(r"(\d+) HU", opened.page.inner_text("#status-hu")).group(1)) - 60) <= 2


def test_the_chosen_place_is_framed_in_every_plane_and_let_go_with_escape(opened):
    opened.page.click("button.sentence:has-text('Nodule in')")
    opened.settle()
    assert opened.page.locator("#boxes rect").count() == 3
    opened.page.keyboard.press("Escape")
    assert opened.page.locator("#boxes rect").count() == 0
    assert opened.page.locator("[data-link][aria-pressed=true]").count() == 0


@pytest.mark.parametrize(
    ("across", "down", "axis", "sign"),
    [
        pytest.param(0.1, 0.25, 0, 1, id="left is right"),
        pytest.param(0.4, 0.25, 0, -1, id="right is left"),
        pytest.param(0.25, 0.12, 1, 1, id="up is anterior"),
        pytest.param(0.25, 0.38, 1, -1, id="down is posterior"),
        pytest.param(0.25, 0.62, 2, 1, id="up is superior"),
        pytest.param(0.25, 0.88, 2, -1, id="down is inferior"),
        pytest.param(0.65, 0.75, 1, 1, id="the nose points left"),
    ],
)
def test_the_planes_follow_the_radiological_convention(opened_once, across, down, axis, sign):
    assert opened_once.page.get_attribute("#stage", "data-layout") == "four"
    opened_once.page.evaluate("velvetmed.viewer.move([0, 0, 0])")
    box = opened_once.page.locator("#planes").bounding_box()
    opened_once.page.mouse.click(box["x"] + across * box["width"], box["y"] + down * box["height"])
    assert opened_once.crosshair()[axis] * sign > 8


def test_segments_can_be_switched_off_shown_alone_and_brought_back(opened):
    painted = lambda label: opened.page.evaluate(PAINTED, label)  # noqa: E731
    opened.page.click("#tab-segments")
    assert painted(4) > 100 and painted(101) > 20
    opened.page.click("input[data-label='4']")
    opened.settle()
    assert painted(4) == 0 and painted(101) > 20
    opened.page.click("[data-only='4']")
    opened.settle()
    assert painted(4) > 100 and painted(101) == 0
    opened.page.click("[data-show=none]")
    opened.settle()
    assert painted(4) == painted(101) == 0
    opened.page.click("[data-show=all]")
    opened.settle()
    assert painted(4) > 100 and painted(101) > 20


def _read_png(data: bytes) -> Any:
    """Red, green, blue from 0 to 255."""
    from matplotlib.image import imread

    return (imread(io.BytesIO(data), format="png")[..., :3] * 255).round().astype(int)


def _color_at(opened: Opened, x: float, y: float) -> list[int]:
    opened.settle()
    shot = _read_png(opened.page.screenshot(clip={"x": x - 2, "y": y - 2, "width": 4, "height": 4}))
    return [round(float(part)) for part in shot[1:3, 1:3].mean(axis=(0, 1))]


def test_a_segment_is_seen_in_its_colour_where_it_lies_and_leaves_grey_when_switched_off(opened):
    opened.page.evaluate(f"velvetmed.viewer.move([{LIVER_RAS[0]}, {LIVER_RAS[1]}, {LIVER_RAS[2]}])")
    box = opened.page.locator("#planes").bounding_box()
    # Beside the crosshair's lines but inside the liver, whose radius is 24 mm, in the axial view (160 mm wide, in the upper left).
    scale = min(box["width"], box["height"]) / 2 / 160
    x, y = box["x"] + box["width"] / 4 - (LIVER_RAS[0] + 13) * scale, box["y"] + box["height"] / 4 - (LIVER_RAS[1] + 13) * scale
    red, green, blue = _color_at(opened, x, y)
    assert red > green > blue and red - blue > 25
    opened.page.click("#tab-segments")
    opened.page.click("input[data-label='4']")
    red, green, blue = _color_at(opened, x, y)
    assert max(red, green, blue) - min(red, green, blue) <= 2
    assert red > 60


def test_three_dimensions_show_the_segments_and_can_show_the_scan(opened):
    shot = _read_png(opened.page.locator("#solid").screenshot())
    colors = {tuple(color) for color in shot[::12, ::12].reshape(-1, 3)}
    assert len(colors) > 20
    assert opened.page.evaluate("velvetmed.viewer.solid.volumes[0].colormapLabel !== null")
    opened.page.click("[data-solid=ct]")
    until(opened.page, "velvetmed.viewer.solid.volumes.length === 1 && !velvetmed.viewer.solid.volumes[0].colormapLabel")
    opened.page.click("[data-solid=segments]")
    until(opened.page, "velvetmed.viewer.solid.volumes.length === 1 && velvetmed.viewer.solid.volumes[0].colormapLabel")


def test_window_presets_work_by_mouse_and_by_digit_and_show_which_one_is_on(opened):
    window = "[velvetmed.viewer.planes.volumes[0].cal_min, velvetmed.viewer.planes.volumes[0].cal_max]"
    opened.page.click("#windows button:has-text('Lung')")
    assert opened.page.evaluate(window) == [-1350, 150]
    assert opened.page.inner_text("#windows [aria-pressed=true]") == "Lung"
    opened.page.keyboard.press("1")
    assert opened.page.evaluate(window) == [-160, 240]
    assert "W\u00a0400 L\u00a040" in opened.page.inner_text("#status-hu")


def test_the_overlay_slider_and_its_key_change_how_strongly_segments_show(opened):
    opened.page.locator("#overlay").fill("20")
    opened.settle()
    assert opened.page.evaluate("velvetmed.viewer.planes.volumes[2].opacity") == pytest.approx(0.2)
    opened.page.locator("#overlay").blur()
    opened.page.keyboard.press("o")
    opened.settle()
    assert opened.page.evaluate("velvetmed.viewer.planes.volumes[2].opacity") == 0
    opened.page.keyboard.press("o")
    opened.page.locator("#overlay").fill("60")
    opened.settle()
    assert opened.page.inner_text("#overlay-text") == "60%"


def test_outlines_can_be_shown_in_place_of_filled_segments(opened):
    opened.page.click("#tab-segments")
    opened.page.click("#outline")
    opened.settle()
    assert opened.page.evaluate("velvetmed.viewer.planes.volumes[1].opacity") == 0
    opened.page.click("#outline")
    opened.settle()
    assert opened.page.evaluate("velvetmed.viewer.planes.volumes[1].opacity") > 0.2


def test_sentences_are_reached_and_followed_with_the_keyboard_alone(opened):
    opened.page.focus("#tab-report")
    opened.page.keyboard.press("Tab")
    opened.page.keyboard.press("Tab")
    assert "Nodule in the left lower lobe" in opened.page.evaluate("document.activeElement.textContent")
    opened.page.keyboard.press("Enter")
    assert opened.crosshair() == pytest.approx(NODULE_RAS, abs=0.01)
    opened.page.keyboard.press("n")
    assert opened.crosshair() == pytest.approx(LIVER_RAS, abs=0.01)
    opened.page.keyboard.press("p")
    assert opened.crosshair() == pytest.approx(NODULE_RAS, abs=0.01)


def test_tabs_answer_to_arrow_keys_as_tabs_do(opened):
    opened.page.focus("#tab-report")
    opened.page.keyboard.press("ArrowRight")
    assert opened.page.evaluate("document.activeElement.id") == "tab-findings"
    assert opened.page.is_visible("#pane-findings") and not opened.page.is_visible("#pane-report")
    opened.page.keyboard.press("End")
    assert opened.page.is_visible("#pane-about")
    opened.page.keyboard.press("ArrowRight")
    assert opened.page.is_visible("#pane-report")


@pytest.mark.parametrize(("key", "axis", "sign"), [("ArrowLeft", 0, 1), ("ArrowUp", 1, 1), ("PageDown", 2, -1)])
def test_arrow_and_page_keys_step_the_crosshair_by_one_voxel_when_the_slices_have_the_focus(opened, key, axis, sign):
    opened.page.evaluate("velvetmed.viewer.move([0, 0, 0])")
    before = opened.crosshair()
    opened.page.focus("#planes")
    opened.page.keyboard.press(key)
    after = opened.crosshair()
    assert after[axis] - before[axis] == pytest.approx(sign * 4.0, abs=0.01)
    assert sum(abs(b - a) > 0.01 for a, b in zip(before, after, strict=True)) == 1


def test_keys_of_the_viewer_library_do_not_change_the_view_behind_the_pages_back(opened):
    opened.page.focus("#planes")
    for key in ("v", "c", "h", "m"):
        opened.page.keyboard.press(key)
    assert opened.page.get_attribute("#stage", "data-layout") == "four"
    assert opened.page.evaluate("velvetmed.viewer.planes.screenSlices.length") == 3


def test_a_view_is_enlarged_by_button_or_double_click_and_put_back(opened):
    opened.page.click("[data-expand=coronal]")
    assert opened.page.get_attribute("#stage", "data-layout") == "coronal"
    assert opened.page.evaluate("velvetmed.viewer.planes.screenSlices.map(s => s.axCorSag)") == [1]
    opened.page.locator("#planes").dblclick()
    assert opened.page.get_attribute("#stage", "data-layout") == "four"
    opened.page.locator("#solid").dblclick()
    assert opened.page.get_attribute("#stage", "data-layout") == "solid"


def test_zooming_keeps_the_crosshair_where_it_is_in_the_patient(opened):
    opened.page.click("button.sentence:has-text('No liver lesion.')")
    opened.page.click("[data-zoom=in]")
    opened.page.click("[data-zoom=in]")
    assert opened.crosshair() == pytest.approx(LIVER_RAS, abs=0.01)
    assert opened.page.evaluate("velvetmed.viewer.planes.scene.pan2Dxyzmm[3]") == pytest.approx(1.96)


def test_findings_can_be_sorted_and_filtered_by_state(opened):
    names = lambda: opened.page.locator("#findings tbody tr:visible .name").all_inner_texts()  # noqa: E731
    opened.page.click("#tab-findings")
    opened.page.click("#findings .c-probability button")
    assert names() == ["Lung nodule", "Emphysema", "Liver lesion", "Splenomegaly"]
    opened.page.click("#findings .c-name button")
    assert names() == ["Emphysema", "Liver lesion", "Lung nodule", "Splenomegaly"]
    assert opened.page.get_attribute("#findings .c-name", "aria-sort") == "ascending"
    opened.page.click("[data-filter=not_assessed]")
    assert names() == ["Splenomegaly"]
    opened.page.click("#filter-note button")
    assert len(names()) == 4


def test_copied_text_never_travels_without_its_sentence(opened):
    copied = opened.page.evaluate(
        """() => {
            document.getSelection().selectAllChildren(document.querySelector('.report-section'));
            const event = new ClipboardEvent('copy', {clipboardData: new DataTransfer(), bubbles: true, cancelable: true});
            document.querySelector('.report-section').dispatchEvent(event);
            document.getSelection().removeAllRanges();
            return event.clipboardData.getData('text/plain');
        }"""
    )
    assert copied.startswith(f"{RESEARCH_USE_ONLY}\n{DRAFT_DISCLAIMER}\n\n")


def test_help_lists_the_keys_and_closes(opened):
    opened.page.keyboard.press("?")
    assert opened.page.is_visible("#help")
    opened.page.keyboard.press("Escape")
    assert not opened.page.is_visible("#help")


def test_on_paper_both_sentences_and_the_whole_report_stand_and_the_viewer_does_not(opened):
    opened.page.emulate_media(media="print")
    assert opened.page.is_visible(".disclaimer") and opened.page.is_visible("#pane-findings") and opened.page.is_visible("#pane-report")
    assert not opened.page.is_visible("#planes")
    opened.page.emulate_media(media="screen")


@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (1440, 900), (1024, 768), (400, 800)])
def test_nothing_is_cut_off_and_both_sentences_are_in_sight_at_any_window_size(opened, width, height):
    page = opened.page
    page.set_viewport_size({"width": width, "height": height})
    opened.settle()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box = page.locator(".disclaimer").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["y"] >= 0 and box["y"] + box["height"] <= height
    assert page.evaluate("(e => e.scrollWidth <= e.clientWidth + 1)(document.querySelector('.disclaimer'))")
    for tab in ("report", "findings", "segments", "answers", "about"):
        page.click(f"#tab-{tab}")
        assert page.evaluate("(e => e.scrollWidth <= e.clientWidth)(document.querySelector('.panes'))"), tab
    if width > 500:
        assert page.evaluate("(e => e.scrollWidth <= e.clientWidth)(document.querySelector('.tabs'))")


def test_after_all_this_the_page_still_has_not_complained_and_asked_for_nothing(opened, page_file):
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith(("data:", "blob:"))] == [page_file.as_uri()]


def test_without_webgl_the_page_says_so_and_report_and_tables_work(playwright, page_file):
    with _chromium(playwright, "--disable-gpu", "--disable-3d-apis") as browser:
        opened = _open(browser, page_file)
        assert opened.page.evaluate("document.documentElement.dataset.state") == "stills"
        assert "WebGL 2" in opened.page.inner_text("#fallback")
        assert opened.page.locator(".stills img:visible").count() == 3
        opened.page.click("#tab-findings")
        opened.page.click("#findings button.name:has-text('Lung nodule')")
        opened.page.click("#findings .c-probability button")
        assert opened.page.locator("#findings tbody tr").first.inner_text().startswith("Lung nodule")
        assert opened.complaints == []


def test_without_scripts_the_report_is_readable(browser, page_file):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_file.as_uri())
    for pane in ("report", "findings", "segments", "answers", "about"):
        assert page.is_visible(f"#pane-{pane}")
    assert page.is_visible("#fallback")
    context.close()


def test_a_case_without_its_image_shows_its_segments(browser, tmp_path, phantom):
    write_case(tmp_path / "case", phantom.case, segmentation_kji=phantom.labels_kji, grid=phantom.volume.grid)
    if niivue.find() is None:
        pytest.skip("the NiiVue script is not installed")
    opened = _open(browser, review([tmp_path / "case"], tmp_path / "site"))
    assert opened.page.evaluate("document.documentElement.dataset.state") == "ready"
    assert "Written without its image" in opened.page.inner_text(".status")
    assert "HU" not in opened.page.inner_text("#status-hu")
    assert opened.complaints == []
    opened.page.close()


def test_a_list_of_cases_leads_to_each_page_and_back(browser, tmp_path, phantom):
    for name in ("a", "b"):
        write_case(tmp_path / name, replace(phantom.case, id=f"case-{name}"))
    index = review([tmp_path / "a", tmp_path / "b"], tmp_path / "site")
    page = browser.new_page()
    page.goto(index.as_uri())
    page.click("text=case-b")
    assert page.inner_text("h1") == "case-b"
    page.click("text=All cases")
    assert page.inner_text("h1") == "2 cases"
    page.close()
