"""The bank: yes/no questions about an image, in a fixed order."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from .files import write_whole
from .text import hidden_character, jsonable, keep_secret, masked, one_line, terminal


BANK_FILE = "aspects.json"
FORMAT_VERSION = 1
LONGEST = {"id": 200, "question": 2_000, "group": 200}  # characters; a question is read with every image
MOST_ASPECTS = 10_000
UNPUBLISHED = "{id} (its text is not published)?"
LARGEST_FILE = 50_000_000  # bytes
FILLERS = set(
    "a an the is are was were am be do does did has have had can could will would should may might must".split()
)
FILLERS |= set("it its this that these those there in on at of to with by from and or any some image picture".split())


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
        aspects: the aspects, in order; or plain questions, whose ids are made of their words: "Is it red?" is `red`.
        provenance: who answered the questions and how, once a dataset has been labelled with them.

    Raises:
        ValueError: no aspects, an empty or repeated id, a repeated question, a statement in place of a question, a
            text that is none, too long, or holds characters that cannot be seen, or a provenance that is no dict.
    """

    def __init__(self, aspects: Iterable[Aspect | str], provenance: dict[str, Any] | None = None):
        self.aspects = _as_aspects(aspects)
        self.provenance = provenance
        _validate(self.aspects)
        if provenance is not None and not isinstance(provenance, Mapping):
            raise ValueError(
                f"The provenance is {_short(provenance)}: expected a dict, or None where nobody answered."
            )

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
    def of_ids(cls, ids: Iterable[str], provenance: dict[str, Any] | None = None) -> AspectBank:
        """A bank whose questions were never published: they are known by ids, and no teacher can be asked them."""
        return cls([Aspect(name, UNPUBLISHED.format(id=name)) for name in ids], provenance)

    @property
    def unpublished(self) -> list[str]:
        """The ids of those questions whose texts are not known."""
        return [aspect.id for aspect in self if aspect.question == UNPUBLISHED.format(id=aspect.id)]

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
        _check_size(path, path.stat().st_size)
        try:
            text = path.read_text(encoding="utf-8-sig")
            content = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
            version, entries = content["format_version"], content["aspects"]
            if version != FORMAT_VERSION or isinstance(version, bool):
                raise _BankError(
                    f"bank format {_short(version)}, this version reads {FORMAT_VERSION}: upgrade madkd_hf."
                )
            aspects = [Aspect(**entry) for entry in entries]
            return cls(aspects, content.get("provenance"))
        except _BankError as error:
            raise ValueError(f"{one_line(path)}: {error}") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else terminal(repr(error))
            raise ValueError(
                f"{one_line(path)} is no aspect bank ({reason}): expected JSON like {expected}."
            ) from None

    def save(self, path: str | os.PathLike) -> Path:
        """Write the bank to a JSON file, or as `aspects.json` into a folder; returns the file's path."""
        path = Path(path)
        if path.suffix != ".json":
            path = path / BANK_FILE
        content = {"format_version": FORMAT_VERSION, "aspects": [asdict(aspect) for aspect in self.aspects]}
        if self.provenance is not None:
            content["provenance"] = jsonable(self.provenance)
        return write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


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
        keep_secret(token if isinstance(token, str) else None)
        options = {"repo_type": "dataset", "revision": revision, "token": token}
        size = hf_hub_download(str(source), BANK_FILE, dry_run=True, **options).file_size or 0
        _check_size(f"The {BANK_FILE} of {source}", size)
        return Path(hf_hub_download(str(source), BANK_FILE, **options))
    except OSError as error:
        reason = (masked(error).strip() or type(error).__name__).splitlines()
        raise FileNotFoundError(
            f"There is no bank at {one_line(source)}: no such file or folder here, and no {BANK_FILE} to be had from "
            f"a dataset of that name on the Hub ({terminal(reason[0])})."
        ) from error


def _check_size(name: str | Path, size: int) -> None:
    if size > LARGEST_FILE:
        raise ValueError(
            f"{one_line(name)} is no aspect bank: it has {size:,} bytes, at most {LARGEST_FILE:,} are read."
        )


class _BankError(ValueError):
    """What is wrong with a bank, in one sentence."""


def _as_aspects(aspects: Iterable[Aspect | str]) -> tuple[Aspect, ...]:
    """Aspects, those for plain questions named after their words."""
    if isinstance(aspects, (str, bytes, Mapping)):
        raise _BankError(f"The bank is {_short(aspects)}: expected a list of questions, or of Aspect(id, question).")
    result: list[Aspect] = []
    aspects = list(aspects)
    used_ids = {aspect.id for aspect in aspects if isinstance(aspect, Aspect) and isinstance(aspect.id, str)}
    for position, aspect in enumerate(aspects):
        if not isinstance(aspect, (Aspect, str)):
            raise _BankError(f"Aspect {position} is {_short(aspect)}: expected a question, or Aspect(id, question).")
        if isinstance(aspect, str):
            words = re.findall(r"[^\W_]+", aspect.casefold())
            name = "_".join([word for word in words if word not in FILLERS] or words)[:40] or "aspect"
            numbered = (f"{name}_{k}" for k in itertools.count(2))
            name = next(unused for unused in itertools.chain([name], numbered) if unused not in used_ids)
            aspect = Aspect(name, aspect)
            used_ids.add(name)
        result.append(aspect)
    return tuple(result)


def _validate(aspects: tuple[Aspect, ...]) -> None:
    if not aspects:
        raise _BankError("The bank has no questions: expected at least one aspect.")
    if len(aspects) > MOST_ASPECTS:
        raise _BankError(f"The bank has {len(aspects):,} questions: expected at most {MOST_ASPECTS:,}.")
    seen_before: dict[str, str] = {}
    for position, aspect in enumerate(aspects):
        if not isinstance(aspect.id, str) or not aspect.id.strip():
            raise _BankError(f"Aspect {position} has the id {_short(aspect.id)}: expected a name that is not empty.")
        if not isinstance(aspect.group, str):
            raise _BankError(f"Aspect {_short(aspect.id)} has the group {_short(aspect.group)}: expected a text.")
        if not isinstance(aspect.question, str) or not aspect.question.rstrip().endswith(("?", "？", "؟")):
            raise _BankError(
                f"Aspect {_short(aspect.id)} is no question but {_short(aspect.question)}: "
                "write it so that yes or no answers it, with a question mark at the end."
            )
        for name, limit in LONGEST.items():
            _check_text(aspect, name, getattr(aspect, name), limit)
        for key in (f"id {aspect.id!r}", f"question {' '.join(aspect.question.lower().split())!r}"):
            if key in seen_before:
                raise _BankError(
                    f"The {key} appears twice, in aspects {seen_before[key]!r} and {aspect.id!r}: remove one."
                )
            seen_before[key] = aspect.id


def _check_text(aspect: Aspect, name: str, text: str, limit: int) -> None:
    if len(text) > limit:
        raise _BankError(
            f"The {name} of aspect {_short(aspect.id)} has {len(text):,} characters: expected at most {limit:,}."
        )
    if name == "question":
        text = " ".join(text.split("\n"))  # read as it is, and shown in one line
    if (hidden := hidden_character(text)) is not None:
        raise _BankError(
            f"The {name} of aspect {_short(aspect.id)} holds the character {hidden}, which cannot be seen or is no "
            "part of a line: remove it."
        )


def _short(value: Any) -> str:
    return terminal(repr(value), 100)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; the same key twice could mean one thing to us, and another to the next reader."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} appears twice")
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
