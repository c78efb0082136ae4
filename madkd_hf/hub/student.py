"""A student on the Hub: weights, code or the plain model, image processor, and a card that tells what they are."""

from __future__ import annotations

import json
import os
import tempfile
from concurrent.futures import Future

from huggingface_hub import CommitInfo, ModelCard, run_as_future
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import logging
from transformers import BaseImageProcessor, PreTrainedModel

from .student_card import FIGURES, StudentFacts, read_comparison, write_card
from .upload import HubError, HubRepo


logger = logging.get_logger(__name__)

OURS = (
    "README.md",
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "configuration_madkd.py",
    "modeling_madkd.py",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-?????-of-?????.safetensors",
    "training_args.bin",  # a plain Trainer pushes this pickle
    *(f"figures/{name}" for name in FIGURES),
)


def check_student(repo: HubRepo, license: str | None = None, comparison: str | os.PathLike | None = None) -> HubRepo:
    """What would keep a student from being published, as far as it can be known before it is trained.

    Returns:
        The repo, with its whole name.

    Raises:
        ValueError: a comparison that is none.
        HubError: see `HubRepo.check`, or the Hub does not know the licence.
    """
    if comparison is not None:
        read_comparison(comparison)
    repo = repo.check()
    _check_license(license)
    return repo


def _check_license(license: str | None) -> None:
    if license is not None:
        try:
            ModelCard(f"---\nlicense: {json.dumps(license)}\n---\n").validate()
        except HTTPError:
            return  # the push itself tells what is wrong with the Hub
        except ValueError as error:
            raise HubError(
                f"The Hub knows no licence {license!r}: pass one of its identifiers, such as apache-2.0, or `other`."
            ) from error


def push_student(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    repo: HubRepo,
    facts: StudentFacts | None = None,
    *,
    plain: bool = False,
    commit_message: str = "Upload a student",
    blocking: bool = True,
) -> CommitInfo | Future[CommitInfo]:
    """Publish a student in one commit: safetensors, config, code, image processor, card. No pickle goes up.

    The same call again goes on after a failure, commits nothing where nothing changed, and removes what an earlier
    push left that does not belong to this one.

    Args:
        model: a `MadkdForImageClassification`.
        processor: its image processor.
        repo: where to, checked already or not.
        facts: what the card tells.
        plain: publish `model.to_plain()`, which needs no remote code and has no aspects.
        commit_message: the commit's title.
        blocking: False makes the files now, uploads in the background and returns a Future.

    Raises:
        ValueError: a comparison that is none.
        HubError: it cannot be published; the repo is as it was.
    """
    _check_license(facts and facts.license)
    staged = tempfile.TemporaryDirectory(prefix="madkd-student-")

    def push() -> CommitInfo:
        with staged:
            return repo.push(staged.name, commit_message, OURS)

    try:
        stage_student(staged.name, model, processor, repo, facts, plain)
    except BaseException:
        staged.cleanup()
        raise
    if blocking:
        return push()
    future = run_as_future(push)
    future.add_done_callback(_tell_failure)
    return future


def stage_student(
    folder: str | os.PathLike,
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    repo: HubRepo,
    facts: StudentFacts | None = None,
    plain: bool = False,
) -> None:
    """Everything that a push uploads, in a folder: no network, and the same files for the same student."""
    (model.to_plain() if plain else model).save_pretrained(folder)
    processor.save_pretrained(folder)
    write_card(folder, model, repo, facts, plain)


def _tell_failure(future: Future) -> None:
    if not future.cancelled() and (error := future.exception()):
        logger.error("The student was not published: %s", error)
