"""Small detectors and their trainings."""

from __future__ import annotations

import numpy as np
import torch
from builders import tiny
from builders.classifier_training import (
    arguments,
)
from builders.detectors import DETR, backbone
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from transformers import (
    ConditionalDetrConfig,
    PretrainedConfig,
    RTDetrImageProcessorPil,
)

from madkd_hf import AspectBank, MadkdDetectionTrainer, MadkdForObjectDetection


BANK = tiny.bank(3)


COLORS = {"red": (220, 40, 40), "lime": (40, 220, 40), "blue": (40, 40, 220)}


CLASSES = dict(enumerate(COLORS))


WIDTH, HEIGHT = 60, 40


PROCESSOR = RTDetrImageProcessorPil(size={"height": 64, "width": 64})  # sigmoid scores, as conditional DETR has them


def conditional() -> PretrainedConfig:
    """No batch norm that learns, no dropout, and a loss that is a sum over queries divided by the objects of all."""
    return ConditionalDetrConfig(**DETR, **backbone(3), use_timm_backbone=False)


def detector(
    config: PretrainedConfig | None = None, level: str = "object", bank: AspectBank | None = BANK
) -> MadkdForObjectDetection:
    torch.manual_seed(0)
    model = MadkdForObjectDetection.from_detector(config or conditional(), CLASSES, bank, aspect_level=level)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # or all queries of a tiny model see the same
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def rows(
    count: int = 8,
    level: str | None = "object",
    unlabelled: tuple[int, ...] = (),
    objects: tuple[int, ...] = (2, 1, 3, 0),
    bank: AspectBank = BANK,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> Dataset:
    """Scenes of coloured rectangles, as labelling leaves them; `objects` are their numbers, again and again."""
    draw = np.random.default_rng(0)
    columns: dict[str, list] = {"image": [], "objects": [], "aspect_logits": [], "aspect_bank": []}
    for i in range(count):
        n = objects[i % len(objects)]
        image = Image.new("RGB", size, (90 + i, 90, 90))
        corner = (draw.uniform(0, 0.5, (n, 2)) * size).round()
        boxes = np.concatenate([corner, (draw.uniform(0.2, 0.5, (n, 2)) * size).round()], axis=1)
        categories = draw.integers(len(CLASSES), size=n)
        for (x, y, width, height), category in zip(boxes.astype(int), categories):
            image.paste(COLORS[CLASSES[category]], (x, y, x + width, y + height))
        columns["image"].append(image)
        columns["objects"].append({"bbox": boxes.tolist(), "category": categories.tolist()})
        answers = draw.normal(size=(n, len(bank)) if level == "object" else len(bank)) * 3
        columns["aspect_logits"].append(None if i in unlabelled else answers.tolist())
        columns["aspect_bank"].append(None if i in unlabelled else bank.fingerprint)
    answers = List(Value("float32"), length=len(bank))
    features = Features(
        {
            "image": ImageFeature(),
            "objects": {
                "bbox": List(List(Value("float32"), length=4)),
                "category": List(ClassLabel(names=list(CLASSES.values()))),
            },
            "aspect_logits": List(answers) if level == "object" else answers,
            "aspect_bank": Value("string"),
        }
    )
    data = Dataset.from_dict(columns, features=features)
    return data.remove_columns(["aspect_logits", "aspect_bank"]) if level is None else data


def trainer(
    folder, model=None, train=None, evaluate=None, collator=None, processor=PROCESSOR, metrics=None, **settings
) -> MadkdDetectionTrainer:
    return MadkdDetectionTrainer(
        model=detector() if model is None else model,
        args=arguments(folder, **{"learning_rate": 1e-3, **settings}),
        data_collator=collator,
        train_dataset=rows() if train is None else train,
        eval_dataset=evaluate,
        processing_class=processor,
        compute_metrics=metrics,
    )


def flat(row: dict) -> dict:
    return {"objects": {**row["objects"], "bbox": [[x, y, width, 0] for x, y, width, _ in row["objects"]["bbox"]]}}


def tell_the_truth(model: MadkdForObjectDetection, but_for: int = -1) -> list[bool]:
    """The detector says what its labels say, as parts of the padded image; of as many objects another class.

    Returns:
        Of each batch from now on, whether it came with a mask.
    """
    forward, seen = model.forward, []

    def right(pixel_values, pixel_mask=None, labels=None):
        outputs = forward(pixel_values=pixel_values, pixel_mask=pixel_mask, labels=labels)
        seen.append(pixel_mask is not None)
        for i, label in enumerate(labels):
            n = len(label["boxes"])
            outputs.logits[i] = -20.0
            if outputs.logits.shape[-1] > len(CLASSES):
                outputs.logits[i, n:, -1] = 20.0
            classes = (label["class_labels"] + (n == but_for)) % len(CLASSES)
            outputs.logits[i, torch.arange(n), classes] = 20.0
            outputs.pred_boxes[i, :n] = label["boxes"]
        return outputs

    model.forward = right
    return seen
