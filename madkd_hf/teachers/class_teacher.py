"""A teacher of classes: an image classifier whose scores are targets for a smaller one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from PIL.Image import Image
from transformers import AutoConfig, AutoModelForImageClassification, BaseImageProcessor, PreTrainedModel

from ..data.image_processors import load_image_processor
from ..data.images import to_rgb
from .base import Preprocessed, UnreadableImageError
from .errors import one_sentence_errors


EXPECTED = "expected an image classifier with one class an image, such as microsoft/resnet-50"


class ClassTeacher:
    """An image classifier of transformers, among them our own students; it computes in float32.

    Args:
        model: with class scores as `logits`; one class an image.
        processor: its image processor.
        name: what columns and cards call it; by default that of the model's folder, or its Hub id.
        revision: what was asked for, for the provenance.

    Attributes:
        classes: the names of its C classes, in the order of its scores.

    Raises:
        ValueError: the model gives no scores of classes that exclude each other.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: BaseImageProcessor,
        name: str | None = None,
        revision: str | None = None,
    ):
        path = model.config.name_or_path
        place = name or path or type(model).__name__
        self.classes = check_config(model.config, place)
        self.preprocesses = model.device.type != "cpu"  # as that of `Teacher`
        self.model, self.processor, self.revision = model.eval().float(), processor, revision
        self.name = os.path.basename(os.path.realpath(place)) if os.path.isdir(place) else place

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike, revision: str | None = None, device: str | torch.device | None = None
    ) -> ClassTeacher:
        """Load one from the Hub or a folder; no code that comes with it is run.

        Args:
            name: Hub id or folder of any `AutoModelForImageClassification`.
            revision: branch, tag or commit.
            device: where to compute; by default this process's own accelerator, else the CPU.

        Raises:
            ValueError, OSError, ImportError: in one sentence, why it cannot be one.
        """
        place = os.path.expanduser(name)
        load_config(place, revision)
        version = {} if revision is None else {"revision": revision}
        processor = load_image_processor(place, **version)
        with one_sentence_errors(place, "model"):
            model, loading = AutoModelForImageClassification.from_pretrained(
                place, **version, dtype=torch.float32, output_loading_info=True
            )
        if missing := sorted([*loading["missing_keys"], *(str(key) for key in loading["mismatched_keys"])]):
            raise ValueError(
                f"The weights of {name} lack {missing[0]}, which would be random: {EXPECTED}, or train it first "
                "(madkd train)."
            )
        return cls(model.to(device or PartialState().device), processor, str(place), revision)

    def preprocess(self, images: Sequence[Image]) -> Sequence[Image | Preprocessed]:
        """As that of `Teacher`."""
        prepared = list(images)
        for index, image in enumerate(prepared):
            with suppress(UnreadableImageError):
                prepared[index] = Preprocessed(image, self._pixels(image, index))
        return prepared

    @torch.inference_mode()
    def read(self, images: Sequence[Image | Preprocessed]) -> torch.Tensor:
        """The scores of the classes for each image.

        Args:
            images: n PIL images, of any mode and size, or what `preprocess` made of them.

        Returns:
            [n, C] float32 before the softmax, on the CPU.

        Raises:
            UnreadableImageError: the image processor refuses an image.
            ValueError: scores that are none, or NaN or infinite ones.
        """
        if not images:
            return torch.empty(0, len(self.classes))
        pixels = [self._pixels(image, index) for index, image in enumerate(images)]
        batches = [torch.cat(pixels)] if len({part.shape for part in pixels}) == 1 else pixels
        logits = torch.cat([self.model(pixel_values=batch.to(self.model.device)).logits.cpu() for batch in batches])
        if logits.shape != (len(images), len(self.classes)) or not logits.isfinite().all():
            raise ValueError(
                f"The class teacher {self.name} gave scores of shape {list(logits.shape)} for {len(images)} images: "
                f"expected {len(self.classes)} finite ones for each; {EXPECTED}."
            )
        return logits

    def _pixels(self, image: Image | Preprocessed, index: int) -> torch.Tensor:
        if isinstance(image, Preprocessed):
            return image.inputs
        try:
            return self.processor(to_rgb(image), return_tensors="pt")["pixel_values"]
        except (ValueError, TypeError, KeyError, RuntimeError, ZeroDivisionError) as error:
            raise UnreadableImageError(index, error) from error

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the scores, as JSON holds it."""
        processor = hashlib.sha256(self.processor.to_json_string().encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return {
            "model": self.name,
            "revision": self.revision,
            "commit": getattr(self.model.config, "_commit_hash", None),
            "weights": all_weights_digest(self.model),
            "processor": processor,
        }

    @property
    def fingerprint(self) -> str:
        """Model and digest of its weights: what stands in the column `class_teacher`, before the classes' digest."""
        return f"{self.name}@{self.identity['weights']}"

    @property
    def provenance(self) -> dict[str, Any]:
        """The identity, and the versions that computed the scores."""
        return {**self.identity, "versions": {"transformers": transformers.__version__, "torch": torch.__version__}}


def load_config(name: str, revision: str | None = None) -> list[str]:
    """The classes of a class teacher, by its configuration alone.

    Raises:
        ValueError, OSError: it cannot be one, in one sentence.
    """
    place = os.path.expanduser(name)
    looks_like_path = place.startswith((".", os.sep)) or place.count("/") > 1
    if not Path(place).is_dir() and (looks_like_path or Path(place).exists()):
        raise FileNotFoundError(f"There is no folder {name}: pass the folder of a model, or a Hub id (owner/name).")
    version = {} if revision is None else {"revision": revision}
    with one_sentence_errors(place, "configuration"):
        config = AutoConfig.from_pretrained(place, trust_remote_code=False, **version)
    return check_config(config, str(name))


def check_config(config: Any, name: str) -> list[str]:
    """The names of the classes in their order; ValueError for a model that does not give one class an image."""
    if type(config) not in AutoModelForImageClassification._model_mapping:
        kind = (getattr(config, "architectures", None) or [config.model_type])[0]
        raise ValueError(f"{name} is a {kind}, which classifies no images: {EXPECTED}.")
    problem = getattr(config, "problem_type", None)
    if problem not in (None, "single_label_classification"):
        raise ValueError(f"{name} has problem_type={problem!r}, no classes that exclude each other: {EXPECTED}.")
    names = [str(config.id2label.get(index)) for index in range(config.num_labels)]
    if len(names) < 2:
        raise ValueError(f"{name} has {len(names)} class{'es' * (len(names) != 1)} (num_labels): {EXPECTED}.")
    return names


def all_weights_digest(model: PreTrainedModel) -> str:
    """Of all values: one that was trained a little further is another teacher."""
    content = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        content.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        content.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()[:16]
