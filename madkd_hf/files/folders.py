"""Folders with our mark: `.madkd.json` says who made a folder, what kind it is, and which names in it are ours.

Whatever else is in it belongs to the user: it stays, and what would need its place is refused by name.
"""

from __future__ import annotations

import fnmatch
import glob
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .whole import TEMPORARY, Folder, read_json, refuse_link, remove_stale, temporary, write_whole, writing


MARK_FILE, LOCK_FILE = ".madkd.json", ".madkd.lock"
CACHED = re.compile(r"cache-[0-9a-f]{16}(_\d+_of_\d+)?\.arrow")  # `datasets` puts these beside rows that it reads
MADE_BY = "madkd_hf"
EVERYTHING = ("*",)
REMEDY = "pass another folder, or delete this one yourself"


def own_folder(path: Folder, kind: str, names: Sequence[str] | None = None) -> Path:
    """Make a folder ours, or see that it is; nothing in it is changed but our mark.

    `kind` says what it holds, such as "student"; `names` are patterns of what will be written in it ("report.json",
    "checkpoint-*"). Other things may be there and stay; what has such a name must be ours. Without names, the folder
    must be new, empty, or marked and of that kind.
    """
    path = Path(path)
    mark = check_folder(path, kind, names)
    with writing(path, "nothing was changed"):
        path.mkdir(parents=True, exist_ok=True)
        if mark != _marks(path):
            _write_mark(path, mark)
    return path


def check_folder(path: Folder, kind: str, names: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Raise what `own_folder` would, and change nothing; returns the mark that the folder has to have."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file, no folder for the output: pass another folder.")
    marks = _marks(path)
    if names is None:
        our_names = _our_names(path, kind)
        if our_names is None and (there := _entries(path)):
            raise _not_ours(path, there[0], kind)
        return {kind: our_names or list(EVERYTHING)}
    our_names = marks.get(kind, [])
    for name in (name_there for pattern in names for name_there in _present(path, pattern.split("/"))):
        refuse_link(path / name)
        if not _matches(name, our_names):
            raise _not_ours(path, name, kind)
    return {**marks, kind: list(dict.fromkeys([*our_names, *names]))}


def replace_folder(new: Folder, path: Folder, kind: str) -> Path:
    """Put a folder that we have just made in the place of an older one of ours, or where nothing or nothing yet is.

    It gets a mark that lists its files. Stopped in between, the old folder or the new one is there, or none.
    """
    new, path = Path(new), Path(path)
    list_files(new, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_folder(path, kind)
    os.replace(new, path)
    return path


@contextmanager
def new_folder(path: Folder, kind: str) -> Iterator[Path]:
    """A folder to fill, which takes the place of `path` (see `replace_folder`) when it is complete."""
    path = Path(path)
    check_removable(path, kind)
    new = temporary(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_stale(path.parent)
            new.mkdir()
            yield new
            replace_folder(new, path, kind)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def remove_folder(path: Folder, kind: str) -> None:
    """Remove a folder of ours, if there is one; one that holds anything else is refused, and nothing is removed."""
    path = Path(path)
    check_removable(path, kind)
    if path.is_dir():
        old = temporary(path, "old")
        os.rename(path, old)  # in one step: never half a folder under its name
        shutil.rmtree(old, ignore_errors=True)


def check_removable(path: Folder, kind: str) -> None:
    """Raise what `remove_folder` would, and remove nothing."""
    path = Path(path)
    refuse_link(path)
    if not path.exists():
        return
    if not path.is_dir():
        raise ValueError(f"{path} is a file that we did not write: move it away, or pass another output folder.")
    our_names = _our_names(path, kind)
    entries = _entries(path, nested=True)
    foreign = entries if our_names is None else [name for name in entries if not _is_listed(path, name, our_names)]
    if foreign:
        raise _not_ours(path, foreign[0], kind, len(foreign) - 1)


def list_files(path: Folder, kind: str) -> None:
    """Note in the mark of a folder that we have made which files are in it now: these, and no others, are ours."""
    path = Path(path)
    before = _our_names(path, kind)
    names = [name for name in _entries(path, nested=True) if _matches(name, before or EVERYTHING)]
    names = [glob.escape(name) for name in names if not (path / name).is_dir()]
    _write_mark(path, {kind: names}, new=before is None)


def _write_mark(path: Path, marks: dict[str, list[str]], new: bool = False) -> None:
    """Atomically, unless the folder is `new`: one without its own name yet, in which nobody reads half a mark."""
    (kind, names), *others = marks.items()
    content = {"made_by": MADE_BY, "kind": kind, "files": names} | ({"also": dict(others)} if others else {})
    text = json.dumps(content, indent=1) + "\n"
    if new:
        (path / MARK_FILE).write_text(text, encoding="utf-8")
    else:
        write_whole(path / MARK_FILE, text)


def _marks(path: Path) -> dict[str, list[str]]:
    """Kind -> the names in a marked folder that are ours; nothing where there is no mark."""
    mark = path / MARK_FILE
    refuse_link(mark)
    if not mark.exists():
        return {}
    content = read_json(mark, "mark of a folder that madkd_hf made", REMEDY)
    marks = {content.get("kind"): content.get("files")}
    marks |= content["also"] if isinstance(content.get("also"), dict) else {}
    sound = all(isinstance(kind, str) and isinstance(names, list) for kind, names in marks.items())
    if (
        content.get("made_by") != MADE_BY
        or not sound
        or not all(isinstance(n, str) for v in marks.values() for n in v)
    ):
        raise ValueError(f"{mark} is no mark of a folder that madkd_hf made: {REMEDY}.")
    return marks


def _our_names(path: Path, kind: str) -> list[str] | None:
    """The names that are ours in a folder of one kind as a whole; None where there is no mark."""
    marks = _marks(path)
    if others := set(marks) - {kind}:
        raise ValueError(f"{path} holds a {sorted(others)[0]}, and a {kind} is to be written there: {REMEDY}.")
    return marks.get(kind)


def _present(path: Path, parts: Sequence[str], above: str = "") -> Iterator[str]:
    """What is there under a pattern, as relative paths; down to a link, or a file in a folder's place."""
    here = path / above
    if glob.has_magic(parts[0]):
        names = sorted(fnmatch.filter(os.listdir(here), parts[0])) if here.is_dir() else []
    else:
        names = [parts[0]] if os.path.lexists(here / parts[0]) else []
    for name in names:
        entry = here / name
        if len(parts) == 1 or entry.is_symlink() or not entry.is_dir():
            yield f"{above}{name}"
        else:
            yield from _present(path, parts[1:], f"{above}{name}/")


def _entries(path: Path, nested: bool = False) -> list[str]:
    """What is in a folder, as relative paths, links unfollowed; not what we keep there for ourselves."""
    names = []
    for folder, folders, files in os.walk(path):
        names += [Path(folder, name).relative_to(path).as_posix() for name in (*folders, *files)]
        if not nested:
            break
    return sorted(name for name in names if not _is_internal(name))


def _is_internal(name: str) -> bool:
    last = name.rpartition("/")[2]
    return last in (MARK_FILE, LOCK_FILE) or TEMPORARY.fullmatch(last) is not None


def _is_listed(path: Path, name: str, our_names: Sequence[str]) -> bool:
    entry = path / name
    if entry.is_symlink():
        return False  # we make none
    if entry.is_dir():  # its files are looked at, and an empty one holds nothing of anybody's
        return True
    return _matches(name, our_names) or CACHED.fullmatch(entry.name) is not None


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a relative path, or a folder that it lies in, has such a name."""
    parts = name.split("/")
    paths = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns for path in paths)


def _not_ours(path: Path, name: str, kind: str, more: int = 0) -> ValueError:
    others = f" and {more} more" if more else ""
    return ValueError(
        f"{path / name}{others} was not written by this command, and a {kind} is to be written there: move it away, "
        "or pass another output folder; nothing was changed."
    )
