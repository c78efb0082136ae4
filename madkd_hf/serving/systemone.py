"""System One, as `transformers serve` speaks it: typed questions about a state with one image.

A student looks at the image alone. It answers the questions that it has learnt, by text or id, as `noul` or as a
`choice` of yes and no; and as a `choice` over its labels, or some of them, which class it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from scipy.special import expit, softmax

from ..text import excerpt
from .images import of_base64
from .limits import RefusedError
from .student import Outputs, ServedStudent


FIELDS = ("model", "state", "questions", "assets")
MOST_QUESTIONS, MOST_ASSETS = 64, 4
YES, NO = ("yes", "true"), ("no", "false")
SHOWN = 12  # of what is known, in a message


@dataclass(frozen=True)
class Asked:
    """One question: its name, and the outputs that its options are read from.

    Attributes:
        place: of a question that the student has learnt; None where it is about the class.
        options: of a `choice`, in the client's order; None for `noul`.
        chosen: [options] of the class, the index of each option's label.
    """

    name: str
    place: int | None = None
    options: tuple[str, ...] | None = None
    chosen: tuple[int, ...] = ()

    def answer(self, student: ServedStudent, outputs: Outputs) -> dict[str, Any]:
        """As System One writes it."""
        if self.options is None:
            return {"type": "noul", "noul": float(expit(outputs.aspect_logits[self.place]))}
        if self.place is None:
            # Also of a student with several classes an image: a choice is what they are if just one of them is right.
            probabilities = softmax(outputs.logits[list(self.chosen)])
        else:
            z = outputs.aspect_logits[self.place]
            probabilities = np.array([expit(z if _is(option, YES) else -z) for option in self.options])
        best, rest = int(probabilities.argmax()), 1 / len(self.options)
        confidence = 1.0 if rest == 1 else max(0.0, float((probabilities[best] - rest) / (1 - rest)))
        by_option = dict(zip(self.options, probabilities.tolist()))
        return {
            "type": "choice",
            "choice": self.options[best],
            "confidence": confidence,
            "probabilities": by_option,
        }


@dataclass(frozen=True)
class Decisions:
    """A request that can be answered: its image file, and its questions."""

    image: bytes
    questions: list[Asked]
    model: str

    def answers(self, student: ServedStudent, outputs: Outputs) -> dict[str, Any]:
        """The response."""
        answers = {asked.name: asked.answer(student, outputs) for asked in self.questions}
        return {"model": self.model, "answers": answers, "usage": {"input_tokens": 0, "output_tokens": 0}}


def parse(body: bytes, student: ServedStudent) -> Decisions:
    """Read a request.

    Raises:
        RefusedError: 404 for another model, else 422, in a sentence.
    """
    request = _json(body)
    if unknown := [name for name in request if name not in FIELDS]:
        refuse(f"There is no field {excerpt(unknown[0], 40)!r} in a request: expected {', '.join(FIELDS)}.")
    model = request.get("model", student.name)
    if model != student.name:
        raise RefusedError(404, f"There is no model {excerpt(model, 80)!r} here: it is {excerpt(student.name, 80)!r}.")
    if not isinstance(request.get("state"), (str, dict, list)):
        refuse("The field state is missing: pass a text, the placeholder of an asset for instance.")
    questions = request.get("questions")
    if not isinstance(questions, dict) or not 1 <= len(questions) <= MOST_QUESTIONS:
        count = len(questions) if isinstance(questions, (dict, list)) else "none"
        refuse(f"Expected at most {MOST_QUESTIONS} questions by name, and one at least; received {count}.")
    asked = [_question(name, question, student) for name, question in questions.items()]
    return Decisions(_image(request.get("assets")), asked, model)


def refuse(sentence: str) -> NoReturn:
    raise RefusedError(422, sentence)


def _json(body: bytes) -> dict[str, Any]:
    try:
        request = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError):  # too deep, or a number of a million digits
        request = None
    if not isinstance(request, dict):
        refuse(f"The request is no JSON object: expected one with {', '.join(FIELDS)}.")
    return request


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _image(assets: Any) -> bytes:
    if not isinstance(assets, dict) or len(assets) != 1:
        count = len(assets) if isinstance(assets, dict) else "none"
        refuse(f"A student looks at one image: expected one entry in assets; received {count}.")
    (asset,) = assets.values()
    if not isinstance(asset, dict) or asset.get("type", "image") != "image":
        refuse('The entry in assets is no image: expected {"type": "image", "data_base64": ...}.')
    if not isinstance(asset.get("data_base64"), str):
        refuse("The image in assets has no data_base64: send its bytes in base64, since no address is fetched.")
    return of_base64(asset["data_base64"])


def _question(name: str, question: Any, student: ServedStudent) -> Asked:
    kind = question.get("type") if isinstance(question, dict) else None
    if kind not in ("noul", "choice"):
        refuse(f"Question {excerpt(name, 40)!r} is of another type than noul and choice, which a student answers.")
    if unknown := [key for key in question if key not in ("type", "instructions", "criteria")]:
        refuse(f"Question {excerpt(name, 40)!r} has the unknown field {excerpt(unknown[0], 40)!r}.")
    text, criteria = question.get("instructions"), question.get("criteria")
    if text is not None and not isinstance(text, str):
        refuse(f"Question {excerpt(name, 40)!r} has instructions that are no text, which a student cannot read.")
    place = student.place_of(name if text is None else text)
    options = _options(name, criteria)
    if kind == "noul":
        if place is None:
            refuse(_unknown(name if text is None else text, student))
        return Asked(name, place)
    if not options:
        refuse(f"Question {excerpt(name, 40)!r} is a choice without options: name them as the keys of criteria.")
    if place is not None:
        if len(options) != 2 or not (any(_is(o, YES) for o in options) and any(_is(o, NO) for o in options)):
            refuse(f"Question {excerpt(name, 40)!r} is answered by yes or no: expected these two as its options.")
        return Asked(name, place, options)
    indices = {label: index for index, label in enumerate(student.labels)}
    if strange := [option for option in options if option not in indices]:
        if text is not None and len(options) == 2 and _is(options[0], YES + NO):
            refuse(_unknown(text, student))
        refuse(f"{excerpt(strange[0], 60)!r} is no class of this student, which knows {_some(student.labels)}.")
    return Asked(name, None, options, tuple(indices[option] for option in options))


def _options(name: str, criteria: Any) -> tuple[str, ...]:
    if criteria is None:
        return ()
    if not isinstance(criteria, dict):
        refuse(f"Question {excerpt(name, 40)!r} has criteria that are no object of options: name them as its keys.")
    if any(value not in (None, "") for value in criteria.values()):
        refuse(
            f"Question {excerpt(name, 40)!r} describes its options, which a student cannot read: write null for each."
        )
    return tuple(criteria)


def _unknown(text: str, student: ServedStudent) -> str:
    if not student.questions:
        return "This student answers no questions, only which class it is, as a choice over its labels."
    return f"{excerpt(text, 80)!r} is none of the questions that this student has learnt: {_some(student.questions)}."


def _some(texts: list[str]) -> str:
    shown = ", ".join(repr(excerpt(text, 60)) for text in texts[:SHOWN])
    return shown if len(texts) <= SHOWN else f"{shown} and {len(texts) - SHOWN} more, see /v1/models"


def _is(option: str, words: tuple[str, ...]) -> bool:
    return option.strip().casefold() in words
