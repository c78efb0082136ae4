"""A static Space in a real Chromium: it reads what Python reads, sends nothing away, and keeps nobody out.

`make test-browser` fetches what it needs: MADKD_SPACE_ASSETS is a folder with the JavaScript, MADKD_AXE an axe.min.js.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from builders import tiny
from builders.browser import barriers, browser, opened, served
from builders.hostile import STRINGS
from builders.space_images import expected_of, save_images
from builders.space_students import CLASSES, make_space, save_student

from madkd_hf.spaces import DATA, STATIC
from madkd_hf.spaces.assets import ASSETS, CDN, find_assets
from madkd_hf.spaces.card import SpaceFacts


pytestmark = pytest.mark.slow
# How far numbers may be from Python's: probabilities, and weights as parts of the largest.
PROBABILITY, WEIGHT = 1e-4, 1e-3
FACTS = SpaceFacts("Birds", ["you/birds"])


@pytest.fixture(scope="module")
def assets() -> dict[str, Path]:
    folder = os.environ.get("MADKD_SPACE_ASSETS")
    if not folder:
        pytest.skip("MADKD_SPACE_ASSETS names no folder with the JavaScript of a static Space")
    return find_assets(folder)


@pytest.fixture(scope="module")
def page(exported, assets, tmp_path_factory):
    """A Space of the birds that needs nothing but its own server."""
    folder = tmp_path_factory.mktemp("page")
    examples = [(image, "finch") for image in tiny.images(2, 48)]
    make_space(exported, folder, STATIC, FACTS, examples=examples, assets=assets)
    return folder


@contextmanager
def ready(folder: Path, *size: int, **options) -> Iterator:
    """The page of a Space once its model is loaded, and what it asked for and complained about."""
    with browser() as chromium, served(folder) as address, opened(chromium, address, *size, **options) as (tab, noted):
        tab.locator("#state").get_by_text("Ready").wait_for()
        yield tab, noted


def read(tab, path: Path) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """What the page says of an image: probabilities by class, and answer and weight by question."""
    tab.locator("#state").evaluate("e => { e.textContent = ''; }")
    tab.set_input_files("#file", path)
    tab.locator("#state").get_by_text(" ms.").wait_for()
    classes = tab.locator("#classes button").evaluate_all(
        "all => all.map(e => [e.querySelector('.madkd-line').firstChild.textContent, Number(e.dataset.probability)])"
    )
    answers = tab.locator("#reasons li").evaluate_all(
        "all => all.map(e => [e.querySelector('.madkd-line').firstChild.textContent, "
        "Number(e.dataset.answer), Number(e.dataset.weight)])"
    )
    return dict(classes), {question: (answer, weight) for question, answer, weight in answers}


def test_it_reads_what_python_reads(page, birds, tmp_path):
    data = json.loads((page / DATA).read_text(encoding="utf-8"))
    with ready(page) as (tab, noted):
        for path in save_images(tmp_path):
            classes, answers = read(tab, path)
            expected_classes, expected_answers = expected_of(birds, path, data["baseline"])
            assert max(classes, key=classes.get) == max(expected_classes, key=expected_classes.get), path
            assert classes == pytest.approx(expected_classes, abs=PROBABILITY), path
            scale = max(abs(weight) for _, weight in expected_answers.values())
            for question, (answer, weight) in expected_answers.items():
                assert answers[question][0] == pytest.approx(answer, abs=PROBABILITY), path
                assert answers[question][1] == pytest.approx(weight, abs=WEIGHT * scale), path
    assert not [
        note
        for note in noted
        if not note.startswith(("request: http://127.0.0.1", "request: blob:", "request: data:"))
    ]


@pytest.mark.parametrize("architecture", ["convnext", "clip", "vit", "mobilenet_v2", "levit"])
def test_other_image_processors_see_the_same(architecture, assets, tmp_path):
    """Shortest edges, crops and other filters, by those classes that transformers.js has for them."""
    from madkd_hf import AspectBank

    student = save_student(tmp_path / "student", ["finch", "heron"], AspectBank(["Is it red?"]), architecture)
    make_space(student, tmp_path / "page", STATIC, FACTS, assets=assets)
    baseline = json.loads((tmp_path / "page" / DATA).read_text(encoding="utf-8"))["baseline"]
    with ready(tmp_path / "page") as (tab, _):
        for path in save_images(tmp_path):
            classes, answers = read(tab, path)
            expected_classes, expected_answers = expected_of(student, path, baseline)
            assert classes == pytest.approx(expected_classes, abs=PROBABILITY), path
            assert answers["Is it red?"][0] == pytest.approx(expected_answers["Is it red?"][0], abs=PROBABILITY), path


def test_an_image_never_leaves_the_browser(page, tmp_path):
    path = save_images(tmp_path)[0]
    with ready(page) as (tab, noted):
        before = len(noted)
        read(tab, path)
        assert [note for note in noted[before:] if not note.startswith("request: blob:")] == []
        assert "stays in this browser" in tab.inner_text("main")


def test_it_is_led_by_the_keyboard_and_another_class_can_be_explained(page):
    with ready(page) as (tab, _):
        tab.locator("#file").focus()
        for _ in range(6):
            tab.keyboard.press("Tab")
            if tab.evaluate("document.activeElement.closest('#examples') !== null"):
                break
        tab.keyboard.press("Enter")
        tab.locator("#reasons li").first.wait_for()
        assert tab.get_attribute("#shown", "alt") == "Example 1: finch"
        buttons = tab.locator("#classes button")
        assert [buttons.nth(k).get_attribute("aria-pressed") for k in range(3)] == ["true", "false", "false"]
        before, name = tab.inner_text("#reasons"), buttons.nth(1).locator(".madkd-line > :first-child").inner_text()
        buttons.nth(1).focus()
        tab.keyboard.press("Enter")
        assert tab.inner_text("#reasons") != before and f"“{name}”" in tab.inner_text("#because-of")
        assert buttons.nth(1).get_attribute("aria-pressed") == "true"


def test_hostile_texts_are_text_at_the_width_of_a_phone(strangers, assets, tmp_path):
    facts = SpaceFacts(STRINGS["script"])
    make_space(
        strangers, tmp_path, STATIC, facts, examples=[(tiny.images(1, 48)[0], STRINGS["image in html"])], assets=assets
    )
    with ready(tmp_path, 390, 844) as (tab, noted):
        tab.locator("#examples button").click()
        tab.locator("#reasons li").first.wait_for()
        assert tab.title() == STRINGS["script"] and tab.evaluate("document.documentElement.scrollWidth") <= 390
        tab.locator("#more").click()
        questions = json.loads((tmp_path / DATA).read_text(encoding="utf-8"))["questions"]
        assert tab.locator("#reasons li").count() == len(questions)
        shown = tab.locator("#reasons .madkd-line > :first-child").evaluate_all("all => all.map(e => e.textContent)")
        assert sorted(shown) == sorted(questions) and len(CLASSES) > 5
        assert tab.locator("#reasons :not(li, span), #classes :not(li, span, button)").count() == 0
    assert not [note for note in noted if note.startswith(("dialog", "error", "console"))]


def test_without_questions_it_says_so(exported, assets, tmp_path):
    shutil.copytree(exported, tmp_path / "plain")
    (tmp_path / "plain/because.json").unlink()
    make_space(tmp_path / "plain", tmp_path / "page", STATIC, FACTS, assets=assets)
    with ready(tmp_path / "page") as (tab, _):
        classes, answers = read(tab, save_images(tmp_path)[0])
        assert len(classes) == 3 and answers == {} and "answers no questions" in tab.inner_text("#summary")
        assert not tab.locator("#because").is_visible()


def test_what_goes_wrong_is_said(page, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with ready(page) as (tab, _):
        tab.set_input_files("#file", tmp_path / "notes.txt")
        tab.get_by_role("alert").get_by_text("cannot be read as an image: choose a JPEG, PNG or WebP").wait_for()
        read(tab, save_images(tmp_path)[0])
        assert not tab.locator("#error").is_visible()
    shutil.copytree(page, tmp_path / "broken")
    (tmp_path / "broken/model/onnx/model.onnx").unlink()
    with browser() as chromium, served(tmp_path / "broken") as address, opened(chromium, address) as (tab, _):
        tab.get_by_role("alert").get_by_text("The model cannot be loaded").wait_for()
        tab.locator("#examples button").first.click()
        tab.get_by_role("alert").get_by_text("load this page again, or try another browser").wait_for()


@pytest.mark.parametrize("tampered", [False, True])
def test_scripts_of_the_cdn_run_only_with_the_pinned_content(tampered, exported, assets, tmp_path):
    make_space(exported, tmp_path, STATIC, FACTS)
    by_url = {asset.url: assets[asset.name].read_bytes() for asset in ASSETS}
    library = ASSETS[0].url
    by_url[library] += b"\nfetch('https://evil.example');" * tampered

    def answer(route) -> None:
        route.fulfill(body=by_url[route.request.url], headers={"Access-Control-Allow-Origin": "*"})

    with browser() as chromium, served(tmp_path) as address:
        tab = chromium.new_page()
        asked = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.route(f"{CDN}/**", answer)
        tab.goto(address)
        if tampered:
            tab.get_by_role("alert").get_by_text("The model cannot be loaded").wait_for()
        else:
            tab.locator("#state").get_by_text("Ready").wait_for()
        assert not [url for url in asked if "evil" in url] and library in asked


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_it_keeps_nobody_out(size, scheme, page, tmp_path):
    with ready(page, *size, color_scheme=scheme) as (tab, _):
        assert barriers(tab) == []
        read(tab, save_images(tmp_path)[0])
        tab.locator("summary").click()
        assert barriers(tab) == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= size[0]
