"""What users call to label a dataset: aspects by a teacher that answers questions, class targets by a classifier."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from ..aspects import AspectBank
from ..data.labels import class_names
from ..data.objects import Boxes
from ..teachers import Teacher
from ..teachers.class_teacher import ClassTeacher
from ..text import as_list
from .job import Job
from .labellers import AspectLabeller, ClassLabeller, Labeller
from .sources import Rows, sources_of
from .workers import Workers


SHARD_SIZE = 512
MOST_SHARDS = 1000  # of a split, unless a size is given: memory grows with their square where they become one table

AnyDataset = TypeVar("AnyDataset", Dataset, DatasetDict, IterableDataset, IterableDatasetDict)


def attach_aspects(
    dataset: AnyDataset,
    bank: AspectBank,
    teacher: Teacher,
    image_column: str = "image",
    splits: str | Iterable[str] | None = None,
    work_dir: str | os.PathLike | None = None,
    on_error: str = "raise",
    shard_size: int | None = None,
    distributed: bool = False,
    boxes_column: str | None = None,
    box_format: str = "coco",
    box_margin: float = 0.1,
    box_padding: float | None = None,
    files_from: str | os.PathLike | None = None,
    stream_name: str | None = None,
) -> AnyDataset:
    """Let a teacher answer the bank's questions about every image, or object, and store the answers as columns.

    - `aspect_logits`: Q float32 log-odds `z_yes - z_no`, in the bank's order; the sigmoid is the target (paper
      section 3.2). With `boxes_column`, a list of these, one for each object in the order of the boxes.
    - `aspect_mass`: as many probabilities of yes and no together: where it is low, the number is not to be trusted.
    - `aspect_bank`: the bank's fingerprint, so that rows and questions cannot be mixed up.

    The work is done in shards, which are complete or not there: a job that was killed goes on where it was, and ends
    with the same numbers. A job that is done costs nothing, to any number of processes and threads at once. Of several
    that make the same call, one works and the others wait for it and take what it did; in one `work_dir`, they are
    refused until it is done. Objects that look the same in one shard, pixel for pixel, are read
    once.

    Args:
        dataset: a `Dataset`, or a stream for what is larger than the disk cache, or a dict of either.
        bank: the questions.
        teacher: who answers them. How it reads is chosen on the job's first images and kept with the job.
        image_column: the column of images.
        splits: which splits of a dict to label; all by default. The others carry nulls in the same columns.
        work_dir: the folder of this one job, by default in the datasets cache, another one for whatever would change
            the answers. A stream needs one: its Parquet shards, all columns and the images' bytes, are the result
            (`data/train-00000.parquet`).
        on_error: what to do about an image, or box, that cannot be read: "raise", or "skip", which leaves
            `aspect_logits` and `aspect_mass` null and `aspect_bank` set. (A row of a split that was not labelled has
            three nulls.)
        shard_size: images that a kill can cost, by default 512, or of more than half a million (no stream) a 1,000th;
            a job that was begun keeps its own.
        distributed: share the work between the processes of `accelerate launch`, all of which have to make this call,
            on one folder that all can see; each needs a teacher on its own device. Otherwise each process does it all.
        boxes_column: the column of objects: structs with a list `bbox`, or lists of structs with a `bbox`. The boxes
            are those of the image as a viewer shows it, upright.
        box_format: what the 4 numbers of a box are: "coco" (x, y, width, height in pixels), "pascal_voc" (left, top,
            right, bottom in pixels) or "yolo" (centre x, centre y, width, height, 0 to 1).
        box_margin: how much the teacher sees around an object on each side, as a part of the box's width and height.
        box_padding: puts each crop in the middle of a white square, with at least this much white on each side, as a
            part of its longer side; by default it is shown as it is.
        files_from: where rows name files in place of images, the folder in which these lie. By default, rows from the
            Hub may name files of their own repo, and rows of your own program image files of this machine. All others
            are refused, or with `on_error="skip"` left empty.
        stream_name: for a stream that is made by functions (`from_generator`, `map`, `filter`): a name that stands for
            them, to be changed whenever they change.

    Returns:
        The same rows with the three columns added; for a stream, the stream that reads the Parquet shards.

    Raises:
        ValueError: no such column or split, a column without images, an image or box that cannot be read (named by
            split and row), a dataset that has aspect columns already, a work_dir that holds another job, or in which
            another run is at work.
        OSError: the work_dir cannot be written to, or the disk is full; what was done is kept.
    """
    labeller = AspectLabeller(bank, teacher, boxes_of(boxes_column, box_format, box_margin, box_padding))
    place = (image_column, splits, work_dir, on_error, shard_size, distributed, files_from, stream_name)
    return attach(dataset, [labeller], *place, boxes=labeller.boxes)


def boxes_of(column: str | None, box_format: str, box_margin: float, box_padding: float | None) -> Boxes | None:
    """Where the objects are; None without a column, and ValueError where something is said of boxes all the same."""
    boxes = Boxes(column or "", box_format, box_margin, box_padding)
    if column is None and boxes != Boxes(""):
        raise ValueError(
            f"box_format={box_format!r}, box_margin={box_margin} and box_padding={box_padding} say nothing without "
            "boxes: name their column with boxes_column."
        )
    return boxes if column else None


def attach_class_targets(
    dataset: AnyDataset,
    teacher: ClassTeacher,
    image_column: str = "image",
    label_column: str = "label",
    splits: str | Iterable[str] | None = None,
    work_dir: str | os.PathLike | None = None,
    on_error: str = "raise",
    shard_size: int | None = None,
    distributed: bool = False,
    files_from: str | os.PathLike | None = None,
    stream_name: str | None = None,
    classes: Sequence[str] | None = None,
) -> AnyDataset:
    """Let an image classifier score the classes of every image, and store the scores as columns.

    - `class_logits`: C float32 scores before the softmax, in the order of the dataset's classes.
    - `class_teacher`: the model, digests of its weights and of the classes, so that scores and classes cannot be mixed
      up.

    The work is done as by `attach_aspects`, in shards that a kill does not harm; the arguments that both have mean the
    same. A row whose image could not be read (`on_error="skip"`) names its class teacher and has no scores.

    Args:
        dataset: a `Dataset`, or a stream, or a dict of either; with aspects or without.
        teacher: who scores the classes.
        image_column, splits, work_dir, on_error, shard_size, distributed, files_from, stream_name: see
            `attach_aspects`.
        label_column: the classes, by whose names those of the teacher are found; where no split has that column, the
            classes are the teacher's own in its order.
        classes: their names in place of that column.

    Returns:
        The same rows with the two columns added; for a stream, the stream that reads the Parquet shards.

    Raises:
        ValueError: the teacher knows other classes, there are class targets already, or what `attach_aspects` refuses.
        OSError: the work_dir cannot be written to, or the disk is full; what was done is kept.
    """
    classes = classes_to_score(dataset, label_column, splits, teacher.classes) if classes is None else classes
    labeller = ClassLabeller(teacher, classes)
    place = (image_column, splits, work_dir, on_error, shard_size, distributed, files_from, stream_name)
    return attach(dataset, [labeller], *place)


def classes_to_score(
    dataset: AnyDataset, label_column: str, splits: str | Iterable[str] | None, own: Sequence[str]
) -> list[str]:
    """The names of the classes, of the first split to label that has such a column, else of any; or the teacher's."""
    parts = dict(dataset) if isinstance(dataset, dict) else {"": dataset}
    first = [split for split in as_list(splits) if split in parts] if splits is not None else []
    for split in dict.fromkeys([*first, *parts]):
        if isinstance(parts[split], (Dataset, IterableDataset)) and label_column in (parts[split].features or {}):
            if (names := class_names(parts[split], label_column)) is not None:
                return names
    return list(own)


def attach(
    dataset: AnyDataset,
    labellers: Sequence[Labeller],
    image_column: str,
    splits: str | Iterable[str] | None,
    work_dir: str | os.PathLike | None,
    on_error: str,
    shard_size: int | None,
    distributed: bool,
    files_from: str | os.PathLike | None,
    stream_name: str | None,
    boxes: Boxes | None = None,
) -> AnyDataset:
    """The dataset with the columns of all labellers, which look at each image one after the other, in one job."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f"Unknown on_error {on_error!r}: expected 'raise' or 'skip'.")
    new_columns = [name for labeller in labellers for name in labeller.columns]
    sources = sources_of(dataset, splits, image_column, boxes, files_from, on_error, stream_name, new_columns)
    if shard_size is not None and int(shard_size) < 1:
        raise ValueError(f"A shard holds at least one image: received shard_size={shard_size}.")
    streams = isinstance(dataset, (IterableDataset, IterableDatasetDict))
    if streams and work_dir is None:
        raise ValueError("A stream needs a place for its labelled Parquet shards: pass work_dir.")
    workers = Workers.of_launch() if distributed else Workers()
    workers.agree(lambda: [source.check_files() for source in sources if isinstance(source, Rows)])
    to_do = [source for source in sources if streams or (source.labelled and source.total)]
    most = max((0 if streams else source.total for source in to_do), default=0)  # a stream's shards hold its images
    shard_size = int(shard_size or max(SHARD_SIZE, -(-most // MOST_SHARDS)))
    settings = (image_column, on_error, shard_size, streams, workers, boxes)
    job = Job(labellers, *settings, wait=work_dir is None)
    results = {source.split: job.without_answers(source) for source in sources if source not in to_do}
    if work_dir is None:
        cache = Path(datasets.config.HF_DATASETS_CACHE, "madkd_hf")
        for source in to_do:
            results |= job.run(cache / f"{source.split}-{job.fingerprint(source)}", [source])
    elif to_do:
        results |= job.run(Path(work_dir).expanduser(), to_do)
    if isinstance(dataset, (Dataset, IterableDataset)):
        return results[sources[0].split]
    return type(dataset)({source.split: results[source.split] for source in sources})
