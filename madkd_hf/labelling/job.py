"""The map job that writes a teacher's answers into dataset columns."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import datasets
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    IterableDatasetDict,
)
from datasets.fingerprint import Hasher
from tqdm.auto import tqdm

from ..aspects import AspectBank
from ..data.columns import (
    add_answers,
    add_null_answers,
    aspect_features,
    hidden_progress_bars,
    null_answers,
    skipped_rows,
)
from ..data.objects import Boxes
from ..files import locked
from ..teachers import Teacher, UnreadableImageError
from .manifest import FORMAT_VERSION, difference_of
from .reading import Reader
from .shards import WorkDir
from .sources import Rows, Stream, readable_images, sources_of
from .workers import Workers


READ_BATCH = 16  # images or objects in one call of the teacher, or more where they do not fill a forward pass
POLL_SECONDS = 1.0  # between two looks for the shards of other workers

AnyDataset = TypeVar("AnyDataset", Dataset, DatasetDict, IterableDataset, IterableDatasetDict)


def attach_aspects(
    dataset: AnyDataset,
    bank: AspectBank,
    teacher: Teacher,
    image_column: str = "image",
    splits: str | Iterable[str] | None = None,
    work_dir: str | os.PathLike | None = None,
    on_error: str = "raise",
    shard_size: int = 512,
    distributed: bool = False,
    boxes_column: str | None = None,
    box_format: str = "coco",
    box_margin: float = 0.1,
    box_padding: float | None = None,
    files_from: str | os.PathLike | None = None,
    stream_name: str | None = None,
) -> AnyDataset:
    """Let a multimodal LLM answer the bank's questions about every image, and store the answers as columns.

    With `boxes_column`, for object detection, about every object in every image.

    - `aspect_logits`: Q float32 log-odds `z_yes - z_no`, in the bank's order; the sigmoid is the target (paper
      section 3.2).
    - `aspect_mass`: Q float32, the probability of yes and no together: where it is low, the number is not to be
      trusted.
    - `aspect_bank`: the bank's fingerprint, so that rows and questions cannot be mixed up.

    For objects, `aspect_logits` and `aspect_mass` are lists with Q numbers for each object, in the order of the boxes;
    the list of an image without objects is empty. What looks the same in one shard, pixel for pixel, is read once.

    The work is done in shards, which are complete or not there: a job that was killed goes on where it was, and ends
    with the same numbers. A job that is done costs nothing, to any number of processes and threads at once. Of several
    that make the same call, one works and the others wait for it and take what it did; in one `work_dir`, they are
    refused until it is done.

    Args:
        dataset: a `Dataset`, or a stream (an `IterableDataset`) for what is larger than the disk cache, or a dict of
            either.
        bank: the questions.
        teacher: who answers them. How it reads is chosen on the job's first images and kept with the job.
        image_column: the column of images.
        splits: which splits of a dict to label; all by default. The others carry nulls, so that all splits keep one
            schema.
        work_dir: the folder of this one job, for its shards and the manifest that says whose they are. By default a
            folder in the datasets cache, another one for whatever would change the answers. A stream needs one: its
            Parquet shards, all columns and the images' bytes, are the result (`work_dir/data/train-00000.parquet`).
        on_error: what to do about an image that cannot be decoded or that the teacher's processor refuses: "raise", or
            "skip", which leaves `aspect_logits` and `aspect_mass` null and `aspect_bank` set. (A row of a split that
            was not labelled has three nulls.) Likewise about a row of which one box or object cannot be read.
        shard_size: images that a kill can cost; a job that was begun keeps its own.
        distributed: share the work between the processes of `accelerate launch`, all of which have to make this call,
            on one folder that all can see; each needs a teacher on its own device. Otherwise each process does it all.
        boxes_column: the column of objects: structs with a list `bbox`, or lists of structs with a `bbox`. The boxes
            are those of the image as a viewer shows it, upright.
        box_format: what the 4 numbers of a box are: "coco" (x, y, width, height in pixels), "pascal_voc" (left, top,
            right, bottom in pixels) or "yolo" (centre x, centre y, width, height, 0 to 1).
        box_margin: how much the teacher sees around an object on each side, as a part of the box's width and height.
        box_padding: puts each crop in the middle of a white square, with at least this much white on each side, as a
            part of the crop's longer side: for teachers that crops with other objects in their corners, or without
            any ground, confuse. By default the crop is shown as it is.
        files_from: where rows name files in place of images, the folder in which these lie. By default, rows from the
            Hub may name files of their own repo, and rows of your own program image files of this machine. All others,
            addresses, and files that are no images, are refused or with `on_error="skip"` left empty.
        stream_name: for a stream that is made by functions (`from_generator`, `map`, `filter`): a name that stands for
            them, to be changed whenever they change. A job that is continued is refused where the name, the files or
            other steps of the stream are not the same.

    Returns:
        The same rows with the three columns added; for a stream, the stream that reads the Parquet shards.

    Raises:
        ValueError: no such column or split, a column without images, an image that cannot be decoded (named by split
            and row), a box that cannot be (named by split, row and object), a dataset that has aspect columns already,
            a work_dir that holds another job, or in which another run is at work.
        OSError: the work_dir cannot be written to, or the disk is full; what was done is kept.
    """
    boxes = _boxes(boxes_column, box_format, box_margin, box_padding)
    if on_error not in ("raise", "skip"):
        raise ValueError(f"Unknown on_error {on_error!r}: expected 'raise' or 'skip'.")
    sources = sources_of(dataset, splits, image_column, boxes, files_from, on_error, stream_name)
    if int(shard_size) < 1:
        raise ValueError(f"A shard holds at least one image: received shard_size={shard_size}.")
    streams = isinstance(dataset, (IterableDataset, IterableDatasetDict))
    if streams and work_dir is None:
        raise ValueError("A stream needs a place for its labelled Parquet shards: pass work_dir.")
    workers = Workers.of_launch() if distributed else Workers()
    workers.agree(lambda: [source.check_files() for source in sources if isinstance(source, Rows)])
    job = _Job(bank, teacher, image_column, on_error, int(shard_size), streams, workers, boxes, wait=work_dir is None)
    to_do = [source for source in sources if streams or (source.labelled and source.total)]
    results = {source.split: add_null_answers(source.data, job.features) for source in sources if source not in to_do}
    for folder, group in [(work_dir, to_do)] if work_dir else [(job.cache_of(source), [source]) for source in to_do]:
        if group:
            results |= job.run(Path(folder).expanduser(), group)
    if isinstance(dataset, (Dataset, IterableDataset)):
        return results[sources[0].split]
    return type(dataset)({source.split: results[source.split] for source in sources})


def _boxes(column: str | None, box_format: str, margin: float, padding: float | None) -> Boxes | None:
    boxes = Boxes(column or "", box_format, margin, padding)
    if column is None and boxes != Boxes(""):
        raise ValueError(
            f"box_format={box_format!r}, box_margin={margin} and box_padding={padding} say nothing without boxes: "
            "name their column with boxes_column."
        )
    return None if column is None else boxes


@dataclass
class _Job:
    """One call of `attach_aspects`; in its methods `done` is shard -> number of rows, for one split.

    With `wait`, it waits for another run on the same folder and takes its answers; otherwise it is refused there.
    """

    bank: AspectBank
    teacher: Teacher
    image_column: str
    on_error: str
    shard_size: int
    streams: bool
    workers: Workers
    boxes: Boxes | None = None
    wait: bool = False

    @property
    def features(self) -> Features:
        return aspect_features(self.bank, self.boxes is not None)

    def fingerprint(self, source: Rows) -> str:
        decides = [source.data._fingerprint, self.image_column, self.bank.fingerprint, self.teacher.identity]
        prompts = self.teacher.prompts(self.bank)
        decides += [prompts["tokens"]] if prompts else []
        decides += [self.boxes.state] if self.boxes else []
        return Hasher.hash([FORMAT_VERSION, *decides])

    def cache_of(self, source: Rows) -> Path:
        return Path(datasets.config.HF_DATASETS_CACHE) / "madkd_hf" / f"{source.split}-{self.fingerprint(source)}"

    def run(self, folder: Path, sources: list[Rows | Stream]) -> dict[str, Dataset | IterableDataset]:
        """The splits of one work directory, labelled."""
        with ExitStack() as locks:
            return self._run(folder, sources, locks)

    def _run(
        self, folder: Path, sources: list[Rows | Stream], locks: ExitStack
    ) -> dict[str, Dataset | IterableDataset]:
        manifest, done = self.workers.from_main(lambda: self._begin(folder, sources, locks))
        self.workers.agree(lambda: self._compare(manifest, sources))
        work = WorkDir(folder, manifest, self.streams)
        if manifest["plan"] is not None:
            self.teacher.plan = dict(manifest["plan"])
        labelled = {source.split: self._label(work, source, done[source.split]) for source in sources}
        if self.streams and self.workers.is_main:
            work.save_card(finished=set(work.manifest["splits"]) <= set(work.manifest["complete"]))
        return labelled

    def _compare(self, of_main: dict[str, Any], sources: list[Rows | Stream]) -> None:
        """Raise ValueError where this worker does not read the rows and ask the prompts of the main process."""
        for source in sources:
            if json.loads(json.dumps(source.state)) != of_main["splits"][source.split]:
                raise ValueError(
                    f"Worker {self.workers.index} does not read the rows of split {source.split!r} that the main "
                    "process reads: give all of them the same files, and every shuffle a seed."
                )
        teacher = dict(self.teacher.identity)
        if "model" in teacher:
            teacher["model"] = of_main["teacher"].get("model")  # machines may differ in where it is
        own = {"teacher": json.loads(json.dumps(teacher)), "prompts": self.teacher.prompts(self.bank)}
        for name, now in own.items():
            if difference := difference_of(of_main[name], now, name):
                raise ValueError(
                    f"Worker {self.workers.index} does not ask what the main process asks: {difference}; give all of "
                    "them the same files of the model, the same packages and the same locale."
                )

    def _begin(
        self, folder: Path, sources: list[Rows | Stream], locks: ExitStack | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[int, int]]]:
        """The manifest and what is done; how the teacher reads is chosen once, before the first shard."""
        manifest = {
            "format_version": FORMAT_VERSION,
            "bank": {"fingerprint": self.bank.fingerprint, "ids": self.bank.ids},
            "teacher": self.teacher.identity,
            "prompts": self.teacher.prompts(self.bank),
            "plan": None,
            "image_column": self.image_column,
            "boxes": self.boxes and self.boxes.state,
            "shard_size": self.shard_size,
            "splits": {source.split: source.state for source in sources},
            "complete": {},
            "finished": {},
        }
        work = WorkDir(folder, manifest, self.streams)
        work.start()
        if (done := self._finished_shards(work, sources)) is not None:
            return work.manifest, done
        if locks is not None:
            locks.enter_context(locked(folder, "it labels a dataset", "work_dir", again=True, wait=self.wait))
            work.start()  # another job may have settled something meanwhile
        done = {source.split: self._remove_incomplete(work, source) for source in sources}
        open_splits = [source for source in sources if not _is_complete(work, source, done[source.split])]
        if work.manifest["plan"] is None and any(source.labelled for source in open_splits):
            work.manifest["plan"] = self._plan([source for source in sources if source.labelled])
            work.save()
        if self.streams and open_splits:
            work.save_card(finished=False)
        return work.manifest, done

    def _finished_shards(self, work: WorkDir, sources: list[Rows | Stream]) -> dict[str, dict[int, int]] | None:
        """The shards, where all are complete: any number of runs may read them at once. Else None."""
        done = {}
        for source in sources:
            there, total = work.indexes(source.split), _total(work, source)
            if total is None or len(there) * work.manifest["shard_size"] < total:  # seen without reading a shard
                return None
            try:
                done[source.split] = self._usable_shards(work, source, say=False)
            except FileNotFoundError:  # another run makes it again
                return None
            if sorted(done[source.split]) != there or not _is_complete(work, source, done[source.split]):
                return None
        return done

    def _remove_incomplete(self, work: WorkDir, source: Rows | Stream) -> dict[int, int]:
        """The complete shards of a split; all others are removed, so that a shard that exists is complete."""
        there = work.indexes(source.split)
        done = self._usable_shards(work, source)
        work.remove(source.split, [index for index in there if index not in done])
        return done

    def _usable_shards(self, work: WorkDir, source: Rows | Stream, say: bool = True) -> dict[int, int]:
        """The complete shards that this run can use: with on_error="raise" none in which rows were skipped."""
        done = work.done(source.split, say)
        if source.labelled and self.on_error == "raise":
            done = {index: rows for index, rows in done.items() if not work.skipped(source.split, index)}
        return done

    def _plan(self, sources: list[Rows | Stream]) -> dict[str, Any] | None:
        """How the teacher reads, chosen on the first two images that it can read; None where there is not one."""
        images = (image for source in sources for image in readable_images(source))
        first = list(itertools.islice(images, 2))
        self.teacher.plan = None
        while first:
            try:
                return dict(self.teacher.prepare(first, self.bank))
            except UnreadableImageError as error:  # the labelling itself will name its row
                del first[error.index if error.index < len(first) else 0]
                first += itertools.islice(images, 1)
        return None

    def _label(self, work: WorkDir, source: Rows | Stream, done: dict[int, int]) -> Dataset | IterableDataset:
        if not _is_complete(work, source, done):
            try:
                self._fill(work, source, done)
            except KeyboardInterrupt as stopped:
                raise type(stopped)(f"{work.progress(source.split)}; run the same command again to go on.") from None
            if self.streams:
                self.workers.from_main(lambda: work.check(source.split, sorted(done)))
        if self.streams:
            files = [str(work.path(source.split, index)) for index in sorted(done)]
            return IterableDataset.from_parquet(files, split=datasets.NamedSplit(source.split))
        answers = Dataset(work.load(source.split, sorted(done)), fingerprint=self.fingerprint(source))
        labelled = add_answers(source.data, answers)
        skipped = skipped_rows(answers) if self.on_error == "skip" else []
        return source.without_skipped(labelled, skipped) if skipped else labelled

    def _fill(self, work: WorkDir, source: Rows | Stream, done: dict[int, int]) -> None:
        """Make this worker's share of the missing shards, and wait for the others'."""
        size, shards_of_others = work.manifest["shard_size"], {}
        pairs = (work.manifest["plan"] or {}).get("batch_size", 0)  # not the teacher's, which memory may have halved
        images_per_call = max(READ_BATCH, -(-pairs // len(self.bank)))
        settings = (self.bank, self.teacher, self.image_column, self.on_error)
        reader = Reader(*settings, source.name_of, self.boxes, source.origin)
        progress, counted = self._progress(work, source, done)
        with tqdm(**progress, disable=not self.workers.is_main) as bar, hidden_progress_bars():
            for turn, (index, rows) in enumerate(source.shards(size, frozenset(done))):
                if turn % self.workers.count != self.workers.index:
                    shards_of_others[index] = len(rows)
                    continue
                rows = source.fetched(rows)
                if source.labelled:
                    answers = reader.read(rows, index * size, images_per_call, bar.update)
                else:
                    answers = null_answers(self.features, len(rows))
                    bar.update(len(rows))
                work.write(source.split, index, source.stored(rows, answers, index * size))
                done[index] = len(rows)
                bar.update(sum(map(counted, _arrived(work, source.split, shards_of_others, done))))
            while shards_of_others:
                time.sleep(POLL_SECONDS)
                bar.update(sum(map(counted, _arrived(work, source.split, shards_of_others, done))))
        if self.workers.is_main:
            if self.streams and not done:  # an empty stream leaves its columns at least
                work.write(source.split, 0, source.stored(source.nothing, null_answers(self.features, 0), 0))
                done[0] = 0
            if self.streams:
                work.manifest["complete"][source.split] = sum(done.values())
            work.manifest["finished"][source.split] = len(done)
            work.save()

    def _progress(self, work: WorkDir, source: Rows | Stream, done: dict[int, int]) -> tuple[dict[str, Any], Callable]:
        """What the bar begins with, and how many of what it counts a finished shard holds."""
        unit, total, count, about = " images", source.total, done.__getitem__, source.split
        if source.labelled:
            about += f": {len(self.bank)} questions an {'object' if self.boxes else 'image'}"
            if self.boxes:
                unit, total, count = " obj", source.objects, partial(work.objects, source.split)
        return {"unit": unit, "total": total, "initial": sum(map(count, done)), "desc": about}, count


def _is_complete(work: WorkDir, source: Rows | Stream, done: dict[int, int]) -> bool:
    return _total(work, source) == sum(done.values())


def _total(work: WorkDir, source: Rows | Stream) -> int | None:
    """How many rows a split has, where that is known."""
    return source.total if isinstance(source, Rows) else work.manifest["complete"].get(source.split)


def _arrived(work: WorkDir, split: str, shards_of_others: dict[int, int], done: dict[int, int]) -> list[int]:
    """Take over the shards that other workers have finished since."""
    arrived = [index for index in shards_of_others if work.path(split, index).exists()]
    done |= {index: shards_of_others.pop(index) for index in arrived}
    return arrived
