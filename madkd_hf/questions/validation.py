"""Whether a text is a question that an image answers by yes or no, and one that was not asked before.

Everything here is a pure function of texts. What is wrong with a question is a few words, such as
"names the class 'black circle'".
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import snowballstemmer

from ..aspects import LONGEST
from ..text import hidden_character


QUESTION_MARKS = ("?", "？", "؟")
_STEMMER = snowballstemmer.stemmer("english")
_OPENERS = set(
    """is are was were am do does did has have had can could will would should may might must isn't aren't wasn't
    weren't don't doesn't didn't hasn't haven't can't couldn't""".split()
)
_LEAD_INS = set("in on at looking from based given considering judging within for inside overall".split())
_FILLERS = set(
    """a an the this that these those it its is are was were be being been am do does did has have had having can could
    will would should may might must there here in on at of to for with by from as into onto and or any some
    image images picture pictures photo photos photograph photographs show shows shown showing see seen depict depicts
    depicted depicting visible present appear appears contain contains containing feature features featuring
    include includes including object objects subject subjects thing things item items which what
    no not n't isn aren doesn don t s""".split()
)
_SIDES = r"\b(than|above|below|over|under|behind|inside|(left|right|front|top) of)\b"  # beside these, order counts
_EITHER_OR = re.compile(  # "Is it a bird or a plane?", "..., or is it night?"; but "red or orange" is one thing
    r"^(is|are) (it|this|that) (an?|the) \S+( \S+)? or (an?|the) \S+( \S+)?$|\bor (is|are|does) (it|they|there)\b"
)
_LONE_LETTER = r"(?<!\ba )(?<!\ban )(?<!\bletter )(?<![-'\"‘“])\b[XYZ]\b(?!-)"  # but "an X", "X-shaped"


@dataclass(frozen=True)
class Rules:
    """What makes a question good.

    Attributes:
        class_names: names that no question may have in it.
        allow_class_names: whether one may all the same.
        any_language: take questions of every language; how they begin is looked at in English only.
        max_characters: the longest question, in characters.
        max_words: the longest question, in words.
    """

    class_names: tuple[str, ...] = ()
    allow_class_names: bool = False
    any_language: bool = False
    max_characters: int = 160
    max_words: int = 25


def fault(question: str, rules: Rules, others: Iterable[str] = ()) -> str | None:
    """Why a question is not good enough for a bank that holds the `others`, or None."""
    if hidden := hidden_character(question):
        return f"has a character that cannot be seen: {hidden}"
    return (
        _not_yes_no(question, rules.any_language)
        or _too_long(question, rules)
        or (None if rules.allow_class_names else _names_class(question, rules.class_names))
        or _repeats(question, others)
    )


@functools.lru_cache(maxsize=10_000)
def fold(text: str) -> str:
    """Lower case without diacritics, punctuation (but inner hyphens and apostrophes) and repeated spaces."""
    decomposed = unicodedata.normalize("NFKD", text.replace("’", "'").casefold())
    letters = "".join(c for c in decomposed if not unicodedata.combining(c))
    return " ".join(re.findall(r"[^\W_]+(?:['-][^\W_]+)*", letters))


def content_words(question: str) -> list[str]:
    """The words that make a question differ from another; "not" does not, its answers tell the same."""
    return [word for word in re.findall(r"[^\W_]+", fold(question).replace("n't", " not")) if word not in _FILLERS]


@functools.lru_cache(maxsize=10_000)
def stems(question: str) -> tuple[str, ...]:
    """The stems of the content words, in their order only where that matters: "Is A darker than B?"."""
    words = [_stem(word) for word in content_words(question)]
    return tuple(words if re.search(_SIDES, fold(question)) else sorted(set(words)))


@functools.lru_cache(maxsize=10_000)
def searchable_names(class_name: str) -> tuple[str, ...]:
    """What people call a class, without spaces and endings: "001.Black_Terns" is "blacktern"; "tench, Tinca" are two.

    None of "A" or "the": nearly every question has such a word.
    """
    name = re.sub(r"^\d+[._\- ]+(?=\D)|^n\d{8}[-_ ]+", "", class_name.strip())
    spoken = (_words(part) for part in re.split(r"[,;/()]", name.replace("_", " ")))
    return tuple(_joined(words) for words in spoken if words and "".join(words) not in _FILLERS | {"i"})


def _not_yes_no(question: str, any_language: bool) -> str | None:
    text = question.strip()
    marks = sum(text.count(mark) for mark in QUESTION_MARKS)
    if not marks or not text.endswith(QUESTION_MARKS):
        return "no question: it lacks the question mark at the end"
    if marks > 1:
        return "more than one question"
    if re.search(r"\.\.\.|…|_{2,}|[<>{}\[\]]|" + _LONE_LETTER, text):
        return "a pattern with a gap, no question"
    words = fold(text).split()
    latin = re.search(r"[a-z]", " ".join(words)) is not None
    if not latin or any_language:
        return None if words else "no words"
    if not _opens(text, words):
        return f"not for yes or no: it begins with {words[0]!r}"
    if not content_words(text):
        return "asks about nothing"
    addressed = re.sub(r"^(can|could|do)\s+(you|we|i)\s+see\b", "", text.replace("US", "America"), flags=re.IGNORECASE)
    if re.search(r"\b(you|your|i|me|my|we|us)\b", addressed, re.IGNORECASE):
        return "about the reader, not about the image"
    if _EITHER_OR.search(" ".join(words)):
        return "asks for one of two, yes or no does not answer it"
    return None


def _opens(text: str, words: Sequence[str]) -> bool:
    if words[0] in _OPENERS:
        return True
    lead, comma, rest = text.partition(",")
    return bool(comma) and words[0] in _LEAD_INS and fold(rest).split(" ")[0] in _OPENERS


def _too_long(question: str, rules: Rules) -> str | None:
    longest = min(rules.max_characters, LONGEST["question"])
    if len(question) > longest:
        return f"too long: more than {longest} characters"
    if len(question.split()) > rules.max_words:
        return f"too long: more than {rules.max_words} words"
    return None


def _names_class(question: str, class_names: Sequence[str]) -> str | None:
    words = _words(question)
    words = words[words[0] in _OPENERS :]  # "Does" names no doe
    spans = {_joined(words[first:last]) for last in range(len(words) + 1) for first in range(last)}
    text = "".join(words)
    for name in class_names:
        for spoken in searchable_names(name):
            if spoken in spans or (spoken in text and _runs_on(spoken)):
                return f"names the class {name!r}"
    return None


def _joined(words: Sequence[str]) -> str:
    return "".join([*words[:-1], _stem(words[-1])])


def _runs_on(word: str) -> bool:
    """Whether it has letters without upper case: Chinese, Thai, Korean, ... leave no space, or not at each word."""
    return any(unicodedata.category(character) == "Lo" for character in word)


def _repeats(question: str, others: Iterable[str]) -> str | None:
    for other in others:
        if fold(other) == fold(question):
            return f"repeats {other!r}"
        if stems(question) and stems(question) == stems(other):
            return f"says the same as {other!r}"
    return None


def _words(text: str) -> list[str]:
    return fold(text).replace("'s", "").replace("-", " ").split()


@functools.lru_cache(maxsize=10_000)
def _stem(word: str) -> str:
    """Without what inflects it in English, so that "striped" and "stripes" meet."""
    return _STEMMER.stemWord(word)
