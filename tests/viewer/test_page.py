"""The page: what stands in it, that hostile texts stay texts, what is kept of an older one, and how it looks."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from builders import tiny
from builders.browser import barriers, browser, opened
from builders.hostile import STRINGS
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

from madkd_hf import Aspect, AspectBank
from madkd_hf.aspects import LONGEST
from madkd_hf.text import hidden_character
from madkd_hf.viewer import DATA, PAGE, SUSPECTS
from madkd_hf.viewer.page import script_json, write_view


WRITABLE = [text for text in STRINGS.values() if not any("\ud800" <= c <= "\udfff" for c in text)]
SHORT = [text for text in WRITABLE if len(text) <= 200]
WRONG = 7  # the row whose label is wrong


def questions() -> AspectBank:
    """Hostile ones; of the last, the text was never published."""
    known = [t for t in SHORT if hidden_character(" ".join(t.split())) is None and len(t) <= LONGEST["id"]]
    known = [" ".join(text.split()) for text in known]
    aspects = [Aspect(text, f"Is it {text}?") for text in dict.fromkeys(known)]
    return AspectBank([*aspects[:20], *AspectBank.of_ids(["q99"])])


BANK = questions()


def dataset(n: int = 40, classes: list[str] | None = None) -> DatasetDict:
    """Images of two classes that the first answers tell apart; a label is wrong, an image is there twice, one of the
    answers has no mass, and a split has no answers at all."""
    classes = classes or ["finch", "heron"]
    features = Features({"image": Image(), "label": ClassLabel(names=classes)})
    images, labels = tiny.images(n), np.arange(n) % 2
    answers = np.random.default_rng(0).normal(size=(n, len(BANK)))
    answers[:, :6] = 8 * labels[:, None] - 4
    labels[WRONG] = 1 - labels[WRONG]
    mass = np.full(answers.shape, 0.9)
    mass[3] = 0.1
    train = {"image": images, "label": labels, "aspect_logits": answers, "aspect_mass": mass}
    train["aspect_bank"] = [BANK.fingerprint] * n
    vector = List(Value("float32"), length=len(BANK))
    more = {"aspect_logits": vector, "aspect_mass": vector, "aspect_bank": Value("string")}
    test = Dataset.from_dict({"image": [images[0], None], "label": [1, 0]}, features=features)
    return DatasetDict({"train": Dataset.from_dict(train, Features({**features, **more})), "test": test})


def data_of(folder: Path) -> dict:
    text = (folder / DATA).read_text(encoding="utf-8")
    assert text.isascii() and not re.search(r"[<>&]", text)
    return json.loads(text.removeprefix("window.MADKD = ").removesuffix(";\n"))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("view")
    write_view(dataset(), BANK, folder, "birds")
    return folder


def test_the_likeliest_mistakes_come_first(page):
    data = data_of(page)
    rows = list(zip(data["split"], data["row"]))
    assert set(rows[:2]) == {(0, 0), (1, 0)} and rows[2] == (0, WRONG)  # the same picture with two labels, then
    assert data["pairs"] == [[0, 1]] and data["score"][0] is None and data["score"][2] > 0 > data["score"][3]
    assert (data["label"][2], data["suggested"][2]) == (0, 1)
    lines = [json.loads(line) for line in (page / SUSPECTS).read_text(encoding="utf-8").splitlines()]
    assert [(line["split"], line["row"]) for line in lines[:3]] == [("train", 0), ("test", 0), ("train", WRONG)]
    assert lines[0]["same_picture"][0]["label"] == "heron" and lines[2]["suggested"] == "heron"


def test_answers_usual_answers_and_mass_are_those_of_the_columns(page):
    data, rows = data_of(page), dataset()["train"]
    answers = np.frombuffer(base64.b64decode(data["answers"]), np.uint8).reshape(-1, len(BANK))
    usual = np.frombuffer(base64.b64decode(data["usual"]), np.uint8).reshape(-1, len(BANK))
    expected = 1 / (1 + np.exp(-np.array(rows["aspect_logits"])))
    for rank, (split, row) in enumerate(zip(data["split"], data["row"])):
        if split == 1:
            assert (answers[rank] == 255).all() and data["mass"][rank] is None
        else:
            np.testing.assert_allclose(answers[rank] / 250, expected[row], atol=0.0021)
            assert data["mass"][rank] == pytest.approx(0.1 if row == 3 else 0.9)
    for label in (0, 1):
        there = np.array(rows["label"]) == label
        np.testing.assert_allclose(usual[label] / 250, expected[there].mean(axis=0), atol=0.0021)


def test_a_question_that_was_not_published_is_shown_by_its_id(page):
    shown = data_of(page)["questions"]
    assert shown[-1] == {"id": "q99", "text": None} and shown[0]["text"].startswith("Is it ")


def test_images_that_cannot_be_read_have_no_thumbnail(page):
    data = data_of(page)
    there = {(s, r) for s, r, shown in zip(data["split"], data["row"], data["shown"]) if shown}
    files = {path.relative_to(page / "thumbs").as_posix() for path in page.glob("thumbs/*/*/*")}
    assert files == {f"{split}/0/{row}.jpg" for split, row in there} and len(there) == 41


class Parsed(HTMLParser):
    """The files that a page names, and the labels and ids of its fields."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.fields, self.labelled, self.policy = [], [], [], ""
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag, pairs):
        attributes = dict(pairs)
        self.links += [attributes[name] for name in ("src", "href") if name in attributes]
        self.inside = self.inside or tag == "label"
        if tag in ("select", "input"):
            self.fields.append(attributes["id"])
            self.labelled += [attributes["id"]] if self.inside else []
        self.policy = attributes["content"] if attributes.get("http-equiv") else self.policy
        assert not [name for name in attributes if name.startswith("on")] and tag != "style"

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "label"


def test_the_page_needs_nothing_but_its_folder(page):
    parsed = Parsed((page / PAGE).read_text(encoding="utf-8"))
    assert set(parsed.links) == {"view.css", "data.js", "view.js", "#results"}
    assert all((page / link).is_file() for link in parsed.links if not link.startswith("#"))
    assert parsed.fields == parsed.labelled and len(parsed.fields) == 7
    assert "default-src 'none'" in parsed.policy and "http" not in parsed.policy
    script = (page / "view.js").read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|http", script)


def test_texts_of_strangers_stay_data():
    text = script_json({"classes": list(STRINGS.values())})
    assert text.isascii() and not re.search(r"[<>&\n\r]", text)
    assert json.loads(text)["classes"] == list(STRINGS.values())


def test_an_older_page_is_replaced_and_files_of_a_user_stay(tmp_path):
    write_view(dataset(), BANK, tmp_path, "birds")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "thumbs/0/0/mine.jpg").write_text("mine")
    write_view(dataset(n=20), BANK, tmp_path, "fewer")
    assert data_of(tmp_path)["title"] == "fewer" and (tmp_path / "notes.txt").read_text() == "mine"
    numbers = {int(path.stem) for path in tmp_path.glob("thumbs/0/0/*.jpg") if path.stem != "mine"}
    assert numbers == set(range(20)) and (tmp_path / "thumbs/0/0/mine.jpg").exists()


def test_a_folder_with_a_page_of_somebody_else_is_refused(tmp_path):
    (tmp_path / PAGE).write_text("my homepage")
    with pytest.raises(ValueError, match="index.html was not written by this command.*move it away"):
        write_view(dataset(), BANK, tmp_path, "birds")
    assert (tmp_path / PAGE).read_text() == "my homepage" and len([*tmp_path.iterdir()]) == 1


def test_without_classes_the_images_come_in_their_order(tmp_path):
    view = write_view(DatasetDict(train=dataset()["train"]), BANK, tmp_path, "birds", label_column=None)
    data = data_of(tmp_path)
    assert data["classes"] == [] and data["row"] == [*range(40)] and view.suspects == []


def test_a_dataset_without_answers_and_answers_about_objects_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has answers: label the dataset first, with `madkd label`"):
        write_view(DatasetDict(test=dataset()["test"]), BANK, tmp_path / "a", "birds")
    objects = Features(
        {"image": Image(), "aspect_logits": List(List(Value("float32"))), "aspect_bank": Value("string")}
    )
    rows = Dataset.from_dict({name: [] for name in objects}, objects)
    with pytest.raises(ValueError, match="about the objects.*without --boxes_column"):
        write_view(DatasetDict(train=rows), BANK, tmp_path / "b", "birds")
    assert not [*tmp_path.iterdir()]


def test_a_browser_shows_it_filters_it_and_is_led_by_the_keyboard(page):
    with browser() as chromium, opened(chromium, (page / PAGE).as_uri()) as (tab, noted):
        tab.wait_for_selector(".card")
        assert tab.locator("#count").inner_text() == "42 of 42 images" and tab.title() == "birds"
        first = tab.locator(".card").first
        assert "same picture: " in first.inner_text() and first.locator("img").evaluate(
            "e => e.decode().then(() => e.naturalWidth)"
        )
        tab.select_option("#show", "suspect")
        assert "Label: finch" in (text := tab.locator(".card").first.inner_text()) and "Answers say: heron" in text
        tab.select_option("#show", "low")
        assert tab.locator("#count").inner_text() == "1 of 42 images"
        tab.select_option("#show", "")
        tab.select_option("#class", "1")
        assert tab.locator("#count").inner_text() == "20 of 42 images"
        tab.select_option("#question", "0")
        tab.select_option("#answer", "unlike")
        assert tab.locator("#count").inner_text() == "0 of 42 images"
        tab.select_option("#class", "0")
        assert tab.locator("#count").inner_text() == "1 of 42 images"
        tab.get_by_role("button", name="Reset").click()
        tab.locator(".card").nth(41).wait_for()
        tab.locator(".card").nth(2).focus()
        tab.keyboard.press("Enter")
        assert tab.locator("#one-body .answer").count() == len(BANK)
        title = tab.locator("#one-title").inner_text()
        tab.keyboard.press("ArrowRight")
        assert tab.locator("#one-title").inner_text() != title
        tab.keyboard.press("Escape")
        tab.locator("#results > li:nth-child(4) .card:focus").wait_for()
    assert all(note.startswith("request: file://") for note in noted), noted


def test_hostile_texts_are_text_in_a_browser_at_the_width_of_a_phone(tmp_path):
    write_view(dataset(classes=WRITABLE), BANK, tmp_path, STRINGS["script"])
    with browser() as chromium, opened(chromium, (tmp_path / PAGE).as_uri(), 390, 844) as (tab, noted):
        tab.wait_for_selector(".card")
        assert tab.title() == STRINGS["script"]
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        allowed = "h1, p, form, label, select, option, input, button, ol, li, nav, span, img, details, summary, dialog"
        strange = (
            f"[...document.body.querySelectorAll('*')].filter(e => !e.matches('{allowed}, a, header, main, div'))"
        )
        assert tab.evaluate(f"{strange}.map(e => e.tagName)") in (["H2"], ["NOSCRIPT", "H2"])
    assert all(note.startswith("request: file://") for note in noted), noted


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_it_keeps_nobody_out(size, scheme, page):
    with browser() as chromium, opened(chromium, (page / PAGE).as_uri(), *size, color_scheme=scheme) as (tab, _):
        tab.wait_for_selector(".card")
        tab.locator("summary").click()
        assert barriers(tab) == []
        tab.locator(".card").first.click()
        assert barriers(tab) == []
