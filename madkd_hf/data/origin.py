"""Which files the rows of a dataset may name, and how these are read: a stranger may have written the names.

A row of images holds bytes, or the name of a file that is to be read in their place. A stranger may name any file of
the reader's machine, of the reader's private repos, or an address in the reader's network; what is read from there
would stand in what the reader publishes.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import stat
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, IterableDataset
from datasets.utils.file_utils import hash_url_to_filename, xopen
from huggingface_hub import constants
from PIL import Image

from ..text import terminal
from .streams import steps


LARGEST = 1 << 28  # bytes of an image file
STARTS_PROGRAMS = ("EPS", "WMF")  # formats that Pillow leaves to other programs, or to the system
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".lz4", ".7z", ".rar")
IN_ARCHIVE = re.compile(r"(zip|tar|gzip|bz2|xz|lz4|zstd)://")
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:|.*://")
HUB = "hf://datasets/"
COMMIT = re.compile(r"/([0-9a-f]{40})/[^/]+$")
BY_PROGRAMS = (None, "generator", "spark", "imagefolder")  # builders of rows whose file names no stranger wrote
MOST = 10_000  # files of a stream that are looked at


class RefusedFileError(ValueError):
    """A file that rows name and that is not read: it is none of the dataset's, or no image."""


@dataclass(frozen=True)
class Origin:
    """Where a dataset comes from, and so which files its rows may name.

    Attributes:
        folders: files in these, links followed; None: any image file of this machine, for rows that the user's own
            program has made.
        repo: the Hub dataset whose files may be named, too.
    """

    folders: tuple[Path, ...] | None = None
    repo: str | None = None

    @classmethod
    def of_folder(cls, folder: str | os.PathLike) -> Origin:
        """A dataset in a folder of this machine: its own files, and where it is a download those that links name."""
        root = Path(folder).expanduser().resolve()
        root = root.parent if root.is_file() else root
        repo = next((parent.parent for parent in (root, *root.parents) if parent.name == "snapshots"), None)
        return cls((root, repo / "blobs") if repo else (root,))

    @classmethod
    def of(cls, rows: Dataset | IterableDataset, folder: str | os.PathLike | None = None) -> Origin:
        """What is known of the rows: of a folder, of the Hub, of files of this machine, or of the user's own program.

        The images of a `folder` that we have listed ourselves are the user's own, wherever links lead.
        """
        parts = [rows, *(value for value in _settings(rows) if isinstance(value, Dataset))]
        if folder is not None and not _listed_by_us(parts, Path(folder)):
            return cls.of_folder(folder)
        files = _SourceFiles()
        for part in parts:
            files.note(part)
        if files.repos or files.folders or files.of_files:
            return cls(tuple(dict.fromkeys(files.folders)), next(iter(files.repos), None))
        return cls()

    def refusal(self, path: str) -> str | None:
        """Why a file is not read, by its name alone; None where it may be."""
        *archives, last = path.split("::")
        if "\0" in path or not all(IN_ARCHIVE.match(part) and part.count("://") == 1 for part in archives):
            return "that is no file's name"
        if ADDRESS.match(last) and not os.path.isabs(last):
            parts = last.removeprefix(HUB).split("/")
            own = self.repo and re.match(rf"{re.escape(self.repo)}(@|/)", last.removeprefix(HUB), re.IGNORECASE)
            if last.startswith(HUB) and own and not {"..", "."} & set(parts):
                return None
            return "an address outside the dataset is not read"
        if last.startswith("\\\\") or (os.name == "nt" and last.startswith("//")):
            return "a file of another machine is not read"
        if self.folders is None or any(Path(os.path.realpath(last)).is_relative_to(part) for part in self.folders):
            return None
        return "it lies outside the dataset"

    def read(self, path: str) -> bytes:
        """The bytes of an image file that a row names: decoded once, so that only images are returned.

        Raises RefusedFileError where it may not be read or is no image, OSError where it could not be read this time.
        """
        if reason := self.refusal(path):
            raise RefusedFileError(reason)
        content = _local(path) if "://" not in path else _remote(path)
        check_image(content)
        return content


def check_format(content: bytes | None) -> None:
    """Raise RefusedFileError for an image of a format for which Pillow starts other programs."""
    try:
        image = Image.open(BytesIO(content or b""))
    except Exception:  # the decoding will say it
        return
    if image.format in STARTS_PROGRAMS:
        raise RefusedFileError(f"it is {image.format}, which other programs would have to read")


def check_image(content: bytes) -> None:
    """Decode an image; RefusedFileError where it is none, or of a format that other programs would have to read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            check_format(content)
            Image.open(BytesIO(content)).load()
    except (MemoryError, RefusedFileError):
        raise
    except Exception as error:  # decoders raise whatever they like
        raise RefusedFileError(
            f"it is no image that can be decoded: {terminal(error) or type(error).__name__}"
        ) from None


def _local(path: str) -> bytes:
    flags = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_BINARY", "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"))
    handle = os.open(os.path.realpath(path), flags)  # what was checked, and no link put there since
    if not stat.S_ISREG((facts := os.fstat(handle)).st_mode):
        os.close(handle)
        raise RefusedFileError("it is no file")
    with os.fdopen(handle, "rb") as file:
        if facts.st_size > LARGEST:
            raise RefusedFileError(f"it has {facts.st_size:,} bytes, more than {LARGEST:,}")
        return file.read(LARGEST)


def _remote(path: str) -> bytes:
    """From the Hub, or out of an archive."""
    try:
        with xopen(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except (FileNotFoundError, ValueError):
        raise
    except Exception as error:  # what a client of the web raises when a server is busy need not be an OSError
        raise OSError(getattr(error, "errno", None) or errno.EIO, terminal(error)) from error
    if len(content) > LARGEST:
        raise RefusedFileError(f"it has more than {LARGEST:,} bytes")
    return content


def _downloads(commit: str) -> Iterator[Path]:
    """Where files of a Hub dataset lie once it is downloaded: its repo in the cache, and what came out of archives."""
    for snapshot in Path(constants.HF_HUB_CACHE).glob(f"datasets--*/snapshots/{commit}"):
        yield Path(os.path.realpath(snapshot.parents[1]))
        for file in snapshot.rglob("*"):
            if file.suffix.lower() in ARCHIVES:
                name = hash_url_to_filename(os.path.abspath(file))
                yield Path(os.path.realpath(os.path.join(datasets.config.EXTRACTED_DATASETS_PATH, name)))


@dataclass
class _SourceFiles:
    """The files that rows were read from, as far as known; `of_files`: whether they were read from files at all."""

    repos: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    of_files: bool = False

    def note(self, rows: Dataset | IterableDataset) -> None:
        if rows.info.builder_name not in BY_PROGRAMS:
            self.of_files = True
            self._note_names(list(rows.info.download_checksums or ()))
        if isinstance(rows, Dataset):
            self._note_cached([Path(file["filename"]) for file in rows.cache_files])
        else:
            strings = [value for value in _settings(rows) if isinstance(value, str)]
            self.repos += _repos(strings)
            if self.of_files:
                self._note_names(strings)

    def _note_cached(self, files: list[Path]) -> None:
        for file in files:
            if match := COMMIT.search(file.as_posix()):
                self.of_files = True
                self.folders += _downloads(match[1])
            elif (file.parent / "state.json").is_file():  # written by save_to_disk, with the splits side by side
                self.folders.append(file.parent.parent.resolve())

    def _note_names(self, files: list[str]) -> None:
        self.repos += _repos(files)
        self.folders += [Path(os.path.realpath(file)).parent for file in files if os.path.isfile(file)]


def _listed_by_us(parts: Iterable[Dataset | IterableDataset], folder: Path) -> bool:
    if any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json")):
        return False
    rows = [part for part in parts if isinstance(part, Dataset)]
    return bool(rows) and all(not part.cache_files and part.info.builder_name is None for part in rows)


def _repos(names: Iterable[str]) -> list[str]:
    """The Hub datasets whose files are named."""
    matches = (re.search(rf"(?:^|::){re.escape(HUB)}([\w.-]+(?:/[\w.-]+)?)[@/]", name) for name in names)
    return [match[1] for match in matches if match]


def _settings(rows: Dataset | IterableDataset) -> Iterator[str | Dataset]:
    """Texts and datasets among the settings of a stream's steps."""
    for step in steps(rows) if isinstance(rows, IterableDataset) else ():
        yield from _leaves(step)


def _leaves(value: Any) -> Iterator[str | Dataset]:
    if isinstance(value, (str, Dataset)):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in itertools.islice(value.values() if isinstance(value, dict) else value, MOST):
            yield from _leaves(item)
    else:
        yield from _leaves([getattr(value, name) for name in ("kwargs", "args") if hasattr(value, name)])
