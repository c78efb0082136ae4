"""What goes wrong while a model is loaded, in one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_sentence_errors(place: str, part: str) -> Iterator[None]:
    """What goes wrong within, in one sentence."""
    try:
        yield
    except (ImportError, OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        reason = _reason(error)
        if "torchvision" in reason.lower():
            remedy = "install the torchvision that was built for your torch"
        elif isinstance(error, ImportError):
            remedy = "install what it asks for"
        elif "out of memory" in reason.lower():
            remedy = "load it in a smaller dtype, quantized, or over several devices with device_map='auto'"
        else:
            remedy = "check its files and the options that you pass"
        raise type(error if isinstance(error, (ImportError, OSError)) else ValueError())(
            f"The {part} of {place} cannot be loaded ({reason}): {remedy}."
        ) from error


def _reason(error: BaseException) -> str:
    """The beginning of what an error says, without its end."""
    text = " ".join(str(error).split()) or type(error).__name__
    first = re.split(r"(?<=[^.A-Z])\. (?=[A-Z])", text)[0].rstrip(".:")
    return first if len(first) <= 200 else f"{first[:197]}..."
