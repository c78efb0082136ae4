"""What the teacher is worth: known values of entropy and information, warnings, and what is written."""

import json
import math

import numpy as np
import pytest
from builders.evidence import bank, labelled
from datasets import Dataset, DatasetDict, Value, concatenate_datasets
from PIL import Image
from sklearn.metrics import mutual_info_score

from madkd_hf import Aspect, AspectBank
from madkd_hf.data.columns import read_answers
from madkd_hf.selection import figures
from madkd_hf.selection.evidence import evidence_table, evidence_warnings, write_evidence
from madkd_hf.selection.information import (
    binary_entropy,
    chance_information,
    class_codes,
    class_entropy,
    mutual_information,
    question_evidence,
)


YES, NO = 20.0, -20.0  # log-odds without doubt


def measured(logits, mass=None, labels=None):
    logits = np.asarray(logits, dtype=np.float32)
    names = bank(logits.shape[1])
    mass = np.ones_like(logits) if mass is None else np.asarray(mass, dtype=np.float32)
    return question_evidence(logits, mass, labels, names.questions, names.ids)


def noise(n: int, columns: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, columns)) * 3


# Entropy and information


def test_binary_entropy_of_known_values():
    assert binary_entropy([0, 0.5, 1]).tolist() == [0, 1, 0]
    assert binary_entropy(0.25) == pytest.approx(2 - 0.75 * math.log2(3))


def test_class_entropy_of_known_values():
    assert class_entropy(list("abcd")) == pytest.approx(2)
    assert class_entropy(["a", "a", "b", None]) == pytest.approx(float(binary_entropy(1 / 3)))
    assert class_entropy(["a"] * 3) == 0 == class_entropy([None])


def test_an_answer_that_splits_the_classes_tells_its_whole_entropy():
    labels = [0, 1, 2, 3] * 25
    half, quarter = np.isin(labels, [1, 3]), np.array(labels) == 2
    expected = [1, 2 - 0.75 * math.log2(3)]
    np.testing.assert_allclose(mutual_information(np.stack([half, quarter], 1).astype(float), labels), expected)


def test_an_answer_that_is_the_same_in_each_class_tells_nothing():
    p = np.array([[0.3], [0.9], [0.3], [0.9]])
    assert mutual_information(p, ["a", "a", "b", "b"]) == pytest.approx(0, abs=1e-12)


def test_soft_answers_by_hand():
    # mean 0.5 in all, 0.25 and 0.75 in the classes: H(1/2) - H(1/4)
    p = np.array([[0.25], [0.25], [0.5], [1.0]])
    assert mutual_information(p, [0, 0, 1, 1]) == pytest.approx(1 - float(binary_entropy(0.25)))
    # classes of unequal size: P = 3/4, 1/4; means 0.2, 0.8; 0.35 in all
    expected = binary_entropy(0.35) - 0.75 * binary_entropy(0.2) - 0.25 * binary_entropy(0.8)
    assert mutual_information(np.array([[0.1], [0.2], [0.3], [0.8]]), [0, 0, 0, 1]) == pytest.approx(float(expected))


def test_hard_answers_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 7, 500)
    hard = (generator.random((500, 3)) < labels[:, None] / 7).astype(float)
    expected = [mutual_info_score(labels, column) / math.log(2) for column in hard.T]
    np.testing.assert_allclose(mutual_information(hard, labels), expected)


@pytest.mark.parametrize("classes", [2, 20, 100])
def test_chance_is_what_independent_answers_seem_to_tell(classes):
    """For hard answers the bias of Miller (1955): (C - 1) / (2 n ln 2) bits."""
    generator, n = np.random.default_rng(0), 4000
    labels = generator.integers(0, classes, n)
    hard = (generator.random((n, 40)) < 0.4).astype(float)
    theory = (classes - 1) / (2 * n * math.log(2))
    found, by_chance = mutual_information(hard, labels), chance_information(hard, labels)
    assert by_chance.shape == (20, 40)
    assert by_chance.mean() == pytest.approx(theory, rel=0.1)
    assert found.mean() == pytest.approx(theory, rel=0.5 if classes == 2 else 0.1)


def test_chance_is_lower_for_soft_answers_and_the_same_in_every_run():
    labels = np.arange(300) % 10
    p = np.random.default_rng(0).uniform(0.4, 0.6, (300, 2))
    by_chance = chance_information(p, labels)
    assert by_chance.mean() < 0.05 * 9 / (600 * math.log(2))
    np.testing.assert_array_equal(chance_information(p, labels), by_chance)


@pytest.mark.parametrize("kind", ["numbers", "strings", "booleans", "numpy"])
def test_classes_of_any_kind(kind):
    labels = {"numbers": [7, 7, -3, -3], "strings": ["b", "b", "a", "a"], "booleans": [True, True, False, False]}
    values = np.array([5, 5, 6, 6]) if kind == "numpy" else labels[kind]
    assert class_codes(values).tolist() == [0, 0, 1, 1]
    assert mutual_information(np.array([[1.0], [1], [0], [0]]), values) == pytest.approx(1)


def test_rows_without_answer_or_class_are_left_out():
    p = np.array([[1.0, 1], [1, np.nan], [0, 0], [np.nan, 0], [0.5, 0.5]])
    labels = ["a", "a", "b", "b", None]
    np.testing.assert_allclose(mutual_information(p, labels), [binary_entropy(2 / 3), binary_entropy(1 / 3)])
    assert np.isnan(mutual_information(p, [None] * 5)).all()


def test_labels_for_other_rows_are_refused():
    with pytest.raises(ValueError, match="one label for each row of answers; got 2 labels and 3 rows"):
        mutual_information(np.ones((3, 1)), [0, 1])
    with pytest.raises(ValueError, match="got 2 labels and 3 rows"):
        measured(np.ones((3, 1)), labels=[0, 1])


# The numbers of a question


def test_the_numbers_of_a_question_by_hand():
    logits = np.log([[1 / 3], [3], [3], [np.nan]])  # p = 0.25, 0.75, 0.75
    (row,) = measured(logits, [[0.5], [0.6], [0.7], [np.nan]])
    assert (row.id, row.question, row.images) == ("q0", "Is it number 0?", 3)
    assert row.mass == pytest.approx(0.6) and row.yes == pytest.approx(2 / 3)
    assert row.entropy == pytest.approx(float(binary_entropy(7 / 12)), abs=1e-6)
    assert row.doubt == pytest.approx(float(binary_entropy(0.25)), abs=1e-6)
    assert row.information is row.chance is row.chance_most is None


def test_information_is_that_of_the_probabilities():
    logits, labels = noise(200, 2), np.arange(200) % 4
    logits[:, 1] += 4 * (labels == 1)
    rows = measured(logits, labels=labels)
    p = 1 / (1 + np.exp(-logits.astype(np.float32).astype(float)))
    assert [row.information for row in rows] == pytest.approx(mutual_information(p, labels).tolist())
    assert [row.chance for row in rows] == pytest.approx(chance_information(p, labels).mean(0).tolist())
    assert [row.chance_most for row in rows] == pytest.approx(chance_information(p, labels).max(0).tolist())
    for row in rows:
        assert row.information <= row.entropy - row.doubt + 1e-9  # no more about the class than about the image


def test_without_mass_and_with_one_class_there_is_nothing_to_say_of_them():
    names = bank(1)
    (row,) = question_evidence(np.float32(noise(20)), None, ["a"] * 20, names.questions, names.ids)
    assert row.mass is None and row.information is None and row.notes == ()


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (
            np.zeros((4, 2)),
            "as many columns of answers as questions and ids; got {'columns': 2, 'questions': 1, 'ids'",
        ),
        (np.full((4, 1), np.nan), "No image has an answer to 'q0': label the dataset first"),
    ],
)
def test_answers_that_do_not_fit_are_refused(logits, message):
    with pytest.raises(ValueError, match=message):
        question_evidence(logits, None, None, bank(1).questions, bank(1).ids)


# What is wrong with a question


def notes(*arguments, **named):
    return [row.notes for row in measured(*arguments, **named)]


def test_low_mass_is_noted():
    assert notes(noise(30, 3), np.broadcast_to([0.49, 0.51, 1.0], (30, 3))) == [("low mass",), (), ()]


@pytest.mark.parametrize(
    ("column", "constant"),
    [
        (np.full(1000, NO), True),
        (np.linspace(2.9, 3.1, 1000), True),
        (np.linspace(0.1, 0.12, 1000), True),  # undecided, and always in the same way
        (np.linspace(0.1, 6, 1000), False),  # always yes, and more or less so
        (np.where(np.arange(1000) < 5, YES, NO), False),  # one class in 200 may look like this
        (np.where(np.arange(1000) < 1, YES, NO), True),
        (np.linspace(-0.1, 0.1, 1000), False),
    ],
)
def test_constant_questions_are_noted(column, constant):
    assert ("constant" in measured(np.float32(column)[:, None])[0].notes) == constant


def test_questions_that_repeat_another_are_noted_once():
    z = noise(100, 2)
    logits = np.stack([z[:, 0], z[:, 1], 2 * z[:, 0] + 1, -z[:, 0], z[:, 1] + 0.01 * z[:, 0], z.sum(1)], 1)
    assert notes(logits) == [(), (), ("same as q0",), ("opposite of q0",), ("same as q1",), ()]


def test_constant_questions_are_not_noted_as_repeating_each_other():
    steps = np.linspace(0, 0.1, 50)[:, None]
    assert notes(np.concatenate([5 + steps, 5 + 2 * steps, -5 - steps], 1)) == [("constant",)] * 3


def test_a_few_images_repeat_nothing():
    assert notes(np.array([[1.0, 2], [-1, -2]])) == [(), ()]


def test_questions_that_tell_no_more_than_chance_are_noted():
    labels = np.arange(400) % 4
    logits = noise(400, 2)
    logits[:, 1] += 3 * (labels == 2)
    logits[:, 0] = np.random.default_rng(1).permutation(logits[:, 0].reshape(100, 4), axis=1).ravel()
    balanced = np.where(np.arange(400) // 4 % 2, YES, NO)[:, None]  # the same in each class
    found = notes(np.concatenate([balanced, logits[:, 1:]], 1), labels=labels)
    assert found == [("no more than chance",), ()]


def test_infinite_log_odds_do_no_harm():
    with np.errstate(all="raise"):
        (row,) = measured([[np.inf], [-np.inf]] * 10, labels=[0, 1] * 10)
    assert (row.entropy, row.doubt, row.information) == (1, 0, 1)


def test_warnings_are_a_sentence_for_each_kind():
    z = noise(200, 17)
    logits = np.concatenate([z[:, :1], z[:, :1], np.full((200, 1), NO), z], 1)
    mass = np.ones_like(logits)
    mass[:, 3:] = 0.1
    low, constant, twins = evidence_warnings(measured(logits, mass))
    assert "yes or no to q3 (0.10), q4 (0.10)" in low and "q14 (0.10) and 5 more: the mean mass is below 0.5" in low
    assert constant == "The answer is all but the same for all images and teaches nothing: q2 (no)."
    assert "q1 (same as q0), q3 (same as q0)." in twins
    assert evidence_warnings(measured(noise(50, 3))) == []


# The table


def cells(table):
    return [[cell.strip() for cell in line.split(" | ")] for line in table.strip("| ").split("\n")]


def test_the_table_is_sorted_by_information():
    labels = np.arange(100) % 2
    logits = noise(100, 3) + np.array([0, 8, 3]) * (labels[:, None] - 0.5)
    table = evidence_table(measured(logits, labels=labels))
    lines = table.splitlines()
    assert lines[0].split("|")[1:4] == [" Aspect ", " Information, bits ", " By chance "]
    assert [line.split()[1] for line in lines[2:]] == ["q1", "q2", "q0"]
    assert len({len(line) for line in lines}) == 1
    assert "nan" not in table and "None" not in table


def test_the_table_without_classes_says_nothing_of_information():
    table = evidence_table(measured(noise(50, 2)), questions=True)
    assert "Information" not in table and "chance" not in table and "Is it number 1?" in table


def test_questions_with_pipes_leave_the_table_a_table():
    names = AspectBank([Aspect("a|b", "Is it\n|x|?")])
    rows = question_evidence(np.float32(noise(20)), None, None, names.questions, names.ids)
    assert r"a\|b" in evidence_table(rows, questions=True) and r"Is it \|x\|?" in evidence_table(rows, questions=True)


# What is written


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def written(folder):
    return json.loads((folder / "questions.json").read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.mark.filterwarnings("error")
def test_everything_is_written(tmp_path):
    rows = labelled(none=[0, 1, 2], skipped=[5])
    evidence = write_evidence(rows, bank(3), tmp_path / "new" / "folder")
    folder, text = tmp_path / "new" / "folder", evidence.path.read_text(encoding="utf-8")
    assert evidence.path == folder / "questions.md"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) == [
        "figures/questions.png", "figures/teacher.png", "questions.json", "questions.md",
    ]  # fmt: skip
    assert "answered 3 questions about 36 images. Rows that were not labelled: 3 of 40." in text
    assert "Rows whose image could not be read: 1 of 40. The class of an image holds 2.00 bits." in text
    assert "](figures/questions.png)" in text and "](figures/teacher.png)" in text
    content = written(folder)
    assert [content[name] for name in ("rows", "images", "unlabelled", "unreadable")] == [40, 36, 3, 1]
    assert content["class_bits"] == pytest.approx(2, abs=0.02) and content["warnings"] == evidence.warnings == []
    assert [entry["id"] for entry in content["questions"]] == ["q0", "q1", "q2"]
    assert content["questions"][0]["information"] == evidence.rows[0].information > 0.3
    assert evidence.table == evidence_table(evidence.rows)
    for name in ("questions", "teacher"):
        with Image.open(folder / "figures" / f"{name}.png") as image:
            assert image.width > 600


def test_the_numbers_are_those_of_the_arrays(tmp_path):
    rows = labelled(none=[7])
    logits = np.array([row or [np.nan] * 3 for row in rows["aspect_logits"]], dtype=np.float32)
    expected = question_evidence(logits, 0.9 + 0 * logits, rows["label"][:], bank(3).questions, bank(3).ids)
    assert write_evidence(rows, bank(3), tmp_path).rows == expected


def test_selections_concatenations_and_lists_of_any_length_are_read_alike(tmp_path):
    whole = labelled(none=[3])
    expected = read_answers(whole, bank(3))
    others = [
        labelled(none=[3], fixed=False),
        concatenate_datasets([whole.select(range(15)), whole.select(range(15, 40))]),
        concatenate_datasets([whole, whole]).select(range(40, 80)),
        whole.with_format("torch"),
    ]
    whole.save_to_disk(tmp_path / "rows")
    for rows in [*others, Dataset.load_from_disk(tmp_path / "rows")]:
        np.testing.assert_equal(read_answers(rows, bank(3)), expected)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("label", [Value("string"), Value("int8")])
def test_classes_that_are_no_class_label(tmp_path, label):
    expected = write_evidence(labelled(), bank(3), tmp_path).rows
    found = write_evidence(labelled(label=label), bank(3), tmp_path).rows
    assert [row.information for row in found] == pytest.approx([row.information for row in expected])
    assert (tmp_path / "figures" / "teacher.png").is_file()


def test_hidden_classes_are_no_class(tmp_path):
    rows = labelled()
    hidden = rows.map(lambda row, k: {"label": -1 if k == 0 else None if k == 1 else row["label"]}, with_indices=True)
    expected = write_evidence(rows.select(range(2, 40)), bank(3), tmp_path).rows
    found = write_evidence(hidden, bank(3), tmp_path).rows
    assert [row.information for row in found] == pytest.approx([row.information for row in expected])
    assert found[0].images == 40


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("rows", "column"),
    [
        (labelled(label=False), "label"),
        (labelled(), None),
        (labelled(), "fine"),
        (labelled(label=Value("float32")), "label"),
        (labelled().map(lambda row: {"label": None}), "label"),
    ],
    ids=["no column", "none asked for", "another", "floats", "nulls"],
)
def test_without_classes_the_rest_is_written(tmp_path, rows, column):
    write_evidence(labelled(), bank(3), tmp_path)  # a run before, with classes
    evidence = write_evidence(rows, bank(3), tmp_path, column)
    assert all(row.information is None for row in evidence.rows)
    assert "Nothing can be said about classes" in evidence.path.read_text(encoding="utf-8")
    assert not (tmp_path / "figures" / "teacher.png").exists()
    assert (tmp_path / "figures" / "questions.png").is_file()


def test_a_dataset_without_mass(tmp_path):
    evidence = write_evidence(labelled(mass=False), bank(3), tmp_path)
    assert all(row.mass is None for row in evidence.rows) and "None" not in evidence.table


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (DatasetDict(train=labelled()), r"the Dataset of one split; received DatasetDict with the splits \['train'\]"),
        (labelled().remove_columns(["aspect_logits"]), "and no aspect_logits: label it with attach_aspects"),
        (labelled(none=range(40)), "No image has an answer to 'q0': label the dataset first"),
        (labelled(names=AspectBank([Aspect(f"{k}", f"{k}?") for k in range(3)])), "bank .* and this one is .*aspects"),
        (labelled(q=2, names=bank(3)), "'aspect_logits' holds other than 3 answers a row"),
    ],
    ids=["splits", "unlabelled", "nulls", "foreign bank", "length"],
)
def test_what_is_no_labelled_split_is_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        write_evidence(rows, bank(3), tmp_path)
    assert not list(tmp_path.iterdir())


# The picture


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("count", "classes"), [(1, True), (3, False), (20, True)])
def test_the_picture_grows_with_the_questions(tmp_path, count, classes):
    rows = measured(noise(60, count), 0.4 + 0 * noise(60, count), np.arange(60) % 3 if classes else None)
    with Image.open(figures.plot_questions(rows, tmp_path / "questions.png")) as image:
        assert image.width == 1800 and 40 * count < image.height < 80 * count + 400


def test_of_very_many_questions_the_first_and_the_last_are_drawn(tmp_path, monkeypatch):
    drawn, rows = [], measured(noise(60, 9), None, None)
    heights = []
    for most in (9, 4):
        monkeypatch.setattr(figures, "MOST_QUESTIONS", most)
        monkeypatch.setattr(figures, "drawn_text", lambda text: drawn.append(text) or text)
        with Image.open(figures.plot_questions(rows, tmp_path / "questions.png")) as image:
            heights.append(image.height)
    assert [text.partition(":")[0] for text in drawn] == [row.id for row in [*rows, *rows[:2], *rows[-2:]]]
    assert heights[1] < heights[0]


@pytest.mark.filterwarnings("error")
def test_long_questions_and_dollars_are_drawn(tmp_path):
    names = AspectBank([Aspect("$long$", "Is there " + "a very long question about $1 and $2 " * 9 + "?")])
    rows = question_evidence(np.float32(noise(20)), None, None, names.questions, names.ids)
    with Image.open(figures.plot_questions(rows, tmp_path / "questions.png")) as image:
        image.load()


def test_objects_are_called_objects(tmp_path):
    rows = labelled().map(lambda row: {"aspect_logits": [9.0, *row["aspect_logits"][1:]]})
    evidence = write_evidence(rows, bank(3), tmp_path, unit="object")
    text = evidence.path.read_text()
    assert evidence.unit == "object" and "answered 3 questions about 40 objects." in text and "image" not in text
    assert "all but the same for all objects" in text and "The class of an object holds" in text
    assert json.loads((tmp_path / "questions.json").read_text())["objects"] == 40
    with pytest.raises(ValueError, match="No object has an answer to 'q0': label the dataset first"):
        write_evidence(labelled(none=range(40)), bank(3), tmp_path, unit="object")
