"""What all LLMs behind HTTP share: retries, options that a server does not know, errors in one sentence."""

from __future__ import annotations

import json
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future, wait
from email.utils import parsedate_to_datetime
from time import time
from typing import Any, Protocol

import tenacity

from ..text import excerpt, get_logger, keep_secret, masked
from .prompts import Message


logger = get_logger(__name__)

ATTEMPTS = 6
FEW_ATTEMPTS = 2  # after a time-out, and at a server that never answered: rather a wrong address than a busy one
LONGEST_WAIT = 300  # seconds; what a server may ask for by Retry-After
WORTH_RETRYING = {408, 409, 425, 429, 500, 502, 503, 504, 529}
REFUSES_AN_OPTION = {400, 415, 422, 501}  # how servers say that they do not know an option
OPTIONAL = ("max_tokens", "temperature", "seed")  # which some models refuse, by name
RENAMED = {"max_tokens": "max_completion_tokens"}
NO_CREDIT = re.compile("insufficient_quota|billing_hard_limit_reached|billing_not_active")
TOO_MUCH = re.compile(  # OpenAI and vLLM, llama.cpp, TGI: each says it in its own words
    r"context[ _](length|size|window)|max_new_tokens\S* must be|tokens\W.{0,40}\btoo large|at most \d+ completion",
    re.IGNORECASE,
)


class LLMError(OSError):
    """What keeps an LLM from answering, in one sentence with its remedy."""


class LLM(Protocol):
    """Whatever completes a chat.

    Attributes:
        name: what to call it in files and messages; no path, no secret.
        spare_tokens: how many tokens it may write beside the answer proper, for instance while it thinks.
    """

    name: str
    spare_tokens: int

    def complete(
        self, messages: Sequence[Message], schema: dict[str, Any] | None = None, max_tokens: int = 1024, seed: int = 0
    ) -> str:
        """The assistant's next turn, "" where it has nothing to say.

        Args:
            messages: the turns so far, {"role": ..., "content": ...}.
            schema: a JSON schema for the answer; followed only where the LLM can be made to.
            max_tokens: where to cut the answer.
            seed: another one gives another answer.

        Raises:
            LLMError: there is no answer.
        """
        ...


class Refused(Exception):
    """One request failed.

    Attributes:
        reason: one line.
        code: what the server calls the error, beside the text of it.
        status: of HTTP; None where no answer came.
        retry_after: seconds that the server asks to wait.
        timed_out: whether it took too long.
    """

    def __init__(
        self,
        reason: str,
        status: int | None = None,
        retry_after: str | None = None,
        timed_out: bool = False,
        code: str = "",
    ):
        super().__init__(reason)
        self.reason = excerpt(reason)
        self.status = status
        self.retry_after = _seconds(retry_after)
        self.timed_out = timed_out
        self.code = code

    @property
    def no_credit(self) -> bool:
        """Whether nothing is left to pay with; some servers say so by the status of a busy one."""
        return self.status == 402 or NO_CREDIT.search(f"{self.code} {self.reason}") is not None

    @property
    def too_much(self) -> bool:
        """Whether request and answer together are too long for the model."""
        return self.status in (400, 413, 422) and TOO_MUCH.search(f"{self.code} {self.reason}") is not None

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed a little later."""
        return (self.status is None or self.status in WORTH_RETRYING) and not self.no_credit


class NoCompletion(Refused):
    """An answer that is none: a wrong address at first, and a server that stumbles once it has answered.

    Attributes:
        remedy: against a wrong address.
    """

    def __init__(self, reason: str, remedy: str):
        super().__init__(reason, 200)
        self.remedy = remedy


class RemoteLLM(ABC):
    """What all servers share: retries, options that one of them does not know, errors in one sentence, no secret out.

    Args:
        name: the model, as the server calls it.
        key: the secret that it wants, if any; kept in memory only.
        timeout: seconds that one answer may take.
        temperature: of sampling; None leaves it to the server.
        attempts: how often one request is made before it is given up.
    """

    spare_tokens = 4096

    def __init__(
        self,
        name: str,
        key: str | None,
        timeout: float = 120.0,
        temperature: float | None = 0.7,
        attempts: int = ATTEMPTS,
    ):
        self.name = name
        self.timeout = timeout
        self.temperature = temperature
        self.attempts = attempts
        self._key = key
        keep_secret(key)
        self.refusal = ""  # what the last answer said in place of a text
        self._answered = False
        self._starved = 0  # answers in a row that ended before they began
        self._unknown: set[str] = set()  # options that this server refused
        self._forms_refused = 0  # of the ways to ask for JSON

    @property
    @abstractmethod
    def place(self) -> str:
        """Where it is, for messages."""

    @abstractmethod
    def _send(self, messages: Sequence[Message], options: dict[str, Any]) -> dict[str, Any]:
        """One request; raises `Refused`."""

    def _ways_to_ask_for_json(self, schema: dict[str, Any]) -> list[dict[str, Any] | None]:
        """Values for response_format, the best first; None, the last: not at all."""
        named = {"name": "answer", "schema": schema, "strict": True}
        return [{"type": "json_schema", "json_schema": named}, None]

    def complete(
        self, messages: Sequence[Message], schema: dict[str, Any] | None = None, max_tokens: int = 1024, seed: int = 0
    ) -> str:
        """See `LLM.complete`."""
        settings = {"max_tokens": max_tokens, "temperature": self.temperature, "seed": seed}
        forms = self._ways_to_ask_for_json(schema)[self._forms_refused :] if schema else [None]
        for position, form in enumerate(forms):
            try:
                answer = self._with_known_options(messages, {**settings, "response_format": form})
            except Refused as refused:
                lasting = refused.too_much or refused.no_credit  # in whatever form it is asked
                if form is not None and refused.status in REFUSES_AN_OPTION and not lasting:
                    logger.info("%s does not take this response_format (%s).", self.place, refused.reason)
                    continue
                raise LLMError(self._without_key(self._sentence(refused))) from None
            if schema:
                self._forms_refused += position  # not tried again
            return answer
        raise AssertionError("the last form is None, which returns or raises")

    def _with_known_options(self, messages: Sequence[Message], settings: dict[str, Any]) -> str:
        while True:
            options = {RENAMED.get(key, key) if key in self._unknown else key: settings[key] for key in settings}
            options = {key: value for key, value in options.items() if value is not None and key not in self._unknown}
            try:
                choice = self._retried(messages, options)
            except Refused as refused:
                unknown = self._refused_option(refused, options)
                if unknown is None:
                    raise
                self._unknown.add(unknown)
                continue
            self._answered = True
            return self._text(choice, settings["max_tokens"])

    def _retried(self, messages: Sequence[Message], options: dict[str, Any]) -> dict[str, Any]:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._may_pass),
            wait=lambda state: pause(state),
            stop=lambda state: state.attempt_number >= self._allowed_attempts(state.outcome.exception()),
            before_sleep=self._tell,
            reraise=True,
        )
        return retrying(lambda: _choice(self._in_time(messages, options)))

    def _may_pass(self, error: BaseException) -> bool:
        if isinstance(error, NoCompletion):
            return self._answered and not error.no_credit
        return isinstance(error, Refused) and error.may_pass

    def _in_time(self, messages: Sequence[Message], options: dict[str, Any]) -> dict[str, Any]:
        """`_send` with a limit to all of it: that of a socket is for each few bytes, which a server may drip."""
        answer: Future[dict[str, Any]] = Future()

        def send() -> None:
            try:
                answer.set_result(self._send(messages, options))
            except BaseException as error:
                answer.set_exception(error)

        threading.Thread(target=send, daemon=True).start()  # no executor: it would be waited for at exit
        if not wait([answer], self.timeout).done:
            raise Refused("timed out", timed_out=True)
        return answer.result()

    def _allowed_attempts(self, refused: Refused) -> int:
        never_answered = refused.status is None and not self._answered
        return min(FEW_ATTEMPTS, self.attempts) if refused.timed_out or never_answered else self.attempts

    def _refused_option(self, refused: Refused, options: dict[str, Any]) -> str | None:
        """Newer models take no temperature and call max_tokens something else; the server says so by name."""
        if refused.status not in (400, 422) or refused.too_much:
            return None
        return next((key for key in OPTIONAL if key in options and key in refused.reason), None)

    def _text(self, choice: dict[str, Any], max_tokens: int) -> str:
        text = choice["message"].get("content") or ""
        self.refusal = "" if text else " ".join(str(choice["message"].get("refusal") or "").split())
        self._starved = self._starved + 1 if not text and choice.get("finish_reason") == "length" else 0
        if self._starved > 1:  # every further one would be paid for too
            raise LLMError(
                f"{self.name} used all {max_tokens} tokens before it answered, twice in a row: raise --max_tokens, or "
                "pass an LLM that thinks less."
            )
        if self._starved:
            logger.warning("%s used all its tokens before it answered: give it more by --max_tokens.", self.name)
        if isinstance(text, list):  # of parts, as some servers give it
            text = "".join(str(part.get("text", "")) for part in text if isinstance(part, dict))
        return str(text).encode(errors="replace").decode()  # half an emoji cannot be written to a file

    def _tell(self, state: tenacity.RetryCallState) -> None:
        logger.warning(
            "%s did not answer as hoped (%s): attempt %d in %.0f s.",
            self.place,
            self._without_key(_told(state.outcome.exception())),
            state.attempt_number + 1,
            state.next_action.sleep,
        )

    def _sentence(self, refused: Refused) -> str:
        told, status = _told(refused), refused.status
        if refused.timed_out:
            return (
                f"{self.name} gave no answer within {self.timeout:g} s: raise --timeout, or ask for less at once by "
                "--per_request."
            )
        if status is None:
            return f"{self.place} cannot be reached ({told}): look at the address and whether a server runs there."
        if status in (401, 403):
            return f"{self.place} does not accept the key ({told}): {self._remedy_for_key()}"
        if refused.no_credit:
            return f"{self.place} wants to be paid ({told}): add credit there, or pass another LLM."
        if isinstance(refused, NoCompletion):
            later = "run the same command again later, or pass another LLM"
            return f"{self.place} {refused.reason}: {later if self._answered else refused.remedy}."
        if refused.too_much:
            return (
                f"{self.name} cannot read and write so much at once ({told}): lower --max_tokens or --per_request, or "
                "pass another LLM."
            )
        if status == 404:
            return f"{self.place} has no model {self.name!r} ({told}): look at --llm and at the address."
        if status == 429:
            return f"{self.place} allows no more requests for now ({told}): run the same command again later."
        if status in WORTH_RETRYING:
            return f"{self.place} is out of order ({told}): run the same command again later, or pass another LLM."
        return f"{self.place} refused the request ({told}): look at --llm, --max_tokens and --per_request."

    def _remedy_for_key(self) -> str:
        return "pass --api_key_env with the name of the environment variable that holds one."

    def _without_key(self, text: str) -> str:
        return masked(text)


def _choice(answer: dict[str, Any]) -> dict[str, Any]:
    """The one answer in a chat completion."""
    try:
        choice = answer["choices"][0]
        choice["message"].get("content")
        return choice
    except (KeyError, IndexError, TypeError, AttributeError):
        said = excerpt(json.dumps(answer, default=str), 200)
        raise NoCompletion(f"gave no chat completion but {said}", "expected an OpenAI-compatible server") from None


def pause(state: tenacity.RetryCallState) -> float:
    """Seconds until the next attempt: what the server asks for, or 1, 2, 4, ... with some chance."""
    asked = state.outcome.exception().retry_after
    return tenacity.wait_exponential_jitter(initial=1, max=30)(state) if asked is None else min(asked, LONGEST_WAIT)


def _seconds(retry_after: str | None) -> float | None:
    try:
        return max(0.0, float(retry_after))
    except (TypeError, ValueError):
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time())
    except (TypeError, ValueError):
        return None


def _told(refused: Refused) -> str:
    return f"{refused.status}: {refused.reason}" if refused.status else refused.reason
