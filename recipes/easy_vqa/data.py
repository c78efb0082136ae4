"""easy-VQA (Zhou 2019) as a 24-class image dataset, for trying madkd_hf without a download.

The PyPI package `easy-vqa` holds 5,000 small images, each showing one coloured shape, and about 48,000 questions with
answers. It names no class, so the class of an image is derived from its own questions and answers alone.
"""

import logging
import random
import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image


logger = logging.getLogger(__name__)

COLORS = ("black", "gray", "red", "blue", "green", "yellow", "teal", "brown")
SHAPES = ("circle", "rectangle", "triangle")
CLASSES = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
WORD = re.compile(rf"\b({'|'.join(COLORS + SHAPES)})\b")

SEED = 0
TEACHER_IMAGES = 2400
TRAIN_IMAGES_PER_CLASS = 50

Question = tuple[Path, str, str]


@cache
def _read(split: str) -> tuple[dict[int, Path], dict[int, list[tuple[str, str]]]]:
    """The package's `train` or `test` split: image id -> file, image id -> its (question, answer) pairs."""
    try:
        import easy_vqa
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'The easy-VQA images are not installed: pip install "madkd_hf[demo]"', name="easy_vqa"
        ) from error
    paths = getattr(easy_vqa, f"get_{split}_image_paths")()
    questions: dict[int, list[tuple[str, str]]] = {image_id: [] for image_id in sorted(paths)}
    for text, answer, image_id in zip(*getattr(easy_vqa, f"get_{split}_questions")(), strict=True):
        questions[image_id].append((text, answer))
    return {image_id: Path(paths[image_id]) for image_id in questions}, questions


def facts(question: str, answer: str) -> Iterable[tuple[str, bool]]:
    """What one answered question says about its image: (colour or shape, whether the image shows it).

    A question that names a colour or shape without asking for it ("what is the blue shape?") presupposes it.
    """
    named = WORD.findall(question)
    if answer not in ("yes", "no"):
        return [(word, True) for word in [*named, answer]]
    negated = re.search(r"\b(no|not)\b", question) is not None
    return [(word, (answer == "yes") != negated) for word in named]


def derive_class(questions: Iterable[tuple[str, str]]) -> str | None:
    """The class that (question, answer) pairs about one image determine, or None where they leave it open."""
    shown = {fact for pair in questions for fact in facts(*pair)}
    found = []
    for options in (COLORS, SHAPES):
        confirmed = {word for word in options if (word, True) in shown}
        possible = (confirmed or set(options)) - {word for word in options if (word, False) in shown}
        if not possible or len(confirmed) > 1:
            raise ValueError(f"The answers about one image contradict each other: {sorted(shown)}")
        found.append(possible.pop() if len(possible) == 1 else None)
    return None if None in found else " ".join(found)


@cache
def image_classes(split: str) -> dict[int, str | None]:
    """Image id -> class (None where undetermined), for the package's `train` or `test` split."""
    return {image_id: derive_class(questions) for image_id, questions in _read(split)[1].items()}


def counts() -> dict[str, dict[str, int]]:
    """For the package's `train` and `test`: how many images the answers determine, and how many they leave open."""
    result = {}
    for split in ("train", "test"):
        open_images = sum(name is None for name in image_classes(split).values())
        result[split] = {"determined": len(image_classes(split)) - open_images, "undetermined": open_images}
    return result


@cache
def parts() -> dict[str, list[int]]:
    """The image ids of each part; `teacher`, `train` and `validation` share no image.

    `teacher` has first of all the images without a class: a teacher needs none. Students draw from `train`.
    """
    classes = image_classes("train")
    unlabelled = [image_id for image_id, name in classes.items() if name is None]
    labelled = [image_id for image_id, name in classes.items() if name is not None]
    random.Random(SEED).shuffle(labelled)
    taken: Counter[str] = Counter()
    train, rest = [], []
    for image_id in labelled:
        taken[classes[image_id]] += 1
        (train if taken[classes[image_id]] <= TRAIN_IMAGES_PER_CLASS else rest).append(image_id)
    for_teacher = TEACHER_IMAGES - len(unlabelled)
    test = [image_id for image_id, name in image_classes("test").items() if name is not None]
    return {"teacher": unlabelled + rest[:for_teacher], "train": train, "validation": rest[for_teacher:], "test": test}


def questions_of(part: str, yes_no_only: bool = True) -> list[Question]:
    """The dataset's own (absolute image path, question, answer) of a part, image by image.

    Parts are those of `parts`, and "all test", where images without a class are, too. `yes_no_only=False` adds the
    questions that ask for a colour or a shape.
    """
    paths, questions = _read("test" if "test" in part else "train")
    ids = list(paths) if part == "all test" else parts()[part]
    return [
        (paths[image_id], text, answer)
        for image_id in ids
        for text, answer in questions[image_id]
        if not yes_no_only or answer in ("yes", "no")
    ]


def load_easy_vqa() -> DatasetDict:
    """Splits `train`, `validation` and `test` with columns `image` and `label` (24 classes, as "black circle").

    The images travel as bytes, not as paths, so the fingerprints are the same on every machine.
    """
    features = Features({"image": Image(), "label": ClassLabel(names=CLASSES)})
    splits = {}
    for part in ("train", "validation", "test"):
        source = "test" if part == "test" else "train"
        paths, classes = _read(source)[0], image_classes(source)
        images = [{"bytes": paths[i].read_bytes(), "path": f"{source}_{i}.png"} for i in parts()[part]]
        labels = [classes[i] for i in parts()[part]]
        splits[part] = Dataset.from_dict({"image": images, "label": labels}, features=features)
    for source, count in counts().items():
        logger.warning(
            "easy-VQA %s: %d images used, %d dropped: their answers leave the class open", source, *count.values()
        )
    return DatasetDict(splits)
