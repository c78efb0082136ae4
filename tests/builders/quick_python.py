"""A Python whose processes start in a second: forks of one that has imported what is large.

Most of what a child process costs is importing torch, pandas, scipy and their like, the same every time. So one server
imports them once, and a command that takes the place of `python` asks it for a fork, hands it files, folder, words and
environment, and ends as the fork ends. What reads its settings from the environment when it is imported, above all
everything of Hugging Face, is not among them: a fork imports that itself, with caches and a Hub of its own. Where many
forks share these, a server of their own can import that, too.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import faulthandler
import fcntl
import functools
import gc
import importlib
import json
import multiprocessing.process
import multiprocessing.spawn
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from builders.local_hub import LocalHub


LARGE = """
torch torch._dynamo torch.distributed.tensor torch.export torch.utils.data torch.nn.parallel torch.testing
pandas pyarrow pyarrow.compute pyarrow.dataset pyarrow.parquet sklearn.metrics scipy.optimize scipy.special scipy.stats
matplotlib.pyplot PIL.Image aiohttp fsspec.implementations.http httpx2 jinja2 requests rich.console yaml
"""
NOT_YET = {"accelerate", "datasets", "evaluate", "huggingface_hub", "madkd_hf", "peft", "tokenizers", "transformers"}
ROOT = Path(__file__).parents[2]
HIGH = 512  # above the numbers of all files that a process inherits


@functools.cache
def quick_python(more: str = "", **settings: str) -> str:
    """The path of the command; it takes `-c code`, `-m module` or a file, and their words.

    Args:
        more: modules to import beside what is large.
        settings: of the environment meanwhile; with `more`, PYTHONPATH is to lead here.
    """
    if sys.platform != "linux":  # elsewhere large libraries do not all survive a fork
        return sys.executable
    folder = tempfile.TemporaryDirectory(prefix="quick")
    place, command = Path(folder.name, "socket"), Path(folder.name, "python")
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -ISE "{__file__}" "$0" "{place}" "$@"\n')
    command.chmod(0o700)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # threads die in a fork
    environment |= settings
    words = [sys.executable, "-P", __file__, "--serve", place, command]
    if more:  # another fork of what is large
        code = "import sys; from builders.quick_python import serve; serve(*sys.argv[1:])"
        words = [quick_python(), "-c", code, place, command, *more.split()]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    server = subprocess.Popen(words, env=environment, start_new_session=True, **pipes)
    atexit.register(folder.cleanup)
    atexit.register(server.communicate)  # the end of its input ends it
    assert server.stdout.readline() == b"ready\n"
    return str(command)


@functools.cache
def warm_python(**settings: str) -> str:
    """The path of one that has imported our commands, too, and has read the demo's questions.

    Args:
        settings: of the environment; without them, for what shares this process's caches and Hub, offline.
    """
    settings = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "HF_HUB_OFFLINE": "1", **settings}
    return quick_python("builders.commands_imported builders.demo_read", **settings)


def online_python(hub: LocalHub) -> str:
    """The path of one for what shares the caches in `hub.home`, with any token: for `hub.environment(hub.home)`."""
    settings = {name: value for name, value in hub.environment(hub.home, None).items() if name.startswith("HF_")}
    return warm_python(**settings, HF_HUB_OFFLINE="0")


def quick_bin(folder: Path, python: str | None = None) -> Path:
    """A folder for the front of PATH, in which `python`, `accelerate` and `madkd` start quickly."""
    folder.mkdir()
    python = python or quick_python()
    (folder / "python").symlink_to(python)
    for name, words in {"accelerate": Path(sys.executable).with_name("accelerate"), "madkd": "-m madkd_hf"}.items():
        (folder / name).write_text(f'#!/bin/sh\nexec "{python}" {words} "$@"\n')
        (folder / name).chmod(0o700)
    return folder


def ask(place: str, words: list[str]) -> int:
    """In the command: let the server do it; returns how it ended."""
    request = {"words": words, "folder": os.getcwd(), "environment": dict(os.environ), "numbers": inherited()}
    request = json.dumps(request).encode()
    files = array.array("i", inherited())  # the pipes of a worker that is spawned are among them
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(place)
        connection.sendmsg([b"f"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
        connection.sendall(request + b"\n")
        for number in (signal.SIGINT, signal.SIGTERM):  # they are for the fork
            signal.signal(number, lambda number, _: connection.sendall(bytes([number])))
        code = int(connection.recv(16) or 1)
    if code < 0:
        with contextlib.suppress(OSError):  # nobody handles SIGKILL
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def inherited() -> list[int]:
    """The numbers of the files that this process was started with."""
    numbers = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    return [number for number in numbers if os.path.exists(f"/proc/self/fd/{number}") and os.get_inheritable(number)]


def serve(place: str, command: str, *more: str) -> None:
    """Fork whenever somebody asks, as long as our input is open; returns in a fork, ready to run."""
    for name in (*LARGE.split(), *more):
        importlib.import_module(name)
    assert more or not NOT_YET & sys.modules.keys(), NOT_YET & sys.modules.keys()
    tasks = {path.name: (path / "comm").read_text().strip() for path in Path("/proc/self/task").iterdir()}
    others = {name for task, name in tasks.items() if task != str(os.getpid())}
    assert others <= {"jemalloc_bg_thd"}, others  # threads do not survive a fork; this one starts itself anew
    gc.collect()
    gc.freeze()  # the forks share these pages as long as nobody writes to them, as the garbage collector does
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen()
        print("ready", flush=True)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait for the forks
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork():
                connection.close()
                continue
            break
        else:
            return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with connection:
        _, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(4 * HIGH))
        files = array.array("i", ancillary[0][2])
        request = json.loads(connection.makefile().readline())
        numbers = request.pop("numbers")
        fork = os.fork()
        if fork:
            for file in files:
                os.close(file)
            wait_for(fork, connection)
    high = [fcntl.fcntl(file, fcntl.F_DUPFD, HIGH) for file in files]
    for file in files:
        os.close(file)
    for file, number in zip(high, numbers, strict=True):
        os.dup2(file, number)
        os.close(file)
    try:
        become(command, **request)
        code = 0
    except SystemExit as end:
        code = end.code
        if not isinstance(code, int | None):
            print(code, file=sys.stderr)
            code = 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    with contextlib.suppress(ValueError):  # closed
        sys.stdout.flush()
    os._exit(code or 0)  # without taking everything to pieces, which takes longer than to import it


def wait_for(fork: int, connection: socket.socket) -> None:
    """Hand on signals, and tell the command how the fork ended; if the command is killed, so is the fork."""
    ended = os.pidfd_open(fork)
    while ended not in select.select([ended, connection], [], [])[0]:
        number = connection.recv(1)
        os.kill(fork, number[0] if number else signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
    try:
        connection.sendall(str(code).encode())
    finally:
        os._exit(0)


def become(command: str, words: list[str], folder: str, environment: dict[str, str]) -> None:
    """In the fork: do what `python` would do with these words."""
    faulthandler.enable()  # what a library says that does not survive a fork
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the server does with it
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    multiprocessing.process.ORIGINAL_DIR = folder  # where workers that are spawned look for the main file
    sys.executable = command  # so that those whom it starts are quick too
    multiprocessing.spawn.set_executable(command)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    while words[0].startswith("-") and words[0] not in ("-c", "-m"):  # flags, as those who start workers hand them on
        words = words[2 if words[0] == "-X" else 1 :]
    kind, *rest = words
    if kind == "-m":
        sys.argv, sys.path[:0] = rest, [folder]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv, sys.path[:0] = ["-c", *rest[1:]], [""]
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        sys.argv, sys.path[:0] = words, [str(Path(kind).parent.absolute())]
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(*sys.argv[2:])
    else:
        sys.exit(ask(sys.argv[2], sys.argv[3:]))
