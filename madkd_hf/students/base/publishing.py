"""How a trained student is published: one commit, one card."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from huggingface_hub import CommitInfo
from transformers.trainer_utils import EvalLoopOutput

from ...data.limits import how_drawn
from ...data.target_facts import TargetFacts
from ...hub.cards.results import Evaluation
from ...hub.cards.student import StudentFacts, dataset_facts, write_card
from ...hub.retries import HubError
from ...hub.sources import DataSource
from ...hub.student import push_student
from .saved import ADAPTER, is_adapted
from .training_args import MadkdTrainingArguments


UNPUBLISHED = "unpublished"  # in the output folder, what a push that failed was to upload


class Publishing:
    """What a Trainer does with the Hub: it changes it by nothing but a push, one commit with student and card."""

    _evaluations: dict[tuple, Evaluation]  # by step, name and dataset
    class_targets: TargetFacts | None = None  # what is known of the class targets beside their columns, for the card

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """See whether a push can succeed; nothing is made on the Hub before the push itself.

        Raises:
            HubError: it cannot, in one sentence, in every process.
        """
        self._check_processor()
        self.hub_model_id = check_repo(self.args, token=token, private=private)
        self.push_in_progress = None

    def create_model_card(self, plain: bool | None = None, **facts: Any) -> None:
        """Write the card into output_dir; no network.

        Args:
            plain: for the plain model; by default as the arguments say.
            facts: what the trainer cannot know or knows otherwise, see `StudentFacts`: `license`, `comparison`,
                `dataset` (a Hub id as owner/name, another name, or a `DataSource`), `dataset_tags` (Hub ids),
                `dataset_args` (the configuration), `evaluations`, `language`, `tags`, `model_name`, `finetuned_from`.
                `tasks` is taken and changes nothing.
        """
        if self.is_world_process_zero():
            repo = self.args.hub_repo()
            repo = replace(repo, repo_id=self.hub_model_id or repo.repo_id)
            plain = self.args.push_plain if plain is None else plain
            model = self.accelerator.unwrap_model(self.model)
            write_card(self.args.output_dir, model, repo, self._facts(facts), plain)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        create_pr: bool | None = None,
        plain: bool | None = None,
        **facts: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """Save the student in output_dir and publish it: one commit of weights, code, image processor and card.

        Args:
            commit_message: the commit's title.
            blocking: False uploads in the background.
            token, revision, private, create_pr, plain: by default as the arguments say.
            facts: for the card, see `create_model_card`.

        Returns:
            The commit, or without `blocking` its Future; None in all processes but the first.

        Raises:
            HubError: it cannot be published; the repo is as it was.
        """
        self._check_processor()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.hub_model_id = check_repo(self.args, token=token, private=private, create_pr=create_pr)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        repo = self.args.hub_repo(token=token, revision=revision, private=private, create_pr=create_pr)
        folder, model = Path(self.args.output_dir), self.accelerator.unwrap_model(self.model)
        adapted = is_adapted(model)
        return push_student(
            type(model.get_base_model() if adapted else model).from_pretrained(folder),
            self.processing_class,
            replace(repo, repo_id=self.hub_model_id),
            self._facts(facts),
            plain=self.args.push_plain if plain is None else plain,
            adapter=folder / ADAPTER if adapted else None,
            commit_message=commit_message or "End of training",
            blocking=blocking,
            unpublished=folder / UNPUBLISHED,
        )

    @staticmethod
    def hyperparameters(args: MadkdTrainingArguments, class_targets: bool = False) -> dict[str, Any]:
        """What decides a student, for its card."""
        return args.hyperparameters(class_targets)

    def _check_processor(self) -> None:
        if self.processing_class is None:
            raise HubError(
                "There is no image processor to publish with the student: pass it as processing_class, beside your "
                "data_collator."
            )

    # For the card

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._evaluations.clear()  # of other weights
        return super().train(*args, **kwargs)

    @property
    def _step(self) -> int:
        """The training step of the weights as they are."""
        best = self.state.best_global_step if self.args.load_best_model_at_end else None
        return self.state.global_step if best is None or self.is_in_train else best

    def _keep_for_card(self, rows: Any, output: EvalLoopOutput, prefix: str) -> None:
        """Note an evaluation of these rows; the metrics per aspect are for the card alone, and leave the output."""
        auroc = output.metrics.pop(f"{prefix}_per_aspect", None)
        if output.label_ids is None:  # without labels there is no score, and it must not replace one
            return
        metrics = {key.removeprefix(f"{prefix}_"): value for key, value in output.metrics.items()}
        source, split, drawn = DataSource.of(rows), getattr(rows, "split", None), how_drawn(rows)
        same_dataset = DataSource.of(self.train_dataset) in (None, source)
        if same_dataset and split == getattr(self.train_dataset, "split", None):
            split = None  # a part of the training split still calls itself that
        names = {"eval": split or "validation", "test": split or "test"}
        name = str(names.get(prefix, prefix.removeprefix("eval_")))
        named_split = None if split is None or drawn else str(split)
        evaluation = Evaluation(name, metrics, output.num_samples, named_split, auroc, source, drawn)
        self._evaluations[self._step, name, source] = evaluation

    def learned_targets(self) -> TargetFacts | None:
        """The class targets of training images that the student learns from; None where it learns from none."""
        return None

    def _facts(self, from_caller: dict[str, Any]) -> StudentFacts:
        """What the trainer knows of the student, and what the caller says, which wins."""
        facts = {name: value for name, value in from_caller.items() if value is not None and name != "tasks"}
        if isinstance(facts.get("tags"), str):
            facts["tags"] = [facts["tags"]]
        about = {name: facts.pop(name) for name in ("dataset", "dataset_tags", "dataset_args") if name in facts}
        source = DataSource.of(self.train_dataset)
        # Where the training rows come from a Hub dataset, evaluation rows without a known source are not part of it.
        elsewhere = DataSource("local images") if source else None
        evaluations = [
            replace(evaluation, dataset=evaluation.dataset or elsewhere)
            for (step, *_), evaluation in self._evaluations.items()
            if step == self._step
        ]
        targets = self.learned_targets()
        hyperparameters = self.hyperparameters(self.args, class_targets=bool(targets))
        hyperparameters |= self.model.hyperparameters() if is_adapted(self.model) else {}
        known = {"evaluations": evaluations, "hyperparameters": hyperparameters, "license": self.args.hub_license}
        if targets:
            known["targets"] = targets
        return StudentFacts(**{**known, **dataset_facts(source, **about), **facts})


def check_repo(args: MadkdTrainingArguments, **changed: Any) -> str:
    """See whether a push can succeed: the first process asks the Hub, and all get its answer, the repo's whole name.

    Args:
        changed: see `MadkdTrainingArguments.hub_repo`.

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
