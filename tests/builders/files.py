"""What lies in a folder."""

from __future__ import annotations

import os
from pathlib import Path

from madkd_hf import files


def tree(folder: Path) -> dict[str, bytes | str]:
    """Every file and link below a folder, and what it holds; not what we keep there for ourselves."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if (path.is_symlink() or path.is_file()) and path.name not in (files.MARK_FILE, files.LOCK_FILE)
    }
