"""Whole pages, cards and pictures whose names, questions, classes and licences strangers wrote."""

import ast
import contextlib
import json
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from builders import tiny
from builders.hostile import STRINGS, alive_in_markdown, alive_in_terminal, headings, python_blocks, table_sizes
from datasets import ClassLabel, Dataset, Features, Image, List, SplitInfo, Value
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard
from transformers import ViTImageProcessorPil

from madkd_hf import Aspect, AspectBank, MadkdForImageClassification, report
from madkd_hf.aspects import LONGEST
from madkd_hf.data.columns import read_answers
from madkd_hf.hub.cards.comparison import read_comparison
from madkd_hf.hub.cards.dataset import DatasetFacts, dataset_card, source_terms
from madkd_hf.hub.cards.results import Evaluation
from madkd_hf.hub.cards.student import StudentFacts
from madkd_hf.hub.sources import DataSource
from madkd_hf.hub.student import stage_student
from madkd_hf.hub.upload import HubRepo
from madkd_hf.llm import LLMError
from madkd_hf.llm.server import ServerLLM
from madkd_hf.questions import Rules, fault
from madkd_hf.questions.store import QuestionTask, Store
from madkd_hf.report.classes import summarise_classes, write_classes
from madkd_hf.report.scenes import plot_examples
from madkd_hf.selection.choice import select_questions
from madkd_hf.selection.evidence import evidence_table, write_evidence
from madkd_hf.selection.information import QuestionEvidence
from madkd_hf.selection.page import write_selection
from madkd_hf.students.models.modeling_madkd import AspectAnswers
from madkd_hf.text import hidden_character


ALL = list(STRINGS.values())
LEGAL = [s for s in ALL if hidden_character(" ".join(s.split("\n"))) is None and len(s) <= LONGEST["id"]]  # for a bank
ONE_LINE = [s for s in LEGAL if "\n" not in s]
WRITABLE = [s for s in ALL if s.isascii() or not any("\ud800" <= c <= "\udfff" for c in s)]  # what Arrow can hold
ENDPOINT = "http"


def strange_bank() -> AspectBank:
    aspects = [Aspect(name, f"Is it {name}?", ONE_LINE[k // 4]) for k, name in enumerate(ONE_LINE)]
    provenance = {name: [name] for name in ALL} | {"model": STRINGS["link"], "commit": STRINGS["html"]}
    return AspectBank(aspects, provenance | {"dataset": {"id": STRINGS["image"], "commit": "a" * 40, "config": "`|"}})


BANK = strange_bank()


def labelled(count: int = 200) -> Dataset:
    """Answers, and classes that are all the strings."""
    generator = np.random.default_rng(0)
    features = {"label": ClassLabel(names=WRITABLE), "aspect_bank": Value("string")}
    features |= {name: List(Value("float32"), length=len(BANK)) for name in ("aspect_logits", "aspect_mass")}
    columns = {"label": generator.integers(0, len(WRITABLE), count), "aspect_bank": [BANK.fingerprint] * count}
    columns["aspect_logits"] = generator.normal(size=(count, len(BANK)), scale=3)
    columns["aspect_logits"][:, 1] = columns["aspect_logits"][:, 0]  # one says the same as another
    columns["aspect_logits"][:, 2] = 9
    columns["aspect_mass"] = generator.uniform(0, 1, size=(count, len(BANK)))
    return Dataset.from_dict(columns, Features(features))


@pytest.fixture(scope="module")
def rows() -> Dataset:
    return labelled()


def sound(page: str, titles: int) -> None:
    """Nothing in a page is alive, and nothing in it is taken for structure of ours."""
    assert alive_in_markdown(page) == []
    assert len(headings(page)) == titles, headings(page)
    lines = page.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("| --"):
            size = table_sizes(lines[number - 1])
            end = next((k for k in range(number, len(lines)) if not lines[k].startswith("|")), len(lines))
            assert table_sizes("\n".join(lines[number:end])) == size * (end - number)


def test_there_are_forty_strings_and_more_for_every_exit():
    assert len(ALL) >= 40 and len(WRITABLE) >= 40 and len(ONE_LINE) >= 25


def test_the_page_on_questions(rows, tmp_path):
    evidence = write_evidence(rows, BANK, tmp_path)
    page = (tmp_path / "questions.md").read_text(encoding="utf-8")
    sound(page, 1)
    assert all(f"Is it {name[:20]}" for name in ONE_LINE)
    assert page.count("**Warning.**") == 4
    assert alive_in_terminal("\n".join([evidence.table, *evidence.warnings])) == []
    assert all((tmp_path / "figures" / f"{name}.png").stat().st_size > 1000 for name in ("questions", "teacher"))
    assert {each["id"] for each in json.loads((tmp_path / "questions.json").read_text())["questions"]} == set(BANK.ids)


def test_tables_of_questions_that_no_bank_would_take():
    rows = [QuestionEvidence(s, s, 3, 0.5, 0.5, 0.5, 0.5, notes=(f"same as {s}", s)) for s in ALL]
    sound(evidence_table(rows, questions=True), 0)


def test_the_page_on_a_choice_of_questions(rows, tmp_path):
    logits, mass, _ = read_answers(rows, BANK)
    labels = [ALL[3 * int(row[3] > 0) + int(row[4] > 0)] for row in logits]
    write_selection(select_questions(logits, mass, labels, BANK, 5), tmp_path)
    sound((tmp_path / "selection.md").read_text(encoding="utf-8"), 1)


def test_the_page_on_classes(tmp_path):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, len(ALL), 300)
    logits = {name: [generator.normal(size=(300, len(ALL))) for _ in range(2)] for name in ("base", "madkd")}
    write_classes(summarise_classes(logits, labels, ALL), tmp_path)
    sound((tmp_path / "classes.md").read_text(encoding="utf-8"), 3)


def test_pictures_with_their_names(tmp_path):
    few = ALL[:8]
    p = np.random.default_rng(0).uniform(size=(8, len(ALL)))
    plot_examples(tiny.images(8, 20), few, few[::-1], p, p, ALL, tmp_path / "examples.png")
    report.summarise([{"condition": "base", "seed": 0, "accuracy": 1.0}])


def test_the_report(tmp_path):
    draw = random.Random(0).choice
    cells = [{"condition": name, "seed": k, "accuracy": 50 + k} for name in ("base", "madkd") for k in range(2)]
    for _ in range(5):
        about = {name: draw(ALL) for name in ("dataset", "student", "command")}
        about |= {"teacher": {draw(ALL): draw(ALL) for _ in range(20)} | {"model": draw(ALL)}}
        about |= {"seconds": {draw(ALL): 1.0 for _ in range(5)}}
        page = report.write_report({**report.summarise(cells), **about}, tmp_path).read_text(encoding="utf-8")
        sound(page, 4)


@pytest.mark.parametrize("seed", range(3))
def test_the_card_of_a_dataset(rows, tmp_path, seed):
    draw = random.Random(seed).choice
    image, label = draw(WRITABLE), "label"
    features = Features({image: Image(), **rows.features})
    evidence = write_evidence(rows, BANK, tmp_path)
    licence = {"license": "other", "license_name": draw(ALL), "license_link": draw(ALL)} if seed % 2 else {}
    splits = [SplitInfo("train", 10, len(rows)), SplitInfo("test", 10, 3)]
    facts = DatasetFacts(
        "you/birds", features, splits, {"train": [0], "test": []}, 1, BANK, image, label if seed % 3 else None, licence
    )
    card = dataset_card(facts, evidence)
    card.save(tmp_path / "README.md")
    read = DatasetCard.load(tmp_path / "README.md")
    found = DatasetInfosDict.from_dataset_card_data(read.data)["default"].features
    names = [name.replace("\x85", " ") for name in WRITABLE]  # YAML takes that character for the end of a line
    assert list(found) == list(features) and found["label"].names == names
    assert read.data.to_dict().keys() >= {"tags", "dataset_info", "configs"}
    sound(read.text, 6)
    (code,) = python_blocks(read.text)
    literals = {node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)}
    assert "you/birds" in literals and (image in literals or not facts.label_column)


@pytest.mark.parametrize("plain", [False, True])
def test_the_card_of_a_student(tmp_path, plain):
    torch.manual_seed(0)
    classes = dict(enumerate(WRITABLE))
    model = MadkdForImageClassification.from_backbone(tiny.resnet(), classes, BANK)
    evaluations = [
        Evaluation(s, {"accuracy": 0.5, s: 0.5}, 12, s, [0.5] * len(BANK), DataSource(s, "a" * 40)) for s in ALL[::6]
    ]
    facts = StudentFacts(
        DataSource(STRINGS["image"], "b" * 40, STRINGS["html"]),
        datasets=ALL[:3],
        evaluations=evaluations,
        hyperparameters={s: s for s in ALL},
        license="mit",
        tags=ALL[3:6],
        model_name=STRINGS["link"],
        finetuned_from=STRINGS["autolink"],
    )
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    stage_student(tmp_path, model, processor, HubRepo("you/birds", "model", revision='b"r'), facts, plain)
    content = (tmp_path / "README.md").read_text(encoding="utf-8")
    front, page = content.split("\n---\n", 1)
    data = yaml.safe_load(front.removeprefix("---\n"))
    assert data["license"] == "mit" and "model-index" in data
    assert alive_in_terminal(json.dumps(data, ensure_ascii=False)) == []
    sound(page, 8)
    for code in python_blocks(page):
        literals = {node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)}
        assert "you/birds" in literals or "photo.jpg" in literals


def test_what_a_published_student_says_of_an_image_is_printed_without_control_characters():
    found = [{"label": s, "score": 0.5} for s in ALL]
    assert alive_in_terminal(str(AspectAnswers(classes=found, aspects=found))) == []


# What the Hub and other people's folders hold


LICENCES = {
    "html": "license: <img src=x onerror=alert(1)>",
    "a list": "license: [mit, '![x](http://x.example/t.png)']",
    "a mapping": "license: {a: [b]}",
    "a number": "license: 7",
    "a date": "license: 2020-01-01",
    "nested": "license: [[mit]]",
    "a script": "license: other\nlicense_name: {a: b}\nlicense_link: 'javascript:alert(1)'",
    "an address that is none": "license: other\nlicense_name: x\nlicense_link: 'https://x\" onload=\"y'",
    "a language that is none": "license: mit\nlanguage: {en: de}",
    "controls": 'license: other\nlicense_name: "\\e[2J"',
}


def test_licences_that_are_none_reach_the_card_as_text(hub, rows, tmp_path):
    evidence = write_evidence(rows, BANK, tmp_path)
    splits = [SplitInfo("train", 10, len(rows))]
    for stated in LICENCES.values():
        commit = hub.add_repo("stranger/birds", {"README.md": f"---\n{stated}\n---\n".encode()}, "dataset")
        terms = source_terms({"id": "stranger/birds", "commit": commit}, None, HubRepo("you/birds", "dataset"))
        assert all(isinstance(value, (str, list)) for value in terms.values())
        assert terms.get("license_link", hub.url).startswith(hub.url)
        facts = DatasetFacts("you/birds", rows.features, splits, {"train": [0]}, 1, BANK, "image", None, terms)
        card = dataset_card(facts, evidence)
        sound(card.text, 6)
        card.validate()


DAMAGE = {
    "classes": "<img src=x>",
    "images_per_class": "![x](http://x.example)",
    "scenes": ["<b>"],
    "dataset": 7,
    "gain": {"mean": "<b>", "ci95": [0, 1]},
    "accuracy": {"base": ["<b>"] * 10},
    "controls": {"shuffled": "<b>"},
}


def test_a_comparison_with_texts_in_the_place_of_numbers_is_refused(tmp_path):
    known = json.loads((Path(__file__).parents[1] / "recipes/easy_vqa/results/report.json").read_text())
    for key, value in DAMAGE.items():
        (tmp_path / "report.json").write_text(json.dumps(known | {key: value}))
        with pytest.raises(ValueError, match="holds no comparison") as caught:
            read_comparison(tmp_path)
        assert alive_in_terminal(str(caught.value)) == []


def test_pictures_of_a_comparison_are_pictures_and_no_links(tmp_path):
    from madkd_hf.hub.cards.comparison import copy_figures

    (tmp_path / "secret.txt").write_text("SECRET")
    tiny.images(1)[0].save(tmp_path / "private.png")
    figures = tmp_path / "compared" / "figures"
    figures.mkdir(parents=True)
    (figures / "accuracies.png").symlink_to(tmp_path / "private.png")
    (figures / "ap.png").write_text("<script>alert(1)</script>")
    (figures / "aspect_learning.png").symlink_to(tmp_path / "secret.txt")
    tiny.images(1)[0].save(figures / "learning_curves.png")
    assert list(copy_figures(tmp_path / "compared", tmp_path / "out")) == ["learning_curves.png"]
    assert [path.name for path in (tmp_path / "out" / "figures").iterdir()] == ["learning_curves.png"]


# What LLMs and their servers send


def server_that_says(answer: bytes, length: str) -> Iterator[str]:
    """One answer with headers of its own choice, for each connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection:
                        connection.recv(100_000)
                        connection.sendall(b"HTTP/1.1 200 OK\r\n" + length.encode() + b"\r\n\r\n" + answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_server_that_says_any_size_gets_a_sentence_and_no_memory():
    sizes = [f"Content-Length: {size}" for size in (10**15, 10**30, -5, "x")]
    for length in [*sizes, "X: y", "Transfer-Encoding: chunked", "Content-Encoding: gzip"]:
        for url in server_that_says(b'{"choices"', length):
            llm = ServerLLM("m", url, "sk-" + "k" * 30, retries=0, timeout=20)
            with pytest.raises(LLMError) as caught:
                llm.complete([{"role": "user", "content": "x"}])
            assert str(caught.value).startswith("The server at 127.0.0.1")
            assert alive_in_terminal(str(caught.value)) == []


ROW = {"round": 0, "llm": "m", "id": "red", "question": "Is it red?", "group": "visual"}
LINES = {
    "a number": {**ROW, "question": 7},
    "null": {**ROW, "question": None},
    "a list": {**ROW, "question": ["Is it red?"]},
    "a mapping": {**ROW, "id": {"a": 1}},
    "a group that is a number": {**ROW, "group": 7},
    "a round that is text": {**ROW, "round": "0"},
    "a round that is no number": {**ROW, "round": float("nan")},
    "a round below 0": {**ROW, "round": -1},
    "no object": ["Is it red?"],
    "a text": "Is it red?",
    "nothing": None,
}


@pytest.mark.parametrize("name", ["candidates.jsonl", "rejected.jsonl"])
def test_lines_that_are_no_questions_are_named(tmp_path, name):
    task = QuestionTask(("cat", "dog"), "", "m")
    store = Store(tmp_path, task, Rules())
    store.add(Aspect("red", "Is it red?", "visual"), 0)
    good = json.dumps(ROW) + "\n"
    for line in LINES.values():
        (tmp_path / name).write_text(good + json.dumps(line) + "\n" + good)
        with pytest.raises(ValueError, match=f"Line 2 of .*{name}"):
            Store(tmp_path, task, Rules())


def test_questions_with_hidden_characters_are_not_taken_from_an_llm_either(tmp_path):
    for hostile in ALL:
        found = fault(f"Is it {hostile}?", Rules(max_characters=10**6, max_words=10**6, any_language=True))
        legal = hidden_character(" ".join(f"Is it {hostile}?".split("\n"))) is None and len(hostile) < 1_900
        assert found is not None or legal, ascii(hostile)
