"""Many requests at once to a server: the asynchronous side of `client`, with the same limits."""

from __future__ import annotations

import json
from collections.abc import Callable
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


try:  # it needs half of the time that httpx takes for a request
    openai.DefaultAioHttpClient()
    Client = openai.DefaultAioHttpClient
except RuntimeError:  # without aiohttp
    Client = openai.DefaultAsyncHttpxClient

MOST_CONNECTIONS = 1024


class _Connection(Client):
    """Sends what `openai` asks for, within limits on the time and the size of a whole answer."""

    def __init__(self, key: str | None, timeout: float, on_busy: Callable[[int | None, float | None], Any]):
        pool = httpx2.Limits(max_connections=MOST_CONNECTIONS, max_keepalive_connections=MOST_CONNECTIONS)
        super().__init__(timeout=timeout, limits=pool, follow_redirects=False)
        self.limits_of_answers, self.on_busy = Limits(key, timeout), on_busy

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """See `httpx.AsyncClient.send`; the answer is read already."""
        limits = self.limits_of_answers
        is_retry = limits.prepare(request)
        try:
            with anyio.fail_after(limits.seconds):
                return await self._read(request, options)
        except TimeoutError as error:
            raise limits.failed(httpx2.ReadTimeout("timed out", request=request), request, is_retry) from error
        except httpx2.TransportError as error:
            self.on_busy(None, None)
            failed = limits.failed(error, request, is_retry)
            raise failed from None if failed is error else error

    async def _read(self, request: httpx2.Request, options: dict[str, Any]) -> httpx2.Response:
        body = bytearray()
        response = await super().send(request, **{**options, "stream": True, "follow_redirects": False})
        try:
            async for part in response.aiter_raw():  # and not decompressed: that may be a thousand times as much
                body += part
                if len(body) > LARGEST:
                    raise AnswerTooLargeError
        finally:
            await response.aclose()
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
        self._urls: dict[str, str] = {}  # by path
        self._client = openai.AsyncOpenAI(
            api_key="not sent",
            base_url=str(self.url),
            max_retries=retries,
            http_client=_Connection(key, timeout, on_busy),
        )

    async def post(self, path: str, content: bytes, retries: int | None = None) -> dict[str, Any]:
        """What the server answers to JSON; a `path` that begins with // is one of the host, not below the address."""
        options: dict[str, Any] = {"headers": {"Content-Type": "application/json"}}
        options |= {} if retries is None else {"max_retries": retries}
        return await self._answer(self._client.post, path, content=content, options=options)

    async def get(self, path: str) -> dict[str, Any]:
        """What the server has there, asked for once."""
        return await self._answer(self._client.get, path, options={"max_retries": 0})

    async def _answer(self, method: Callable, path: str, **request: Any) -> dict[str, Any]:
        if path not in self._urls:
            below = path[1:] if path.startswith("//") else self.url.path + path
            self._urls[path] = str(self.url.copy_with(path=below))
        try:
            response = await method(self._urls[path], cast_to=httpx2.Response, **request)
        except openai.OpenAIError as error:
            raise what_failed(error, httpx2.URL(self._urls[path]), self.name, self._option) from None
        try:
            answer = json.loads(response.content)
        except (ValueError, RecursionError):
            raise RequestFailedError(excerpt(response.text, 200), response.status_code) from None
        if not isinstance(answer, dict) or (answer.get("error") and len(answer) == 1):
            raise RequestFailedError(excerpt(response.text, 200), response.status_code, error_of(response.text)[1])
        return answer

    async def close(self) -> None:
        await self._client.close()


def _seconds(retry_after: str | None) -> float | None:
    try:
        return min(120.0, max(0.0, float(retry_after)))
    except (TypeError, ValueError):
        return None
