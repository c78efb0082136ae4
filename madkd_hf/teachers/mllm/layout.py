"""What all questions about an image share, and where they part: prompts as token rows."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from ..base import Preprocessed, UnreadableImageError
from .processors import images_kwargs_of


PREFIX_TOKENS = 16384  # in one forward pass, unless one image has more


class Layout:
    """The prompts of Q questions, cut where they part.

    A processor expands the image's placeholder by what the image is, and everything else by the text alone. So the
    tokens after the questions' common beginning are looked up once, on a blank image, in the processor's own full
    prompts: prefix and suffix together are those prompts by construction, whatever the tokenizer merges.

    Attributes:
        suffixes: Q lists of token ids, at least one each.
        lengths: tokens of each whole prompt, with a small blank image.
        digest: of the tokens of all whole prompts.
        per_token: the model inputs that have one value for each token.
        shareable: whether the image stands before the place where the questions part.
    """

    def __init__(self, processor: ProcessorMixin, texts: Sequence[str], image_token_id: int | None):
        self.processor = processor
        self.texts = list(texts)
        blank = Image.new("RGB", (64, 64))
        rows = []
        for text in self.texts:
            try:
                inputs = encode(processor, blank, text)
            except Exception as error:  # whatever a processor raises, the prompt is what helps
                given = images_kwargs_of(processor)
                settings = f"images_kwargs={given} out, or " if given else ""
                raise ValueError(
                    f"The prompt {text!r} cannot be put to this model ({' '.join(str(error).split())}): leave "
                    f"{settings}the model's special tokens out of the question."
                ) from error
            rows.append(inputs)
        longer = encode(processor, blank, f"{texts[0]} and some more")
        self.per_token = [name for name in per_token(rows[0]) if name in per_token(longer)]  # not by coincidence
        tokens = [row["input_ids"][0].tolist() for row in rows]
        self.lengths = list(map(len, tokens))
        self.digest = hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16]
        head = min(len(os.path.commonprefix(tokens)), min(map(len, tokens)) - 1)
        self.suffixes = [row[head:] for row in tokens]
        self.shareable = not any(image_token_id in suffix for suffix in self.suffixes)
        self._tails = [{name: row[name][0, head:] for name in self.per_token} for row in rows]
        self._trees: dict[Any, Tree] = {}

    def __len__(self) -> int:
        return len(self.texts)

    def subset(self, questions: Sequence[int]) -> Layout:
        """The same prompts, fewer questions, cut at the same place."""
        part = object.__new__(Layout)
        part.__dict__ = {**self.__dict__, "_trees": {}}
        for name in ("texts", "suffixes", "lengths", "_tails"):
            setattr(part, name, [getattr(self, name)[question] for question in questions])
        return part

    def inputs(self, image: Image.Image) -> dict[str, Any] | None:
        """What all questions about an image share, see `prefix`."""
        return self.prefix(encode(self.processor, image, self.texts[0]))

    def prefix(self, inputs: dict[str, Any]) -> dict[str, Any] | None:
        """Model inputs up to where the questions part, from those for an image with the first question.

        None where nothing can be shared: an image behind the question, or a prompt that ends in another way.
        """
        length = inputs["input_ids"].shape[1] - len(self.suffixes[0])
        if not self.shareable or inputs["input_ids"][0, length:].tolist() != self.suffixes[0]:
            return None
        return {name: value[:, :length] if name in self.per_token else value for name, value in inputs.items()}

    def suffix_rows(
        self, questions: Sequence[int], device: torch.device
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Per-token inputs [q, S] of some questions' suffixes, padded on the right with 0, and their lengths [q]."""
        tails = [self._tails[question] for question in questions]
        pad = torch.nn.utils.rnn.pad_sequence
        rows = {name: pad([tail[name] for tail in tails], batch_first=True).to(device) for name in tails[0]}
        return rows, torch.tensor([len(tail["input_ids"]) for tail in tails], device=device)

    def tree(self, questions: Sequence[int], device: torch.device) -> Tree:
        """The suffixes of some questions as one row."""
        key = (tuple(questions), device)
        if key not in self._trees:
            self._trees[key] = Tree([self.suffixes[question] for question in questions], device)
        return self._trees[key]

    def blocks(self, size: int) -> list[list[int]]:
        """The questions in blocks of at most `size` that begin alike."""
        order = sorted(range(len(self)), key=lambda question: self.suffixes[question])
        return [order[start : start + size] for start in range(0, len(order), size)]

    def buckets(self, size: int, count: int = 4) -> list[list[int]]:
        """The questions in at least `count` blocks of at most `size` that are alike in length: little padding."""
        size = max(1, min(size, -(-len(self) // count)))
        order = sorted(range(len(self)), key=lambda question: len(self.suffixes[question]))
        return [order[start : start + size] for start in range(0, len(order), size)]


@dataclass
class Batch:
    """Images whose inputs have the same shapes, ready for a forward pass.

    `inputs` are those up to where the questions part, on the model's device; None where nothing can be shared.
    """

    images: list[Image.Image]
    inputs: dict[str, Any] | None
    layout: Layout

    def __len__(self) -> int:
        return len(self.images)

    @property
    def length(self) -> int:
        """Tokens before the questions part."""
        return self.inputs["input_ids"].shape[1]


def batches(
    images: Sequence[Image.Image | Preprocessed], layout: Layout, size: int, model: PreTrainedModel
) -> Iterator[tuple[list[int], Batch]]:
    """Images in batches of at most `size` whose inputs have the same shapes, each with the images' places.

    Only a few batches' worth of images are held as pixels at a time, and no batch has more than `PREFIX_TOKENS` tokens
    before the questions part, if it has more than one image.
    """
    ahead = 1 if size == 1 else 4 * size
    for first in range(0, len(images), ahead):
        groups: dict[Any, list[tuple[int, dict[str, Any] | None]]] = {}
        for index, image in enumerate(images[first : first + ahead], first):
            if isinstance(image, Preprocessed):
                inputs = image.inputs
            else:
                inputs = layout.prefix(_encoded(layout, image, index))
            alike = inputs is not None and all(map(torch.is_tensor, inputs.values()))
            shapes = tuple((name, value.shape) for name, value in inputs.items()) if alike else index
            groups.setdefault(shapes, []).append((index, inputs))
        for group in groups.values():
            length = group[0][1]["input_ids"].shape[1] if group[0][1] else PREFIX_TOKENS
            step = max(1, min(size, PREFIX_TOKENS // length))
            for start in range(0, len(group), step):
                places, inputs = zip(*group[start : start + step])
                yield list(places), Batch([plain(images[place]) for place in places], _merged(inputs, model), layout)


def _encoded(layout: Layout, image: Image.Image, index: int) -> dict[str, Any]:
    """Model inputs for the image of this number and the first question."""
    try:
        return encode(layout.processor, image, layout.texts[0])
    except Exception as error:  # whatever a processor raises, the image is what helps
        raise UnreadableImageError(index, error) from error


def plain(image: Image.Image | Preprocessed) -> Image.Image:
    """The image itself."""
    return image.image if isinstance(image, Preprocessed) else image


def _merged(inputs: Sequence[dict[str, Any] | None], model: PreTrainedModel) -> dict[str, Any] | None:
    if inputs[0] is None:
        return None
    merged = {
        name: torch.cat([image_inputs[name] for image_inputs in inputs]) if torch.is_tensor(value) else value
        for name, value in inputs[0].items()
    }
    return dict(BatchFeature(merged).to(device_of(model), model.dtype))


class Tree:
    """Questions in one row of tokens, in which common beginnings stand once.

    Attributes:
        tokens: [T] token ids.
        depth: [T] place of each token in its question, from 0.
        paths: [q, S] the tokens of each question, as indices into `tokens`, padded on the right with 0.
        lengths: [q] tokens of each question.
        answers: [q] the last token of each question.
        home: [T] where each token stands in the flattened `paths`; of several places, the first.
    """

    def __init__(self, suffixes: Sequence[Sequence[int]], device: torch.device):
        longest = max(map(len, suffixes))
        nodes: dict[tuple[int, int], int] = {}  # (the token before, token id) -> index of the token
        tokens, depth, home, paths = [], [], [], []
        for question, suffix in enumerate(suffixes):
            path = [-1]
            for place, token in enumerate(suffix):
                node = nodes.setdefault((path[-1], token), len(tokens))
                if node == len(tokens):
                    tokens.append(token)
                    depth.append(place)
                    home.append(question * longest + place)
                path.append(node)
            paths.append(path[1:])
        as_tensor = partial(torch.tensor, device=device)
        self.tokens, self.depth, self.home = as_tensor(tokens), as_tensor(depth), as_tensor(home)
        self.paths = as_tensor([path + [0] * (longest - len(path)) for path in paths])
        self.lengths = as_tensor([len(path) for path in paths])
        self.answers = as_tensor([path[-1] for path in paths])

    @cached_property
    def ancestors(self) -> torch.Tensor:
        """[T, T] bool: which tokens each token may see, those before it in its question and itself."""
        visible = torch.eye(len(self.tokens), dtype=torch.bool, device=self.tokens.device)
        for place in range(1, self.paths.shape[1]):
            paths = self.paths[self.lengths > place]
            visible[paths[:, place]] |= visible[paths[:, place - 1]]
        return visible


def encode(
    processor: ProcessorMixin, image: Image.Image, text: str, model: PreTrainedModel | None = None
) -> dict[str, Any]:
    """Model inputs for one image and one text, in the model's dtype where a model is given and on its device.

    A template that writes BOS gets no second.
    """
    bos = processor.tokenizer.bos_token
    options = {"add_special_tokens": False} if bos is not None and text.startswith(bos) else {}
    if given := images_kwargs_of(processor):
        options["images_kwargs"] = given
    inputs = processor(images=[image], text=[text], return_tensors="pt", **options)
    inputs.pop("labels", None)  # some processors add what training on the text would need
    return dict(inputs if model is None else inputs.to(device_of(model), model.dtype))


def device_of(model: PreTrainedModel) -> torch.device:
    """Where a model takes its inputs: not where its weights wait, if they are offloaded."""
    device = getattr(getattr(model, "_hf_hook", None), "execution_device", None)
    return model.device if device is None else torch.device(device)


def per_token(inputs: dict[str, Any]) -> list[str]:
    """The inputs that have one value per token."""
    shape = inputs["input_ids"].shape
    return [name for name, value in inputs.items() if torch.is_tensor(value) and value.shape == shape]


def image_token_id(model: PreTrainedModel, processor: ProcessorMixin) -> int | None:
    """The token that stands for a piece of the image."""
    for owner in (model.config, processor):
        for name in ("image_token_id", "image_token_index"):
            if isinstance(getattr(owner, name, None), int):
                return getattr(owner, name)
    return None


def too_long(layout: Layout, images: Sequence[Image.Image], config: Any) -> tuple[int, int, int] | None:
    """The question that is too long with one of the images: its place, its tokens, and the most there may be.

    UnreadableImageError where the processor refuses one of them.
    """
    question = max(range(len(layout)), key=lambda question: layout.lengths[question])
    own, limit = len(layout.suffixes[question]), context_length(config, layout.processor)
    longest = layout.lengths[question]
    for index, image in enumerate(images):
        tokens = _encoded(layout, image, index)["input_ids"].shape[1]
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
