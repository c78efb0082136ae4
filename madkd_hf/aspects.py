"""The bank: yes/no questions about an image, in a fixed order."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download


BANK_FILE = "aspects.json"
ASPECT_COLUMNS = ("aspect_logits", "aspect_mass", "aspect_bank")  # of a labelled dataset
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Aspect:
    """One yes/no question (paper section 3.1).

    Attributes:
        id: a short unique name, used in tables, pictures and model configs.
        question: the question as the multimodal LLM reads it.
        group: what kind of aspect it is, for instance "visual", "categorical" or "environmental".
    """

    id: str
    question: str
    group: str = ""


class AspectBank:
    """Q yes/no questions in order; the order is that of every `aspect_logits` column and aspect output.

    Args:
        aspects: the aspects, in order.
        provenance: who answered the questions and how, once a dataset has been labelled with them.

    Raises:
        ValueError: no aspects, an empty or repeated id, a repeated question, or a statement in place of a question.
    """

    def __init__(self, aspects: Iterable[Aspect], provenance: dict[str, Any] | None = None):
        self.aspects = tuple(aspects)
        self.provenance = provenance
        _validate(self.aspects)

    def __len__(self) -> int:
        return len(self.aspects)

    def __iter__(self) -> Iterator[Aspect]:
        return iter(self.aspects)

    def __getitem__(self, index: int) -> Aspect:
        return self.aspects[index]

    def __repr__(self) -> str:
        return f"AspectBank({len(self)} aspects, fingerprint={self.fingerprint!r})"

    @property
    def ids(self) -> list[str]:
        """The Q ids, in order."""
        return [aspect.id for aspect in self.aspects]

    @property
    def questions(self) -> list[str]:
        """The Q questions, in order."""
        return [aspect.question for aspect in self.aspects]

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over ids and questions in order: what decides what a column of answers means."""
        content = json.dumps([[aspect.id, aspect.question] for aspect in self.aspects], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @classmethod
    def load(
        cls, source: str | os.PathLike, revision: str | None = None, token: str | bool | None = None
    ) -> AspectBank:
        """Read a bank.

        Args:
            source: a JSON file, a folder that holds `aspects.json`, or the id of a dataset on the Hub.
            revision: branch, tag or commit of the Hub dataset.
            token: a Hub token, or True for the stored one.

        Raises:
            FileNotFoundError: nothing is there.
            ValueError: what is there is no bank.
        """
        return cls._parse(_locate(source, revision, token))

    @classmethod
    def _parse(cls, path: Path) -> AspectBank:
        expected = '{"format_version": 1, "aspects": [{"id": ..., "question": ..., "group": ...}, ...]}'
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
            version, entries = content["format_version"], content["aspects"]
            aspects = [Aspect(**entry) for entry in entries]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no aspect bank ({error!r}): expected JSON like {expected}.") from error
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{path} has bank format {version!r}, this version reads {FORMAT_VERSION}: upgrade madkd_hf."
            )
        return cls(aspects, content.get("provenance"))

    def save(self, path: str | os.PathLike) -> Path:
        """Write the bank to a JSON file, or as `aspects.json` into a folder; returns the file's path."""
        path = Path(path)
        if path.suffix != ".json":
            path = path / BANK_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"format_version": FORMAT_VERSION, "aspects": [asdict(aspect) for aspect in self.aspects]}
        if self.provenance is not None:
            content["provenance"] = self.provenance
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(path)
        return path


def _locate(source: str | os.PathLike, revision: str | None, token: str | bool | None) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / BANK_FILE).is_file():
            raise FileNotFoundError(f"The folder {path} holds no {BANK_FILE}.")
        return path / BANK_FILE
    if path.suffix == ".json" or len(path.parts) > 2 or path.is_absolute():
        raise FileNotFoundError(f"There is no bank at {path}: expected a JSON file, a folder, or a Hub dataset id.")
    try:
        return Path(hf_hub_download(str(source), BANK_FILE, repo_type="dataset", revision=revision, token=token))
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"There is no bank at {source}: no such file or folder here, and no {BANK_FILE} to be had from a dataset "
            f"of that name on the Hub ({reason})."
        ) from error


def _validate(aspects: tuple[Aspect, ...]) -> None:
    if not aspects:
        raise ValueError("The bank has no questions: expected at least one aspect.")
    seen: dict[str, str] = {}
    for position, aspect in enumerate(aspects):
        if not isinstance(aspect.id, str) or not aspect.id.strip():
            raise ValueError(f"Aspect {position} has the id {aspect.id!r}: expected a name that is not empty.")
        if not isinstance(aspect.question, str) or not aspect.question.rstrip().endswith(("?", "？", "؟")):
            raise ValueError(
                f"Aspect {aspect.id!r} is no question but {aspect.question!r}: "
                "write it so that yes or no answers it, with a question mark at the end."
            )
        for key in (f"id {aspect.id!r}", f"question {' '.join(aspect.question.lower().split())!r}"):
            if key in seen:
                raise ValueError(f"The {key} appears twice, in aspects {seen[key]!r} and {aspect.id!r}: remove one.")
            seen[key] = aspect.id
