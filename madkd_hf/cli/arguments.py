"""What all commands share: options, YAML under the command line, and datasets by name."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
import os
import shlex
import sys
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from ..data.names import dataset_commit, looks_like_path, similar
from ..students.base.fields import option
from ..text import terminal_lines
from .options import OptionParser


if TYPE_CHECKING:
    from datasets import DatasetDict, IterableDatasetDict


def _argument_parser() -> type:
    """`HfArgumentParser`, loaded from its file alone: to import transformers takes a second."""
    folder = importlib.util.find_spec("transformers").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("hf_argparser", Path(folder, "hf_argparser.py"))
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (ImportError, OSError):  # another version, which has it elsewhere, or needs more
        module = importlib.import_module("transformers")
    return module.HfArgumentParser


HfArgumentParser = _argument_parser()
# options that name what must be here
FILES = ("answers", "baseline", "distill", "distill_unlabelled", "comparison", "class_names_file")
# options that may name a file or a folder
READ = ("dataset", "bank", "teacher", "class_teacher", "backbone", "detector", *FILES)
WRITTEN = ("output_dir", "work_dir")
SEVERAL = ("teacher",)  # options of one text that may come as several words, which are put together with spaces
GROUPS = {  # command -> its groups of options, in its module; those of a training depend on its task
    "label": ("LabelArguments",),
    "ask": ("ClassNameArguments", "QuestionArguments", "LLMArguments"),
    "choose": ("ChooseArguments",),
    "compare": ("CompareArguments", "TaskArguments"),
    "tune": ("TuneArguments",),
    "view": ("ViewArguments",),
    "export": ("ExportArguments",),
    "space": ("SpaceArguments",),
    "serve": ("ServeArguments",),
}
TRAINING_OPTIONS = {"backbone", "detector", "aspect_alpha", "learning_rate", "num_train_epochs", "max_steps"}


@dataclass
class DatasetArguments:
    """Where the images come from."""

    dataset: str = option(
        "", "A Hub id, a folder (of save_to_disk, or one sub-folder of images per class), or module:function."
    )
    dataset_config: str | None = option(None, "Configuration of the Hub dataset.")
    dataset_revision: str | None = option(None, "Branch, tag or commit of the Hub dataset.")
    image_column: str = option("image", "The column of images.")
    limit: int | None = option(
        None, "Keep N rows of each split, drawn evenly of all classes, always the same; of a stream the first."
    )


@dataclass
class SplitArguments(DatasetArguments):
    """Which rows serve what."""

    train_split: str = option("train", "The split to train on; train+validation joins two.")
    eval_split: str = option(
        "validation", "The split for every choice; where missing or trained on, training images are kept for it."
    )
    test_split: str = option("test", "The split for the last number, and nothing else.")
    validation_fraction: float = option(
        0.1, "Share of the training images for validation, where there is no split; 0 keeps none."
    )
    test_fraction: float | None = option(
        None, "Share of the training images for the test, where there is no split: the same ones, whatever the seed."
    )


@dataclass
class ClassArguments(SplitArguments):
    """What an image shows, as a whole."""

    label_column: str = option("label", "The column of classes.")
    images_per_class: int | None = option(None, "Draw this many training images of each class, by the seed.")
    unlabelled: str | None = option(
        None, "Images to learn from without their class: a split of the dataset, or another dataset."
    )
    rest_unlabelled: bool = option(
        False, "Learn also from the training images that images_per_class leaves over, without their class."
    )
    unlabelled_images: int | None = option(
        None, "Draw this many of the images without a class, by the seed; by default all are learned from."
    )
    class_posterior: bool = option(
        False,
        "Give images without a class the classes that their answers speak for, by a logistic regression fitted on "
        "the images that have one.",
    )


@dataclass
class BoxArguments:
    """How objects are cut out of their images."""

    box_format: Literal["coco", "pascal_voc", "yolo"] = option(
        "coco",
        "In pixels: coco (x, y, width, height) or pascal_voc (left, top, right, bottom); as parts of the image: "
        "yolo (centre and size, 0 to 1).",
    )
    box_margin: float = option(0.1, "What the teacher sees around an object, as a part of its box's width and height.")
    box_padding: float | None = option(
        None, "Put the cut-out into a white square, with this much white on each side, as a part of its longer side."
    )


@dataclass
class ObjectArguments(BoxArguments):
    """Which objects an image shows, and where."""

    _argument_group_name = "objects"

    boxes_column: str = option("objects", "The column of objects, each with its bbox, as detection datasets have it.")
    category_field: str = option("category", "The field of the objects that holds their classes.")
    scenes: int | None = option(None, "Draw this many training images, by the seed.")

    @property
    def boxes(self) -> dict[str, Any]:
        """What `attach_aspects` has to know of them."""
        return {name: getattr(self, name) for name in ("boxes_column", *BoxArguments.__dataclass_fields__)}


@dataclass
class BankArguments:
    """Who asks, who answers, and what happens where nobody can."""

    bank: str | None = option(None, "The questions: an aspects.json, its folder, or a dataset id on the Hub.")
    teacher: str | None = option(
        None,
        "The MLLM that answers: any image-text-to-text model, by Hub id or folder; or the address of a server that "
        "has one (http://host:8000/v1), or several addresses.",
    )
    teacher_revision: str | None = option(None, "Branch, tag or commit of the teacher.")
    work_dir: str | None = option(
        None, "The folder of this one labelling job, to go on after a stop; by default in the datasets cache."
    )
    on_error: Literal["raise", "skip"] = option(
        "raise", "An image or box that cannot be read: stop and name it, or leave its answers null and train without."
    )


@dataclass
class HubArguments:
    """How something is published."""

    hub_private_repo: bool = option(True, "Whether a new repo is private.")
    hub_revision: str | None = option(None, "The branch to commit to; main by default.")
    hub_create_pr: bool = option(False, "Open a pull request instead of committing.")

    @property
    def repo_settings(self) -> dict[str, Any]:
        """What a `HubRepo` has to know of it."""
        return {"private": self.hub_private_repo, "revision": self.hub_revision, "create_pr": self.hub_create_pr}


class _Help(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Defaults beside the options, and the description as it is written."""


class CommandParser(HfArgumentParser):
    """An `HfArgumentParser` that reads a YAML file first and the command line over it, and refuses unknown names."""

    def __init__(self, *dataclass_types: type, description: str, first: str | None = None):
        """With `first`, the first word of the command line may be the value of that option, without its name."""
        self.first = first
        super().__init__(dataclass_types, description=description, formatter_class=_Help, allow_abbrev=False)
        self.add_argument("--config", metavar="FILE.yaml", help="YAML with any of the options here as keys.")
        for action in self._actions:
            if action.dest in SEVERAL:
                action.nargs = "+"

    @property
    def names(self) -> set[str]:
        """Of all options."""
        return {action.dest for action in self._actions}

    def error(self, message: str) -> None:
        """In one sentence, not behind the usage of 150 options."""
        raise ValueError(f"{message}; --help lists all options.")

    def parse(self, args: list[str] | None = None) -> tuple[Any, ...]:
        """One instance of each dataclass; `args` is the command line by default."""
        args = sys.argv[1:] if args is None else args
        if self.first and args and not args[0].startswith("-"):
            args = [f"--{self.first}", *args]
        config = OptionParser("--config").parse_known_args(args)[0].config
        from_file = [] if config is None else self._read(Path(config).expanduser(), args)
        *parsed, _, unknown = self.parse_args_into_dataclasses(
            [*from_file, *args], return_remaining_strings=True, look_for_args_file=False
        )
        if unknown:
            name = unknown[0].split("=")[0]
            raise ValueError(f"Unknown option {name}{self._suggest(name)}; --help lists them all.")
        for options in parsed:
            for name in SEVERAL:
                if isinstance(getattr(options, name, None), list):
                    setattr(options, name, " ".join(getattr(options, name)))
            for name in (*READ, *WRITTEN):
                if str(getattr(options, name, None)).startswith("~"):
                    setattr(options, name, os.path.expanduser(getattr(options, name)))
        return tuple(parsed)

    def check_names(self, argv: list[str]) -> None:
        """Raise ValueError for an option that there is not, whatever the values of the others."""
        for word in argv:
            name = word.partition("=")[0].lstrip("-").replace("-", "_")
            if word.startswith("--") and name and not self.names & {name, name.removeprefix("no_")}:
                raise ValueError(f"Unknown option --{name}{self._suggest(name)}; --help lists them all.")

    def _read(self, path: Path, args: list[str]) -> list[str]:
        """The options in a file as a command line has them; `args` are those that win over them."""
        if not path.is_file():
            raise ValueError(
                f"There is no config file {path}{similar(path)}: pass --config with a YAML file that exists."
            )
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path} holds {type(content).__name__}: expected lines of `option: value`.")
        known = self.names
        if unknown := [str(key) for key in content if key not in known]:
            if command := command_for(map(str, content), known):
                raise ValueError(
                    f"{path} has keys of `madkd {command}` ({', '.join(unknown[:3])}): pass it to that command, or "
                    "another --config."
                )
            raise ValueError(
                f"Unknown key {unknown[0]!r} in {path}{self._suggest(unknown[0])}; --help lists them all."
            )
        for key in READ:
            overridden = any(word == f"--{key}" or word.startswith(f"--{key}=") for word in args)
            if isinstance(content.get(key), str) and not overridden:
                content[key] = _beside_config(path, key, content[key])
        return [token for key, value in content.items() for token in tokens(key, value)]

    def _suggest(self, name: str) -> str:
        close = difflib.get_close_matches(name.lstrip("-").replace("-", "_"), sorted(self.names), n=1)
        return f": did you mean {close[0]!r}?" if close else ""


def command_for(options: Iterable[str], known: Iterable[str]) -> str | None:
    """The command that has all these options; two of a training that are not `known` to this one mean `train`."""
    options = set(options)
    command = next((command for command in GROUPS if options <= parser_of(command).names), None)
    return command or ("train" if len(options & TRAINING_OPTIONS - set(known)) > 1 else None)


def parser_of(command: str) -> CommandParser:
    """The parser of any command but `train`."""
    module = importlib.import_module(f"{__package__}.{command}")
    return CommandParser(*(getattr(module, name) for name in GROUPS[command]), description=module.__doc__)


def _beside_config(config: Path, key: str, value: str) -> str:
    """What an option of a config file names: beside that file, or else from the working directory or the Hub."""
    beside = config.parent / Path(value).expanduser()
    if value and beside.exists():
        return value if beside == Path(value) else str(beside)
    if value and not Path(value).exists() and (key in FILES or looks_like_path(value)):
        raise ValueError(
            f"{config} says `{key}: {value}`, and that is neither beside it nor in {Path.cwd()}{similar(beside)}: "
            "correct the path."
        )
    return value


def tokens(key: str, value: Any) -> list[str]:
    """A YAML entry as command-line words."""
    if value is None:
        return []
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)] if value else []
    return [f"--{key}={json.dumps(value) if isinstance(value, (dict, bool)) else value}"]


def split_names(names: list[str]) -> list[str]:
    """The splits that are named: train+validation, as `datasets` writes it, means both."""
    return list(dict.fromkeys(part for name in names for part in name.split("+")))


def load_splits(
    args: DatasetArguments, streaming: bool = False, name: str | None = None
) -> DatasetDict | IterableDatasetDict:
    """The dataset that the arguments name, cut to `limit` rows a split; with `streaming`, nothing is downloaded first.

    With `name`, another dataset, whose columns are called the same.

    The main process prints what is in it, and what was left out.
    """
    from ..data.embedding import check_files_of_splits
    from ..data.sources import load

    given = (args.dataset, args.dataset_config, args.dataset_revision) if name is None else (name, None, None)
    loaded = load(
        *given,
        streaming,
        args.limit,
        args.image_column,
        getattr(args, "label_column", "label"),
        [Path(__file__).resolve().parents[2]],
    )
    if os.environ.get("RANK", "0") == "0":
        print(terminal_lines(loaded.summary), flush=True)
    folder = files_from(args) if name is None else existing_folder(name)
    own = check_files_of_splits(loaded.splits, folder, getattr(args, "on_error", "raise"))
    return type(loaded.splits)(own)


def files_from(args: DatasetArguments) -> Path | None:
    """The folder of the dataset, where it is one: what its rows name may lie there."""
    return existing_folder(args.dataset)


def existing_folder(name: str) -> Path | None:
    path = Path(name).expanduser()
    return path if name and path.exists() else None


def source(args: DatasetArguments) -> dict[str, str | None]:
    """What the rows are, for the provenance: id, configuration, revision, and of a Hub dataset the commit."""
    path, commit = Path(args.dataset).expanduser(), None
    if not path.exists() and ":" not in args.dataset:
        with suppress(ValueError):  # rows from Python may have the name of a dataset that does not exist
            commit = dataset_commit(args.dataset, args.dataset_revision)
    name = path.resolve().name if path.exists() else args.dataset  # not where it is on somebody's machine
    return {"id": name, "config": args.dataset_config, "revision": args.dataset_revision, "commit": commit}


def command_line() -> str:
    """What the user typed, to be typed again."""
    return f"{sys.argv[0]} {shlex.join(sys.argv[1:])}"
