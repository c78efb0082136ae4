"""Where a command may write: names that can be files, folders that hold no source, and one job at a time in each."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..text import get_logger
from .folders import LOCK_FILE, MARK_FILE
from .whole import Folder, refuse_link, remove_stale, writing


logger = get_logger(__name__)

LONGEST_NAME = 200  # bytes; file systems take 255, and some of it is for endings and temporary names
RESERVED = set('<>:"/\\|?*')  # by Windows, or separators somewhere
BIDI = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


_this_thread = threading.local()  # its `folders` are those that the thread holds


def check_name(name: Any, what: str) -> str:
    """A name, of a `what` such as "split", that is to become a file or a folder on any system; returns it."""
    remedy = "rename it, with letters, digits, '_', '-' and '.'"
    if not isinstance(name, str) or not name:
        raise ValueError(f"The {what} has the name {name!r}, which can be no file name: {remedy}.")
    wrong = [c for c in name if c in RESERVED or c in BIDI or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    if wrong or name[0] in ". " or name[-1] in ". ":
        shown = name if len(name) <= 60 else f"{name[:60]}..."
        reason = f"it holds {wrong[0]!r}" if wrong else "it begins or ends with a dot or a space"
        raise ValueError(f"The {what} {shown!r} can be no file name ({reason}): {remedy}.")
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(
            f"The {what} {name[:40]!r}... has {len(name.encode())} bytes, more than a file name may ({LONGEST_NAME}): "
            "shorten it."
        )
    return name


def check_output(output_dir: Folder, *sources: Folder | None, name: str = "output") -> Path:
    """Refuse an output folder that cannot be one, or whose files could be those of a source; nothing is made.

    `sources` are folders, files, or names of the Hub, which no folder of this machine holds; a source folder must not
    hold the output, nor lie in it. `name` is that of the folder and its option, such as "work" for --work_dir.
    """
    folder = Path(output_dir)
    if not str(output_dir):
        raise ValueError(f"No {name} folder given: pass --{name}_dir.")
    if folder.suffix.lower() == ".json":
        raise ValueError(f"{output_dir} has the name of a JSON file: pass the name of a folder.")
    place = Path(os.path.realpath(folder))
    article = "an" if name == "output" else "a"
    for source in sources:
        source = os.path.expanduser(source) if source else None
        how = _overlap(place, Path(source)) if source and os.path.exists(source) else None
        if how:
            raise ValueError(
                f"The {name} folder {output_dir} {how} {source}, which is read: pass {article} {name} folder "
                "elsewhere."
            )
    _check_writable(place, output_dir)
    return folder


def _overlap(place: Path, source: Path) -> str | None:
    """How an output folder (without links in its path) overlaps with a source, in words."""
    real_source = Path(os.path.realpath(source))
    if _same(real_source, place):
        return "is"
    if _lies_in(real_source, place):
        return "contains"
    if not real_source.is_dir():
        return None
    if _lies_in(place, real_source):
        return "lies in"
    targets = _targets(real_source)
    if place.is_dir() and any(_lies_in(target, place) for target in targets):
        return "holds files that belong, by a link, to"
    if any(target.is_dir() and _lies_in(place, target) for target in targets):
        return "lies, by a link, in"
    return None


def _targets(folder: Path) -> set[Path]:
    """The files and folders to which links in a folder lead, and links in these."""
    targets, waiting = set(), [folder]
    while waiting:
        for path, folders, files in os.walk(waiting.pop()):
            for name in (*folders, *files):
                link = os.path.join(path, name)
                target = Path(os.path.realpath(link)) if os.path.islink(link) else None
                if target is not None and target not in targets:
                    targets.add(target)
                    waiting += [target] if target.is_dir() else []
    return targets


def _lies_in(path: Path, folder: Path) -> bool:
    """Compared as files, not as words: a disk may take `Birds` for `birds`."""
    return any(_same(parent, folder) for parent in (path, *path.parents))


def _same(path: Path, other_path: Path) -> bool:
    try:
        return path == other_path or os.path.samefile(path, other_path)
    except OSError:  # what is not there yet
        return False


def _check_writable(place: Path, output_dir: Folder) -> None:
    there = next(path for path in (place, *place.parents) if path.exists() or path.is_symlink())
    if not there.is_dir():
        raise ValueError(f"{there} is a file, no folder for the output: pass another folder than {output_dir}.")
    try:
        with tempfile.TemporaryFile(dir=there):  # a question about permissions would not see a read-only disk
            pass
    except OSError as error:
        raise ValueError(
            f"{there} cannot be written to ({error.strerror or error}): make it writable, or pass another folder "
            f"than {output_dir}."
        ) from error


@contextmanager
def locked(
    folder: Folder,
    activity: str = "it writes there",
    option: str = "--output_dir",
    again: bool = False,
    wait: bool = False,
) -> Iterator[None]:
    """Keep other jobs out of a folder, made where missing; however the process ends, the lock ends with it.

    `activity` and `option` are for the message to another job. With `again`, the thread that holds the folder may
    enter it once more; with `wait`, another job waits, with one warning, in place of being refused.
    """
    folder = Path(folder)
    key = os.path.realpath(folder)
    held = _this_thread.__dict__.setdefault("folders", set())  # the folders that this thread holds
    if again and key in held:
        yield
        return
    new = not folder.exists()
    with writing(folder, "nothing was changed"):
        folder.mkdir(parents=True, exist_ok=True)
        refuse_link(folder / LOCK_FILE)
        lock = FileLock(folder / LOCK_FILE)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise ValueError(
                    f"Another run is at work in {folder}: {activity}; wait until it is over, or pass another {option}."
                ) from None
            logger.warning("Another process is at work in %s: %s; this one waits until it is over.", folder, activity)
            _acquire(lock, folder)
    held.add(key)
    try:
        remove_stale(folder)
        yield
    finally:
        if new and set(os.listdir(folder)) <= {LOCK_FILE, MARK_FILE}:  # nothing came of it: leave no trace
            shutil.rmtree(folder, ignore_errors=True)
        held.discard(key)
        lock.release()


def _acquire(lock: FileLock, folder: Path) -> None:
    while not lock.is_locked:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except FileNotFoundError:  # the other job left no trace of the folder
            pass
