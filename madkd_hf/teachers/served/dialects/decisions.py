"""The Decisions API of OpenAI and others: a list of typed questions about an input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .base import DATA_URL, REFUSED, Answer, Probabilities, UnusableAnswerError


class Decisions(Probabilities):
    """`/v1/decisions`: questions of type `predicate`, each answered with a rounded probability, or a refusal."""

    name = "decisions"
    path = "/decisions"
    most_questions = 400

    def body(self, questions: Sequence[str]) -> dict[str, Any]:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        image = {"type": "input_image", "image_url": DATA_URL}
        asked = [{"type": "predicate", "name": f"q{i}", "instructions": text} for i, text in enumerate(questions)]
        return {
            "model": self.model,
            "input": [*system, {"type": "message", "role": "user", "content": [image]}],
            "questions": asked,
        }

    def answers(self, response: dict[str, Any], count: int) -> list[Answer]:
        """By their names, in whatever order they come."""
        answers, names = response.get("answers"), [f"q{i}" for i in range(count)]
        by_name = {}
        for answer in answers if isinstance(answers, list) else []:
            name = answer.get("name") if isinstance(answer, dict) else None
            if not isinstance(name, str) or name in by_name:
                raise UnusableAnswerError(f"with an answer whose name is {str(name)[:20]!r}, or two of that name")
            by_name[name] = answer
        if set(by_name) != set(names):
            raise UnusableAnswerError(f"with {len(by_name)} answers, or others than the {count} that were asked for")
        return [self._of(by_name[name]) for name in names]

    def _of(self, answer: dict[str, Any]) -> Answer:
        if answer.get("type") == "refusal":
            return REFUSED
        if answer.get("type") != "predicate":
            raise UnusableAnswerError(f"of type {str(answer.get('type'))[:20]!r} in place of 'predicate'")
        return self.answer(answer.get("probability"))
