"""Make a Space of a student: a page on which anybody can try it, in the browser or on a server, and see its reasons.

Leaves in --output_dir a folder that runs at once. A static Space needs no server: transformers.js runs the student in
the visitor's browser, and no image leaves it. Any web server shows it:

    madkd space runs/student --dataset runs/labelled --output_dir runs/space
    python -m http.server --directory runs/space

Its JavaScript comes from a CDN, each file checked against a pinned sum; --offline_assets brings it along. A Gradio
Space runs on a server, in Python:

    madkd space runs/student --kind gradio --dataset runs/labelled --output_dir runs/gradio
    pip install gradio -r runs/gradio/requirements.txt && python runs/gradio/app.py

With --push_to_hub, it is published in one commit. The student may be a folder, or a Hub id; what `madkd export` made
of it is taken as it is, and stays on the Hub where anybody may read it there:

    madkd space you/student --dataset you/birds --output_dir runs/space --push_to_hub --hub_space_id you/birds-space
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..spaces import GRADIO, KIND, NAMES, STATIC
from ..students.base.fields import option
from ..text import terminal
from .arguments import CommandParser, DatasetArguments, HubArguments, existing_folder
from .example_images import example_rows
from .options import check_paths
from .outputs import check_place, working_in


if TYPE_CHECKING:
    from PIL import Image

    from ..hub.upload import HubRepo
    from ..spaces.card import SpaceFacts
    from ..spaces.model import SpaceModel


BASELINE_IMAGES = 64  # whose mean answers the reasons are against
MOST_EXAMPLES = 24


@dataclass
class SpaceArguments(DatasetArguments, HubArguments):
    """What the Space shows, and where it runs."""

    _argument_group_name = "space"

    student: str = option("", "The student: a folder or a Hub id; the first word of the command may be it.")
    student_revision: str | None = option(None, "Branch, tag or commit of the student on the Hub.")
    output_dir: str = option("", "The folder for the Space: a new one, or one that this command wrote.")
    kind: Literal["static", "gradio"] = option(STATIC, "Where it runs: in the browser alone, or on a server.")
    title: str | None = option(None, "Of the page; by default the student's name.")
    split: str | None = option(None, "The split of the dataset whose images are used; by default its last.")
    examples: int = option(6, "How many images of the dataset to try it with.")
    model_id: str | None = option(None, "Hub id of the student to link to, where it is a folder here.")
    offline_assets: str | None = option(
        None, "A folder with the JavaScript of a static Space, to bring it along, as `npm pack` fetches it."
    )
    push_to_hub: bool = option(False, "Publish the Space, in one commit.")
    hub_space_id: str | None = option(None, "Where: owner/name, or a name of your own.")
    hub_license: str | None = option(None, "A licence, as the Hub calls it.")


def check(args: SpaceArguments) -> None:
    """Refuse what needs no loading to be seen."""
    if not args.student:
        raise ValueError("No student given: pass its folder or its Hub id, as in `madkd space runs/student ...`.")
    check_paths(["--student", args.student])
    if not 0 <= args.examples <= MOST_EXAMPLES:
        raise ValueError(f"--examples is {args.examples}: expected 0 to {MOST_EXAMPLES} images, as 6.")
    if args.split and not args.dataset:
        raise ValueError("--split is about the images of a dataset: pass --dataset.")
    if args.offline_assets and args.kind != STATIC:
        raise ValueError(f"--offline_assets is for a Space in the browser, and --kind is {args.kind}: leave one out.")
    check_place(args.output_dir, args, KIND, NAMES)
    if args.push_to_hub and args.hub_space_id is None:
        raise ValueError("No name for the Space on the Hub given: pass --hub_space_id owner/name.")
    if args.push_to_hub:
        repo(args).check(args.hub_license)


def repo(args: SpaceArguments) -> HubRepo:
    """Where the Space is published."""
    from ..hub.upload import HubRepo

    return HubRepo(args.hub_space_id, "space", **args.repo_settings, space_sdk=args.kind)


def images(args: SpaceArguments) -> list[tuple[Image.Image, str]]:
    """Images of the dataset and their classes, as many of each class as of others; none where no dataset is named."""
    if not args.dataset:
        return []
    from ..data.check import loaded_images
    from ..data.columns import read_labels

    rows, split = example_rows(args, BASELINE_IMAGES)
    labels, _ = read_labels(rows, "label")
    shown = ["" if label is None else str(label) for label in labels or [None] * len(rows)]
    return list(zip(loaded_images(rows, args.image_column, split), shown))


def facts(args: SpaceArguments) -> SpaceFacts:
    """What the page links to: repos of the Hub, as far as they are named."""
    from ..hub.sources import HUB_ID
    from ..spaces.card import SpaceFacts

    here = existing_folder(args.student)
    model = args.model_id or (None if here else args.student)
    is_hub_dataset = args.dataset and existing_folder(args.dataset) is None and HUB_ID.fullmatch(args.dataset)
    name = here.resolve().name if here else args.student.rpartition("/")[2]
    return SpaceFacts(
        args.title or name, [model] if model else [], [args.dataset] if is_hub_dataset else [], args.hub_license
    )


def spread(found: list[tuple[Image.Image, str]], count: int) -> list[tuple[Image.Image, str]]:
    """The first `count`, each of another class as long as there are any."""
    turn: dict[str, int] = {}
    order = []
    for place, (_, text) in enumerate(found):
        turn[text] = turn.get(text, 0) + 1
        order.append((turn[text], place))
    return [found[place] for _, place in sorted(order)[:count]]


def print_summary(args: SpaceArguments, model: SpaceModel) -> None:
    """Print how the export agrees, and what is missing for reasons."""
    if model.agreement:
        print(f"{args.student} as ONNX: {model.agreement}.")
    if model.because is None:
        print("This model answers no questions: the Space shows its classes, and no reasons.")
    elif model.against_made_up:
        print("The reasons are against answers about made-up images: pass --dataset for the average of yours.")


def main() -> None:
    (args,) = CommandParser(SpaceArguments, description=__doc__, first="student").parse()
    check(args)
    from ..spaces.assets import find_assets
    from ..spaces.model import prepared
    from ..spaces.space import push_space, write_space

    assets = find_assets(args.offline_assets) if args.offline_assets else None
    links, found = facts(args), images(args)
    with prepared(args.student, args.student_revision, [image for image, _ in found]) as model:
        print_summary(args, model)
        with working_in(args.output_dir, args, KIND, NAMES):
            write_space(model, args.output_dir, args.kind, links, spread(found, args.examples), assets)
            if args.push_to_hub:
                commit = push_space(args.output_dir, args.kind, model, links, repo(args))
                print(f"Published: {terminal(commit.pr_url or commit.repo_url)}")
    folder = Path(args.output_dir)
    run = {
        STATIC: f"`python -m http.server --directory {folder}` shows it at http://localhost:8000",
        GRADIO: f"`pip install gradio -r {folder}/requirements.txt && python {folder}/app.py` runs it",
    }[args.kind]
    print(f"The Space is in {folder}: {run}.")
