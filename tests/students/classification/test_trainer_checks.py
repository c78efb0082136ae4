"""What a trainer of classifiers refuses, and how its batches are laid out, kept and blended."""

import numpy as np
import pytest
import torch
from builders import tiny
from builders.classifier_training import (
    BANK,
    OTHER,
    PROCESSOR,
    STILL,
    arguments,
    assert_same_weights,
    logged,
    rows,
    student,
    trainer,
)
from datasets import ClassLabel, Value
from torch.nn import functional as F
from transformers import (
    ResNetConfig,
    TrainingArguments,
)

from madkd_hf import MadkdForImageClassification, MadkdTrainer
from madkd_hf.students.classification.data import AspectCollator


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
