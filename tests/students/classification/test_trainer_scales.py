"""Training at any scale is the same training: several processes, fewer bits, less memory, a best step."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from accelerate.utils.launch import prepare_multi_gpu_env
from builders import detector_training as detectors
from builders import tiny
from builders.classifier_training import (
    PROCESSOR,
    STILL,
    arguments,
    assert_same_weights,
    logged,
    rows,
    student,
    trainer,
    with_broken_images,
)
from datasets import Dataset
from PIL import Image
from transformers import EarlyStoppingCallback, MobileNetV2Config, TrainerCallback

from madkd_hf import MadkdForImageClassification, MadkdTrainer, MadkdTrainingArguments


ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "recipes" / "accelerate"
LOSSES = ("loss", "class_loss", "aspect_loss")
GAPS = (1, 2, 8, 9, 10, 11, 12, 20)  # rows without answers
SIZES = (16, 13, 9, 8, 5, 3, 1)  # in batches of 8: 2 times 4


# The launcher's settings


def launched(name: str):
    """As `accelerate launch` takes them."""
    config = load_config_from_file(str(CONFIGS / name))
    words = ["--config_file", str(CONFIGS / name), "recipes/train_student.py"]
    return config, _validate_launch_command(launch_command_parser().parse_args(words))[0]


@pytest.mark.parametrize(
    ("name", "kind", "processes"),
    [
        ("cpu_2proc.yaml", DistributedType.MULTI_GPU, 2),
        ("single_gpu.yaml", DistributedType.NO, 1),
        ("ddp.yaml", DistributedType.MULTI_GPU, 2),
        ("fsdp.yaml", DistributedType.FSDP, 2),
    ],
)
def test_accelerate_reads_its_settings(name, kind, processes):
    config, words = launched(name)
    assert (config.distributed_type, config.num_processes, config.mixed_precision) == (kind, processes, "no")
    assert (words.multi_gpu, words.use_fsdp) == (kind == DistributedType.MULTI_GPU, kind == DistributedType.FSDP)
    assert words.num_processes == processes and not words.use_cpu


def test_no_settings_but_those_tested():
    assert {path.name for path in CONFIGS.iterdir()} == {"cpu_2proc.yaml", "single_gpu.yaml", "ddp.yaml", "fsdp.yaml"}


@pytest.mark.parametrize(("backbone", "layer"), [(None, "ViTLayer"), (tiny.resnet(), "ResNetConvLayer")])
def test_fsdp_divides_a_student_by_its_backbone_s_layers(monkeypatch, backbone, layer):
    for key, value in prepare_multi_gpu_env(launched("fsdp.yaml")[1]).items():
        monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    model = student(backbone)
    divides = fsdp2_prepare_auto_wrap_policy(plugin, model)
    assert layer in {type(module).__name__ for module in model.modules() if divides(module)}


def test_processes_that_a_launcher_starts_on_a_cpu_train_together(tmp_path, monkeypatch):
    """What else they would do is train alone, all into one folder."""
    asked = []
    monkeypatch.setattr("transformers.TrainingArguments.__post_init__", lambda args: asked.append(args.use_cpu))
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: None)
    for size in (None, "1", "2"):
        if size:
            monkeypatch.setenv("WORLD_SIZE", size)
            monkeypatch.setenv("LOCAL_RANK", "0")
        MadkdTrainingArguments(str(tmp_path))
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: torch.device("cuda"))
    MadkdTrainingArguments(str(tmp_path))
    assert asked == [False, False, True, False]


class InParts(torch.nn.Module):
    """What `nn.DataParallel` does with two devices, one after the other on this one."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.module = module
        self.calls = 0

    def forward(self, **inputs):
        halves = [value.chunk(2) for value in inputs.values()]
        found = [self.module(**dict(zip(inputs, parts))) for parts in zip(*halves)]
        self.calls += len(found)
        return type(found[0])((name, torch.cat([each[name] for each in found])) for name in found[0])


@pytest.mark.parametrize("store", ["disk"])
def test_several_gpus_of_one_process_train_as_one_with_the_same_batch(tmp_path, monkeypatch, store):
    monkeypatch.setattr("torch.nn.DataParallel", InParts)
    found = []
    for count in (1, 2):
        settings = {"gradient_accumulation_steps": 2, "image_store": store, "num_train_epochs": 2, "max_steps": 4}
        args = arguments(tmp_path, per_device_train_batch_size=4 // count, **settings)
        args._n_gpu = count
        made = MadkdTrainer(student(), args, train_dataset=rows(14), eval_dataset=rows(6), processing_class=PROCESSOR)
        made.train()
        assert isinstance(made.model_wrapped, InParts) == (count == 2)
        metrics = made.evaluate()
        found.append([*(logged(made, name) for name in ("loss", "class_loss", "aspect_loss", "grad_norm"))])
        found[-1].append([metrics["eval_loss"], metrics["eval_aspect_bce"]])
    for one, two in zip(*found):
        assert two == pytest.approx(one, rel=1e-4)


def test_a_detector_s_batches_are_not_shared_between_the_gpus_of_one_process(tmp_path):
    args = arguments(tmp_path)
    args._n_gpu = 2
    message = "MadkdDetectionTrainer cannot share a batch between the 2 GPUs .* with `accelerate launch`, or show it"
    with pytest.raises(ValueError, match=message):
        detectors.MadkdDetectionTrainer(
            detectors.detector(), args, eval_dataset=detectors.rows(), processing_class=detectors.PROCESSOR
        )


def test_objects_without_area_that_the_labelling_skipped_train_no_detector(tmp_path, caplog):
    data, bad = detectors.rows(8), detectors.rows(8).map(detectors.flat)
    data = Dataset.from_list([*data.select(range(2)), bad[2], *data.select(range(3, 8))], features=data.features)
    with pytest.raises(ValueError, match="An object in row 2 of the training dataset has the box"):
        detectors.trainer(tmp_path, train=data)
    made = detectors.trainer(tmp_path, train=with_broken_images(data, 2), evaluate=with_broken_images(data, 2))
    assert caplog.text.count("Left out 1 of the 8 rows of the") == 2 and len(made.train_dataset) == 7
    with pytest.raises(ValueError, match=r"An object in row 1 of the training dataset \(without the rows left out\)"):
        detectors.trainer(tmp_path, train=with_broken_images(data.select([0, 1, 2, 2]), 2).select([0, 2, 3]))


# How evaluation batches are put together, for detectors (for classifiers see test_trainer.py)


def test_a_detector_s_evaluation_batches_may_stay_apart(tmp_path):
    found = []
    for together in (True, False):
        made = detectors.trainer(tmp_path, evaluate=detectors.rows(), eval_do_concat_batches=together)
        metrics = made.evaluate()
        found.append([metrics[name] for name in ("eval_loss", "eval_map", "eval_aspect_bce")])
    assert found[0] == found[1]


@pytest.mark.parametrize("metrics", [None, lambda prediction, compute_result: {}])
def test_a_detector_is_not_measured_batch_by_batch(tmp_path, metrics):
    with pytest.raises(ValueError, match="MadkdDetectionTrainer need all evaluation images at once; received"):
        detectors.trainer(tmp_path, metrics=metrics, batch_eval_metrics=True)


# Fewer bits, less memory, compiled


def test_bf16_computes_in_fewer_bits_and_keeps_whole_weights(tmp_path):
    whole, half = trainer(tmp_path, num_train_epochs=2), trainer(tmp_path, num_train_epochs=2, bf16=True)
    kinds = set()
    layer = half.model.backbone.vit.layers[0].mlp
    layer.register_forward_hook(lambda module, inputs, output: kinds.add(output.dtype))
    for run in whole, half:
        run.train()
    assert kinds == {torch.bfloat16}
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.float32}
    for name in LOSSES:
        assert all(map(math.isfinite, logged(half, name)))
        assert logged(half, name) == pytest.approx(logged(whole, name), abs=0.05), name
    assert logged(half, "loss") != logged(whole, "loss")


def test_activation_checkpointing_computes_layers_twice_and_changes_nothing(tmp_path):
    curves, calls = [], []
    for checkpointing in (False, True):
        run = trainer(tmp_path, **{tiny.CHECKPOINTING: checkpointing})
        passes = []
        layer = run.model.backbone.vit.layers[0].attention
        layer.register_forward_hook(lambda layer, *_, seen=passes: seen.append(1) if layer.training else None)
        run.train()
        curves.append({name: logged(run, name) for name in (*LOSSES, "grad_norm")})
        calls.append(len(passes))
    assert calls == [4, 8]
    for name, values in curves[0].items():
        assert curves[1][name] == pytest.approx(values, abs=1e-6), name


@pytest.mark.parametrize(
    ("backbone", "name"),
    [(tiny.resnet(), "ResNetForImageClassification"), (MobileNetV2Config(), "MobileNetV2ForImageClassification")],
)
def test_a_backbone_without_activation_checkpointing_says_so(tmp_path, backbone, name):
    with pytest.raises(ValueError, match=f"The backbone {name} has no layers for activation checkpointing: leave it"):
        trainer(tmp_path, student(backbone), **{tiny.CHECKPOINTING: True})


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_a_compiled_student_learns_the_same_and_is_saved_as_an_ordinary_one(tmp_path, backend):
    plain = trainer(tmp_path, **STILL)
    compiled = trainer(tmp_path, **STILL, torch_compile=True, torch_compile_backend=backend)
    for run in plain, compiled:
        run.train()
    assert type(compiled.model_wrapped).__name__ == "OptimizedModule"
    for name in LOSSES:
        assert logged(compiled, name) == pytest.approx(logged(plain, name), abs=1e-4), name
    compiled.save_model()
    assert_same_weights(MadkdForImageClassification.from_pretrained(tmp_path), plain.model, atol=1e-4)


# Callbacks


def test_early_stopping_ends_the_training_and_the_best_step_is_kept(tmp_path):
    """The validation rows decide: two of their labels are wrong, the worse the better the training rows are learnt."""
    colours = [Image.new("RGB", (20, 20), name) for name in ("red", "lime", "blue", "white")]
    train = rows(16).map(lambda row, i: {"image": colours[i % 4]}, with_indices=True)
    validation = train.select(range(8)).map(lambda row, i: {"label": 3 if i < 2 else i % 4}, with_indices=True)
    every = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
    settings = {"num_train_epochs": 20, "aspect_alpha": 0, **every, **best, **STILL}
    run = trainer(tmp_path, train=train, evaluate=validation, **settings)
    run.add_callback(EarlyStoppingCallback(early_stopping_patience=3))
    run.train()
    losses = logged(run, "eval_loss")
    first = int(np.argmin(losses))
    assert run.state.global_step == 2 * len(losses) < 80
    assert 0 < first == len(losses) - 4
    assert run.state.best_global_step == 2 * (first + 1)
    assert logged(run, "loss")[-1] < logged(run, "loss")[2 * first + 1]
    assert run.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-5)


class Reporter(TrainerCallback):
    """Sees what tensorboard, trackio and wandb see."""

    def __init__(self):
        self.seen: list[dict] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        assert state.is_world_process_zero
        self.seen.append(dict(logs))


def test_reporters_are_told_each_part_of_the_loss(tmp_path):
    reporter = Reporter()
    run = trainer(tmp_path, evaluate=rows(8), eval_strategy="epoch")
    run.add_callback(reporter)
    run.train()
    told = [logs for logs in reporter.seen if "loss" in logs]
    assert len(told) == 4
    for logs in told:
        assert {*LOSSES, "grad_norm", "learning_rate", "epoch"} == set(logs)
        assert all(isinstance(value, float | int) for value in logs.values())
    (measured,) = (logs for logs in reporter.seen if "eval_loss" in logs)
    assert {"eval_accuracy", "eval_aspect_auroc", "eval_aspect_bce"} <= set(measured)


@pytest.mark.slow
def test_tensorboard_shows_each_part_of_the_loss(tmp_path, monkeypatch):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    run = trainer(tmp_path, report_to=["tensorboard"])
    run.train()
    board = events.EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    for name in LOSSES:
        shown = [event.value for event in board.Scalars(f"train/{name}")]
        assert shown == pytest.approx(logged(run, name), abs=1e-6), name


@pytest.mark.slow
def test_trackio_keeps_each_part_of_the_loss(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "board"))  # in a database there: no account, no network
    storage = pytest.importorskip("trackio.sqlite_storage")
    run = trainer(tmp_path, report_to=["trackio"], project="birds", run_name="first")
    run.train()
    logs = [logs for logs in storage.SQLiteStorage.get_logs("birds", "first") if "train/loss" in logs]
    for name in LOSSES:
        assert [entry[f"train/{name}"] for entry in logs] == pytest.approx(logged(run, name), abs=1e-6), name
