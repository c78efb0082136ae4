"""Which way of reading to take: allowed by the architecture, shown to agree with the reference, then the least work.

Agreement is measured in log-odds, over their standard deviation between questions. (Not in probabilities, which
saturate.) In float32 a strategy that is exact differs from the reference by less than 1e-5 (with linear attention by
less than 1e-3), one that is wrong by more than 0.1. Rounding blurs this in bfloat16: there it is measured in float32
on a copy of few layers, and in the model's own dtype the root mean square of the error may be twice the reference's
own (measured: 1.5 times at most where exact, 17 at least where wrong).

What a few short prompts cannot show is left to the configuration: see `allowed`, and `strategies.positions_limit`.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from PIL import Image
from transformers import PreTrainedModel

from ...text import get_logger
from .cascade import layer_types
from .layout import Layout, Tree, device_of, encode
from .strategies import layer_kinds, read


logger = get_logger(__name__)

QUESTIONS = 8
SIDE = 1024  # pixels of an image, at most: whether two ways of reading agree, a smaller one shows as well
TOLERANCE = 1e-3  # standard deviations, in float32
ROUNDING = 2.0  # times the reference's own, in the model's dtype on few layers
GROSS = 0.5  # standard deviations, on the model itself, where nobody knows the reference's own rounding

Reduce = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def allowed(model: PreTrainedModel, layout: Layout) -> list[str]:
    """The strategies that the architecture does not rule out, by its configuration alone.

    - The image behind the question: nothing is shared.
    - Prefix-LM, where image and instructions attend to the question: no prefix can be read before it.
    - Layers that carry a state (linear attention, convolution): questions cannot stand in one row.
    """
    if not layout.shareable:
        return ["full"]
    if model.config.model_type in ("paligemma", "colpali"):
        return ["full", "shared_vision"]
    if set(layer_kinds(model.config.get_text_config())) <= {"full_attention", "sliding_attention"}:
        return ["full", "shared_vision", "prefix_cache", "packed", "cascade"]
    return ["full", "shared_vision", "prefix_cache"]


def check(
    model: PreTrainedModel,
    layout: Layout,
    images: Sequence[Image.Image],
    reduce: Reduce,
    names: Sequence[str],
    size: int,
) -> tuple[dict[str, float | None], list[str]]:
    """Read up to 8 of the layout's questions about one or two first images in every way.

    Each way reads each pair of question and image anew, up to 72 times in all; large photographs are shrunk for it.

    Returns:
        For each name the largest difference of log-odds to the reference, in standard deviations (in float32, or for
        one that fails in the model's own dtype only, in that; None where the strategy raises), and the names that
        agree with the reference, the reference first.
    """
    alternatives = [name for name in names if name != "full"]
    if not alternatives:
        return {"full": 0.0}, ["full"]
    order = sorted(range(len(layout)), key=lambda question: len(layout.suffixes[question]))
    some = torch.linspace(0, len(order) - 1, min(QUESTIONS, len(order))).round().int().tolist()
    layout = layout.subset([order[place] for place in some])
    images = [_small(image) for image in images]
    if len(images) > 1:  # one more of the same size, so that a batch holds several
        images = [*images[:2], images[1].resize(images[0].size)]
    read_by = functools.partial(log_odds, layout=layout, images=images, reduce=reduce, size=size)

    single = model.dtype == torch.float32 and getattr(model, "hf_quantizer", None) is None
    precise = model if single else shallow_copy(model, torch.float32)
    reference = read_by(precise, "full")
    errors_by_name = differences(precise, alternatives, reference, read_by)
    exact = [name for name in alternatives if largest(errors_by_name[name]) < TOLERANCE]
    if exact and not single:
        rounded = differences(shallow_copy(model, model.dtype), ["full", *exact], reference, read_by)
        own = max(ROUNDING * root_mean_square(rounded["full"]), TOLERANCE)
        gross = differences(model, exact, read_by(model, "full"), read_by)
        wrong = {name: rounded[name] for name in exact if not root_mean_square(rounded[name]) <= own}
        wrong |= {name: gross[name] for name in exact if not largest(gross[name]) < GROSS}
        exact = [name for name in exact if name not in wrong]
        errors_by_name |= wrong
    errors = {name: largest(difference) for name, difference in errors_by_name.items()}
    finite = {name: error if math.isfinite(error) else None for name, error in errors.items()}
    return {"full": 0.0, **finite}, ["full", *exact]


def _small(image: Image.Image) -> Image.Image:
    if max(image.size) > SIDE:
        image = image.copy()
        image.thumbnail((SIDE, SIDE))
    return image


def log_odds(
    model: PreTrainedModel, name: str, layout: Layout, images: Sequence[Image.Image], reduce: Reduce, size: int
) -> torch.Tensor:
    """Log-odds [n, Q] by one strategy; NaN where it cannot read this model."""
    try:
        return read(model, layout, images, name, size, reduce)[0]
    except Exception as error:  # whatever an unknown architecture raises, another strategy may read it
        if name == "full" or should_reduce_batch_size(error):
            raise
        logger.info(f"{name} cannot read with {type(model).__name__}: {error}")
        return torch.full((len(images), len(layout)), torch.nan)


def differences(
    model: PreTrainedModel, names: Sequence[str], reference: torch.Tensor, read_by: Callable[..., torch.Tensor]
) -> dict[str, torch.Tensor]:
    """How far each strategy is from the reference, in standard deviations between questions (or images, for one).

    Answers that hardly differ are measured by a hundredth of their size: rounding is not to be magnified.
    """
    between = 1 if reference.shape[1] > 1 else 0  # questions; images where there is one question
    spread = reference.std(dim=between).mean() if reference.numel() > 1 else reference.abs().mean()
    spread = max(spread, reference.abs().mean() / 100, torch.tensor(1e-9))
    return {name: (read_by(model, name) - reference) / spread for name in names}


def root_mean_square(difference: torch.Tensor) -> float:
    return float(difference.square().mean().sqrt())


def largest(difference: torch.Tensor) -> float:
    return float(torch.nan_to_num(difference.abs(), nan=torch.inf).max())


def shallow_copy(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The same architecture in another dtype with the first layers of its language model, one of each kind at least.

    Its weights are the model's own; random where those are quantized or not in memory, which makes no difference to
    whether two ways of reading agree. (Casting the model itself would also cast the buffers of its positions.) On the
    CPU, if there is no room beside the model.
    """
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    kinds = layer_types(text)
    depth = min(max(2, *(kinds.index(kind) + 1 for kind in kinds)), text.num_hidden_layers)
    try:
        if getattr(text, "layer_types", None):
            text.layer_types = kinds[:depth]
        text.num_hidden_layers = depth
    except AttributeError:  # a configuration that works its layers out: all of them, then
        pass
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if dtype == torch.float32 and "flash" in str(config._attn_implementation):
        config._attn_implementation = "sdpa"
    try:
        return _build(model, config, dtype, device_of(model))
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        return _build(model, config, dtype, torch.device("cpu"))


def _build(model: PreTrainedModel, config: Any, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    with device:
        small_model = type(model)._from_config(config, dtype=dtype).eval()
    if getattr(model, "hf_quantizer", None) is None:
        weights = {name: value for name, value in model.state_dict().items() if not value.is_meta}
        small_model.load_state_dict(weights, strict=False)
    return small_model


def least_work(names: Sequence[str], layout: Layout, image: Image.Image, model: PreTrainedModel) -> str:
    """The strategy with the fewest FLOPs; of those within a hundredth of it the last, which copies least.

    Time does not choose: it chooses anew each time.
    """
    inputs = encode(layout.processor, image, layout.texts[0])
    length = inputs["input_ids"].shape[1] - len(layout.suffixes[0])
    costs = {name: flops(name, layout, length, model, patches(inputs, model)) for name in names}
    return [name for name, cost in costs.items() if cost <= 1.01 * min(costs.values())][-1]


def patches(inputs: dict[str, Any], model: PreTrainedModel) -> int:
    """How many patches of an image the vision tower sees: its pixels over those that the first convolution takes."""
    first = next((part for part in model.modules() if isinstance(part, torch.nn.modules.conv._ConvNd)), None)
    pixels = sum(value.numel() for value in inputs.values() if torch.is_tensor(value) and value.is_floating_point())
    return pixels // (first.weight[0].numel() if first is not None else 3 * 14 * 14)


def flops(name: str, layout: Layout, length: int, model: PreTrainedModel, patches: int) -> float:
    """Floating-point operations for all questions about one image with `length` tokens before they part.

    Two for each weight and token, and four for each channel, query and key; normalisation, and attention within the
    vision tower, are left out.
    """
    encoded, tokens, pairs = work(name, layout, length)
    text, decoder = model.config.get_text_config(), model.get_decoder()
    embedding_weights = text.vocab_size * text.hidden_size
    weights = sum(parameter.numel() for parameter in decoder.parameters()) - embedding_weights
    vision = sum(parameter.numel() for parameter in model.base_model.parameters()) - weights - embedding_weights
    attention = 2 * text.num_hidden_layers * text.hidden_size * pairs
    return 2 * (vision * patches * encoded + weights * tokens + attention + embedding_weights * len(layout))


def work(name: str, layout: Layout, length: int) -> tuple[int, int, int]:
    """How often an image is encoded, how many tokens the language model reads, how many pairs of query and key."""
    sizes = [len(suffix) for suffix in layout.suffixes]
    own = len(Tree(layout.suffixes, torch.device("cpu")).tokens)
    padded = [max(sizes[q] for q in block) for block in layout.buckets(len(sizes)) for _ in block]
    return {
        "full": (len(sizes), sum(length + size for size in sizes), sum((length + size) ** 2 for size in sizes)),
        "shared_vision": (1, sum(length + size for size in padded), sum((length + size) ** 2 for size in padded)),
        "prefix_cache": (1, length + sum(padded), length**2 + sum(size * (length + size) for size in padded)),
        "packed": (1, length + own, length**2 + own * (length + own)),
        "cascade": (1, length + own, length**2 + own * length + len(sizes) * max(sizes) ** 2),
    }[name]
