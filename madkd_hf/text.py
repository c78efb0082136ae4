"""Text that strangers wrote, on its way out: one function for each place where it is shown.

Names, questions, class names, licences and what servers answer are shown as the text that they are. Nothing in them
moves a cursor, becomes a link, an image or a formula, or breaks out of a table or of a line of Python.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any
from urllib.parse import quote, quote_plus


LONGEST = {"terminal": 300, "markdown": 2_500, "code": 4_000, "figure": 300}  # characters of one text

# Control characters, lone surrogates, marks of direction, tags, and what has no width. Two joiners belong to the
# spelling of some languages: they stay behind letters of these (from U+0250 on).
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\ud800-\udfff\U0001d173-\U0001d17a\U000e0000-\U000e007f]|(?<![\u0250-\U0010ffff])[\u200c\u200d]"
)
_LINK = re.compile(r"://|www\.|@|\w\.[^\W\d_]{2,}|\b(?:mailto|xmpp|javascript|data|hf):", re.IGNORECASE)
_MARKUP = re.compile(r"[\\`*\[\]<>|~$]|&(?=[#\w])|(?<![^\W_])_+|_+(?![^\W_])|^(?:[#+=-]|\d+[.)](?=\s|$))")
_SECRET_NAMES = re.compile(r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|PASSWD)$", re.IGNORECASE)
SHORTEST = 8  # letters of a secret: a shorter one has something else in it
_SECRET_SHAPES = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{8,}|(?:sk|gsk|xai)-?_?[A-Za-z0-9_-]{16,})|(?<=[Bb]earer )[^\s\"',;)]{8,}"
)
_PASSWORD = re.compile(r"(?<=://)[^/\s@]{1,400}@")
_SECRETS: set[str] = set()  # secrets that this process was given


def hidden_character(text: str) -> str | None:
    """The first character that cannot be seen or moves what is around it, as Python writes it; None without one."""
    match = _HIDDEN.search(text)
    return _escape(match) if match else None


def one_line(value: Any, limit: int | None = None) -> str:
    """One line in which everything can be seen; hidden characters as Python writes them, such as \\x1b."""
    return _cut(_HIDDEN.sub(_escape, " ".join(_text(value).split())), limit)


def terminal(value: Any, limit: int | None = LONGEST["terminal"]) -> str:
    """For a terminal or a log: one line without control characters."""
    return one_line(value, limit)


def terminal_lines(value: Any) -> str:
    """For a whole message of ours in several lines, with foreign text in it: each line as `terminal` shows it."""
    return "\n".join(_HIDDEN.sub(_escape, line.expandtabs(4)) for line in _text(value).split("\n"))


def markdown(value: Any, limit: int | None = LONGEST["markdown"]) -> str:
    """For Markdown, in a paragraph, a heading or a table cell: text that stays text.

    What some reader would turn into a link, such as an address, becomes a code span.
    """
    text = one_line(value, limit)
    if _LINK.search(text):
        return code(text, limit)
    return _MARKUP.sub(lambda match: "".join(map(_escaped, match[0])), text)


def code(value: Any, limit: int | None = LONGEST["code"]) -> str:
    """A code span for Markdown, that survives a table cell; "" for nothing.

    Texts as they are, with line breaks as \\n; other values as JSON.
    """
    text = value if isinstance(value, str) else json.dumps(jsonable(value), ensure_ascii=False)
    text = text.replace("\r", "").replace("\n", "\\n").replace("\t", " ")
    text = _cut(_HIDDEN.sub(_escape, text), limit)
    text = text.replace("\\|", "\\ |").replace("|", "\\|")  # readers differ on a pipe behind two backslashes
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence, space = "`" * (longest + 1), " " if longest or text.startswith(" ") else ""
    return f"{fence}{space}{text}{space}{fence}" if text.strip() else ""


def block(value: Any, language: str = "") -> str:
    """A code block for Markdown, with its line breaks."""
    text = terminal_lines(value)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def figure(value: Any, limit: int | None = LONGEST["figure"]) -> str:
    """For a picture; `figures.save` draws no formula, whatever the text holds."""
    return one_line(value, limit)


def counted(number: int, noun: str) -> str:
    """ "1 question", "2 questions"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def first_difference(then: str, now: str, shown: int = 60) -> tuple[str, str]:
    """The part of each of two texts around the first place where they differ."""
    start = max(0, len(os.path.commonprefix([then, now])) - shown // 2)
    return then[start : start + shown], now[start : start + shown]


def python(value: Any) -> str:
    """A Python literal of a text, for code in a card."""
    return _HIDDEN.sub(_escape, json.dumps(_text(value), ensure_ascii=False))


def front(value: Any) -> Any:
    """A value for a card's front matter: what JSON can hold, each text on one line without hidden characters."""
    value = jsonable(value)
    if isinstance(value, dict):
        return {one_line(key): front(item) for key, item in value.items()}
    if isinstance(value, list):
        return [front(item) for item in value]
    return one_line(value, LONGEST["markdown"]) if isinstance(value, str) else value


def jsonable(value: Any) -> Any:
    """What JSON can hold: arrays become lists, NaN and infinities null, everything else text."""
    if isinstance(value, Mapping):
        return {jsonable(str(key)): jsonable(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # of numpy and torch
        return jsonable(value.tolist())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    if isinstance(value, (int, float, bool, type(None))):
        return value
    return str(value).encode(errors="backslashreplace").decode()  # a lone surrogate cannot be written to a file


def keep_secret(secret: str | None) -> None:
    """Never show this token, key or password, in whatever message of this process."""
    if _may_be_secret(secret or ""):
        _SECRETS.add(secret.strip())


def as_list(value: Any) -> list[Any]:
    """A text alone as a list of it, None as an empty list."""
    return [value] if isinstance(value, str) else list(value or ())


def masked(value: Any) -> str:
    """A text without secrets: those of `keep_secret`, those in the environment, and what looks like one.

    Secrets are known as they are, and as addresses, JSON and base64 hold them. To be called before a text is
    shortened: of a token that was cut, the rest would not be known any more.
    """
    text = _text(value)
    forms = [form for secret in {*_SECRETS, *_of_environment()} for form in _forms(secret)]
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, "***")
    for form in forms:
        text = _without_beginning(text, form)
    return _PASSWORD.sub("***@", _SECRET_SHAPES.sub("***", text))


def excerpt(value: Any, limit: int = 300) -> str:
    """What somebody else's program said, for a message: one line, not endless, without secrets."""
    return terminal(masked(_text(value)[: 1000 * limit]), limit)


def chain_of_causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from, each once: an error that was raised again may be its own cause."""
    seen: list[BaseException] = []
    while error is not None and not any(error is one for one in seen):
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def message(error: BaseException | str) -> str:
    """What an error says, for a terminal: in its lines, without control characters and secrets."""
    return terminal_lines(masked(error))


def show_traceback(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """For `sys.excepthook`: a traceback without control characters and secrets."""
    lines = "".join(traceback.format_exception(kind, error, trace))
    print(terminal_lines(masked(lines)).rstrip(), file=sys.stderr)


def get_logger(name: str) -> logging.Logger:
    """A logger whose messages are shown as a terminal can bear them, and without secrets."""
    logger = logging.getLogger(name)
    logger.addFilter(_harmless)
    return logger


def _harmless(record: logging.LogRecord) -> bool:
    record.msg, record.args = terminal_lines(masked(record.getMessage())), ()
    return True


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _escape(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"


def _escaped(character: str) -> str:
    """A backslash before brackets begins a formula on the Hub, however often it is escaped."""
    return "&#92;" if character == "\\" else character if character.isalnum() else f"\\{character}"


def _cut(text: str, limit: int | None) -> str:
    return text if limit is None or len(text) <= limit else f"{text[: limit - 2]} …"


def _of_environment() -> Iterator[str]:
    values = (value.strip() for name, value in os.environ.items() if _SECRET_NAMES.search(name))
    return (value for value in values if _may_be_secret(value))


def _may_be_secret(value: str) -> bool:
    """False for words such as "none" and "EMPTY", which people give to a server that wants no key."""
    value = value.strip()
    return len(value) >= SHORTEST or (len(value) > 4 and not value.isalpha())


@cache
def _forms(secret: str) -> tuple[str, ...]:
    """A secret as it is, its parts, and as addresses, JSON and base64 hold it; the longest first."""
    parts = {secret, " ".join(secret.split()), *filter(_may_be_secret, secret.split())}  # "more" is a word
    forms = {form for part in parts for form in (part, quote(part, ""), quote_plus(part), json.dumps(part)[1:-1])}
    for part in [part for part in parts if len(part) >= 8]:
        for before in range(3):  # bytes of something else: its letters depend on where it begins
            encoded = base64.b64encode(b"\0" * before + part.encode(errors="replace")).decode()
            inner = encoded[(8 * before + 5) // 6 : (8 * (before + len(part.encode(errors="replace")))) // 6]
            forms |= {inner, inner.replace("+", "-").replace("/", "_")}
    return tuple(sorted(forms - {""}, key=len, reverse=True))


def _without_beginning(text: str, secret: str) -> str:
    """The text without a beginning of a long secret, of 8 characters or more: what is left where a message was cut."""
    if len(secret) < 12:
        return text
    parts, place = [], 0
    while (start := text.find(secret[:8], place)) >= 0:
        end = start + len(os.path.commonprefix([secret, text[start:]]))
        parts += [text[place:start], "***"]
        place = end
    return "".join([*parts, text[place:]])
