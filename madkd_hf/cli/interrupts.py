"""How a command ends when somebody stops it: a word and the exit code that shells expect, also while it still loads.

The libraries take seconds to load, and a stop meanwhile would end in a traceback.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn


INTERRUPTED, TERMINATED = 130, 143  # 128 + the signal, as shells have it
ENDINGS = {INTERRUPTED: "interrupted", TERMINATED: "stopped: a worker ended or the job was cancelled"}
BEGUN: list[str] = []  # the folders that this process has begun to write
KEPT = "what was finished is kept; run the same command again to go on"


class Terminated(KeyboardInterrupt):
    """A launcher or a batch system ended the job."""


def leave(stopped: KeyboardInterrupt) -> NoReturn:
    """Exit with a line that says what is kept; of an `accelerate launch`, the first process says it for all."""
    code = TERMINATED if isinstance(stopped, Terminated) else INTERRUPTED
    if os.environ.get("RANK", "0") == "0":
        reason = str(stopped).rstrip(".") or KEPT
        print(f"{ENDINGS[code]}: {reason}.", file=sys.stderr, flush=True)
    sys.exit(code)


@contextmanager
def stopped_like_ctrl_c() -> Iterator[None]:
    """Treat SIGTERM, by which a launcher or a batch system ends a job, like Ctrl-C; neither gets lost in an import."""
    process = os.getpid()

    def stop(sent: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a fork, which its parent ends in this way
            signal.signal(sent, signal.SIG_DFL)
            os.kill(os.getpid(), sent)
        elif _importing(frame) and not BEGUN:
            _end_while_loading(INTERRUPTED if sent == signal.SIGINT else TERMINATED)
        elif _importing(frame):  # the library would take it for one of the imports that it only tries
            again = threading.Timer(0.1, os.kill, (process, sent))
            again.daemon = True
            again.start()
        elif sent == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            signal.signal(sent, signal.SIG_DFL)  # a second one ends it at once
            raise Terminated

    handled = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's "&" has it ignored
        handled.append(signal.SIGINT)
    before = {sent: signal.signal(sent, stop) for sent in handled}
    try:
        yield
    finally:
        for sent, handler in before.items():
            signal.signal(sent, handler)


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported where a signal came."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _end_while_loading(code: int) -> None:
    os.write(2, f"{ENDINGS[code]}: nothing had begun.\n".encode())
    os._exit(code)


def watch() -> None:
    """Handle Ctrl-C and SIGTERM while the large libraries are imported, until `main.run` takes over."""
    if multiprocessing.parent_process() is not None:
        return
    process, original = os.getpid(), sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if issubclass(kind, KeyboardInterrupt):
            _end_while_loading(INTERRUPTED)
        original(kind, error, trace)

    def stop(*_: Any) -> None:
        if os.getpid() == process:
            _end_while_loading(TERMINATED)
        os._exit(TERMINATED)

    sys.excepthook = show
    signal.signal(signal.SIGTERM, stop)
