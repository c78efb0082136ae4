"""Tables and pictures of a run."""

import json
import re
import sys

import numpy as np
import pytest
from builders.evidence import bank, labelled
from builders.figures import assert_picture
from matplotlib.text import Text
from PIL import Image
from scipy import stats

from madkd_hf import report as reporting
from madkd_hf.report import figures
from madkd_hf.report.comparison import answers_alone_text, over_controls, real_gain
from madkd_hf.report.scenes import plot_examples
from madkd_hf.selection import figures as answers
from madkd_hf.selection.evidence import write_evidence
from madkd_hf.selection.information import question_evidence


SEEDS = [0, 1, 2, 3]
ACCURACY = {
    "base": [80.0, 82.0, 81.0, 83.0],
    "madkd": [83.0, 84.0, 85.0, 86.0],
    "shuffled": [79.0, 82.0, 80.0, 83.0],
    "constant": [80.0, 82.0, 81.0, 83.0],
}
IDS = ["red", "blue", "circle", "square"]


def make_cells(accuracy=ACCURACY):
    """Students in an order that is neither that of the seeds nor that of the conditions."""
    return [
        {
            "condition": condition,
            "seed": seed,
            "accuracy": accuracy[condition][seed],
            "curve": [[step, accuracy[condition][seed] * step / 40] for step in (0, 20, 40)],
            "seconds": 1.0,
            "metrics": {},
        }
        for seed in reversed(range(len(accuracy["base"])))
        for condition in reversed(list(accuracy))
    ]


# ---- numbers


def test_paired_gain_by_hand():
    # differences 1, 2, 3: mean 2, standard deviation 1, t(0.975; 2 degrees of freedom) = 4.302653
    gain = reporting.paired_gain([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert gain["mean"] == pytest.approx(2.0)
    assert gain["ci95"] == pytest.approx([2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5], abs=1e-6)


def test_paired_gain_is_that_of_scipy_and_is_paired():
    rng = np.random.default_rng(0)
    control = rng.normal(80, 5, 7)
    treated = control + rng.normal(1, 0.2, 7)
    gain = reporting.paired_gain(treated, control)
    expected = stats.ttest_rel(treated, control).confidence_interval()
    assert gain["ci95"] == pytest.approx([expected.low, expected.high])
    assert gain["ci95"][1] - gain["ci95"][0] < 1  # unpaired, it would be about 10 points


def test_paired_gain_of_one_seed_has_no_interval():
    assert reporting.paired_gain([81.0], [80.0]) == {"mean": 1.0, "ci95": [None, None]}


@pytest.mark.parametrize("difference", [0.0, 1.5])
def test_identical_differences_give_an_interval_of_width_zero(difference):
    gain = reporting.paired_gain([80 + difference, 81 + difference], [80.0, 81.0])
    assert gain["mean"] == difference
    assert gain["ci95"] == pytest.approx([difference, difference])


@pytest.mark.parametrize(("treated", "control"), [([], []), ([1.0, 2.0], [1.0])])
def test_paired_gain_refuses_unpaired_values(treated, control):
    with pytest.raises(ValueError, match=f"{len(treated)} and {len(control)} values"):
        reporting.paired_gain(treated, control)


def test_summarise_orders_by_condition_and_seed():
    summary = reporting.summarise(make_cells())
    assert summary["seeds"] == SEEDS
    assert summary["accuracy"] == ACCURACY and list(summary["accuracy"]) == list(ACCURACY)
    assert summary["gain"] == reporting.paired_gain(ACCURACY["madkd"], ACCURACY["base"])
    assert summary["gain"]["mean"] == pytest.approx(3.0)
    assert list(summary["controls"]) == ["shuffled", "constant"]
    assert summary["controls"]["shuffled"]["mean"] == pytest.approx(-0.5)
    assert summary["controls"]["constant"] == {"mean": 0.0, "ci95": [0.0, 0.0]}
    assert summary["roles"] == {"base": "base", "madkd": "treated", "shuffled": "control", "constant": "control"}
    over = {name: reporting.paired_gain(ACCURACY["madkd"], ACCURACY[name]) for name in ("base", "shuffled")}
    assert summary["gains"] == {"madkd": over}


def test_summarise_pairs_the_same_seeds_only():
    base, madkd = ([cell for cell in make_cells() if cell["condition"] == name] for name in ("base", "madkd"))
    with pytest.raises(ValueError, match="the same seeds"):
        reporting.summarise([*base, *(cell | {"seed": cell["seed"] + 5} for cell in madkd)])
    with pytest.raises(ValueError, match="no cells: train"):
        reporting.summarise([])


def test_summarise_leaves_out_what_was_not_run():
    summary = reporting.summarise([cell for cell in make_cells() if cell["condition"] in ("base", "shuffled")])
    assert list(summary["accuracy"]) == ["base", "shuffled"]
    assert "gain" not in summary and list(summary["controls"]) == ["shuffled"]
    alone = reporting.summarise([cell for cell in make_cells() if cell["condition"] == "madkd"])
    assert "gain" not in alone and alone["controls"] == alone["gains"] == {}


@pytest.mark.parametrize(
    ("gain", "expected"),
    [
        ({"mean": 2.0, "ci95": [1.0, 3.0]}, "The aspects gain 2.00 points of accuracy (95% interval +1.00 to +3.00)"),
        ({"mean": -2.0, "ci95": [-3.0, -1.0]}, "The aspects cost 2.00 points of accuracy"),
        ({"mean": 2.0, "ci95": [-1.0, 5.0]}, "No clear effect of the aspects: +2.00 points"),
        ({"mean": 0.0, "ci95": [0.0, 0.0]}, "No clear effect"),
        ({"mean": 2.0, "ci95": [None, None]}, "one seed"),
    ],
)
def test_verdict_claims_only_what_the_interval_holds(gain, expected):
    assert expected in reporting.verdict(gain)


@pytest.mark.filterwarnings("error")
def test_class_aspect_means_ignores_images_without_aspects():
    logits = np.array([[0.0, 50.0], [-50.0, 50.0], [np.nan, np.nan], [0.0, 0.0], [np.nan, 0.0]])
    means = answers.class_aspect_means([0, 0, 0, 2, 2], logits, num_classes=4)
    assert means.shape == (4, 2)
    np.testing.assert_allclose(means[[0, 2]], [[0.25, 1.0], [0.5, 0.5]], atol=1e-9)
    assert np.isnan(means[[1, 3]]).all()


# ---- tables


def rows_of(markdown):
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in markdown.splitlines()]


def test_table_says_everything_and_is_aligned():
    text = reporting.table(reporting.summarise(make_cells()))
    rows = rows_of(text)
    assert [row[0] for row in rows[2:]] == [
        "base: classes only",
        "madkd: classes + aspects",
        "shuffled: aspects of other images",
        "constant: each aspect's mean for all",
    ]
    assert all(re.fullmatch("-+:?", cell) for cell in rows[1]) and {len(row) for row in rows} == {3}
    assert rows[2][1:] == ["81.50 ± 1.29", ""]
    # differences 3, 2, 4, 3: standard deviation 0.8165, t(0.975; 3) = 3.18245, half width 1.2992
    assert rows[3][1:] == ["84.50 ± 1.29", "+3.00 [+1.70, +4.30]"]
    assert rows[5][2] == "+0.00 [+0.00, +0.00]"
    assert len({len(line) for line in text.splitlines()}) == 1


def test_table_of_one_seed_has_neither_spread_nor_interval():
    text = reporting.table(reporting.summarise(make_cells({"base": [80.0], "madkd": [81.5]})))
    assert rows_of(text)[3][1:] == ["81.50", "+1.50"]
    assert "nan" not in text and "None" not in text


def test_smoothed_labels_are_one_more_control():
    accuracy = {**ACCURACY, "smoothing": [81.0, 82.0, 83.0, 84.0]}
    summary = reporting.summarise(make_cells(accuracy))
    assert list(summary["accuracy"]) == list(accuracy) and summary["roles"]["smoothing"] == "control"
    assert summary["controls"]["smoothing"] == reporting.paired_gain(accuracy["smoothing"], accuracy["base"])
    assert summary["gains"]["madkd"]["smoothing"] == {"mean": 2.0, "ci95": [2.0, 2.0]}
    assert rows_of(reporting.table(summary))[6] == ["smoothing: classes only, labels smoothed", "82.50 ± 1.29",
                                                    "+1.00 [-0.30, +2.30]"]  # fmt: skip
    assert real_gain(summary) == "A real gain lifts `madkd`, and none of the controls"
    assert over_controls(summary).endswith(
        "Over label smoothing, in points [95% interval]: `madkd` +2.00 [+2.00, +2.00]."
    )


# ---- the report


@pytest.fixture
def full_report(tmp_path):
    report = reporting.summarise(make_cells())
    (tmp_path / "figures").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "figures" / "accuracies.png")
    return {
        **report,
        "dataset": "easy-VQA",
        "images_per_class": 8,
        "seconds": {"label": 12.34, "train": np.float32(100.0)},
        "teacher": {"model": "org/mllm", "prompt": "<|user|>\n{question}", "yes_tokens": [1, 2]},
        "auroc": np.array([0.5, np.nan]),
        "command": "python recipes/compare.py --output_dir out",
        "figures": {"accuracies.png": "Each dot is a student.", "never_drawn.png": "Nothing."},
    }


def test_write_report_leaves_valid_json(full_report, tmp_path):
    reporting.write_report(full_report, tmp_path)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert content["accuracy"] == ACCURACY and content["gain"]["mean"] == pytest.approx(3.0)
    assert content["auroc"] == [0.5, None] and content["seconds"]["train"] == 100.0
    assert content["teacher"]["prompt"] == "<|user|>\n{question}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "report.json", "report.md"]
    assert reporting.table(content) == reporting.table(full_report)  # a report read back makes the same table


def test_report_links_only_to_figures_that_exist(full_report, tmp_path):
    text = reporting.write_report(full_report, tmp_path).read_text(encoding="utf-8")
    links = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert links == ["figures/accuracies.png"]
    assert all((tmp_path / link).is_file() for link in links)
    assert "Each dot is a student." in text and "Nothing." not in text


def test_report_says_what_was_run(full_report, tmp_path):
    text = reporting.write_report(full_report, tmp_path).read_text(encoding="utf-8")
    assert text.startswith("# Multi-aspect knowledge distillation on easy-VQA\n")
    assert "16 students (conditions: 4, seeds: 4) were trained on easy-VQA with 8 images per class" in text
    assert "the teacher is `org/mllm`" in text and reporting.verdict(full_report["gain"]) in text
    assert reporting.table(full_report) in text
    # differences 4, 2, 5, 3: standard deviation 1.2910, t(0.975; 3) = 3.18245, half width 2.0543
    assert "Over its own shuffled control, in points [95% interval]: `madkd` +3.50 [+1.45, +5.55]." in text
    assert re.search(r"\| label +\| +12\.3 \|", text)
    assert r"`<\|user\|>\n{question}`" in text  # one line, pipes escaped: the table stays a table
    assert "```bash\npython recipes/compare.py --output_dir out\n```" in text


def test_report_says_what_the_answers_alone_are_worth(full_report, tmp_path):
    found = {"accuracy": [72.0, 73.0, 74.0, 73.0], "fitted": [510] * 4, "images": [1530, 1529, 1530, 1530]}
    expected = "The answers alone: 73.0 ± 0.8% on 1,529 to 1,530 other answered images (validation images and training"
    expected += " images that were not drawn), by a logistic regression on the teacher's answers about 510 training "
    expected += "images of each seed: what you would get if you could afford the MLLM at test time."
    others = {**found, "of": ["train", "validation"]}
    assert expected in reporting.write_report({**full_report, "answers_alone": others}, tmp_path).read_text()
    assert json.loads((tmp_path / "report.json").read_text())["answers_alone"] == others
    tested = {**found, "images": [6143] * 4, "of": ["test"]}
    assert "73.0 ± 0.8% on 6,143 answered test images, by" in answers_alone_text({"answers_alone": tested})
    unknown = {"answers_alone": {"unknown": "No image has answers."}}
    assert answers_alone_text(unknown) == "The answers alone were not measured. No image has answers."
    assert "answers alone" not in reporting.write_report(full_report, tmp_path).read_text()


def test_a_bare_summary_is_report_enough(tmp_path):
    path = reporting.write_report(reporting.summarise(make_cells({"base": [80.0]})), tmp_path / "new" / "folder")
    text = path.read_text(encoding="utf-8")
    assert "1 student (conditions: 1, seeds: 1) was trained." in text
    assert "None" not in text and "nan" not in text and "Teacher" not in text


def test_a_report_that_cannot_be_written_leaves_the_old_one(full_report, tmp_path):
    reporting.write_report(full_report, tmp_path)
    before = (tmp_path / "report.json").read_bytes(), (tmp_path / "report.md").read_bytes()
    with pytest.raises(KeyError):
        reporting.write_report({**full_report, "accuracy": {"unheard_of": [1.0]}}, tmp_path)
    assert before == ((tmp_path / "report.json").read_bytes(), (tmp_path / "report.md").read_bytes())


# ---- pictures


@pytest.mark.parametrize("accuracy", [{**ACCURACY, "smoothing": [80.0] * 4}, {"base": [80.0], "madkd": [80.0]}])
@pytest.mark.filterwarnings("error")
def test_accuracies_and_learning_curves(tmp_path, accuracy):
    cells = make_cells(accuracy)
    assert_picture(figures.plot_accuracies(reporting.summarise(cells), tmp_path / "accuracies.png"))
    assert_picture(figures.plot_learning_curves(cells, tmp_path / "curves.png"))


def test_accuracies_stay_between_nothing_and_all(tmp_path, monkeypatch):
    drawn = []
    for module in (answers, figures):
        monkeypatch.setattr(module, "save", lambda figure, path: drawn.append(figure))
    figures.plot_accuracies(reporting.summarise(make_cells({"base": [20.0, 70.0], "madkd": [50.0, 98.0]})), tmp_path)
    low, high = drawn[0].axes[0].get_ylim()
    assert -2 < low and high < 102  # the interval of two seeds reaches from -270 to 360


@pytest.mark.parametrize(("num_classes", "num_aspects"), [(2, 2), (3, 8)])
def test_no_title_of_the_teacher_map_is_cut_off(tmp_path, monkeypatch, num_classes, num_aspects):
    drawn = []
    for module in (answers, figures):
        monkeypatch.setattr(module, "save", lambda figure, path: drawn.append(figure))
    names = [f"a class with a very long name {k}" for k in range(num_classes)]
    means = np.full((num_classes, num_aspects), 0.5)
    answers.plot_teacher(means, names, [f"aspect {q}" for q in range(num_aspects)], tmp_path, unit="object")
    drawn[0].savefig(tmp_path / "teacher.png")
    for ax in drawn[0].axes:
        for text in (ax.title, ax._left_title):
            assert text.get_window_extent().x1 <= drawn[0].bbox.x1


@pytest.mark.filterwarnings("error")
def test_learning_curves_of_unequal_length_and_none(tmp_path):
    cells = make_cells()
    cells[0]["curve"] = cells[0]["curve"][:2]
    cells[1]["curve"] = []
    assert_picture(figures.plot_learning_curves(cells, tmp_path / "curves.png"))
    assert_picture(figures.plot_learning_curves([{**cell, "curve": []} for cell in cells], tmp_path / "none.png"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("num_classes", "num_aspects"), [(3, 4), (200, 50)])
def test_teacher_map(tmp_path, num_classes, num_aspects):
    means = np.random.default_rng(0).uniform(size=(num_classes, num_aspects))
    names, ids = [f"a class called {k}" for k in range(num_classes)], [f"aspect {q}" for q in range(num_aspects)]
    groups = [["odd", "even"][q % 2] for q in range(num_aspects)]
    path = answers.plot_teacher(means, names, ids, tmp_path / "teacher.png", groups=groups)
    assert max(assert_picture(path).shape) < 4000


def test_teacher_map_paints_classes_without_images_grey(tmp_path):
    def grey_share(means):
        pixels = assert_picture(answers.plot_teacher(means, ["a", "b"], IDS, tmp_path / "teacher.png"))
        return (pixels == 0xBB).all(axis=2).mean()

    means = np.full((2, 4), 0.9)
    assert grey_share(means) < 0.001
    means[1] = np.nan
    assert grey_share(means) > 0.02


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [1, 5])
def test_examples(tmp_path, n):
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 255, (n, 40, 60, 3), dtype=np.uint8)
    images = [Image.fromarray(array) if k % 2 else array for k, array in enumerate(arrays)]
    teacher, student = rng.uniform(size=(n, 4)), rng.uniform(size=(n, 4))
    teacher[-1] = np.nan  # an image that was not labelled
    truths, predictions = ["red circle"] * n, ["blue square"] + ["red circle"] * (n - 1)
    path = plot_examples(
        images, truths, predictions, teacher, student, IDS, tmp_path / "examples.png", confidences=[0.9] * n
    )
    assert_picture(path)
    images_after = [np.asarray(image) for image in images]
    assert all((after == array).all() for after, array in zip(images_after, arrays))


def test_examples_leave_large_images_as_they_are(tmp_path):
    image = Image.new("RGB", (1000, 800))
    plot_examples([image], ["a"], ["a"], np.ones((1, 4)), np.ones((1, 4)), IDS, tmp_path / "examples.png")
    assert image.size == (1000, 800)


@pytest.mark.filterwarnings("error")
def test_aspect_learning_leaves_out_nan(tmp_path):
    def height(auroc):
        return assert_picture(figures.plot_aspect_learning(IDS, auroc, tmp_path / "aspects.png")).shape[0]

    every = height([0.9, 0.4, 0.7, 1.0])
    assert height([0.9, np.nan, None, 1.0]) < every
    assert height([np.nan] * 4) < every


def test_pictures_of_answers_about_objects_say_so(tmp_path, monkeypatch):
    drawn = []
    for module in (answers, figures):
        monkeypatch.setattr(module, "save", lambda figure, path: drawn.append(figure))

    def words(unit):
        rows = question_evidence(np.zeros((12, 4)), None, None, [f"{name}?" for name in IDS], IDS)
        answers.plot_questions(rows, tmp_path / "questions.png", unit)
        answers.plot_teacher(np.full((2, 4), np.nan), ["a", "b"], IDS, tmp_path / "teacher.png", unit=unit)
        figures.plot_aspect_learning(IDS, [0.9, 0.4, 0.7, 1.0], tmp_path / "aspects.png", unit)
        texts = [each.get_text() for figure in drawn for each in figure.findobj(Text)]
        drawn.clear()
        return " ".join(texts)

    assert words("image").replace("image", "object") == (of_objects := words("object"))
    assert "tells about the object" in of_objects and "over the objects of a class" in of_objects
    assert "grey: no objects" in of_objects and "on unseen objects" in of_objects and "image" not in of_objects


def test_evidence_on_objects_is_drawn_as_such(tmp_path, monkeypatch):
    units = []
    for name in ("plot_questions", "plot_teacher"):
        monkeypatch.setattr(answers, name, lambda *given: units.append(given[-1]))
    write_evidence(labelled(), bank(3), tmp_path, unit="object")
    assert units == ["object", "object"]


def test_pictures_keep_out_of_pyplot(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it now raises
    assert_picture(figures.plot_aspect_learning(IDS, [0.9, 0.4, 0.7, 1.0], tmp_path / "aspects.png"))
    assert_picture(answers.plot_teacher(np.ones((4, 4)), IDS, IDS, tmp_path / "teacher.png"))
