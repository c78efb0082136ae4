"""Where every command begins: `madkd VERB ...`, `python -m madkd_hf VERB ...`, and the scripts in recipes/."""

from __future__ import annotations

import difflib
import importlib
import sys

from . import interrupts  # the others are imported where they are used: they load YAML, and a stop may come before


COMMANDS = {  # verb, which is the name of its module -> what it does
    "ask": "Let an LLM write yes/no questions about the classes of a dataset.",
    "choose": "Keep the questions that are worth asking, by the answers about a sample of images.",
    "label": "Label a dataset with the answers of a multimodal LLM to the questions.",
    "train": "Train a classifier or a detector on classes and answers.",
    "compare": "Compare students with and without answers over seeds, and write a report.",
    "tune": "Choose training arguments on validation images, over equal grids.",
}
LAUNCHED = ("label", "train")  # run in several processes
USAGE = "usage: madkd COMMAND [--config FILE.yaml] [options]"
MORE = "`madkd COMMAND --help` lists the options of a command; `madkd --version` prints the version."


def main() -> None:
    """The console command."""
    interrupts.watch()
    verb, *options = sys.argv[1:] or [""]
    if verb in COMMANDS:
        sys.argv[1:] = options
        if verb in LAUNCHED:
            _launch_if_asked(verb, options)
        run_command(verb)
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


def run_command(verb: str, *options: str) -> None:
    """Import the module of a command, and call its `main`.

    Args:
        verb: a command, or the whole name of a module.
        options: come before those of the command line.
    """
    interrupts.watch()
    sys.argv[1:1] = options
    if verb in COMMANDS:
        sys.argv[0] = f"madkd {verb}"
        _check_paths()
        verb = f"{__package__}.{verb}"
    command = importlib.import_module(verb)
    from .arguments import run

    run(command.main)


def _launch_if_asked(verb: str, options: list[str]) -> None:
    from ..text import message
    from .launch import asks_for_launch, launch

    if asks_for_launch(options):
        _check_paths()
        try:
            launch(verb, options)
        except ValueError as error:
            sys.exit(f"error: {message(error)}")


def _check_paths() -> None:
    from ..text import message
    from .options import check_paths

    try:
        check_paths(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {message(error)}")
