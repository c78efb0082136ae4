"""`madkd train` and `madkd label` in several processes: what `accelerate launch` takes goes to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from ..data.names import similar
from .interrupts import INTERRUPTED
from .options import OptionParser, content_of


LAUNCHES = ("--num_processes", "--config_file")  # options that ask for several processes, also with hyphens
COMMAND_FIRST = ("--help", "--debug", "--gradient_accumulation_steps")  # accelerate has them, too
QUIET = ("--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0")  # its defaults


def asks_for_launch(argv: Iterable[str]) -> bool:
    """Whether a command line asks for several processes."""
    options = (argument.partition("=")[0] for argument in argv if argument.startswith("--"))
    return any(f"--{option[2:].replace('-', '_')}" in LAUNCHES for option in options)


def split(argv: Iterable[str], launch_options: Iterable[str]) -> tuple[list[str], list[str]]:
    """Arguments for `accelerate launch`, and those for the command."""
    for_launch, for_command = [], []
    target = for_command
    for argument in argv:
        if argument.startswith("--"):
            option = argument.partition("=")[0]
            target = for_launch if option in launch_options and option not in COMMAND_FIRST else for_command
        target.append(argument)
    return for_launch, for_command


def check_config(argv: list[str]) -> None:
    """See that `--config_file` names a configuration of accelerate; the options of a command come by `--config`."""
    parser = OptionParser()
    parser.add_argument("--config_file", "--config-file", dest="file")
    file = parser.parse_known_args(argv)[0].file
    if file is None:
        return
    path, remedy = Path(file).expanduser(), "the options of a command come by --config"
    if not path.is_file():
        raise ValueError(
            f"There is no file {path}{similar(path)}: pass --config_file with one that `accelerate config` wrote; "
            f"{remedy}."
        )
    if "distributed_type" not in content_of(file):
        raise ValueError(f"{path} is no configuration of accelerate, it has no distributed_type: {remedy}.")


def launch(verb: str, argv: list[str]) -> None:
    """Run a command in the processes that it asks for, also where there is no GPU; does not return."""
    check_config(argv)
    from accelerate.commands.config.config_args import default_config_file
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    parser = launch_command_parser()
    parser.error = _refuse
    for_launch, for_command = split(argv, {option for action in parser._actions for option in action.option_strings})
    args = parser.parse_args([*for_launch, "--module", "madkd_hf", verb, *for_command])
    if args.config_file is None and not os.path.isfile(default_config_file):
        kinds = (args.multi_gpu, args.cpu, args.tpu, args.use_deepspeed, args.use_fsdp, args.use_megatron_lm)
        several = ["--multi_gpu"] if args.num_processes > 1 and not any(kinds) else []
        args = parser.parse_args([*QUIET, *several, *for_launch, "--module", "madkd_hf", verb, *for_command])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # from here on it is for the launcher
    try:
        launch_command(args)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
    except subprocess.CalledProcessError as failed:
        _exit(failed.returncode)
    except ChildFailedError as failed:
        _exit(failed.get_first_failure()[1].exitcode)
    sys.exit(0)


def _refuse(message: str) -> NoReturn:
    raise ValueError(f"{message}: `accelerate launch --help` lists these options.")


def _exit(code: int) -> None:
    """As the process did that failed first and has said why; -9 if signal 9 ended it."""
    if code == -signal.SIGKILL:
        print("error: A process was killed from outside, most likely because memory ran out.", file=sys.stderr)
    sys.exit(128 - code if code < 0 else code)
