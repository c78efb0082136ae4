"""What is in the folder of a Space, that texts of strangers are only data in it, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import yaml
from builders import tiny
from builders.hostile import STRINGS, alive_in_markdown
from builders.space_students import CLASSES, make_space
from huggingface_hub.errors import HTTPError
from PIL import Image
from scipy.special import expit, softmax

from madkd_hf import MadkdForImageClassification
from madkd_hf.data import rgb
from madkd_hf.spaces import CARD, DATA, GRADIO, MODEL, ONNX, PAGES, STATIC, model
from madkd_hf.spaces.assets import ASSETS, find_assets
from madkd_hf.spaces.card import SDK_VERSION, SpaceFacts
from madkd_hf.students.classification.because import Because


def data_of(folder: Path) -> dict:
    return json.loads((folder / DATA).read_text(encoding="utf-8"))


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {".madkd.json"}


def front_matter(folder: Path) -> dict:
    return yaml.safe_load((folder / CARD).read_text(encoding="utf-8").split("---\n")[1])


def load_gradio(name: str):
    """A module of the Gradio page, which is no part of the package."""
    spec = importlib.util.spec_from_file_location(
        f"space_{name}", str(files("madkd_hf.spaces") / GRADIO / f"{name}.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_static_space_holds_its_page_its_model_and_its_data(static):
    expected = {CARD, DATA, ONNX, "model/config.json", "model/preprocessor_config.json", *PAGES[STATIC]}
    assert names(static) == expected | {"examples/example-1.jpg", "examples/example-2.jpg"}
    matter = front_matter(static)
    assert matter["sdk"] == "static" and matter["app_file"] == "index.html" and "sdk_version" not in matter
    assert matter["models"] == ["you/birds"] and matter["datasets"] == ["you/photos"] and matter["license"] == "mit"
    assert "madkd" in matter["tags"] and matter["title"] == "Birds"
    data = data_of(static)
    assert data["classes"] == ["finch", "heron", "owl"] and len(data["questions"]) == 3
    assert [example["shows"] for example in data["examples"]] == ["finch", ""]
    assert [link["url"].rpartition("/you/")[2] for link in data["links"]] == ["birds", "photos"]
    assert data["model"] == {"bytes": (static / ONNX).stat().st_size}
    assert [asset["url"] for asset in data["assets"]] == [asset.url for asset in ASSETS]
    assert all(asset["integrity"].startswith("sha384-") for asset in data["assets"])


def test_its_page_loads_nothing_but_what_its_policy_names(static):
    page = (static / "index.html").read_text(encoding="utf-8")
    policy = re.search('Content-Security-Policy" content="([^"]+)"', page)[1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["connect-src"] == "'self' https://cdn.jsdelivr.net blob:"
    assert "'unsafe-inline'" not in policy and "'unsafe-eval'" not in policy.replace("'wasm-unsafe-eval'", "")
    assert set(re.findall(r'(?:src|href)="([^"]+)"', page)) == {"bars.css", "space.css", "space.js", "data:,"}
    scripts = "".join((static / name).read_text(encoding="utf-8") for name in PAGES[STATIC] if name.endswith(".js"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|https?:", scripts)


def test_a_gradio_space_holds_code_that_is_the_same_for_every_student(exported, strangers, tmp_path):
    for student in (exported, strangers):
        make_space(student, tmp_path, GRADIO, SpaceFacts(STRINGS["python"]))
        assert names(tmp_path) == {
            CARD,
            DATA,
            ONNX,
            "model/config.json",
            "model/preprocessor_config.json",
            *PAGES[GRADIO],
        }
        for name in ("app.py", "reasons.py", "requirements.txt"):
            assert (tmp_path / name).read_bytes() == files("madkd_hf.spaces").joinpath(GRADIO, name).read_bytes()
        assert (tmp_path / "rgb.py").read_text(encoding="utf-8") == Path(rgb.__file__).read_text(encoding="utf-8")
        matter = front_matter(tmp_path)
        assert (matter["sdk"], matter["sdk_version"], matter["app_file"]) == ("gradio", SDK_VERSION, "app.py")
    pins = (tmp_path / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert all("==" in pin for pin in pins) and "madkd" not in str(pins)


@pytest.mark.parametrize("kind", [STATIC, GRADIO])
def test_texts_of_strangers_are_in_its_data_and_nowhere_in_its_code(kind, strangers, tmp_path):
    title = STRINGS["yaml"] + STRINGS["script"]
    make_space(strangers, tmp_path, kind, SpaceFacts(title), examples=[(tiny.images(1, 48)[0], STRINGS["html"])])
    data = data_of(tmp_path)
    assert (
        len(data["classes"]) == len(CLASSES) and data["classes"][CLASSES.index(STRINGS["script"])] == STRINGS["script"]
    )
    assert (tmp_path / DATA).read_bytes().isascii() and front_matter(tmp_path)["title"] == title
    assert alive_in_markdown((tmp_path / CARD).read_text(encoding="utf-8").split("---\n", 2)[2]) == []
    code = "".join((tmp_path / name).read_text(encoding="utf-8") for name in PAGES[kind])
    for text in (STRINGS["script"], STRINGS["image in html"], "!!python", STRINGS["python"]):
        assert text not in code and text not in (tmp_path / "model/config.json").read_text(encoding="utf-8")


class Tags(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.said = set(), set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data):
        self.said += data


def test_the_gradio_page_shows_texts_of_strangers_as_text():
    page = load_gradio("reasons")
    for text in STRINGS.values():
        data = {"classes": [text], "questions": [text], "links": [{"kind": "Model", "text": text, "url": text}]}
        found = [{"question": text, "answer": 0.2, "weight": -1.0}]
        html = page.classes_html(data, np.ones(1)) + page.reasons_html(data, found, 0)
        parsed = Tags(html + page.links_html(data))
        assert parsed.tags <= {"h2", "p", "ul", "ol", "li", "span", "a"}
        assert parsed.attributes <= {"class", "style", "aria-label", "aria-hidden", "href", "rel"}
        assert not re.search(r"[${}`\\]", html)  # templates of Gradio
        if text.isprintable() and text:
            assert text in parsed.said
    assert "No, 80%" in parsed.said and "−1.00 against" in parsed.said


def test_reasons_are_those_of_the_student(birds, static):
    student = MadkdForImageClassification.from_pretrained(birds)
    data = data_of(static)
    expected = Because.of_student(student, data["baseline"])
    answers = np.array([1.5, -0.2, 0.7])
    for label in range(3):
        found = load_gradio("reasons").reasons(data, answers, label)
        for one, reason in zip(found, expected.reasons(answers, label)):
            assert one["question"] == reason.question
            assert (one["answer"], one["weight"]) == pytest.approx((reason.answer, reason.weight), rel=1e-4, abs=1e-7)
    assert any(data["baseline"])


def test_without_questions_there_are_classes_and_no_reasons(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "plain")
    (tmp_path / "plain/because.json").unlink()
    model = make_space(tmp_path / "plain", tmp_path / "space", STATIC, SpaceFacts("Birds"))
    data = data_of(tmp_path / "space")
    assert model.because is None and (data["questions"], data["effects"]) == ([], []) and len(data["classes"]) == 3
    assert "questions" not in (tmp_path / "space" / CARD).read_text(encoding="utf-8")


def test_where_an_image_may_show_several_classes_each_has_its_own_probability(exported, tmp_path):
    logits, page, script = np.array([2.0, -1.0, 0.5]), load_gradio("reasons"), tmp_path / "reasons.mjs"
    script.write_bytes(files("madkd_hf.spaces").joinpath("static", "reasons.js").read_bytes())
    shutil.copytree(exported, tmp_path / "several")
    config = json.loads((exported / "config.json").read_text(encoding="utf-8"))
    config |= {"problem_type": "multi_label_classification"}
    (tmp_path / "several/config.json").write_text(json.dumps(config), encoding="utf-8")
    for folder, expected in ((exported, softmax(logits)), (tmp_path / "several", expit(logits))):
        make_space(folder, tmp_path / "space", GRADIO, SpaceFacts("Birds"))
        data = data_of(tmp_path / "space")
        assert page.class_probabilities(data, logits) == pytest.approx(expected)
        if shutil.which("node"):
            code = f"import {{ probabilities }} from {json.dumps(script.as_uri())};"
            code += f"console.log(JSON.stringify(probabilities({json.dumps(data)}, {logits.tolist()})));"
            words = ["node", "--input-type=module", "-e", code]
            said = subprocess.run(words, check=True, capture_output=True, timeout=60).stdout
            assert json.loads(said) == pytest.approx(expected)


def test_what_was_exported_is_taken_as_it_is(exported, tmp_path):
    made = make_space(exported, tmp_path, STATIC, SpaceFacts("Birds"))
    assert made.agreement is None and made.because.questions[0] == "Is it red?"
    assert (tmp_path / ONNX).read_bytes() == (exported / "onnx/model.onnx").read_bytes()


def test_reasons_saved_beside_a_student_keep_their_baseline(birds, tmp_path):
    shutil.copytree(birds, tmp_path / "student")
    because = Because.of_student(MadkdForImageClassification.from_pretrained(birds), [0.5, -1, 2])
    because.save(tmp_path / "student")
    made = make_space(tmp_path / "student", tmp_path / "space", STATIC, SpaceFacts("Birds"))
    assert data_of(tmp_path / "space")["baseline"] == [0.5, -1, 2] and made.agreement.startswith("on 32 images")
    replace(because, ids=["a", "b", "c"]).save(tmp_path / "student")
    with pytest.raises(ValueError, match="about other classes or questions than the student: save it anew"):
        make_space(tmp_path / "student", tmp_path / "space", STATIC, SpaceFacts("Birds"))


def test_another_kind_takes_its_place_and_files_of_a_user_stay(exported, tmp_path):
    images = tiny.images(3, 48)
    make_space(exported, tmp_path, STATIC, SpaceFacts("a"), examples=[(image, "") for image in images])
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "examples/mine.jpg").write_text("mine")
    make_space(exported, tmp_path, GRADIO, SpaceFacts("b"), examples=[(images[0], "")])
    there = names(tmp_path)
    assert {"notes.txt", "examples/mine.jpg", "examples/example-1.jpg", "app.py"} <= there
    assert not there & {"index.html", "space.js", "examples/example-2.jpg"}


def test_a_folder_with_a_page_of_somebody_else_is_refused(exported, tmp_path):
    (tmp_path / "index.html").write_text("my homepage")
    with pytest.raises(ValueError, match="index.html was not written by this command.*move it away"):
        make_space(exported, tmp_path, STATIC, SpaceFacts("Birds"))
    assert names(tmp_path) == {"index.html"}


def test_examples_carry_no_metadata_and_are_no_larger_than_needed(exported, tmp_path):
    image = Image.new("RGB", (2000, 1000), "red")
    image.info |= {"comment": b"my address", "exif": b"Exif\x00\x00where I live"}
    make_space(exported, tmp_path, STATIC, SpaceFacts("Birds"), examples=[(image, "")])
    content = (tmp_path / "examples/example-1.jpg").read_bytes()
    assert b"address" not in content and b"live" not in content
    assert Image.open(tmp_path / "examples/example-1.jpg").size == (512, 256)


def test_an_example_that_a_user_put_there_stays(exported, tmp_path):
    examples = [(image, "finch") for image in tiny.images(11, 48)]
    make_space(exported, tmp_path, STATIC, SpaceFacts("Birds"), examples=examples)
    (tmp_path / "examples/example-my-dog.jpg").write_bytes(b"mine")
    make_space(exported, tmp_path, STATIC, SpaceFacts("Birds"), examples=examples[:1])
    assert {path.name for path in (tmp_path / "examples").iterdir()} == {"example-1.jpg", "example-my-dog.jpg"}


def test_javascript_that_is_not_the_pinned_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no folder .*nowhere.*npm pack @huggingface/transf"):
        find_assets(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="transformers.min.js is not there: run `npm pack"):
        find_assets(tmp_path)
    (tmp_path / "transformers.min.js").write_text("steal()")
    with pytest.raises(ValueError, match="transformers.min.js is another file: run `npm pack"):
        find_assets(tmp_path)


def test_an_image_processor_with_code_of_its_own_is_refused(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "exported")
    path = tmp_path / "exported/preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoImageProcessor": "evil.Evil"}}))
    with pytest.raises(ValueError, match="needs code of its own, which a Space does not run"):
        make_space(tmp_path / "exported", tmp_path / "space", GRADIO, SpaceFacts("Birds"))
    assert (
        "evil" not in "".join(sys.modules) and not (tmp_path / "space" / MODEL / "preprocessor_config.json").exists()
    )


def test_a_student_of_a_hub_that_cannot_be_reached_may_be_in_the_cache(monkeypatch, tmp_path):
    def unreachable(*args, **kwargs):
        raise HTTPError("Name or service not known")

    monkeypatch.setattr("madkd_hf.hub.retries._pause", lambda state: 0)
    monkeypatch.setattr("madkd_hf.spaces.model.HfApi.model_info", unreachable)
    assert model._exported("you/student", None, tmp_path) == (None, None)
