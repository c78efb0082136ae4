"""What is wrong with training arguments, told before anything is loaded."""

from __future__ import annotations

import difflib
import importlib.util
import math
from collections.abc import Callable, Iterable
from typing import Any

from transformers import TrainingArguments
from transformers.integrations import integration_utils

from ...text import as_list


def _at_least(low: float) -> Callable[[float], bool]:
    return lambda value: low <= value < math.inf


MOST_SEEDS = 2**32
EXPECTED: dict[str, tuple[Callable[[float], bool], str]] = {  # option -> what it may be, as a test and in words
    "learning_rate": (_at_least(0), "a number from 0 on, mostly 1e-5 to 1e-1"),
    "weight_decay": (_at_least(0), "a number from 0 on"),
    "max_grad_norm": (lambda value: value >= 0, "a number from 0 on, 0 for no clipping"),
    "label_smoothing_factor": (lambda value: 0 <= value <= 1, "0 to 1, mostly 0 or 0.1"),
    "aspect_alpha": (_at_least(0), "a finite number, 1 to 50 in the paper, 0 for classes alone"),
    "class_alpha": (_at_least(0), "a number from 0 on"),
    "temperature": (lambda value: 0 < value < math.inf, "a number above 0"),
    "target_confidence": (lambda value: 0 <= value <= 1, "a probability, 0 to 1"),
    "target_ramp_up": (lambda value: 0 <= value <= 1, "a share of the training, 0 to 1"),
    "self_training": (lambda value: 0 <= value <= 1, "a probability, 0 to 1, mostly 0.95"),
    "labelled_fraction": (lambda value: 0 < value < 1, "a share of each batch, above 0 and below 1"),
    "crop_scale": (lambda value: 0 < value <= 1, "a share of the image, above 0 and at most 1"),
    "horizontal_flip": (lambda value: 0 <= value <= 1, "a probability, 0 to 1"),
    "mixup_alpha": (_at_least(0), "a number from 0 on, 0 to turn it off"),
    "image_store_scale": (_at_least(1), "at least 1, in sides of the student's input"),
    "lr_gamma": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "num_train_epochs": (lambda value: 0 < value < math.inf, "a number above 0"),
    "max_steps": (lambda value: value == -1 or value > 0, "above 0, or -1 for num_train_epochs"),
    "per_device_train_batch_size": (_at_least(1), "at least 1"),
    "per_device_eval_batch_size": (_at_least(1), "at least 1"),
    "gradient_accumulation_steps": (_at_least(1), "at least 1"),
    "dataloader_num_workers": (_at_least(0), "at least 0"),
    "warmup_steps": (_at_least(0), "a number of steps from 0 on, or below 1 a share of all"),
    "adam_beta1": (lambda value: 0 <= value < 1, "0 to 1, below 1"),
    "adam_beta2": (lambda value: 0 <= value < 1, "0 to 1, below 1"),
    "adam_epsilon": (_at_least(0), "a number from 0 on"),
    "seed": (lambda value: 0 <= value < MOST_SEEDS, "0 to 4,294,967,295"),
    "data_seed": (lambda value: 0 <= value < MOST_SEEDS, "0 to 4,294,967,295"),
    "logging_steps": (lambda value: 0 < value < math.inf, "above 0"),
    "eval_steps": (lambda value: 0 <= value < math.inf, "above 0"),
    "save_steps": (lambda value: 0 < value < math.inf, "above 0"),
    "early_stopping_patience": (_at_least(1), "at least 1 evaluation"),
    "early_stopping_threshold": (_at_least(0), "a number from 0 on"),
}
REPORTERS = {"azure_ml": "azureml-core", "comet_ml": "comet-ml", "flyte": "flytekit"}  # packages of another name
IS_THERE = {"azure_ml": "azureml", "comet_ml": "comet", "flyte": "flytekit"}  # in is_..._available of transformers
OPTIMIZERS = {  # part of an optimizer's name -> module, what to install
    "torch_8bit": ("torchao", "torchao"),
    "torch_4bit": ("torchao", "torchao"),
    "8bit": ("bitsandbytes", "bitsandbytes"),
    "bnb": ("bitsandbytes", "bitsandbytes"),
    "paged": ("bitsandbytes", "bitsandbytes"),
    "galore": ("galore_torch", "galore-torch"),
    "apollo": ("apollo_torch", "apollo-torch"),
    "lomo": ("lomo_optim", "lomo-optim"),
    "schedule_free": ("schedulefree", "schedulefree"),
    "grokadamw": ("grokadamw", "grokadamw"),
    "stable_adamw": ("optimi", "torch-optimi"),
    "apex": ("apex", "apex"),
}
OF_A_RUN = ("loss", "runtime", "samples_per_second", "steps_per_second")


def check_numbers(args: TrainingArguments) -> None:
    """Raise ValueError for numbers that no training can be done with, all of them in one message."""
    wrong = []
    for name, (fits, expected) in EXPECTED.items():
        value = getattr(args, name, None)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not fits(value):
            wrong.append(f"{name} must be {expected}; received {value}")
    if wrong:
        raise ValueError(f"{'. '.join(wrong)}.")


def check_extras(args: TrainingArguments) -> None:
    """Raise ImportError where what the arguments name is not installed, ValueError for an unknown reporter."""
    missing = {}
    for name in as_list(args.report_to):
        if name in ("all", "none"):
            continue
        known = sorted(integration_utils.INTEGRATION_TO_CALLBACK)
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f": did you mean {close[0]!r}?" if close else f"; expected none or some of {', '.join(known)}."
            raise ValueError(f"report_to cannot be {name!r}{hint}")
        is_there = getattr(integration_utils, f"is_{IS_THERE.get(name, name)}_available", lambda: True)
        if not is_there():
            missing[f"report_to={name}"] = REPORTERS.get(name, name)
    optimizer = str(getattr(args.optim, "value", args.optim))
    for part, (module, package) in OPTIMIZERS.items():
        if part in optimizer:
            if not _is_there(module):
                missing[f"optim={optimizer}"] = package
            break
    for option, package in {"deepspeed": "deepspeed", "use_liger_kernel": "liger-kernel"}.items():
        if getattr(args, option, None) and not _is_there(package.replace("-", "_")):
            missing[option] = package
    if missing:
        names, packages = " and ".join(missing), " ".join(dict.fromkeys(missing.values()))
        raise ImportError(
            f"{names} {'needs' if len(missing) == 1 else 'need'} what is not installed: pip install {packages}, or "
            "leave it out."
        )


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def check_stopping(args: Any) -> None:
    """Raise ValueError for early stopping without what it needs."""
    patience, threshold = args.early_stopping_patience, args.early_stopping_threshold
    if patience is None:
        if threshold:
            raise ValueError(
                f"early_stopping_threshold={threshold} is for early stopping: pass early_stopping_patience, too."
            )
        return
    lacking = []
    if getattr(args.eval_strategy, "value", args.eval_strategy) == "no":
        lacking.append("eval_strategy=epoch and save_strategy=epoch (or steps)")
    if not args.load_best_model_at_end:
        lacking.append("load_best_model_at_end=true")
    if lacking:
        raise ValueError(
            f"early_stopping_patience={patience} waits for evaluations to get better and keeps the best student: pass "
            f"{' and '.join(lacking)}, and say what counts with metric_for_best_model."
        )


def check_unevaluated(args: Any) -> None:
    """Raise ValueError for a training that needs evaluations, where there are no images for them."""
    needing = ["load_best_model_at_end", "early_stopping_patience", "eval_on_start"]
    needing = [name for name in needing if getattr(args, name, None)]
    for name, value in (("save_strategy", "best"), ("lr_scheduler_type", "reduce_lr_on_plateau")):
        needing += [f"{name}={value}"] if getattr(args, name) == value else []
    if needing:
        need = "needs" if len(needing) == 1 else "need"
        raise ValueError(
            f"{' and '.join(needing)} {need} validation images, and none are kept: leave it out, or raise "
            "--validation_fraction."
        )


def check_metric(args: TrainingArguments, names: Iterable[str]) -> None:
    """Raise ValueError where `metric_for_best_model` is none of the metrics that an evaluation gives."""
    metric = args.metric_for_best_model
    if metric is None:
        return
    known = list(dict.fromkeys([*names, *OF_A_RUN]))
    if metric.removeprefix("eval_") not in known and metric not in known:
        close = difflib.get_close_matches(metric.removeprefix("eval_"), known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(
            f"metric_for_best_model={metric!r} is nothing that an evaluation gives here: {hint}expected one of "
            f"{', '.join(name for name in known if name not in OF_A_RUN[1:])}."
        )
