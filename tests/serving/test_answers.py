"""What a served student says is what the student says: alone, among others, and to the client of served teachers."""

from __future__ import annotations

import base64
import random
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from builders import classifiers, tiny
from builders.commands import recipe, refuse
from builders.served_student import BANK, CLASSES, ask, encoded, exchange, saved, serving, student
from datasets import load_from_disk

from madkd_hf import Aspect, AspectBank
from madkd_hf.llm import LLMError
from madkd_hf.students.classification.because import Because
from madkd_hf.teachers import load_teacher


IMAGES = [*tiny.images(6, 32), *(image.resize((41, 30)) for image in tiny.images(6, 48, seed=1))]
KEY = "sk-thekeythatnobodymayfind"


@pytest.fixture(scope="module")
def served():
    return student()


@pytest.fixture(scope="module")
def url(served):
    with serving(served) as address:
        yield address


@pytest.fixture(scope="module")
def truth(served):
    """The student's own scores, each image alone: [n, C] and [n, Q]."""
    with torch.inference_mode():
        outputs = [served.model(served.processor(image, return_tensors="pt")["pixel_values"]) for image in IMAGES]
    logits, answers = (torch.cat([getattr(o, name) for o in outputs]).double() for name in ("logits", "aspect_logits"))
    assert logits.std(0).min() > 0.01 and answers.std(0).min() > 0.01  # there is something to be confused
    return logits, answers


def question(text=None, kind="noul", options=None):
    asked = {"type": kind}
    asked |= {} if text is None else {"instructions": text}
    return asked | ({} if options is None else {"criteria": dict.fromkeys(options)})


def decide(url, image, questions, **fields):
    """A request as the client of `transformers serve` makes it."""
    data = image if isinstance(image, str) else base64.b64encode(encoded(image)).decode()
    assets = {"<asset-1>": {"type": "image", "format": "png", "data_base64": data}}
    return ask(
        url,
        "/v1/systemone",
        {"model": "tiny", "state": "<asset-1>", "questions": questions, "assets": assets} | fields,
    )


def test_an_upload_is_classified_and_all_questions_answered(url, served, truth):
    logits, answers = truth
    for body, headers in [
        (encoded(IMAGES[0]), {}),
        (encoded(IMAGES[0]), {"Content_Type": "application/x-www-form-urlencoded"}),  # as curl --data-binary has it
        form(encoded(IMAGES[0])),
    ]:
        status, said = ask(url, "/classify?top_k=2", body, **headers)
        assert status == 200 and said["model"] == "tiny" and "because" not in said
        probabilities = logits[0].softmax(-1)
        best = probabilities.argsort(descending=True)[:2].tolist()
        assert said["class"] == CLASSES[best[0]]
        assert [row["label"] for row in said["probabilities"]] == [CLASSES[c] for c in best]
        np.testing.assert_allclose([row["score"] for row in said["probabilities"]], probabilities[best], atol=1e-6)
        assert list(said["answers"]) == BANK.ids
        np.testing.assert_allclose(list(said["answers"].values()), answers[0].sigmoid(), atol=1e-6)


def form(content: bytes, name: str = "image", filename: str = '; filename="a.png"') -> tuple[bytes, dict[str, str]]:
    head = f'--xx\r\nContent-Disposition: form-data; name="{name}"{filename}\r\n\r\n'
    return head.encode() + content + b"\r\n--xx--\r\n", {"Content_Type": "multipart/form-data; boundary=xx"}


def test_reasons_are_those_of_because(url, served, truth):
    logits, answers = truth
    status, said = ask(url, "/classify?reasons=2", encoded(IMAGES[0]))
    expected = Because.of_student(served.model).reasons(answers[0].tolist(), int(logits[0].argmax()))[:2]
    assert status == 200 and [row["aspect"] for row in said["because"]] == [reason.aspect for reason in expected]
    np.testing.assert_allclose([row["weight"] for row in said["because"]], [r.weight for r in expected], atol=1e-5)


def test_questions_are_answered_by_text_and_id_and_as_a_choice(url, truth):
    logits, answers = truth
    asked = {
        "a": question(BANK.questions[0]),
        "b": question(f"  {BANK.ids[0]}\n"),
        BANK.ids[0]: question(),
        "c": question(BANK.questions[0], "choice", ["No", "Yes"]),
        "class": question("Which one is it?", "choice", CLASSES.values()),
        "of two": question(None, "choice", ["hen", "cat"]),
    }
    status, said = decide(url, IMAGES[0], asked)
    assert status == 200 and set(said) == {"model", "answers", "usage"} and list(said["answers"]) == list(asked)
    p = answers[0, 0].sigmoid().item()
    for name in ("a", "b", BANK.ids[0]):
        assert said["answers"][name] == {"type": "noul", "noul": pytest.approx(p, abs=1e-6)}
    assert said["answers"]["c"]["probabilities"] == {"No": pytest.approx(1 - p), "Yes": pytest.approx(p)}
    probabilities = said["answers"]["class"]["probabilities"]
    assert list(probabilities) == list(CLASSES.values())
    np.testing.assert_allclose(list(probabilities.values()), logits[0].softmax(-1), atol=1e-6)
    two = logits[0, [3, 0]].softmax(-1)
    assert list(said["answers"]["of two"]["probabilities"].values()) == pytest.approx(two.tolist(), abs=1e-6)


def test_answers_have_the_shape_of_the_decision_pipeline_of_transformers(url):
    decision = pytest.importorskip("transformers.decision", reason="this version of transformers has no decisions")
    asked = {"a": question(BANK.questions[0]), "c": question("", "choice", ["cat", "dog", "hen"])}
    _, said = decide(url, IMAGES[0], asked)
    for parsed in decision.parse_questions(asked, decision.DecisionConfig()):
        ours = said["answers"][parsed.name]
        probabilities = [ours["noul"], 1 - ours["noul"]] if parsed.type == "noul" else ours["probabilities"].values()
        theirs = parsed.answer(list(probabilities))
        assert ours.pop("confidence", 0) == pytest.approx(theirs.pop("confidence", 0)) and ours == theirs


def test_many_at_once_get_their_own_answers(served, truth):
    logits, answers = truth
    order = random.Random(0).choices(range(len(IMAGES)), k=200)
    with serving(served, batch=8, wait=0.01) as url, ThreadPoolExecutor(24) as pool:

        def one(index):
            if index % 2:
                return ask(url, "/classify", encoded(IMAGES[index]))[1]["answers"].values()
            asked = {f"q{i}": question(text) for i, text in enumerate(BANK.questions)}
            return [answer["noul"] for answer in decide(url, IMAGES[index], asked)[1]["answers"].values()]

        said = np.array([list(values) for values in pool.map(one, order)])
        sizes = ask(url, "/metrics")[1]
    np.testing.assert_allclose(said, answers[order].sigmoid(), atol=1e-5)
    batches = {line.split()[0]: float(line.split()[1]) for line in sizes.splitlines() if not line.startswith("#")}
    assert batches["madkd_batch_images_sum"] == 200 > 2 * batches["madkd_batch_images_count"]
    assert batches["madkd_requests_in_progress"] == batches["madkd_request_bytes"] == 0


def test_images_that_come_out_in_different_sizes_are_served_together():
    kept = student(name="convnext")
    kept.processor = classifiers.processor("convnext")
    kept.processor.do_resize = False
    with serving(kept, wait=0.05) as url, ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda image: ask(url, "/classify", encoded(image))[1], IMAGES))
        alone = [ask(url, "/classify", encoded(image))[1] for image in IMAGES]
    for one, other in zip(together, alone):
        np.testing.assert_allclose(list(one["answers"].values()), list(other["answers"].values()), atol=1e-5)


def test_the_client_of_served_teachers_reads_a_student(url, truth):
    _, answers = truth
    teacher = load_teacher(f"{url}/v1", model="tiny")
    reading = teacher.read(IMAGES, BANK)
    assert teacher.dialect.name == "systemone" and not reading.missing.any() and reading.mass is None
    np.testing.assert_allclose(reading.logits, answers, atol=1e-4)
    assert teacher.provenance["served"] == {"by": "madkd_hf"}
    some = AspectBank([Aspect("x", BANK.questions[2]), Aspect("y", "Is it made of wood?")])
    with pytest.raises(ValueError, match=r"is a student of 3 questions.*'Is it made of wood\?' is none.*pass --bank"):
        teacher.read(IMAGES, some)
    with pytest.raises(LLMError, match="has no model 'other': it has tiny"):
        load_teacher(f"{url}/v1", model="other")


def test_a_dataset_is_labelled_from_a_student(tmp_path, monkeypatch, served, truth):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("STUDENT_KEY", KEY)
    for i, image in enumerate(IMAGES):
        (tmp_path / "photos" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "photos" / "ab"[i % 2] / f"{i:02d}.png")
    BANK.save(tmp_path / "aspects.json")
    words = ["--dataset", tmp_path / "photos", "--bank", tmp_path / "aspects.json", "--output_dir", tmp_path / "out"]
    with serving(served, key=KEY) as address:
        words += ["--teacher", address, "--teacher_model", "tiny"]
        assert "does not accept the key" in refuse("label", *words)
        recipe("label", *words, "--teacher_key_variable", "STUDENT_KEY")
    rows = load_from_disk(tmp_path / "out")["train"]
    by_pixels = {image.tobytes(): z for image, z in zip(IMAGES, truth[1])}
    expected = torch.stack([by_pixels[image.tobytes()] for image in rows["image"]])
    np.testing.assert_allclose(np.array(rows["aspect_logits"][:]), expected, atol=1e-4)
    assert AspectBank.load(tmp_path / "out").provenance["dialect"] == "systemone"


def test_a_student_without_aspects_and_a_plain_classifier_name_classes(tmp_path):
    from madkd_hf.serving.student import ServedStudent

    bare = saved(tmp_path / "bare", bank=None)
    student().model.to_plain().save_pretrained(tmp_path / "plain")
    classifiers.processor("resnet").save_pretrained(tmp_path / "plain")
    for folder in (bare, tmp_path / "plain"):
        with serving(ServedStudent.load(str(folder))) as url:
            status, said = ask(url, "/classify", encoded(IMAGES[0]))
            assert status == 200 and said["class"] in CLASSES.values() and said["answers"] == {}
            status, said = ask(url, "/classify?reasons=1", encoded(IMAGES[0]))
            assert status == 422 and "no reasons to give" in said["detail"]
            status, said = decide(url, IMAGES[0], {"q": question("Is it red?")}, model=folder.name)
            assert status == 422 and "answers no questions" in said["detail"]
            status, said = decide(url, IMAGES[0], {"q": question("", "choice", ["cat", "hen"])}, model=folder.name)
            assert status == 200 and said["answers"]["q"]["choice"] in ("cat", "hen")
            with pytest.raises(LLMError, match="answers no questions"):
                load_teacher(f"{url}/v1", model=folder.name)


def test_reasons_beside_a_student_are_used_where_they_are_its_own(tmp_path, caplog):
    from madkd_hf.serving.student import reasons_of

    model = student().model
    Because.of_student(model, baseline=[1.0, 2.0, 3.0]).save(tmp_path)
    assert reasons_of(model, tmp_path).baseline.tolist() == [1, 2, 3]
    Because(np.ones((1, 3)), np.ones(3), ["eel"], BANK.ids, BANK.questions).save(tmp_path)
    assert reasons_of(model, tmp_path).baseline.tolist() == [0, 0, 0] and "another student's" in caplog.text
    (tmp_path / "because.json").write_text("{")
    assert reasons_of(model, tmp_path).baseline.tolist() == [0, 0, 0]


def test_the_server_describes_itself(url):
    status, said = ask(url, "/v1/models")
    (entry,) = said["data"]
    assert status == 200 and entry["id"] == "tiny" and entry["questions"] == BANK.questions
    assert entry["labels"] == list(CLASSES.values()) and ask(url, "/health") == (200, {"status": "ok"})
    paths = ask(url, "/openapi.json")[1]["paths"]
    assert {"/v1/systemone", "/classify", "/v1/models", "/health", "/metrics"} <= set(paths)
    ask(url, "/nowhere")
    status, headers, text = exchange(url, "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain")
    assert b'madkd_requests_total{path="other",status="404"}' in text and b"process_resident_memory_bytes" in text


@pytest.mark.parametrize(
    ("questions", "expected"),
    [
        (
            {"q": question("Is it made of wood?")},
            r"'Is it made of wood\?' is none of the questions.*'is there a red ",
        ),
        ({"q": question("Is it of wood?", "choice", ["yes", "no"])}, "is none of the questions"),
        (
            {"q": question("", "choice", ["cat", "unicorn"])},
            "'unicorn' is no class of this student, which knows 'cat'",
        ),
        ({"q": question("", "choice")}, "a choice without options"),
        ({"q": question(BANK.ids[0], "choice", ["yes", "no", "maybe"])}, "answered by yes or no"),
        ({"q": question(BANK.ids[0], "score", ["low", "high"])}, "another type than noul and choice"),
        ({"q": {"type": "noul", "instructions": ["a"]}}, "instructions that are no text"),
        ({"q": {"type": "noul", "instructions": BANK.ids[0], "extra": 1}}, "unknown field 'extra'"),
        ({"q": {"type": "noul", "criteria": {"true": "It is NOT red"}}}, "describes its options"),
        ({"q": {"type": "choice", "criteria": ["cat"]}}, "criteria that are no object"),
        ({"q": "Is it red?"}, "another type than"),
        ({}, "at most 64 questions by name, and one at least; received 0"),
        ([], "at most 64 questions"),
        ({f"q{i}": question(BANK.ids[0]) for i in range(65)}, "at most 64 questions.*received 65"),
    ],
)
def test_questions_that_cannot_be_answered_are_refused_in_a_sentence(url, questions, expected):
    status, said = decide(url, IMAGES[0], questions)
    assert status == 422
    assert re.search(expected, said["detail"]), said["detail"]
    assert len(said["detail"]) < 2000


@pytest.mark.parametrize(
    ("fields", "status", "expected"),
    [
        ({"model": "other"}, 404, "There is no model 'other' here: it is 'tiny'"),
        ({"state": None}, 422, "state is missing"),
        ({"images": ["http://example.org/a.png"]}, 422, "no field 'images'"),
        ({"assets": {}}, 422, "looks at one image.*received 0"),
        ({"assets": {"a": {}, "b": {}}}, 422, "looks at one image.*received 2"),
        ({"assets": {"a": {"type": "video", "data_base64": ""}}}, 422, "is no image"),
        ({"assets": {"a": {"type": "image", "url": "http://example.org/a.png"}}}, 422, "no address is fetched"),
    ],
)
def test_requests_that_are_none_are_refused_in_a_sentence(url, fields, status, expected):
    received, said = decide(url, IMAGES[0], {"q": question(BANK.ids[0])}, **fields)
    assert received == status
    assert re.search(expected, said["detail"]), said["detail"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("https://example.org/a.png", "is an address, and none is fetched"),
        (" HTTP://127.0.0.1:1/a.png", "is an address, and none is fetched"),
        ("file:///etc/passwd", "is an address, and none is fetched"),
        ("/etc/passwd", "cannot be read|not in base64"),
        ("data:image/png,abc", "without base64"),
        ("!!!!", "not in base64"),
        ("", "is empty"),
        ("AAAA", "no image that Pillow can read"),
    ],
)
def test_images_come_as_bytes_and_never_by_address(url, data, expected):
    status, said = decide(url, data, {"q": question(BANK.ids[0])})
    assert status == 422
    assert re.search(expected, said["detail"]), said["detail"]


def test_data_addresses_and_line_breaks_in_base64_are_taken(url, truth):
    plain = base64.b64encode(encoded(IMAGES[0])).decode()
    for data in (f"data:image/png;base64,{plain}", base64.encodebytes(encoded(IMAGES[0])).decode()):
        status, said = decide(url, data, {"q": question(BANK.ids[0])})
        assert status == 200 and said["answers"]["q"]["noul"] == pytest.approx(
            truth[1][0, 0].sigmoid().item(), abs=1e-6
        )


def test_only_one_image_file_is_taken_of_a_form(url):
    for (body, headers), expected in [
        (form(encoded(IMAGES[0]), filename=""), "no image file"),
        (form(encoded(IMAGES[0])[:0]), "is empty"),
        ((b"--xx\r\nrubbish", {"Content_Type": "multipart/form-data; boundary=xx"}), "form"),
        ((b"", {"Content_Type": "multipart/form-data"}), "form"),
    ]:
        status, said = ask(url, "/classify", body, **headers)
        assert status == 422 and expected in said["detail"], said
