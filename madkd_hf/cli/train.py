"""Train a student: classes alone, or classes and aspects.

The aspects come with the dataset (written by attach_aspects.py), or a teacher answers the bank's questions about the
training images first. Leaves in --output_dir a student that `from_pretrained` and `pipeline` load, and
all_results.json.

    accelerate launch recipes/train_student.py --config recipes/easy_vqa/distill.yaml --output_dir runs/student
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate.utils import broadcast_object_list
from datasets import Dataset, DatasetDict
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback

from .. import AspectBank, MadkdForImageClassification, MadkdTrainer, MadkdTrainingArguments
from ..data.variants import control_answers
from ..files import whole_file, write_whole, writing
from ..hub.cards.comparison import read_comparison
from ..hub.sources import DataSource
from ..labelling import FailedOnOtherRank
from ..metrics import OF_ASPECTS, OF_CLASSES, joined
from ..students.base import checkpoints
from ..students.base.finite import TrainingDiverged
from ..students.base.processors import load_image_processor
from ..students.base.publishing import PublishedTrainer
from ..students.base.saved import load_saved
from ..students.base.saving import SavingError
from ..students.base.settings import check_metric
from ..text import terminal
from . import preflight
from .arguments import ClassArguments, DatasetArguments, RecipeParser, source
from .outputs import STUDENT, check_place, working_in
from .preflight import Classes, Ready
from .results import forget_damaged_results, tell_damage
from .splits import check_count, readable_splits, warn_of_absent, with_class_labels, with_validation
from .teachers import OwnTeacherArguments, attach


WAITING = "waits_for_hub.json"  # in the output folder, from the end of the training to the push
PREDICTIONS = "test_predictions.npz"  # class logits [n, C], labels [n] if known, row numbers [n] if some were left out
TASK = Classes((*OF_CLASSES, *OF_ASPECTS))
OF_PUBLISHING = ("hub_", "push_", "comparison")


@dataclass
class LoraArguments:
    """Adapters in a backbone that stays as it is, in place of training it whole; needs peft."""

    _argument_group_name = "LoRA"

    lora_rank: int = field(
        default=0, metadata={"help": "Rank of the adapters; the head is trained in full; 0 trains the whole student."}
    )
    lora_alpha: int = field(default=16, metadata={"help": "The adapters are scaled by lora_alpha / lora_rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapters."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"],
        metadata={
            "help": "Layers that get one, by the ends of their names: q_proj v_proj; all-linear for all linear."
        },
    )

    def peft_config(self) -> Any:
        """A `LoraConfig`, or None."""
        if self.lora_rank == 0:
            return None
        from ..students.classification.lora import ALL_LINEAR, LoraConfig

        targets = ALL_LINEAR if self.lora_target_modules == [ALL_LINEAR] else self.lora_target_modules
        return LoraConfig(
            r=self.lora_rank, lora_alpha=self.lora_alpha, lora_dropout=self.lora_dropout, target_modules=targets
        )

    def hyperparameters(self) -> dict[str, Any]:
        """For a card, as `LoraStudent` tells them."""
        values = {**asdict(self), "lora_target_modules": ", ".join(sorted(self.lora_target_modules))}
        return values if self.lora_rank else {}


@dataclass
class StudentArguments(OwnTeacherArguments, ClassArguments):
    """The student and its data."""

    _argument_group_name = "student and data"

    backbone: str = field(
        default="microsoft/resnet-18",
        metadata={"help": "Any image-classification architecture of transformers: a Hub id, or a folder."},
    )
    pretrained: bool = field(
        default=True, metadata={"help": "Start from the backbone's weights; false takes its architecture alone."}
    )
    aspect_control: Literal["none", "shuffled", "constant"] = field(
        default="none",
        metadata={
            "help": "Controls that a real gain must beat: aspects of other images (shuffled), or each aspect's mean "
            "for all (constant)."
        },
    )
    comparison: str | None = field(
        default=None,
        metadata={"help": "Output folder of compare.py, whose results go into the card of a published student."},
    )
    lora: LoraArguments = field(default_factory=LoraArguments, init=False)


def parse(args: list[str] | None = None) -> tuple[StudentArguments, MadkdTrainingArguments]:
    parser = RecipeParser(StudentArguments, LoraArguments, MadkdTrainingArguments, description=__doc__)
    student, lora, training_args = parser.parse(args)
    student.lora = lora
    return student, training_args


def train(args: StudentArguments, training_args: MadkdTrainingArguments, ready: Ready | None = None) -> MadkdTrainer:
    """Train, evaluate and save one student, and publish nothing; the trainer's `state.log_history` holds its curves.

    With --push_to_hub, it first looks whether publishing can succeed; a student that is only waiting for that is not
    trained again.
    """
    ready = ready or look(TASK, args, training_args)
    peft_config = args.lora.peft_config()
    set_seed(training_args.seed)
    checkpoint = find_checkpoint(training_args)
    splits, train_set, bank = prepare(args, training_args, ready)
    decides = what_decides(args, training_args, train_set, bank)
    waiting = waits_for_hub(training_args, decides)
    if waiting and peft_config is None:
        model = MadkdForImageClassification.from_pretrained(training_args.output_dir)
    else:
        model = MadkdForImageClassification.from_backbone(
            args.backbone,
            id2label=dict(enumerate(train_set.features[args.label_column].names)),
            bank=bank,
            pretrained=args.pretrained,
        )
    if args.comparison:
        read_comparison(args.comparison, model.config)
    trainer = MadkdTrainer(
        model,
        training_args,
        train_dataset=train_set,
        eval_dataset=splits[args.eval_split],
        processing_class=load_image_processor(args.backbone),
        image_column=args.image_column,
        label_column=args.label_column,
        peft_config=peft_config,
    )
    if waiting and peft_config is not None:
        load_saved(trainer.model, training_args.output_dir)
    test_split = args.test_split if training_args.do_predict else None
    return fit_and_measure(trainer, None if waiting else decides, checkpoint, ready, test_split, predict)


def look(task: Any, args: Any, training_args: MadkdTrainingArguments, *checks: Callable[[], Any]) -> Ready:
    """Whatever can be known to be wrong is told before anything begins; the rows to work with, looked at."""
    return preflight.student(
        task,
        args,
        training_args,
        partial(check_metric, training_args, task.metrics),
        *checks,
        partial(check_publishing, args, training_args),
        partial(checkpoints.find_checkpoint, training_args.resume_from_checkpoint, training_args.output_dir),
    )


def prepare(
    args: StudentArguments, training_args: MadkdTrainingArguments, ready: Ready | None = None
) -> tuple[DatasetDict, Dataset, AspectBank | None]:
    """All splits, the rows to train on, and the bank that their answers belong to."""
    splits = (ready or look(TASK, args, training_args)).splits
    with training_args.main_process_first(desc="preparing the data"):
        train_set = splits[args.train_split]
        if args.images_per_class is not None:
            train_set = draw(train_set, args.label_column, args.images_per_class, training_args.seed)
        warn_of_absent(train_set.features[args.label_column], set(train_set[args.label_column]))
        train_set, bank = attach(train_set, args, training_args.aspect_alpha)
    if args.aspect_control != "none":
        train_set = control_answers(train_set, args.aspect_control, training_args.seed)
    return splits, train_set, bank


def fit_and_measure(
    trainer: PublishedTrainer,
    decides: dict[str, Any] | None,
    checkpoint: str | bool | None,
    ready: Ready,
    test_split: str | None,
    predict: Callable[[PublishedTrainer, Dataset, np.ndarray | None], dict[str, float]],
) -> PublishedTrainer:
    """Train (unless `decides` is None: a student that waits for the Hub), save, evaluate, predict; log it all."""
    trainer.remove_callback(PrinterCallback)
    metrics = {} if decides is None else {"train": fit(trainer, checkpoint, decides)}
    metrics["eval"] = trainer.evaluate()
    if test_split is not None:
        metrics["test"] = predict(trainer, ready.splits[test_split], ready.kept_rows(test_split))
    for split, values in metrics.items():
        trainer.log_metrics(split, values)
        if trainer.is_world_process_zero():
            forget_damaged_results(Path(trainer.args.output_dir))
        trainer.save_metrics(split, values)
    if ready.left_out and trainer.is_world_process_zero():
        path = Path(trainer.args.output_dir) / "all_results.json"
        results = json.loads(path.read_text(encoding="utf-8")) | {"left_out": ready.summary}
        write_whole(path, json.dumps(results, indent=4, sort_keys=True))
    return trainer


def fit(trainer: PublishedTrainer, checkpoint: str | bool | None, decides: dict[str, Any]) -> dict[str, float]:
    """Train and save; with --push_to_hub, what is saved waits from here on for the Hub."""
    folder, first = Path(trainer.args.output_dir), trainer.is_world_process_zero()
    try:
        metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
        if first:
            (folder / WAITING).unlink(missing_ok=True)  # other weights from here on
        trainer.save_model(_internal_call=True)  # the Trainer would publish it here, before it is measured
    except (TrainingDiverged, SavingError):
        if first:
            raise
        raise FailedOnOtherRank from None  # all processes know, and one says it
    trainer.save_state()
    if first:
        (folder / "all_results.json").unlink(missing_ok=True)  # save_metrics adds to it: those of an earlier student
        if trainer.args.push_to_hub:
            write_whole(folder / WAITING, ticket(folder, decides))
    return metrics


def predict(trainer: MadkdTrainer, rows: Dataset, kept: np.ndarray | None) -> dict[str, float]:
    """Metrics on the test images; what was predicted for each stays beside the student.

    Args:
        kept: the numbers of these rows in the dataset, where images were left out.
    """
    output = trainer.predict(rows)
    if trainer.is_world_process_zero():
        found = {"logits": output.predictions, "labels": output.label_ids}
        found = {name: joined(values) for name, values in found.items() if values is not None}
        found = {name: values[0] if isinstance(values, tuple) else values for name, values in found.items()}
        found |= {} if kept is None else {"rows": kept}
        path = Path(trainer.args.output_dir) / PREDICTIONS
        with writing(path), whole_file(path) as file:
            np.savez_compressed(file, **found)
    return output.metrics


def check_publishing(args: StudentArguments, training_args: MadkdTrainingArguments) -> None:
    """What would keep the student from being published is told before it is trained."""
    if args.comparison:
        read_comparison(args.comparison)
    if training_args.push_to_hub:
        training_args.hub_repo().check(training_args.hub_license)  # in one process: the others wait for its word


def what_decides(
    args: StudentArguments, training_args: MadkdTrainingArguments, rows: Dataset, bank: AspectBank | None
) -> dict[str, Any]:
    """What decides a student: all that was asked for but where to publish it, and its data; the token is not in it."""
    asked = {**asdict(args), **training_args.to_dict()}
    asked = {name: value for name, value in asked.items() if not name.startswith(OF_PUBLISHING)}
    return {"asked": asked, "rows": rows._fingerprint, "bank": bank and bank.fingerprint}


def ticket(folder: Path, decides: dict[str, Any]) -> str:
    """What a student that waits for the Hub is known by: what decided it, and its weights."""
    weights = {path.name: path.read_bytes() for path in sorted(folder.glob("model*.safetensors"))}
    saved = {name: hashlib.sha256(content).hexdigest() for name, content in weights.items()}
    return json.dumps({**decides, "weights": saved}, indent=2)


def waits_for_hub(training_args: MadkdTrainingArguments, decides: dict[str, Any]) -> bool:
    """Whether the same command has left a student here that could not be published; the first process looks."""
    folder, found = Path(training_args.output_dir), [False]
    if training_args.process_index == 0 and training_args.push_to_hub and (folder / WAITING).is_file():
        found = [(folder / WAITING).read_bytes() == ticket(folder, decides).encode()]
        if not found[0]:
            tell_damage(folder / WAITING, "note of a student that waits for the Hub", "a student is trained again")
    if training_args.world_size > 1:
        broadcast_object_list(found)
    return found[0]


def publish(trainer: MadkdTrainer, args: StudentArguments) -> str | None:
    """One commit with the student and its card; returns where it is, in the first process."""
    commit = trainer.push_to_hub(comparison=args.comparison, dataset=about_dataset(args, trainer.train_dataset))
    if commit is None:
        return None
    (Path(trainer.args.output_dir) / WAITING).unlink(missing_ok=True)
    return commit.pr_url or commit.repo_url


def about_dataset(args: DatasetArguments, rows: Dataset) -> DataSource:
    """Rows of a folder may still know which dataset of the Hub they came from."""
    named = source(args)
    return DataSource.of(rows) or DataSource(named["id"], named["commit"], named["config"])


def find_checkpoint(training_args: MadkdTrainingArguments) -> str | bool | None:
    """What --resume_from_checkpoint means for the trainer, once there is a whole checkpoint to go on from."""
    asked, failed = training_args.resume_from_checkpoint, [None]
    if training_args.process_index == 0:
        try:
            checkpoints.find_checkpoint(asked, training_args.output_dir)
        except ValueError as error:
            failed = [str(error)]
    if training_args.world_size > 1:
        broadcast_object_list(failed)
    if failed[0]:
        raise FailedOnOtherRank if training_args.process_index else ValueError(failed[0])
    words = {"true": True, "false": None}
    return words.get(str(asked).lower(), asked)


def prepare_splits(splits: DatasetDict, args: ClassArguments, seed: int) -> DatasetDict:
    """Images that can be read and class labels in every split, and a validation split."""
    splits = with_class_labels(readable_splits(splits, args), args.label_column, args.train_split)
    return with_validation(splits, args, seed, args.label_column)


def draw(rows: Dataset, label_column: str, images_per_class: int, seed: int) -> Dataset:
    """The same number of images of each class, by seed.

    Raises:
        ValueError: classes have too few; all of them are named.
    """
    check_count(rows, label_column, images_per_class)
    labels = np.array(rows[label_column])
    generator = np.random.default_rng(seed)
    drawn = []
    for index in range(rows.features[label_column].num_classes):
        (of_class,) = np.nonzero(labels == index)
        drawn.append(generator.choice(of_class, images_per_class, replace=False))
    return rows.select(np.concatenate(drawn))


def main() -> None:
    args, training_args = parse()
    place = (training_args.output_dir, args, "student", STUDENT)
    ready = look(TASK, args, training_args, partial(check_place, *place))
    with working_in(*place, training_args.process_index == 0):
        _train_and_publish(args, training_args, ready)


def _train_and_publish(args: StudentArguments, training_args: MadkdTrainingArguments, ready: Ready) -> None:
    trainer = train(args, training_args, ready)
    if trainer.is_world_process_zero():
        task = "aspect-classification" if trainer.model.config.num_aspects else "image-classification"
        print(
            f"The student is in {training_args.output_dir}; its numbers in "
            f"{Path(training_args.output_dir) / 'all_results.json'}. Use it:\n"
            f'  pipeline("{task}", "{training_args.output_dir}", trust_remote_code=True)'
        )
    if training_args.push_to_hub and (url := publish(trainer, args)):
        print(f"Published: {terminal(url)}")
