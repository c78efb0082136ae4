"""Export a student to ONNX, OpenVINO or ExecuTorch, compared with PyTorch before it is called done.

Leaves in --output_dir what transformers.js and optimum read: config.json, preprocessor_config.json, the plain weights,
and onnx/model.onnx beside them. With --aspects, the answers are a second output, aspect_logits:

    madkd export runs/student --format onnx --output_dir runs/exported
    madkd export runs/student --aspects true --dataset runs/labelled --split validation --output_dir runs/exported

With --int8, onnx/model_quantized.onnx too, calibrated on half of the images; how often it agrees is printed:

    madkd export runs/student --int8 true --dataset runs/labelled --images 400 --output_dir runs/exported

For others, in one commit with the weights and a card:

    madkd export runs/student --output_dir runs/exported --push_to_hub --hub_model_id you/student-onnx
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..exporting import KIND, NAMES
from ..students.base.fields import option
from ..text import terminal
from .arguments import CommandParser, DatasetArguments, HubArguments
from .example_images import example_rows
from .options import check_paths
from .outputs import check_place, working_in


if TYPE_CHECKING:
    from PIL import Image
    from transformers import PreTrainedModel


INT8_IMAGES = 256


@dataclass
class ExportArguments(DatasetArguments, HubArguments):
    """What to export, and how."""

    _argument_group_name = "export"

    student: str = option("", "The student: a folder or a Hub id; the first word of the command may be it.")
    student_revision: str | None = option(None, "Branch, tag or commit of the student on the Hub.")
    output_dir: str = option("", "The folder for the export: a new one, or one that this command wrote.")
    format: Literal["onnx", "openvino", "executorch"] = option("onnx", "What to export to.")
    aspects: bool = option(False, "Give the answers to the questions, too, as a second output.")
    int8: bool = option(False, "Make an 8-bit ONNX model as well, calibrated on images of the dataset.")
    split: str | None = option(None, "The split of the dataset whose images are used; by default its last.")
    images: int | None = option(
        None, f"How many images to compare on, drawn by limit's rule; by default 32, and {INT8_IMAGES} with int8."
    )
    push_to_hub: bool = option(False, "Publish the export with the plain weights and a card, in one commit.")
    hub_model_id: str | None = option(None, "Where: owner/name, or a name of your own.")
    hub_license: str | None = option(None, "A licence, as the Hub calls it.")


def check(args: ExportArguments) -> None:
    """Refuse what needs no loading to be seen."""
    from ..exporting.formats import FORMATS
    from ..hub.upload import HubRepo

    if not args.student:
        raise ValueError("No student given: pass its folder or its Hub id, as in `madkd export runs/student ...`.")
    check_paths(["--student", args.student])
    if args.int8 and not args.dataset:
        raise ValueError("An 8-bit model is calibrated on images: pass --dataset with some, or leave out --int8.")
    if args.int8 and args.format != "onnx":
        raise ValueError(f"--int8 makes an ONNX model, and --format is {args.format}: pass --format onnx.")
    if args.images is not None and args.images < 2:
        raise ValueError(f"--images is {args.images}: expected 2 or more to compare on.")
    if not args.dataset and (args.images or args.split):
        raise ValueError("--images and --split are about the images of a dataset: pass --dataset.")
    check_place(args.output_dir, args, KIND, NAMES)
    FORMATS[args.format].check_installed()
    if args.push_to_hub and args.hub_model_id is None:
        raise ValueError("No name for the export on the Hub given: pass --hub_model_id owner/name.")
    if args.push_to_hub:
        HubRepo(args.hub_model_id, "model", **args.repo_settings).check(args.hub_license)


def pictures(args: ExportArguments) -> list[Image.Image]:
    """The images of the dataset that are compared on; none where none is named."""
    if not args.dataset:
        return []
    from ..data.check import loaded_images

    rows, split = example_rows(args, args.images or (INT8_IMAGES if args.int8 else 32))
    return loaded_images(rows.select_columns(args.image_column), args.image_column, split)


def check_student(args: ExportArguments, model: PreTrainedModel) -> None:
    """Refuse to publish what is no student, of which there would be nothing to tell."""
    if args.push_to_hub and not hasattr(model.config, "aspect_bank"):
        raise ValueError(
            f"{args.student} is a plain model, and only students are published from here: leave out --push_to_hub, "
            f"and upload {args.output_dir} with `hf upload`."
        )


def publish(args: ExportArguments, model: PreTrainedModel) -> None:
    from ..hub.cards.student import StudentFacts
    from ..hub.student import push_exported
    from ..hub.upload import HubRepo

    repo = HubRepo(args.hub_model_id, "model", **args.repo_settings)
    tags = ("onnx", "transformers.js") if args.format == "onnx" else (args.format,)
    facts = StudentFacts(license=args.hub_license, tags=tags)
    commit = push_exported(args.output_dir, model, repo, facts)
    print(f"Published: {terminal(commit.pr_url or commit.repo_url)}")


def main() -> None:
    (args,) = CommandParser(ExportArguments, description=__doc__, first="student").parse()
    check(args)
    from ..exporting.student import export_student, load_for_export

    revision = {"revision": args.student_revision} if args.student_revision else {}
    model, processor = load_for_export(args.student, args.aspects, **revision)
    check_student(args, model)
    images = pictures(args)
    with working_in(args.output_dir, args, KIND, NAMES):
        exported = export_student(model, processor, args.output_dir, args.format, args.aspects, images, args.int8)
        made_up = "" if images else " (made-up images: pass --dataset for yours)"
        print(f"{exported.path}: {exported.agreement}{made_up}.")
        if exported.quantized:
            print(f"{exported.quantized}: {exported.quantized_agreement}.")
        if args.push_to_hub:
            publish(args, model)
    print(f"The export is in {Path(args.output_dir)}, with the plain model, its configuration and image processor.")
