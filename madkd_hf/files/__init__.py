"""A user's disk: files are written whole, only folders that carry our mark are removed, one job works in a folder."""

from .folders import (
    LOCK_FILE,
    MARK_FILE,
    check_folder,
    check_removable,
    list_files,
    new_folder,
    own_folder,
    remove_folder,
    replace_folder,
)
from .places import check_name, check_output, locked
from .records import CHECKSUM_FILE, check_files, fault_of, note_files, read_record, write_checksums, write_record
from .whole import (
    checksum,
    disk_is_full,
    file_checksum,
    read_json,
    refuse_link,
    remove_stale,
    temporary,
    whole_file,
    write_whole,
    writing,
)


__all__ = [
    "CHECKSUM_FILE",
    "LOCK_FILE",
    "MARK_FILE",
    "check_files",
    "check_folder",
    "check_name",
    "check_output",
    "check_removable",
    "checksum",
    "disk_is_full",
    "fault_of",
    "file_checksum",
    "list_files",
    "locked",
    "new_folder",
    "note_files",
    "own_folder",
    "read_json",
    "read_record",
    "refuse_link",
    "remove_folder",
    "remove_stale",
    "replace_folder",
    "temporary",
    "whole_file",
    "write_checksums",
    "write_record",
    "write_whole",
    "writing",
]
