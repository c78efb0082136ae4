"""A client for whatever server speaks OpenAI's chat completions.

The `openai` package makes the requests: its retries with backoff and Retry-After, its pool of connections. Here are
the limits on one answer, and the rule that a key goes to the given address alone.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from typing import Any

from ..text import excerpt, get_logger, keep_secret
from . import LLMError


try:
    import anyio  # noqa: F401
    import httpx2
    import openai
except ImportError as error:
    raise ImportError('LLMs behind a server need the package openai: pip install "madkd_hf[openai]"') from error


logger = get_logger(__name__)

LARGEST = 10_000_000  # bytes of an answer; a long one has thousands
SENT_HEADERS = {"host", "content-type", "content-length", "accept"}
READ_HEADERS = {"retry-after", "retry-after-ms", "location"}
NO_CREDIT = re.compile("insufficient_quota|billing_hard_limit_reached|billing_not_active")
TOO_LONG = re.compile(  # OpenAI and vLLM, llama.cpp, TGI: each has its own wording
    r"context[ _](length|size|window)|max_new_tokens\S* must be|tokens\W.{0,40}\btoo large|at most \d+ completion",
    re.IGNORECASE,
)


class RequestFailedError(Exception):
    """A request without a usable answer, after all retries.

    `code` is what the server calls the error; `status` that of HTTP, None where no answer came.
    """

    def __init__(self, reason: str, status: int | None = None, code: str = "", timed_out: bool = False):
        super().__init__(reason)
        self.reason, self.status, self.code, self.timed_out = excerpt(reason), status, code, timed_out

    def __str__(self) -> str:
        return f"{self.status}: {self.reason}" if self.status else self.reason

    @property
    def no_credit(self) -> bool:
        """Whether nothing is left to pay with; some servers report it with the status of a busy one."""
        return self.status == 402 or NO_CREDIT.search(f"{self.code} {self.reason}") is not None

    @property
    def too_long(self) -> bool:
        """Whether request and answer together are too long for the model."""
        return self.status in (400, 413, 422) and TOO_LONG.search(f"{self.code} {self.reason}") is not None


class AnswerTooLargeError(openai.OpenAIError):
    """More than LARGEST bytes; not retried."""


class Limits:
    """What holds for every request, of one thread or of many at once.

    The key goes to the given address and no further: no redirect is followed, and of the headers that openai adds
    (from OPENAI_API_KEY, OPENAI_CUSTOM_HEADERS and others of the environment) none is sent.

    Args:
        key: sent as a bearer token, if there is one.
        seconds: that one answer may take, to its last byte.
    """

    def __init__(self, key: str | None, seconds: float):
        self.key, self.seconds = key, seconds
        self.has_answered = False

    def prepare(self, request: httpx2.Request) -> bool:
        """Set the headers; returns whether the same was sent before."""
        is_retry = request.headers.get("x-stainless-retry-count", "0") != "0"
        headers = {name: value for name, value in request.headers.items() if name in SENT_HEADERS}
        request.headers = httpx2.Headers(headers | self.headers)
        return is_retry

    @property
    def headers(self) -> dict[str, str]:
        """Those of every request."""
        key = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return {"User-Agent": "madkd_hf", "Accept-Encoding": "identity", **key}

    def failed(self, error: httpx2.TransportError, request: httpx2.Request, is_retry: bool) -> Exception:
        """What to raise where no answer came: an error of httpx is tried again, one of openai is not."""
        if isinstance(error, httpx2.ConnectTimeout):  # to aiohttp's transport, that is a lost connection, too
            error = httpx2.ConnectError(str(error) or "no connection", request=request)
        if isinstance(error, httpx2.TimeoutException):
            logger.warning("No answer within %g s.", self.seconds)
            return openai.APITimeoutError(request) if is_retry else error  # each of them may be paid for
        if is_retry and not self.has_answered:  # rather a wrong address than a busy server
            failed = openai.APIConnectionError(message=str(error), request=request)
            failed.__cause__ = error
            return failed
        return error

    def answered(self, answer: httpx2.Response, body: bytes) -> httpx2.Response:
        """The answer with this body, and of its headers those that are read."""
        self.has_answered = True
        headers = {name: answer.headers[name] for name in READ_HEADERS if answer.headers.get(name, "é").isascii()}
        if answer.status_code >= 400:
            text = body.decode(errors="replace")
            final = answer.status_code == 501 or NO_CREDIT.search(text)
            headers |= {"x-should-retry": "false"} if final else {}
            if is_busy(answer.status_code):
                logger.warning("The server answers %d: %s", answer.status_code, excerpt(error_of(text)[0], 100))
        return httpx2.Response(answer.status_code, headers=headers, content=bytes(body), request=answer.request)


def is_busy(status: int) -> bool:
    """Whether the same request may be answered later."""
    return status in (408, 409, 429) or status >= 500


class _Connection(httpx2.Client):
    """Sends what `openai` asks for, within limits on the time and the size of a whole answer."""

    def __init__(self, key: str | None, timeout: float):
        super().__init__(timeout=timeout)
        self.limits = Limits(key, timeout)

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """See `httpx.Client.send`; the answer is read already."""
        is_retry = self.limits.prepare(request)
        try:
            return self._read(request, options)
        except httpx2.TransportError as error:
            failed = self.limits.failed(error, request, is_retry)
            raise failed from None if failed is error else error  # an error that is its own cause has no end

    def _read(self, request: httpx2.Request, options: dict[str, Any]) -> httpx2.Response:
        end, body = time.monotonic() + self.limits.seconds, bytearray()
        response = super().send(request, **{**options, "stream": True, "follow_redirects": False})
        with contextlib.closing(response):
            request.extensions["timeout"]["read"] = max(0.001, end - time.monotonic())
            for part in response.iter_raw():  # and not decompressed: that may be a thousand times as much
                body += part
                if len(body) > LARGEST:
                    raise AnswerTooLargeError
                if time.monotonic() > end:  # httpx limits the time of each part only
                    raise httpx2.ReadTimeout("timed out", request=request)
        return self.limits.answered(response, body)


class ChatServer:
    """A server that speaks OpenAI's chat completions.

    Args:
        base_url: with or without /v1 and /chat/completions.
        key: what it wants as a bearer token, if any; kept in memory only.
        timeout: seconds that one answer may take.
        retries: how often a request is repeated while the server is busy.
        name: what messages call it; by default its host.
    """

    def __init__(
        self, base_url: str, key: str | None = None, timeout: float = 120.0, retries: int = 5, name: str | None = None
    ):
        check_key(key)
        url = parse_address(base_url)
        path = url.path.rstrip("/").removesuffix("/chat/completions")
        self.url = url.copy_with(path=(path or "/v1") + "/chat/completions")
        self.name = name or name_of(url)
        self._client = openai.OpenAI(
            api_key="not sent", base_url=str(self.url), max_retries=retries, http_client=_Connection(key, timeout)
        )

    @property
    def is_here(self) -> bool:
        """Whether it runs on this machine, so that nobody is paid."""
        return is_here(self.url)

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """The first choice of a chat completion; `body` is a request as OpenAI documents it."""
        try:
            response = self._client.post(str(self.url), body=body, cast_to=httpx2.Response)
        except openai.OpenAIError as error:
            raise what_failed(error, self.url, self.name) from None
        return _first_choice(response.text)


def what_failed(error: openai.OpenAIError, url: httpx2.URL, name: str, option: str = "--base_url") -> Exception:
    """A `RequestFailedError`, or an `LLMError` whose sentence needs nothing more; `option` is what has the address."""
    if isinstance(error, AnswerTooLargeError):
        return LLMError(f"{name} answers with more than {LARGEST:,} bytes: check the address.")
    if isinstance(error, openai.APITimeoutError):
        return RequestFailedError("timed out", timed_out=True)
    if isinstance(error, openai.APIStatusError):
        if 300 <= error.status_code < 400:
            return LLMError(_redirected(error.response, url, name, option))
        reason, code = error_of(error.response.text)
        return RequestFailedError(reason, error.status_code, code)
    return RequestFailedError(str(error.__cause__ or error) or type(error.__cause__ or error).__name__)


def _redirected(response: httpx2.Response, url: httpx2.URL, name: str, option: str) -> str:
    with contextlib.suppress(httpx2.InvalidURL):
        to = url.join(response.headers.get("Location", ""))
        address = f"{to.scheme}://{to.netloc.decode()}{to.path.removesuffix('/chat/completions')}"
        return (
            f"{name} redirects to {excerpt(address, 200)} ({response.status_code}), which did not get the "
            f"request: pass that address by {option}, if you trust it."
        )
    return f"{name} redirects to no address ({response.status_code}): check the address."


def check_key(key: str | None) -> None:
    """Never show this key, and refuse one that cannot be sent."""
    keep_secret(key)
    if key and not (key.isascii() and key.isprintable()):
        raise ValueError("The key has line breaks or characters beyond ASCII: pass it without them.")


def name_of(url: httpx2.URL) -> str:
    """What messages call a server."""
    return f"The server at {url.netloc.decode()}"


def is_here(url: httpx2.URL) -> bool:
    """Whether an address is this machine."""
    return url.host in ("localhost", "127.0.0.1", "::1", "0.0.0.0")


def parse_address(base_url: str, option: str = "base_url", key_option: str = "--api_key_env") -> httpx2.URL:
    """The address of a server; ValueError for what is none, or has a password in it."""
    shown = re.sub(r"^(\w+://)?.*@", r"\1***@", base_url, flags=re.DOTALL)
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL:
        url = httpx2.URL()
    if url.scheme not in ("http", "https") or not url.host or not 0 < (url.port or 80) < 65536:
        raise ValueError(f"{option} is {shown!r}: expected an address such as http://localhost:8000/v1.")
    if url.userinfo:
        raise ValueError(
            f"{option} is {shown!r}, with a user name or password: leave them out, and pass a key by {key_option}."
        )
    return url


def _first_choice(text: str) -> dict[str, Any]:
    try:
        choice = json.loads(text)["choices"][0]
        choice["message"].get("content")
    except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
        raise RequestFailedError(excerpt(text, 200), 200, error_of(text)[1]) from None
    return choice


def error_of(body: str) -> tuple[str, str]:
    """What an error's body says, and its code: OpenAI, vLLM, TGI, FastAPI and Ollama each have their own place."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return " ".join(body.split()), ""
    code = ""
    for _ in range(3):
        if isinstance(content, dict):
            code = f"{code} {content.get('code', '')} {content.get('type', '')}"
            content = next((content[key] for key in ("error", "message", "detail") if content.get(key)), content)
    return content if isinstance(content, str) else json.dumps(content), code
