"""Training arguments of a distilled student."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments


@dataclass
class MadkdTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the weight of the aspect loss, the augmentation, and defaults that fit images.

    Args:
        aspect_alpha: weight of the aspect loss (paper section 3.3); 0 trains the plain classifier.
        crop_scale: smallest share of an image's area that a random resized crop keeps, above 0 and at most 1;
            1 turns cropping off.
        horizontal_flip: probability of mirroring a training image.
    """

    aspect_alpha: float = field(
        default=4.0,
        metadata={
            "help": "Weight of the aspect loss beside the class loss, 1 to 50 in the paper; 0 is plain training."
        },
    )
    crop_scale: float = field(
        default=0.08,
        metadata={"help": "Smallest share of the image that a random crop keeps; 1 turns cropping off."},
    )
    horizontal_flip: float = field(
        default=0.5, metadata={"help": "Probability of mirroring a training image; 0 turns it off."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False: images and aspects are columns the model does not name."}
    )
    label_names: list[str] | None = field(
        default_factory=lambda: ["labels"], metadata={"help": "The label columns of a batch."}
    )
    hub_private_repo: bool | None = field(
        default=True, metadata={"help": "Push to a private repo unless you say --hub_private_repo false."}
    )
    hub_strategy: str = field(default="end", metadata={"help": "When to push to the Hub: at the end, by default."})

    def __post_init__(self) -> None:
        if not self.aspect_alpha >= 0:
            raise ValueError(
                f"aspect_alpha weighs the aspect loss and cannot be negative; received {self.aspect_alpha}: "
                "use 0 for plain training."
            )
        if not 0 < self.crop_scale <= 1:
            raise ValueError(f"crop_scale is a share of the image, above 0 and at most 1; received {self.crop_scale}.")
        if not 0 <= self.horizontal_flip <= 1:
            raise ValueError(f"horizontal_flip is a probability, 0 to 1; received {self.horizontal_flip}.")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns=True would drop the images and the aspects: leave it False.")
        super().__post_init__()

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle or a copy holds, and with `training_args.bin` the Hub receives: everything but the token."""
        return {**self.__dict__, "hub_token": None}
