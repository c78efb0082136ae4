"""Answer over HTTP what a student sees in images, until Ctrl-C or SIGTERM.

    madkd serve runs/student
    curl -F image=@photo.jpg http://127.0.0.1:8000/classify

A dataset can be labelled from it, as from any multimodal LLM behind a server (System One, POST /v1/systemone):

    madkd label --dataset photos --bank runs/labelled --teacher http://127.0.0.1:8000 --teacher_model student

Other machines reach it with --host 0.0.0.0, and then a key in an environment variable is wanted, by its name:

    madkd serve you/student --host 0.0.0.0 --key_variable STUDENT_KEY
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..llm.keys import key_in
from ..students.base.fields import option
from ..text import counted, keep_secret, terminal
from .arguments import CommandParser
from .options import check_paths


if TYPE_CHECKING:
    from ..serving.limits import Limits
    from ..serving.student import ServedStudent


PACKAGES = {  # module -> package
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}
MOST_MEGAPIXELS = 170  # beyond, Pillow takes an image for an attack


@dataclass
class ServeArguments:
    """What to serve, where, and within which limits."""

    _argument_group_name = "serve"

    student: str = option("", "The student: a folder or a Hub id; the first word of the command may be it.")
    student_revision: str | None = option(None, "Branch, tag or commit of the student on the Hub.")
    name: str | None = option(None, "The model's name for clients; by default that of its folder, or its Hub id.")
    host: str = option("127.0.0.1", "The address to listen at; 0.0.0.0 for other machines, with a key.")
    port: int = option(8000, "The port; 0 takes a free one.")
    key_variable: str | None = option(None, "The environment variable with the key that clients have to send.")
    without_key: bool = option(False, "Let other machines in without a key.")
    device: str | None = option(None, "Where the student runs, as cuda or cpu; by default a GPU where there is one.")
    batch_size: int = option(32, "Images that are read together at most.")
    batch_wait: float = option(3.0, "Milliseconds that an image waits for others to be read with it.")
    queue: int = option(256, "Requests in progress; further ones are told to come again (503).")
    max_megabytes: float = option(20.0, "The largest request.")
    max_megapixels: float = option(25.0, f"The largest image, up to {MOST_MEGAPIXELS}.")
    timeout: float = option(30.0, "Seconds for a request to arrive, and for its answer.")


def check(args: ServeArguments) -> None:
    """Refuse what needs no loading to be seen."""
    if not args.student:
        raise ValueError("No student given: pass its folder or its Hub id, as in `madkd serve runs/student`.")
    check_paths(["--student", args.student])
    for name in ("batch_size", "queue", "max_megabytes", "max_megapixels", "timeout"):
        if not 0 < getattr(args, name) < math.inf:
            raise ValueError(f"--{name} is {getattr(args, name)}: expected more than 0.")
    if not 0 <= args.port < 65536:
        raise ValueError(f"--port is {args.port}: expected 0 (any free one) to 65535.")
    if not 0 <= args.batch_wait <= 1000:
        raise ValueError(f"--batch_wait is {args.batch_wait}: expected 0 to 1000 milliseconds.")
    if args.max_megapixels > MOST_MEGAPIXELS:
        raise ValueError(f"--max_megapixels is {args.max_megapixels}: expected {MOST_MEGAPIXELS} at most.")
    if missing := [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]:
        raise ImportError(
            f'To serve needs {", ".join(missing)}, which is not installed: pip install "madkd_hf[serving]"'
        )


def limits_of(args: ServeArguments) -> Limits:
    from ..serving.limits import Limits

    body = int(args.max_megabytes * 1e6)
    return Limits(
        body=body,
        held=max(Limits.held, 4 * body),
        pixels=int(args.max_megapixels * 1e6),
        seconds=args.timeout,
        queue=args.queue,
        batch=args.batch_size,
        wait=args.batch_wait / 1000,
    )


def device_of(args: ServeArguments) -> str:
    """The device that is named, or a GPU, or the CPU."""
    import torch

    if args.device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return str(torch.empty(0, device=args.device).device)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ValueError(f"There is no device {args.device!r} here ({reason}): pass --device cpu.") from error


def start_line(student: ServedStudent, address: str, key_variable: str | None) -> str:
    """The line that says where the student is, and how to ask it."""
    questions = counted(len(student.questions), "question") if student.questions else "no questions"
    key = f'-H "Authorization: Bearer ${key_variable}" ' if key_variable else ""
    return (
        f"Serving {terminal(student.name, 80)} ({counted(len(student.labels), 'label')}, {questions}) at {address}: "
        f"curl {key}-F image=@photo.jpg {address}/classify"
    )


def main() -> None:
    (args,) = CommandParser(ServeArguments, description=__doc__, first="student").parse()
    check(args)
    key = key_in(args.key_variable, "--key_variable")
    keep_secret(key)
    from ..serving.server import Server, address_of, is_loopback, listen

    with listen(args.host, args.port) as opened:
        if not (key or args.without_key or is_loopback(opened)):
            raise ValueError(
                f"{args.host} lets other machines ask without a key: pass --key_variable with the name of an "
                "environment variable that holds one, or --without_key true if the network is yours."
            )
        from ..serving.app import build_app
        from ..serving.student import ServedStudent

        warnings.filterwarnings("ignore", module="PIL")  # of large images and odd metadata, by the thousand
        student = ServedStudent.load(args.student, args.student_revision, args.name, device_of(args))
        limits = limits_of(args)
        line = start_line(student, address_of(opened), args.key_variable)
        server = Server(build_app(student, limits, key), limits, lambda: print(line, flush=True))
        try:
            server.run([opened])
        except KeyboardInterrupt:  # after the requests in progress
            pass
    print("Stopped: the requests in progress were answered.", flush=True)
