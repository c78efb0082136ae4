"""Teachers behind a server: each dialect gives the numbers of the model, and says what it does not know."""

from __future__ import annotations

import math

import numpy as np
import pytest
from builders import tiny
from builders.llm_server import NO, TOKENS, YES, LLMServer, Model
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from madkd_hf import Aspect, AspectBank, attach_aspects
from madkd_hf.data.columns import count_missing
from madkd_hf.teachers import load_teacher


BANK = tiny.bank(3)


def served(server, **options):
    return load_teacher(server.url, model=server.name, timeout=10.0, retries=3, **options)


def expected(server, teacher, images, bank=BANK):
    """[n, Q, 2] log-odds and mass."""
    questions = [teacher.dialect.text(question) for question in bank.questions]
    return np.array([[server.model.answer(image, question) for question in questions] for image in images])


def plain(count: int) -> list[Image.Image]:
    """Images of one colour each."""
    colours = np.random.default_rng(0).integers(0, 256, (count, 3)).tolist()
    return [Image.new("RGB", (8, 8), tuple(colour)) for colour in colours]


def many_questions(count: int) -> AspectBank:
    return AspectBank([Aspect(f"q{i}", f"is it number {i} ?", "visual") for i in range(count)])


@pytest.mark.parametrize(
    "spoken, chosen",
    [(("chat-ids", "chat-topk", "systemone", "decisions"), "chat-ids"), (("systemone",), "systemone")],
)
def test_exact_dialects_give_the_numbers_of_the_model(spoken, chosen):
    images = tiny.images(6)
    with LLMServer(dialects=spoken, decimals=None) as server:
        teacher = served(server)
        reading = teacher.read(images, BANK)
        truth = expected(server, teacher, images)
    assert teacher.identity["dialect"] == chosen
    np.testing.assert_allclose(reading.logits.numpy(), truth[..., 0], atol=1e-5)
    assert not reading.missing.any()
    if chosen == "chat-ids":
        np.testing.assert_allclose(reading.mass.numpy(), truth[..., 1], atol=1e-6)
        assert teacher.provenance["mass"] == "known" and teacher.provenance["precision"].startswith("as sent")
    else:
        assert reading.mass is None and teacher.provenance["mass"] == "not known"


def test_the_request_has_the_image_first_then_the_question():
    with LLMServer() as server:
        served(server, system="Look.").read(tiny.images(1), BANK)
    path, body = server.requests[-1]
    system, user = body["messages"]
    image, text = user["content"]
    assert path == "/v1/chat/completions" and system == {"role": "system", "content": "Look."}
    assert image["image_url"]["url"].startswith("data:image/png;base64,") and text["text"].endswith("?")
    assert body["logprob_token_ids"] == [*YES, *NO] or sorted(body["logprob_token_ids"]) == [*YES, *NO]
    assert body["max_completion_tokens"] == 1 and body["temperature"] == 0
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


def test_spellings_come_from_a_tokenizer_as_for_a_local_teacher(tmp_path):
    words = {token.replace(" ", "Ġ"): index for index, token in enumerate(TOKENS)}
    backend = Tokenizer(models.WordLevel(words, unk_token="word27"))
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="word27").save_pretrained(tmp_path)
    with LLMServer(tokenizes=False) as server:
        teacher = served(server, tokenizer=str(tmp_path))
        assert teacher.identity["dialect"] == "chat-ids"
        assert teacher.identity["yes_tokens"] == {"yes": 0, "Ġyes": 3, "Yes": 1, "ĠYes": 4, "YES": 2}
        paper = served(server, tokenizer=str(tmp_path), answer_tokens=("Yes", "No"))
        assert (paper.identity["yes_tokens"], paper.identity["no_tokens"]) == ({"Yes": 1}, {"No": 6})
    with LLMServer() as server:
        with pytest.raises(ValueError, match=r"is not that of tiny .* other tokens of ' No'.*--teacher_tokenizer"):
            served(server, tokenizer=str(tmp_path))


def test_without_ids_the_likeliest_tokens_do_and_what_is_missing_is_nan():
    images, bank = tiny.images(12, 4), many_questions(8)
    with LLMServer(Model(spread=9.0), dialects=("chat-topk",), tokenizes=False) as server:

        def few(number, answer, body):
            if "number" in str(body["messages"]):  # but not the probe
                answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"][6:] = []
            return answer

        server.mangle = few
        teacher = served(server)
        reading = teacher.read(images, bank)
        truth = expected(server, teacher, images, bank)
    missing = reading.missing.numpy()
    assert 0 < missing.sum() < missing.size
    assert np.isnan(reading.logits.numpy()[missing]).all() and np.isfinite(reading.mass.numpy()).all()
    assert (reading.mass.numpy() <= truth[..., 1] + 1e-6).all()  # a lower bound: some spellings are not listed


@pytest.mark.parametrize("spoken, decimals", [("decisions", 2), ("systemone", 3)])
def test_rounded_probabilities_are_clipped_at_half_a_step(spoken, decimals):
    images, bank = tiny.images(10, 3), many_questions(12)
    with LLMServer(Model(spread=9.0), dialects=(spoken,), decimals=decimals) as server:
        teacher = served(server)
        reading = teacher.read(images, bank)
        truth = expected(server, teacher, images, bank)[..., 0]
    step = 10.0**-decimals
    most = math.log((1 - step / 2) / (step / 2))
    z = reading.logits.numpy()
    assert teacher.provenance["precision"] == f"probabilities of {decimals} decimals"
    assert np.abs(z).max() == pytest.approx(most, abs=1e-4) and (np.abs(truth) > most).any()
    p, q = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(-truth))
    assert np.abs(p - q).max() <= step / 2 + 1e-6


def test_rounded_logits_are_noticed():
    with LLMServer(Model(step=0.125)) as server:
        teacher = served(server)
        teacher.prepare(tiny.images(2), BANK)
    assert teacher.provenance["precision"] == "log-odds in steps of 0.125"


@pytest.mark.parametrize("spoken, most", [("systemone", 64), ("decisions", 400)])
def test_several_questions_go_in_one_request(spoken, most):
    bank, images = many_questions(most + 1), tiny.images(2)
    with LLMServer(Model(spread=1.0), dialects=(spoken,), decimals=None) as server:
        teacher = served(server)
        before = len(server.requests)
        reading = teacher.read(images, bank)
        np.testing.assert_allclose(reading.logits.numpy(), expected(server, teacher, images, bank)[..., 0], atol=1e-5)
    assert len(server.requests) - before == 4
    assert {len(body["questions"]) for _, body in server.requests[before:]} == {most, 1}


def test_a_server_that_takes_fewer_questions_gets_fewer():
    bank, images = many_questions(65), tiny.images(2)
    with LLMServer(dialects=("systemone",), decimals=None, most=20) as server:
        teacher = served(server)
        reading = teacher.read(images, bank)
        np.testing.assert_allclose(reading.logits.numpy(), expected(server, teacher, images, bank)[..., 0], atol=1e-5)
    assert teacher.questions_per_request == 16


def test_answers_in_another_order_are_put_right_by_name():
    images = tiny.images(3)
    with LLMServer(dialects=("decisions",), decimals=None) as server:
        server.mangle = lambda number, answer, body: {**answer, "answers": answer["answers"][::-1]}
        teacher = served(server)
        reading = teacher.read(images, BANK)
        np.testing.assert_allclose(reading.logits.numpy(), expected(server, teacher, images)[..., 0], atol=1e-5)


def test_refusals_are_nan_and_counted(tmp_path):
    def refuse(number, answer, body):
        for each in answer["answers"]:
            if each["name"] == "q1" and each["probability"] > 0.5:
                each.clear()
                each |= {"type": "refusal", "name": "q1"}
        return answer

    images = plain(30)
    with LLMServer(Model(spread=1.0), dialects=("decisions",), mangle=refuse) as server:
        teacher = served(server)
        p = 1 / (1 + np.exp(-expected(server, teacher, images)[:, 1, 0]))
        refused = p.round(2) > 0.5
        labelled = attach_aspects(rows_of(images), BANK, teacher, work_dir=tmp_path)
    logits = np.array(labelled["aspect_logits"][:])
    assert 0 < refused.sum() < 30 and np.isnan(logits[refused, 1]).all()
    assert np.isfinite(logits[:, [0, 2]]).all() and labelled["aspect_mass"][0] is None
    count = np.isnan(logits).sum()
    assert count_missing(labelled) == {"answers": 90, "refused": count, "without_yes_or_no": 0}


def test_a_moderated_image_is_a_refusal():
    from builders.openai_server import Fault

    flagged = '{"error": {"message": "Your input was flagged", "code": "content_policy_violation"}}'
    with LLMServer() as server:
        teacher = served(server)
        dark = {teacher.dialect.text(BANK.questions[0])}
        server.fault = lambda n, path, body: Fault(400, body=flagged) if dark & set(texts_of(body)) else None
        reading = teacher.read(tiny.images(2), BANK)
    assert reading.missing.numpy().tolist() == [[True, False, False]] * 2
    assert np.isnan(reading.mass.numpy()[:, 0]).all() and np.isfinite(reading.mass.numpy()[:, 1:]).all()


def texts_of(body):
    return [part["text"] for part in body["messages"][-1]["content"] if part["type"] == "text"]


def rows_of(images):
    from datasets import Dataset

    return Dataset.from_dict({"image": images})


def test_several_servers_share_the_work_and_one_may_fail():
    images, model = tiny.images(20), Model()
    with LLMServer(model) as one, LLMServer(model) as other:
        teacher = load_teacher(f"{one.url} {other.url}", model="tiny", retries=1, requests=4)
        other.fault = lambda number, path, body: "drop" if number > 12 else None
        reading = teacher.read(images, BANK)
        truth = expected(one, teacher, images)
    np.testing.assert_allclose(reading.logits.numpy(), truth[..., 0], atol=1e-5)
    assert len(one.requests) > 20 and len(other.requests) > 12


def test_servers_of_different_models_are_refused():
    with LLMServer() as one, LLMServer(Model(seed=1)) as other:
        with pytest.raises(ValueError, match=f"{other.port} serves another model under the name 'tiny' than"):
            load_teacher(f"{one.url} {other.url}", model="tiny")


def test_the_first_question_of_an_image_goes_alone():
    arrived = {}  # number of a request -> how many had come when it was answered

    def note(number, answer, body):
        arrived[number] = len(server.requests)
        return answer

    with LLMServer(seconds=0.02, mangle=note) as server:
        teacher = served(server, requests=8)
        before = len(server.requests)
        teacher.read(tiny.images(3), many_questions(6))
    places: dict[str, list[int]] = {}
    for number, (_, body) in enumerate(server.requests[before:], before):
        places.setdefault(body["messages"][-1]["content"][0]["image_url"]["url"], []).append(number)
    assert [len(numbers) for numbers in places.values()] == [6, 6, 6]
    assert all(later >= arrived[first] for first, *others in places.values() for later in others)
    assert server.most_at_once <= 8


def test_crops_are_read_like_images(tmp_path):
    from builders.coco import coco_rows

    rows = coco_rows(4)
    with LLMServer(dialects=("decisions",)) as server:
        labelled = attach_aspects(
            rows, BANK, served(server), work_dir=tmp_path, boxes_column="objects", box_format="pascal_voc"
        )
    with LLMServer() as server:
        exact = attach_aspects(
            rows, BANK, served(server), work_dir=tmp_path / "exact", boxes_column="objects", box_format="pascal_voc"
        )
    for row, same in zip(labelled, exact):
        objects = len(row["objects"]["bbox"])
        assert np.shape(row["aspect_logits"])[:1] == (objects,) and row["aspect_mass"] == [None] * objects
        assert np.shape(same["aspect_mass"]) == np.shape(row["aspect_logits"])
    assert count_missing(labelled)["refused"] == 0 < count_missing(labelled)["answers"]
