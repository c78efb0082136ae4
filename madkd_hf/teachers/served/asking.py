"""One request until it has a usable answer, or a sentence that says why there is none."""

from __future__ import annotations

import re
import time

from ...llm import LLMError
from ...llm.async_client import RequestFailedError
from .dialects import Answer, Dialect, UnusableAnswerError
from .dialects.base import REFUSED
from .endpoint import AGAIN, Endpoint, is_about_image, is_refusal, may_pass
from .images import Encoded


TRIES = 3  # of a request whose answer cannot be used
TOO_MANY = re.compile(r"questions?\b|too_long|at most \d+|max_length", re.IGNORECASE)


class ImageRefusedError(ValueError):
    """The server does not take this image."""


class TooManyQuestionsError(ValueError):
    """The server takes fewer questions in one request."""


async def ask(
    endpoint: Endpoint, dialect: Dialect, image: Encoded, request: tuple[bytes, bytes], count: int
) -> list[Answer] | None:
    """The answers to the `count` questions of a request, in their order; None where another server may have them.

    Args:
        request: what stands before and behind the image, see `Dialect.request`.

    Raises:
        ImageRefusedError, TooManyQuestionsError: see there.
        LLMError: there is no answer to be had, in one sentence.
    """
    before, after = request
    for turn in range(TRIES):
        try:
            response = await endpoint.post(dialect.path, before + image.base64 + after)
            return dialect.answers(response, count)
        except UnusableAnswerError as error:
            if error.permanent or turn == TRIES - 1:
                times = "" if error.permanent else f" {TRIES} times in a row"
                raise LLMError(
                    f"{endpoint.name} gives{times} an answer {error}: nothing is made of it; see to the server, and "
                    f"{AGAIN}."
                ) from None
        except RequestFailedError as failed:
            if is_refusal(failed):
                return [REFUSED] * count
            if count > 1 and failed.status in (400, 413, 422) and TOO_MANY.search(failed.reason):
                raise TooManyQuestionsError(str(failed)) from None
            if is_about_image(failed):
                raise ImageRefusedError(str(failed)) from None
            if failed.status == 200 and turn < TRIES - 1:  # cut off, or a page of some proxy
                continue
            sentence = LLMError(endpoint.explain(failed))
            if not may_pass(failed) or failed.no_credit:
                raise sentence from None
            endpoint.dead, endpoint.died_at = sentence, time.monotonic()
            return None
    raise AssertionError("the last turn returns or raises")
