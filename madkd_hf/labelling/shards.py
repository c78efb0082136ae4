"""The work directory of a labelling job: a manifest that says which job it is, and its shards.

Nothing is ever half there: files are written under a temporary name, flushed, and renamed. So whatever kills a job,
the next one finds whole shards only and makes the missing ones.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from datasets.table import InMemoryTable, MemoryMappedTable, Table, concat_tables


MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1
STALE_SECONDS = 24 * 3600  # a temporary file of another machine, whose processes cannot be seen from here


@dataclass
class WorkDir:
    """The folder of one labelling job.

    Attributes:
        folder: where it is; may be shared between machines.
        manifest: what decides the answers (teacher, bank, image column, the splits' fingerprints), and what the job
            has settled since: `shard_size`, `plan` (how the teacher reads), `complete` (rows of finished streams).
        streams: whether shards are Parquet files of whole rows, for a stream, or Arrow files of the new columns only.
    """

    folder: Path
    manifest: dict[str, Any]
    streams: bool = False
    _shards: Path = field(init=False)

    def __post_init__(self) -> None:
        self.manifest = json.loads(json.dumps(self.manifest))  # as it will be read back
        self._shards = self.folder / ("data" if self.streams else "shards")

    def start(self) -> None:
        """Take up the job that is in the folder, or begin it; for the main process alone.

        Raises:
            ValueError: the folder holds another job, or something that is none.
            OSError: the folder cannot be written to.
        """
        before = self._read()
        with self._writing():
            self._shards.mkdir(parents=True, exist_ok=True)
            self._remove_stale()
        if before is not None:
            self._refuse_another(before)
            splits = {**before["splits"], **self.manifest["splits"]}
            self.manifest = {**before, "splits": splits}
        if self.manifest != before:
            self.save()

    def save(self) -> None:
        """Write the manifest; for the main process alone."""
        text = json.dumps(self.manifest, indent=2, ensure_ascii=False) + "\n"
        with self._writing():
            self._replace(self.folder / MANIFEST_FILE, lambda file: file.write(text.encode()))

    def save_card(self) -> None:
        """Say which Parquet files are which split, so that `load_dataset(folder)` need not guess; a card stays."""
        card, ours = self.folder / "README.md", "---\nconfigs: [{"
        if card.exists() and not card.read_text(encoding="utf-8").startswith(ours):
            return
        files = [{"split": split, "path": f"data/{split}-[0-9]*.parquet"} for split in self.manifest["splits"]]
        configs = json.dumps([{"config_name": "default", "data_files": files}])  # which is YAML, too
        with self._writing():
            self._replace(card, lambda file: file.write(f"---\nconfigs: {configs}\n---\n".encode()))

    def path(self, split: str, index: int) -> Path:
        """The file of a split's shard."""
        return self._shards / f"{split}-{index:05d}.{'parquet' if self.streams else 'arrow'}"

    def write(self, split: str, index: int, table: pa.Table) -> None:
        """Store a shard; it is complete from the moment that its file has its name.

        Raises:
            OSError: the disk is full, or the folder cannot be written to.
        """
        with self._writing(split):
            self._replace(
                self.path(split, index), lambda file: (_write_parquet if self.streams else _write_arrow)(table, file)
            )

    def done(self, split: str) -> dict[int, int]:
        """The complete shards of a split, and how many rows each has; a damaged one is not complete."""
        found = {index: self._count(self.path(split, index)) for index in self._indexes(split)}
        return {index: rows for index, rows in found.items() if rows is not None and self._fits(split, index, rows)}

    def load(self, split: str, indexes: list[int]) -> Table:
        """The shards' columns, one after the other, from the files."""
        return concat_tables([_open_arrow(self.path(split, index)) for index in indexes])

    def skipped(self, split: str, index: int) -> int:
        """How many rows of a complete shard have no answers."""
        path, column = self.path(split, index), "aspect_logits"
        table = pq.read_table(path, columns=[column]) if self.streams else _open_arrow(path)
        return table[column].null_count

    def kept(self, split: str | None = None) -> str:
        """What a job that stops here leaves to the next one, in words."""
        splits = [split] if split else list(self.manifest["splits"])
        counts = []
        for name in splits:
            rows = self.manifest["splits"][name]["rows"]
            total = "" if rows is None else f" of {-(-rows // self.manifest['shard_size'])}"
            counts.append(f"{len(self._indexes(name))}{total} shards of split {name!r}")
        return f"{', '.join(counts)} are complete and kept in {self.folder}"

    def _indexes(self, split: str) -> list[int]:
        ends = [
            path.stem.removeprefix(f"{split}-") for path in self._shards.glob(f"{split}-*{self.path('', 0).suffix}")
        ]
        return sorted(int(end) for end in ends if end.isdecimal())

    def _fits(self, split: str, index: int, rows: int) -> bool:
        total, size = self.manifest["splits"][split]["rows"], self.manifest["shard_size"]
        if total is None:  # only the last shard of a stream is shorter
            return rows == size or index == self._indexes(split)[-1]
        return rows == min(size, total - index * size)

    def _count(self, path: Path) -> int | None:
        try:
            return pq.read_metadata(path).num_rows if self.streams else len(_open_arrow(path))
        except (pa.ArrowException, OSError):
            return None

    def _read(self) -> dict[str, Any] | None:
        path = self.folder / MANIFEST_FILE
        remedy = "delete the folder to start over, or pass another work_dir"
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            missing = {"format_version", *self.manifest} - set(manifest)
            if missing or not isinstance(manifest["splits"], dict) or not int(manifest["shard_size"]) > 0:
                raise ValueError(f"{sorted(missing) or 'its values'} are not there")
        except (FileNotFoundError, NotADirectoryError):
            if self._shards.is_dir() and any(path for path in self._shards.iterdir() if path.name[0] != "."):
                raise ValueError(
                    f"{self.folder} holds shards and no {MANIFEST_FILE} that says whose they are: {remedy}."
                ) from None
            return None
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no manifest of a labelling job ({error}): {remedy}.") from error
        if manifest["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"{path} has format {manifest['format_version']!r}, this version of madkd_hf reads {FORMAT_VERSION}: "
                f"{remedy}."
            )
        return manifest

    def _refuse_another(self, before: dict[str, Any]) -> None:
        for name in self.manifest:
            if name in ("shard_size", "plan", "complete"):
                continue
            now, then = self.manifest[name], before[name]
            if name == "splits":
                now, then = ({split: part[split] for split in now if split in then} for part in (now, then))
            if difference := _difference(then, now, name):
                raise ValueError(
                    f"{self.folder} holds another labelling job: {difference}; pass another work_dir for this job, or "
                    "delete that one to start over."
                )

    def _remove_stale(self) -> None:
        for path in [*self.folder.glob(".*.partial"), *self._shards.glob(".*.partial")]:
            host, _, process = path.name.removesuffix(".partial").rpartition("@")[2].rpartition("-")
            dead = host == socket.gethostname() and not _is_alive(process)
            if dead or path.stat().st_mtime < time.time() - STALE_SECONDS:
                path.unlink(missing_ok=True)

    def _replace(self, path: Path, write: Callable[[BinaryIO], Any]) -> None:
        partial = path.with_name(f".{path.name}@{socket.gethostname()}-{os.getpid()}.partial")
        try:
            with open(partial, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @contextmanager
    def _writing(self, split: str | None = None) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kept = self.kept(split) if self._shards.is_dir() else "nothing is lost"
            raise OSError(
                f"Cannot write to {self.folder} ({error.strerror or error}): {kept}; make room there or make it "
                "writable, and run the same command again."
            ) from error


def _write_arrow(table: pa.Table, file: BinaryIO) -> None:
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def _write_parquet(table: pa.Table, file: BinaryIO) -> None:
    Dataset(InMemoryTable(table)).to_parquet(file)


def _open_arrow(path: Path) -> MemoryMappedTable:
    """A shard's columns, mapped and not read; the file is closed, so that thousands of shards can be open."""
    with pa.memory_map(str(path)) as file:
        return MemoryMappedTable(pa.ipc.open_stream(file).read_all(), str(path))


def _is_alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _difference(then: Any, now: Any, name: str) -> str | None:
    """The first place where two manifests part, in words."""
    if isinstance(then, dict) and isinstance(now, dict):
        if name.startswith("splits.") and then.get("rows") != now.get("rows"):
            return f"its split {name[7:]!r} has {then.get('rows')} rows, here {now.get('rows')} (another --limit?)"
        if name.startswith("splits."):
            name = f"rows of split {name[7:]!r}"
        keys = dict.fromkeys([*then, *now])
        return next(
            (found for key in keys if (found := _difference(then.get(key), now.get(key), f"{name}.{key}"))), None
        )
    if then == now:
        return None
    return f"its {name.replace('.', ' ')} is {_short(then)}, here {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
