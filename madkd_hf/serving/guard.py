"""What stands before the application: the key, the limits on bytes, time and number of requests, and the counting."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..text import get_logger
from .limits import Limits, RefusedError
from .metrics import Metrics


logger = get_logger(__name__)

OPEN = "/health"  # needs no key: whoever watches over the server has none
TAKES_BODY = ("/v1/systemone", "/classify")
PATHS = (*TAKES_BODY, "/v1/models", "/health", "/metrics", "/openapi.json")
DRAIN_SECONDS = 5  # in which a body that is too large is thrown away, so that its sender reads why
CONTENT = "madkd_content"  # in the scope: the whole body, without another copy
LOST = 499  # in the counts: the client went away


class _LostError(Exception):
    """The client went away."""


class Guard:
    """An ASGI application around another one, which meets whole bodies only.

    Args:
        app: what answers.
        key: that clients have to send as a bearer token, if any.
    """

    def __init__(self, app: Any, limits: Limits, metrics: Metrics, key: str | None = None):
        self.app, self.limits, self.metrics = app, limits, metrics
        self.key = None if key is None else key.encode()
        self.in_progress = self.held = 0

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path, started = scope["path"] if scope["path"] in PATHS else "other", time.perf_counter()
        headers = _Headers(scope["headers"])
        body = _Body(receive, headers)
        reply = _Reply(send, body)
        try:
            try:
                await self._answer(scope, headers, body, reply)
            except RefusedError as refused:
                await reply.refuse(refused)
        except _LostError:
            reply.status = LOST
        except Exception as error:  # no request ends the server
            logger.error(f"A request of {path} failed: {type(error).__name__}: {error}")
        self.metrics.requests.labels(path, str(reply.status)).inc()
        self.metrics.seconds.labels(path).observe(time.perf_counter() - started)

    async def _answer(self, scope: dict[str, Any], headers: _Headers, body: _Body, reply: _Reply) -> None:
        if scope["path"] != OPEN:
            self._check_key(headers)
        if scope["method"] != "POST" or scope["path"] not in TAKES_BODY:
            await body.drain()
            return await self.app(scope, _whole(b""), reply)
        with self._place() as place:
            content, seconds = await self._content(headers, body, place), self.limits.seconds
            with self._in_progress():
                try:
                    await asyncio.wait_for(self.app({**scope, CONTENT: content}, _whole(content), reply), seconds)
                except (asyncio.TimeoutError, TimeoutError):
                    raise RefusedError(
                        503, f"No answer within {seconds:g} s: come again later.", retry_after=5
                    ) from None

    def _check_key(self, headers: _Headers) -> None:
        if self.key is None:
            return
        scheme, _, given = headers.get(b"authorization").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self.key):
            raise RefusedError(401, "The key is missing or wrong: send it as `Authorization: Bearer KEY`.")

    async def _content(self, headers: _Headers, body: _Body, place: list[int]) -> bytes:
        """The whole body; its bytes are counted in `place`."""
        limit, seconds = self.limits.body, self.limits.seconds
        content = None
        if headers.length <= limit:
            try:
                content = await asyncio.wait_for(self._parts(body, place), seconds)
            except (asyncio.TimeoutError, TimeoutError):
                body.given_up = True
                raise RefusedError(408, f"The request did not arrive within {seconds:g} s: send it faster.") from None
        if content is None:
            sentence = f"The request is larger than the {limit:,} bytes that are taken here: send a smaller image."
            raise RefusedError(413, sentence)
        return content

    async def _parts(self, body: _Body, place: list[int]) -> bytes | None:
        """What comes, put together; None where it is too large."""
        parts: list[bytes] = []
        while not body.done:
            part = await body.part()
            if place[0] + len(part) > self.limits.body:
                return None
            self._hold(len(part), place)
            parts.append(part)
        return b"".join(parts)

    @contextmanager
    def _place(self) -> Iterator[list[int]]:
        """Gives the bytes of a request back when it is done."""
        place = [0]
        try:
            yield place
        finally:
            self._hold(-place[0], place)

    def _hold(self, count: int, place: list[int]) -> None:
        if count > 0 and self.held + count > max(self.limits.held, self.limits.body):
            raise _busy()
        self.held += count
        place[0] += count
        self.metrics.held.set(self.held)

    @contextmanager
    def _in_progress(self) -> Iterator[None]:
        if self.in_progress >= self.limits.queue:
            raise _busy()
        self.in_progress += 1
        self.metrics.progress.set(self.in_progress)
        try:
            yield
        finally:
            self.in_progress -= 1
            self.metrics.progress.set(self.in_progress)


def _busy() -> RefusedError:
    return RefusedError(503, "The server is busy: come again in a second.", retry_after=1)


class _Headers:
    """Those of a request, the first of each name."""

    def __init__(self, headers: list[tuple[bytes, bytes]]):
        self.all = dict(reversed(headers))

    def get(self, name: bytes) -> bytes:
        return self.all.get(name, b"")

    @property
    def length(self) -> int:
        """Bytes that are announced; 0 where they come in chunks."""
        value = self.get(b"content-length")
        return int(value) if value.isdigit() else 0

    @property
    def has_body(self) -> bool:
        return self.length > 0 or b"transfer-encoding" in self.all


class _Body:
    """What a client sends, part by part.

    Attributes:
        done: nothing is left to be read.
        given_up: nothing more is to be read; or the client waits for a word of ours before it sends anything.
    """

    def __init__(self, receive: Any, headers: _Headers):
        self.receive, self.done = receive, not headers.has_body
        self.given_up = bool(headers.get(b"expect"))

    async def part(self) -> bytes:
        """The next one."""
        self.given_up = False
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise _LostError
        self.done = not message.get("more_body")
        return message.get("body", b"")

    async def drain(self) -> None:
        """Throw away what still comes, for a while: who is cut off while he sends does not read the answer."""
        end = time.monotonic() + DRAIN_SECONDS
        while not (self.done or self.given_up) and (left := end - time.monotonic()) > 0:
            try:
                await asyncio.wait_for(self.part(), left)
            except (asyncio.TimeoutError, TimeoutError):
                self.given_up = True


class _Reply:
    """An ASGI `send` that knows whether an answer has begun, and ends a connection whose body is not read."""

    def __init__(self, send: Any, body: _Body):
        self.send, self.body, self.status, self.begun = send, body, LOST, False

    async def __call__(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.begun, self.status = True, message["status"]
            if not self.body.done:
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        await self.send(message)

    async def refuse(self, refused: RefusedError) -> None:
        """Say no, where nothing has been said yet."""
        if self.begun:
            return
        await self.body.drain()
        content = json.dumps({"detail": refused.sentence}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        if refused.retry_after is not None:
            headers.append((b"retry-after", str(refused.retry_after).encode()))
        if refused.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await self({"type": "http.response.start", "status": refused.status, "headers": headers})
        await self({"type": "http.response.body", "body": content})


def _whole(body: bytes) -> Any:
    """An ASGI `receive` of a body that is there."""
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
