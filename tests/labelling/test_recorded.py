"""Answers that were given elsewhere: what is read, how it reaches the rows, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from builders import tiny
from builders.commands import command, recipe, refuse
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_from_disk
from scipy.special import expit, logit
from transformers import ViTImageProcessorPil

from madkd_hf import AspectBank, attach_aspects
from madkd_hf.labelling.answer_files import read_answers_file
from madkd_hf.labelling.recorded import attach_recorded_answers


BANK = AspectBank(["Is it red?", "Is it round?", "Is it wet?"])
YES = {"a.png": [0.9, 0.2, 0.5], "b.png": [0.1, 0.8, 0.4], "c.png": [0.3, 0.3, 0.6]}


def photos(names, folder, split="train") -> Dataset:
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in zip(names, tiny.images(len(names))):
        image.save(folder / name)
    features = Features({"image": Image(), "label": ClassLabel(names=["x", "y"]), "name": Value("string")})
    columns = {"image": [str(folder / name) for name in names], "label": [i % 2 for i in range(len(names))]}
    return Dataset.from_dict({**columns, "name": [name[0] for name in names]}, features, split=split)


def write(path, records) -> str:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(records), encoding="utf-8")
    elif path.suffix == ".csv":
        pd.DataFrame(records).to_csv(path, index=False)
    else:
        pd.DataFrame(records).to_parquet(path)
    return str(path)


def lists(values=YES) -> list[dict]:
    return [{"file": name, "yes": answers} for name, answers in values.items()]


def columns(values=YES) -> list[dict]:
    return [{"file": name, **dict(zip(BANK.ids, answers))} for name, answers in values.items()]


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("shape", ["list", "columns"])
def test_every_format_gives_the_same_columns_whatever_the_order(tmp_path, ending, shape):
    rows = photos(list(YES), tmp_path / "photos")
    records = (lists() if shape == "list" else columns())[::-1]
    file = write(tmp_path / f"answers.{ending}", records)
    answers = read_answers_file(file, BANK, field="yes" if shape == "list" else None, key="file", model="GPT")
    labelled = attach_recorded_answers(rows, answers)
    np.testing.assert_allclose(labelled["aspect_logits"][:], logit(list(YES.values())), atol=1e-6)
    assert labelled["aspect_mass"][:] == [None] * 3
    assert labelled["aspect_bank"][:] == [BANK.fingerprint] * 3
    reference = attach_aspects(photos([], tmp_path), BANK, None)
    assert labelled.features == reference.features
    about = answers.provenance["recorded"]
    assert answers.provenance["model"] == "GPT" and about["decimals"] == 1 and about["records"] == 3


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_a_mapping_from_files_to_answers_is_read(tmp_path, ending):
    one_each = [{f"photos/{name}": answers} for name, answers in YES.items()]
    content = one_each + one_each[:1] if ending == "jsonl" else YES  # what is said twice and the same is said once
    answers = read_answers_file(write(tmp_path / f"answers.{ending}", content))
    assert answers.bank.ids == ["q01", "q02", "q03"] == answers.bank.unpublished
    labelled = attach_recorded_answers(photos(["c.png", "a.png", "b.png"], tmp_path / "photos"), answers)
    np.testing.assert_allclose(expit(labelled["aspect_logits"][:])[:, 0], [0.3, 0.9, 0.1], atol=1e-6)


def test_records_in_the_order_of_the_rows_need_no_key(tmp_path):
    file = write(tmp_path / "answers.jsonl", [{"yes": answers} for answers in YES.values()])
    answers = read_answers_file(file, BANK, field="yes")
    splits = DatasetDict(
        {"train": photos(list(YES), tmp_path / "p"), "test": photos(["d.png"], tmp_path / "p", "test")}
    )
    labelled = attach_recorded_answers(splits, answers, splits="train")
    np.testing.assert_allclose(expit(labelled["train"]["aspect_logits"][:]), list(YES.values()), atol=1e-6)
    assert labelled["test"]["aspect_logits"][:] == labelled["test"]["aspect_bank"][:] == [None]
    with pytest.raises(ValueError, match="3 records for the 1 images of split 'test'"):
        attach_recorded_answers(splits, answers, splits="test")
    with pytest.raises(ValueError, match="answer one split"):
        attach_recorded_answers(splits, answers)


def test_a_column_may_hold_the_keys(tmp_path):
    rows = photos(list(YES), tmp_path / "photos")
    records = [{"id": name[0], "yes": answers} for name, answers in YES.items()]
    answers = read_answers_file(write(tmp_path / "answers.csv", records), BANK, field="yes", key="id")
    labelled = attach_recorded_answers(rows, answers, key_column="name")
    np.testing.assert_allclose(expit(labelled["aspect_logits"][:]), list(YES.values()), atol=1e-6)


def test_records_of_files_with_one_name_in_two_folders_are_not_mistaken_for_each_other(tmp_path):
    values = {"x/a.png": YES["a.png"], "y/a.png": YES["b.png"], "y/c.png": YES["c.png"]}
    answers = read_answers_file(write(tmp_path / "a.json", lists(values)), BANK, field="yes", key="file")
    rows = photos(["a.png", "c.png"], tmp_path / "photos")
    with pytest.raises(ValueError, match="1 of the 2 images of split 'train' have no record, the first is 'a.png'"):
        attach_recorded_answers(rows, answers, on_unused="ignore")
    rows = rows.remove_columns("name").add_column("name", ["y/a.png", "y/c.png"])  # a column names them exactly
    labelled = attach_recorded_answers(rows, answers, key_column="name", on_unused="ignore")
    np.testing.assert_allclose(expit(labelled["aspect_logits"][:]), [YES["b.png"], YES["c.png"]], atol=1e-6)


def test_log_odds_and_words(tmp_path):
    values = {name: logit(answers).tolist() for name, answers in YES.items()}
    answers = read_answers_file(write(tmp_path / "a.json", lists(values)), BANK, kind="log_odds", field="yes")
    np.testing.assert_allclose(answers.logits, list(values.values()))
    words = {"a.png": ["yes", "No", "YES."], "b.png": ["no", "no", " yes"]}
    answers = read_answers_file(write(tmp_path / "b.json", lists(words)), BANK, kind="words", field="yes")
    np.testing.assert_allclose(expit(answers.logits), [[0.975, 0.025, 0.975], [0.025, 0.025, 0.975]])
    assert answers.provenance["recorded"]["hard"] and "hard answers" in answers.summary


def test_probabilities_of_0_and_1_are_clipped_at_half_a_step_of_their_grid(tmp_path):
    values = {"a.png": [0.0, 1.0, 0.25], "b.png": [0.5, 0.99, 0.75]}
    answers = read_answers_file(write(tmp_path / "a.json", lists(values)), BANK, field="yes")
    np.testing.assert_allclose(expit(answers.logits), [[0.005, 0.995, 0.25], [0.5, 0.99, 0.75]])
    assert answers.provenance["recorded"]["clipped"] == 2 and "2 probabilities of exactly 0 or 1" in answers.summary
    grid = {f"{i}.png": expit(np.array([i, -i, i + 1]) / 8).tolist() for i in range(12)} | {"x.png": [0.0, 1.0, 0.5]}
    answers = read_answers_file(write(tmp_path / "b.json", lists(grid)), BANK, field="yes")
    assert answers.provenance["recorded"]["log_odds_step"] == 0.125
    np.testing.assert_allclose(answers.logits[-1], [-1.5625, 1.5625, 0])


@pytest.mark.parametrize(
    ("records", "options", "expected"),
    [
        (lists(YES | {"c.png": [0.1, 0.2]}), {}, r"Record 2 of .*'c.png'.* has 2 answers: expected 3"),
        (lists(YES | {"b.png": None}), {}, "'b.png'.* has 0 answers: expected 3"),
        (lists(YES | {"b.png": [0.1, 1.5, 0]}), {}, "'round' with '1.5': expected a probability.*log-odds"),
        (lists(YES | {"b.png": [0.1, float("nan"), 0]}), {}, "with 'nan': expected a probability"),
        (lists(YES | {"b.png": [0.1, "high", 0]}), {}, "with 'high': expected a probability"),
        (lists(YES | {"b.png": [0.1, True, 0]}), {}, "with 'True': expected a probability"),
        (lists(), {"kind": "log_odds"}, "are these probabilities"),
        (lists({"a.png": ["yes", "no", "maybe"]}), {"kind": "words"}, "with 'maybe': expected the word yes or no"),
        ([*lists(), {"file": "a.png", "yes": [0.5] * 3}], {}, "records 0 and 3 .*'a.png'"),
        (lists(), {"field": "no_such"}, "no field 'no_such'.*file, yes"),
        (lists(), {"key": "id"}, "no field 'id'"),
        (columns(), {"field": None, "bank": AspectBank(["Is it big?"])}, "no field 'big', the id of a question"),
        ([], {}, "no records"),
        (["a", "b"], {}, "cannot be read as records"),
    ],
)
def test_what_is_no_answer_is_refused_in_a_sentence(tmp_path, records, options, expected):
    file = write(tmp_path / "answers.json", records)
    options = {"bank": BANK, "field": "yes", "key": "file", **options}
    with pytest.raises(ValueError, match=expected) as refused:
        read_answers_file(file, options.pop("bank"), **options)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300 + len(file)


@pytest.mark.parametrize(
    ("names", "options", "expected"),
    [
        (["a.png", "b.png"], {}, "1 of the 3 records belong to no image, the first to 'c.png'"),
        (["a.png", "b.png", "c.png", "d.png"], {}, "1 of the 4 images of split 'train' have no record.*'d.png'"),
        (list(YES), {"key_column": "label"}, "The key '0' stands in row 0 .* and in row 2"),
        (list(YES), {"key_column": "nothing"}, "no column 'nothing'"),
        (list(YES), {"splits": ["test"]}, "no split 'test'"),
    ],
)
def test_keys_that_do_not_meet_are_refused(tmp_path, names, options, expected):
    answers = read_answers_file(write(tmp_path / "answers.json", lists()), BANK, field="yes", key="file")
    with pytest.raises(ValueError, match=expected):
        attach_recorded_answers(DatasetDict({"train": photos(names, tmp_path / "photos")}), answers, **options)


def test_images_without_a_record_may_stay_without_answers(tmp_path):
    answers = read_answers_file(write(tmp_path / "answers.json", lists()), BANK, field="yes", key="file")
    rows = photos(["a.png", "d.png"], tmp_path / "photos")
    labelled = attach_recorded_answers(rows, answers, on_missing="null", on_unused="ignore")
    assert [row is None for row in labelled["aspect_logits"]] == [False, True]
    assert labelled["aspect_bank"][:] == [BANK.fingerprint, None]


def test_nobody_can_be_asked_what_was_never_published(tmp_path):
    bank = AspectBank.of_ids(["q01", "q02"])
    assert AspectBank.load(bank.save(tmp_path)).unpublished == ["q01", "q02"] and BANK.unpublished == []
    with pytest.raises(ValueError, match="text of the question 'q01' is not known"):
        attach_aspects(photos(["a.png"], tmp_path / "photos"), bank, None)


@pytest.fixture
def folder(tmp_path):
    """A user's photographs in folders, and a file of answers about the training images."""
    answers = {}
    for split, count in {"train": 12, "test": 4}.items():
        for i, image in enumerate(tiny.images(count)):
            place = tmp_path / "photos" / split / "xy"[i % 2]
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / f"{split}{i}.png")
            answers[f"{split}{i}.png"] = [0.125 * (i % 8), 1 - 0.125 * (i % 8), 0.5]
    write(tmp_path / "answers.jsonl", lists({name: value for name, value in answers.items() if "train" in name}))
    return tmp_path


def test_the_command_labels_and_a_student_learns_from_it(folder, capsys):
    argv = ["--dataset", folder / "photos", "--answers", folder / "answers.jsonl", "--answers_field", "yes"]
    argv += ["--answers_key", "file", "--output_dir", folder / "labelled", "--teacher", "somebody's 8B"]
    recipe("attach_aspects", *argv)
    said = capsys.readouterr().out
    assert (
        "9 different values, probabilities of 3 decimals; 4 probabilities of exactly 0 or 1" in said
        and "| q01 " in said
    )
    labelled, bank = load_from_disk(folder / "labelled"), AspectBank.load(folder / "labelled")
    assert bank.provenance["model"] == "somebody's 8B" and bank.unpublished == bank.ids == ["q01", "q02", "q03"]
    assert None not in labelled["train"]["aspect_logits"][:] and labelled["test"]["aspect_bank"][:] == [None] * 4
    assert "not published" in (folder / "labelled" / "questions.md").read_text()
    train = ["--dataset", folder / "labelled", "--backbone", folder / "backbone", "--output_dir", folder / "student"]
    tiny.resnet().save_pretrained(folder / "backbone")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder / "backbone")
    recipe("train_student", *train, "--pretrained", "false", "--max_steps", "1", "--report_to", "none", "--use_cpu")
    config = json.loads((folder / "student" / "config.json").read_text())
    assert config["aspect_bank"] == bank.fingerprint


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--answers_field", "no"], "no field 'no'"),
        (["--answers", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--answers_key", "file", "--splits", "train", "test"], "4 of the 4 images of split 'test' have no record"),
        (["--streaming"], "leave out --streaming"),
    ],
)
def test_the_command_refuses_before_it_writes(folder, argv, expected):
    given = ["--dataset", folder / "photos", "--answers", folder / "answers.jsonl", "--answers_field", "yes"]
    said = refuse("attach_aspects", *given, "--output_dir", folder / "labelled", *argv)
    assert expected in said and "\n" not in said
    assert not (folder / "labelled" / "aspects.json").exists()


def test_options_of_recorded_answers_need_the_file(folder):
    argv = ["--dataset", folder / "photos", "--output_dir", folder / "labelled", "--key_column", "name"]
    said = refuse("attach_aspects", *argv)
    assert "--key_column is about recorded answers: name their file with --answers" in said


@pytest.mark.parametrize("more", [["--validation_fraction", "0.34"], ["--eval_split", "test"]], ids=str)
def test_a_comparison_takes_a_labelled_dataset_and_asks_nobody(folder, more):
    argv = ["--dataset", folder / "photos", "--answers", folder / "answers.jsonl", "--answers_field", "yes"]
    argv += ["--answers_key", "file", "--output_dir", folder / "labelled", "--teacher", "somebody's 8B"]
    recipe("attach_aspects", *argv)
    tiny.resnet().save_pretrained(folder / "backbone")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder / "backbone")
    settings = {"backbone": str(folder / "backbone"), "pretrained": False, "max_steps": 1, "use_cpu": True}
    (folder / "student.yaml").write_text(json.dumps(settings | {"per_device_train_batch_size": 4}))
    argv = ["--baseline", folder / "student.yaml", "--dataset", folder / "labelled", "--output_dir", folder / "run"]
    argv += ["--conditions", "base", "madkd", *more]
    done = command("recipes/compare.py", *argv, "--seeds", "1")
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "run" / "report.json").read_text())
    assert report["teacher"]["model"] == "somebody's 8B" and "mean_mass" not in report["teacher"]
    assert {name: len(values) for name, values in report["accuracy"].items()} == {"base": 1, "madkd": 1}
    assert "teacher.png" in report["figures"] and "examples.png" not in report["figures"]  # no test image has answers
    AspectBank(["Is it big?"]).save(folder / "other.json")
    said = refuse("compare", *argv, "--bank", folder / "other.json")
    assert "was labelled with the bank" in said
