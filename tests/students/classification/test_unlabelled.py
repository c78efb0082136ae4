"""Images without a class: what a student learns from them, in which order they come, and what is refused."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch
from builders.classifier_training import (
    BANK,
    CLASSES,
    STILL,
    StopAfter,
    assert_same_weights,
    logged,
    rows,
    student,
    trainer,
)

from madkd_hf.data.class_targets import with_class_targets
from madkd_hf.data.unlabelled import check_fraction
from madkd_hf.students.base.augmentation import strong_view
from madkd_hf.students.classification.sampling import MixedSampler
from madkd_hf.students.losses import TARGET_LOSSES
from madkd_hf.students.losses.self_training import self_training_loss


NAMES = list(CLASSES.values())
PARTS = ("loss", "class_loss", "aspect_loss", "kd_loss")


def mixed(count: int = 16, classless: tuple[int, ...] = (4, 5, 6, 7, 9, 14), without=(1, 8, 9, 12, 13)):
    """Rows with and without a class, with and without answers, and all but `without` with class targets."""
    targets = 2 * np.random.default_rng(3).normal(size=(count, len(NAMES)))
    targets[list(without)] = np.nan
    return with_class_targets(rows(count, unlabelled=(2, 3, 8), classless=classless), targets, "other", NAMES)


# What is learned


@pytest.mark.parametrize("steps", [(2, 4), (1, 8)], ids=["4 x 2", "8 x 1"])
def test_accumulated_batches_are_one_batch_whatever_rows_they_hold(tmp_path, steps):
    """Also where a micro-batch holds no class at all, or no answers, or no class targets."""
    accumulated, size = steps[1], steps[0]
    settings = {"class_target_loss": "kd", "num_train_epochs": 2, "optim": "sgd", "learning_rate": 0.1, **STILL}
    one = trainer(tmp_path / "one", train=mixed(), per_device_train_batch_size=8, **settings)
    one.train()
    settings |= {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
    many = trainer(tmp_path / "many", train=mixed(), **settings)
    many.train()
    assert_same_weights(one.model, many.model, atol=2e-6)
    for name in PARTS:
        assert logged(many, name) == pytest.approx(logged(one, name), abs=1e-5)
        assert min(logged(one, name)) > 0


@pytest.mark.parametrize("name", TARGET_LOSSES)
def test_a_batch_without_class_targets_is_trained_and_evaluated(tmp_path, name):
    train = mixed(8, classless=(), without=(0, 1, 2, 3))
    settings = {"per_device_train_batch_size": 1, "class_target_loss": name, "standardize_logits": True}
    run = trainer(tmp_path, train=train, per_device_eval_batch_size=2, **settings)
    run.train()
    losses = logged(run, f"{name}_loss")
    assert len(losses) == 8 and np.isfinite(losses).all() and np.isfinite(run.evaluate(train)["eval_loss"])


def test_what_is_lost_without_the_class_of_a_row_is_its_class_loss_alone(tmp_path):
    """A student without classes but of four rows has the class loss of a student of these four."""
    classless = tuple(range(4, 16))
    run = trainer(tmp_path / "mixed", train=rows(16, classless=classless), per_device_train_batch_size=16, **STILL)
    run.train()
    few = trainer(tmp_path / "few", train=rows(4), per_device_train_batch_size=4, **STILL)
    few.train()
    assert logged(run, "class_loss") == pytest.approx(logged(few, "class_loss"), abs=1e-5)
    complete = trainer(tmp_path / "all", train=rows(16), per_device_train_batch_size=16, **STILL)
    complete.train()
    assert logged(run, "aspect_loss") == pytest.approx(logged(complete, "aspect_loss"), abs=1e-5)


def test_the_loss_of_an_evaluation_does_not_depend_on_its_batches(tmp_path):
    """Its rows with answers lie unevenly in the batches, and each answer counts as much as any other."""
    losses = []
    for size in (3, 5, 13):
        run = trainer(tmp_path, per_device_eval_batch_size=size)
        losses.append(run.evaluate(rows(13, unlabelled=(0, 1, 2, 3, 7)))["eval_loss"])
    assert losses == pytest.approx(losses[:1] * 3, abs=1e-6)


def test_class_targets_grow_in_weight(tmp_path):
    """With target_ramp_up, the first step learns nothing from the targets of rows without a class."""
    train = mixed(8, classless=(4, 5, 6, 7), without=(0, 1, 2, 3))
    settings = {"train": train, "per_device_train_batch_size": 8, "num_train_epochs": 4, **STILL}
    ramp = trainer(tmp_path / "ramp", target_ramp_up=0.5, **settings)
    ramp.train()
    plain = trainer(tmp_path / "plain", **settings)
    plain.train()
    grown = [one / other for one, other in zip(logged(ramp, "soft_loss"), logged(plain, "soft_loss"))]
    assert grown[0] == 0 and grown[1] == pytest.approx(0.5, abs=0.1) and grown[3] == pytest.approx(1, abs=0.1)


# Self-training


def test_a_guess_counts_where_it_is_sure_enough():
    weak = torch.tensor([[3.0, 0.0], [0.1, 0.0], [0.0, 4.0]], requires_grad=True)
    strong = torch.tensor([[1.0, 2.0], [5.0, 0.0], [0.0, 1.0]], requires_grad=True)
    losses = self_training_loss(weak, strong, 0.9, torch.tensor(3))
    expected = (np.log(1 + np.exp(1)) + np.log(1 + np.exp(-1))) / 3
    assert losses["self_loss"].item() == pytest.approx(expected, rel=1e-5)
    assert losses["self_sure"].item() == pytest.approx(2 / 3)
    losses["self_loss"].backward()
    assert weak.grad is None and (strong.grad[1] == 0).all() and (strong.grad[[0, 2]] != 0).all()


def test_a_harder_view_shows_the_same_image_otherwise():
    pixels = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    before = pixels.clone()
    view, again = (strong_view(pixels, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(view, again) and torch.equal(pixels, before)
    assert all((one - other).abs().mean() > 0.1 for one, other in zip(view, pixels))
    assert not torch.equal(view, strong_view(pixels, np.random.default_rng(4)))


def test_a_student_learns_from_its_own_guesses(tmp_path):
    """Without any answers; with a confidence that any guess has, the loss of its guesses falls."""
    train = rows(16, aspects=False, classless=tuple(range(4, 16)))
    settings = {"num_train_epochs": 30, "per_device_train_batch_size": 16, "learning_rate": 3e-3, **STILL}
    run = trainer(tmp_path, model=student(bank=None), train=train, self_training=0.2, **settings)
    run.train()
    losses = logged(run, "self_loss")
    assert logged(run, "self_sure") == [1.0] * 30 and np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    sure = trainer(tmp_path, model=student(bank=None), train=train, self_training=1.0, **settings)
    sure.train()
    assert logged(sure, "self_sure") == [0.0] * 30 == logged(sure, "self_loss")


# In which order


def test_each_batch_has_its_share_of_rows_with_a_class():
    sampler = MixedSampler(range(10), range(10, 100), 0.25, 8, seed=0)
    order = list(sampler)
    assert len(order) == len(sampler) == 40
    assert [sum(row < 10 for row in order[start : start + 8]) for start in range(0, 40, 8)] == [2] * 5
    assert len(set(order)) == 40  # none twice


@pytest.mark.parametrize(
    ("labelled", "others", "fraction", "batch"), [(10, 1000, 0.25, 128), (50, 1000, 0.5, 128), (5, 100, 0.5, 8)]
)
def test_an_epoch_of_few_rows_has_its_share_too(labelled, others, fraction, batch):
    order = list(MixedSampler(range(labelled), range(labelled, labelled + others), fraction, batch, seed=0))
    assert len(set(order)) == len(order) == round(labelled / fraction)
    assert sum(row < labelled for row in order) == labelled


def test_a_share_of_a_row_holds_on_average():
    order = list(MixedSampler(range(100), range(100, 1000), 0.1, 4, seed=0))
    counts = [sum(row < 100 for row in order[start : start + 4]) for start in range(0, len(order), 4)]
    assert set(counts) <= {0, 1} and sum(counts) == len(order) // 10 == 100


def test_all_rows_of_the_larger_kind_come_in_turn():
    sampler, seen = MixedSampler(range(4), range(4, 28), 0.5, 4, seed=1), []
    for epoch in range(6):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert sorted(row for row in order if row < 4) == [0, 1, 2, 3]
        seen += [row for row in order if row >= 4]
    assert sorted(seen) == list(range(4, 28))
    again = MixedSampler(range(4), range(4, 28), 0.5, 4, seed=1)
    again.set_epoch(5)
    assert list(again) == order and list(MixedSampler(range(4), range(4, 28), 0.5, 4, seed=2)) != order


def test_a_share_in_each_batch_is_trained_with_workers_and_after_a_stop_alike(tmp_path):
    classless = tuple(range(4, 16))
    settings = {"train": rows(16, classless=classless), "labelled_fraction": 0.5, "num_train_epochs": 4}
    settings |= {"save_strategy": "steps", "save_steps": 3}
    whole = trainer(tmp_path / "whole", **settings)
    whole.train()
    assert whole.state.max_steps == 4 * 2  # 4 rows with a class and 4 of the others, in batches of 4
    broken_off = trainer(tmp_path / "off", **settings)
    broken_off.add_callback(StopAfter(3))
    broken_off.train()
    resumed = trainer(tmp_path / "off", dataloader_num_workers=1, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "off" / "checkpoint-3"))
    assert_same_weights(whole.model, resumed.model, atol=1e-6)
    for name in ("class_loss", "aspect_loss"):
        assert logged(resumed, name) == pytest.approx(logged(whole, name), abs=1e-5)


# What is refused


@pytest.mark.parametrize(
    ("train", "settings", "words"),
    [
        (rows(8, classless=tuple(range(8))), {}, ("None of the 8", "has a class")),
        (rows(8, classless=(2, 6)), {}, ("'cow'", "each class at least one")),
        (rows(8, classless=(5,), unlabelled=(5,)), {}, ("1 of the 8", "no class", "madkd label")),
        (rows(8, classless=(5,)), {"aspect_alpha": 0.0}, ("1 of the 8", "no class")),
        (rows(8), {"labelled_fraction": 0.5}, ("all 8", "leave it out")),
        (rows(8), {"self_training": 0.95}, ("self_training", "have a class")),
        (rows(8, classless=(5,)), {"self_training": 0.95, "mixup_alpha": 0.2}, ("self_training", "mixup")),
        (rows(8, classless=(5,)).to_iterable_dataset(), {"labelled_fraction": 0.5, "max_steps": 2}, ("interleave",)),
    ],
    ids=[
        "no class",
        "a class without image",
        "nothing to learn",
        "no aspects",
        "all have a class",
        "no guesses",
        "mixup",
        "stream",
    ],
)
def test_rows_that_nothing_can_be_learned_from_are_refused(tmp_path, train, settings, words):
    with pytest.raises(ValueError) as error:
        trainer(tmp_path, train=train, **settings)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("kind", ["aspect_bank", "class_teacher"])
@pytest.mark.parametrize("evaluates", [False, True])
def test_targets_of_others_in_a_stream_are_refused_with_the_first_batch_that_has_some(tmp_path, kind, evaluates):
    """Nobody sees them before; the rows of a dataset are looked at when the trainer is made."""
    good = with_class_targets(rows(8), np.zeros((8, 4)), "teacher", list(CLASSES.values()))
    if kind == "aspect_bank":
        others = [f"{BANK.fingerprint}0" if i == 5 else BANK.fingerprint for i in range(8)]
    else:
        others = [f"teacher:{i}" if i == 5 else value for i, value in enumerate(good[kind])]
    bad = good.remove_columns(kind).add_column(kind, others)
    settings = {"class_alpha": 1.0, "max_steps": 2}
    parts = {"train": good.to_iterable_dataset(), "evaluate": good.to_iterable_dataset()}
    trainer(tmp_path, **parts, **settings).train()
    parts["evaluate" if evaluates else "train"] = bad.to_iterable_dataset()
    run = trainer(tmp_path, **parts, **settings)
    with pytest.raises(ValueError, match=f"A row has .* of the {kind} .*are others or in another order"):
        run.evaluate() if evaluates else run.train()


@pytest.mark.parametrize("fraction", [0.0, 1.0, 1.2, -0.5])
def test_a_share_that_is_none_is_refused(tmp_path, fraction):
    with pytest.raises(ValueError, match="labelled_fraction must be .* above 0 and below 1"):
        trainer(tmp_path, labelled_fraction=fraction)


@pytest.mark.parametrize("names", [NAMES[::-1], [*NAMES, "emu"]], ids=["order", "number"])
def test_class_targets_of_other_classes_are_refused(tmp_path, names):
    train = with_class_targets(rows(8), np.zeros((8, len(names))), "other", names)
    with pytest.raises(ValueError, match="class_logits.*make it again"):
        trainer(tmp_path, train=train)


def test_class_targets_to_evaluate_on_are_of_these_classes_unless_nobody_looks(tmp_path):
    other = with_class_targets(rows(8), np.zeros((8, 5)), "other", [*NAMES, "emu"])
    for evaluation in (other, {"one": rows(8), "two": other}):
        with pytest.raises(ValueError, match="scores of 5 classes.*make it again"):
            trainer(tmp_path, evaluate=evaluation)
    trainer(tmp_path, train=other, evaluate=other, class_alpha=0.0)


@pytest.mark.parametrize("score", [np.inf, -np.inf])
def test_class_targets_that_are_no_numbers_are_refused(tmp_path, score):
    scores = np.zeros((8, len(NAMES)))
    scores[3, 1] = score
    with pytest.raises(ValueError, match="class_logits.*finite.*clip"):
        trainer(tmp_path, train=with_class_targets(rows(8), scores, "other", NAMES))


def test_images_to_evaluate_on_need_their_class(tmp_path):
    evaluate = rows(8, classless=(5,))
    for make in (lambda: trainer(tmp_path).evaluate(evaluate), lambda: trainer(tmp_path, evaluate={"one": evaluate})):
        with pytest.raises(ValueError, match="1 of the 8 images of the evaluation dataset.* have no class.*filter"):
            make()


def test_training_images_of_which_none_has_a_class_are_refused_whatever_the_column_is(tmp_path):
    train = rows(8).remove_columns("label")
    with pytest.raises(ValueError, match="None of the 8 training images has a class"):
        trainer(tmp_path, train=train.add_column("label", [None] * 8))


def test_answers_without_a_number_in_them_are_no_answers(tmp_path):
    """NaN from beginning to end, as null in their place: in the evaluation's mean, and in what can be learned."""
    null = rows(8, unlabelled=(1, 2, 5, 6))
    answers = [[np.nan] * len(BANK) if row is None else row for row in null["aspect_logits"][:]]
    nan = null.remove_columns("aspect_logits").add_column(
        "aspect_logits", answers, feature=null.features["aspect_logits"]
    )
    run = trainer(tmp_path, aspect_alpha=3.0)
    assert run.evaluate(nan)["eval_loss"] == pytest.approx(run.evaluate(null)["eval_loss"], rel=1e-6)
    labels = [None if row == 5 else label for row, label in enumerate(nan["label"])]
    hidden = nan.remove_columns("label").add_column("label", labels, feature=nan.features["label"])
    with pytest.raises(ValueError, match="1 of the 8 training images have no class, nor anything in"):
        trainer(tmp_path, train=hidden)


def test_an_epoch_has_images_of_both_kinds(tmp_path, caplog):
    train = rows(16, classless=(4, 5, 6, 7))
    with pytest.raises(ValueError, match="labelled_fraction=0.05 no image of an epoch has .*: pass 0.2 or more"):
        trainer(tmp_path, train=train, labelled_fraction=0.05)
    for fraction in (0.2, 0.5, 0.97):
        caplog.clear()
        run = trainer(tmp_path, train=train, labelled_fraction=fraction)
        assert (f"labelled_fraction={fraction}, and 75% of" in caplog.text) == (fraction < 0.75)
        assert {train["label"][row] is None for row in run._get_train_sampler()} == {True, False}


def test_what_is_said_of_a_fraction_is_so():
    """Of one that is refused, the remedy is not; with one that is not, an epoch has rows of both kinds."""
    for labelled, unlabelled, fraction in itertools.product((1, 2, 3, 7, 40), (1, 2, 5, 60), np.arange(0.01, 1, 0.03)):
        try:
            check_fraction(labelled, unlabelled, fraction)
        except ValueError as error:
            check_fraction(labelled, unlabelled, float(re.search("pass ([0-9.]+[0-9])", str(error))[1]))
            continue
        order = list(MixedSampler(range(labelled), range(labelled, labelled + unlabelled), fraction, 4, 0))
        assert 0 < sum(row < labelled for row in order) < len(order)


# Columns


def test_class_targets_are_null_where_there_are_none():
    train = mixed(8, classless=(), without=(1, 5))
    teachers, scores = train["class_teacher"][:], train["class_logits"][:]
    assert [row for row in range(8) if scores[row] is None] == [row for row in range(8) if teachers[row] is None]
    assert [row for row in range(8) if scores[row] is None] == [1, 5]
    assert len(set(teachers) - {None}) == 1 and teachers[0].startswith("other:")
    again = with_class_targets(train, np.ones((8, 4)), "second", NAMES)
    assert again.column_names == train.column_names and again[1]["class_logits"] == [1, 1, 1, 1]


def test_a_student_without_aspects_learns_from_class_targets(tmp_path):
    train = mixed(16).remove_columns(["aspect_logits", "aspect_bank"])
    train = train.select([row for row in range(16) if row != 9])  # it has neither class nor target
    settings = {"num_train_epochs": 40, "class_alpha": 20.0, "per_device_train_batch_size": 15, **STILL}
    run = trainer(tmp_path, model=student(bank=None), train=train, **settings)
    run.train()
    losses = logged(run, "soft_loss")
    assert losses[-1] < 0.95 * losses[0] and not any(logged(run, "aspect_loss"))
