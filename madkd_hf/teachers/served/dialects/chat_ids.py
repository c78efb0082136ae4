"""Chat completions that give the log-probabilities of named tokens: exact, see `chat_topk` for servers without."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .base import Answer, UnusableAnswerError
from .chat import RAW, Chat


class ChatIds(Chat):
    """`logprob_token_ids` of vLLM (0.30 and later): every spelling of yes and no, however unlikely."""

    name = "chat-ids"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.options |= {
            "logprob_token_ids": self.words.ids,
            "return_tokens_as_token_ids": True,
            "return_token_ids": True,
        }

    def read(self, listed: Mapping[str, float]) -> Answer:
        sides = []
        for ids in (self.words.yes, self.words.no):
            keys = [f"token_id:{token}" for token in ids.values()]
            if missing := [key for key in keys if key not in listed]:
                count = len(self.words.ids)
                raise UnusableAnswerError(
                    f"without {missing[0]}, one of the {count} that were asked for: the server ignores "
                    "logprob_token_ids",
                    permanent=True,
                )
            sides.append([listed[key] for key in keys])
        for side in sides:
            if max(side) == -math.inf:
                raise UnusableAnswerError(f"in which yes or no is ruled out: {RAW}", permanent=True)
        return self._answer(*sides)

    def refuse(self, option: str, refusal: str) -> bool:
        named = option in ("logprob_token_ids", "return_tokens_as_token_ids")
        return not named and super().refuse(option, refusal)
