"""The checksums of the files in a folder, in a file of that folder: they travel with it."""

from __future__ import annotations

import json
from pathlib import Path

from .whole import Folder, checksum, file_checksum, read_json


CHECKSUM_FILE = "checksums.json"


def write_checksums(folder: Folder) -> Path:
    """Note what is in the files of a folder that has no name of its own yet; returns the path of the note."""
    folder = Path(folder)
    files = {path.name: file_checksum(path) for path in sorted(folder.iterdir()) if path.is_file()}
    files.pop(CHECKSUM_FILE, None)
    content = {"files": files, "checksum": checksum(files)}
    path = folder / CHECKSUM_FILE
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def check_files(folder: Folder, remedy: str) -> None:
    """See that the files of a folder are those that were noted; a folder without a note is not looked at."""
    note = Path(folder) / CHECKSUM_FILE
    if not note.exists():
        return
    content = read_json(note, "list of checksums", remedy)
    files = content.get("files")
    if not isinstance(files, dict) or content.get("checksum") != checksum(files):
        raise ValueError(f"{note} is damaged, no list of checksums: {remedy}.")
    for name, digest in files.items():
        path = note.with_name(Path(name).name)
        if not path.is_file() or file_checksum(path) != digest:
            what = "is damaged (it does not match its checksum)" if path.is_file() else "is missing"
            raise ValueError(f"{path} {what}: {remedy}.")
