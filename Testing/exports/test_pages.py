"""The HTML itself: hostile text stays text, nothing points outside, and the sentences that must stand do stand."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from VelvetMedLib import DRAFT_DISCLAIMER, RESEARCH_USE_ONLY
from VelvetMedLib.case.editing import add_sentence
from VelvetMedLib.exports import pages
from VelvetMedLib.exports.embed import page_images
from VelvetMedLib.exports.view import case_summary, case_view

HOSTILE_PARTS = ("onerror=alert(1)", "alert(2)", "{{ 7 * 7 }}")


class Page(HTMLParser):
    """A page as a browser splits it: elements with attributes, and the text inside each element."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input", "br", "path", "circle", "rect", "use"):
            self._inside.append(tag)
            if tag in ("script", "style"):
                self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        if tag in self._inside:
            while self._inside.pop() != tag:
                pass

    def handle_data(self, data):
        where = self._inside[-1] if self._inside else ""
        if where in ("script", "style"):
            self.texts[where][-1] += data
        else:
            self.texts.setdefault("visible", []).append(data)

    @property
    def visible(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts.get("visible", [])))

    def attributes(self, *names: str) -> list[str]:
        return [value or "" for _, attributes in self.elements for name, value in attributes.items() if name in names]


@pytest.fixture(scope="module")
def images(phantom):
    return page_images(phantom.volume, phantom.labels_kji, phantom.volume.grid)


@pytest.fixture(scope="module")
def html(phantom, images):
    return pages.case_page(case_view(phantom.case), images, phantom.script)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def _policy(page: Page) -> str:
    return next(a["content"] for tag, a in page.elements if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy")


def _sha(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def test_hostile_text_is_shown_as_text(page):
    for part in HOSTILE_PARTS:
        assert part in page.visible


def test_hostile_text_makes_no_element_and_no_event_handler(page):
    assert not [a for tag, a in page.elements if tag == "img" and not (a["src"] or "").startswith("data:image/png;base64,")]
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_there_are_exactly_the_scripts_that_the_template_names(page):
    kinds = [attributes.get("type") for tag, attributes in page.elements if tag == "script"]
    assert kinds == ["application/json", "text/plain", "text/plain", None, None]


def test_the_policy_allows_exactly_the_pages_own_scripts_and_style_and_no_network(page):
    kinds = [attributes.get("type") for tag, attributes in page.elements if tag == "script"]
    running = [text for kind, text in zip(kinds, page.texts["script"], strict=True) if kind is None]
    policy = _policy(page)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert re.search(r"script-src ([^;]*)", policy).group(1).split() == [f"'sha256-{_sha(text)}'" for text in running]
    assert f"style-src 'sha256-{_sha(page.texts['style'][0])}'" in policy


def test_no_attribute_points_outside_the_page(page):
    for address in page.attributes("src", "href", "action", "srcset", "data", "poster"):
        assert address.startswith(("#", "data:image/png;base64,")), address


def test_our_script_and_style_name_no_address_and_load_nothing(page):
    ours = page.texts["script"][-1] + page.texts["style"][0]
    assert re.findall(r"https?://[^\s\"')]+", ours) == ["http://www.w3.org/2000/svg"]
    for word in ("@import", "url(", "fetch(", "XMLHttpRequest", "WebSocket", "sendBeacon", "importScripts", "eval("):
        assert word not in ours


def test_styles_are_not_written_into_elements_because_the_policy_would_drop_them(page):
    assert page.attributes("style") == []


def test_the_data_for_the_script_survives_hostile_text(page, phantom):
    data = json.loads(page.texts["script"][0])
    assert phantom.case.answers[0].question in [link["title"] for link in data["links"]]
    assert data["disclaimers"] == [RESEARCH_USE_ONLY, DRAFT_DISCLAIMER]


def test_both_sentences_stand_in_the_header_above_the_report_and_in_the_about_section(page):
    assert page.visible.count(RESEARCH_USE_ONLY) >= 2
    assert page.visible.count(DRAFT_DISCLAIMER) >= 3


def test_every_state_is_shown_by_shape_and_word(page, phantom):
    shapes = page.attributes("href")
    for state, word in (("present", "present"), ("absent", "absent"), ("uncertain", "uncertain"), ("not_assessed", "not assessed")):
        assert shapes.count(f"#i-{state}") >= 2
        assert word in page.visible
    symbols = {attributes["id"] for tag, attributes in page.elements if tag == "symbol"}
    assert {shape[1:] for shape in shapes if shape.startswith("#i-")} <= symbols


def test_sentences_without_evidence_and_segments_cut_by_the_border_say_so(page):
    assert "no image evidence" in page.visible
    assert "partly outside the field of view" in page.visible


def test_a_contradicted_sentence_gives_the_reason(phantom, images):
    case = add_sentence(phantom.case, "There is no lung nodule.")
    assert (
        "contradicted: The longest axial diameter of the lung nodule was measured as"
        in Page(pages.case_page(case_view(case), images, phantom.script)).visible
    )


def test_linked_sentences_and_findings_are_buttons_so_that_keys_reach_them(page):
    linked = [tag for tag, attributes in page.elements if "data-link" in attributes]
    assert len(linked) == 2 + 2 + 2 + 1
    assert set(linked) == {"button"}


def test_warnings_model_run_attribution_and_the_viewers_authors_are_named(page):
    for text in (
        "Careful with",
        "demo",
        "Apache-2.0",
        "versions, python",
        "Phantom made by the tests.",
        "Copyright (c) 2021, Niivue",
        "BSD-2-Clause",
    ):
        assert text in page.visible


def test_the_same_case_gives_the_same_page(html, phantom):
    images = page_images(phantom.volume, phantom.labels_kji, phantom.volume.grid)
    assert pages.case_page(case_view(phantom.case), images, phantom.script) == html


def test_without_the_viewer_script_the_page_shows_stills_and_says_how_to_get_it(phantom, images):
    page = Page(pages.case_page(case_view(phantom.case), images, None))
    assert "written without its viewer script" in page.visible
    assert "make setup" in page.visible
    assert len([tag for tag, _ in page.elements if tag == "img"]) == 3
    assert json.loads(page.texts["script"][0])["has_viewer"] is False
    assert "ct-data" not in page.attributes("id")


def test_a_case_without_an_image_says_so_and_keeps_its_tables(phantom):
    page = Page(pages.case_page(case_view(phantom.case), None, phantom.script))
    assert "nothing to draw" in page.visible
    assert "Lung nodule" in page.visible
    assert "canvas" not in [tag for tag, _ in page.elements]


def test_an_empty_case_still_makes_a_page(phantom):
    empty = replace(phantom.case, segments=(), findings=(), report=None, answers=(), warnings=(), timings={}, run={})
    page = Page(pages.case_page(case_view(empty), None, None))
    for text in ("no report", "no findings", "no segments", "No questions"):
        assert text in page.visible


def test_a_page_opens_at_the_first_present_finding_else_at_an_uncertain_one_else_in_the_middle(phantom, images):
    at = pages.start_ras_mm(case_view(phantom.case), images)
    assert at == phantom.case.findings[3].link.center_ras_mm
    nothing = replace(phantom.case, findings=())
    assert pages.start_ras_mm(case_view(nothing), images) == pytest.approx((0, 0, 0), abs=4)


def test_the_list_of_cases_escapes_names_and_runs_no_script(phantom, images):
    row = case_summary(replace(phantom.case, id="<b>x</b>")) | {"href": "001-x.html", "thumbnail": None}
    page = Page(pages.index_page([row, row]))
    assert "<b>x</b>" in page.visible
    assert "script" not in [tag for tag, _ in page.elements]
    assert "script-src 'none'" in _policy(page)
    assert RESEARCH_USE_ONLY in page.visible
    assert DRAFT_DISCLAIMER in page.visible
    assert "lung nodule" in page.visible


def test_a_script_that_could_end_its_own_element_is_refused(phantom, images):
    with pytest.raises(ValueError, match="end tag"):
        pages.case_page(case_view(phantom.case), images, "var x = '</SCRIPT>';")


def test_no_page_makes_a_claim_that_research_software_may_not(html):
    text = Page(html).visible.lower()
    for claim in ("diagnos", "fda", "ce-marked", "clinical-grade", "proven"):
        assert claim not in text
