"""What would be published of a student, without a Hub: its files, and its card."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from builders import tiny
from builders.published_students import (
    ASPECT_FILES,
    BANK,
    CLASSES,
    CODE,
    LEADERBOARDS,
    PLAIN_FILES,
    PROCESSOR,
    compared,
    student,
)
from huggingface_hub import EvalResultEntry, ModelCard, parse_eval_result_entries
from transformers import AutoModelForImageClassification

from madkd_hf import AspectBank, MadkdConfig, MadkdForImageClassification
from madkd_hf.hub.cards.comparison import read_comparison
from madkd_hf.hub.cards.results import Evaluation
from madkd_hf.hub.cards.student import StudentFacts
from madkd_hf.hub.sources import DataSource
from madkd_hf.hub.student import stage_student
from madkd_hf.hub.upload import HubRepo
from madkd_hf.report.comparison import verdict


def facts(**changed) -> StudentFacts:
    metrics = {"accuracy": 0.5, "top5_accuracy": 1.0, "aspect_auroc": 0.75, "aspect_bce": 0.4, "loss": 2.0}
    evaluations = [
        Evaluation("validation", metrics, 12, "validation", [0.5, float("nan"), 1.0]),
        Evaluation("test", metrics, 8, "test"),
    ]
    settings = {"dataset": DataSource("you/birds", "a" * 40), "evaluations": evaluations, "license": "mit"}
    return StudentFacts(**{**settings, "hyperparameters": {"learning_rate": 0.1}, **changed})


def staged(folder: Path, model=None, plain: bool = False, **changed) -> dict[str, bytes]:
    stage_student(folder, model or student(), PROCESSOR, HubRepo("you/birds", "model"), facts(**changed), plain)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Without a Hub: what would go up


@pytest.mark.parametrize("plain", [False, True])
def test_a_stage_holds_what_a_stranger_needs_and_nothing_else(tmp_path, plain):
    files = staged(tmp_path / "one", plain=plain)
    assert set(files) == (PLAIN_FILES if plain else ASPECT_FILES) - {".gitattributes"} | LEADERBOARDS
    assert staged(tmp_path / "two", plain=plain) == files


def test_no_folder_of_this_machine_goes_up(tmp_path):
    backbone = tmp_path / "secretfolder"
    AutoModelForImageClassification.from_config(tiny.resnet()).save_pretrained(backbone)
    bank = AspectBank(BANK.aspects, {"model": str(tmp_path / "teacher"), "commit": None})
    model = MadkdForImageClassification.from_backbone(str(backbone), CLASSES, bank)
    assert model.config.base_model is None and model.config.aspect_teacher == {"model": "teacher", "commit": None}
    for plain in (False, True):
        data = DataSource(str(tmp_path / "pictures"))
        files = staged(tmp_path / f"out {plain}", model, plain, dataset=data)
        assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
        assert "`pictures`" in files["README.md"].decode() and "`teacher`" in files["README.md"].decode()


def test_old_configs_load_and_new_ones_remember_their_origin(tmp_path):
    origin = {
        "base_model": "you/base",
        "base_model_revision": "a" * 40,
        "aspect_teacher": {"model": "m", "commit": None},
    }
    aspects = {"aspect_ids": BANK.ids, "aspect_questions": BANK.questions, "aspect_bank": BANK.fingerprint}
    config = MadkdConfig(tiny.resnet(), **aspects, **origin)
    config.save_pretrained(tmp_path)
    loaded = MadkdConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in origin} == origin
    content = json.loads((tmp_path / "config.json").read_text())
    for name in [*origin, "aspect_groups"]:
        content.pop(name, None)
    (tmp_path / "config.json").write_text(json.dumps(content))
    old = MadkdConfig.from_pretrained(tmp_path)
    assert old.base_model is None and old.aspect_ids == BANK.ids


@pytest.mark.parametrize("kind", ["aspects", "plain", "base"])
def test_the_front_matter_is_what_the_hub_reads(tmp_path, kind):
    model = student(None if kind == "base" else BANK)
    model.config.base_model, model.config.base_model_revision = "microsoft/resnet-18", "b" * 40
    staged(tmp_path, model, plain=kind == "plain")
    card = ModelCard.load(tmp_path / "README.md")
    data = card.data
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "image-classification", "mit")
    assert data.base_model == "microsoft/resnet-18" and data.datasets == ["you/birds"] and "madkd" in data.tags
    assert {result.dataset_split for result in data.eval_results} == {"validation", "test"}
    first = data.eval_results[0]
    assert (first.dataset_type, first.dataset_revision, first.metric_type) == ("you/birds", "a" * 40, "accuracy")
    assert first.metric_value == 0.5 and "top5_accuracy" not in {result.metric_type for result in data.eval_results}
    assert ("roc_auc" in {result.metric_type for result in data.eval_results}) == (kind != "plain")
    assert ("trust_remote_code=True" in card.text) == (kind != "plain")
    assert ('"aspect-classification"' in card.text) == (kind == "aspects")
    assert {name for name in CODE if f"`{name}`" in card.text} == (set() if kind == "plain" else CODE)
    said = {"aspects": "a student with 3 aspect outputs", "plain": "needs\nno remote code", "base": "without aspects"}
    assert said[kind] in card.text


def test_without_a_licence_or_a_hub_dataset_the_card_says_so(tmp_path):
    data = DataSource("recipes.birds:load")
    staged(tmp_path, dataset=data, license=None)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license is None and card.data.datasets is None and "No licence was chosen" in card.text
    result = card.data.eval_results[0]
    assert (result.dataset_type, result.dataset_name) == ("local", "recipes.birds:load")
    assert result.dataset_revision is None
    staged(tmp_path, dataset=None)
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.eval_results[0].dataset_type, card.data.eval_results[0].dataset_name) == (
        "local",
        "local images",
    )
    assert "Measured" not in card.text


def test_what_a_person_added_to_the_card_stays(tmp_path):
    kept = {"license": "cc0-1.0", "language": "de", "extra_gated_prompt": "Who are you?", "model_name": "old"}
    for given, expected in ({"license": None}, "cc0-1.0"), ({"license": "mit", "language": "en"}, "mit"):
        stage_student(tmp_path, student(), PROCESSOR, HubRepo("you/birds", "model"), facts(**given), False, kept)
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.license == expected and f"`{expected}`." in card.text
        assert card.data.language == given.get("language", "de")
        assert card.data.to_dict()["extra_gated_prompt"] == "Who are you?" and card.data.model_name == "birds"


def test_results_say_whose_images_they_are_from_and_are_numbers(tmp_path):
    other = DataSource("you/others", "b" * 40)
    found = [
        Evaluation("test", {"accuracy": 0.5, "f1": 0.25, "confusion": {"cat": 1}, "loss": 2.0, "runtime": 1.0}, 12),
        Evaluation("test", {"accuracy": np.float32(0.75), "f1": None, "precise": True}, 8, dataset=other),
        Evaluation("unlabelled", {"loss": float("nan"), "runtime": 1.0}, 4),
    ]
    staged(tmp_path, evaluations=found)
    card = ModelCard.load(tmp_path / "README.md")
    assert "Test of you/birds (12 images) | Test of you/others (8 images) |" in card.text
    assert re.search(r"\| f1 +\| +0\.250 \|", card.text) and re.search(r"50\.0% \| +75\.0%", card.text)
    assert "nlabelled" not in card.text and "confusion" not in card.text and "precise" not in card.text
    assert "Measured: test on [you/birds](" in card.text and ", test on [you/others](" in card.text
    told = {(each.dataset_type, each.metric_type): each.metric_value for each in card.data.eval_results}
    assert told == {("you/birds", "accuracy"): 0.5, ("you/birds", "f1"): 0.25, ("you/others", "accuracy"): 0.75}


def test_the_hub_lists_one_number_of_each_of_its_datasets(tmp_path):
    other = DataSource("you/others", "main", "small")
    found = [
        Evaluation("test", {"accuracy": 0.5}, 8, "test"),
        Evaluation("validation", {"accuracy": 0.75}, 12, "validation"),
        Evaluation("new", {"accuracy": 0.25, "macro_f1": 0.5}, dataset=other),
        Evaluation("mine", {"accuracy": 1.0}, 4, dataset=DataSource("recipes.birds:load")),
    ]
    entries = parse_eval_result_entries(
        yaml.safe_load(staged(tmp_path, evaluations=found)[".eval_results/madkd.yaml"])
    )
    assert entries == [
        EvalResultEntry("you/birds", "default", 0.5, dataset_revision="a" * 40, notes="accuracy, test, 8 images"),
        EvalResultEntry("you/others", "small", 0.25, notes="accuracy, new"),
    ]


def test_weights_that_are_no_model_of_the_hub_are_no_base_model(tmp_path):
    for name, expected in ("microsoft/resnet-18", "microsoft/resnet-18"), (str(tmp_path / "mybackbone"), None):
        staged(tmp_path / "out", finetuned_from=name)
        card = ModelCard.load(tmp_path / "out" / "README.md")
        assert card.data.base_model == expected and str(tmp_path) not in card.content
    assert "`mybackbone`" in card.text


def test_the_card_survives_strange_questions(tmp_path):
    model = student()
    model.config.aspect_questions[0] = "Is it |red| <b>or</b>\nblue {{ 1 }} ?"
    staged(tmp_path, model)
    text = (tmp_path / "README.md").read_text()
    assert r"Is it \|red\| \<b\>or\</b\> blue {{ 1 }} ?" in text


def test_a_comparison_goes_into_the_card_without_pictures_of_images(tmp_path):
    files = staged(tmp_path / "out", comparison=compared(tmp_path / "compared"))
    assert {name for name in files if name.endswith(".png")} == {
        "figures/accuracies.png",
        "figures/aspect_learning.png",
    }
    text = files["README.md"].decode()
    assert verdict(json.loads((tmp_path / "compared" / "report.json").read_text())["gain"]) in text
    assert "shuffled: aspects of other images" in text and "madkd: classes + aspects" in text
    assert "figures/accuracies.png" in text and "learning_curves" not in text
    said = (
        "16 students were trained for the comparison on `recipes.easy_vqa.data:load_easy_vqa` (12 classes), 5 images "
    )
    assert f"{said}per class: 4 conditions with 4 seeds each." in text and "and neither control: `shuffled`" in text
    assert "in this repo is one of them" not in text
    files = staged(tmp_path / "own", comparison=tmp_path / "compared", compared=True)
    assert "with 4 seeds each; the student in this repo is one of them." in files["README.md"].decode()


def test_a_small_comparison_promises_no_more_than_it_holds(tmp_path):
    accuracy = {"base": [50.0], "madkd": [60.0]}
    small = {
        "seeds": [0],
        "images_per_class": 1,
        "gain": {"mean": 10.0, "ci95": [None, None]},
        "controls": {},
        "answers_alone": None,
        "gains": {},
    }
    compared(tmp_path / "two", accuracy=accuracy, **small)
    text = staged(tmp_path / "out", comparison=tmp_path / "two", compared=True)["README.md"].decode()
    assert ", 1 image per class: 2 conditions with one seed; the student in this repo is one of them." in text
    assert "Accuracies are on the test images.\n" in text and "interval." not in text and "control" not in text
    compared(tmp_path / "one", accuracy={"madkd": [60.0]}, **small | {"gain": None})
    text = staged(tmp_path / "out", comparison=tmp_path / "one", compared=True)["README.md"].decode()
    assert "1 student was trained for the comparison" in text and "1 condition with one seed; the student in" in text


def test_smoothed_labels_are_a_control_on_the_card(tmp_path):
    accuracy = {"base": [50.0, 51.0], "madkd": [60.0, 62.0], "smoothing": [52.0, 53.0]}
    gains = {"gain": {"mean": 10.5, "ci95": [4.1, 16.9]}, "controls": {"smoothing": {"mean": 2.0, "ci95": [2.0, 2.0]}}}
    gains["gains"] = {"madkd": {"base": gains["gain"], "smoothing": {"mean": 8.5, "ci95": [2.1, 14.9]}}}
    compared(tmp_path / "run", accuracy=accuracy, seeds=[0, 1], smoothing=0.1, **gains)
    text = staged(tmp_path / "out", comparison=tmp_path / "run")["README.md"].decode()
    assert "and not the control: `smoothing` learns the classes alone, with labels smoothed by 0.1." in text
    assert "Over label smoothing, in points [95% interval]: `madkd` +8.50 [+2.10, +14.90]." in text
    assert "| smoothing: classes only, labels smoothed " in text
    with pytest.raises(ValueError, match="holds no comparison"):
        read_comparison(compared(tmp_path / "other", smoothing="a lot"))


def test_what_the_card_cannot_use_is_no_comparison(tmp_path):
    for number, changed in enumerate([{"seeds": None}, {"seeds": [0]}, {"accuracy": {}}, {"gain": {"mean": 1}}]):
        compared(tmp_path / str(number), **changed)
        with pytest.raises(ValueError, match="holds no comparison .*: pass the output folder of a finished"):
            read_comparison(tmp_path / str(number))


def test_a_comparison_about_other_questions_and_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no comparison .*: pass the output folder of a finished"):
        staged(tmp_path / "out", comparison=tmp_path)
    for number, changed in enumerate([{"bank": "0" * 16}, {"bank": None, "aspect_auroc": {"other": 0.5}}]):
        place = compared(tmp_path / str(number), **changed)
        message = "is about other questions than the student's, .*: pass one with the same bank"
        with pytest.raises(ValueError, match=message):
            staged(tmp_path / "out", comparison=place)
        staged(tmp_path / "out", student(None), comparison=place)
