"""What a teacher is: whoever answers a bank's yes/no questions about images, with one number each.

A new kind of teacher is one file beside this one, with a subclass of `Teacher`, and one line in `TEACHERS`.
"""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..aspects import AspectBank


if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

TEACHERS = {  # kind -> its class; `--teacher KIND:NAME` and `load_teacher("KIND:NAME")` find it by this
    "mllm": "madkd_hf.teachers.mllm:AspectTeacher",
    "served": "madkd_hf.teachers.served:ServedTeacher",
}
ADDRESSES = {"http": "served", "https": "served"}  # what a name can begin with in place of a kind
DEFAULT_KIND = "mllm"  # of a name without a kind: a model of the Hub, or a folder


@dataclass(frozen=True)
class Reading:
    """What a teacher says of n images.

    Attributes:
        logits: [n, Q] float32 log-odds of yes against no, in the bank's order; the sigmoid is the target.
        mass: [n, Q] float32 in 0..1, how much of the teacher's answer was yes or no at all; where it is low, the
            teacher was not answering the question. 1 for teachers that say nothing else; None where it is not known.
        missing: [n, Q] which questions the teacher gave no answer to, if any: there the log-odds are NaN, and so is
            the mass where nothing is known of the answer at all.
    """

    logits: torch.Tensor
    mass: torch.Tensor | None
    missing: torch.Tensor | None = None


@dataclass(frozen=True)
class Cost:
    """What a teacher behind a server takes: requests and tokens for one image, and requests a second."""

    model: str
    dialect: str
    precision: str
    requests: float
    tokens: float
    rate: float


@dataclass(frozen=True)
class Preprocessed:
    """An image, and what a teacher's processor made of it."""

    image: Image
    inputs: Any


class UnreadableImageError(ValueError):
    """The teacher refuses an image; `index` is its place among the images that were to be read."""

    def __init__(self, index: int, reason: Exception):
        super().__init__(f"image {index} of this batch is refused by the teacher's processor ({reason})")
        self.index = index


class Teacher(ABC):
    """Answers questions about images; labelling, commands and students know no more of it than what stands here.

    Attributes:
        plan: how it reads, see `prepare`; None before the first images. A job that goes on sets what it began with.
        preprocesses: whether `preprocess` is worth other threads: an accelerator computes while they prepare images.
    """

    plan: dict[str, Any] | None = None
    preprocesses = False

    @classmethod
    def from_pretrained(cls, name: str) -> Teacher:
        """A teacher by what stands behind its kind in `KIND:NAME`; what else is a parameter here, is an option."""
        return cls(name)

    @abstractmethod
    def read(self, images: Sequence[Image], bank: AspectBank) -> Reading:
        """Answer every question of the bank about every image.

        Args:
            images: n RGB images of any size.
            bank: Q questions.

        Returns:
            Log-odds and their mass, [n, Q] each, on the CPU; finite, but where an answer is `missing`.

        Raises:
            UnreadableImageError: an image cannot be read; the labelling names its row, or leaves it out.
        """

    def preprocess(self, images: Sequence[Image], bank: AspectBank) -> Sequence[Image | Preprocessed]:
        """What `read` is given in place of these images; other threads call it while `read` computes.

        An image that the processor refuses stays what it is, for `read` to say so.
        """
        return images

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides the answers, as JSON holds it: the same identity on the same image gives the same numbers.

        It keeps answers of different teachers apart, and finds those that are there already. `model`, if there is one,
        is the name that cards show.
        """

    def prompts(self, bank: AspectBank) -> dict[str, str] | None:
        """What the questions become for this teacher, if not themselves: a digest (`tokens`), and an `example`."""
        return None

    def prepare(self, images: Sequence[Image], bank: AspectBank) -> dict[str, Any]:
        """Choose how to read, once for a job, on its first images; becomes `plan`, and is kept with the job.

        Returns:
            Anything that JSON holds. `batch_size` is how many image-question pairs one call of `read` should have.
        """
        return {}

    def measure(self, images: Sequence[Image], bank: AspectBank) -> Cost | None:
        """What the answers about an image take, measured on these; None for a teacher that nobody is paid for."""
        return None

    @property
    def provenance(self) -> dict[str, Any]:
        """What is written beside the labels and shown in cards: the identity, and how the answers were read."""
        return {**self.identity, **(self.plan or {})}

    @property
    def progress(self) -> str:
        """What it has used up so far, for a bar of progress; empty where there is nothing to say."""
        return ""

    @property
    def summary(self) -> str:
        """How it has read, in a sentence for its user; empty where there is nothing to say."""
        return ""


def load_teacher(name: str, **options: Any) -> Teacher:
    """The teacher of this name.

    Args:
        name: `KIND:NAME` with a kind from `TEACHERS`, the address of a server (or several, with spaces between them),
            or a multimodal LLM by its Hub id or folder.
        options: of its class's `from_pretrained`.

    Raises:
        ValueError: an option that this kind of teacher does not have, or whatever its loading refuses.
    """
    load, teacher_name = _loader(name)
    if unknown := [option for option in sorted(options) if not _takes(load, option)]:
        raise ValueError(f"The teacher {name} has no option {unknown[0]!r}: leave it out.")
    return load(teacher_name, **options)


def takes_option(name: str, option: str) -> bool:
    """Whether the teacher of this name has an option, as one that computes on a device has `device`."""
    return _takes(_loader(name)[0], option)


def kind_of(name: str) -> tuple[str, str]:
    """Of which kind the teacher of this name is, and what its class is given."""
    kind, separator, teacher_name = name.partition(":")
    if separator and kind in ADDRESSES:
        return ADDRESSES[kind], name
    if separator and kind in TEACHERS:
        return kind, teacher_name
    return DEFAULT_KIND, name


def _loader(name: str) -> tuple[Callable[..., Teacher], str]:
    """What loads the teacher, and the name that it is given."""
    kind, teacher_name = kind_of(name)
    module, _, class_name = TEACHERS[kind].partition(":")
    return getattr(importlib.import_module(module), class_name).from_pretrained, teacher_name


def _takes(load: Callable[..., Teacher], option: str) -> bool:
    parameters = inspect.signature(load).parameters
    return option in parameters or any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
