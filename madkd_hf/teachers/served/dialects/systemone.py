"""System One: typed questions about a state with images (`transformers serve` and others)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .base import IMAGE, REFUSED, Answer, Probabilities, UnusableAnswerError


PLACEHOLDER = "<asset-1>"  # in the state, where the image stands


class SystemOne(Probabilities):
    """`/v1/systemone`: questions of type `noul`, each answered with the probability of yes."""

    name = "systemone"
    path = "/systemone"
    most_questions = 64

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.system is not None:
            raise ValueError("systemone has no place for a system prompt: leave out --system.")

    def body(self, questions: Sequence[str]) -> dict[str, Any]:
        return {
            "model": self.model,
            "state": PLACEHOLDER,
            "questions": {f"q{i}": {"type": "noul", "instructions": text} for i, text in enumerate(questions)},
            "assets": {PLACEHOLDER: {"type": "image", "format": "png", "data_base64": IMAGE}},
        }

    def answers(self, response: dict[str, Any], count: int) -> list[Answer]:
        answers, names = response.get("answers"), [f"q{i}" for i in range(count)]
        if not isinstance(answers, dict) or set(answers) != set(names):
            there = len(answers) if isinstance(answers, dict) else "no"
            raise UnusableAnswerError(f"with {there} answers, or others than the {count} that were asked for")
        return [self._of(answers[name]) for name in names]

    def _of(self, answer: Any) -> Answer:
        kind = answer.get("type") if isinstance(answer, dict) else None
        if kind == "refusal":
            return REFUSED
        if kind != "noul":
            raise UnusableAnswerError(f"of type {str(kind)[:20]!r} in place of 'noul'")
        return self.answer(answer.get("noul"))
