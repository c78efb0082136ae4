"""Servers of LLMs that others wrote, in processes of their own on 127.0.0.1."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path


@contextlib.contextmanager
def running(command: Sequence[str | Path], log: Path, port: int, **environment: str) -> Iterator[str]:
    """The address of a server that this command starts; it is there when /health says so, and is ended afterwards."""
    with open(log, "wb") as file:
        variables = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **environment}
        process = subprocess.Popen([*map(str, command)], stdout=file, stderr=subprocess.STDOUT, env=variables)
    try:
        while not is_healthy(port):
            if process.poll() is not None:
                raise RuntimeError(f"The server did not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        return any_port.getsockname()[1]


def transformers_serve(model: Path, log: Path) -> contextlib.AbstractContextManager[str]:
    """`transformers serve`, of which the extra `serving` is installed."""
    port = free_port()
    command = [Path(sys.executable).parent / "transformers", "serve", model]
    return running([*command, "--host", "127.0.0.1", "--port", port, "--device", "cpu"], log, port)
