"""The files of a folder of images: which are images, and why the others are left out."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image


METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # the Hub's convention for folders of images
TABLES = (".parquet", ".arrow", ".csv", ".json", ".jsonl", ".tar", ".zip", ".tsv")  # what `load_dataset` reads
SAVED = ("dataset_dict.json", "state.json")  # in a folder that save_to_disk wrote
OF_THE_SYSTEM = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "$recycle.bin", "__macosx")
NEED_MORE_THAN_PILLOW = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")  # Pillow knows them and cannot decode them
PHOTOS = (".heic", ".heif", ".avif", ".jxl", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".svg")


@dataclass(frozen=True)
class File:
    """A file of a folder: its path below it as the disk spells it, its bytes, and when it changed, in nanoseconds."""

    parts: tuple[str, ...]
    size: int
    changed: int

    @property
    def name(self) -> str:
        """The path below the folder, with slashes."""
        return "/".join(self.parts)

    @property
    def order(self) -> tuple:
        """The same on every file system."""
        return tuple(map(composed, self.parts)), self.parts


@dataclass
class Files:
    """What a folder holds, in an order that does not depend on the disk.

    Attributes:
        images: that Pillow can decode, by their names.
        metadata: files named like those of the Hub's convention.
        tables: files that `load_dataset` reads.
        left_out: reason -> names of what is no image.
    """

    images: list[File] = field(default_factory=list)
    metadata: list[File] = field(default_factory=list)
    tables: list[File] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def undecodable(self) -> bool:
        """Whether there are photographs among what is left out."""
        return any("Pillow" in reason for reason in self.left_out)


@cache
def image_suffixes() -> frozenset[str]:
    """The endings, in lower case, of files that this Pillow decodes."""
    Image.init()
    decoded = set(Image.OPEN) - set(NEED_MORE_THAN_PILLOW)
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in decoded)


def composed(name: str) -> str:
    """One spelling of a name: the same letters may be stored in two ways (ü, or u and two dots)."""
    return unicodedata.normalize("NFC", name)


def walk(folder: Path) -> Files:
    """Look at every file below a folder; links to files and folders are followed."""
    files = Files()
    _walk(folder, (), (), files)
    for group in (files.images, files.metadata, files.tables):
        group.sort(key=lambda file: file.order)
    return files


def _walk(folder: Path, parts: tuple[str, ...], above: tuple[tuple[int, int], ...], files: Files) -> None:
    try:
        facts = os.stat(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise OSError(
            f"The folder {folder} cannot be opened ({error.strerror}): make it readable, or move it elsewhere."
        ) from error
    here = (facts.st_dev, facts.st_ino)
    if here in above:
        files.left_out["links that lead back to a folder around them"].append("/".join(parts))
        return
    if parts and any(entry.name in SAVED for entry in entries):
        files.left_out["datasets written by save_to_disk"].append("/".join(parts))
        return
    for entry in entries:
        _sort_in(entry, (*parts, entry.name), (*above, here), files)


def _sort_in(entry: os.DirEntry, parts: tuple[str, ...], above: tuple, files: Files) -> None:
    name = "/".join(parts)
    try:
        name.encode()
    except UnicodeEncodeError:
        files.left_out["names that are no UTF-8: rename them"].append(name.encode(errors="replace").decode())
        return
    if "::" in name:
        files.left_out["names with ::, which datasets takes for archives: rename them"].append(name)
    elif entry.name.lower() in OF_THE_SYSTEM:
        files.left_out["files of the operating system"].append(name)
    elif entry.name.startswith(".") or entry.name == "__pycache__":
        files.left_out["hidden files or folders"].append(name)
    elif entry.is_dir():
        _walk(Path(entry.path), parts, above, files)
    else:
        _sort_in_file(entry, parts, name, files)


def _sort_in_file(entry: os.DirEntry, parts: tuple[str, ...], name: str, files: Files) -> None:
    try:
        facts = entry.stat()
    except OSError:
        files.left_out["links to nothing"].append(name)
        return
    suffix = os.path.splitext(entry.name)[1].lower()
    file = File(parts, facts.st_size, facts.st_mtime_ns)
    if not stat.S_ISREG(facts.st_mode):
        files.left_out["no regular files"].append(name)
    elif entry.name in METADATA:
        files.metadata.append(file)
    elif suffix in image_suffixes():
        if file.size:
            files.images.append(file)
        else:
            files.left_out["empty image files"].append(name)
    elif suffix in PHOTOS:
        files.left_out[f"{suffix} images, which Pillow cannot read here: convert them to JPEG"].append(name)
    else:
        files.left_out[f"{suffix} files" if suffix else "files without a suffix"].append(name)
        if suffix in TABLES:
            files.tables.append(file)
