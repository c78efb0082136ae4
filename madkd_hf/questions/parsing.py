"""What LLMs write, read with tolerance: JSON whole or cut, code fences, lists, tables, headings, chatter."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .validation import QUESTION_MARKS, fold


_MARKS = "".join(QUESTION_MARKS)
_QUESTION_KEYS = ("question", "text", "aspect_question", "prompt", "q", "content", "value")
_ID_KEYS = ("id", "name", "key", "aspect", "short_name", "label")
_GROUP_KEYS = ("group", "category", "type", "kind", "aspect_group")
_BULLET = re.compile(
    r"^\s*(?:>\s*)*(?:[-*+•·–—]|#?\(?\d{1,3}\s*[.):\]]|[a-zA-Z][.)])\s+|^\s*[(（]?\d{1,3}\s*[.)）．、]"
)
_LABEL = re.compile(r"^(?:(?:yes\s*/\s*no\s+)?questions?|q)\s*#?\d*\s*[:.)-]\s*", re.IGNORECASE)
_ANSWER = re.compile(
    r"^(?:a|ans|answer|expected answer|possible answers?|reason|rationale|explanation|note)\s*\d*\s*[:)-]", re.I
)
_THINK = r"(?:think(?:ing)?|thoughts?|reasoning)"
_YES_NO = re.compile(r"[\s\"']*[(\[]?\s*\b(?:yes\s*(?:/|or|,)\s*no|y/n|yes|no)\b\s*[.)\]]*\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class Raw:
    """What an LLM proposes, unchecked; a line in the place of a question may be no question at all.

    Attributes:
        question: the text, without numbers, bullets, quotes and markup.
        id: the name that it gave, or "".
        group: the group that it gave, by key or by a heading above, or "".
    """

    question: str
    id: str = ""
    group: str = ""


def parse_questions(completion: str, groups: Sequence[str] = ()) -> list[Raw]:
    """The questions of a completion, in order.

    Args:
        completion: what the LLM wrote.
        groups: names that a heading may have.
    """
    text = without_thoughts(completion)
    found = [raw for value in _json_values(text) for raw in _walk(value)]
    if not found and re.search(r"[\[{]\s*[\"']", text):  # JSON too broken for that
        quoted = re.findall(rf'"((?:[^"\\\n]|\\.)*[{_MARKS}])\s*"', text)
        quoted = quoted or re.findall(rf"'(\w(?:[^'\n]|'(?!\s*[,:\]}}]))*[{_MARKS}])\s*'", text)
        found = [Raw(_clean(question)) for question in quoted]
    return found or list(_lines(text, groups))


def parse_choice(completion: str, questions: Sequence[str], ids: Sequence[str] = ()) -> list[int]:
    """Which of the numbered `questions` (from 1) a completion chooses: their positions from 0, each once, in order.

    Numbers, ids and the questions' own texts count; numbers that do not exist are left out.
    """
    text = without_thoughts(completion)
    by_text = {fold(question): index for index, question in enumerate(questions)}
    by_id = {name.casefold(): index for index, name in enumerate(ids)}

    def choose(value: Any) -> Iterator[int]:
        if isinstance(value, dict):
            numbers = [
                value[key] for key in ("number", "index", "no", "n", *_ID_KEYS, *_QUESTION_KEYS) if key in value
            ]
            for part in numbers[:1] or value.values():
                yield from choose(part)
        elif isinstance(value, list):
            for part in value:
                yield from choose(part)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield value - 1
        elif isinstance(value, str):
            yield from _choice_of_line(value, by_text, by_id)

    chosen = [index for value in _json_values(text) for index in choose(value)]
    if not chosen:
        lines = text.splitlines()
        listed = [line for line in lines if _BULLET.match(line)]
        for line in listed or lines:
            chosen += _choice_of_line(line, by_text, by_id)
    return list(dict.fromkeys(index for index in chosen if 0 <= index < len(questions)))


def without_thoughts(completion: str) -> str:
    """Without what a reasoning model thought aloud before its answer."""
    text = re.sub(rf"<({_THINK})>.*?</\1>", "", completion, flags=re.DOTALL | re.IGNORECASE)
    text = re.sub(rf"<{_THINK}>.*", "", text, flags=re.DOTALL | re.IGNORECASE)
    parts = re.split(rf"</{_THINK}>", text, flags=re.IGNORECASE)
    return next((part.strip() for part in reversed(parts) if part.strip()), "")  # some close it after the answer


def _choice_of_line(line: str, by_text: dict[str, int], by_id: dict[str, int]) -> list[int]:
    cleaned = _clean(line)
    if fold(cleaned) in by_text:
        return [by_text[fold(cleaned)]]
    if cleaned.casefold() in by_id:
        return [by_id[cleaned.casefold()]]
    if named := re.findall(r"(?:questions?|no\.?|number|#)\s*#?(\d+)", line, flags=re.IGNORECASE):
        return [int(number) - 1 for number in named]
    if _BULLET.match(line) and re.search("[^\\W\\d]", cleaned):  # "3. Is there ...": its number alone
        return [int(number) - 1 for number in re.findall(r"\d+", line)[:1]]
    if re.search(r":\s*\d", line):  # "The 3 most distinct are: 1, 5, 7"
        line = line.split(":", 1)[1]
    return [int(number) - 1 for number in re.findall(r"\b\d+\b", line)]


def _json_values(text: str) -> Iterator[Any]:
    """Every JSON value in the text; of one that is cut or broken, the objects and lists inside that are whole."""
    for fenced in re.findall(r"```[a-zA-Z]*\s*\n(.*?)(?:```|\Z)", text, flags=re.DOTALL) or [text]:
        position = 0
        while match := re.compile(r"[\[{]").search(fenced, position):
            value, position = _value_at(fenced, match.start())
            if isinstance(value, (dict, list)) and value:
                yield value


def _value_at(text: str, start: int) -> tuple[Any, int]:
    """The value that begins there and where it ends, or None and the next position."""
    try:
        value, end = json.JSONDecoder(strict=False).raw_decode(text, start)
        return value, end
    except (json.JSONDecodeError, RecursionError):
        pass
    end = _closing(text, start)
    if end is not None:
        part = re.sub(r"//[^\n\"]*$", "", text[start:end], flags=re.MULTILINE)
        part = re.sub(r",(\s*[\]}])", r"\1", part.replace("“", '"').replace("”", '"'))
        for read in (json.loads, ast.literal_eval):
            try:
                return read(part), end
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
    return None, start + 1


def _closing(text: str, start: int) -> int | None:
    depth, quoted, position = 0, False, start
    while position < len(text):
        character = text[position]
        if quoted and character == "\\":
            position += 1
        elif character == '"':
            quoted = not quoted
        elif not quoted and character in "[{":
            depth += 1
        elif not quoted and character in "]}":
            depth -= 1
            if depth == 0:
                return position + 1
        position += 1
    return None


def _walk(value: Any, group: str = "") -> Iterator[Raw]:
    if isinstance(value, str):
        if len(value.split()) > 1:
            yield Raw(_clean(value), group=group)
    elif isinstance(value, list):
        for part in value:
            yield from _walk(part, group)
    elif isinstance(value, dict):
        lowered = {str(key).strip().lower(): part for key, part in value.items()}
        question = next((lowered[key] for key in _QUESTION_KEYS if isinstance(lowered.get(key), str)), None)
        if question is not None:
            name = next((lowered[key] for key in _ID_KEYS if isinstance(lowered.get(key), (str, int))), "")
            own = next((lowered[key] for key in _GROUP_KEYS if isinstance(lowered.get(key), str)), group)
            yield Raw(_clean(question), str(name), own.strip())
            return
        for key, part in value.items():  # {"visual": [...]}, {"questions": [...]}, {"red": "Is it red?"}
            if isinstance(part, str) and part.rstrip().endswith(QUESTION_MARKS):
                yield Raw(_clean(part), str(key), group)
            elif isinstance(part, (list, dict)):
                yield from _walk(part, group if str(key).lower() in ("questions", "aspects", "items") else str(key))


def _lines(text: str, groups: Sequence[str]) -> Iterator[Raw]:
    group = ""
    for line in text.splitlines():
        if not line.strip() or line.strip().startswith("```") or re.fullmatch(r"[\s|:=_*-]+", line):
            continue
        listed = _BULLET.match(line) is not None
        cells = [_clean(cell) for cell in line.split("|")]
        if len(cells) > 1 and (asked := [cell for cell in cells if cell.endswith(QUESTION_MARKS)]):
            own = next((name for name in groups if name.lower() in [cell.lower() for cell in cells]), group)
            names = [cell for cell in cells if re.fullmatch(r"[A-Za-z]\w*", cell) and cell.lower() != own.lower()]
            yield Raw(asked[0], names[0] if names else "", own)
            continue
        cleaned = _clean(line)
        if not re.search(f"[{_MARKS}]", cleaned):
            if heading := _heading(line, cleaned, groups):
                group = heading
            elif listed and len(cleaned.split()) > 2 and not _ANSWER.match(cleaned):
                yield Raw(cleaned, group=group)  # a statement: told why it falls
            continue
        if _ANSWER.match(cleaned):
            continue
        for question in re.findall(f"[^{_MARKS}]+[{_MARKS}]", cleaned):
            yield _named(question.strip(), group, groups)


def _named(question: str, group: str, groups: Sequence[str]) -> Raw:
    """ "beak_colour: Is ...?", "(visual) Is ...?", "**Colour**: Is ...?"."""
    tag = re.match(r"[(\[]\s*([\w -]{2,30})\s*[)\]]\s*[:-]?\s*(?=\S)", question)
    if tag is None:
        tag = re.match(r"([\w /-]{2,40}?)\s*(?::|\s[-–—]\s)\s*(?=[^\W\d])", question)
    if tag is None:
        return Raw(_clean(question), group=group)
    rest, name = _clean(question[tag.end() :]), tag.group(1).strip()
    own = next((known for known in groups if known.lower() == name.lower()), None)
    return Raw(rest, "" if own else name, own or group)


def _heading(line: str, cleaned: str, groups: Sequence[str]) -> str | None:
    marked = re.match(r"^\s*(#+\s|\*\*)", line) or line.rstrip().rstrip("*_ ").endswith(":")
    words = fold(cleaned).split()
    if (marked or len(words) <= 3) and words:
        return next((name for name in groups if fold(name) in " ".join(words)), None)
    return None


def _clean(text: str) -> str:
    """A line without its number, bullet, label, quotes, markup and "(yes/no)"."""
    text = " ".join(text.split())
    before = None
    while before != text:
        before = text
        text = _BULLET.sub("", text, count=1).strip()
        text = re.sub(r"^[*_`\"'“”#>\s]+|[*_`\"'“”,;\s]+$", "", text)
        text = _LABEL.sub("", text)
    text = re.sub(r"\*\*|__|`", "", text)
    for mark in QUESTION_MARKS:
        head, found, tail = text.rpartition(mark)
        if found and (_YES_NO.fullmatch(tail) or re.fullmatch(r"[\s\"'”.!)*]*", tail)):
            text = head + mark
    return text.strip()
