"""JSON files with the checksum of their own content, and what such a file notes of the files beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .whole import Folder, checksum, file_checksum, read_json, whole_file


CHECKSUM_FILE = "checksums.json"  # notes the files of a saved dataset


def write_record(path: Folder, content: Mapping[str, Any], new: bool = False) -> None:
    """Write a JSON object with its checksum, in one step; with `new`, FileExistsError where the name is not free."""
    content = json.loads(json.dumps(content))  # as it will be read back
    text = json.dumps({**content, "checksum": checksum(content)}, indent=1)
    with whole_file(path, new) as file:
        file.write(f"{text}\n".encode())


def read_record(path: Folder, what: str, remedy: str) -> dict[str, Any]:
    """What `write_record` has written, see `read_json`; what is damaged in it may still be JSON."""
    content = read_json(path, what, remedy)
    old = checksum(content.get("files"))  # what earlier versions noted of saved datasets
    if content.pop("checksum", None) not in (checksum(content), old):
        raise ValueError(f"{path} is damaged, no {what} (it does not match its checksum): {remedy}.")
    return content


def note_files(folder: Folder, but: str) -> dict[str, dict[str, Any]]:
    """Size and checksum of all files in a folder `but` one, by their path in it; they are on the disk then."""
    files = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file() and path.name != but:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            name = path.relative_to(folder).as_posix()
            files[name] = {"size": path.stat().st_size, "checksum": file_checksum(path)}
    return files


def fault_of(folder: Folder, files: Mapping[str, Any], quick: bool = False) -> str | None:
    """Which of the noted files is not what it was, in a few words; with `quick` by names and sizes alone."""
    for name, facts in files.items():
        path = Path(folder, name)
        facts = facts if isinstance(facts, dict) else {"checksum": facts}  # of older versions
        try:
            size = path.stat().st_size
        except (FileNotFoundError, NotADirectoryError):  # of `is_file`, new versions of Python say no to any error
            return f"{name} is missing"
        if size != facts.get("size", size):
            return f"{name} is damaged: it has {size} bytes of {facts['size']}"
        if not quick and file_checksum(path) != facts.get("checksum"):
            return f"{name} is damaged: its checksum differs"
    return None


def write_checksums(folder: Folder) -> None:
    """Note what is in the files of a folder, in a file that travels with them."""
    write_record(Path(folder, CHECKSUM_FILE), {"files": note_files(folder, CHECKSUM_FILE)})


def check_files(folder: Folder, remedy: str) -> None:
    """See that the files of a folder are those that were noted; a folder without a note is not looked at."""
    note = Path(folder, CHECKSUM_FILE)
    if not note.exists():
        return
    files = read_record(note, "list of checksums", remedy).get("files")
    if not isinstance(files, dict):
        raise ValueError(f"{note} is damaged, no list of checksums: {remedy}.")
    if fault := fault_of(folder, {Path(name).name: facts for name, facts in files.items()}):  # a stranger's, perhaps
        raise ValueError(f"{folder}/{fault}: {remedy}.")
