"""A folder of images, read the way its owner sees it: a class is a folder, a split a top folder that is named so.

- Splits are the top folders, if *all* of them that hold images are named like splits, in any case: train, Training,
  val2017, test_set, ...
- The class of an image is the first folder below its split (or below the folder itself); folders further down belong
  to that class.
- What can be read in two ways is refused with both.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, DatasetInfo, Features, Image, NamedSplit

from .walk import File, Files, composed, walk


SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation"}
SPLITS |= {"val": "validation", "dev": "validation", "test": "test", "testing": "test"}
SPLITS |= {"eval": "test", "evaluation": "test"}  # as the Hub reads them
SPLIT_NAME = re.compile(rf"({'|'.join(SPLITS)})([-_. ]?(set|split|data|images))?[-_. ]?\d*")
ORDER = ("train", "validation", "test")

Classes = list[str] | None  # the class of each image; None where a split has none


@dataclass(frozen=True)
class Part:
    """The images of a split: `depth` is how many of their folders stand above its classes."""

    images: list[File]
    depth: int


def split_of(name: str) -> str | None:
    """The split that a folder's name means, if it means one."""
    match = SPLIT_NAME.fullmatch(composed(name).strip().lower())
    return SPLITS[match[1]] if match else None


def read_folder(folder: Path, files: Files | None = None) -> DatasetDict:
    """The images of a folder as columns `image` (paths) and, where there are class folders, `label`.

    A folder without split folders is the split "train". Fingerprints follow from the images' names, sizes and times of
    change. A split without class folders beside one that has them has null labels.
    """
    files = walk(folder) if files is None else files
    parts = split_parts(folder, files.images)
    classes = {split: classes_of(folder, part) for split, part in parts.items()}
    names = names_of_classes(folder, classes)
    return DatasetDict({split: _rows(folder, split, part, classes[split], names) for split, part in parts.items()})


def split_parts(folder: Path, images: list[File]) -> dict[str, Part]:
    """Which images are in which split, by the top folders; refused where these may be splits or classes."""
    tops: dict[str, list[File]] = defaultdict(list)
    for image in images:
        tops[image.parts[0] if len(image.parts) > 1 else ""].append(image)
    loose = tops.pop("", [])
    splits = {top: split for top in tops if (split := split_of(top))}
    if not splits:
        return {"train": Part(images, 0)}
    if len(splits) < len(tops):
        others = [top for top in tops if top not in splits]
        only_folders = [top for top in splits if all(len(image.parts) > 2 for image in tops[top])]
        if only_folders or len(set(splits.values())) > 1:
            raise ValueError(
                f"{folder} holds the folders {_list(tops)}: either {_list(splits)} are splits and {_list(others)} is "
                f"something else, or all are classes; move {_list(others)} elsewhere, or rename {_list(splits)}."
            )
        return {"train": Part(images, 0)}
    if loose:
        raise ValueError(
            f"{folder} holds {_images(loose)} beside the split folders {_list(tops)}: move them into one of these, or "
            "elsewhere."
        )
    for split in ORDER:
        if len(same := [top for top in splits if splits[top] == split]) > 1:
            raise ValueError(
                f"The folders {_list(same)} of {folder} all mean the split {split!r}: put their images into one of "
                "them, or move the others elsewhere."
            )
    return {split: Part(tops[top], 1) for split in ORDER for top in tops if splits[top] == split}


def classes_of(folder: Path, part: Part) -> Classes:
    """The class of each image: the first folder below the split."""
    root = Path(folder, *part.images[0].parts[: part.depth])
    below = [image.parts[part.depth :] for image in part.images]
    loose = [image for image, parts in zip(part.images, below) if len(parts) == 1]
    if len(loose) == len(below):
        return None
    classes: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for parts in below:
        if len(parts) > 1:
            classes[composed(parts[0])].append(parts[1:])
    if loose:
        raise ValueError(
            f"{root} holds {_images(loose)} beside the folders {_list(classes)}: either these are classes, or no "
            "image here has a class; move what lies beside them into one of them, or elsewhere."
        )
    _refuse_two_spellings(root, classes)
    _refuse_two_levels(root, classes)
    return [composed(parts[0]) for parts in below]


def _refuse_two_spellings(root: Path, names: Iterable[str]) -> None:
    spelt: dict[str, str] = {}
    for name in sorted(names):
        other = spelt.setdefault(name.strip().casefold(), name)
        if other != name:
            raise ValueError(
                f"{root} holds the folders {other!r} and {name!r}: either one class or two; put all into one of them, "
                "or give one another name."
            )


def _refuse_two_levels(root: Path, classes: Mapping[str, list[tuple[str, ...]]]) -> None:
    """Folders below the class folders that may be splits, or the classes themselves."""
    for name, images in classes.items():
        inner = {parts[0] for parts in images if len(parts) > 1}
        if inner and all(map(split_of, inner)):
            raise ValueError(
                f"{root / name} holds the folders {_list(inner)}: either splits or parts of the class {name!r}; put "
                f"splits at the top ({sorted(inner)[0]}/{name}/...), or rename these folders."
            )
    inner = {composed(parts[0]) for images in classes.values() for parts in images if len(parts) > 1}
    if len(inner) < 2 or any(len(parts) == 1 for images in classes.values() for parts in images):
        return
    upper, lower = (f"{len(level)} class{'es'[: 2 * (len(level) > 1)]} ({_list(level)})" for level in (classes, inner))
    remedy = (
        f"pass {root / next(iter(classes))}"
        if len(classes) == 1
        else "keep one level of folders, or name the classes in metadata.csv (columns file_name,label)"
    )
    raise ValueError(f"The images of {root} lie two folders deep: either {upper} or {lower}; {remedy}.")


def names_of_classes(folder: Path, classes: Mapping[str, Classes]) -> list[str] | None:
    """The classes of all splits, sorted; none where no split has any."""
    having = {split: set(of_split) for split, of_split in classes.items() if of_split}
    if not having:
        return None
    first = next(iter(having))
    for split, names in having.items():
        if first == "train" and (strange := sorted(names - having[first])):
            spelt = {name.casefold(): name for name in having[first]}
            close = difflib.get_close_matches(strange[0].casefold(), spelt, 1, 0.7)
            raise ValueError(
                f"The split {split!r} of {folder} has the class {strange[0]!r}, which {first!r} lacks"
                f"{f' (it has {spelt[close[0]]!r})' if close else ''}: rename that folder, or move it elsewhere."
            )
    return sorted(set().union(*having.values()))


def _rows(folder: Path, split: str, part: Part, classes: Classes, names: list[str] | None) -> Dataset:
    root = folder.absolute()
    features = Features({"image": Image()})
    columns = {"image": image_column(root.joinpath(*image.parts) for image in part.images)}
    if names is not None:
        features["label"] = ClassLabel(names=names)
        index = {name: i for i, name in enumerate(names)}
        labels = [index[name] for name in classes] if classes else [None] * len(part.images)
        columns["label"] = pa.array(labels, pa.int64())
    return from_columns(columns, features, split, part.images)


def image_column(paths: Iterable[Path | None]) -> pa.Array:
    """Paths as an image column stores them."""
    stored = [None if path is None else {"bytes": None, "path": str(path)} for path in paths]
    return pa.array(stored, Image().pa_type)


def from_columns(columns: Mapping[str, pa.Array], features: Features, split: str, files: list[File]) -> Dataset:
    """Rows whose fingerprint follows from the files and not from where the folder lies."""
    table = pa.table(dict(columns)).cast(features.arrow_schema)
    digest = hashlib.sha256(repr(features).encode())
    for file in files:
        digest.update(json.dumps([file.name, file.size, file.changed]).encode())
    other_columns = [name for name, feature in features.items() if not isinstance(feature, Image)]
    for batch in table.select(other_columns).to_batches() if other_columns else []:
        digest.update(json.dumps(batch.to_pylist(), default=str).encode())
    return Dataset(table, DatasetInfo(features=features), NamedSplit(split), fingerprint=digest.hexdigest()[:16])


def _images(files: list[File]) -> str:
    return f"the image {files[0].parts[-1]}" if len(files) == 1 else f"{len(files)} images ({files[0].parts[-1]}, ...)"


def _list(names: Iterable[str], most: int = 6) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")
