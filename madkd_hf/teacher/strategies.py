"""Ways to read Q questions about one image; they differ in work, never in the answer.

Each strategy takes `(model, processor, image, texts)` and returns the next-token logits [Q, V] after each text.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin


Strategy = Callable[[PreTrainedModel, ProcessorMixin, Image.Image, list[str]], torch.Tensor]


def full(model: PreTrainedModel, processor: ProcessorMixin, image: Image.Image, texts: list[str]) -> torch.Tensor:
    """One full forward pass per question, nothing shared, nothing padded: slow, and the reference for the rest."""
    rows = [model(**encode(model, processor, image, text), logits_to_keep=1).logits[:, -1] for text in texts]
    return torch.cat(rows)


def shared_vision(
    model: PreTrainedModel, processor: ProcessorMixin, image: Image.Image, texts: list[str]
) -> torch.Tensor:
    """Preprocess and encode the image once, then run all questions as one padded batch.

    The padding is on the right: with causal attention no question can see it, so positions need no correction.
    """
    first = encode(model, processor, image, texts[0])
    features = _image_features(model, first)
    tokens, last = _token_rows(processor, first, texts)
    vision = {name: _repeat(value, len(texts)) for name, value in first.items() if name not in tokens}
    vision.pop("pixel_values")
    features["pooler_output"] = _repeat(features["pooler_output"], len(texts))
    if "deepstack_features" in features:  # one entry per layer
        features["deepstack_features"] = [_repeat(layer, len(texts)) for layer in features["deepstack_features"]]
    positions, row_position = last.unique(return_inverse=True)
    vision |= {"mm_encoder_outputs": {"image": features}, "use_cache": False}
    logits = model(**tokens, **vision, logits_to_keep=positions).logits
    kept = logits.shape[1] == len(positions)  # some models ignore logits_to_keep and return all positions
    return logits[torch.arange(len(texts), device=logits.device), row_position if kept else last]


STRATEGIES: dict[str, Strategy] = {"full": full, "shared_vision": shared_vision}


def choose(model: PreTrainedModel, processor: ProcessorMixin, texts: list[str]) -> str:
    """The cheapest strategy that this model supports, tried on texts that differ: no forward pass is needed.

    Sharing needs a model that takes image features in place of pixels, and a processor whose text alone depends on
    the question: its own rows for a blank image have to be those that sharing makes.
    """
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        return "full"
    own = [encode(model, processor, Image.new("RGB", (64, 64)), text) for text in texts]
    try:
        tokens, last = _token_rows(processor, own[0], texts)
    except ValueError:
        return "full"
    for row, (inputs, end) in enumerate(zip(own, last.tolist())):
        for name, value in inputs.items():
            expected = tokens[name][row : row + 1, : end + 1] if name in tokens else own[0][name]
            if torch.is_tensor(value) and not torch.equal(value, expected):
                return "full"
    return "shared_vision"


def encode(model: PreTrainedModel, processor: ProcessorMixin, image: Image.Image, text: str) -> dict[str, Any]:
    """Model inputs for one image and one text, on the model's device; a template that writes BOS gets no second."""
    bos = processor.tokenizer.bos_token
    special = {"add_special_tokens": False} if bos is not None and text.startswith(bos) else {}
    inputs = dict(processor(images=[image], text=[text], return_tensors="pt", **special).to(model.device))
    inputs.pop("labels", None)  # some processors add what training on the text would need
    return inputs


def _image_features(model: PreTrainedModel, inputs: dict[str, Any]) -> Any:
    encoder = model.base_model.get_image_features
    accepted = inspect.signature(encoder).parameters
    return encoder(**{name: value for name, value in inputs.items() if name in accepted}, return_dict=True)


def _token_rows(
    processor: ProcessorMixin, first: dict[str, Any], texts: list[str]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Per-token inputs [Q, L] for all texts, made from the first text's, and each row's last position [Q].

    What precedes the question, expanded image included, is the same in every row, so only the plain text is
    tokenized again: the processor need not see the image Q times.
    """
    ids = first["input_ids"][0]
    plain = [_tokenize(processor, text) for text in texts]
    head = len(os.path.commonprefix(plain))
    prefix = len(ids) - (len(plain[0]) - head)
    if ids[prefix:].tolist() != plain[0][head:]:
        raise ValueError(
            "The chat template does not put the image before the question, so that the image cannot be shared "
            "between questions: use strategy='full'."
        )
    suffixes = [ids.new_tensor(row[head:]) for row in plain]
    lengths = torch.tensor([prefix + len(suffix) for suffix in suffixes], device=ids.device)
    pad = processor.tokenizer.pad_token_id or 0
    tokens = {}
    for name, value in first.items():
        if not torch.is_tensor(value) or value.shape != first["input_ids"].shape:
            continue
        rows = value[:, :prefix].expand(len(texts), -1)
        if name == "input_ids":
            tail = torch.nn.utils.rnn.pad_sequence(suffixes, batch_first=True, padding_value=pad)
        elif name == "attention_mask":
            tail = (torch.arange(int(lengths.max()) - prefix, device=ids.device) < lengths[:, None] - prefix).to(value)
        else:  # token types: text is type 0 everywhere
            tail = value.new_zeros(len(texts), int(lengths.max()) - prefix)
        tokens[name] = torch.cat([rows, tail], dim=1)
    return tokens, lengths - 1


def _tokenize(processor: ProcessorMixin, text: str) -> list[int]:
    bos = processor.tokenizer.bos_token
    return processor.tokenizer.encode(text, add_special_tokens=bos is None or not text.startswith(bos))


def _repeat(value: Any, times: int) -> Any:
    """What belongs to one image, `times` times over: tensors along their first dimension, sequences end to end."""
    if torch.is_tensor(value):
        return value.repeat(times, *[1] * (value.ndim - 1))
    return list(value) * times if isinstance(value, (list, tuple)) else value
