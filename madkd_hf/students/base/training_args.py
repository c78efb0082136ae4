"""Training arguments of a distilled student."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from ...hub.upload import HubRepo
from .fields import CLASS_TARGET_LOSSES, IMAGE_STORES, option
from .settings import check_extras, check_numbers, check_stopping


def _is_one_of_several_on_cpu() -> bool:
    """Whether a launcher started several processes where only the CPU lets them train together: unless `use_cpu` is
    said, Accelerate lets each train alone there, and all write to one folder."""
    started = "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1
    device = torch.accelerator.current_accelerator(check_available=True)
    return started and (device is None or device.type == "mps")


@dataclass
class MadkdTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the weight of the aspect loss, the augmentation, and defaults that fit images.

    Each field has its `help`; of some there is more to say.

    Args:
        aspect_alpha: weight of the aspect loss (paper section 3.3).
        class_target_loss: a key of `madkd_hf.students.losses.TARGET_LOSSES`, where each names its source.
        target_confidence, target_ramp_up: of rows without a class of their own; those with one count in full.
        self_training: see `madkd_hf.students.losses.self_training`.
        labelled_fraction: above 0 and below 1, see `madkd_hf.students.classification.sampling`.
        mixup_alpha: 0.1 to 0.4 is usual.
        image_store: where images are kept that are decoded and resized once, before the first epoch: "disk" (a
            memory-mapped file beside the cached datasets), "device" (that file's content, on the accelerator), "none"
            (they are decoded anew in every epoch), or "auto", the fastest for which there is room. Evaluation images
            are kept on disk, or decoded anew where they cannot be.
        image_store_scale: at least 1; a crop that is scaled up is less sharp than one of the image itself.
        early_stopping_patience: needs `load_best_model_at_end` and an `eval_strategy`.
    """

    aspect_alpha: float = option(
        4.0, "Weight of the aspect loss beside the class loss, 1 to 50 in the paper; 0 is classes alone."
    )
    by_mass: bool = option(
        False, "Weigh each answer by the probability that the teacher put on yes and no together (aspect_mass)."
    )
    class_alpha: float = option(
        1.0, "Weight of class targets (column class_logits) beside the class loss; 0 does not look at them."
    )
    class_target_loss: str = option(
        "soft",
        "How the student is compared with class targets: soft (cross-entropy), kd, dkd or mlkd.",
        CLASS_TARGET_LOSSES,
    )
    temperature: float | None = option(
        None, "Of the class targets' loss; by default its paper's: 4 for kd, dkd and mlkd, 1 for soft."
    )
    standardize_logits: bool = option(
        False, "Bring class logits, the student's and the targets', to mean 0 and deviation 1 before their loss."
    )
    target_confidence: float = option(
        0.0, "Leave out class targets of images without a class whose largest probability is below this."
    )
    target_ramp_up: float = option(
        0.0, "Share of the training in which the weight of such class targets grows from 0 to class_alpha."
    )
    self_training: float = option(
        0.0,
        "Learn from the student's own guesses about images without a class, in a harder view, where their probability "
        "is at least this (0.95 in FixMatch); 0 does not. class_alpha is the weight.",
    )
    labelled_fraction: float | None = option(
        None,
        "Share of images with a class in each batch; an epoch ends when either kind was seen once. By default all are "
        "drawn alike.",
    )
    crop_scale: float = option(0.08, "Smallest share of the image that a random crop keeps; 1 turns cropping off.")
    horizontal_flip: float = option(0.5, "Probability of mirroring a training image; 0 turns it off.")
    mixup_alpha: float = option(
        0.0, "Blend training images, classes and aspects in pairs: Beta(mixup_alpha, mixup_alpha)."
    )
    lr_milestones: list[float] | None = option(
        None,
        "Epochs after which the learning rate is multiplied by lr_gamma, in place of lr_scheduler_type; the paper's: "
        "150 180 210 of 240.",
    )
    lr_gamma: float = option(0.1, "The factor of lr_milestones.")
    image_store: str = option(
        "auto",
        "Decode and resize images once, and keep them on disk or on the device; none decodes them in every epoch; "
        "auto takes the fastest for which there is room.",
        IMAGE_STORES,
    )
    image_store_scale: float = option(
        2.0,
        "Side of a stored training image in sides of the student's input: what is cropped smaller is scaled up; more "
        "takes more disk and time.",
    )
    channels_last: bool = option(False, "The memory format in which convolutional students train faster.")
    early_stopping_patience: int | None = option(
        None,
        "Stop after so many evaluations in a row without a better metric_for_best_model; needs load_best_model_at_end "
        "and an eval_strategy.",
    )
    early_stopping_threshold: float = option(
        0.0, "By how much the metric must be better to count for early_stopping_patience."
    )
    remove_unused_columns: bool = option(
        False, "Must stay False: images and aspects are columns the model does not name."
    )
    label_names: list[str] | None = option(["labels"], "The label columns of a batch.")
    hub_private_repo: bool | None = option(True, "Push to a private repo unless you say --hub_private_repo false.")
    hub_strategy: str = option(
        "end", "Must stay end: one commit with the finished student, not half states with every save."
    )
    push_plain: bool = option(False, "Publish the plain model: no remote code, the same class scores, no aspects.")
    hub_create_pr: bool = option(False, "Open a pull request, for instance on somebody else's repo.")
    hub_license: str | None = option(
        None, "Licence of the published student, as the Hub calls it, such as apache-2.0."
    )

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.image_store not in IMAGE_STORES:
            raise ValueError(f"Unknown image_store {self.image_store!r}: expected one of {IMAGE_STORES}.")
        if self.class_target_loss not in CLASS_TARGET_LOSSES:
            raise ValueError(
                f"Unknown class_target_loss {self.class_target_loss!r}: expected one of {CLASS_TARGET_LOSSES}."
            )
        if self.self_training and not self.class_alpha:
            raise ValueError(
                f"self_training={self.self_training} with class_alpha=0, the weight of the guesses, learns nothing "
                "from them: raise class_alpha, or leave self_training out."
            )
        for name in ("warmup_steps", "warmup_ratio"):
            if self.lr_milestones and getattr(self, name, None):
                raise ValueError(
                    f"{name}={getattr(self, name)} would have no effect beside lr_milestones, a schedule without "
                    "warm-up: leave one of them out."
                )
        if self.lr_milestones and self.max_steps > 0:
            raise ValueError(
                f"lr_milestones={self.lr_milestones} are epochs and max_steps={self.max_steps} counts steps: set "
                "num_train_epochs instead."
            )
        if self.lr_milestones and not all(0 < epoch < self.num_train_epochs for epoch in self.lr_milestones):
            raise ValueError(
                f"lr_milestones={self.lr_milestones} must lie between 0 and num_train_epochs={self.num_train_epochs}: "
                "scale them with the number of epochs."
            )
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns=True would drop the images and the aspects: leave it False.")
        self.use_cpu = self.use_cpu or _is_one_of_several_on_cpu()
        super().__post_init__()
        self.check_hub_strategy()
        check_extras(self)
        check_stopping(self)

    def check_hub_strategy(self) -> None:
        """Raise ValueError where a push would be more than one commit with the finished student."""
        if self.hub_strategy != "end":
            raise ValueError(
                f"hub_strategy={getattr(self.hub_strategy, 'value', self.hub_strategy)!r} would push unfinished "
                "students in several commits: leave it at end, and keep checkpoints in output_dir to go on from "
                "(save_strategy, resume_from_checkpoint)."
            )

    def set_push_to_hub(
        self, model_id: str, strategy: str = "end", *args: Any, **kwargs: Any
    ) -> MadkdTrainingArguments:
        """As that of `TrainingArguments`, but for the strategy, which must stay end."""
        super().set_push_to_hub(model_id, strategy, *args, **kwargs)
        self.check_hub_strategy()
        return self

    def hub_repo(self, **changed: Any) -> HubRepo:
        """Where a push goes, by default a repo of your own named like output_dir; `changed` wins."""
        settings = {
            "private": self.hub_private_repo is not False,  # None, too: nothing becomes public by default
            "token": self.hub_token,
            "revision": self.hub_revision,
            "create_pr": self.hub_create_pr,
        }
        settings |= {name: value for name, value in changed.items() if value is not None}
        return HubRepo(self.hub_model_id or Path(self.output_dir).absolute().name, "model", **settings)

    def hyperparameters(self, class_targets: bool = False) -> dict[str, Any]:
        """What decides a student, for its card: nothing about folders, machines or tokens.

        Args:
            class_targets: whether it learned from any.
        """
        length = "max_steps" if self.max_steps > 0 else "num_train_epochs"
        schedule = ["lr_milestones", "lr_gamma"] if self.lr_milestones else ["lr_scheduler_type", "warmup_steps"]
        optimizer = ["optim", *(["optim_args"] if self.optim_args else []), "weight_decay"]
        names = ["aspect_alpha", "learning_rate", length, *schedule, *optimizer]
        names += ["label_smoothing_factor", "mixup_alpha", "crop_scale", "horizontal_flip", "seed"]
        of_targets = ("labelled_fraction", "self_training", "by_mass", "standardize_logits", "target_confidence")
        names += [name for name in (*of_targets, "target_ramp_up", "temperature") if getattr(self, name)]
        names += ["class_alpha", "class_target_loss"] if class_targets else []
        names += ["early_stopping_patience"] if self.early_stopping_patience else []
        batch = self.train_batch_size * self.gradient_accumulation_steps * self.world_size
        precision = "bf16" if self.bf16 else "fp16" if self.fp16 else "float32"
        chosen = {name: getattr(self, name) for name in names}
        return {name: getattr(value, "value", value) for name, value in chosen.items()} | {
            "train_batch_size": batch,
            "precision": precision,
        }

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle or a copy holds, and with `training_args.bin` the Hub receives: everything but the token."""
        return {**self.__dict__, "hub_token": None}
