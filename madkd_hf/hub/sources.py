"""Where rows come from: the dataset of the Hub, and its commit."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import constants

from ..text import code


HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")


def link(name: str, kind: str = "") -> str:
    """Markdown: a link to a repo of the Hub, of which `kind` is "" or "datasets/"; what cannot be one is no link."""
    return f"[{name}]({constants.ENDPOINT}/{kind}{name})" if HUB_ID.fullmatch(name) else code(name)


@dataclass(frozen=True)
class DataSource:
    """The images that a student learnt from, or was measured on.

    Attributes:
        name: a Hub id, or what else they are called; of a path only the last part is shown.
        revision: the commit of the Hub dataset.
        config: the configuration of the Hub dataset.
        on_the_hub: the name is a Hub id. Without it and without a commit, it is not taken for one.
    """

    name: str
    revision: str | None = None
    config: str | None = None
    on_the_hub: bool = False

    @classmethod
    def of(cls, rows: Any) -> DataSource | None:
        """Where rows were loaded from, as far as their cache files tell: from the Hub, at which commit."""
        for file in rows.cache_files if isinstance(rows, Dataset) else ():
            path = Path(file["filename"]).as_posix()
            if match := re.search(rf"/([\w.-]+)___[\w.-]+/[^/]+/[^/]+/({COMMIT.pattern})/[^/]+$", path):
                # The folder's name is not quite that of the dataset (OxfordPets is oxford_pets there).
                for download in Path(constants.HF_HUB_CACHE).glob(f"datasets--{match[1]}--*/snapshots/{match[2]}"):
                    name = download.parents[1].name.removeprefix("datasets--").replace("--", "/", 1)
                    config = rows.info.config_name
                    return cls(name, match[2], None if config == "default" else config)
        return None

    @property
    def id(self) -> str | None:
        """The Hub id, where it is one."""
        return self.name if (self.revision or self.on_the_hub) and HUB_ID.fullmatch(self.name) else None

    @property
    def shown(self) -> str:
        return self.id or (Path(self.name).name if os.path.isabs(self.name) else self.name)
