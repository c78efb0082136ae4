"""What the multimodal LLM is shown: system prompt and image first, then constant instructions, then the question."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, tzinfo
from typing import Any

from transformers import ProcessorMixin
from transformers.utils import chat_template_utils


PROMPT = "Answer with yes or no. {question}"
DATE = "2026-01-01"  # what templates that write today's date are told: answers are not to change overnight

_OPEN_TO_CLOSE = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "◁think▷": "◁/think▷",
}
# These put the image before the text themselves: a placeholder would be one image token too many.
_PLACE_THE_IMAGE = {
    "BlipProcessor",
    "Blip2Processor",
    "FuyuProcessor",
    "GitProcessor",
    "InstructBlipProcessor",
    "Kosmos2Processor",
}
_ANSWER = "@@answer@@"
_now: ContextVar[datetime] = ContextVar("now")
_rendering = threading.RLock()


def day(date: str) -> datetime:
    """The beginning of a day that is given as YYYY-MM-DD."""
    try:
        return datetime.strptime(date, "%Y-%m-%d")
    except (TypeError, ValueError) as error:
        raise ValueError(f"date={date!r} is no day: expected one such as {DATE}.") from error


def chat_text(
    processor: ProcessorMixin, question: str, prompt: str = PROMPT, system: str | None = None, date: str = DATE
) -> str:
    """The text of one single-turn chat with one image placeholder, up to the position where the answer begins.

    The image stands before the question, and what is constant before what varies, so that images and
    instructions can be encoded once for all questions.

    With a chat template (the processor's own, or else its tokenizer's) the system prompt is a system turn, and a
    model that thinks before it answers is told not to: the text ends after an empty thinking block, in the template's
    own spelling. Without one, the model is shown image, system prompt, newline, user turn; a prompt that contains the
    image placeholder puts the image where the model wants it ("USER: <image>\\n{question} ASSISTANT:"). The few
    processors that put the image before the text themselves (BLIP-2, Fuyu, GIT, Kosmos-2) get no placeholder.

    A model that starts to think although its template does not write so cannot be told from others here: the low
    mass of its readings shows it.

    Args:
        prompt: the user turn's text, with `{question}` where the question goes.
        system: the system prompt, none by default (a template may have its own).
        date: what day it is to a template that writes so, YYYY-MM-DD: always the same, so that a job that goes on
            tomorrow, and one on another machine, read the same prompts. What a template draws is the same, too.
    """
    with _fixed_date(date):
        return _chat_text(processor, prompt, prompt.replace("{question}", question), system)


def _chat_text(processor: ProcessorMixin, prompt: str, text: str, system: str | None) -> str:
    owner = next((owner for owner in (processor, processor.tokenizer) if getattr(owner, "chat_template", None)), None)
    if owner is None:
        return _without_template(processor, prompt, text, system)
    turns, rendered = _user_turn(owner, processor, text)
    if system is not None:
        turns, rendered = _with_system(owner, turns, text, system)
    return _up_to_the_answer(owner, turns, rendered, text)


def _without_template(processor: ProcessorMixin, prompt: str, text: str, system: str | None) -> str:
    image = _placeholder(processor)
    if image is None:
        raise ValueError(
            f"{type(processor).__name__} has no chat template and does not say what stands for an image in the text: "
            "set its chat_template or its image_token."
        )
    if system is not None:
        text = f"{system}\n{text}"
    return text if image in prompt else f"{image}{text}"


def _placeholder(processor: ProcessorMixin) -> str | None:
    """What stands for an image in the text: empty if nothing has to, None if unknown."""
    if any(base.__name__ in _PLACE_THE_IMAGE for base in type(processor).__mro__):
        return ""
    for owner in (processor, processor.tokenizer):
        if getattr(owner, "image_token", None):
            return str(owner.image_token)
    token_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    return None if token_id in (None, processor.tokenizer.unk_token_id) else "<image>"


def _user_turn(owner: Any, processor: ProcessorMixin, text: str) -> tuple[list[dict], str]:
    """The user turn in the form that the template takes, and what the template makes of it."""
    image, part = _placeholder(processor), {"type": "text", "text": text}
    contents = [[{"type": "image"}, part]]
    if image is not None:  # older templates, and those of text models, take a string
        contents.append(f"{image}\n{text}" if image else text)
    error = None
    for content in contents:
        turns = [{"role": "user", "content": content}]
        rendered, failure = _attempt(owner, turns)
        error = failure or error
        if _shows(rendered, text):
            without, _ = _attempt(owner, [{"role": "user", "content": [part]}])
            if (image is not None and image in rendered) or without != rendered:
                return turns, rendered
    raise ValueError(
        f"The chat template of {type(processor).__name__} does not show both the image and the question"
        f"{f' ({error})' if error else ''}: expected one that takes content as a list of image and text, or as a "
        "string; set processor.chat_template to such a one."
    ) from error


def _with_system(owner: Any, turns: list[dict], text: str, system: str) -> tuple[list[dict], str]:
    for content in ([{"type": "text", "text": system}], system):
        all_turns = [{"role": "system", "content": content}, *turns]
        rendered, _ = _attempt(owner, all_turns)
        if _shows(rendered, text) and _shows(rendered.replace(text.strip(), ""), system):
            return all_turns, rendered
    raise ValueError(
        "The chat template has no place for a system prompt: write its text in `prompt`, before {question}, instead."
    )


def _attempt(owner: Any, turns: list[dict], answer_next: bool = True) -> tuple[str, Exception | None]:
    """What the template makes of the turns, or nothing and the reason."""
    flags = {"enable_thinking": False} if "enable_thinking" in str(owner.chat_template) else {}
    with _rendering:  # clock and dice are those of the whole process
        clock, dice = chat_template_utils.datetime, random.getstate()
        chat_template_utils.datetime = _FixedClock
        random.seed(0)
        try:
            return owner.apply_chat_template(turns, add_generation_prompt=answer_next, tokenize=False, **flags), None
        except Exception as error:  # templates are programs, and raise what they like
            return "", error
        finally:
            chat_template_utils.datetime = clock
            random.setstate(dice)


class _FixedClock(datetime):
    """The clock of chat templates."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        return _now.get(None) or datetime.now(tz)  # other threads render templates of their own meanwhile


@contextmanager
def _fixed_date(date: str) -> Iterator[None]:
    token = _now.set(day(date))
    try:
        yield
    finally:
        _now.reset(token)


def _shows(rendered: str, text: str) -> bool:
    """Whether the text was written as it is (templates may strip it), and not as Python prints a list of parts."""
    return text.strip() in rendered and not re.search(r"\{['\"]type['\"]: ", rendered.replace(text.strip(), ""))


def _up_to_the_answer(owner: Any, turns: list[dict], rendered: str, text: str) -> str:
    """The rendered turns, past any thinking: what the template writes before an answer that needed no thought."""
    start = rendered.rindex(text.strip()) + len(text.strip())
    if re.search("think|thought", str(owner.chat_template), re.I):
        before = _before_an_answer(owner, turns)
        blocks = any(mark in before[start:] for mark in _OPEN_TO_CLOSE)
        if blocks and before.startswith(rendered) and _open_block(before[start:]) is None:
            return before.rstrip(" ")  # a space belongs to the answer's first token
    block = _open_block(rendered[start:])
    if block is not None:
        close = _OPEN_TO_CLOSE[block]
        return f"{rendered.rstrip()}\n\n{close}\n\n" if rendered.endswith("\n") else f"{rendered}{close}"
    last = re.search(r"[<\[◁][^<\[◁]*$", rendered[start:])
    if last and re.search("think|thought|reason", last[0], re.I) and not re.search("/|end", last[0], re.I):
        raise ValueError(
            f"The chat template starts a thinking block that cannot be closed ({rendered[start:]!r}): use a model "
            "that answers without thinking, or a chat template that ends where the answer begins."
        )
    return rendered


def _before_an_answer(owner: Any, turns: list[dict]) -> str:
    """What the template writes before the text of an assistant's turn; empty if it takes none."""
    for content in (_ANSWER, [{"type": "text", "text": _ANSWER}]):
        rendered, _ = _attempt(owner, [*turns, {"role": "assistant", "content": content}], answer_next=False)
        if _ANSWER in rendered:
            return rendered[: rendered.rindex(_ANSWER)]
    return ""


def _open_block(tail: str) -> str | None:
    opened = (mark for mark, close in _OPEN_TO_CLOSE.items() if tail.rfind(mark) > tail.rfind(close))
    return next(opened, None)
