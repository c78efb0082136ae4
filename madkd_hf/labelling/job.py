"""The map job that writes what teachers say about images into dataset columns."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features, IterableDataset
from datasets.fingerprint import Hasher
from tqdm.auto import tqdm

from ..data.columns import add_answers, hidden_progress_bars, null_answers, skipped_rows
from ..data.objects import Boxes
from ..files import locked
from ..teachers import UnreadableImageError
from .labellers import Labeller, all_features
from .manifest import FORMAT_VERSION, job_difference
from .reading import Reader
from .shards import WorkDir
from .sources import Rows, Stream, readable_images
from .workers import Workers


READ_BATCH = 16  # images or objects in one call of the teacher, or more where they do not fill a forward pass
POLL_SECONDS = 1.0  # after which the shards of other workers are counted again

Shards = dict[str, dict[int, int]]  # split -> number of a complete shard -> its rows


@dataclass
class Job:
    """One call of `attach`; in its methods `done` is shard -> number of rows, for one split.

    With `wait`, it waits for another run on the same folder and takes its answers; otherwise it is refused there.
    """

    labellers: Sequence[Labeller]
    image_column: str
    on_error: str
    shard_size: int
    streams: bool
    workers: Workers
    boxes: Boxes | None = None
    wait: bool = False

    @property
    def features(self) -> Features:
        return all_features(self.labellers)

    def without_answers(self, source: Rows) -> Dataset:
        return add_answers(source.data, Dataset(null_answers(self.features, source.total)))

    def fingerprint(self, source: Rows) -> str:
        decides = [source.data._fingerprint, self.image_column]
        decides += [part for labeller in self.labellers for part in labeller.decides]
        decides += [self.boxes.state] if self.boxes else []
        return Hasher.hash([FORMAT_VERSION, *decides])

    def run(self, folder: Path, sources: list[Rows | Stream]) -> dict[str, Dataset | IterableDataset]:
        """The splits of one work directory, labelled."""
        with ExitStack() as locks:
            manifest, done = self.workers.from_main(lambda: self._begin(folder, sources, locks))
            self.workers.agree(lambda: self._compare(manifest, sources))
            work = WorkDir(folder, manifest, self.streams)
            if manifest["plan"] is not None:
                self._set_plan(dict(manifest["plan"]))
            labelled = {source.split: self._label(work, source, done[source.split]) for source in sources}
            if self.streams and self.workers.is_main:
                work.save_card(finished=set(work.manifest["splits"]) <= set(work.manifest["complete"]))
            return labelled

    def _compare(self, of_main: dict[str, Any], sources: list[Rows | Stream]) -> None:
        """Raise ValueError where this worker does not read the rows and ask the prompts of the main process."""
        own = json.loads(json.dumps(self._manifest(sources)))
        if own["teacher"] and "model" in own["teacher"]:
            own["teacher"]["model"] = of_main["teacher"].get("model")  # machines may differ in where it is
        for name in ("splits", "teacher", "prompts", "class_teacher"):
            then = of_main.get(name)
            then = {split: then[split] for split in own[name]} if name == "splits" else then
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
            **dict.fromkeys(("bank", "teacher", "prompts", "class_teacher")),
            **{name: value for labeller in self.labellers for name, value in labeller.state.items()},
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
        work.release()
        locks.callback(work.release)
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
        """How the teachers read, chosen on the first two images that they can read; None where there is not one."""
        images = (image for source in sources for image in readable_images(source))
        first = list(itertools.islice(images, 2))
        self._set_plan(None)
        while first:
            try:
                return {name: value for labeller in self.labellers for name, value in labeller.prepare(first).items()}
            except UnreadableImageError as error:  # the labelling itself will name its row
                del first[error.index if error.index < len(first) else 0]
                first += itertools.islice(images, 1)
        return None

    def _set_plan(self, plan: dict[str, Any] | None) -> None:
        for labeller in self.labellers:
            labeller.plan = plan

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
        """Make missing shards until all are taken, and wait for those that other workers have taken."""
        size, shards_of_others = work.manifest["shard_size"], {}
        plan = work.manifest["plan"] or {}
        images_per_call = max(READ_BATCH, *(labeller.images_per_call(plan) for labeller in self.labellers))
        reader = Reader(self.labellers, source)
        about = f": {', '.join(labeller.about for labeller in self.labellers)}" if source.labelled else ""
        settings = {"initial": sum(done.values()), "unit": " images", "disable": not self.workers.is_main}
        with tqdm(desc=f"{source.split}{about}", total=source.total, **settings) as bar, hidden_progress_bars():
            for index, rows in source.shards(size, frozenset(done)):
                if self.workers.count > 1 and not work.claim(source.split, index):
                    shards_of_others[index] = len(rows)
                    continue
                rows = source.fetched(rows)
                if source.labelled:
                    answers = reader.read(rows, index * size, images_per_call, partial(self._advance, bar))
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

    def _advance(self, bar: tqdm, rows: int) -> None:
        """Show rows that are done, and what that has used up so far."""
        bar.set_postfix_str(", ".join(filter(None, (one.progress for one in self.labellers))), refresh=False)
        bar.update(rows)


def _arrived(work: WorkDir, split: str, shards_of_others: dict[int, int], done: dict[int, int]) -> int:
    """Take over the shards that other workers have finished since; returns how many rows these have."""
    arrived = [index for index in shards_of_others if work.path(split, index).exists()]
    new = {index: shards_of_others.pop(index) for index in arrived}
    done |= new
    return sum(new.values())
