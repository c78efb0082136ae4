"""`madkd label --dry_run`: what labelling with a server will take, before it is paid for."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from ..text import counted, excerpt
from .arguments import BoxArguments, files_from
from .teachers import load_bank_and_teacher


if TYPE_CHECKING:
    from datasets import DatasetDict, IterableDatasetDict

    from ..labelling.sources import Rows, Stream

    Splits = DatasetDict | IterableDatasetDict

MEASURED = 3  # images


def check_dry_run(args: Any) -> None:
    """Raise ValueError where there is nothing to measure."""
    if not args.dry_run:
        return
    from ..teachers.base import kind_of

    if args.answers or not args.teacher or kind_of(args.teacher)[0] != "served":
        raise ValueError(
            "--dry_run tells what a teacher behind a server will take: pass its address by --teacher, or leave out "
            "--dry_run."
        )


def dry_run(args: Any, splits: Splits) -> str:
    """What it will take, in sentences; only the probe and the questions about three images are sent.

    Raises:
        ValueError: no image can be read, or what the server's probe refuses.
    """
    from ..labelling import Workers
    from ..labelling.attach import boxes_of
    from ..labelling.sources import readable_images, sources_of

    boxes = boxes_of(*(getattr(args, name) for name in ("boxes_column", *BoxArguments.__dataclass_fields__)))
    stream_name = args.dataset if args.streaming else None
    sources = sources_of(splits, args.splits, args.image_column, boxes, files_from(args), args.on_error, stream_name)
    sources = [source for source in sources if source.labelled]
    first = list(itertools.islice((image for source in sources for image in readable_images(source)), MEASURED))
    if not first:
        raise ValueError(f"No image of {', '.join(args.splits)} can be read, so that there is nothing to measure.")
    bank, teacher = load_bank_and_teacher(args, Workers())
    cost, unit = teacher.measure(first, bank), "object" if boxes else "image"
    count = _count(sources, boxes)
    known = count is not None
    units, total = (counted(count, unit) if known else f"1,000 {unit}s of the stream"), count if known else 1000
    tokens = round(total * cost.tokens)
    each = counted(len(bank), "question")
    lines = [
        f"{excerpt(cost.model, 80)}, asked by {cost.dialect} ({cost.precision}): {units}, {each} "
        f"each, {round(total * cost.requests):,} requests.",
        f"About {tokens:,} tokens ({cost.tokens:,.0f} an {unit}, measured on {counted(len(first), unit)})."
        if tokens
        else "The server does not tell how many tokens it reads.",
    ]
    if tokens and args.price_per_million is not None:
        price = args.price_per_million
        lines.append(f"About {tokens * price / 1e6:,.4f} USD at {price:g} USD for a million tokens.")
    elif tokens:
        lines.append("With --price_per_million, in USD for a million tokens, this tells the cost.")
    seconds = total * cost.requests / cost.rate
    lines.append(f"About {_duration(seconds)}, at the {cost.rate:,.1f} requests a second of the measurement.")
    lines.append("Nothing was labelled: leave out --dry_run to begin.")
    return "\n".join(lines)


def _count(sources: list[Rows | Stream], boxes: Any) -> int | None:
    """How many images, or objects, there are; None where a stream is not read to its end for it."""
    from ..data.columns import stored
    from ..data.objects import count_objects

    if not all(hasattr(source, "total") for source in sources):
        return None
    if boxes is None:
        return sum(source.total for source in sources)
    return sum(count_objects(stored(source.data, boxes.column)) for source in sources)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return counted(max(1, round(seconds)), "second")
    if seconds < 7200:
        return counted(round(seconds / 60), "minute")
    return f"{seconds / 3600:,.1f} hours"
