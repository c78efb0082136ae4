"""What is known of a dataset's class targets beside the columns: a small file that travels with the dataset."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError

from ..files import write_whole
from ..text import hidden_character, jsonable, terminal


TARGETS_FILE = "class_targets.json"
FORMAT_VERSION = 1
LARGEST_FILE = 1_000_000  # bytes
LONGEST = 500  # characters of a name
DEEPEST = 20  # levels of a provenance
KINDS = ("posterior", "class teacher", "other")  # of the answers, of a classifier, or given by the dataset's owner


@dataclass(frozen=True)
class TargetFacts:
    """Who gave the class targets of a dataset, and how far they are right.

    Attributes:
        teacher: what stands in the column `class_teacher`.
        kind: one of `KINDS`.
        rows: split -> how many rows have class targets.
        fitted: how many rows a posterior was fitted on; None for a class teacher.
        tested: how many rows with a class accuracy and calibration error were measured on.
        folds: of the cross-validation; None for a class teacher, whose own training images may be among those rows.
        accuracy: share of these rows whose class is the most probable, 0 to 1; None where it was not measured.
        calibration_error: expected calibration error there, 0 to 1; None likewise.
        provenance: of a class teacher.
    """

    teacher: str
    kind: str
    rows: Mapping[str, int]
    fitted: int | None = None
    tested: int | None = None
    folds: int | None = None
    accuracy: float | None = None
    calibration_error: float | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The teacher without the digest of the classes."""
        return self.teacher.rpartition(":")[0] or self.teacher

    @property
    def quality(self) -> str:
        """How far the targets are right, in a sentence."""
        if self.accuracy is None or not self.tested:
            if self.kind == "posterior":
                return (
                    f"It was fitted on {self.fitted or 0:,} images, one of each class: nothing tells how good it is."
                )
            return "Nothing tells how good they are."
        error = "" if self.calibration_error is None else f"; calibration error {self.calibration_error:.1%}"
        if self.kind == "posterior":
            return (
                f"It names the class of {self.accuracy:.1%} of {self.tested:,} images with a class, each left out of "
                f"the fit in turn ({self.folds} folds{error})."
            )
        return (
            f"They name the class of {self.accuracy:.1%} of {self.tested:,} images with a class, on which the model "
            f"may have been trained{error}."
        )

    def save(self, folder: str | os.PathLike) -> None:
        """Write the file into a folder."""
        content = {"format_version": FORMAT_VERSION, **jsonable(asdict(self))}
        write_whole(Path(folder) / TARGETS_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, source: str | os.PathLike, revision: str | None = None) -> TargetFacts | None:
        """Read the file of a folder, or of a dataset of the Hub; None where there is none.

        Raises:
            ValueError: what is there says no such thing.
        """
        path = _locate(source, revision)
        if path is None:
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls._checked(content)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise ValueError(
                f"{terminal(path)} does not say whose the class targets are ({terminal(reason, 100)}): delete it, or "
                "make the targets again (madkd label)."
            ) from None

    @classmethod
    def _checked(cls, content: Any) -> TargetFacts:
        if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"expected format_version {FORMAT_VERSION}")
        names = {one.name for one in fields(cls)}
        values = {name: value for name, value in content.items() if name in names}
        for name in ("teacher", "kind"):
            _check_text(name, values.get(name))
        if values["kind"] not in KINDS:
            raise ValueError(f"kind is {values['kind']!r}")
        if not isinstance(values.get("rows"), dict) or not isinstance(values.get("provenance", {}), dict):
            raise ValueError("rows and provenance are objects")
        _check_depth(values.get("provenance"))
        for split, count in values["rows"].items():
            _check_text("split", split)
            _check_count(f"rows of {split!r}", count)
        for name in ("fitted", "tested", "folds"):
            if values.get(name) is not None:
                _check_count(name, values[name])
        for name in ("accuracy", "calibration_error"):
            value = values.get(name)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if value is not None and not (is_number and 0 <= value <= 1):
                raise ValueError(f"{name} is {value!r}, expected 0 to 1")
        return cls(**values)


def _check_depth(value: Any, most: int = DEEPEST) -> None:
    if not isinstance(value, (dict, list)):
        return
    if not most:
        raise ValueError("provenance is nested too deeply")
    for item in value.values() if isinstance(value, dict) else value:
        _check_depth(item, most - 1)


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST or hidden_character(value):
        raise ValueError(f"{name} is {value!r}, expected a short text")


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 10**12:
        raise ValueError(f"{name} is {value!r}, expected a number of rows")


def _locate(source: str | os.PathLike, revision: str | None) -> Path | None:
    folder = Path(source).expanduser()
    if folder.is_dir():
        path = folder / TARGETS_FILE
        if path.is_file():
            _check_size(path, path.stat().st_size)
        return path if path.is_file() else None
    if folder.exists() or ":" in str(source) or len(folder.parts) > 2 or folder.is_absolute():
        return None
    options = {"repo_type": "dataset", "revision": revision}
    try:
        size = hf_hub_download(str(source), TARGETS_FILE, dry_run=True, **options).file_size or 0
        _check_size(f"{TARGETS_FILE} of {source}", size)
        return Path(hf_hub_download(str(source), TARGETS_FILE, **options))
    except (OSError, HFValidationError):  # most datasets have none
        return None


def _check_size(name: str | Path, size: int) -> None:
    if size > LARGEST_FILE:
        raise ValueError(
            f"{terminal(name)} does not say whose the class targets are: it has {size:,} bytes, at most "
            f"{LARGEST_FILE:,} are read; delete it."
        )
