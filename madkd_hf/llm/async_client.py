"""Many requests at once to a server: the asynchronous side of `client`, with the same limits."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any

from ..text import excerpt
from .client import (
    LARGEST,
    AnswerTooLargeError,
    Limits,
    RequestFailedError,
    anyio,
    check_key,
    error_of,
    httpx2,
    is_busy,
    name_of,
    openai,
    parse_address,
    what_failed,
)


@contextlib.asynccontextmanager
async def _time_limit(seconds: float) -> AsyncIterator[None]:
    with anyio.fail_after(seconds):
        yield


_NO_HTTP: tuple[type[Exception], ...] = ()  # of answers that are none, where the transport leaves them as they are
try:  # it needs half of the time that httpx takes for a request
    openai.DefaultAioHttpClient()
    Client = openai.DefaultAioHttpClient
    import aiohttp

    _NO_HTTP = (aiohttp.ClientError,)
except RuntimeError:  # without aiohttp
    Client = openai.DefaultAsyncHttpxClient

# The same, in an event loop of asyncio; anyio's needs a tenth of the time of a request.
time_limit = getattr(asyncio, "timeout", None) or _time_limit  # asyncio's came with Python 3.11
MOST_CONNECTIONS = 1024
_OUTCOME: ContextVar[httpx2.Response | Exception | None] = ContextVar("outcome", default=None)


class _Connection(Client):
    """Sends what `openai` asks for, within limits on the time and the size of a whole answer.

    An answer that needs no second try needs no `openai` either, which takes more time than all the rest of a request.
    So the first try is `first`; where that fails, `openai` gets its outcome in place of a try of its own.
    """

    def __init__(self, key: str | None, timeout: float, on_busy: Callable[[int | None, float | None], Any]):
        pool = httpx2.Limits(max_connections=MOST_CONNECTIONS, max_keepalive_connections=MOST_CONNECTIONS)
        super().__init__(timeout=timeout, limits=pool, follow_redirects=False)
        self.limits_of_answers, self.on_busy = Limits(key, timeout), on_busy

    def request_of(self, method: str, url: httpx2.URL, content: bytes | None) -> httpx2.Request:
        """A request of JSON, for `first`."""
        headers = {"Accept": "application/json", "Content-Type": "application/json", **self.limits_of_answers.headers}
        timeout = {"timeout": self.timeout.as_dict()}
        return httpx2.Request(method, url, headers=headers, content=content, extensions=timeout)

    async def first(self, request: httpx2.Request) -> httpx2.Response | None:
        """The answer to a request, or None where `openai` has to see to it, in the same task."""
        try:
            response = await self._send(request, is_retry=False)
        except (httpx2.TransportError, openai.OpenAIError) as error:
            _OUTCOME.set(error)
            return None
        if response.is_success:
            return response
        _OUTCOME.set(response)
        return None

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """See `httpx.AsyncClient.send`; the answer is read already."""
        outcome = _OUTCOME.get()
        if outcome is None:
            return await self._send(request, self.limits_of_answers.prepare(request), **options)
        _OUTCOME.set(None)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _send(self, request: httpx2.Request, is_retry: bool, **options: Any) -> httpx2.Response:
        limits = self.limits_of_answers
        try:
            async with time_limit(limits.seconds):
                return await self._read(request, options)
        except TimeoutError as error:
            raise limits.failed(httpx2.ReadTimeout("timed out", request=request), request, is_retry) from error
        except httpx2.TransportError as error:
            self.on_busy(None, None)
            failed = limits.failed(error, request, is_retry)
            raise failed from None if failed is error else error

    async def _read(self, request: httpx2.Request, options: dict[str, Any]) -> httpx2.Response:
        body = bytearray()
        try:
            response = await super().send(request, **{**options, "stream": True, "follow_redirects": False})
            async with contextlib.aclosing(response):
                async for part in response.aiter_raw():  # and not decompressed: that may be a thousand times as much
                    body += part
                    if len(body) > LARGEST:
                        raise AnswerTooLargeError
        except _NO_HTTP as error:  # an address of SSH, for instance
            raise httpx2.RemoteProtocolError(f"no HTTP: {excerpt(error, 200)}", request=request) from error
        if is_busy(response.status_code):
            self.on_busy(response.status_code, _seconds(response.headers.get("retry-after")))
        return self.limits_of_answers.answered(response, body)


class AsyncServer:
    """A server that answers JSON with JSON, to many requests at once; all in one event loop.

    Args:
        base_url: with or without /v1.
        key: what it wants as a bearer token, if any; kept in memory only.
        timeout: seconds that one answer may take.
        retries: how often a request is repeated while the server is busy.
        option: what a user gives the address by, and `key_option` the key; for messages.
        on_busy: is told whenever the server is busy or away: the status, if it answers, and the seconds to wait, if it
            names them.
    """

    def __init__(
        self,
        base_url: str,
        key: str | None = None,
        timeout: float = 120.0,
        retries: int = 5,
        option: str = "--base_url",
        key_option: str = "--api_key_env",
        on_busy: Callable[[int | None, float | None], Any] = lambda status, seconds: None,
    ):
        check_key(key)
        url = parse_address(base_url, option, key_option)
        self.url = url.copy_with(path=url.path.rstrip("/").removesuffix("/chat/completions") or "/v1")
        self.name, self.timeout, self._option = name_of(self.url), timeout, option
        self._urls: dict[str, httpx2.URL] = {}  # by path
        self._connection = _Connection(key, timeout, on_busy)
        self._client = openai.AsyncOpenAI(
            api_key="not sent", base_url=str(self.url), max_retries=retries, http_client=self._connection
        )

    async def post(self, path: str, content: bytes, retries: int | None = None) -> dict[str, Any]:
        """What the server answers to JSON; a `path` that begins with // is one of the host, not below the address."""
        options: dict[str, Any] = {"headers": {"Content-Type": "application/json"}}
        options |= {} if retries is None else {"max_retries": retries}
        return await self._answer("POST", path, content=content, options=options)

    async def get(self, path: str) -> dict[str, Any]:
        """What the server has there, asked for once."""
        return await self._answer("GET", path, options={"max_retries": 0})

    async def _answer(self, method: str, path: str, content: bytes | None = None, **request: Any) -> dict[str, Any]:
        if path not in self._urls:
            self._urls[path] = self.url.copy_with(path=path[1:] if path.startswith("//") else self.url.path + path)
        url = self._urls[path]
        response = await self._connection.first(self._connection.request_of(method, url, content))
        if response is None:
            response = await self._with_retries(method, url, content, **request)
        try:
            answer = json.loads(response.content)
        except (ValueError, RecursionError):
            raise RequestFailedError(excerpt(response.text, 200), response.status_code) from None
        if not isinstance(answer, dict) or (answer.get("error") and len(answer) == 1):
            raise RequestFailedError(excerpt(response.text, 200), response.status_code, error_of(response.text)[1])
        return answer

    async def _with_retries(
        self, method: str, url: httpx2.URL, content: bytes | None, **request: Any
    ) -> httpx2.Response:
        try:
            if method == "GET":
                return await self._client.get(str(url), cast_to=httpx2.Response, **request)
            return await self._client.post(str(url), cast_to=httpx2.Response, content=content, **request)
        except openai.OpenAIError as error:
            raise what_failed(error, url, self.name, self._option) from None

    async def close(self) -> None:
        await self._client.close()


def _seconds(retry_after: str | None) -> float | None:
    try:
        return min(120.0, max(0.0, float(retry_after)))
    except (TypeError, ValueError):
        return None
