"""What detectors are measured by."""

from __future__ import annotations

import numpy as np
from builders.detector_training import (
    PROCESSOR,
)
from datasets import Dataset
from transformers import (
    DetrImageProcessorPil,
)

from madkd_hf import MadkdForObjectDetection
from madkd_hf.students.detection.data import DetectionCollator


SOFTMAX = DetrImageProcessorPil(size={"shortest_edge": 40, "longest_edge": 64})
AP = {f"eval_{name}" for name in ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_100")}
ASPECT_METRICS = {"eval_aspect_auroc", "eval_aspect_bce"}


def still(model: MadkdForObjectDetection, processor=PROCESSOR) -> DetectionCollator:
    """No augmentation."""
    return DetectionCollator(
        processor,
        num_aspects=3,
        aspects_per_object=model.config.aspect_level == "object",
        pixel_mask=model.takes_mask,
    )


def truth(data: Dataset) -> list[dict]:
    boxes = [np.reshape(row["bbox"], (-1, 4)) for row in data["objects"]]
    boxes = [np.concatenate([each[:, :2], each[:, :2] + each[:, 2:]], axis=1) for each in boxes]
    return [{"boxes": each, "labels": row["category"]} for each, row in zip(boxes, data["objects"])]
