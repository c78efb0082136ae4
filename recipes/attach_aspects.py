"""Label a dataset with the answers of a multimodal LLM to a bank of yes/no questions.

Leaves in --output_dir what `datasets.load_from_disk` reads, with the columns aspect_logits, aspect_mass and
aspect_bank, and the bank itself as aspects.json. Run again, it takes up what is done.

    python recipes/attach_aspects.py --config recipes/easy_vqa/attach.yaml --output_dir runs/labelled
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from common import BankArguments, DatasetArguments, RecipeParser, load_splits, run
from datasets import DatasetDict

from madkd_hf import AspectBank, AspectTeacher, attach_aspects
from madkd_hf.aspects import BANK_FILE


@dataclass
class AttachArguments(BankArguments, DatasetArguments):
    """What to label, and how to read the answers."""

    _argument_group_name = "labelling"

    output_dir: str = field(default="", metadata={"help": "The folder for the labelled dataset."})
    splits: list[str] = field(
        default_factory=lambda: ["train"],
        metadata={"help": "Splits to label; the others keep null answers, so that all have one schema."},
    )
    dtype: str = field(default="auto", metadata={"help": "What the teacher computes in: auto, float32, bfloat16, ..."})
    device: str | None = field(
        default=None, metadata={"help": "Where it computes; by default an accelerator, if any."}
    )
    strategy: str = field(
        default="auto",
        metadata={"help": "How questions share work: full, shared_vision, or auto. The answers are the same."},
    )
    prompt: str | None = field(
        default=None, metadata={"help": "The user turn, with {question} where the question goes."}
    )
    answer_tokens: list[str] | None = field(
        default=None,
        metadata={"help": "Two words to read instead of every spelling of yes and of no; the paper's own: Yes No."},
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the teacher."})


def label(args: AttachArguments, splits: DatasetDict | None = None) -> tuple[DatasetDict, AspectBank, AspectTeacher]:
    """The labelled splits (of `args.dataset`, or those given), the bank with its provenance, and the teacher."""
    for name in ("bank", "teacher"):
        if getattr(args, name) is None:
            raise ValueError(f"No {name} given: pass --{name} (see --help).")
    bank = AspectBank.load(args.bank)
    options = {"prompt": args.prompt, "answer_tokens": args.answer_tokens and tuple(args.answer_tokens)}
    teacher = AspectTeacher.from_pretrained(
        args.teacher,
        revision=args.teacher_revision,
        dtype=args.dtype,
        device=args.device,
        strategy=args.strategy,
        trust_remote_code=args.trust_remote_code,
        **{name: value for name, value in options.items() if value is not None},
    )
    splits = load_splits(args) if splits is None else splits
    labelled = attach_aspects(splits, bank, teacher, args.image_column, args.splits, args.work_dir)
    return labelled, AspectBank(bank.aspects, teacher.provenance), teacher


def save(labelled: DatasetDict, bank: AspectBank, output_dir: str | Path) -> None:
    """Write dataset and bank; the bank comes last, so that a folder with a bank is complete."""
    (Path(output_dir) / BANK_FILE).unlink(missing_ok=True)
    labelled.save_to_disk(output_dir)
    bank.save(output_dir)


def main() -> None:
    (args,) = RecipeParser(AttachArguments, description=__doc__).parse()
    if not args.output_dir:
        raise ValueError("No output folder given: pass --output_dir.")
    if Path(args.output_dir).resolve() == Path(args.dataset).resolve():
        raise ValueError(f"{args.output_dir} holds the dataset itself: pass another --output_dir.")
    labelled, bank, _ = label(args)
    save(labelled, bank, args.output_dir)
    print(
        f"{len(bank)} answers for each image of {', '.join(args.splits)} are in {args.output_dir}. Next:\n"
        f"  python recipes/train_student.py --dataset {args.output_dir} --backbone microsoft/resnet-18 "
        "--output_dir runs/student"
    )


if __name__ == "__main__":
    run(main)
