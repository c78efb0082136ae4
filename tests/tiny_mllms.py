"""More tiny multimodal LLMs than `tiny.internvl`, one per way in which architectures take images."""

from __future__ import annotations

import torch
from tiny import CHAT_TEMPLATE, internvl, processor, tokenizer, widen
from transformers import (
    CLIPImageProcessorPil,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipImageProcessorPil,
)


TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 4,
}
SQUARE = {"height": 16, "width": 16}


def template(image: str) -> str:
    return CHAT_TEMPLATE.replace("<image>", image)


def llava() -> tuple[PreTrainedModel, ProcessorMixin]:
    words = tokenizer()
    text = {**TEXT, "model_type": "llama", "vocab_size": len(words)}
    vision = {**VISION, "model_type": "clip_vision_model"}
    model = LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, image_token_id=2))
    images = CLIPImageProcessorPil(size=SQUARE, do_center_crop=False)
    settings = {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return model, LlavaProcessor(images, words, chat_template=template("<image>"), **settings)


def llava_next() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Several crops an image, as many as its shape asks for."""
    words = tokenizer()
    text = {**TEXT, "model_type": "llama", "vocab_size": len(words)}
    vision = {**VISION, "model_type": "clip_vision_model"}
    pinpoints = [[16, 32], [32, 16], [32, 32]]
    model = LlavaNextForConditionalGeneration(
        LlavaNextConfig(text_config=text, vision_config=vision, image_token_id=2, image_grid_pinpoints=pinpoints)
    )
    images = LlavaNextImageProcessorPil(size={"shortest_edge": 16}, crop_size=SQUARE, image_grid_pinpoints=pinpoints)
    settings = {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return model, LlavaNextProcessor(images, words, chat_template=template("<image>"), **settings)


class QwenImageProcessor(Qwen2VLProcessor):
    """The processor of the Qwen-VL family without its video processor, which needs torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        self.image_token = "<|image_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def qwen(version: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Positions in three dimensions, image sizes as they are; version 3 also feeds features into later layers."""
    words = tokenizer(special=("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"))
    ids = {"vision_start_token_id": 2, "image_token_id": 3, "vision_end_token_id": 4, "video_token_id": 5}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    text = {**TEXT, "head_dim": 8, "vocab_size": len(words), "rope_parameters": rope}
    vision = {"depth": 2, "hidden_size": 16, "num_heads": 2, "patch_size": 4}
    if version == "2":
        vision |= {"embed_dim": 16, "mlp_ratio": 2}
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **ids))
    elif version == "2.5":
        vision |= {"out_hidden_size": 16, "intermediate_size": 32, "window_size": 16, "fullatt_block_indexes": [1]}
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))
    else:
        vision |= {"out_hidden_size": 16, "intermediate_size": 32, "num_position_embeddings": 16}
        vision |= {"deepstack_visual_indexes": [0]}
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **ids))
    images = Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 16 * 16, "longest_edge": 32 * 32})
    return model, QwenImageProcessor(images, words, template("<|vision_start|><|image_pad|><|vision_end|>"))


def idefics3() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Cuts an image into tiles and adds a small copy of the whole."""
    cells = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    special = ("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *cells)
    words = tokenizer(special=special)
    text = {**TEXT, "model_type": "llama", "vocab_size": len(words)}
    vision = {**VISION, "num_hidden_layers": 1}
    config = Idefics3Config(text_config=text, vision_config=vision, image_token_id=2, scale_factor=2, pad_token_id=0)
    images = Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    chat = Idefics3Processor(images, words, image_seq_len=4, chat_template=template("<image>"))
    return Idefics3ForConditionalGeneration(config), chat


def gemma3() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Image tokens see each other in both directions; every other layer has a sliding window."""
    special = ("<boi>", "<eoi>", "<img>")
    words = tokenizer(special=special, boi_token="<boi>", eoi_token="<eoi>", image_token="<img>")
    layers = {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    config = Gemma3Config(
        text_config={**TEXT, **layers, "vocab_size": len(words)},
        vision_config=VISION,
        mm_tokens_per_image=4,
        boi_token_id=2,
        eoi_token_id=3,
        image_token_id=4,
    )
    images = Gemma3ImageProcessorPil(size=SQUARE)
    chat = Gemma3Processor(images, words, image_seq_length=4, chat_template=template("<boi>"))
    return Gemma3ForConditionalGeneration(config), chat


def paligemma() -> tuple[PreTrainedModel, ProcessorMixin]:
    """No chat template, a newline of its own after the text, and attention in both directions over the prompt."""
    words = tokenizer()
    text = {**TEXT, "model_type": "gemma", "head_dim": 8, "vocab_size": len(words)}
    config = PaliGemmaConfig(
        text_config=text, vision_config=VISION, projection_dim=16, hidden_size=16, image_token_id=2
    )
    images = SiglipImageProcessorPil(size=SQUARE)
    images.image_seq_length = 16
    words.bos_token = "<pad>"
    return PaliGemmaForConditionalGeneration(config), PaliGemmaProcessor(images, words)


MLLMS = {
    "internvl": lambda: (internvl(), processor()),
    "llava": llava,
    "llava_next": llava_next,
    "qwen2_vl": lambda: qwen("2"),
    "qwen2_5_vl": lambda: qwen("2.5"),
    "qwen3_vl": lambda: qwen("3"),
    "idefics3": idefics3,
    "gemma3": gemma3,
    "paligemma": paligemma,
}


def mllm(name: str, seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A model whose weights are wide enough for its answers to differ, and its processor."""
    torch.manual_seed(seed)
    model, chat = MLLMS[name]()
    widen(model, seed)
    return model.eval(), chat
