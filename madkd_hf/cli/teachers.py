"""Who answers a bank's questions, and how: the options of a teacher, and loading it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from .. import AspectBank, AspectTeacher
from ..labelling import Workers
from ..teachers.mllm.prompt import DATE
from .arguments import BankArguments


@dataclass
class LabellingArguments(BankArguments):
    """Who answers, and what happens where nobody can."""

    on_error: Literal["raise", "skip"] = field(
        default="raise",
        metadata={
            "help": "What to do about an image that cannot be read, or one of whose boxes cannot be: stop and name "
            "it, or leave its answers null; training then leaves it out."
        },
    )


@dataclass
class TeacherArguments(LabellingArguments):
    """How the answers are read."""

    dtype: str = field(default="auto", metadata={"help": "What the teacher computes in: auto, float32, bfloat16, ..."})
    device: str | None = field(
        default=None, metadata={"help": "Where it computes; by default an accelerator, if any."}
    )
    device_map: str | None = field(
        default=None,
        metadata={"help": 'Spread one teacher over devices: auto, or JSON such as {"": 0} (as in from_pretrained).'},
    )
    quantization_config: str | None = field(
        default=None,
        metadata={
            "help": "Load the teacher in few bits: a mapping in YAML, JSON on the command line, such as "
            '{"quant_method": "bitsandbytes", "load_in_4bit": true}.'
        },
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "The teacher's attention: sdpa, eager, flash_attention_2, ..."}
    )
    strategy: str = field(
        default="auto",
        metadata={
            "help": "How questions share work: full, shared_vision, prefix_cache, packed, cascade, or auto: the one "
            "with the least work of those that a self-check on the first images finds exact. The answers are the same."
        },
    )
    batch_size: int = field(
        default=256,
        metadata={"help": "Questions answered in one forward pass, over all its images; halved when memory runs out."},
    )
    prompt: str | None = field(
        default=None, metadata={"help": "The user turn, with {question} where the question goes."}
    )
    system: str | None = field(default=None, metadata={"help": "A system prompt."})
    date: str | None = field(
        default=None,
        metadata={
            "help": "What day it is to a chat template that writes today's date (YYYY-MM-DD); by default always "
            f"{DATE}, so that the answers do not change overnight."
        },
    )
    answer_tokens: list[str] | None = field(
        default=None,
        metadata={"help": "Two words to read instead of every spelling of yes and of no; the paper's own: Yes No."},
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the teacher."})


def load_bank_and_teacher(args: TeacherArguments, workers: Workers) -> tuple[AspectBank, AspectTeacher]:
    """What the arguments name; a teacher on this process's own device where there are several processes."""
    for name in ("bank", "teacher"):
        if getattr(args, name) is None:
            raise ValueError(f"No {name} given: pass --{name} (see --help).")
    bank = AspectBank.load(args.bank)
    options = {
        "prompt": args.prompt,
        "system": args.system,
        "date": args.date,
        "answer_tokens": args.answer_tokens and tuple(args.answer_tokens),
        "attn_implementation": args.attn_implementation,
        "device_map": _mapping("device_map", args.device_map, or_word=True),
        "quantization_config": _mapping("quantization_config", args.quantization_config),
        "device": args.device,
    }
    if workers.count > 1:
        if isinstance(options["device_map"], str):
            raise ValueError(
                f"device_map={args.device_map!r} spreads one teacher over all devices, and each of the "
                f"{workers.count} processes loads its own: leave it out, or launch one process."
            )
        options["device"] = options["device"] or workers.device
    _refuse_absent([options["device"], *_devices(options["device_map"])])
    teacher = AspectTeacher.from_pretrained(
        args.teacher,
        revision=args.teacher_revision,
        dtype=args.dtype,
        strategy=args.strategy,
        batch_size=args.batch_size,
        trust_remote_code=args.trust_remote_code,
        **{name: value for name, value in options.items() if value is not None},
    )
    return bank, teacher


def _devices(device_map: dict[str, Any] | str | None) -> list[Any]:
    return [device for device in device_map.values() if device != "disk"] if isinstance(device_map, dict) else []


def _refuse_absent(devices: list[Any]) -> None:
    for device in devices:
        try:
            torch.empty(0, device=device)
        except (AssertionError, RuntimeError) as error:  # what torch raises depends on how it was built
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"There is no device {str(device)!r} here ({reason}): pass another --device or --device_map."
            ) from error


def _mapping(name: str, text: str | None, or_word: bool = False) -> dict[str, Any] | str | None:
    if text is None or (or_word and not text.lstrip().startswith("{")):
        return text
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is no JSON ({error}): expected a mapping, received {text!r}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {type(value).__name__}: expected a mapping, received {text!r}.")
    return value
