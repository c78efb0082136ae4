"""The address: a socket that is taken before anything is loaded, and connections that may not dawdle."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .limits import Limits


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes a free one.

    Raises:
        OSError: it cannot, in a sentence.
    """
    try:
        # With the protocol: asyncio spares answers the wait for a full packet (40 ms) where a socket says it is TCP's.
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        opened = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":  # elsewhere two servers could share the port
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(address)
            opened.listen(256)
        except BaseException:
            opened.close()
            raise
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"Cannot listen at {host}, port {port} ({reason}): pass another --port (0 takes a free one) or --host."
        ) from error
    return opened


def is_loopback(opened: socket.socket) -> bool:
    """Whether only this machine reaches it."""
    return ipaddress.ip_address(opened.getsockname()[0].partition("%")[0]).is_loopback


def address_of(opened: socket.socket) -> str:
    """Where clients on this machine find it."""
    host, port = opened.getsockname()[:2]
    if ipaddress.ip_address(host.partition("%")[0]).is_unspecified:
        host = "127.0.0.1" if opened.family == socket.AF_INET else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Uvicorn with limits on connections; it ends on Ctrl-C and SIGTERM, when requests in progress are answered.

    Args:
        app: what answers.
        ready: is called when the first request would be.
    """

    def __init__(self, app: Any, limits: Limits, ready: Callable[[], Any] = lambda: None):
        class Connection(PromptConnection):
            limits_of_server = limits

        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                lifespan="on",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(limits.seconds) + 1,
            )
        )
        self.ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.ready()


class PromptConnection(H11Protocol):
    """A connection that is cut where the head of a request takes too long, or there are too many others."""

    limits_of_server: Limits
    head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.limits_of_server.connections:
            transport.abort()
        else:
            self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(error)

    def _watch_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_watching()
        elif self.head_timer is None:
            self.head_timer = self.loop.call_later(self.limits_of_server.head_seconds, self.transport.abort)

    def _stop_watching(self) -> None:
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None
