"""The map job that writes a teacher's answers into dataset columns."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import datasets
from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict
from datasets.fingerprint import Hasher
from tqdm.auto import tqdm

from ..aspects import AspectBank
from ..data.columns import add_answers, aspect_features, hidden_progress_bars, null_answers, skipped_rows
from ..data.objects import Boxes
from ..files import locked
from ..teachers import Teacher, UnreadableImageError
from .manifest import FORMAT_VERSION, job_difference
from .reading import Reader
from .shards import WorkDir
from .sources import Rows, Stream, readable_images, sources_of
from .workers import Workers


READ_BATCH = 16  # images or objects in one call of the teacher, or more where they do not fill a forward pass
POLL_SECONDS = 1.0  # after which the shards of other workers are counted again

Shards = dict[str, dict[int, int]]  # split -> number of a complete shard -> its rows
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
        shard_size: images that a kill can cost; a job that was begun keeps its own.
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
    boxes = Boxes(boxes_column or "", box_format, box_margin, box_padding)
    if boxes_column is None and boxes != Boxes(""):
        raise ValueError(
            f"box_format={box_format!r}, box_margin={box_margin} and box_padding={box_padding} say nothing without "
            "boxes: name their column with boxes_column."
        )
    boxes = boxes if boxes_column else None
    if on_error not in ("raise", "skip"):
        raise ValueError(f"Unknown on_error {on_error!r}: expected 'raise' or 'skip'.")
    if bank.unpublished:
        raise ValueError(
            f"The text of the question {bank.unpublished[0]!r} is not known, so nobody can be asked it: pass a bank "
            "with the questions themselves."
        )
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

    def without_answers(self, source: Rows) -> Dataset:
        return add_answers(source.data, Dataset(null_answers(self.features, source.total)))

    def fingerprint(self, source: Rows) -> str:
        decides = [source.data._fingerprint, self.image_column, self.bank.fingerprint, self.teacher.identity]
        prompts = self.teacher.prompts(self.bank)
        decides += [prompts["tokens"]] if prompts else []
        decides += [self.boxes.state] if self.boxes else []
        return Hasher.hash([FORMAT_VERSION, *decides])

    def run(self, folder: Path, sources: list[Rows | Stream]) -> dict[str, Dataset | IterableDataset]:
        """The splits of one work directory, labelled."""
        with ExitStack() as locks:
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
        own = json.loads(json.dumps(self._manifest(sources)))
        if "model" in own["teacher"]:
            own["teacher"]["model"] = of_main["teacher"].get("model")  # machines may differ in where it is
        for name in ("splits", "teacher", "prompts"):
            then = {split: of_main[name][split] for split in own[name]} if name == "splits" else of_main[name]
            if difference := job_difference(then, own[name], name):
                raise ValueError(
                    f"Worker {self.workers.index} does not label what the main process labels: {difference}; give all "
                    "of them the same files of dataset and model, the same packages and locale, and every shuffle a "
                    "seed."
                )

    def _manifest(self, sources: list[Rows | Stream]) -> dict[str, Any]:
        """What decides the answers, and a place for what the job will settle."""
        return {
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

    def _begin(self, folder: Path, sources: list[Rows | Stream], locks: ExitStack) -> tuple[dict[str, Any], Shards]:
        """The manifest and what is done; how the teacher reads is chosen once, before the first shard."""
        work = WorkDir(folder, self._manifest(sources), self.streams)
        work.start()
        if (done := self._finished_shards(work, sources)) is not None:
            return work.manifest, done
        locks.enter_context(locked(folder, "it labels a dataset", "work_dir", again=True, wait=self.wait))
        work.start()  # another job may have settled something meanwhile
        done = {source.split: self._usable_shards(work, source) for source in sources}
        for split, usable in done.items():  # so that a shard that exists is complete
            work.remove(split, [index for index in work.indexes(split) if index not in usable])
        open_splits = [source for source in sources if not work.is_complete(source.split, done[source.split])]
        if work.manifest["plan"] is None and any(source.labelled for source in open_splits):
            work.manifest["plan"] = self._plan([source for source in sources if source.labelled])
            work.save()
        if self.streams and open_splits:
            work.save_card(finished=False)
        return work.manifest, done

    def _finished_shards(self, work: WorkDir, sources: list[Rows | Stream]) -> Shards | None:
        """The shards, where all are complete: any number of runs may read them at once. Else None."""
        done = {}
        for source in sources:
            there, total = work.indexes(source.split), work.total(source.split)
            if total is None or len(there) * work.manifest["shard_size"] < total:  # seen without reading a shard
                return None
            try:
                done[source.split] = self._usable_shards(work, source, say=False)
            except FileNotFoundError:  # another run makes it again
                return None
            if sorted(done[source.split]) != there or not work.is_complete(source.split, done[source.split]):
                return None
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
        if not work.is_complete(source.split, done):
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
        reader = Reader(self.bank, self.teacher, source)
        about = f": {len(self.bank)} questions an {'object' if self.boxes else 'image'}" if source.labelled else ""
        settings = {"initial": sum(done.values()), "unit": " images", "disable": not self.workers.is_main}
        with tqdm(desc=f"{source.split}{about}", total=source.total, **settings) as bar, hidden_progress_bars():
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
                bar.update(_arrived(work, source.split, shards_of_others, done))
            while shards_of_others:
                time.sleep(POLL_SECONDS)
                bar.update(_arrived(work, source.split, shards_of_others, done))
        if self.workers.is_main:
            if self.streams and not done:  # an empty stream leaves its columns at least
                work.write(source.split, 0, source.stored(source.nothing, null_answers(self.features, 0), 0))
                done[0] = 0
            if self.streams:
                work.manifest["complete"][source.split] = sum(done.values())
            work.manifest["finished"][source.split] = len(done)
            work.save()


def _arrived(work: WorkDir, split: str, shards_of_others: dict[int, int], done: dict[int, int]) -> int:
    """Take over the shards that other workers have finished since; returns how many rows these have."""
    arrived = [index for index in shards_of_others if work.path(split, index).exists()]
    new = {index: shards_of_others.pop(index) for index in arrived}
    done |= new
    return sum(new.values())
