"""A student on the Hub: weights, code or the plain model, image processor, and a card that tells what they are."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import CommitInfo, run_as_future
from transformers import BaseImageProcessor, PreTrainedModel

from ..files import new_folder, remove_folder
from ..text import get_logger
from .cards.comparison import FIGURES
from .cards.student import LEADERBOARDS, StudentFacts, write_card
from .retries import HubError
from .upload import HubRepo


logger = get_logger(__name__)

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
OWN_FILES = (
    "README.md",
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "aspects_of_madkd.py",
    "queries_of_madkd.py",
    "configuration_madkd.py",
    "configuration_madkd_detection.py",
    "modeling_madkd.py",
    "modeling_madkd_detection.py",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-?????-of-?????.safetensors",
    "training_args.bin",  # a plain Trainer pushes this pickle
    *(f"adapter/{name}" for name in ADAPTER_FILES),
    *(f"figures/{name}" for name in FIGURES),
    "because.json",
    LEADERBOARDS,
    *("onnx/*", "openvino/*", "executorch/*"),  # of `push_exported`
)


def push_student(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    repo: HubRepo,
    facts: StudentFacts | None = None,
    *,
    plain: bool = False,
    adapter: str | os.PathLike | None = None,
    commit_message: str = "Upload a student",
    blocking: bool = True,
    unpublished: str | os.PathLike | None = None,
) -> CommitInfo | Future[CommitInfo]:
    """Publish a student in one commit: safetensors, config, code, image processor, card. No pickle goes up.

    The same call again goes on after a failure, commits nothing where nothing changed, and removes what an earlier
    push left that does not belong to this one.

    Args:
        model: a `MadkdForImageClassification` or `MadkdForObjectDetection`.
        processor: its image processor.
        repo: where to, checked already or not.
        facts: what the card tells.
        plain: publish `model.to_plain()`, which needs no remote code and has no aspects.
        adapter: folder of the LoRA adapter that was merged into the model; it goes up beside it, in `adapter/`.
        commit_message: the commit's title.
        blocking: False makes the files now, uploads in the background and returns a Future.
        unpublished: folder for what was to go up, where the push fails or is interrupted while it blocks; the message
            then holds the command that uploads it. After a success there is no such folder.

    Raises:
        ValueError: a comparison that is none, or one about other questions.
        HubError: it cannot be published; the repo is as it was.
    """
    staged = tempfile.TemporaryDirectory(prefix="madkd-student-")

    def push() -> CommitInfo:
        with staged:
            return repo.push(staged.name, commit_message, OWN_FILES)

    try:
        repo = repo.check(facts and facts.license)
        stage_student(staged.name, model, processor, repo, facts, plain, repo.manual_metadata(), adapter)
        if not blocking:
            future = run_as_future(push)
            future.add_done_callback(_log_failure)
            return future
        commit = push()
    except BaseException as error:
        staged.cleanup()
        if blocking and unpublished and isinstance(error, (HubError, KeyboardInterrupt)):
            with contextlib.suppress(OSError, ValueError):  # a full disk, or somebody's own files there
                with new_folder(unpublished, "student") as folder:
                    stage_student(folder, model, processor, repo, facts, plain, adapter=adapter)
                sentence = f"The student is saved; publish it with: {_upload_command(repo, unpublished)}"
                error.args = (f"{error} {sentence}".strip(),)
        raise
    if unpublished:
        with contextlib.suppress(ValueError):
            remove_folder(unpublished, "student")
    return commit


def push_exported(
    exported: str | os.PathLike,
    model: PreTrainedModel,
    repo: HubRepo,
    facts: StudentFacts | None = None,
    commit_message: str = "Upload an exported student",
) -> CommitInfo:
    """Publish what `exporting.export_student` left, with the plain weights beside it, in one commit.

    Args:
        exported: its folder.
        model: the student that was exported, for the card.
        repo, facts, commit_message: as for `push_student`.

    Raises:
        HubError: it cannot be published; the repo is as it was.
    """
    repo = repo.check(facts and facts.license)
    with tempfile.TemporaryDirectory(prefix="madkd-export-") as staged:
        files = [path for path in Path(exported).rglob("*") if path.is_file() and not path.name.startswith(".")]
        for path in files:
            name = path.relative_to(exported)
            if any(PurePosixPath(name.as_posix()).match(pattern) for pattern in OWN_FILES):
                (Path(staged) / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(path, Path(staged) / name)
        write_card(staged, model, repo, facts, True, repo.manual_metadata())
        return repo.push(staged, commit_message, OWN_FILES)


def _upload_command(repo: HubRepo, folder: str | os.PathLike) -> str:
    """What uploads a staged student, in one commit."""
    options = ["--private"] if repo.private else []
    options += ["--revision", repo.revision] if repo.revision else []
    options += ["--create-pr"] if repo.create_pr else []
    return shlex.join(["hf", "upload", repo.repo_id, os.fspath(folder), ".", "--exclude", ".madkd*", *options])


def stage_student(
    folder: str | os.PathLike,
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    repo: HubRepo,
    facts: StudentFacts | None = None,
    plain: bool = False,
    metadata: Mapping[str, Any] | None = None,
    adapter: str | os.PathLike | None = None,
) -> None:
    """Everything that a push uploads, in a folder: no network, and the same files for the same student."""
    if adapter is not None:
        (Path(folder) / "adapter").mkdir(exist_ok=True)
        for name in ADAPTER_FILES:
            shutil.copyfile(Path(adapter) / name, Path(folder) / "adapter" / name)
    (model.to_plain() if plain else model).save_pretrained(folder)
    processor.save_pretrained(folder)
    if not (plain or (Path(folder) / "preprocessor_config.json").is_file()):
        raise ValueError(
            f"{type(processor).__name__} cannot be saved, and the student needs its image processor: pass "
            "madkd_hf.data.image_processors.ordinary(processor)."
        )
    write_card(folder, model, repo, facts, plain, metadata)


def _log_failure(future: Future) -> None:
    if not future.cancelled() and (error := future.exception()):
        logger.error("The student was not published: %s", error)
