"""What LLMs write, read with tolerance: JSON, whole or broken (by `json_repair`), or else lines of text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import json_repair

from .validation import QUESTION_MARKS, fold


LONGEST = 200_000  # characters that are read
LONGEST_BROKEN = 10_000  # of broken JSON, whose repair takes a time that grows with the square
DEEPEST = 10  # lists in lists
THOUGHTS = r"(?:think(?:ing)?|thoughts?|reasoning)>"
BULLET = re.compile(r"^\s*(?:>\s*)*(?:[-*+•–—]|[(（*]*\d{1,3}\s*[.)）:、．]\W*)\s*")
LABEL = re.compile(r"^[^:?]{1,40}:\s+")  # "Question 1: ", "Wings: "
ENDS = re.compile(rf"(?<=[{''.join(QUESTION_MARKS)}])")
LOOP = re.compile(r"(.{1,40}?)\1{50,}", re.DOTALL)  # some LLMs repeat themselves until they are cut


@dataclass(frozen=True)
class Proposal:
    """What an LLM proposes: a question on one line without markup, and the id and group that it gave, or ""."""

    question: str
    id: str = ""
    group: str = ""


def parse_questions(completion: str) -> list[Proposal]:
    """The questions of a completion, in order."""
    text = without_thoughts(completion)
    return list(_in_json(_read_json(text))) or [Proposal(question) for question in _in_lines(text)]


def parse_choice(completion: str, questions: Sequence[str]) -> list[int]:
    """Which of the numbered `questions` (from 1) a completion chooses: their positions from 0, each once, in order.

    Numbers and the questions' own texts count; numbers that do not exist are left out.
    """
    text = without_thoughts(completion)
    value = _read_json(text)
    if isinstance(value, dict):
        lists = [part for part in value.values() if isinstance(part, list)]  # and not the reasons beside them
        value = value.get("selected", lists[0] if lists else list(value.values()))
    parts = value if isinstance(value, list) else text.splitlines()
    position_of = {fold(question): index for index, question in enumerate(questions)}
    chosen = [index for part in parts for index in _positions(part, position_of)]
    return list(dict.fromkeys(index for index in chosen if 0 <= index < len(questions)))


def without_thoughts(completion: str) -> str:
    """Without what a reasoning model thinks aloud before its answer, or behind it."""
    parts = re.split(f"</{THOUGHTS}", completion, flags=re.IGNORECASE)
    answers = (re.split(f"<{THOUGHTS}", part, flags=re.IGNORECASE)[0].strip() for part in reversed(parts))
    return next(filter(None, answers), "")[:LONGEST]


def _read_json(text: str) -> Any:
    """The JSON in a text, as far as it can be understood; "" where there is none."""
    for lines in ([text], text.splitlines()):
        try:
            values = [json.loads(line) for line in lines if line.strip()]
            return values[0] if len(values) == 1 else values
        except (ValueError, RecursionError):
            pass
    try:
        return json_repair.loads(LOOP.sub(r"\1", text)[:LONGEST_BROKEN], skip_json_loads=True)
    except (ValueError, RecursionError):
        return ""


def _in_json(value: Any, depth: int = 0) -> Iterator[Proposal]:
    """The objects with a question, and texts, in lists and objects of any kind."""
    if isinstance(value, dict):
        value = {str(key).strip().lower(): part for key, part in value.items()}
        texts = {key: part.strip() for key, part in value.items() if isinstance(part, str)}
        if question := texts.get("question") or texts.get("text"):
            yield Proposal(_clean(question), texts.get("id") or texts.get("name", ""), texts.get("group", ""))
            return
        value = list(value.values())
    if isinstance(value, str) and len(value.split()) > 1:
        yield Proposal(_clean(value))
    elif isinstance(value, list) and depth < DEEPEST:
        for part in value:
            yield from _in_json(part, depth + 1)


def _in_lines(text: str) -> Iterator[str]:
    """The questions of lists, tables and lines."""
    for cell in re.split(r"[\n|]", text):
        for part in ENDS.split(_clean(cell)):
            question = LABEL.sub("", part.strip())
            if question.endswith(QUESTION_MARKS) and len(question) > 1:
                yield _clean(question)


def _positions(part: Any, position_of: Mapping[str, int]) -> list[int]:
    """The positions that a number, a text, or an object with one of them stands for."""
    if isinstance(part, dict):
        part = next((value for kind in (int, str) for value in part.values() if type(value) is kind), None)
    if type(part) is int:  # and no bool
        return [part - 1]
    if not isinstance(part, str):
        return []
    cleaned = _clean(part)
    if fold(cleaned) in position_of:
        return [position_of[fold(cleaned)]]
    numbers = [int(number) - 1 for number in re.findall(r"(?<!\d)\d{1,6}(?!\d)", part)]
    return numbers[:1] if BULLET.match(part) and re.search(r"[^\W\d]", cleaned) else numbers  # "3. Is there ...?"


def _clean(text: str) -> str:
    """One line without its number, bullet, quotes, markup and "(yes/no)"."""
    text = re.sub(r"\*\*|__|`", "", text.encode("utf-8", "ignore").decode())  # no lone surrogates
    text = BULLET.sub("", " ".join(text.split()).strip("*_\"'“”#> "), count=1).strip("*_\"'“”,; ")
    return re.sub(r"(?<=\?)[\s\"'”)]*[(\[]?(?:yes ?(?:/|or|,) ?no)?\W{0,3}$", "", text, flags=re.IGNORECASE)
