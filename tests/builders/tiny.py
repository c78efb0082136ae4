"""Tiny models of native transformers architectures with random weights, built in memory: no test downloads."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    ResNetConfig,
    TrainingArguments,
)

from madkd_hf import Aspect, AspectBank


# Layers whose activations are computed again in the backward pass; transformers 6 drops the second name.
CHECKPOINTING = next(
    name for name in ("activation_checkpointing", "gradient_checkpointing") if hasattr(TrainingArguments, name)
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} assistant :{% endif %}"
)
WORDS = "yes no Yes No answer with or Answer is there a red blue big shape in the image at all user assistant : . ?"


def tokenizer(words: str = WORDS, special: tuple[str, ...] = ("<image>",), **named: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", *special, *dict.fromkeys(words.split())])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=list(special),
        **({"extra_special_tokens": named} if named else {}),
    )


def processor(words: str = WORDS) -> LlavaProcessor:
    images = CLIPImageProcessorPil(size={"height": 16, "width": 16}, do_center_crop=False)
    return LlavaProcessor(
        images, tokenizer(words), patch_size=8, vision_feature_select_strategy="full", chat_template=CHAT_TEMPLATE
    )


def internvl(seed: int = 0) -> InternVLForConditionalGeneration:
    """16 x 16 images of 4 x 4 patches, 4 image tokens, one wide layer of each kind so that answers differ."""
    torch.manual_seed(seed)
    vision = InternVLVisionConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=4
    )
    text = Qwen2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        vocab_size=len(tokenizer()),
        initializer_range=0.5,
    )
    config = InternVLConfig(vision_config=vision, text_config=text, image_token_id=2, vision_feature_layer=-1)
    model = InternVLForConditionalGeneration(config).eval()
    widen(model, seed)
    return model


def bank(questions: int = 3) -> AspectBank:
    texts = ["is there a red shape ?", "is there a big blue shape in the image at all ?", "is there a shape ?"]
    return AspectBank([Aspect(f"aspect-{i}", texts[i], "visual") for i in range(questions)])


def images(count: int, size: int = 16, seed: int = 0) -> list[Image.Image]:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return [Image.fromarray(array) for array in pixels]


def widen(model: torch.nn.Module, seed: int = 0) -> None:
    """Larger random weights, so that the outputs of a tiny untrained model differ from each other and from zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5 * 2, generator=generator)


def resnet() -> ResNetConfig:
    return ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
