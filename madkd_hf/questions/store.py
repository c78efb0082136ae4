"""A folder that holds what an LLM has written so far, so that nothing is asked, or paid, twice."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..aspects import Aspect
from ..files import locked, read_json, refuse_link, write_whole, writing
from ..text import terminal
from .validation import Rules, content_words, fault, fold


MANIFEST, CANDIDATES, REJECTED = "generation.json", "candidates.jsonl", "rejected.jsonl"


@dataclass(frozen=True)
class QuestionTask:
    """What candidates are about, and who wrote them: only with the same are they gone on with."""

    class_names: tuple[str, ...]
    domain: str
    llm: str


class Store:
    """The good and the rejected questions of one task; each is in its file as soon as it is added.

    Args:
        folder: where; None keeps everything in memory; that of another task is refused.
        rules: what is asked of the questions now. Accepted ones that do not meet them are left out, and rejected ones
            that do are taken back.
        change_llm: go on with another LLM than that of the last run.
    """

    def __init__(self, folder: str | Path | None, task: QuestionTask, rules: Rules, change_llm: bool = False):
        self.folder = None if folder is None else Path(folder)
        self.task, self.rules = task, rules
        self._change_llm = change_llm
        self._is_held = False
        self._read()

    def _read(self) -> None:
        """Forget everything, and take what the folder holds."""
        self.written: set[str] = set()  # all questions of the files, whatever the rules are now
        self.aspects: list[Aspect] = []
        self.reasons: Counter[str] = Counter()
        self.next_round = 0
        self.selection: dict[str, Any] | None = None
        self._is_open = False  # nothing is written or mended before there is something new to keep
        self._unsaved: list[tuple[str, dict[str, Any]]] = []
        self._torn: dict[str, bytes] = {}  # files that a kill cut off: what is sound of them
        if self.folder is not None and (self.folder / MANIFEST).exists():
            self._read_manifest(self._change_llm)
            self._load()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep other runs out of the folder: with two at once, neither knows what the other writes."""
        if self.folder is None or self._is_held:
            yield
            return
        with locked(self.folder, "it asks for questions"):
            self._is_held = True
            try:
                self._read()  # another run may have written since
                yield
            finally:
                self._is_held = False

    @property
    def questions(self) -> list[str]:
        """The good ones, in the order in which they came."""
        return [aspect.question for aspect in self.aspects]

    def add(self, aspect: Aspect, round: int) -> None:
        """Keep a good question, under an id that no other has."""
        self._accept(aspect, round)
        self._write()

    def _accept(self, aspect: Aspect, round: int) -> None:
        used_ids = {another.id for another in self.aspects}
        aspect = replace(aspect, id=unique_id(aspect.id, aspect.question, used_ids))
        self.aspects.append(aspect)
        self._unsaved.append((CANDIDATES, {"round": round, "llm": self.task.llm, **asdict(aspect)}))

    def reject(self, aspect: Aspect, reason: str, round: int) -> None:
        """Keep what is not good enough, and why."""
        self.reasons[reason_kind(reason)] += 1
        row = {"round": round, "llm": self.task.llm, "reason": reason, **asdict(aspect)}
        self._unsaved.append((REJECTED, row))
        self._write()

    def save_selection(self, of: str, ids: Sequence[str], chosen: int) -> None:
        """Remember which were selected of the bank with that fingerprint; the first `chosen` by the LLM."""
        self.selection = {"of": of, "ids": list(ids), "chosen": chosen}
        self._write()
        if self.folder is not None:
            self._write_manifest()

    def _read_manifest(self, change_llm: bool) -> None:
        path = self.folder / MANIFEST
        content = read_json(path, "description of a bank of questions", "pass another folder")
        try:
            before = QuestionTask(tuple(content["class_names"]), content["domain"], content["llm"])
            _check_manifest(content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} cannot be read ({terminal(repr(error))}): pass another folder.") from error
        for name in ("class_names", "domain", "llm"):
            old, new = getattr(before, name), getattr(self.task, name)
            if old != new and not (name == "llm" and change_llm):
                alternative = ", or --change_llm to go on with this one" if name == "llm" else ""
                raise ValueError(
                    f"{self.folder} holds questions for another {name.replace('_', ' ').rstrip('s')} "
                    f"({_short(old)}, here {_short(new)}): pass another --output_dir{alternative}."
                )
        self.selection = content.get("selection")

    def _write_manifest(self) -> None:
        content = asdict(self.task) | ({"selection": self.selection} if self.selection else {})
        write_whole(self.folder / MANIFEST, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def _load(self) -> None:
        accepted, rejected = self._rows(CANDIDATES), self._rows(REJECTED)
        self.next_round = 1 + max((row["round"] for row in [*accepted, *rejected]), default=-1)
        self.written = {row["question"] for row in [*accepted, *rejected]}
        for row in [*accepted, *rejected]:
            aspect = Aspect(row["id"], row["question"], row["group"])
            reason = fault(aspect.question, self.rules, self.questions)
            if reason is not None:
                self.reasons[reason_kind(row.get("reason", reason))] += 1
            elif "reason" in row:
                self._accept(aspect, row["round"])
            else:
                used_ids = {another.id for another in self.aspects}
                if aspect.id in used_ids:  # two runs at once wrote it
                    aspect = replace(aspect, id=unique_id(aspect.id, aspect.question, used_ids))
                self.aspects.append(aspect)

    def _rows(self, name: str) -> list[dict[str, Any]]:
        """The file's rows, without what a kill cut off at its end."""
        path, rows, n_sound = self.folder / name, [], 0
        if not path.exists():
            return rows
        content = path.read_bytes()
        for line in content.splitlines(keepends=True):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                break
            _check_row(row, path, len(rows) + 1)
            rows.append(row)
            n_sound += len(line)
        if content.count(b"\n", n_sound) > 1:
            raise ValueError(f"{path} cannot be read after line {len(rows)}: mend that line, or remove it.")
        if content[-1:] not in (b"", b"\n") or n_sound < len(content):
            sound = content[:n_sound].rstrip(b"\n")
            self._torn[name] = sound + b"\n" if sound else b""
        return rows

    def _write(self) -> None:
        if self.folder is None:
            self._unsaved.clear()
            return
        with writing(self.folder, "all questions until now are saved"):
            self._append()

    def _append(self) -> None:
        for name in (CANDIDATES, REJECTED):
            refuse_link(self.folder / name)
        if not self._is_open:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write_manifest()
            for name, sound in self._torn.items():
                write_whole(self.folder / name, sound)
            self._is_open = True
        for name, row in self._unsaved:
            with (self.folder / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._unsaved.clear()


def _check_row(row: Any, path: Path, number: int) -> None:
    """What is in a line of the files: a text in the place of a number would be noticed after a paid request only."""
    kinds = {"round": int, "id": str, "question": str, "group": str, "llm": str, "reason": str}
    for name, kind in kinds.items() if isinstance(row, dict) else ():
        optional = name in ("llm", "reason") and name not in row
        if not optional and (type(row.get(name)) is not kind or (kind is int and not 0 <= row[name] < 10**9)):
            received, expected = terminal(repr(row.get(name)), 80), "a text" if kind is str else "a number from 0 on"
            raise ValueError(
                f"Line {number} of {path} has {received} as its {name}: expected {expected}; mend or remove it."
            )
    if not isinstance(row, dict):
        received = terminal(repr(row), 80)
        raise ValueError(f"Line {number} of {path} is {received}: expected a JSON object with a question; remove it.")


def _check_manifest(content: dict[str, Any]) -> None:
    """Raise TypeError where something is of another kind than we write."""
    selection = content.get("selection") or {"of": "", "ids": [], "chosen": 0}
    texts = [content["domain"], content["llm"], *content["class_names"], selection["of"], *selection["ids"]]
    kinds = [type(content["class_names"]), type(selection["ids"]), type(selection["chosen"]), *map(type, texts)]
    if kinds != [list, list, int, *[str] * len(texts)]:
        raise TypeError("expected texts and lists of texts")


def unique_id(name: str, question: str, taken: Collection[str]) -> str:
    """A short name in lower case for an aspect: the LLM's, or else the question's own words."""
    slug = "_".join(re.findall("[^\\W_]+", fold(name)))
    if not 0 < len(slug) <= 40 or re.fullmatch(r"(q|question|id|aspect|item|name|key)?_?\d*", slug):
        slug = "_".join(content_words(question)[:4])[:40] or "aspect"
    candidates = (slug, *(f"{slug}_{n}" for n in range(2, len(taken) + 3)))
    return next(candidate for candidate in candidates if candidate not in taken)


def reason_kind(reason: str) -> str:
    """A reason without what it quotes or explains: "names the class"."""
    return re.split(r"[:,]| ['\"]", reason)[0]


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} names from {value[0]!r} to {value[-1]!r}" if value else "none"
    return repr(value)
