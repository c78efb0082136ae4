"""The files of a student."""

from __future__ import annotations

from builders import tiny
from transformers import AutoModelForImageClassification, ViTImageProcessorPil


def student_files(tmp_path):
    folder = tmp_path / "resnet"
    AutoModelForImageClassification.from_config(tiny.resnet()).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder
