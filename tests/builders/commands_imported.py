"""What our commands import, for a Python whose forks need not do it again."""

import tempfile
from pathlib import Path

import accelerate.commands.launch  # noqa: F401
import albumentations  # noqa: F401
import pycocotools.cocoeval  # noqa: F401
import transformers.trainer  # noqa: F401
from transformers import (  # noqa: F401
    AutoModelForImageClassification,
    InternVLForConditionalGeneration,
    LlavaProcessor,
    Qwen2ForCausalLM,
    ResNetConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessorPil,
    pipelines,
)
from transformers.utils import logging

from madkd_hf import *  # noqa: F403
from madkd_hf import MadkdForImageClassification
from madkd_hf.cli import choose, compare, label, preflight, student, train, tune  # noqa: F401
from madkd_hf.cli.tasks import classification, detection  # noqa: F401
from madkd_hf.report import figures


logging.disable_progress_bar()  # which would leave a thread
with tempfile.TemporaryDirectory() as folder:  # the first model that is saved and loaded prepares something for all
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    MadkdForImageClassification.from_backbone(config, {0: "cat", 1: "dog"}).save_pretrained(folder)
    AutoModelForImageClassification.from_pretrained(folder)
    figures.save(figures.new_figure(1, 1, "So does the first picture"), Path(folder, "figure.png"))
logging.enable_progress_bar()
