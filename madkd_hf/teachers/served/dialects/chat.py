"""What both dialects of chat completions share: the request, and the log-probabilities of the first token."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from ....text import excerpt
from .base import DATA_URL, REFUSED, Answer, Dialect, UnusableAnswerError, grid_of


FLOOR = -9990.0  # JSON has no minus infinity: vLLM writes -9999.0
SLACK = 1e-3  # by which rounded probabilities may add up to more than 1
RAW = "start vLLM with --logprobs-mode raw_logprobs"


class Chat(Dialect):
    """`/v1/chat/completions`: the image, the question, one token, and its log-probabilities."""

    path = "/chat/completions"
    mass_known = True
    shares_prefix = True
    default_prompt = "Answer with yes or no. {question}"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.options: dict[str, Any] = {
            "max_completion_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "chat_template_kwargs": {"enable_thinking": False},
        }

    def body(self, questions: Sequence[str]) -> dict[str, Any]:
        (question,) = questions
        content = [{"type": "image_url", "image_url": {"url": DATA_URL}}, {"type": "text", "text": question}]
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return {"model": self.model, "messages": [*system, {"role": "user", "content": content}], **self.options}

    def refuse(self, option: str, refusal: str) -> bool:
        """OpenAI names options that it does not know; older servers know `max_tokens` alone."""
        if option not in self.options or option == "logprobs":
            return False
        value = self.options.pop(option)
        if option == "max_completion_tokens":
            self.options["max_tokens"] = value
        return True

    def answers(self, response: dict[str, Any], count: int) -> list[Answer]:
        choice, message = _choice_of(response)
        if message.get("refusal") or choice.get("finish_reason") == "content_filter":
            return [REFUSED]
        listed = _listed(choice)
        if not listed:
            raise UnusableAnswerError("without log-probabilities", permanent=True)
        total = math.fsum(math.exp(min(value, 50.0)) for value in listed.values())
        if total > 1 + SLACK:
            raise UnusableAnswerError(
                f"whose probabilities add up to {total:.3g}, more than 1: they are no log-probabilities; {RAW}",
                permanent=True,
            )
        return [self.read(listed)]

    @abstractmethod
    def read(self, listed: Mapping[str, float]) -> Answer:
        """The answer from the log-probabilities of tokens."""

    def step(self, answers: Sequence[Answer]) -> float | None:
        """Of bfloat16 logits, a power of two: differences of log-probabilities are differences of logits."""
        return grid_of([value - answer.raw[0] for answer in answers for value in answer.raw[1:]])

    def _answer(self, yes: Sequence[float], no: Sequence[float]) -> Answer:
        logs = [log_sum_exp(side) for side in (yes, no)]
        mass = min(1.0, sum(math.exp(value) for value in logs))
        return Answer(*logs, mass, raw=tuple(value for value in (*yes, *no) if math.isfinite(value)))


def first_words(response: dict[str, Any]) -> str:
    """What the model wrote or thought in place of an answer, for messages."""
    _, message = _choice_of(response)
    parts = (message.get("reasoning_content"), message.get("reasoning"), message.get("content"))
    return next((excerpt(part, 40) for part in parts if isinstance(part, str) and part.strip()), "")


def log_sum_exp(values: Sequence[float]) -> float:
    """-inf of nothing."""
    most = max(values, default=-math.inf)
    return most + math.log(math.fsum(math.exp(value - most) for value in values)) if math.isfinite(most) else most


def _choice_of(response: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    choices = response.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise UnusableAnswerError(f"with {len(choices) if isinstance(choices, list) else 'no'} choices in place of 1")
    message = choices[0].get("message")
    return choices[0], message if isinstance(message, dict) else {}


def _listed(choice: dict[str, Any]) -> dict[str, float]:
    """Token -> log-probability at the first position."""
    try:
        content = (choice.get("logprobs") or {}).get("content") or []
        entries = [*(content[0].get("top_logprobs") or [])] if content else []
        listed = {str(entry["token"]): entry["logprob"] for entry in entries}
    except (AttributeError, KeyError, TypeError, IndexError):
        raise UnusableAnswerError("with log-probabilities in another form than OpenAI's", permanent=True) from None
    for token, value in listed.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or value == math.inf:
            raise UnusableAnswerError(f"whose log-probability of {token[:20]!r} is {str(value)[:20]}")
    return {token: -math.inf if value <= FLOOR else float(value) for token, value in listed.items()}
