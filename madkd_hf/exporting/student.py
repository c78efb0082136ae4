"""A student in another format: a folder that other runtimes read, compared with PyTorch before it is called done."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedModel

from ..files import own_folder, write_whole, writing
from ..students.classification.because import BECAUSE_FILE, Because, mean_answers
from ..students.classification.loading import load_classifier
from ..students.models.modeling_madkd import MadkdForImageClassification
from . import FILES, KIND, NAMES
from .formats import FORMATS, PIXELS, Exported, Format, export


QUANTIZED = "model_quantized.onnx"  # the name by which transformers.js knows an 8-bit model ("q8")
IMAGES = 32  # that an export is compared on
TOLERANCE = 1e-4  # of the outputs, absolute
BATCH = 32


@dataclass(frozen=True)
class Agreement:
    """How an export compares with PyTorch.

    Attributes:
        images: on how many.
        difference: the largest absolute difference of an output.
        classes: share of the images of which both name the same class, 0 to 1.
        answers: share of the answers, yes or no, that are the same; None without aspects.
    """

    images: int
    difference: float
    classes: float
    answers: float | None

    def __str__(self) -> str:
        answers = "" if self.answers is None else f" and {100 * self.answers:.1f}% of the answers"
        return (
            f"on {self.images} images the largest difference from PyTorch is {self.difference:.1e}; "
            f"{100 * self.classes:.1f}% of the classes{answers} are the same"
        )


@dataclass(frozen=True)
class ExportedStudent:
    """What `export_student` wrote: the file, its agreement, and those of the 8-bit model where one was asked for."""

    path: Path
    agreement: Agreement
    quantized: Path | None = None
    quantized_agreement: Agreement | None = None


def load_for_export(source: str, aspects: bool = False, **kwargs: Any) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """A student, or a plain classifier, in float32, and its image processor; no code that comes with it is run.

    Args:
        source: a folder, or an id of the Hub.
        aspects: whether it has to answer questions.
        kwargs: of `from_pretrained` (`revision`, `token`, ...).

    Raises:
        ValueError: a detector, no image classifier, or one without aspects where they are asked for.
    """
    model, processor = load_classifier(source, "exported", **kwargs)
    if aspects and not getattr(model.config, "num_aspects", 0):
        raise ValueError(
            f"{source} has no aspects: leave out --aspects, or pass a student that was trained with them."
        )
    return model, processor


def export_student(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    output_dir: str | Path,
    format: str = "onnx",
    aspects: bool = False,
    images: Sequence[Image.Image] = (),
    int8: bool = False,
) -> ExportedStudent:
    """Write a folder that transformers, transformers.js and optimum read: the plain model, and its export beside it.

    There are `config.json`, `preprocessor_config.json`, `model.safetensors`, and for ONNX `onnx/model.onnx` with the
    input `pixel_values` [B, channels, height, width] and the output `logits` [B, C]. Any B will do.

    Args:
        model: a student, or a plain image classifier.
        processor: its image processor.
        output_dir: a new folder, or one of an earlier export, whose files are replaced.
        format: a key of `formats.FORMATS`.
        aspects: a second output, `aspect_logits` [B, Q], with ids and questions in `config.json`, and `because.json`.
        images: to compare on, all but those that the 8-bit model is calibrated with; without any, made-up ones.
        int8: for ONNX, an 8-bit model too, calibrated on half of the images; it needs images.

    Raises:
        ValueError: the architecture cannot be exported, or what was exported computes something else.
        ImportError: something has to be installed.
    """
    kind = FORMATS[format]
    kind.check_installed()
    if int8 and (format != "onnx" or len(images) < 2):
        raise ValueError("An 8-bit model is made of ONNX and calibrated on images: pass --format onnx and --dataset.")
    is_student = isinstance(model, MadkdForImageClassification)
    plain = model.to_plain() if is_student else model
    source = model if aspects else plain
    calibration = list(images[: len(images) // 2]) if int8 else []
    compared = list(images[len(calibration) :]) or made_up_images()
    batches = list(batched(processor, compared))
    folder = own_folder(output_dir, KIND, NAMES)
    with writing(folder, "the export is not complete"):
        place = folder / kind.name
        _remove_exports(folder)  # never one of another student
        place.mkdir(exist_ok=True)
        plain.save_pretrained(folder)
        processor.save_pretrained(folder)
        if aspects:
            _add_aspects(folder, model, batches)
        else:
            (folder / BECAUSE_FILE).unlink(missing_ok=True)
        path = place / kind.file
        try:
            agreement = compare(source, export(source, kind, path, batches[0][:2]), batches)
            check(agreement, source, kind)
        except ValueError:
            _remove_exports(folder)
            raise
        if not int8:
            return ExportedStudent(path, agreement)
        quantized = export(source, kind, place / QUANTIZED, batches[0][:2], _quantizer(processor, calibration))
        return ExportedStudent(path, agreement, quantized.path, compare(source, quantized, batches))


@torch.inference_mode()
def compare(model: PreTrainedModel, exported: Exported, batches: Sequence[torch.Tensor]) -> Agreement:
    """How an export and the model that it came from differ, in batches as they are and image by image."""
    difference, same, answers = 0.0, [], []
    for pixels in batches:
        outputs = model(pixels)
        expected = {name: getattr(outputs, name).numpy() for name in exported.outputs}
        single = exported(pixels[:1])  # a batch of another size
        got = exported(pixels)
        for name, values in expected.items():
            for found, wanted in ((got[name], values), (single[name], values[:1])):
                if found.shape != wanted.shape or not np.isfinite(found).all():
                    raise ValueError(
                        f"The exported model gives {name} {list(found.shape)} where PyTorch gives "
                        f"{list(wanted.shape)}, all finite: try another format or backbone."
                    )
                difference = max(difference, float(np.abs(found - wanted).max(initial=0)))
        same += (got["logits"].argmax(axis=1) == expected["logits"].argmax(axis=1)).tolist()
        if "aspect_logits" in expected:
            answers += ((got["aspect_logits"] > 0) == (expected["aspect_logits"] > 0)).ravel().tolist()
    return Agreement(len(same), difference, float(np.mean(same)), float(np.mean(answers)) if answers else None)


def check(agreement: Agreement, model: PreTrainedModel, format: Format) -> None:
    """Refuse an export that computes something else."""
    if agreement.difference > TOLERANCE:
        raise ValueError(
            f"{type(model).__name__} exported to {format.name} computes something else: {agreement}, and at most "
            f"{TOLERANCE:.0e} is expected; nothing was kept, try another format or backbone."
        )


def batched(processor: BaseImageProcessor, images: Sequence[Image.Image]) -> Iterator[torch.Tensor]:
    """Pixel values in batches, all of one size; the last may be smaller."""
    for start in range(0, len(images), BATCH):
        yield processor(list(images[start : start + BATCH]), return_tensors="pt")[PIXELS].float()


def made_up_images(count: int = IMAGES) -> list[Image.Image]:
    """Images with structure at several scales, always the same ones."""
    generator, images = np.random.default_rng(0), []
    for k in range(count):
        noise = generator.integers(0, 256, size=(2 + k % 7, 2 + k % 5, 3), dtype=np.uint8)
        images.append(Image.fromarray(noise).resize((256, 256), Image.Resampling.BICUBIC))
    return images


def _remove_exports(folder: Path) -> None:
    """Remove what an export left, of any format, and no other file."""
    for format in FORMATS.values():
        for pattern in FILES:
            for path in (folder / format.name).glob(pattern):
                path.unlink()
        with contextlib.suppress(OSError):  # not there, or with files of a user
            (folder / format.name).rmdir()


def _quantizer(processor: BaseImageProcessor, images: Sequence[Image.Image]) -> Any:
    from transformers.exporters import OnnxRuntimeQuantizer, OnnxRuntimeStaticConfig

    samples = [{PIXELS: pixels} for pixels in batched(processor, images)]
    return OnnxRuntimeQuantizer(OnnxRuntimeStaticConfig(per_channel=True), calibration_dataset=samples)


def _add_aspects(folder: Path, model: MadkdForImageClassification, batches: Sequence[torch.Tensor]) -> None:
    """What a runtime has to know of the second output: ids and questions in order, and reasons for classes."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for name in ("aspect_ids", "aspect_questions", "aspect_bank"):
        config[name] = getattr(model.config, name)
    write_whole(path, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    Because.of_student(model, mean_answers(model, batches)).save(folder)
