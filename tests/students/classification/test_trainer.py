"""Training: what is logged, what it equals, what it survives, what it refuses."""

import inspect
import json

import numpy as np
import pytest
import torch
from builders import tiny
from builders.classifier_training import (
    BANK,
    OTHER,
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
from datasets import ClassLabel, Dataset, DatasetDict, Value
from huggingface_hub import ModelCard
from torch.nn import functional as F
from transformers import (
    ResNetConfig,
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


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"aspect_alpha": -1}, "aspect_alpha must be .*, 0 for classes alone; received -1"),
        ({"aspect_alpha": float("nan")}, "aspect_alpha .*received nan"),
        ({"crop_scale": 0.0}, "crop_scale .*above 0 and at most 1; received 0.0"),
        ({"crop_scale": 1.5}, "crop_scale .*received 1.5"),
        ({"horizontal_flip": 2.0}, "horizontal_flip must be a probability, 0 to 1; received 2.0"),
        ({"hub_strategy": "every_save"}, "hub_strategy='every_save' would push unfinished students .*leave it at end"),
        ({"remove_unused_columns": True}, "remove_unused_columns=True would drop .*: leave it False"),
        ({"lr_milestones": [150, 180], "num_train_epochs": 100}, "must lie between 0 and num_train_epochs=100: scale"),
        ({"lr_milestones": [1], "max_steps": 10}, "are epochs and max_steps=10 counts steps: set num_train_epochs"),
        ({"lr_milestones": [1], "warmup_steps": 3}, "warmup_steps=3 would have no effect beside lr_milestones"),
        ({"lr_milestones": [1], "lr_gamma": -0.1}, "lr_gamma must be above 0 and at most 1; received -0.1"),
        ({"image_store_scale": 0.5}, "image_store_scale must be at least 1.*; received 0.5"),
        ({"image_store": "ram"}, r"Unknown image_store 'ram': expected one of \['auto', 'disk'"),
        ({"mixup_alpha": -1}, "mixup_alpha must be .*, 0 to turn it off; received -1"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **settings)


LENGTH = rows(4, bank=tiny.bank(2)), "answers 2 questions and the model has 3 aspects: use the bank .*aspects.json"
BANKS = f"bank {OTHER.fingerprint} and the model was built for {BANK.fingerprint}.*aspects.json"
FIVE = rows(4).cast_column("label", ClassLabel(names=list("abcde"))), "has 5 classes and the model 4: build the"


@pytest.mark.parametrize(("data", "message"), [LENGTH, (rows(4, bank=OTHER), BANKS), FIVE])
def test_a_dataset_that_does_not_fit_the_model_is_refused(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, train=data)


@pytest.mark.parametrize("place", ["evaluate", "evaluate dict", "evaluate later", "predict later"])
def test_so_is_one_to_evaluate_or_to_predict(tmp_path, place):
    data = rows(4, bank=OTHER)
    with pytest.raises(ValueError, match=BANKS):
        if place == "evaluate":
            trainer(tmp_path, evaluate=data)
        elif place == "evaluate dict":
            trainer(tmp_path, evaluate={"good": rows(4), "bad": data})
        elif place == "evaluate later":
            trainer(tmp_path).evaluate(data)
        else:
            trainer(tmp_path).predict(data)


def test_a_label_outside_the_classes_is_refused(tmp_path):
    data = rows(4).cast_column("label", Value("int64")).map(lambda row: {"label": row["label"] + 1})
    with pytest.raises(ValueError, match="label 4 in column 'label' is none of the 4 classes"):
        trainer(tmp_path, train=data).train()


def test_plain_training_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="needs MadkdTrainingArguments"):
        MadkdTrainer(model=student(), args=TrainingArguments(str(tmp_path), use_cpu=True), processing_class=PROCESSOR)


def test_a_trainer_needs_an_image_processor_or_a_collator(tmp_path):
    with pytest.raises(ValueError, match="Pass the student's image processor as processing_class"):
        MadkdTrainer(model=student(), args=arguments(tmp_path), train_dataset=rows())


def test_the_learning_rate_steps_down_after_epochs(tmp_path):
    run = trainer(tmp_path, num_train_epochs=4, lr_milestones=[1, 2.5], lr_gamma=0.1, optim="sgd", learning_rate=1.0)
    run.train()
    assert logged(run, "learning_rate") == pytest.approx([1.0] * 4 + [0.1] * 6 + [0.01] * 6)


def test_channels_last_is_a_memory_format_and_nothing_else(tmp_path):
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    curves = []
    for channels_last in (False, True):
        made = trainer(tmp_path / "out", student(backbone), channels_last=channels_last, num_train_epochs=2)
        made.train()
        convolution = next(p for p in made.model.parameters() if p.dim() == 4)
        assert convolution.is_contiguous(memory_format=torch.channels_last) == channels_last
        curves.append(logged(made, "loss"))
        made.save_model()
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
    again = MadkdForImageClassification.from_pretrained(tmp_path / "out")
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), made.model.parameters()))


def test_channels_last_holds_for_the_model_that_model_init_makes_anew(tmp_path):
    args = arguments(tmp_path, channels_last=True, max_steps=1, **STILL)
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    made = MadkdTrainer(
        args=args, train_dataset=rows(), processing_class=PROCESSOR, model_init=lambda: student(backbone)
    )
    before = made.model
    made.train()
    assert made.model is not before
    for model in (before, made.model):
        convolutions = [p for p in model.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1]
        assert convolutions and all(p.is_contiguous(memory_format=torch.channels_last) for p in convolutions)


@pytest.mark.parametrize("aspects", [True, False])
def test_evaluation_batches_that_stay_apart_are_measured_alike(tmp_path, aspects):
    data, found = rows(10, aspects=aspects, unlabelled=(3,) if aspects else ()), []
    for joined in (True, False):
        made = trainer(tmp_path, eval_do_concat_batches=joined, per_device_eval_batch_size=4, evaluate=data)
        output = made.predict(data)
        assert isinstance(output.predictions, list) != joined
        timed = ("runtime", "per_second", "preparation_time")
        metrics = {**made.evaluate(), **output.metrics}
        found.append({name: value for name, value in metrics.items() if not name.endswith(timed)})
    assert found[0] == pytest.approx(found[1]) and "eval_accuracy" in found[0]
    assert ("eval_aspect_auroc" in found[0]) == aspects


def test_metrics_batch_by_batch_need_a_function_for_it(tmp_path):
    data = rows(10)
    message = "MadkdTrainer need all evaluation images at once; received batch_eval_metrics=True: leave it out"
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, batch_eval_metrics=True)
    right = []

    def own(prediction, compute_result):
        right.append((prediction.predictions.argmax(dim=1) == prediction.label_ids).sum().item())
        return {"right": sum(right)} if compute_result else {}

    made = MadkdTrainer(
        student(),
        arguments(tmp_path, batch_eval_metrics=True, per_device_eval_batch_size=4),
        eval_dataset=data,
        processing_class=PROCESSOR,
        compute_metrics=own,
    )
    metrics = made.evaluate()
    assert len(right) == 3 and metrics["eval_right"] == sum(right)


@pytest.mark.parametrize("store", ["disk", "device"])
def test_a_store_for_other_batches_than_ours_is_refused(tmp_path, store):
    args = arguments(tmp_path, image_store=store)
    with pytest.raises(ValueError, match=f"image_store='{store}' .* received a data_collator of your own: leave"):
        MadkdTrainer(student(), args, data_collator=lambda rows: rows, train_dataset=rows())
    with pytest.raises(ValueError, match=f"image_store='{store}' .* received a train_dataset of .*list.*: leave"):
        MadkdTrainer(student(), args, train_dataset=list(rows()), processing_class=PROCESSOR)
    MadkdTrainer(student(), args, data_collator=AspectCollator(PROCESSOR, 4), train_dataset=rows())
    MadkdTrainer(student(), arguments(tmp_path), data_collator=lambda rows: rows, train_dataset=rows())


def test_mixup_blends_images_classes_and_aspects_alike(tmp_path):
    """The loss of the blended batch is that of blended images with blended one-hot classes and probabilities."""
    made = trainer(tmp_path, mixup_alpha=0.4, aspect_alpha=2.0, **STILL)
    made.model.train()
    inputs = made.train_collator([rows(8, unlabelled=(3,))[i] for i in range(8)])
    loss = made.compute_loss(made.model, inputs)
    draw = np.random.default_rng([made.args.seed, 0, 0, 0])  # seed, step, batch of the step, process
    share, order = draw.beta(0.4, 0.4), torch.from_numpy(draw.permutation(8))
    assert 0.01 < share < 0.99 and not torch.equal(order, torch.arange(8))
    blend = lambda values: share * values + (1 - share) * values[order]  # noqa: E731
    outputs = made.model(pixel_values=blend(inputs["pixel_values"]))
    expected = F.cross_entropy(outputs.logits, blend(F.one_hot(inputs["labels"], 4).float()))
    known = inputs["aspect_logits"].isfinite().float()
    targets = blend(inputs["aspect_logits"].nan_to_num().sigmoid() * known)
    z, weight = outputs.aspect_logits, blend(known)  # where one of a pair has no answers, its share counts for nothing
    each = -(targets * F.logsigmoid(z) + (weight - targets) * F.logsigmoid(-z))
    torch.testing.assert_close(loss, expected + 2.0 * each.mean(dim=1).sum() / 7)  # rows have answers


def test_evaluation_is_not_mixed(tmp_path):
    made = trainer(tmp_path, evaluate=rows(8), mixup_alpha=0.4, **STILL)
    plain = trainer(tmp_path, evaluate=rows(8), **STILL)
    assert made.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"])


def test_mixup_blends_every_batch_anew(tmp_path):
    made = trainer(tmp_path, mixup_alpha=0.4, **STILL)
    drawn = [made._draw_of_batch().beta(1, 1) for _ in range(3)]
    made.state.global_step = 1
    drawn += [made._draw_of_batch().beta(1, 1)]
    assert len(set(drawn)) == 4


def test_a_resumed_run_blends_the_same(tmp_path):
    settings = {"mixup_alpha": 0.3, "save_strategy": "steps", "save_steps": 1}
    settings |= {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    whole = trainer(tmp_path / "whole", **settings)
    whole.train()
    resumed = trainer(tmp_path / "whole", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert_same_weights(whole.model, resumed.model, 0)


def test_several_evaluation_datasets_are_each_measured(tmp_path):
    """Workers that live on hold the dataset that they began with."""
    parts = {"a": rows(8), "b": rows(8).select([0, 1, 4])}
    settings = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    made = trainer(tmp_path, evaluate=parts, eval_strategy="epoch", **settings)
    made.train()
    alone = {name: made.evaluate(part)["eval_loss"] for name, part in parts.items()}
    assert alone["a"] != alone["b"]
    measured = made.evaluate()
    for name, loss in alone.items():
        assert measured[f"eval_{name}_loss"] == pytest.approx(loss)
        assert logged(made, f"eval_{name}_loss") == pytest.approx([loss, loss])


def test_the_card_tells_the_schedule_that_was_used(tmp_path):
    settings = {"lr_milestones": [1, 2], "num_train_epochs": 3, "optim": "sgd", "optim_args": "momentum=0.9"}
    told = arguments(tmp_path, **settings).hyperparameters()
    assert told.items() >= {**settings, "lr_gamma": 0.1}.items()
    assert not told.keys() & {"lr_scheduler_type", "warmup_steps"}


@pytest.mark.parametrize("column", ["image", "label"])
def test_a_missing_column_is_named(tmp_path, column):
    with pytest.raises(ValueError, match=f"There is no column '{column}' in the training dataset, only .*else.*"):
        trainer(tmp_path, train=rows().rename_column(column, "else"))


def test_batches_without_pixels_are_refused(tmp_path):
    args = arguments(tmp_path)
    made = MadkdTrainer(
        student(), args, data_collator=lambda rows: {"labels": torch.zeros(4).long()}, train_dataset=rows()
    )
    with pytest.raises(ValueError, match="data_collator need `pixel_values`; they have ..labels"):
        made.train()
