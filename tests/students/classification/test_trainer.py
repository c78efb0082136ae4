"""Training: what is logged, what it equals, what it survives, what it refuses."""

import inspect
import json

import numpy as np
import pytest
import torch
from builders import tiny
from builders.classifier_training import (
    PROCESSOR,
    STILL,
    StopAfter,
    arguments,
    assert_same_weights,
    logged,
    rows,
    student,
    trainer,
    vit,
    with_broken_images,
)
from datasets import Dataset, DatasetDict
from huggingface_hub import ModelCard
from torch.nn import functional as F
from transformers import (
    Trainer,
    TrainingArguments,
)

from madkd_hf import MadkdDetectionTrainer, MadkdForImageClassification, MadkdTrainer
from madkd_hf.students.classification.data import AspectCollator


CLASS_METRICS = {"eval_accuracy", "eval_macro_f1", "eval_calibration_error"}
ASPECT_METRICS = {"eval_aspect_auroc", "eval_aspect_bce"}


# What is logged


@pytest.mark.parametrize("alpha", [0.0, 4.0])
def test_each_part_of_the_loss_is_logged_and_they_add_up(tmp_path, alpha):
    run = trainer(tmp_path, aspect_alpha=alpha)
    run.train()
    loss, class_loss, aspect_loss = (np.array(logged(run, name)) for name in ("loss", "class_loss", "aspect_loss"))
    assert len(loss) == len(class_loss) == len(aspect_loss) == 4
    assert (class_loss > 0.5).all() and (aspect_loss > 0.1).all()
    np.testing.assert_allclose(loss, class_loss + alpha * aspect_loss, atol=1e-4)


def test_a_log_holds_the_means_since_the_last_one(tmp_path):
    often, seldom = trainer(tmp_path), trainer(tmp_path, logging_steps=2)
    often.train()
    seldom.train()
    for name in ("class_loss", "aspect_loss"):
        assert logged(seldom, name) == pytest.approx(np.reshape(logged(often, name), (2, 2)).mean(1), abs=1e-4)


def test_the_first_logged_losses_are_those_computed_by_hand(tmp_path):
    model, data = student(), rows(4)
    pixels = PROCESSOR([row["image"].resize((16, 16), 2) for row in data], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        out = model(pixels)
    ce = F.cross_entropy(out.logits, torch.tensor(data["label"][:]))
    targets = torch.tensor(data["aspect_logits"][:]).sigmoid()
    bce = F.binary_cross_entropy(out.aspect_logits.sigmoid(), targets)
    run = trainer(tmp_path, model, data, **STILL, aspect_alpha=2.0)
    run.train()
    assert logged(run, "class_loss") == pytest.approx([float(ce)], abs=1e-4)
    assert logged(run, "aspect_loss") == pytest.approx([float(bce)], abs=1e-4)
    assert logged(run, "loss") == pytest.approx([float(ce + 2 * bce)], abs=1e-4)


def test_labels_are_smoothed_once_in_training_and_in_evaluation(tmp_path):
    model, data = student(), rows(4)
    pixels = PROCESSOR([row["image"].resize((16, 16), 2) for row in data], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = model(pixels).logits
    expected = float(F.cross_entropy(logits, torch.tensor(data["label"][:]), label_smoothing=0.3))
    settings = {**STILL, "aspect_alpha": 0.0, "label_smoothing_factor": 0.3}
    run = trainer(tmp_path, model, data, evaluate=data, **settings)
    assert run.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-4)
    run.train()
    assert logged(run, "class_loss") == logged(run, "loss") == pytest.approx([expected], abs=1e-4)


def test_training_learns_classes_and_aspects(tmp_path):
    run = trainer(tmp_path, student(tiny.resnet()), rows(8), num_train_epochs=20, learning_rate=3e-2, **STILL)
    run.train()
    targets = torch.tensor(rows(8)["aspect_logits"][:]).sigmoid()
    floor = float(F.binary_cross_entropy(targets, targets))  # the entropy of the teacher's answers
    class_loss, aspect_loss = logged(run, "class_loss"), np.array(logged(run, "aspect_loss")) - floor
    assert class_loss[-1] < 0.2 * class_loss[0] and aspect_loss[-1] < 0.5 * aspect_loss[0]


# What it equals


def test_alpha_zero_is_plain_training_step_for_step(tmp_path):
    model, data = student(), rows(10)
    plain = Trainer(
        model=model.to_plain(),
        args=TrainingArguments(
            str(tmp_path), per_device_train_batch_size=4, learning_rate=1e-2, logging_steps=1, num_train_epochs=2,
            use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no", remove_unused_columns=False,
        ),
        train_dataset=data.remove_columns(["aspect_logits", "aspect_bank"]),
        data_collator=AspectCollator(PROCESSOR, 4, augment=True, crop_scale=1, horizontal_flip=0),
    )  # fmt: skip
    plain.train()
    ours = trainer(tmp_path, model, data, aspect_alpha=0.0, num_train_epochs=2, **STILL)
    ours.train()
    assert len(logged(ours, "loss")) == 6
    assert logged(ours, "loss") == pytest.approx(logged(plain, "loss"), abs=1e-5)
    assert logged(ours, "grad_norm") == pytest.approx(logged(plain, "grad_norm"), abs=1e-4)
    assert_same_weights(ours.model.to_plain(), plain.model, atol=1e-5)


@pytest.mark.parametrize(("unlabelled", "augmentation"), [((), STILL), ((1, 2, 9), {})], ids=["still", "augmented"])
def test_four_micro_batches_are_one_batch(tmp_path, unlabelled, augmentation):
    data = rows(32, unlabelled=unlabelled)
    runs = [
        trainer(
            tmp_path, student(), data, per_device_train_batch_size=size, gradient_accumulation_steps=16 // size,
            num_train_epochs=3, **augmentation,
        )
        for size in (16, 4)
    ]  # fmt: skip
    for run in runs:
        run.train()
    whole, parts = runs
    assert len(logged(whole, "loss")) == 6
    for name in ("loss", "class_loss", "aspect_loss", "grad_norm"):
        assert logged(parts, name) == pytest.approx(logged(whole, name), abs=2e-4), name
    assert_same_weights(parts.model, whole.model, atol=2e-4)


def test_evaluation_is_the_same_for_any_batch_size(tmp_path):
    data = rows(11, unlabelled=(2, 10))
    results = []
    for size in (11, 4):
        results.append(trainer(tmp_path, evaluate=data, per_device_eval_batch_size=size).evaluate())
    for result in results:
        assert CLASS_METRICS | ASPECT_METRICS <= set(result)
        for name in CLASS_METRICS | ASPECT_METRICS:
            assert result[name] == pytest.approx(results[0][name], abs=1e-5), name


def test_aspect_metrics_are_those_of_the_rows_with_answers(tmp_path):
    data, seen = rows(11, unlabelled=(2, 10)), [i for i in range(11) if i not in (2, 10)]
    model = student()
    result = trainer(tmp_path, model, evaluate=data, per_device_eval_batch_size=4).evaluate()
    pixels = PROCESSOR(data["image"][:], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        out = model.eval()(pixels)
    targets = torch.tensor([data[i]["aspect_logits"] for i in seen]).sigmoid()
    bce = F.binary_cross_entropy(out.aspect_logits[seen].sigmoid(), targets)
    accuracy = (out.logits.argmax(-1) == torch.tensor(data["label"][:])).float().mean()
    assert result["eval_aspect_bce"] == pytest.approx(float(bce), abs=1e-5)
    assert result["eval_accuracy"] == pytest.approx(float(accuracy))


# What it takes


def test_a_dataset_without_aspects_trains_and_evaluates_on_its_classes(tmp_path):
    data = rows(aspects=False)
    run = trainer(tmp_path, train=data, evaluate=data)
    run.train()
    result = run.evaluate()
    assert CLASS_METRICS | {"eval_loss"} <= set(result) and not ASPECT_METRICS & set(result)
    assert logged(run, "loss") == pytest.approx(logged(run, "class_loss"), abs=1e-4)


def test_a_split_that_was_not_labelled_evaluates_beside_one_that_was(tmp_path):
    result = trainer(tmp_path, evaluate={"seen": rows(), "new": rows(8, unlabelled=tuple(range(8)))}).evaluate()
    assert {"eval_seen_aspect_bce", "eval_seen_accuracy", "eval_new_accuracy", "eval_new_loss"} <= set(result)
    assert "eval_new_aspect_bce" not in result


@pytest.mark.parametrize("missing", [range(0, 8), range(8, 11)], ids=["a batch", "the last batch"])
def test_rows_without_answers_may_fill_whole_evaluation_batches(tmp_path, missing):
    result = trainer(tmp_path, evaluate=rows(11, unlabelled=tuple(missing))).evaluate()
    assert CLASS_METRICS | ASPECT_METRICS <= set(result)


def test_a_student_without_aspects_is_trained_as_a_plain_one(tmp_path):
    run = trainer(tmp_path, student(bank=None), rows(), rows())
    run.train()
    assert CLASS_METRICS <= set(run.evaluate()) and not ASPECT_METRICS & set(run.evaluate())


def test_rows_whose_image_the_labelling_could_not_read_are_left_out(tmp_path, caplog):
    data = with_broken_images(rows(11, unlabelled=(4,)), 2, 7, 10)
    kept = [i for i in range(11) if i not in (2, 7, 10)]
    run = trainer(tmp_path, train=data, evaluate={"new": data})
    assert [record.message for record in caplog.records if "Left out" in record.message] == [
        "Left out 3 of the 11 rows of the training dataset: "
        "the labelling could not read their images, or a box in them.",
        "Left out 3 of the 11 rows of the evaluation dataset 'new': "
        "the labelling could not read their images, or a box in them.",
    ]
    run.train()
    assert run.state.global_step == 2 and len(run.train_dataset) == 8
    found = run.evaluate()
    assert caplog.text.count("Left out") == 2
    expected = trainer(tmp_path, run.model, evaluate=rows(11, unlabelled=(4,)).select(kept)).evaluate()
    for name in CLASS_METRICS | ASPECT_METRICS:
        assert found[name.replace("eval", "eval_new")] == pytest.approx(expected[name], abs=1e-6)


def test_later_datasets_lose_their_unreadable_rows_too(tmp_path, caplog):
    data, run = with_broken_images(rows(8), 1), trainer(tmp_path)
    assert len(run.predict(data).predictions[0]) == 7
    assert "1 of the 8 rows of the test dataset" in caplog.text
    caplog.clear()
    assert "eval_accuracy" in run.evaluate(data) and "eval_new_loss" in run.evaluate({"new": data})
    assert caplog.text.count("1 of the 8 rows of the evaluation dataset") == 2


def test_the_recipe_leaves_unreadable_rows_out_before_it_splits(tmp_path, caplog):
    from madkd_hf.cli import preflight
    from madkd_hf.cli.tasks import classification
    from madkd_hf.data.problems import Problems

    DatasetDict(train=with_broken_images(rows(40), *range(0, 20, 2))).save_to_disk(tmp_path)
    args = classification.StudentArguments(validation_fraction=0.2, dataset=str(tmp_path))
    prepared = preflight.rows_of(Problems(), classification.COMMAND, args, 0, "unused").splits
    assert {split: len(part) for split, part in prepared.items()} == {"train": 24, "validation": 6}
    assert all(row["image"].size == (20, 20) for part in prepared.values() for row in part)
    assert "Left out 10 of the 40 images of split 'train'" in caplog.text


def test_predictions_of_rows_without_labels_are_class_logits(tmp_path):
    output = trainer(tmp_path).predict(rows(5, aspects=False).remove_columns("label"))
    assert output.predictions.shape == (5, 4) and output.label_ids is None


@pytest.mark.parametrize("kind", [MadkdTrainer, MadkdDetectionTrainer])
def test_what_trainer_has_not_or_elsewhere_is_given_by_name(kind):
    parameters = inspect.signature(kind).parameters
    by_position = [name for name, parameter in parameters.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    assert by_position == list(inspect.signature(Trainer).parameters)[: len(by_position)]
    assert {"image_column", "loss", "compute_metrics"} <= set(parameters) - set(by_position)


def test_a_metric_of_your_own_sees_an_ordinary_classifier(tmp_path):
    seen = {}

    def accuracy(prediction):
        seen.update(predictions=prediction.predictions.shape, labels=prediction.label_ids.shape)
        return {"mine": 1.0}

    run = MadkdTrainer(
        model=student(), args=arguments(tmp_path), eval_dataset=rows(11), processing_class=PROCESSOR,
        compute_metrics=accuracy,
    )  # fmt: skip
    assert run.evaluate()["eval_mine"] == 1.0
    assert seen == {"predictions": (11, 4), "labels": (11,)}


def test_evaluation_during_training_leaves_training_as_it_is(tmp_path):
    alone, watched = trainer(tmp_path), trainer(tmp_path, evaluate=rows(6), eval_strategy="steps", eval_steps=1)
    alone.train()
    watched.train()
    assert len(logged(watched, "eval_accuracy")) == 4
    assert logged(watched, "loss") == pytest.approx(logged(alone, "loss"), abs=1e-5)


def test_other_column_names(tmp_path):
    data = rows().rename_columns({"image": "img", "label": "fine"})
    run = MadkdTrainer(
        model=student(), args=arguments(tmp_path), train_dataset=data, eval_dataset=data, processing_class=PROCESSOR,
        image_column="img", label_column="fine",
    )  # fmt: skip
    run.train()
    assert "eval_accuracy" in run.evaluate()


# What it survives


def card(folder, run: MadkdTrainer, **facts) -> ModelCard:
    run.create_model_card(**facts)
    return ModelCard.load(folder / "README.md")


@pytest.mark.parametrize(
    ("step", "settings"),
    [(4, {}), (3, {"gradient_accumulation_steps": 2, "num_train_epochs": 4})],
    ids=["between epochs", "accumulated, before an epoch's end"],
)
def test_a_resumed_run_continues_the_same_curve(tmp_path, step, settings):
    settings = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 1, **settings}
    dropout = vit()
    dropout.hidden_dropout_prob = 0.2
    undisturbed = trainer(tmp_path / "whole", student(dropout), **{**settings, "save_strategy": "no"})
    undisturbed.train()
    assert undisturbed.state.global_step == 8

    broken = trainer(tmp_path / "broken", student(dropout), **settings)
    broken.add_callback(StopAfter(step))
    broken.train()
    assert broken.state.global_step == step
    resumed = trainer(tmp_path / "broken", student(dropout), **{**settings, "save_strategy": "no"})
    resumed.train(resume_from_checkpoint=str(tmp_path / "broken" / f"checkpoint-{step}"))

    for name in ("loss", "class_loss", "aspect_loss"):
        assert logged(resumed, name) == pytest.approx(logged(undisturbed, name), abs=1e-5), name
    assert_same_weights(resumed.model, undisturbed.model, atol=1e-6)


def test_the_best_checkpoint_is_loaded_whole_at_the_end_and_the_card_tells_what_it_scored(tmp_path):
    """Best is what the metric says, here the worst loss, so that it is not the last."""
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    run = trainer(tmp_path, evaluate=rows(8), learning_rate=0.1, **every, **best)
    run.train()
    losses, scores = logged(run, "eval_loss"), logged(run, "eval_accuracy")
    assert max(losses) > losses[-1] + 0.5 and run.state.best_global_step < run.state.global_step
    found = card(tmp_path, run).data.eval_results
    assert len(found) == 5
    assert found[0].metric_value == pytest.approx(scores[run.state.best_global_step - 1], abs=1e-4)
    assert run.evaluate()["eval_loss"] == pytest.approx(max(losses), abs=1e-5)


def test_every_epoch_sees_other_crops(tmp_path):
    run = trainer(tmp_path, train=rows(4), num_train_epochs=3)
    seen, collate = [], run.train_collator
    run.train_collator = lambda batch: seen.append(collate(batch)) or seen[-1]
    run.train()
    means = [sorted(batch["pixel_values"].mean((1, 2, 3)).tolist()) for batch in seen]
    assert len(means) == 3 and not np.allclose(means[0], means[1]) and not np.allclose(means[1], means[2])


def test_a_saved_student_carries_its_processor_and_code(tmp_path):
    run = trainer(tmp_path)
    run.train()
    run.save_model()
    names = {path.name for path in tmp_path.iterdir()}
    assert {"model.safetensors", "preprocessor_config.json", "modeling_madkd.py", "configuration_madkd.py"} <= names
    loaded = MadkdForImageClassification.from_pretrained(tmp_path)
    assert_same_weights(loaded, run.model, atol=0)


def test_the_token_never_gets_into_training_args(tmp_path):
    run = trainer(tmp_path, hub_token="hf_verysecret", save_strategy="steps", save_steps=1)
    run.train()
    run.save_model()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(path.name == "training_args.bin" for path in files) == 5
    assert not [path for path in files if b"verysecret" in path.read_bytes()]
    assert run.args.hub_token == "hf_verysecret"
    loaded = torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert (loaded.hub_token, loaded.aspect_alpha) == (None, run.args.aspect_alpha)
    assert "verysecret" not in json.dumps(run.args.to_dict())


def test_the_card_tells_what_the_weights_as_they_are_scored(tmp_path):
    run = trainer(tmp_path, train=rows(8), evaluate=rows(8), eval_strategy="epoch", num_train_epochs=2)
    run.train()
    last = logged(run, "eval_accuracy")[-1]
    assert card(tmp_path, run).data.eval_results[0].metric_value == pytest.approx(last, abs=1e-4)
    found = run.predict(rows(12)).metrics
    data = card(tmp_path, run, license="mit", dataset="you/birds", tags="birds").data
    test = {result.metric_type: result.metric_value for result in data.eval_results if result.dataset_split == "test"}
    assert test["accuracy"] == pytest.approx(found["test_accuracy"], abs=1e-4)
    assert data.license == "mit" and {"birds", "madkd"} <= set(data.tags)
    text = card(tmp_path, run).text
    assert "Validation (8 images) | Test (12 images)" in text and "| AUROC |" in text
    assert not [key for key in found if "per_aspect" in key]
    run.train()
    assert len(card(tmp_path, run).data.eval_results) == 5  # of the last epoch alone


def test_each_split_has_its_own_results(tmp_path):
    splits = {name: Dataset(rows(count).data, split=name) for name, count in (("train", 8), ("test", 4))}
    run = trainer(tmp_path, train=splits["train"], evaluate=splits["train"])
    run.evaluate()
    run.evaluate(splits["test"])
    run.predict(rows(5, aspects=False).remove_columns("label"), metric_key_prefix="new")
    text = card(tmp_path, run).text
    assert "Validation (8 images) | Test (4 images) |" in text and "New" not in text


def test_metrics_of_your_own_keep_their_names(tmp_path):
    run = MadkdTrainer(
        model=student(), args=arguments(tmp_path), eval_dataset=rows(8), processing_class=PROCESSOR,
        compute_metrics=lambda prediction: {"f1": 0.5, "accuracy": {"accuracy": 0.5}, "precision": np.float64(0.25)},
    )  # fmt: skip
    run.evaluate()
    found = card(tmp_path, run)
    assert {each.metric_type: each.metric_value for each in found.data.eval_results} == {"f1": 0.5, "precision": 0.25}
    assert "| precision |" in found.text and "runtime" not in found.text


def test_the_card_takes_what_a_trainer_takes(tmp_path):
    run = trainer(tmp_path, evaluate=rows(8))
    run.evaluate()
    asked = {"dataset": "Birds", "dataset_tags": "birds", "dataset_args": "small", "tasks": "image-classification"}
    data = card(tmp_path, run, **asked, finetuned_from=str(tmp_path)).data
    assert data.datasets == ["birds"] and data.base_model is None
    assert (data.eval_results[0].dataset_type, data.eval_results[0].dataset_config) == ("birds", "small")
    for dataset, ids in ("you/birds", ["you/birds"]), (["you/birds", "cows"], ["you/birds"]), ("My birds", None):
        data = card(tmp_path, run, dataset=dataset).data
        assert data.datasets == ids
        assert data.eval_results[0].dataset_type == ("you/birds" if dataset == "you/birds" else "local")
    assert card(tmp_path, run, dataset_tags="../birds").data.datasets is None
