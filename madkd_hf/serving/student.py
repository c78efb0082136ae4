"""The student that is served: images in, class scores and answers out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy.special import expit, softmax
from transformers import BaseImageProcessor, PreTrainedModel

from ..students.classification.because import BECAUSE_FILE, Because
from ..students.classification.loading import load_classifier
from ..students.models.modeling_madkd import check_architecture
from ..text import get_logger


logger = get_logger(__name__)


class Outputs(NamedTuple):
    """Of one image, float64: [C] class scores before the softmax, [Q] log-odds of yes."""

    logits: np.ndarray
    aspect_logits: np.ndarray


class ServedStudent:
    """A student, or a plain classifier, which then answers no questions.

    Args:
        model: in evaluation mode.
        processor: its image processor.
        name: by which clients call it.
        because: what `reasons` come from, if there is anything.
        device: where the model runs.

    Raises:
        ValueError: it makes nothing of a plain image.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: BaseImageProcessor,
        name: str,
        because: Because | None = None,
        device: str = "cpu",
    ):
        check_architecture(model.config)
        self.model, self.processor, self.name, self.because = model.to(device), processor, name, because
        config = model.config
        self.labels: list[str] = [str(config.id2label[index]) for index in range(config.num_labels)]
        has_aspects = bool(getattr(config, "num_aspects", 0))
        self.ids: list[str] = list(config.aspect_ids) if has_aspects else []
        self.questions: list[str] = list(config.aspect_questions) if has_aspects else []
        self._places = {_plain(text): q for texts in (self.ids, self.questions) for q, text in enumerate(texts)}
        try:
            self.answer([self.prepare(Image.new("RGB", (64, 48), "white"))])
        except Exception as error:  # whatever a processor and a model that do not fit each other raise
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{name} cannot be served, as it makes nothing of a white image ({reason}): pass another student."
            ) from error

    @classmethod
    def load(
        cls, source: str, revision: str | None = None, name: str | None = None, device: str = "cpu"
    ) -> ServedStudent:
        """The student in a folder or on the Hub, by the name of its folder or its id; see `load_classifier`."""
        model, processor = load_classifier(source, "served", **({"revision": revision} if revision else {}))
        folder = Path(source)
        name = name or (folder.resolve().name if folder.exists() else source)
        return cls(model, processor, name, reasons_of(model, folder), device)

    def place_of(self, question: str) -> int | None:
        """The index of a question, by its text or by its id."""
        return self._places.get(_plain(question))

    def prepare(self, image: Image.Image) -> torch.Tensor:
        """What the model is given of an RGB image: [channels, height, width]."""
        pixels = self.processor(image, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        if not isinstance(pixels, torch.Tensor) or pixels.ndim != 4 or len(pixels) != 1:
            raise ValueError(f"{type(self.processor).__name__} makes no pixel_values of an image")
        return pixels[0]

    @torch.inference_mode()
    def answer(self, batch: Sequence[torch.Tensor]) -> list[Outputs]:
        """What the student says to each image, in their order.

        Raises:
            ValueError: scores that are no numbers.
        """
        by_size = defaultdict(list)  # some processors keep the ratio of the sides
        for index, pixels in enumerate(batch):
            by_size[tuple(pixels.shape)].append(index)
        outputs: list[Any] = [None] * len(batch)
        for indices in by_size.values():
            pixels = torch.stack([batch[index] for index in indices])
            output = self.model(pixels.to(self.model.device, self.model.dtype))
            logits = output.logits.double().cpu().numpy()
            answers = output.aspect_logits.double().cpu().numpy() if self.ids else np.empty((len(indices), 0))
            if not (np.isfinite(logits).all() and np.isfinite(answers).all()):
                raise ValueError("the student's scores of the image are no numbers")
            for row, index in enumerate(indices):
                outputs[index] = Outputs(logits[row], answers[row])
        return outputs

    def classified(self, outputs: Outputs, top_k: int, reasons: int) -> dict[str, Any]:
        """Of one image: the class, the `top_k` most probable ones, all answers, and some reasons for the class."""
        scores, order = self.probabilities(outputs.logits), np.argsort(-outputs.logits, kind="stable")
        answers = zip(self.ids, expit(outputs.aspect_logits).tolist())
        content = {
            "model": self.name,
            "class": self.labels[order[0]],
            "probabilities": [{"label": self.labels[c], "score": float(scores[c])} for c in order[:top_k]],
            "answers": dict(answers),
        }
        if reasons and self.because is not None:
            found = self.because.reasons(outputs.aspect_logits, int(order[0]))
            content["because"] = [vars(reason) for reason in found[:reasons]]
        return content

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Of classes; each on its own where the model was trained so, as `pipeline` has it."""
        several = getattr(self.model.config, "problem_type", None) == "multi_label_classification"
        return expit(logits) if several or len(logits) == 1 else softmax(logits)


def reasons_of(model: PreTrainedModel, folder: Path) -> Because | None:
    """From because.json beside a student, where it is its own; else from its head; None where that cannot be."""
    config = model.config
    if not getattr(config, "num_aspects", 0):
        return None
    if (folder / BECAUSE_FILE).is_file():
        try:
            saved = Because.load(folder)
            names = [config.id2label[index] for index in range(config.num_labels)]
            if (saved.classes, saved.ids) == (names, list(config.aspect_ids)):
                return saved
            reason = "it is another student's"
        except ValueError as error:
            reason = str(error)
        logger.warning(f"{BECAUSE_FILE} is passed over ({reason}): reasons are against an undecided answer.")
    try:
        return Because.of_student(model)
    except ValueError:  # no linear head
        return None


def _plain(text: str) -> str:
    return " ".join(text.split())
