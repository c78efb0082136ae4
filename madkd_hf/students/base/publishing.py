"""What a Trainer finds out about a student while it trains, and how both are published: one commit, one card."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from huggingface_hub import CommitInfo
from transformers.trainer_utils import EvalLoopOutput

from ...hub.cards.results import Evaluation
from ...hub.cards.student import StudentFacts, dataset_facts, write_card
from ...hub.retries import HubError
from ...hub.sources import DataSource, how_drawn
from ...hub.student import push_student
from .saved import ADAPTER, is_adapted
from .saving import SavingTrainer
from .training_args import MadkdTrainingArguments


class PublishedTrainer(SavingTrainer):
    """A Trainer that changes the Hub by nothing but a push, and a push is one commit with the finished student."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._found: dict[tuple, Evaluation] = {}  # by step, name and dataset
        super().__init__(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._found.clear()  # of other weights
        return super().train(*args, **kwargs)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As usual, and what was found is kept for the card."""
        output = self._measured(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        auroc = output.metrics.pop(f"{metric_key_prefix}_per_aspect", None)
        if output.label_ids is None:
            return output  # nothing to tell, and no reason to forget what labelled images of that split have told
        metrics = {key.removeprefix(f"{metric_key_prefix}_"): value for key, value in output.metrics.items()}
        rows = getattr(dataloader.dataset, "rows", dataloader.dataset)
        source, split = DataSource.of(rows), getattr(rows, "split", None)
        drawn = how_drawn(rows)
        same_dataset = DataSource.of(self.train_dataset) in (None, source)
        if same_dataset and split == getattr(self.train_dataset, "split", None):
            split = None  # a part of the training split still calls itself that
        names = {"eval": split or "validation", "test": split or "test"}
        name = str(names.get(metric_key_prefix, metric_key_prefix.removeprefix("eval_")))
        self._found[self._step, name, source] = Evaluation(
            name, metrics, output.num_samples, None if split is None or drawn else str(split), auroc, source, drawn
        )
        return output

    def _measured(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None,
        ignore_keys: list[str] | None,
        metric_key_prefix: str,
    ) -> EvalLoopOutput:
        """What the evaluation loop finds; `per_aspect` may be among its metrics."""
        return super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)

    @property
    def _step(self) -> int:
        """The training step of the weights as they are."""
        best = self.state.best_global_step if self.args.load_best_model_at_end else None
        return self.state.global_step if best is None or self.is_in_train else best

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
            write_card(
                self.args.output_dir, self.accelerator.unwrap_model(self.model), repo, self._facts(facts), plain
            )

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
        trained = self.accelerator.unwrap_model(self.model)
        adapted = is_adapted(trained)
        student = type(trained.get_base_model() if adapted else trained).from_pretrained(self.args.output_dir)
        return push_student(
            student,
            self.processing_class,
            replace(repo, repo_id=self.hub_model_id),
            self._facts(facts),
            plain=self.args.push_plain if plain is None else plain,
            adapter=Path(self.args.output_dir) / ADAPTER if adapted else None,
            commit_message=commit_message or "End of training",
            blocking=blocking,
        )

    def _facts(self, given: dict[str, Any]) -> StudentFacts:
        """What the trainer knows, under what the caller says."""
        facts = {name: value for name, value in given.items() if value is not None and name != "tasks"}
        source = DataSource.of(self.train_dataset)
        about = {name: facts.pop(name) for name in ("dataset", "dataset_tags", "dataset_args") if name in facts}
        if isinstance(facts.get("tags"), str):
            facts["tags"] = [facts["tags"]]
        # Beside rows that are known to come from a dataset of the Hub, others that are not are no part of it.
        elsewhere = DataSource("local images") if source else None
        known = {
            "evaluations": [
                replace(found, dataset=found.dataset or elsewhere)
                for (step, *_), found in self._found.items()
                if step == self._step
            ],
            "hyperparameters": self._hyperparameters(),
            "license": self.args.hub_license,
        }
        return StudentFacts(**{**known, **dataset_facts(source, **about), **facts})

    def _hyperparameters(self) -> dict[str, Any]:
        """What decides the student, for its card."""
        return self.args.hyperparameters() | (self.model.hyperparameters() if is_adapted(self.model) else {})

    def _check_processor(self) -> None:
        if self.processing_class is None:
            raise HubError(
                "There is no image processor to publish with the student: pass it as processing_class, beside your "
                "data_collator."
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
    told: list[Any] = [None, None]
    if args.process_index == 0:
        try:
            told[0] = args.hub_repo(**changed).check(args.hub_license).repo_id
        except HubError as error:
            told[1] = str(error)
    if args.world_size > 1:
        broadcast_object_list(told)
    if told[1]:
        raise HubError(told[1])
    return told[0]
