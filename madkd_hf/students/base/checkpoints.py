"""Checkpoints that are whole or not there: a record of all their files, and the last one that a training goes on from.

A checkpoint is written into a folder of another name, gets a record with size and checksum of each of its files, and
is renamed. So what has a record was finished, and what happens to its files afterwards is noticed.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from ... import files


RECORD = "madkd_checkpoint.json"
STATE = "trainer_state.json"
NAME = re.compile(r"checkpoint-(\d+)")
OF_A_CHECKPOINT = re.compile(  # the last ones are DeepSpeed's and FSDP's
    r".*\.(safetensors|safetensors\.index\.json|bin|bin\.index\.json|pt|pth|distcp|py)|adapter|latest|README\.md|"
    rf".*config\.json|{STATE}|{RECORD}|checkpoint-is-incomplete\.txt|\.metadata|__pycache__|"
    r"global_step\d+|pytorch_model_fsdp.*|optimizer_\d+"
)
RESUME = "--resume_from_checkpoint"
ANOTHER = "it is not of the last run"


def write_record(folder: Path, **facts: Any) -> None:
    """Note what a finished checkpoint consists of, and more `facts`; the last of its files to be written."""
    files.write_record(folder / RECORD, {"format": 1, **facts, "files": files.note_files(folder, RECORD)})


def checkpoint_fault(folder: str | Path, quick: bool = False, student_only: bool = False) -> str | None:
    """Why no training can go on from a checkpoint, in a few words; None where it is whole.

    Args:
        quick: look at names and sizes alone.
        student_only: ask for the student alone, not for what the training needs beside it.
    """
    try:
        return _fault(Path(folder), quick, student_only)
    except OSError as error:
        return f"it cannot be read ({error})"


def _fault(folder: Path, quick: bool, student_only: bool) -> str | None:
    """As `checkpoint_fault`; OSError where it cannot be read now, which is no fault of the checkpoint."""
    record = _read_record(folder)
    if record is None:
        return f"{RECORD} is {'damaged' if (folder / RECORD).is_file() else 'missing'}"
    if record.get("save_only_model") and not student_only:
        return "it was saved with save_only_model, without the optimizer's state"
    return files.fault_of(folder, record["files"], quick)


def _read_record(folder: Path) -> dict[str, Any] | None:
    """The record; None where it is missing or damaged."""
    try:
        record = files.read_record(folder / RECORD, "record of a checkpoint", "leave it out")
    except ValueError:
        return None
    return record if isinstance(record.get("files"), dict) else None


def _record(folder: Path) -> dict[str, Any] | None:
    """The record; None where there is none that can be read now."""
    try:
        return _read_record(folder)
    except OSError:
        return None


def recorded_entry(folder: Path, name: str) -> Any:
    """A fact from a checkpoint's record, such as its `run` or its `processes`; None where that is not known."""
    return (_record(folder) or {}).get(name)


def all_checkpoints(folder: str | Path) -> dict[int, Path]:
    """The checkpoints in an output folder, whole or not, by step, the last one first."""
    folder = Path(folder)
    by_step = {int(match[1]): path for path in folder.glob("checkpoint-*") if (match := NAME.fullmatch(path.name))}
    return {step: by_step[step] for step in sorted(by_step, reverse=True) if by_step[step].is_dir()}


def last_whole(folder: str | Path, quick: bool = False) -> tuple[Path | None, dict[Path, str]]:
    """The last whole checkpoint of the run that wrote last, and of each one of a later step why it is passed over."""
    passed: dict[Path, str] = {}
    records = {path: _record(path) for path in all_checkpoints(folder).values()}
    recorded = [path for path, record in records.items() if record]
    newest = max(recorded, key=lambda path: (path / RECORD).stat().st_mtime_ns, default=None)
    for path, record in records.items():
        if record and record.get("run") != records[newest].get("run"):
            if ANOTHER not in passed.values():  # said once
                passed[path] = ANOTHER
            continue
        reason = checkpoint_fault(path, quick)
        if reason is None:
            return path, passed
        passed[path] = reason
    return None, passed


def last_of_run(folder: str | Path, run: str | None) -> Path | None:
    """What "true" goes on from, where this run wrote it; None where another one did, with settings of its own."""
    intact, _ = last_whole(folder, quick=True)
    return intact if intact and recorded_entry(intact, "run") == run else None


def find_checkpoint(
    resume_from: str | os.PathLike | bool | None, output_dir: str | Path
) -> tuple[Path | None, list[str]]:
    """The checkpoint that a training is to go on from.

    Args:
        resume_from: True or "true" for the last whole one in the output folder, or the folder of one; nothing, False
            or "false" for none.

    Returns:
        Its folder, or None; and a sentence for each later one that is passed over.

    Raises:
        ValueError: there is none, or not a whole one, in one sentence.
    """
    if not resume_from or str(resume_from).lower() == "false":
        return None, []
    if str(resume_from).lower() != "true":
        return _checked_folder(Path(resume_from), Path(output_dir)), []
    intact, passed = last_whole(output_dir)
    if intact is not None:
        return intact, [f"{path} is passed over: {reason}." for path, reason in passed.items()]
    if not passed:
        raise ValueError(
            f"There is no checkpoint in {output_dir} to resume from: pass a checkpoint-N folder, or leave {RESUME} "
            "out."
        )
    reasons = "; ".join(f"{path.name}: {reason}" for path, reason in list(passed.items())[:3])
    raise ValueError(
        f"No checkpoint in {output_dir} is whole ({reasons}): leave {RESUME} out to start anew, or remove the damaged "
        "ones and restore one from a copy."
    )


def _checked_folder(folder: Path, output_dir: Path) -> Path:
    if not folder.is_dir() and len(folder.parts) == 1 and (output_dir / folder).is_dir():
        folder = output_dir / folder
    if not folder.is_dir():
        raise ValueError(
            f"There is no checkpoint {folder} to resume from: pass a checkpoint-N folder, or leave {RESUME} out."
        )
    if (reason := checkpoint_fault(folder)) is None:
        return folder
    intact, _ = last_whole(folder.parent)
    remedy = f"the last whole one is {intact}" if intact else f"there is no whole one beside it; leave {RESUME} out"
    raise ValueError(f"No training can go on from {folder}: {reason}; {remedy}.")


# Folders


def foreign_file(folder: Path) -> str | None:
    """A file in a checkpoint that no training wrote; such a folder is nobody's to replace or remove."""
    record = _record(folder)
    known = {Path(name).parts[0] for name in record["files"]} if record else set()
    names = sorted(path.name for path in folder.iterdir() if path.name not in known)
    return next((name for name in names if not OF_A_CHECKPOINT.fullmatch(name)), None)


def put_in_place(written: Path, place: Path) -> None:
    """Give a finished checkpoint its name; an older one there makes room only now, and what is none raises OSError."""
    if place.exists() and (strange := foreign_file(place)):
        raise OSError(f"{place} holds {strange!r}, which no training wrote; move that folder away")
    if place.exists():
        remove(place)
    written.rename(place)


def rotate(output_dir: Path, limit: int | None, keep: set[Path]) -> None:
    """Remove the oldest checkpoints above the limit; damaged ones do not count, and go first.

    Nothing is removed, and OSError raised, where one of them cannot be read now.

    Args:
        limit: how many stay; None or 0 for all.
        keep: those that stay whatever their age.
    """
    if not limit or limit < 0:
        return
    by_step = [path for path in reversed(all_checkpoints(output_dir).values()) if is_ours(path)]
    by_age = sorted(by_step, key=lambda path: path.stat().st_mtime_ns)
    keep = {path.resolve() for path in keep}
    damaged = [path for path in by_age if path.resolve() not in keep and _fault(path, True, student_only=True)]
    intact = [path for path in by_age if path not in damaged]
    surplus = max(0, len(intact) - max(limit, len(keep)))
    old = [path for path in intact if path.resolve() not in keep]
    for path in [*damaged, *old[:surplus]]:
        remove(path)


def is_ours(folder: Path) -> bool:
    """Whether a training of ours wrote the checkpoint, and nobody put anything into it since."""
    return (folder / RECORD).is_file() and foreign_file(folder) is None


def remove(folder: Path) -> None:
    """Rename a checkpoint before its files are removed, so that half of one never passes for a whole one."""
    old = files.temporary(folder, "old")
    folder.rename(old)
    shutil.rmtree(old, ignore_errors=True)
