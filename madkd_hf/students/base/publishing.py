"""How a trained student is published, by functions that its trainer calls: one commit, one card."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list
from datasets import Dataset
from huggingface_hub import CommitInfo
from transformers.trainer_utils import EvalLoopOutput

from ...data.limits import how_drawn
from ...hub.cards.results import Evaluation
from ...hub.cards.student import StudentFacts, dataset_facts
from ...hub.retries import HubError
from ...hub.sources import DataSource
from ...hub.student import push_student
from ...hub.upload import HubRepo
from .saved import ADAPTER, is_adapted
from .training_args import MadkdTrainingArguments


if TYPE_CHECKING:
    from .distilling import DistillingTrainer

UNPUBLISHED = "unpublished"  # in the output folder, what a push that failed was to upload


def evaluation_for_card(rows: Any, trained_on: Any, output: EvalLoopOutput, prefix: str) -> Evaluation:
    """What a card says of an evaluation; what it says per aspect is taken out of the output's metrics.

    Args:
        trained_on: the training dataset.
        output: of the evaluation loop.
        prefix: of its metrics: "eval", "eval_NAME", "test" or another.
    """
    auroc = output.metrics.pop(f"{prefix}_per_aspect", None)
    metrics = {key.removeprefix(f"{prefix}_"): value for key, value in output.metrics.items()}
    source, split, drawn = DataSource.of(rows), getattr(rows, "split", None), how_drawn(rows)
    same_dataset = DataSource.of(trained_on) in (None, source)
    if same_dataset and split == getattr(trained_on, "split", None):
        split = None  # a part of the training split still calls itself that
    names = {"eval": split or "validation", "test": split or "test"}
    name = str(names.get(prefix, prefix.removeprefix("eval_")))
    named_split = None if split is None or drawn else str(split)
    return Evaluation(name, metrics, output.num_samples, named_split, auroc, source, drawn)


def student_facts(
    caller_facts: dict[str, Any],
    train_dataset: Dataset | None,
    evaluations: list[Evaluation],
    hyperparameters: dict[str, Any],
    license: str | None,
) -> StudentFacts:
    """What the trainer knows of a student, under what the caller says.

    Args:
        caller_facts: by the caller, see `DistillingTrainer.create_model_card`.
    """
    facts = {name: value for name, value in caller_facts.items() if value is not None and name != "tasks"}
    source = DataSource.of(train_dataset)
    about = {name: facts.pop(name) for name in ("dataset", "dataset_tags", "dataset_args") if name in facts}
    if isinstance(facts.get("tags"), str):
        facts["tags"] = [facts["tags"]]
    # Where the training rows come from a Hub dataset, evaluation rows without a known source are not part of it.
    elsewhere = DataSource("local images") if source else None
    evaluations = [replace(evaluation, dataset=evaluation.dataset or elsewhere) for evaluation in evaluations]
    known = {"evaluations": evaluations, "hyperparameters": hyperparameters, "license": license}
    return StudentFacts(**{**known, **dataset_facts(source, **about), **facts})


def push_saved(
    trainer: DistillingTrainer, repo: HubRepo, facts: StudentFacts, plain: bool, message: str, blocking: bool
) -> CommitInfo | Future[CommitInfo]:
    """Publish the student that stands in the output folder, in one commit."""
    folder, model = Path(trainer.args.output_dir), trainer.accelerator.unwrap_model(trainer.model)
    adapted = is_adapted(model)
    return push_student(
        type(model.get_base_model() if adapted else model).from_pretrained(folder),
        trainer.processing_class,
        repo,
        facts,
        plain=plain,
        adapter=folder / ADAPTER if adapted else None,
        commit_message=message,
        blocking=blocking,
        unpublished=folder / UNPUBLISHED,
    )


def check_repo(args: MadkdTrainingArguments, **changed: Any) -> str:
    """See whether a push can succeed: the first process asks the Hub, all get its answer.

    Args:
        args: say where to.
        changed: see `MadkdTrainingArguments.hub_repo`.

    Returns:
        The whole name, "owner/name".

    Raises:
        HubError: a push cannot succeed, in one sentence, in every process.
    """
    answer: list[Any] = [None, None]
    if args.process_index == 0:
        try:
            answer[0] = args.hub_repo(**changed).check(args.hub_license).repo_id
        except HubError as error:
            answer[1] = str(error)
    if args.world_size > 1:
        broadcast_object_list(answer)
    if answer[1]:
        raise HubError(answer[1])
    return answer[0]
