"""Chat completions that give the likeliest tokens only: any OpenAI-compatible server with log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .base import Answer
from .chat import Chat


MOST = (20, 10, 5)  # that servers allow
SPACES = ("", " ", "\u0120", "\u2581")  # as `mllm.answers` has them


class ChatTopK(Chat):
    """`top_logprobs`: yes or no can be missing among them, and then the answer is none."""

    name = "chat-topk"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.options["top_logprobs"] = MOST[0]
        self._yes, self._no = self._spellings()

    def _spellings(self) -> tuple[frozenset[str], frozenset[str]]:
        """Where no tokenizer tells, all cases, with and without what stands for a space before them."""
        words = self.words
        if words.answer_tokens:
            return tuple(frozenset({word, *side}) for word, side in zip(words.answer_tokens, (words.yes, words.no)))
        cases = ([word, word.capitalize(), word.upper()] for word in ("yes", "no"))
        return tuple(frozenset(f"{space}{word}" for space in SPACES for word in side) for side in cases)

    def read(self, listed: Mapping[str, float]) -> Answer:
        yes, no = ([value for token, value in listed.items() if token in side] for side in (self._yes, self._no))
        answer = self._answer(yes, no)
        return answer._replace(raw=tuple(listed.values()))  # all of them tell a rounding

    def refuse(self, option: str, refusal: str) -> bool:
        if option != "top_logprobs":
            return super().refuse(option, refusal)
        fewer = [number for number in MOST if number < self.options["top_logprobs"]]
        if fewer:
            self.options["top_logprobs"] = fewer[0]
        return bool(fewer)
