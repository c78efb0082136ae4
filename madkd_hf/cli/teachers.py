"""The options of a teacher, loading it, and the answers that a student learns from."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from ..aspects import AspectBank
from ..students.base.fields import option
from .arguments import BankArguments, CommandParser, files_from, tokens


if TYPE_CHECKING:
    from datasets import Dataset

    from ..labelling import Workers
    from ..teachers import Teacher


@dataclass
class ServedArguments:
    """A teacher behind a server: --teacher http://host:8000/v1, or several addresses that share the work."""

    teacher_model: str | None = option(None, "Of a teacher behind a server: the model's name there.")
    teacher_tokenizer: str | None = option(
        None, "The served model's tokenizer, a folder or a Hub id; by default the server is asked for its tokens."
    )
    teacher_dialect: str = option(
        "auto", "How the server is asked: auto (the first that it speaks), chat-ids, chat-topk, systemone, decisions."
    )
    teacher_key_variable: str | None = option(
        None, "The environment variable that holds the server's key; by default no key is sent."
    )
    teacher_plain_http: bool = option(False, "Send the key to another machine without TLS (http).")
    teacher_requests: int | None = option(
        None, "The most requests at once to one server; by default as many as bring more answers."
    )
    teacher_timeout: float = option(120.0, "Seconds that one answer of the server may take.")
    teacher_retries: int = option(8, "How often a request is repeated while the server is busy.")
    price_per_million: float | None = option(None, "What a million tokens cost at the server, in USD.")


@dataclass
class TeacherArguments(BankArguments, ServedArguments):
    """How the answers are read."""

    dtype: str = option("auto", "What the teacher computes in: auto, float32, bfloat16, ...")
    device: str | None = option(None, "Where it computes; by default an accelerator, if any.")
    device_map: str | None = option(None, 'Spread one teacher over devices: auto, or JSON such as {"": 0}.')
    quantization_config: str | None = option(
        None, 'Load the teacher in few bits (JSON): {"quant_method": "bitsandbytes", "load_in_4bit": true}.'
    )
    attn_implementation: str | None = option(None, "The teacher's attention: sdpa, eager, flash_attention_2, ...")
    images_kwargs: str | None = option(
        None,
        "What the teacher's processor does with images, in its own words (JSON): fewer tiles or pixels cost "
        'less, such as {"max_patches": 1} of InternVL and {"do_image_splitting": false} of SmolVLM.',
    )
    strategy: str = option(
        "auto",
        "How questions share work: auto (the exact way with the least work), full, shared_vision, prefix_cache, "
        "packed, cascade.",
    )
    batch_size: int = option(256, "Questions in one forward pass; halved when memory runs out.")
    prompt: str | None = option(None, "The user turn, with {question} where the question goes.")
    system: str | None = option(None, "A system prompt.")
    date: str | None = option(
        None, "The day for a chat template that writes today's date (YYYY-MM-DD); by default always the same."
    )
    answer_tokens: list[str] | None = option(
        None, "Two words in place of all spellings of yes and no; the paper's: Yes No."
    )
    trust_remote_code: bool = option(False, "Run code that comes with the teacher.")


@dataclass
class OwnTeacherArguments(BankArguments):
    """The teacher of commands that label only where answers are missing: all its options are one mapping."""

    teacher_options: str = option(
        "{}", 'Options of a teacher, as `madkd label` has them (YAML or JSON): \'{"dtype": "bfloat16"}\'.'
    )

    def teacher_arguments(self) -> TeacherArguments:
        """The options of the teacher, as those who label with `madkd label` give them."""
        options = _mapping("teacher_options", self.teacher_options) or {}
        argv = [argument for name, value in options.items() for argument in tokens(name, value)]
        try:
            (parsed,) = CommandParser(TeacherArguments, description="").parse(argv)
        except ValueError as error:
            raise ValueError(f"teacher_options: {error}") from error
        return replace(parsed, **{name: getattr(self, name) for name in BankArguments.__dataclass_fields__})


def load_bank_and_teacher(args: TeacherArguments, workers: Workers) -> tuple[AspectBank, Teacher]:
    """What the arguments name; a teacher on this process's own device where there are several processes."""
    from ..teachers import load_teacher
    from ..teachers.base import kind_of, takes_option

    bank = AspectBank.load(args.bank)
    own = [one for one in fields(TeacherArguments) if one.name not in BankArguments.__dataclass_fields__]
    options = {one.name: getattr(args, one.name) for one in own if getattr(args, one.name) != one.default}
    given = [name for name in options if name in ServedArguments.__dataclass_fields__]
    if given and kind_of(args.teacher)[0] != "served":
        raise ValueError(
            f"--{given[0]} is about a teacher behind a server, and --teacher is {args.teacher!r}: leave it out, or "
            "pass an address, such as http://localhost:8000/v1."
        )
    options = {name.removeprefix("teacher_"): value for name, value in options.items()}
    options |= {"revision": args.teacher_revision} if args.teacher_revision else {}
    for name in {"device_map", "quantization_config", "images_kwargs"} & set(options):
        options[name] = _mapping(name, options[name], or_word=name == "device_map")
    if "answer_tokens" in options:
        options["answer_tokens"] = tuple(options["answer_tokens"])
    if workers.count > 1:
        if isinstance(options.get("device_map"), str):
            raise ValueError(
                f"device_map={args.device_map!r} spreads one teacher over all devices, and each of the "
                f"{workers.count} processes loads its own: leave it out, or launch one process."
            )
        if takes_option(args.teacher, "device"):
            options.setdefault("device", workers.device)
    device_map = options.get("device_map")
    placed = device_map.values() if isinstance(device_map, dict) else []
    _check_devices([options.get("device"), *(device for device in placed if device != "disk")])
    return bank, load_teacher(args.teacher, **options)


def attach(
    rows: Dataset, args: OwnTeacherArguments, alpha: float, boxes: dict[str, Any] | None = None
) -> tuple[Dataset, AspectBank | None]:
    """The training rows with their answers, and the bank they belong to; no bank for a student of classes alone.

    Args:
        boxes: where the answers are about objects, what `attach_aspects` has to know of their boxes.
    """
    from ..data.columns import LOGITS
    from ..labelling import Workers, attach_aspects

    bank = bank_of(rows, args, alpha)
    if bank is None or LOGITS in rows.features:
        return rows, bank
    bank, teacher = load_bank_and_teacher(args.teacher_arguments(), Workers())
    settings = {"work_dir": args.work_dir, "on_error": args.on_error, "files_from": files_from(args), **(boxes or {})}
    rows = attach_aspects(rows, bank, teacher, args.image_column, **settings)
    return rows, AspectBank(bank.aspects, teacher.provenance)


def bank_of(rows: Dataset, args: OwnTeacherArguments, alpha: float) -> AspectBank | None:
    """The bank that the answers belong to, those in the rows or those to come; None without aspects."""
    from ..data.columns import LOGITS, check_bank, stored

    if alpha == 0:
        return None
    labelled = LOGITS in rows.features
    if not labelled and (args.bank is None or args.teacher is None):
        raise ValueError(
            f"The dataset has no aspect columns and aspect_alpha is {alpha}: label it with madkd label, "
            "or pass --bank and --teacher to label the training images now, or --aspect_alpha 0 for a student without "
            "aspects."
        )
    bank = AspectBank.load(args.bank) if args.bank else AspectBank.load(args.dataset, args.dataset_revision)
    if not labelled:
        args.teacher_arguments()
        return bank
    if stored(rows, LOGITS).null_count == len(rows):
        raise ValueError(
            f"The split {args.train_split!r} has aspect columns and no answers in them: label it with "
            f"madkd label --splits {args.train_split}, or pass --aspect_alpha 0 for a student without aspects."
        )
    check_bank(rows, bank.fingerprint, holder=f"{args.bank or args.dataset} holds")
    return bank


def check_control(rows: Dataset, args: Any, alpha: float) -> None:
    """Raise ValueError where there will be no answers to make a control of."""
    from ..data.columns import LOGITS

    coming = alpha != 0 and args.bank and args.teacher
    if args.aspect_control != "none" and LOGITS not in rows.features and not coming:
        raise ValueError(
            f"--aspect_control {args.aspect_control} needs a dataset with aspect columns, or --bank and --teacher."
        )


def _check_devices(devices: list[Any]) -> None:
    import torch

    for device in devices:
        try:
            torch.empty(0, device=device)
        except (AssertionError, RuntimeError) as error:  # what torch raises depends on how it was built
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"There is no device {str(device)!r} here ({reason}): pass another --device or --device_map."
            ) from error


def _mapping(name: str, text: str | None, or_word: bool = False) -> dict[str, Any] | str | None:
    if not isinstance(text, str) or (or_word and not text.lstrip().startswith("{")):
        return text
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is no JSON ({error}): expected a mapping, received {text!r}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {type(value).__name__}: expected a mapping, received {text!r}.")
    return value
