"""Where a command writes: not where it reads, not over a user's files, and one job at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..aspects import BANK_FILE
from ..data.target_facts import TARGETS_FILE
from ..files import check_folder, check_output, locked, own_folder
from .interrupts import BEGUN


# options that may name a folder that is read
SOURCES = ("dataset", "student", "teacher", "class_teacher", "backbone", "detector", "comparison")
EVIDENCE = ("questions.md", "questions.json", "figures/questions.png", "figures/teacher.png")
DATASET = (BANK_FILE, TARGETS_FILE, "dataset_dict.json", *EVIDENCE)  # its splits are folders with marks of their own
SELECTION = ("selection.md", "selection.json", "figures/selection.png")
BANK = ("candidates.jsonl", "rejected.jsonl", "generation.json")
COMPARISON = (
    *("cells", "sets", "student", "labelled", "labelled_images", "report.md", "report.json", "classes.md", "tune.md"),
    "finished.json",
    *("questions_curve.md", "questions_curve.json", "figures/questions_curve.png", "figures/against_*.png", *EVIDENCE),
    *(f"figures/{name}.png" for name in ("ap", "scenes", "accuracies", "learning_curves", "classes", "calibration")),
    *(f"figures/{name}.png" for name in ("aspect_learning", "examples")),
)
COMPARING = "comparison"
COMPARISONS = ("report.md", "report.json")  # each comparison is in a folder of its own, which is a COMPARISON
COMPARING_ALL = "comparisons"
STUDENT = (
    *("config.json", "preprocessor_config.json", "processor_config.json", "model*.safetensors", "model.safetensors.*"),
    *("training_args.bin", "trainer_state.json", "*_results.json", "test_predictions.npz", "unpublished"),
    *("*_madkd*.py", "adapter", "checkpoint-*", TARGETS_FILE),
)
CELL = (*STUDENT, "log.txt", "cell.json", "runs")


def check_place(output_dir: str, args: Any, kind: str, names: Sequence[str]) -> None:
    """Refuse an output folder that is not for this command, before anything is read; nothing is made.

    Args:
        args: the options, among them the `SOURCES`, a bank and a work_dir.
        kind, names: what will be written there, see `madkd_hf.files.own_folder`.
    """
    sources = [getattr(args, name, None) for name in SOURCES]
    sources = [source for source in sources if not str(source).endswith((".yaml", ".yml"))]  # settings, no source
    bank = getattr(args, "bank", None)
    if bank and BANK_FILE in names:
        file = Path(bank) / BANK_FILE if os.path.isdir(bank) else Path(bank)
        sources += [file] if file.name == BANK_FILE and _same(file.parent, output_dir) else []
    check_output(output_dir, *sources)
    if getattr(args, "work_dir", None):
        check_output(os.path.expanduser(args.work_dir), *sources, name="work")
    check_folder(output_dir, kind, names)


@contextmanager
def working_in(output_dir: str, args: Any, kind: str, names: Sequence[str], is_main: bool = True) -> Iterator[None]:
    """Keep other jobs out of the output folder, and mark what is written there as ours; for the main process alone."""
    if not is_main:
        yield
        return
    check_place(output_dir, args, kind, names)
    with locked(output_dir, "it writes there"):
        own_folder(output_dir, kind, names)
        BEGUN.append(str(output_dir))
        yield


def _same(path: str | os.PathLike, other_path: str | os.PathLike) -> bool:
    return os.path.realpath(path) == os.path.realpath(other_path)
