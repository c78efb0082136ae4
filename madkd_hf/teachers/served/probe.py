"""What a server is asked before it is believed: two plain images and two questions, the first of them twice.

It shows which dialect the server speaks, whether the model sees the image, whether the same is answered twice, and
whether it answers with yes or no at all; and its numbers tell, when a job goes on, whether it is still the same model.
A student that is served is asked two of its own questions, since it has learnt no others.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ...llm import LLMError
from ...llm.async_client import RequestFailedError
from ...text import get_logger
from .dialects import DIALECTS, Answer, Dialect, UnusableAnswerError, Words
from .dialects.chat import Chat, first_words
from .endpoint import Endpoint, is_about_image, is_refusal, lacks_model
from .images import Encoded, encode


logger = get_logger(__name__)

SIDE = 224  # pixels of the plain images
QUESTIONS = ("Is the image red?", "Is the image blue?")
THINKS = ("<think", "[think", "<|channel", "<|start_thinking", "\u25c1think", "<seed:think", "<reason")
NOT_THERE = (404, 405, 501)  # how a server says that it does not know a path
SAME = 0.05  # log-odds by which the same model differs from itself, at least


@dataclass
class Probe:
    """What came out.

    Attributes:
        dialect: the one that the server speaks, as it wants to be spoken to.
        log_odds: of the two questions about the first image, and of the same about the second.
        noise: the largest difference between the same question asked twice.
        prompt: a digest of the prompt's token ids, where the server gives them.
        questions: the two.
    """

    dialect: Dialect
    log_odds: list[float] = field(default_factory=list)
    noise: float = 0.0
    prompt: str | None = None
    questions: tuple[str, str] = QUESTIONS

    @property
    def state(self) -> dict[str, Any]:
        """As JSON holds it, to be compared later; an answer that was none is null."""
        numbers = [None if math.isnan(z) else round(z, 6) for z in self.log_odds]
        return {"log_odds": numbers, "noise": round(self.noise, 6), "prompt": self.prompt}

    def difference(self, then: dict[str, Any], step: float | None) -> str | None:
        """Where the server answers otherwise than it did, in words; None where it is the same model."""
        if then.get("prompt") and self.prompt and then["prompt"] != self.prompt:
            return "its prompt has other tokens (another chat template, or tokenizer?)"
        now = self.state["log_odds"]
        for index, (old, new) in enumerate(zip(then["log_odds"], now)):
            question = f"{self.questions[index % 2]!r} of a plain {('red', 'blue')[index // 2]} image"
            slack = max(SAME, 4 * max(then["noise"], self.noise), 4 * (step or 0))
            if self.dialect.mass_known is False and None not in (old, new):  # rounded probabilities
                old, new, slack = _sigmoid(old), _sigmoid(new), max(0.02, 3 * (step or 0))
            if (old is None) != (new is None) or (old is not None and abs(old - new) > slack):
                return f"its answer to {question} was {_number(old)} and is {_number(new)}"
        return None


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z > -700 else 0.0


class NotSpokenError(ValueError):
    """The server does not speak this dialect; the message says why."""


async def probe(
    endpoint: Endpoint,
    names: Sequence[str],
    words: Words,
    prompt: str | None,
    system: str | None,
    models: Sequence[str] = (),
) -> Probe:
    """Find the first of the dialects that the server speaks, and look at its answers.

    Raises:
        LLMError, ValueError: no dialect is spoken, or the answers are none; one sentence.
    """
    images = [encode(Image.new("RGB", (SIDE, SIDE), colour)) for colour in ((220, 20, 20), (20, 20, 220))]
    reasons = []
    if endpoint.questions == ():
        raise LLMError(f"{endpoint.model} on {endpoint.name} answers no questions: pass another --teacher_model.")
    for name in names:
        if name == "chat-ids" and not words.ids:
            reasons.append("chat-ids needs the ids of yes and no: pass --teacher_tokenizer")
            continue
        try:
            dialect = DIALECTS[name](endpoint.model, words, prompt, system)
        except ValueError as error:
            if len(names) == 1:
                raise
            reasons.append(str(error))
            continue
        try:
            return await _look(endpoint, dialect, images, models)
        except NotSpokenError as reason:
            reasons.append(f"{name} {reason}")
    if any("without log-probabilities" in reason for reason in reasons):
        raise LLMError(
            f"{endpoint.name} answers for {endpoint.model!r} without log-probabilities, which are the answers: pass a "
            "model or a server that gives them."
        )
    raise LLMError(
        f"{endpoint.name} speaks none of {', '.join(names)} in a way that gives probabilities: {'; '.join(reasons)}."
    )


async def _look(endpoint: Endpoint, dialect: Dialect, images: list[Encoded], models: Sequence[str]) -> Probe:
    known = endpoint.questions
    questions = QUESTIONS if known is None else (known[0], known[-1])
    first, response = await _first(endpoint, dialect, images[0], questions[0], models)
    found = Probe(dialect, prompt=_digest(response.get("prompt_token_ids")), questions=questions)
    answers = [first]
    for image, question in ((0, 1), (1, 0), (1, 1), (0, 0)):
        answers.append((await _first(endpoint, dialect, images[image], questions[question], models))[0])
    *z, again = [dialect.log_odds(answer, dialect.step(answers)) for answer in answers]
    found.log_odds, found.noise = z, 0.0 if math.isnan(z[0]) or math.isnan(again) else abs(z[0] - again)
    _check(endpoint, dialect, found, answers, response)
    return found


def _check(
    endpoint: Endpoint, dialect: Dialect, found: Probe, answers: Sequence[Answer], response: dict[str, Any]
) -> None:
    model = endpoint.model
    if isinstance(dialect, Chat) and response:  # else it was refused
        said = first_words(response)
        if any(mark in said.lower() for mark in THINKS) or _thought(response):
            raise ValueError(
                f"{model} thinks before it answers (it begins with {said!r}): pass a model without thinking, or start "
                "the server with a chat template that switches it off."
            )
    if all(math.isnan(z) for z in found.log_odds):
        what = "refuses to answer" if all(answer.refused for answer in answers) else "gives neither yes nor no among"
        what += "" if what.startswith("refuses") else " the likeliest tokens"
        raise ValueError(
            f"{model} {what} when it is asked the colour of a plain image: pass another --teacher_model, or a server "
            "with logprob_token_ids (vLLM 0.30 or later)."
        )
    red, blue = found.log_odds[:2], found.log_odds[2:]
    differences = [abs(one - other) for one, other in zip(red, blue) if not math.isnan(one - other)]
    if differences and max(differences) <= max(1e-6, 2 * found.noise):
        raise ValueError(
            f"{model} does not see images: it answers the same about a red image and a blue one; pass a multimodal "
            "model, or a server that shows it the images."
        )
    if found.noise > 1:
        logger.warning(f"{model} answers the same question with log-odds that differ by {found.noise:.2g}.")
    if found.questions == QUESTIONS and not (red[0] > blue[0] or math.isnan(red[0] - blue[0])):
        logger.warning(f"{model} takes a blue image for redder than a red one: is it the model that you mean?")


def _thought(response: dict[str, Any]) -> bool:
    message = response["choices"][0].get("message") or {}
    return bool(not message.get("content") and (message.get("reasoning_content") or message.get("reasoning")))


def _digest(tokens: Any) -> str | None:
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16] if isinstance(tokens, list) else None


async def _first(
    endpoint: Endpoint, dialect: Dialect, image: Encoded, question: str, models: Sequence[str]
) -> tuple[Answer, dict[str, Any]]:
    """An answer and the response that it is from; options that the server does not know are left out."""
    while True:
        before, after = dialect.request([question])
        try:
            response = await endpoint.post(dialect.path, before + image.base64 + after)
            (answer,) = dialect.answers(response, 1)
            if isinstance(dialect, Chat) and _writes_on(response) and dialect.refuse("max_completion_tokens", ""):
                continue  # a server that knows max_tokens alone
            return answer, response
        except UnusableAnswerError as error:
            if "logprobs-mode" in str(error):
                raise LLMError(f"{endpoint.name} gives an answer {error}.") from None
            raise NotSpokenError(f"answers {error}") from None
        except RequestFailedError as failed:
            if is_refusal(failed):
                return Answer(math.nan, math.nan, refused=True), {}
            if failed.status in (400, 415, 422, 501) and _leave_out(dialect, failed):
                continue
            _raise(endpoint, dialect, failed, models)


def _writes_on(response: dict[str, Any]) -> bool:
    usage = response.get("usage")
    written = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return isinstance(written, int) and written > 1


def _leave_out(dialect: Dialect, failed: RequestFailedError) -> bool:
    options = sorted(getattr(dialect, "options", ()), key=len, reverse=True)  # logprobs is a part of top_logprobs
    return any(option in failed.reason and dialect.refuse(option, failed.reason) for option in options)


def _raise(endpoint: Endpoint, dialect: Dialect, failed: RequestFailedError, models: Sequence[str]) -> None:
    if lacks_model(failed):
        raise LLMError(endpoint.explain(failed, models)) from None
    if failed.status in NOT_THERE:
        raise NotSpokenError(f"is not there ({failed})") from None
    if is_about_image(failed):
        raise LLMError(f"{endpoint.model} takes no images ({failed}): pass a multimodal --teacher_model.") from None
    if failed.status in (400, 422) and not failed.too_long:
        raise NotSpokenError(f"is refused ({failed})") from None
    raise LLMError(endpoint.explain(failed, models)) from None
