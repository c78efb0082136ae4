"""The work directory of a labelling job: a manifest that says which job it is, and its shards.

Nothing is ever half there: files are written under a temporary name, flushed, and renamed. So whatever kills a job,
the next one finds whole shards only and makes the missing ones.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from datasets.table import MemoryMappedTable, Table, concat_tables
from tqdm.auto import tqdm

from ..data.columns import CLASS_LOGITS, LOGITS
from ..files import refuse_link, remove_stale, whole_file, write_record
from ..files.seals import OPEN_SEAL, is_whole, seal
from .manifest import MANIFEST_FILE, REMEDY, merged, read_manifest, refuse_another


logger = logging.getLogger(__name__)

MARK = b"madkd_hf"  # key in the metadata of a shard: its job, split and number
CLAIM = re.compile(r"\..+-\d{5,}\.claimed")
ROW_GROUP = 100  # images that a reader of a stream loads at once


class DamagedShardError(ValueError):
    """A shard is not what was written under its name; the message says what is wrong with it."""


def check_work_dir(folder: Path, streams: bool, keys: Collection[str] = ()) -> dict[str, Any] | None:
    """The manifest of the job in a folder, None where there is none; refuses what stands where a job would write."""
    manifest, shards = read_manifest(folder, set(keys)), _shards_of(folder, streams)
    refuse_link(shards)
    if manifest is None and shards.is_dir():
        there = sorted(path.name for path in shards.iterdir() if path.name[0] != ".")
        if there:
            manifest = read_manifest(folder, set(keys))  # another job may have begun this moment
            if manifest is None:
                raise ValueError(
                    f"{folder} holds {shards.name}/{there[0]} and no {MANIFEST_FILE} that says whose it is: {REMEDY}."
                )
    return manifest


def _shards_of(folder: Path, streams: bool) -> Path:
    return folder / ("data" if streams else "shards")


@dataclass
class WorkDir:
    """The folder of one labelling job.

    Attributes:
        folder: where it is; may be shared between machines.
        manifest: what decides the answers (teachers, bank, image column, boxes, fingerprints of splits), and what the
            job has settled since: `shard_size`, `plan` (how the teacher reads), `complete` (rows of finished streams),
            `finished` (shards of finished splits).
        streams: whether shards are Parquet files of whole rows, for a stream, or Arrow files of the new columns only.
    """

    folder: Path
    manifest: dict[str, Any]
    streams: bool = False
    _shards: Path = field(init=False)

    def __post_init__(self) -> None:
        self.manifest = json.loads(json.dumps(self.manifest))  # as it will be read back
        self._shards = _shards_of(self.folder, self.streams)

    def start(self) -> None:
        """Take up the job that is in the folder, or begin it; refuses another job. For the main process alone."""
        before = self._read()
        with self._writing():
            refuse_link(self._shards)
            self._shards.mkdir(parents=True, exist_ok=True)
            for folder in (self.folder, self._shards):
                remove_stale(folder)
        if before is None and self._create():
            return
        before = before or self._read() or self.manifest  # another job may have begun here meanwhile
        refuse_another(self.folder, before, self.manifest)
        self.manifest = merged(before, self.manifest)
        if self.manifest != before:
            self.save()

    def save(self) -> None:
        """Write the manifest, with what others have settled meanwhile; for the main process alone."""
        before = read_manifest(self.folder, set(self.manifest))
        if before is not None:
            refuse_another(self.folder, before, self.manifest)
            self.manifest = merged(before, self.manifest)
        with self._writing():
            write_record(self.folder / MANIFEST_FILE, self.manifest)

    def save_card(self, finished: bool) -> None:
        """Say which Parquet files are which split, so that `load_dataset(folder)` need not guess; a card stays.

        Until all splits are finished it names a place where there is none, so that nobody takes a part for the whole.
        """
        card, our_beginning = self.folder / "README.md", "---\nconfigs: [{"
        if card.exists() and not card.read_text(encoding="utf-8").startswith(our_beginning):
            return
        place = "data" if finished else "data/unfinished: run the same command again"
        files = [
            {"split": split, "path": [f"{place}/{split}-{digits * '[0-9]'}.parquet" for digits in self._digits(split)]}
            for split in self.manifest["splits"]
        ]
        configs = json.dumps([{"config_name": "default", "data_files": files}])  # which is YAML, too
        text = "" if finished else "\nThe labelling is not finished: run the same command again to go on.\n"
        with self._writing(), whole_file(card) as file:
            file.write(f"---\nconfigs: {configs}\n---\n{text}".encode())

    def path(self, split: str, index: int) -> Path:
        """The file of a split's shard."""
        return self._shards / f"{split}-{index:05d}.{'parquet' if self.streams else 'arrow'}"

    def claim(self, split: str, index: int) -> bool:
        """Whether this worker makes a shard: the first that asks does, so that whoever is free takes the next one.

        A shard that is there was made by another one, which may have finished the job and taken the claims back.
        """
        try:
            self._claim(split, index).touch(exist_ok=False)  # on a shared disk, too, only one creates a file
        except FileExistsError:
            return False
        except OSError:
            with self._writing(split):  # says what to do
                raise
        return not self.path(split, index).exists()

    def release(self) -> None:
        """Take back all claims, also those of workers that were killed; for the main process, which holds the lock."""
        for path in self._shards.glob(".*.claimed"):
            if CLAIM.fullmatch(path.name) and not path.is_symlink():
                path.unlink(missing_ok=True)

    def _claim(self, split: str, index: int) -> Path:
        return self._shards / f".{split}-{index:05d}.claimed"

    def write(self, split: str, index: int, table: pa.Table) -> None:
        """Store a shard; it is complete from the moment that its file has its name."""
        with self._writing(split):
            metadata = {**(table.schema.metadata or {}), MARK: self._mark(split, index)}
            table = table.replace_schema_metadata(metadata)
            with whole_file(self.path(split, index)) as file:
                (_write_parquet if self.streams else _write_arrow)(table, file)
                seal(file)

    def indexes(self, split: str) -> list[int]:
        """The shards of a split that are there, complete or not; what else has been put beside them is none."""
        ends = [path.stem.removeprefix(f"{split}-") for path in self._shards.iterdir()]
        there = {path.name for path in self._shards.iterdir()}
        indexes = {int(end) for end in ends if end.isdecimal()}
        return sorted(index for index in indexes if self.path(split, index).name in there)

    def done(self, split: str, say: bool = True) -> dict[int, int]:
        """The complete shards of a split, and how many rows each has.

        With `say`, it warns of shards that are damaged or foreign, and so not complete, and of those that a finished
        split lacks.
        """
        there, done = self.indexes(split), {}
        with tqdm(there, f"checking {split}", unit=" shards", delay=2, leave=False) as bar:
            for index in bar:
                try:
                    done[index] = self._checked(split, index)
                except DamagedShardError as reason:
                    if say:
                        self._warn(split, index, str(reason))
        for index in range(self.manifest["finished"].get(split, 0)):
            if say and index not in there:
                self._warn(split, index, "is missing")
        return done

    def total(self, split: str) -> int | None:
        """How many rows a split has; of a stream it is known once that has been read to its end."""
        rows = self.manifest["splits"][split]["rows"]
        return self.manifest["complete"].get(split) if rows is None else rows

    def is_complete(self, split: str, done: dict[int, int]) -> bool:
        """Whether all rows are in these shards, given as number -> rows."""
        return self.total(split) == sum(done.values())

    def check(self, split: str, indexes: list[int]) -> None:
        """Raise ValueError where a shard is damaged: since it was checked first, days may have passed."""
        for index in indexes:
            if not is_whole(self.path(split, index)):
                raise ValueError(
                    f"{self.path(split, index)} was damaged while the job ran: run the same command again, which "
                    "reads its images again."
                )

    def remove(self, split: str, indexes: list[int]) -> None:
        """Take shards away that have to be made again: to the workers, a shard that is there is complete."""
        with self._writing(split):
            for index in indexes:
                self.path(split, index).unlink(missing_ok=True)

    def load(self, split: str, indexes: list[int]) -> Table:
        """The shards' columns, one after the other, from the files."""
        self.check(split, indexes)
        tables = [_open_arrow(self.path(split, index)) for index in indexes]
        metadata = {name: value for name, value in (tables[0].schema.metadata or {}).items() if name != MARK}
        return concat_tables([table.replace_schema_metadata(metadata) for table in tables])

    def skipped(self, split: str, index: int) -> int:
        """How many rows of a complete shard have no answers."""
        return self._answers(split, index).null_count

    def progress(self, split: str | None = None) -> str:
        """What a job that stops here leaves to the next one, in words."""
        splits = [split] if split else list(self.manifest["splits"])
        counts = []
        for name in splits:
            rows = self.manifest["splits"][name]["rows"]
            total = "" if rows is None else f" of {-(-rows // self.manifest['shard_size'])}"
            counts.append(f"{len(self.indexes(name))}{total} shards of split {name!r}")
        return f"{', '.join(counts)} are complete and kept in {self.folder}"

    def _digits(self, split: str) -> list[int]:
        """How many digits the numbers of its shards have: a pattern with these finds no copies beside them."""
        return sorted({len(f"{index:05d}") for index in self.indexes(split)} or {5})

    def _answers(self, split: str, index: int) -> pa.ChunkedArray:
        path, column = self.path(split, index), LOGITS if self.manifest["bank"] else CLASS_LOGITS
        table = pq.read_table(path, columns=[column]) if self.streams else _open_arrow(path)
        return table[column]

    def _mark(self, split: str, index: int) -> bytes:
        decides = [self.manifest[name] for name in ("bank", "teacher", "prompts", "image_column", "shard_size")]
        decides += [self.manifest[name] for name in ("boxes", "class_teacher") if self.manifest[name]]
        job = hashlib.sha256(json.dumps([*decides, self.manifest["splits"][split]], sort_keys=True).encode())
        return json.dumps({"job": job.hexdigest(), "split": split, "index": index}).encode()

    def _checked(self, split: str, index: int) -> int:
        """How many rows a complete shard has; looks at its bytes before anything takes them apart."""
        path = self.path(split, index)
        try:
            intact = is_whole(path)
            if not intact:
                what = "has no checksum" if intact is None else "does not match its checksum"
                raise DamagedShardError(f"is damaged (it {what})")
            if self.streams:
                parquet = pq.read_metadata(path)
                rows, metadata = parquet.num_rows, parquet.metadata
            else:
                table = _open_arrow(path)
                rows, metadata = len(table), table.schema.metadata
        except (pa.ArrowException, OSError) as error:
            raise DamagedShardError(f"cannot be read ({' '.join(str(error).split())})") from error
        if (metadata or {}).get(MARK) != self._mark(split, index):
            raise DamagedShardError("belongs to another job or another place of this one")
        if not self._fits(split, index, rows):
            raise DamagedShardError(f"holds {rows} rows in place of {self._rows(split, index)}")
        return rows

    def _rows(self, split: str, index: int) -> int:
        """How many rows a shard has at most."""
        total, size = self.manifest["splits"][split]["rows"], self.manifest["shard_size"]
        return size if total is None else max(0, min(size, total - index * size))

    def _fits(self, split: str, index: int, rows: int) -> bool:
        if self.manifest["splits"][split]["rows"] is None and index == self.indexes(split)[-1]:
            return rows <= self.manifest["shard_size"]  # only the last shard of a stream is shorter
        return rows == self._rows(split, index)

    def _warn(self, split: str, index: int, fault: str) -> None:
        count = self._rows(split, index)
        what = f"its {count} images are read again" if count else "it is removed"
        logger.warning("%s %s: %s.", self.path(split, index), fault, what)

    def _read(self) -> dict[str, Any] | None:
        return check_work_dir(self.folder, self.streams, set(self.manifest))

    def _create(self) -> bool:
        """Write the manifest, if there is none yet: of two jobs that begin at once, one is the first."""
        try:
            with self._writing():
                write_record(self.folder / MANIFEST_FILE, self.manifest, new=True)
        except FileExistsError:
            return False
        return True

    @contextmanager
    def _writing(self, split: str | None = None) -> Iterator[None]:
        try:
            yield
        except (FileExistsError, NotADirectoryError) as error:
            if self.folder.is_dir():  # the manifest of a quicker job
                raise
            what = "is a file" if self.folder.is_file() else "lies in a file"
            raise OSError(f"Cannot write to {self.folder}, which {what}: pass another work_dir.") from error
        except OSError as error:
            progress = self.progress(split) if self._shards.is_dir() else "nothing is lost"
            raise OSError(
                f"Cannot write to {self.folder} ({error.strerror or error}): {progress}; make room there or make it "
                "writable, and run the same command again."
            ) from error


def _write_arrow(table: pa.Table, file: BinaryIO) -> None:
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    file.write(OPEN_SEAL)  # behind the end of the stream, where no reader looks


def _write_parquet(table: pa.Table, file: BinaryIO) -> None:
    with pq.ParquetWriter(file, table.schema) as writer:
        if len(table):  # a reader stumbles over a row group without rows
            writer.write_table(table, row_group_size=ROW_GROUP)
        writer.add_key_value_metadata({"checksum": OPEN_SEAL.decode()})


def _open_arrow(path: Path) -> MemoryMappedTable:
    """A shard's columns, mapped and not read; the file is closed, so that thousands of shards can be open."""
    with pa.memory_map(str(path)) as file:
        return MemoryMappedTable(pa.ipc.open_stream(file).read_all(), str(path))
