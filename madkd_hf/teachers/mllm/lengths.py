"""How long a prompt may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL.Image import Image
from transformers import ProcessorMixin

from .layout import Layout, encode


def too_long(layout: Layout, images: Sequence[Image], config: Any) -> tuple[int, int, int] | None:
    """The question that is too long with one of the images: its place, its tokens, and the most there may be."""
    question = max(range(len(layout)), key=lambda question: layout.lengths[question])
    own, limit = len(layout.suffixes[question]), context_length(config, layout.processor)
    longest = layout.lengths[question]
    for image in images:
        tokens = encode(layout.processor, image, layout.texts[0])["input_ids"].shape[1]
        longest = max(longest, tokens - len(layout.suffixes[0]) + own)
    return (question, longest, limit) if longest > limit else None


def context_length(config: Any, processor: ProcessorMixin) -> int:
    """The most tokens that a text model reads: what its configuration says, or else its tokenizer."""
    longest = getattr(config, "max_position_embeddings", None)
    if not longest:
        return processor.tokenizer.model_max_length
    rope = getattr(config, "rope_parameters", None) or {}
    stretched = [
        int(kind["factor"] * (kind.get("original_max_position_embeddings") or longest))
        for kind in (rope, *rope.values())
        if isinstance(kind, dict) and kind.get("factor")
    ]
    return max(longest, *stretched) if stretched else longest
