"""Files are written whole or not at all, and what is read is checked."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from ..text import chain_of_causes


STALE_SECONDS = 24 * 3600  # a temporary file of another machine, whose processes cannot be seen from here
TEMPORARY = re.compile(r"\..+@(?P<host>.+)-(?P<process>\d+)-[0-9a-f]{12}\.(partial|old)")
FULL_WORDS = r"No space left on device|os error 28\b|Disk quota exceeded|File too large|PytorchStreamWriter failed"
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # some network file systems
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Folder = str | os.PathLike


@contextmanager
def whole_file(path: Folder, new: bool = False) -> Iterator[BinaryIO]:
    """A file to write and read, which takes its name when it is complete; a failure or a kill leaves what was there.

    With `new`, the name must be free at the end, else FileExistsError: of two that write it at once, one is the first.
    """
    path = Path(path)
    refuse_link(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder where a file is to be written: move it away, or write elsewhere.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary(path)
    try:
        with open(partial, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if new:
            _link(partial, path)
        else:
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _link(partial: Path, path: Path) -> None:
    """Give a file a name that must be free, as far as the file system knows links."""
    try:
        os.link(partial, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        os.replace(partial, path)


def write_whole(path: Folder, content: str | bytes) -> Path:
    """Write a file in one step, never half of it, in a folder made where missing; returns its path."""
    with writing(path), whole_file(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
    return Path(path)


@contextmanager
def writing(place: Folder, state: str = "what was there before is whole") -> Iterator[None]:
    """Turn an `OSError` into one sentence with a remedy; `state` says what is left of the user's files."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # a sentence of ours already
            raise
        raise OSError(
            f"Cannot write to {place} ({error.strerror or error}): {state}; make room there or make it writable, and "
            "run the same command again."
        ) from error


def temporary(path: Path, ending: str = "partial") -> Path:
    """A name beside `path` that no other process and no other call uses."""
    name = path.name.encode()[:100].decode(errors="ignore")
    return path.with_name(f".{name}@{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(6)}.{ending}")


def remove_stale(folder: Folder) -> None:
    """Remove temporary files and folders of ours in a folder whose process is dead."""
    for path in Path(folder).glob(".*"):
        match = TEMPORARY.fullmatch(path.name)
        if not match or path.is_symlink():
            continue
        dead = match["host"] == socket.gethostname() and not _is_alive(int(match["process"]))
        try:
            if not dead and path.stat().st_mtime > time.time() - STALE_SECONDS:
                continue
        except FileNotFoundError:  # whoever writes it has finished this moment
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def disk_is_full(error: BaseException | None) -> bool:
    """Whether that, or what it came from, is a full disk, whatever library said so."""
    return any(
        (isinstance(cause, OSError) and cause.errno in FULL) or re.search(FULL_WORDS, str(cause))
        for cause in chain_of_causes(error)
    )


def refuse_link(path: Folder) -> None:
    """Refuse a name at which there is a link, which leads to what is not ours."""
    if Path(path).is_symlink():
        raise ValueError(
            f"{path} is a link to {os.readlink(path)}, which we do not follow: remove the link, or pass another "
            "output folder."
        )


def read_json(path: Folder, what: str, remedy: str) -> dict[str, Any]:
    """The object that a JSON file of ours holds.

    `what` it should be, such as "result of a student", and the `remedy` are for the message where it is not.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise ValueError(f"{path}, {what}, cannot be read ({error.strerror}): {remedy}.") from error
    except OSError as error:  # it may pass, and says nothing of the content
        raise OSError(
            f"{path}, {what}, cannot be read ({error.strerror or error}): make it readable, or {remedy}."
        ) from error
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or nested without end
        raise ValueError(f"{path} is damaged, no {what} ({error}): {remedy}.") from error
    return content


def checksum(content: Any) -> str:
    """Of what a JSON file holds, whatever the order of its keys: what is damaged in it may still be JSON."""
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def file_checksum(path: Folder) -> str:
    """Of a file's bytes, read block by block."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
