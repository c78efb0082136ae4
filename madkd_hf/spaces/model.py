"""What a Space runs: an exported student, with its classes, its questions, and reasons for classes."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, RemoteEntryNotFoundError
from PIL import Image

from ..exporting.student import export_student, load_for_export
from ..files import read_json
from ..hub.retries import ATTEMPTS_BEFORE, retried
from ..hub.sources import HUB_ID
from ..students.classification.because import BECAUSE_FILE, Because
from . import CONFIGS, MODEL, ONNX


EXPORTED = ONNX.removeprefix(f"{MODEL}/")
MADE_UP = "made-up images"
DAMAGED = "export the student again"


@dataclass(frozen=True)
class SpaceModel:
    """An exported student, ready for Spaces.

    Attributes:
        folder: of its files, as they lie in a Space.
        classes: their names, in the order of the logits.
        because: reasons for classes; None for a model without answers.
        baseline: what the reasons compare answers with, in words.
        bytes: of the ONNX file.
        agreement: how the export compares with PyTorch, in words; None where it was made earlier.
        hub: id and commit of a repo that anybody may read and that has these very files.
        independent: whether each class has a probability of its own, as an image may show several.
    """

    folder: Path
    classes: list[str]
    because: Because | None
    baseline: str
    bytes: int
    agreement: str | None = None
    hub: tuple[str, str] | None = None
    independent: bool = False

    @property
    def against_made_up(self) -> bool:
        """Whether the reasons compare with answers about images that nobody took."""
        return self.baseline.endswith(MADE_UP)

    @property
    def input(self) -> dict[str, Any]:
        """For the page: where the ONNX file is."""
        hub = {"host": constants.ENDPOINT, "id": self.hub[0], "commit": self.hub[1]} if self.hub else {}
        return {"bytes": self.bytes, **hub}


@contextmanager
def prepared(student: str, revision: str | None = None, images: Sequence[Image.Image] = ()) -> Iterator[SpaceModel]:
    """Export a student for Spaces, into a folder that is there until the block ends; an export is taken as it is.

    Args:
        student: a folder or a Hub id, of a student, of a plain classifier, or of what `madkd export` made of one.
        revision: of the student on the Hub.
        images: to compare on, and whose mean answers the reasons are against; without any, made-up ones.

    Raises:
        ValueError: a detector, no classifier, or one that cannot be exported.
        ImportError: the extra onnx has to be installed, for what is not exported yet.
    """
    with tempfile.TemporaryDirectory(prefix="madkd-space-") as scratch:
        exported, hub = _exported(student, revision, Path(scratch))
        agreement, baseline = None, "the average answers of its export"
        if exported is None:
            exported = Path(scratch) / "exported"
            agreement, baseline = _export(student, revision, exported, images)
        config = read_json(exported / CONFIGS[0], "configuration of an exported student", DAMAGED)
        classes, because = _classes(config, exported / CONFIGS[0]), _because(exported)
        if because is not None and because.classes != classes:
            raise ValueError(f"{exported / BECAUSE_FILE} is about other classes than the model: {DAMAGED}.")
        size = (exported / EXPORTED).stat().st_size
        folder = Path(scratch) / "space"
        _copy(exported, folder, config, whole=hub is None)
        independent = config.get("problem_type") == "multi_label_classification" or len(classes) == 1
        yield SpaceModel(folder, classes, because, baseline, size, agreement, hub, independent)


def _export(student: str, revision: str | None, place: Path, images: Sequence[Image.Image]) -> tuple[str, str]:
    """Export with answers where the student has any; how it agrees, and what the reasons are against."""
    model, processor = load_for_export(student, False, **({"revision": revision} if revision else {}))
    has_aspects = model.config.model_type == "madkd" and bool(model.config.num_aspects)
    own = Path(student).expanduser() / BECAUSE_FILE  # saved beside the student, with a baseline of its own
    saved = Because.load(own.parent) if has_aspects and not images and own.is_file() else None
    if saved and (saved.classes, saved.ids) != (list(model.config.id2label.values()), list(model.config.aspect_ids)):
        raise ValueError(f"{own} is about other classes or questions than the student: save it anew, or delete it.")
    agreement = str(export_student(model, processor, place, "onnx", has_aspects, images).agreement)
    if saved is None:
        return agreement, f"its average answers about {f'{len(images)} images of the dataset' if images else MADE_UP}"
    made = Because.load(place)
    Because(made.effects, saved.baseline, made.classes, made.ids, made.questions).save(place)
    return agreement, "its usual answers"


def _exported(student: str, revision: str | None, scratch: Path) -> tuple[Path | None, tuple[str, str] | None]:
    """What was exported already, here or on the Hub, and which repo may be referred to; None where nothing was."""
    here = Path(student).expanduser()
    if here.exists() or not HUB_ID.fullmatch(student):
        there = here / EXPORTED
        return (here, None) if there.is_file() else (None, None)
    try:
        info = retried(HfApi().model_info, student, revision=revision, attempts=ATTEMPTS_BEFORE)
    except (HfHubHTTPError, HTTPError, HFValidationError, OSError):  # said by whoever loads it, or it is in the cache
        return None, None
    names = {file.rfilename for file in info.siblings or ()}
    if EXPORTED not in names or f"{EXPORTED}_data" in names:
        return None, None
    for name in (EXPORTED, *CONFIGS, *({BECAUSE_FILE} & names)):
        try:
            path = retried(hf_hub_download, student, name, revision=info.sha)
        except RemoteEntryNotFoundError:
            return None, None
        (scratch / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, scratch / "hub" / name)
    is_public = not (info.private or info.gated)
    return scratch / "hub", (info.id, info.sha) if is_public else None


def _classes(config: dict[str, Any], path: Path) -> list[str]:
    names = config.get("id2label")
    if not isinstance(names, dict) or sorted(names) != sorted(map(str, range(len(names)))) or not names:
        raise ValueError(f"{path} has no id2label with a name for each class: {DAMAGED}.")
    return [str(names[str(index)]) for index in range(len(names))]


def _because(exported: Path) -> Because | None:
    return Because.load(exported) if (exported / BECAUSE_FILE).is_file() else None


def _copy(exported: Path, folder: Path, config: dict[str, Any], whole: bool) -> None:
    """The files that the page reads: of the configuration what says how images are prepared and which model it is."""
    if (exported / f"{EXPORTED}_data").exists():
        raise ValueError(
            f"{exported / EXPORTED} has its weights in a second file, which is too much for a Space: use a smaller "
            "student."
        )
    (folder / ONNX).parent.mkdir(parents=True, exist_ok=True)
    if whole:
        shutil.copyfile(exported / EXPORTED, folder / ONNX)
    settings = {name: config[name] for name in ("model_type", "architectures") if name in config}
    processor = read_json(exported / CONFIGS[1], "settings of an image processor", DAMAGED)
    refused = [name for name in ("auto_map", "processor_class") if processor.pop(name, None)]
    kind = str(processor.get("image_processor_type", "ImageProcessor"))
    if "auto_map" in refused:
        raise ValueError(f"{exported / CONFIGS[1]} needs code of its own, which a Space does not run: {DAMAGED}.")
    # transformers.js knows each image processor by one name, whatever computes it in Python
    processor["image_processor_type"] = kind.removesuffix("Pil").removesuffix("Fast")
    for name, content in zip(CONFIGS, (settings, processor)):
        text = json.dumps(content, indent=2, ensure_ascii=True)
        (folder / MODEL / name).write_text(f"{text}\n", encoding="utf-8")
