"""Ways to read Q questions about an image. They differ in work, never in the answer.

Each strategy takes `(model, batch, size)` and yields questions with their next-token logits [n, q, V] for the batch's
n images; `size` bounds the image-question pairs in one forward pass. What each shares:

| strategy      | image encoded | prefix read  | the questions' own tokens                                         |
| ------------- | ------------- | ------------ | ----------------------------------------------------------------- |
| full          | per question  | per question | the reference: one plain forward pass per question                |
| shared_vision | once          | per question | padded on the right, behind the prefix                            |
| prefix_cache  | once          | once         | padded rows, each on its own copy of the prefix's keys and values |
| packed        | once          | once         | one row without copies; a mask keeps the questions apart          |
| cascade       | once          | once         | one row without copies or mask, see `cascade.py`                  |

The last two hold common beginnings of questions once (`layout.Tree`).
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import DynamicCache, PreTrainedModel

from .cascade import cascading, layer_types, window
from .layout import Batch, Layout, Tree, batches, device_of, encode


Answers = Iterator[tuple[list[int], torch.Tensor]]
Strategy = Callable[[PreTrainedModel, Batch, int], Answers]


def full(model: PreTrainedModel, batch: Batch, size: int) -> Answers:
    """One full forward pass per question, on the processor's own prompt: slow, and the reference for the rest."""
    for question, text in enumerate(batch.layout.texts):
        rows = []
        for image in batch.images:
            inputs = encode(batch.layout.processor, image, text, model)
            rows.append(model(**inputs, logits_to_keep=1).logits[:, -1])
        yield [question], torch.stack(rows)


def shared_vision(model: PreTrainedModel, batch: Batch, size: int) -> Answers:
    """Encode one image once, then read its questions as padded rows, each with the whole prompt.

    The padding is on the right: with causal attention no question can see it, so positions need no correction.
    """
    features = _image_features(model, batch.inputs)
    tokens, device = batch.layout.per_token, device_of(model)
    other_inputs = {name: value for name, value in batch.inputs.items() if name not in (*tokens, "pixel_values")}
    for questions in batch.layout.buckets(size):
        count = len(questions)
        rows, lengths = batch.layout.suffix_rows(questions, device)
        inputs = {name: torch.cat([_repeat(batch.inputs[name], count), rows[name]], dim=1) for name in tokens}
        inputs |= {name: _repeat(value, count) for name, value in other_inputs.items()}
        inputs["mm_encoder_outputs"] = {"image": _repeat_features(features, count)}
        yield questions, _logits(model, range(count), batch.length + lengths - 1, **inputs, use_cache=False)[None]


def prefix_cache(model: PreTrainedModel, batch: Batch, size: int) -> Answers:
    """Read the prefix once; give each question a copy of its keys and values."""
    prefix, start = _read_prefix(model, batch)
    n, device = len(batch), start.device
    for questions in batch.layout.buckets(size // n):
        rows, lengths = batch.layout.suffix_rows(questions, device)
        cache, q = copy.deepcopy(prefix), len(questions)
        cache.reorder_cache(torch.arange(n, device=device).repeat_interleave(q))
        own = torch.arange(rows["input_ids"].shape[1], device=device)
        before = own.new_ones(n * q, batch.length)
        logits = _logits(
            model,
            range(n * q),
            (lengths - 1).repeat(n),
            input_ids=rows["input_ids"].repeat(n, 1),
            position_ids=(start[:, None] + own).repeat_interleave(q, dim=0),
            attention_mask=torch.cat([before, (own < lengths[:, None]).long().repeat(n, 1)], dim=1),
            past_key_values=cache,
        )
        yield questions, logits.unflatten(0, (n, q))


def packed(model: PreTrainedModel, batch: Batch, size: int) -> Answers:
    """Read the prefix once; put all questions behind it in one row, apart by a mask, each counting from there."""
    prefix, start = _read_prefix(model, batch, DynamicCache())
    for questions in batch.layout.blocks(max(1, size // len(batch))):
        tree = batch.layout.tree(questions, start.device)
        mask = _tree_masks(model, tree, batch.length)
        yield questions, _read_tree(model, tree, start, past_key_values=copy.deepcopy(prefix), attention_mask=mask)


def cascade(model: PreTrainedModel, batch: Batch, size: int) -> Answers:
    """Read the prefix once; all questions attend to it where it is, and to themselves, and add the two up."""
    prefix, start = _read_prefix(model, batch, DynamicCache())
    for questions in batch.layout.blocks(max(1, size // len(batch))):
        tree = batch.layout.tree(questions, start.device)
        with cascading(model, prefix, tree):
            logits = _read_tree(model, tree, start, use_cache=False)
        yield questions, logits


STRATEGIES: dict[str, Strategy] = {
    strategy.__name__: strategy for strategy in (full, shared_vision, prefix_cache, packed, cascade)
}


def read(
    model: PreTrainedModel,
    layout: Layout,
    images: Sequence[Image.Image],
    strategy: str,
    size: int,
    reduce: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `reduce` makes of the next-token logits: two numbers per image and question, [n, Q] each, on the CPU."""
    answers = torch.empty(2, len(images), len(layout))
    one_image_at_a_time = strategy in ("full", "shared_vision")
    longest, limit = max(map(len, layout.suffixes)), positions_limit(model.config.get_text_config())
    for places, batch in batches(images, layout, 1 if one_image_at_a_time else max(1, size // len(layout)), model):
        shared = batch.inputs is not None and batch.length + longest <= limit
        strategy_function = STRATEGIES[strategy] if shared else full
        for questions, logits in strategy_function(model, batch, size):
            answers[:, torch.tensor(places)[:, None], questions] = torch.stack(reduce(logits)).cpu()
    return answers[0], answers[1]


def _read_prefix(model: PreTrainedModel, batch: Batch, cache: DynamicCache | None = None) -> tuple[Any, torch.Tensor]:
    """The prefix's keys and values (in the model's own kind of cache by default), and the position after it [n]."""
    outputs = model(**batch.inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    start = torch.full((len(batch),), batch.length, device=device_of(model))
    deltas = getattr(model.base_model, "rope_deltas", None)  # positions in three dimensions take less room
    return outputs.past_key_values, start if deltas is None else start + deltas.flatten().to(start)


def _read_tree(model: PreTrainedModel, tree: Tree, start: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Logits [n, q, V] of the questions in a tree, behind prefixes that end before `start` [n]."""
    n, q = len(start), len(tree.answers)
    positions = start[:, None] + tree.depth
    rows, answers = torch.arange(n, device=start.device).repeat_interleave(q), tree.answers.repeat(n)
    inputs |= {"input_ids": tree.tokens.expand(n, -1), "position_ids": positions}
    return _logits(model, rows, answers, **inputs).unflatten(0, (n, q))


def _tree_masks(model: PreTrainedModel, tree: Tree, length: int) -> torch.Tensor | dict[str, torch.Tensor]:
    """Additive masks [1, 1, T, length + T] over prefix and tree, one per kind of layer where there are several."""
    config = model.config.get_text_config()
    masks = {}
    for kind, reach in layer_kinds(config).items():
        keys = torch.cat([torch.arange(length, device=tree.depth.device), length + tree.depth])
        visible = torch.cat([tree.ancestors.new_ones(len(tree.depth), length), tree.ancestors], dim=1)
        if reach is not None:
            visible = visible & (keys > length + tree.depth[:, None] - reach)
        mask = torch.zeros(visible.shape, dtype=model.dtype, device=visible.device)
        masks[kind] = mask.masked_fill(~visible, torch.finfo(model.dtype).min)[None, None]
    return masks if len(masks) > 1 else masks.popitem()[1]


def positions_limit(config: Any) -> float:
    """The number of tokens up to which positions are encoded alike, however long the prompt is.

    Beyond it the frequencies of these rotary embeddings depend on the longest prompt in a forward pass, so that a
    question reads differently beside a longer one.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    limits = [
        kind.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        or config.max_position_embeddings
        for kind in (rope, *rope.values())
        if isinstance(kind, dict) and kind.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(limits, default=math.inf)


def layer_kinds(config: Any) -> dict[str, int | None]:
    """The kinds of attention layer of a text model, each with its window in tokens (None: all)."""
    return {kind: window(config, layer) for layer, kind in enumerate(layer_types(config))}


def _logits(model: PreTrainedModel, rows: Any, positions: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Next-token logits [len(rows), V] at one position a row: the output layer is given these hidden states only."""
    rows = torch.as_tensor(rows)

    def keep(_: torch.nn.Module, hidden: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        at = hidden[0].device
        return (hidden[0][rows.to(at), positions.to(at), None],)

    hook = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        return model(**inputs).logits[:, 0]
    finally:
        hook.remove()


def _image_features(model: PreTrainedModel, inputs: dict[str, Any]) -> Any:
    encoder = model.base_model.get_image_features
    accepted = inspect.signature(encoder).parameters
    return encoder(**{name: value for name, value in inputs.items() if name in accepted}, return_dict=True)


def _repeat_features(features: Any, times: int) -> Any:
    features = copy.copy(features)
    features["pooler_output"] = _repeat(features["pooler_output"], times)
    if "deepstack_features" in features:  # one entry per layer
        features["deepstack_features"] = [_repeat(layer, times) for layer in features["deepstack_features"]]
    return features


def _repeat(value: Any, times: int) -> Any:
    """What belongs to one image, `times` times over: tensors along their first dimension, sequences end to end."""
    if torch.is_tensor(value):
        return value.repeat(times, *[1] * (value.ndim - 1))
    return list(value) * times if isinstance(value, (list, tuple)) else value
