"""Where every command begins: `madkd VERB ...`, `python -m madkd_hf VERB ...`, and the scripts in recipes/."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable

from . import interrupts  # the others are imported where they are used: they load YAML, and a stop may come before


COMMANDS = {  # verb, which is the name of its module -> what it does
    "ask": "Let an LLM write yes/no questions about the classes of a dataset.",
    "choose": "Keep the questions that are worth asking, by the answers about a sample of images.",
    "label": "Label a dataset with the answers of a multimodal LLM to the questions.",
    "train": "Train a classifier or a detector on classes and answers.",
    "compare": "Compare students with and without answers over seeds, and write a report.",
    "tune": "Choose training arguments on validation images, over equal grids.",
    "view": "Make a page to look through a labelled dataset, the likeliest mistakes of its labels first.",
    "export": "Export a student to ONNX, OpenVINO or ExecuTorch, compared with PyTorch.",
    "space": "Make a Space of a student: a page on which anybody can try it, with the reasons for its answers.",
    "serve": "Answer over HTTP what a student sees in images.",
}
LAUNCHED = ("label", "train")  # run in several processes
USAGE = "usage: madkd COMMAND [--config FILE.yaml] [options]"
MORE = "`madkd COMMAND --help` lists the options of a command; `madkd --version` prints the version."


def main() -> None:
    """The console command."""
    interrupts.watch()
    verb, *argv = sys.argv[1:] or [""]
    if verb in COMMANDS:
        sys.argv[1:] = argv
        run_command(verb, may_launch=verb in LAUNCHED)
    elif verb in ("-h", "--help", "help"):
        print(overview())
    elif verb == "--version":
        from .. import __version__

        print(f"madkd_hf {__version__}")
    elif verb:
        sys.exit(f"error: {unknown(verb)}")
    else:
        sys.exit(overview())


def overview() -> str:
    """The commands, each with one line."""
    return "\n".join([USAGE, "", *(f"  {verb:8} {purpose}" for verb, purpose in COMMANDS.items()), "", MORE])


def unknown(verb: str) -> str:
    """What to say of a word that is no command."""
    if verb.startswith("-"):
        return f"Expected a command before {verb!r}, one of {', '.join(COMMANDS)}: madkd COMMAND {verb} ..."
    close = difflib.get_close_matches(verb.lower(), COMMANDS, n=1)
    remedy = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(COMMANDS)}."
    return f"There is no command {verb!r}: {remedy}"


def run_command(verb: str, *options: str, may_launch: bool = False) -> None:
    """Import the module of a command, and call its `main`.

    Args:
        verb: a command, or the whole name of a module.
        options: come before those of the command line.
        may_launch: start several processes where the command line asks for them.
    """
    interrupts.watch()
    sys.argv[1:1] = options
    if verb in COMMANDS:
        sys.argv[0] = f"madkd {verb}"
        _begin(verb, may_launch)
        verb = f"{__package__}.{verb}"
    run(importlib.import_module(verb).main)


def _begin(verb: str, may_launch: bool) -> None:
    """Refuse paths that do not exist, and start several processes, before the large libraries are imported."""
    from ..text import message
    from .launch import asks_for_launch, launch
    from .options import check_paths

    try:
        check_paths(sys.argv[1:])
        if may_launch and asks_for_launch(sys.argv[1:]):
            launch(verb, sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {message(error)}")


def run(main: Callable[[], None]) -> None:
    """Call a command's `main`. What a user did wrong is told in one sentence without a traceback, and exits with 1.

    Stopped by a user it exits with 130, by a launcher or a batch system with 143, and says what is kept.
    MADKD_TRACEBACK=1 in the environment shows the traceback all the same.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HTTPError

    from ..data.problems import FailedOnOtherRankError
    from ..files import disk_is_full
    from ..text import keep_secret, message, show_traceback

    sys.excepthook = show_traceback
    keep_secret(get_token())
    try:
        with interrupts.stopped_like_ctrl_c():
            main()
    except FailedOnOtherRankError:  # another worker prints why
        sys.exit(1)
    except KeyboardInterrupt as stopped:
        interrupts.leave(stopped)
    except Exception as error:
        sentence = isinstance(error, (ValueError, OSError, ImportError, HTTPError))
        if os.environ.get("MADKD_TRACEBACK") or not (sentence or disk_is_full(error)):
            raise
        if disk_is_full(error):
            error = _full_disk(error)
        elif isinstance(error, HTTPError) and not isinstance(error, OSError):  # the client's own, of no answer at all
            error = f"A connection failed ({error}): check the network, and run the same command again."
        sys.exit(f"error: {message(error)}")


def _full_disk(error: Exception) -> str:
    """One sentence about a full disk, whichever library met it; our own errors have one already."""
    text = str(error)
    if "make room" in text:
        return text
    place = getattr(error, "filename", None)
    return (
        f"The disk is full{f' at {place}' if place else ''} ({' '.join(text.split())[:200]}): make room there, and "
        "run the same command again; what was there before is whole."
    )
