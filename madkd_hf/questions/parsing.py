"""What LLMs write, read with tolerance: JSON whole or cut, code fences, lists, tables, headings, chatter.

An LLM may loop until it is cut: all here takes a time that is linear in the length of what it wrote.
"""

from __future__ import annotations

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
_LONGEST, _DEEPEST = 200_000, 20  # characters that are read, containers in containers

# A quote ends a text where punctuation or the line's end is behind it: LLMs forget to escape those inside. A line that
# begins with a quote or a bracket ends a text whose quote was forgotten.
_TOKEN = re.compile(
    r"""(?P<mark>[\[\]{},:])
    | "(?P<double>(?:[^"\\\n] | \\. | \n(?![ \t]*["\[\]{}]) | "(?![ \t\r]*(?:[],:}"\n]|//|\Z)))*)["\n]?
    | '(?P<single>(?:[^'\\\n] | \\. | \n(?![ \t]*['\[\]{}]) | '(?![ \t\r]*(?:[],:}\n]|//|\Z)))*)['\n]?
    | “(?P<curly>[^“”"\n]*)[”"]
    | //[^\n]*
    | [\#qQ]?(?P<number>-?\d{1,9})(?!\d)(?=\s*(?:[],:}\d/\n]|\Z))
    | (?P<word>[^\s\[\]{},:"'“][^\s\[\]{},:"“]*)""",
    re.DOTALL | re.VERBOSE,
)
_OPENING = re.compile(r"(?P<mark>[\[{])")
_CONSTANTS = {"true": True, "false": False, "none": None, "null": None}

# A number or a range, and no count: "the 5 best questions". Those of more than 6 digits are the number of no question.
_NUMBER = r"\d{1,6}\b(?:[-–]\d{1,6}\b)?(?!\s+(?:best|most|questions?|picks?)\b)"
_NAMED = re.compile(  # "questions 3, 8 and 12", "the best questions are 3-5", "Q1, Q2"
    rf"(?:\b(?:questions?|q|no\.?|numbers?)|\#)(?:[\s:\#]|are\b){{0,4}}"
    rf"({_NUMBER}(?:(?:[\s,;&\#]|and\b|questions?|q){{1,5}}{_NUMBER})*)",
    re.IGNORECASE,
)


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
    return found or list(_lines(text, groups))


def parse_choice(completion: str, questions: Sequence[str], ids: Sequence[str] = ()) -> list[int]:
    """Which of the numbered `questions` (from 1) a completion chooses: their positions from 0, each once, in order.

    Numbers, ids and the questions' own texts count; numbers that do not exist are left out.
    """
    text = without_thoughts(completion)
    by_name = {name.casefold(): index for index, name in enumerate(ids)}
    by_name |= {fold(question): index for index, question in enumerate(questions)}
    values = list(_json_values(text))
    selected = [part for value in values for part in _selected(value)]
    chosen = [index for value in selected or values for index in _choice_of_value(value, by_name)]
    if not chosen and not selected:
        lines = list(dict.fromkeys(line.strip() for line in text.splitlines()))
        for line in [line for line in lines if _BULLET.match(line)] or lines:
            chosen += _choice_of_line(line, by_name)
    return list(dict.fromkeys(index for index in chosen if 0 <= index < len(questions)))


def without_thoughts(completion: str) -> str:
    """Without what a reasoning model thought aloud before its answer, and without what is beyond reading."""
    parts: list[list[str]] = [[]]
    inside = ""
    for piece in re.split(rf"(</?{_THINK}>)", completion, flags=re.IGNORECASE):
        tag = piece.lower() if re.fullmatch(rf"</?{_THINK}>", piece, re.IGNORECASE) else ""
        if inside:
            inside = "" if tag == inside else inside
        elif tag.startswith("</"):
            parts.append([])  # some close it after the answer
        elif tag:
            inside = tag.replace("<", "</")
        else:
            parts[-1].append(piece)
    answers = ("".join(part).strip() for part in reversed(parts))
    return next((answer for answer in answers if answer), "")[:_LONGEST]


def _selected(value: Any) -> Iterator[Any]:
    """What stands under "selected", at any depth."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    for key, part in value.items() if isinstance(value, dict) else ():
        if str(key).lower() == "selected" and not isinstance(part, bool):
            yield part
        else:
            yield from _selected(part)


def _choice_of_value(value: Any, by_name: dict[str, int]) -> list[int]:
    if isinstance(value, str):
        return _choice_of_line(value, by_name)
    if type(value) is int:  # and not a bool
        return [value - 1]
    if isinstance(value, dict):
        if value.get("selected") is False:
            return []
        for key in ("number", "index", "no", "n", *_ID_KEYS, *_QUESTION_KEYS):
            if found := _choice_of_value(value.get(key), by_name):
                return found
        parts = [key if part is True else part for key, part in value.items()]  # {"3": true}
        value = [part for part in parts if isinstance(part, (dict, list))] or parts  # lists, not the reasons for them
    return [index for part in value for index in _choice_of_value(part, by_name)] if isinstance(value, list) else []


def _choice_of_line(line: str, by_name: dict[str, int]) -> list[int]:
    line, last = " ".join(line.split()), 1 + max(by_name.values(), default=-1)
    cleaned = _clean(line)
    for name in (fold(cleaned), cleaned.casefold()):
        if name in by_name:
            return [by_name[name]]
    # "Question 3 (differs from question 1)"
    bare = re.sub(r"\([^()]*\)", lambda match: "" if re.search(r"[^\W\d]", match[0]) else match[0], line)
    line = bare if re.search(r"\d", bare) else line
    if named := _NAMED.findall(line):
        return _numbers(" ".join(named), last)
    if _BULLET.match(line) and re.search(r"[^\W\d]", cleaned):  # "3. Is there ...": its number alone
        return _numbers(line, last)[:1]
    if _BULLET.match(line):  # "1. 7": a rank
        line = cleaned or line
    if re.search(r":\s*\d", line):  # "The 3 most distinct: 1, 5, 7"
        line = line.split(":", 1)[1]
    return _numbers(line, last)


def _numbers(text: str, last: int) -> list[int]:
    """The positions up to number `last` that the numbers and the ranges of numbers in a text say."""
    found = []
    for number in re.findall(rf"(?:\b|(?<=\bq)){_NUMBER}", text, re.IGNORECASE):
        first, _, to = number.replace("–", "-").partition("-")
        found += range(int(first) - 1, min(int(to or first), last))
    return found


def _json_values(text: str, levels: int = 3) -> Iterator[Any]:
    """The lists and objects in a text, as far as they can be read; `levels` of JSON within JSON's texts."""
    for part in re.findall(r"```[a-zA-Z]*\s*\n(.*?)(?:```|\Z)", text, flags=re.DOTALL) or [text]:
        if re.match(r"\s*\"[\s\\\"]*[\[{]", part):  # a JSON text that holds JSON
            part = f"[{part}"
        yield from (value for value in _read(part, levels) if value)


def _read(text: str, levels: int) -> list[Any]:
    """Lists and objects, whole, cut or broken, in one pass; what is not understood is left out."""
    read: list[Any] = []
    stack: list[Any] = []  # the containers that are open
    key, prose, position = None, False, 0

    def put(value: Any) -> None:
        inner = stack[-1] if stack else read
        if isinstance(inner, list):
            inner.append(value)
        else:
            inner[str(len(inner)) if key is None else key] = value

    while match := (_TOKEN if stack else _OPENING).search(text, position):
        kind, position = match.lastgroup, match.end()
        if kind is None:  # a comment
            continue
        token = match[kind]
        if kind == "mark":
            if token == "{" and key is None and stack and isinstance(stack[-1], dict) and stack[-1]:
                stack.pop()  # the one before was not closed
            if token in "[{":
                opened: Any = [] if token == "[" else {}
                put(opened)
                stack = [*stack, opened] if len(stack) < _DEEPEST else []
            elif token in "]}":
                closed = list if token == "]" else dict
                if any(isinstance(each, closed) for each in stack):
                    while not isinstance(stack.pop(), closed):
                        pass
            key, prose = None, False
        elif isinstance(stack[-1], dict) and (colon := re.compile(r"\s*:").match(text, position)):
            key, prose, position = token, False, colon.end()
        else:
            if kind == "number" and not prose:
                put(int(token))
            elif kind == "word" and token.lower() in _CONSTANTS and not prose:
                put(_CONSTANTS[token.lower()])
            elif kind in ("number", "word"):  # "[the 5 best]"
                prose = True
            else:
                token, cut, inner = _unescaped(token), match.end(kind) == position, []
                if re.match(r"[\s\"]*[\[{]", token) and (cut or token.rstrip(' \n"')[-1:] in "]}") and levels:
                    inner = list(_json_values(token, levels - 1))
                if inner or (token and not cut):
                    put(inner or token)
            key = None
    return read


def _unescaped(text: str) -> str:
    try:
        return json.loads(f'"{text}"', strict=False)
    except ValueError:  # quotes that are not escaped, or "\'"
        return re.sub(r"\\(.)", lambda match: " " if match[1] in "nrt" else match[1], text)


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
        for question in re.split(f"(?<=[{_MARKS}])", cleaned):
            if question.endswith(QUESTION_MARKS) and len(question) > 1:
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
    text = " ".join(text.encode("utf-8", "ignore").decode().split())  # half a character cannot be written
    for _ in range(5):  # each may hide another
        text = _BULLET.sub("", text, count=1)
        text = text.lstrip("*_`\"'“”#> ").rstrip("*_`\"'“”,; ")
        text = _LABEL.sub("", text)
    text = " ".join(re.sub(r"\*\*|__|`", "", text).split())
    for mark in QUESTION_MARKS:
        head, found, tail = text.rpartition(mark)
        if found and (_YES_NO.fullmatch(tail) or re.fullmatch(r"[\s\"'”.!)*]*", tail)):
            text = head + mark
    return text.strip()
