"""Attention of many questions to one prefix: no mask over it, no copies of it.

A softmax over two sets of keys is the mean of the softmax over each, weighted by the sums of their exponentials. So
every question attends to the prefix (all of it, which needs no mask) and to itself (causally, a short row), and the
two are added up by their logsumexp. Known as cascade inference or as attention with a shared prefix.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface, Cache, PreTrainedModel

from .layout import Tree


NAME = "madkd_cascade"
_shared: ContextVar[tuple[Cache, Tree]] = ContextVar("prefix and tree")


@contextmanager
def cascading(model: PreTrainedModel, prefix: Cache, tree: Tree) -> Iterator[None]:
    """Within, the text model reads the tokens of a tree behind the prefix, once for each of n prefixes."""
    layers = model.get_decoder().modules()
    configs = {id(layer.config): layer.config for layer in layers if hasattr(layer, "config")}
    before = {key: config._attn_implementation for key, config in configs.items()}
    token = _shared.set((prefix, tree))
    try:
        for config in configs.values():
            config._attn_implementation = NAME
        yield
    finally:
        _shared.reset(token)
        for key, config in configs.items():
            config._attn_implementation = before[key]


def cascade_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers' `AttentionInterface`, for use within `cascading`.

    Args:
        query: [n, heads, T, D], of the tree's tokens.
        key, value: [n, key heads, T, D]. The prefix has [n, key heads, P, D] of each in each layer.

    Returns:
        [n, T, heads, D].

    Raises:
        NotImplementedError: soft-capping, attention sinks or a position bias, which it does not compute.
    """
    if unknown := [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]:
        raise NotImplementedError(f"cascade attention has no {unknown[0]}")
    prefix, tree = _shared.get()
    shared = prefix.layers[module.layer_idx]
    n, heads, tokens, _ = query.shape
    groups, length = heads // key.shape[1], shared.keys.shape[2]
    paths, home, depth = (index.to(query.device) for index in (tree.paths, tree.home, tree.depth))
    in_window = _windows(depth, paths.shape[1], length, window(module.config, module.layer_idx))

    folded = query.unflatten(1, (-1, groups)).flatten(2, 3)  # [n, key heads, groups * T, D]: keys are not repeated
    mask = None if in_window is None else in_window[0].repeat(groups, 1)
    first, first_sum = attend(folded, shared.keys, shared.values, scaling, mask)
    first, first_sum = first.reshape(n, heads, tokens, -1), first_sum.reshape(n, heads, tokens)

    rows = [states[:, :, paths].transpose(1, 2).flatten(0, 1) for states in (query, key, value)]  # one per question
    rows[1:] = [states.repeat_interleave(groups, dim=1) for states in rows[1:]]
    own = attend(*rows, scaling, None if in_window is None else in_window[1], causal=True)
    own, own_sum = (part.unflatten(0, (n, -1)).transpose(1, 2).flatten(2, 3)[:, :, home] for part in own)

    weight = torch.sigmoid(first_sum - own_sum)[..., None].to(own.dtype)
    return torch.lerp(own, first, weight).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, cascade_attention)


def layer_types(config: Any) -> list[str]:
    """The kind of each attention layer of a text model; without a list, all slide if there is a window."""
    slides = getattr(config, "sliding_window", None) is not None
    kinds = getattr(config, "layer_types", None)
    return kinds or ["sliding_attention" if slides else "full_attention"] * config.num_hidden_layers


def window(config: Any, layer: int) -> int | None:
    """How many tokens back a layer sees, the token itself included; None: all."""
    return config.sliding_window if layer_types(config)[layer] == "sliding_attention" else None


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None = None,
    visible: torch.Tensor | None = None,
    causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled dot-product attention and the logsumexp of its scores, by a fused kernel where one gives both.

    Args:
        query: [B, heads, S, D]. key, value: [B, heads, L, D]. visible: [S, L] bool, beside or in place of `causal`.

    Returns:
        [B, heads, S, D], zero where nothing is visible, and [B, heads, S] float32.
    """
    aten, fused = torch.ops.aten, visible is None and query.shape[-1] == value.shape[-1]
    if fused and query.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scaling)
    half = query.dtype in (torch.float16, torch.bfloat16)
    if fused and query.is_cuda and half and query.shape[-1] % 8 == 0:
        return aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, False, scale=scaling)[:2]
    scores = query.float() @ key.float().transpose(-1, -2) * (scaling or query.shape[-1] ** -0.5)
    if causal:
        triangle = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        visible = triangle if visible is None else visible & triangle
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    weights = torch.nan_to_num(scores.softmax(-1))
    return (weights @ value.float()).to(value.dtype), scores.logsumexp(-1)


def _windows(
    depth: torch.Tensor, longest: int, length: int, window: int | None
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What a sliding window leaves visible, of the prefix [T, P] and of the own row [S, S]; None if all of it."""
    if window is None or length + longest <= window:
        return None
    first = torch.arange(length, device=depth.device) > length + depth[:, None] - window
    place = torch.arange(longest, device=depth.device)
    return first, place > place[:, None] - window
