"""The choice of questions by evidence: known right choices, what is left out and why, and the commands."""

from __future__ import annotations

import json

import numpy as np
import pytest
from builders.commands import EASY_VQA, recipe, refuse
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value, concatenate_datasets, load_from_disk
from PIL import Image

from madkd_hf import Aspect, AspectBank
from madkd_hf.data.columns import read_answers, read_labels
from madkd_hf.data.variants import subset
from madkd_hf.selection.choice import select_questions
from madkd_hf.selection.page import plot_selection, selection_table, write_selection
from recipes.easy_vqa.curve_report import curve_table, curve_verdict, plot_curve, summarise_curve, write_curve


N = 320
CLASSES = np.arange(N) % 8
BITS = {name: CLASSES >> k & 1 for k, name in enumerate("abc")}


def noise(seed: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=N) * scale


def sure(yes: np.ndarray, flips: float = 0.0, seed: int = 0) -> np.ndarray:
    """Log-odds of a teacher without doubt that errs at times."""
    wrong = np.random.default_rng(seed).random(len(yes)) < flips
    return 8.0 * ((yes > 0) ^ wrong) - 4 + np.random.default_rng(seed + 1).normal(size=len(yes)) * 0.5


def soft(yes: np.ndarray, seed: int = 0, spread: float = 0.3) -> np.ndarray:
    """Log-odds of an undecided teacher: around -1 and 1, with noise of its own."""
    return 2.0 * (yes > 0) - 1 + np.random.default_rng(seed).normal(size=len(yes)) * spread


def choose(questions: dict[str, np.ndarray], keep: int = 99, mass=None, labels=CLASSES, **options):
    bank = AspectBank([Aspect(name, f"Is it {name}?") for name in questions])
    logits = np.float32(np.stack(list(questions.values()), 1))
    return select_questions(logits, mass, labels, bank, keep, **options)


def reasons(selection) -> dict[str, str]:
    return {choice.id: choice.reason for choice in selection.choices}


# The right choice


def test_what_tells_more_comes_first_and_noise_never():
    selection = choose({"noise": noise(1, 3), "b": sure(BITS["b"], 0.1), "a": sure(BITS["a"])})
    assert selection.bank.ids == ["a", "b"]
    assert [choice.rank for choice in selection.choices] == [None, 2, 1]
    assert reasons(selection) == {"noise": "no more than chance", "b": "kept", "a": "kept"}
    assert selection.choices[2].score == pytest.approx(0.85, abs=0.05)  # of 1 bit: p is 0.98
    assert (selection.images, selection.classes, selection.class_bits) == (N, 8, pytest.approx(3))


def test_repetitions_are_told_already_where_other_criteria_take_them():
    good = {"a": sure(BITS["a"], 0.02, 1), "b": sure(BITS["b"], 0.05, 3), "c": sure(BITS["c"], 0.1, 5)}
    again = {"a again": good["a"] + noise(7, 2), "not a": -good["a"] + noise(8, 2), "a too": good["a"] + noise(9, 2)}
    selection = choose({**again, **good})
    first = selection.bank.ids[0]
    assert len(selection.bank) == 3 and selection.bank.ids[1:] == ["b", "c"] and "a" in first
    dropped = {name: reason for name, reason in reasons(selection).items() if reason != "kept"}
    assert set(dropped.values()) == {f"told already by {first}"}
    more = {**good, **again, "d": sure(CLASSES == 5, 0.02, 9)}
    assert set(choose(more, 4).bank.ids) == {first, "b", "c", "d"}
    for criterion in ("jmi", "mrmr"):
        assert len(set(choose(more, 5, criterion=criterion).bank.ids) & {"a", *again}) > 1


def test_paraphrases_that_a_teacher_is_undecided_about_are_redundant_too():
    questions = {"a": soft(BITS["a"], 1, 0.1), "a again": soft(BITS["a"], 2), "not a": -soft(BITS["a"], 3)}
    selection = choose({**questions, "b": soft(BITS["b"], 4, 1.0)}, 2)
    assert len(selection.bank) == 2 and "b" in selection.bank.ids
    others = [choice for choice in selection.choices if not choice.kept]
    assert all(choice.redundancy > 0.8 * choice.evidence.information for choice in others)


def test_the_same_and_the_opposite_question_are_named_whatever_their_doubt():
    a = soft(BITS["a"], 1, 1.0)
    selection = choose({"a": a, "a again": a - 0.01, "not a": -a, "b": soft(BITS["b"], 2, 1.0)})
    (kept,) = set(selection.bank.ids) - {"b"}
    expected = {"a": f"same as {kept}", "a again": f"same as {kept}", "not a": f"opposite of {kept}"}
    assert {**reasons(selection), kept: "", "b": ""} == {**expected, kept: "", "b": ""}


def test_a_partner_that_tells_something_only_together_is_found():
    """C is the exclusive or of both, and the first of them tells something by itself."""
    first, second = BITS["a"], BITS["b"]
    labels = np.where(first == second, 0, 1 + first)
    selection = choose({"second": sure(second), "noise": noise(3, 3), "first": sure(first)}, labels=labels)
    assert {"first", "second"} == set(selection.bank.ids)
    last = next(choice for choice in selection.choices if choice.rank == 2)
    assert last.redundancy < 0 and last.score > last.evidence.information
    hidden = choose(
        {"first": sure(first), "second": sure(second), "c": sure(BITS["c"])}, labels=(first ^ second) + 2 * BITS["c"]
    )
    assert hidden.bank.ids == ["c"]


def test_constant_and_low_mass_questions_are_left_out():
    questions = {"always": np.full(N, 6.0), "never": np.full(N, -6.0), "mute": sure(BITS["a"]), "b": sure(BITS["b"])}
    mass = np.ones((N, 4))
    mass[:, 2] = 0.1
    selection = choose(questions, mass=mass)
    assert reasons(selection) == {"always": "constant", "never": "constant", "mute": "low mass", "b": "kept"}
    assert all(choice.score is None for choice in selection.choices[:3])


def test_the_order_of_the_candidates_does_not_matter():
    questions = {name: sure(bit, 0.03 * k, k) for k, (name, bit) in enumerate(BITS.items())}
    questions |= {"again": questions["b"] + noise(1, 3), "noise": noise(2, 3), "d": sure(CLASSES == 5, 0.01)}
    one = choose(questions, 4)
    other = choose(dict(reversed(questions.items())), 4)
    assert one.bank.ids == other.bank.ids
    assert reasons(one) == reasons(other)


def test_classes_may_have_any_names():
    questions = {name: sure(bit, 0.05, k) for k, (name, bit) in enumerate(BITS.items())}
    numbers = choose(questions)
    words = choose(questions, labels=[f"class {c}" for c in CLASSES])
    assert [choice.score for choice in numbers.choices] == pytest.approx([choice.score for choice in words.choices])


# Few images, few questions


@pytest.mark.parametrize("a_class", [3, 5, 15])
def test_a_few_images_of_many_classes_do_not_make_noise_look_good(a_class):
    labels = np.repeat(np.arange(24), a_class)
    generator = np.random.default_rng(0)
    questions = {f"noise {k}": generator.normal(size=len(labels)) * 4 for k in range(30)}
    questions |= {f"colour {k}": sure(labels % 8 == k) for k in range(4)}
    kept = choose(questions, labels=labels).bank.ids
    assert set(kept[:4]) == {f"colour {k}" for k in range(4)} and len(kept) <= 5


def test_one_image_a_class_tells_nothing_and_says_so():
    with pytest.raises(ValueError, match="None of the 1 questions tells more .* 24 images of 24 classes: label more"):
        choose({"a": sure(np.arange(24) % 2)}, labels=np.arange(24))


def test_asking_for_too_many_keeps_what_is_good_and_says_why():
    selection = choose({"a": sure(BITS["a"]), "noise": noise(1, 3), "always": np.full(N, 5.0)}, 3)
    assert selection.bank.ids == ["a"] and selection.asked == 3
    assert selection.message.startswith(
        f"Kept 1 of 3 questions, by their answers about {N} images of 8 classes. 3 were"
    )
    assert "ask for fewer" in selection.message


def test_what_would_add_less_is_weaker():
    selection = choose({name: sure(bit, 0.05 * k, k) for k, (name, bit) in enumerate(BITS.items())}, 1)
    assert [(choice.id, choice.rank) for choice in selection.ordered] == [("a", 1), ("b", None), ("c", None)]
    assert selection.ordered[2].reason == "weaker than the kept" and "asked for" not in selection.message
    assert selection.ordered[1].score > selection.ordered[2].score > 0.3


def test_rows_without_answers_or_class_are_left_out():
    a, labels = sure(BITS["a"]), [None if k % 4 == 1 else int(c) for k, c in enumerate(CLASSES)]
    a[::4] = np.nan
    selection = choose({"a": a, "b": sure(BITS["b"])}, labels=labels)
    assert selection.images == N // 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": None}, "needs the class of each image; got none: pass labels"),
        ({"labels": ["x"] * N}, f"The {N} images with answers and a class show 1 class, and there is nothing to tell"),
        ({"labels": [None] * N}, "The 0 images with answers and a class show 0 classes"),
        ({"labels": [0, 1]}, "Expected one label for each row"),
        ({"keep": 0}, "Expected to keep at least 1 question; got keep=0"),
        ({"criterion": "mifs"}, "Unknown criterion 'mifs': expected 'cmim'"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        choose({"a": sure(BITS["a"])}, **options)


# Some of the questions of a labelled dataset


def labelled(bank: AspectBank, n: int = 40) -> Dataset:
    width, classes = len(bank), CLASSES[:n] % 4
    answers = [None if k == 3 else [float(10 * k + q) for q in range(width)] for k in range(n)]
    vector = List(Value("float32"), length=width)
    features = {"label": ClassLabel(names=list("wxyz")), "aspect_logits": vector, "aspect_mass": vector}
    columns = {"label": classes, "aspect_logits": answers, "aspect_mass": [row and [0.5] * width for row in answers]}
    columns["aspect_bank"] = [None if k == 3 else bank.fingerprint for k in range(n)]
    return Dataset.from_dict(columns, features=Features({**features, "aspect_bank": Value("string")}))


BANK = AspectBank([Aspect(name, f"Is it {name}?", "letters") for name in "pqrs"], {"model": "a teacher"})


def test_a_subset_has_the_right_columns_bank_and_nulls():
    rows, kept = subset(labelled(BANK), BANK, ["s", "q"])
    assert kept.ids == ["s", "q"] and kept.provenance == {"model": "a teacher"} and kept[0].group == "letters"
    assert rows.features["aspect_logits"] == List(Value("float32"), length=2) == rows.features["aspect_mass"]
    assert rows["aspect_logits"][:5] == [[3, 1], [13, 11], [23, 21], None, [43, 41]]
    assert rows["aspect_mass"][2:4] == [[0.5, 0.5], None]
    assert rows["aspect_bank"][2:4] == [kept.fingerprint, None] and kept.fingerprint != BANK.fingerprint
    assert rows["label"][:] == labelled(BANK)["label"][:] and rows.features["label"].names == list("wxyz")
    (logits, _, counts), (labels, _) = read_answers(rows, kept), read_labels(rows, "label")
    assert logits.shape == (40, 2) and labels[:2] == ["w", "x"] and counts["unlabelled"] == 1


def test_subsets_of_splits_selections_and_empty_splits():
    whole = labelled(BANK)
    splits = DatasetDict(
        train=whole.select([5, 3, 1]), other=concatenate_datasets([whole, whole]), none=whole.select([]),
        blank=whole.select([3]),
    )  # fmt: skip
    rows, kept = subset(splits, BANK, ["r"])
    assert rows["train"]["aspect_logits"][:] == [[52], None, [12]] and rows["train"]["label"][:] == [1, 3, 1]
    assert rows["other"]["aspect_logits"][41] == [12] and rows["blank"]["aspect_bank"][:] == [None]
    assert len({str(part.features) for part in rows.values()}) == 1 and len(rows["none"]) == 0
    assert subset(whole.select_columns(["aspect_logits"]), BANK, ["p"])[0].column_names == ["aspect_logits"]


@pytest.mark.parametrize(
    ("rows", "ids", "message"),
    [
        (labelled(BANK), ["x"], "The bank has no question 'x': expected ids among p, q, r, s"),
        (labelled(BANK), ["p", "p"], "appears twice"),
        (labelled(BANK), [], "no questions"),
        (labelled(BANK).remove_columns("aspect_logits"), ["p"], "and no aspect_logits: label it with attach_aspects"),
        (labelled(AspectBank(list(BANK)[::-1])), ["p"], "was labelled with the bank .* and this one is"),
        (
            labelled(AspectBank(list(BANK)[:3])).remove_columns("aspect_bank"),
            ["p"],
            "holds other than 4 answers a row",
        ),
    ],
    ids=["unknown", "twice", "none", "unlabelled", "foreign bank", "width"],
)
def test_subsets_that_cannot_be_are_refused(rows, ids, message):
    with pytest.raises(ValueError, match=message):
        subset(rows, BANK, ids)


# What is written


@pytest.mark.filterwarnings("error")
def test_the_reasons_are_written(tmp_path):
    questions = {
        "a|x": sure(BITS["a"]),
        "a again": sure(BITS["a"]) + noise(1, 2),
        "noise": noise(2, 3),
        "$b$": sure(BITS["b"]),
    }
    selection = choose({**questions, "no": np.full(N, -5.0)}, 1)
    path = write_selection(selection, tmp_path / "new")
    text = path.read_text(encoding="utf-8")
    assert path == tmp_path / "new" / "selection.md" and "](figures/selection.png)" in text
    assert "Kept 1 of 5 questions" in text and "CMIM (" in text and r"a\|x: Is it a\|x?" in text
    lines = selection_table(selection).splitlines()
    assert len({len(line) for line in lines}) == 1 and "**kept**" in lines[2] and "constant" in lines[-1] + lines[-2]
    content = json.loads((tmp_path / "new" / "selection.json").read_text(encoding="utf-8"))
    assert content["kept"] == selection.bank.ids and len(content["candidates"]) == 5
    assert content["candidates"][2]["reason"] == "no more than chance"
    with Image.open(tmp_path / "new" / "figures" / "selection.png") as image:
        assert image.width > 1500


@pytest.mark.filterwarnings("error")
def test_pictures_of_one_and_of_many_questions(tmp_path):
    plot_selection(choose({"a": sure(BITS["a"])}), tmp_path / "one.png")
    many = {f"q{k} {'long ' * k}": sure(BITS["abc"[k % 3]], 0.01 * k, k) for k in range(40)}
    plot_selection(choose(many, 5), tmp_path / "many.png")
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "many.png") as other:
        assert one.width == other.width and one.height < other.height


def points(seeds: int = 3):
    value = iter(np.random.default_rng(0).uniform(40, 80, 99))
    places = [("base", 0), ("all", 12), *((m, q) for m in ("evidence", "llm", "random") for q in (2, 4))]
    return [
        {"method": method, "asked": count, "kept": min(count, 3), "seed": seed, "accuracy": float(next(value))}
        for seed in range(seeds)
        for method, count in places
    ]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_curve_pairs_by_seed(tmp_path, seeds):
    students = points(seeds)
    about = {"candidates": 12, "images_per_class": 5}
    summary = summarise_curve(students[::-1]) | about
    by = {(s["method"], s["asked"], s["seed"]): s["accuracy"] for s in students}
    expected = np.mean([by["evidence", 4, seed] - by["random", 4, seed] for seed in range(seeds)])
    assert summary["over"]["random"][4]["mean"] == pytest.approx(expected)
    assert summary["over"]["all"][2]["mean"] == pytest.approx(
        np.mean([by["evidence", 2, seed] - by["all", 12, seed] for seed in range(seeds)])
    )
    lines = curve_table(summary).splitlines()
    assert lines[0].split(" | ")[1:3] == ["By evidence", "In the order of the list"] or "By evidence" in lines[0]
    assert "all 12" in lines[-2] and "none" in lines[-1] and len(lines) == 6
    with Image.open(plot_curve(summary, tmp_path / "curve.png")) as image:
        assert image.width > 1000
    assert curve_verdict(summary).startswith("By evidence, 4 of 12 questions give ")
    about = {"dataset": "some", "validation_images": 9, "command": "python x.py"}
    path, table = write_curve(summary | about, tmp_path)
    text = path.read_text(encoding="utf-8")
    assert table in text and "9 validation images; the test images were not touched" in text and "python x.py" in text
    assert json.loads((tmp_path / "questions_curve.json").read_text())["seeds"] == list(range(seeds))


# The command


@pytest.fixture(scope="module")
def candidates(tmp_path_factory):
    """96 images labelled with all candidates of the easy-VQA recipe."""
    folder = tmp_path_factory.mktemp("candidates")
    words = ["--config", EASY_VQA / "attach.yaml", "--bank", EASY_VQA / "candidates.json", "--limit", "96"]
    recipe("attach_aspects", *words, "--output_dir", folder)
    return folder


def test_the_command_keeps_questions_and_answers(candidates, tmp_path, capsys):
    words = ["--dataset", candidates, "--keep", "11", "--write_dataset", "--output_dir", tmp_path / "kept"]
    recipe("select_questions", *words)
    said = capsys.readouterr().out
    assert "Kept 11 of 36 questions, by their answers about 96 images of 24 classes." in said
    assert f"madkd train --dataset {tmp_path / 'kept'} " in said and "and 21 more in" in said
    bank, rows = AspectBank.load(tmp_path / "kept"), load_from_disk(tmp_path / "kept")
    good = set(AspectBank.load(EASY_VQA).questions)
    assert len(good & set(bank.questions)) >= 7 and bank.provenance["model"] == "recipes/easy_vqa/teacher"
    assert rows["train"].unique("aspect_bank") == [bank.fingerprint] and rows["test"][0]["aspect_logits"] is None
    before = load_from_disk(candidates)["train"][7]["aspect_logits"]
    names = AspectBank.load(candidates).ids
    assert rows["train"][7]["aspect_logits"] == [before[names.index(name)] for name in bank.ids]
    assert (tmp_path / "kept" / "figures" / "selection.png").is_file()
    words = ["--dataset", tmp_path / "kept", "--max_steps", "2", "--images_per_class", "2", "--eval_strategy", "no"]
    words += ["--bank", tmp_path / "kept", "--do_predict", "false"]
    recipe("train_student", "--config", EASY_VQA / "distill.yaml", *words, "--output_dir", tmp_path / "student")
    assert json.loads((tmp_path / "student" / "config.json").read_text())["aspect_ids"] == bank.ids


def test_the_command_labels_a_sample_of_each_class(tmp_path, capsys):
    words = ["--config", EASY_VQA / "select.yaml", "--sample", "72", "--output_dir", tmp_path]
    recipe("select_questions", *words)
    said = capsys.readouterr().out
    content = json.loads((tmp_path / "selection.json").read_text(encoding="utf-8"))
    assert (content["images"], content["classes"]) == (72, 24)
    assert f"--bank {tmp_path}/aspects.json --teacher" in said
    assert AspectBank.load(tmp_path).ids == content["kept"] and AspectBank.load(tmp_path).provenance is None
    assert not (tmp_path / "train").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "No output folder given"),
        (["--output_dir", "same"], "same is same, which is read: pass an output folder elsewhere"),
        (["--output_dir", "out", "--splits", "dev"], "There is no split 'dev': the dataset has"),
        (
            ["--output_dir", "out", "--label_column", "kind"],
            "There is no column 'kind', and choosing by evidence needs",
        ),
        (["--output_dir", "out", "--keep", "0"], "at least 1 question; got keep=0"),
    ],
)
def test_the_command_says_what_is_wrong(candidates, tmp_path, words, message):
    words = [{"same": candidates, "out": tmp_path}.get(word, word) for word in words]
    assert message in refuse("select_questions", "--dataset", candidates, *words).replace(str(candidates), "same")


def test_the_command_without_answers_asks_for_a_teacher(tmp_path):
    dataset = ["--dataset", "recipes.easy_vqa.data:load_easy_vqa", "--limit", "50", "--output_dir", tmp_path]
    assert "label it with madkd label --splits train, or pass --bank" in refuse("select_questions", *dataset)
    said = refuse("select_questions", "--config", EASY_VQA / "select.yaml", *dataset, "--write_dataset")
    assert "Only a sample is to be labelled, and --write_dataset needs" in said


def test_choices_for_the_curve(candidates):
    from recipes.easy_vqa import questions_curve

    bank, rows = AspectBank.load(candidates), load_from_disk(candidates)["train"]
    args = questions_curve.CurveArguments(images_per_class=None)
    pick = lambda method, seed: questions_curve.choose(method, 5, seed, rows, bank, args)  # noqa: E731
    assert pick("llm", 0) == bank.ids[:5] == pick("llm", 1)
    assert pick("random", 0) == pick("random", 0) != pick("random", 1)
    assert pick("evidence", 0) == pick("evidence", 1) != pick("mrmr", 0)


def test_the_bank_beside_a_dataset_is_not_overwritten(tmp_path):
    (tmp_path / "dataset_dict.json").touch()
    said = refuse("select_questions", "--dataset", "x", "--output_dir", tmp_path)
    assert f"{tmp_path} holds a dataset, whose bank would be overwritten: pass --write_dataset" in said
