"""A student in a folder: loaded into the one that is trained, if it is the same one; or replaced."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel


ADAPTER = "adapter"  # the folder beside a merged student that was trained with LoRA
CONFIG = "config.json"
WEIGHT_FILES = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")


def is_student(model: nn.Module) -> bool:
    """A student of any kind, or one with an adapter (`LoraStudent`)."""
    return (isinstance(model, PreTrainedModel) and hasattr(model.config, "aspect_bank")) or is_adapted(model)


def is_adapted(model: nn.Module) -> bool:
    """Asked without peft, which need not be installed."""
    return any(base.__name__ == "LoraStudent" for base in type(model).__mro__)


def load_saved(model: nn.Module, folder: str | Path) -> None:
    """Put saved weights into a model, as `from_pretrained` reads them.

    transformers writes those of some architectures (ViT, ...) under other names than the model's, which the Trainer's
    own loading ignores, with a warning (its issue 48805).

    Raises:
        ValueError: what is saved there is a student of other questions or classes, or was adapted in another way.
    """
    folder = Path(folder)
    student = model.get_base_model() if is_adapted(model) else model
    saved = type(student).from_pretrained(folder)
    _check_outputs(saved.config, model.config, folder)
    if not (folder / ADAPTER).is_dir() and is_adapted(model):
        raise ValueError(
            f"peft_config asks for LoRA, and the student in {folder} was trained without: leave peft_config out, or "
            "start anew."
        )
    if is_adapted(model):
        model.load(folder / ADAPTER, saved)
    elif (folder / ADAPTER).is_dir():
        raise ValueError(
            f"The student in {folder} was trained with LoRA: pass the peft_config it was trained with, or start anew."
        )
    else:
        model.load_state_dict(saved.state_dict())


def _check_outputs(saved: Any, expected: Any, folder: Path) -> None:
    if saved.aspect_bank != expected.aspect_bank:
        raise ValueError(
            f"The student in {folder} learnt the bank {saved.aspect_bank} and the model was built for "
            f"{expected.aspect_bank}: questions or their order differ; build it with that bank, or start anew."
        )
    levels = [getattr(config, "aspect_level", None) for config in (saved, expected)]
    if levels[0] != levels[1]:
        raise ValueError(
            f"The student in {folder} has aspect_level={levels[0]!r} and the model {levels[1]!r}: build it with the "
            "same aspect_level, or start anew."
        )
    if saved.id2label != expected.id2label:
        raise ValueError(
            f"The student in {folder} knows {saved.num_labels} classes (first {saved.id2label[0]!r}) and the model "
            f"{expected.num_labels} (first {expected.id2label[0]!r}): build it with the same id2label, or start anew."
        )


def put_student_in_place(written: Path, folder: Path) -> None:
    """Put each file of a whole student in the place of an earlier one's.

    Where the two differ in their configuration, that is taken away first and comes last: no weights are ever read by
    another student's configuration. OSError where what stands there is no student's.
    """
    new, old = written / CONFIG, folder / CONFIG
    names = sorted(path.name for path in written.iterdir())
    adapter = folder / ADAPTER  # one that an earlier student has left there does not belong to this one
    stale = [path for path in folder.iterdir() if WEIGHT_FILES.fullmatch(path.name) and path.name not in names]
    if ADAPTER in names and adapter.exists() and not _is_adapter(adapter):
        raise OSError(f"{adapter} holds other files than an adapter; move that folder away")
    if new.is_file() and old.is_file() and new.read_bytes() != old.read_bytes():
        old.unlink()
    if adapter.exists() and _is_adapter(adapter):
        adapter.rename(written / "replaced")
    if any(WEIGHT_FILES.fullmatch(name) for name in names):
        for path in stale:  # of an earlier student in more files, or in one
            path.unlink()
    for name in sorted(names, key=lambda name: (name == CONFIG, name)):
        os.replace(written / name, folder / name)


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()
