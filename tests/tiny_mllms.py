"""More tiny multimodal LLMs than `tiny.internvl`, one per way in which architectures take images."""

from __future__ import annotations

import torch
from tiny import CHAT_TEMPLATE, internvl, processor, tokenizer, widen
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vImageProcessorPil,
    Glm4vProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PixtralImageProcessorPil,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
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


def bpe(*special: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE as real models have it: a token may begin in the instructions and end in the question.

    Its ids 0 to 2 are those of `tiny.tokenizer`: padding, unknown, `<image>`.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    corpus = [
        "Answer the question with yes or no. Yes No yes no\n\nQuestion: Is there a red shape?\n\n",
        "Is it blue? Is the big shape red in this image? Does it have a tail? Are there two?\n",
    ]
    special = ["<pad>", "<unk>", "<image>", *special]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(corpus * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", additional_special_tokens=special[2:]
    )


def llava(words: PreTrainedTokenizerFast | None = None, **text) -> tuple[PreTrainedModel, ProcessorMixin]:
    words = words or tokenizer()
    text = {**TEXT, "model_type": "llama", "vocab_size": len(words), **text}
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


def sliding_internvl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """A window shorter than the image and the question in every other layer of the text model."""
    layers = {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    text = {**TEXT, **layers, "model_type": "qwen2", "vocab_size": len(tokenizer())}
    config = InternVLConfig(vision_config=VISION, text_config=text, image_token_id=2)
    return InternVLForConditionalGeneration(config), processor()


def sliding_llava() -> tuple[PreTrainedModel, ProcessorMixin]:
    """A window shorter than the image and the question in every layer, which its config says by one number alone."""
    return llava(model_type="mistral", sliding_window=8, num_hidden_layers=4)  # layer by layer back to the image


def chunked_llava() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Llama 4's text model: attention within chunks of 8 positions, then a layer without positions; experts."""
    layers = {"attention_chunk_size": 8, "no_rope_layers": [1, 0], "head_dim": 8, "intermediate_size_mlp": 32}
    return llava(model_type="llama4_text", num_local_experts=2, **layers)


class OnevisionImageProcessor(LlavaOnevisionProcessor):
    """The processor of LLaVA-OneVision without its video processor, which needs torchvision."""

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        num_image_tokens=None,
        vision_feature_select_strategy=None,
        chat_template=None,
        image_token="<image>",
        vision_aspect_ratio="anyres_max_9",
        **kwargs,
    ):
        self.num_image_tokens = num_image_tokens
        self.vision_feature_select_strategy = vision_feature_select_strategy
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        self.vision_aspect_ratio = vision_aspect_ratio
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def llava_onevision() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Several tiles an image, without their padding, a learned end of line after each row, and a copy of the whole."""
    special = ("<image>", "<video>")
    words = tokenizer(special=special)
    text = {**TEXT, "model_type": "qwen2", "vocab_size": len(words)}
    vision = {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False}
    pinpoints = [[16, 16], [16, 32], [32, 16], [32, 32]]
    ids = {"image_token_id": 2, "video_token_id": 3}
    config = LlavaOnevisionConfig(text_config=text, vision_config=vision, image_grid_pinpoints=pinpoints, **ids)
    images = LlavaOnevisionImageProcessorPil(size=SQUARE, image_grid_pinpoints=pinpoints)
    settings = {"num_image_tokens": 16, "vision_feature_select_strategy": "full"}
    chat = OnevisionImageProcessor(images, words, chat_template=template("<image>"), **settings)
    return LlavaOnevisionForConditionalGeneration(config), chat


def mistral3() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Image sizes as they are, two-dimensional positions in the vision tower, four patches merged into one."""
    words = tokenizer()
    text = {**TEXT, "model_type": "mistral", "head_dim": 8, "vocab_size": len(words)}
    vision = {**VISION, "model_type": "pixtral", "image_size": 32, "head_dim": 8}
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_id=2)
    images = PixtralImageProcessorPil(size={"longest_edge": 32}, patch_size=8)
    settings = {"patch_size": 8, "vision_feature_select_strategy": "full"}
    chat = LlavaProcessor(images, words, chat_template=template("<image>"), **settings)
    return Mistral3ForConditionalGeneration(config), chat


class QwenImageProcessor(Qwen2VLProcessor):
    """The processor of the Qwen-VL family without its video processor, which needs torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        self.image_token = "<|image_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def qwen(version: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Positions in three dimensions, image sizes as they are.

    Version 3 also feeds image features into later layers; 3.5 has a layer of linear attention, a running state.
    """
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
    elif version == "3.5":
        vision |= {"out_hidden_size": 16, "intermediate_size": 32, "num_position_embeddings": 16}
        text |= {"layer_types": ["linear_attention", "full_attention"], "head_dim": 16}
        text |= {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
        text |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
        text["rope_parameters"] = {**rope, "partial_rotary_factor": 0.5}
        model = Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=vision, **ids))
    else:
        vision |= {"out_hidden_size": 16, "intermediate_size": 32, "num_position_embeddings": 16}
        vision |= {"deepstack_visual_indexes": [0]}
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **ids))
    images = Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 16 * 16, "longest_edge": 32 * 32})
    return model, QwenImageProcessor(images, words, template("<|vision_start|><|image_pad|><|vision_end|>"))


class Glm4vImageProcessor(Glm4vProcessor):
    """The processor of GLM-4V without its video processor, which needs torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        self.image_token = "<|image|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_start_id = self.video_end_id = -1
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def glm4v() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Positions in three dimensions, an image in one frame, image sizes as they are."""
    special = ("<|begin_of_image|>", "<|image|>", "<|end_of_image|>", "<|video|>")
    words = tokenizer(special=special)
    ids = {"image_start_token_id": 2, "image_token_id": 3, "image_end_token_id": 4, "video_token_id": 5}
    ids |= {"video_start_token_id": len(words), "video_end_token_id": len(words) + 1}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    text = {**TEXT, "vocab_size": len(words), "rope_parameters": rope}
    vision = {"depth": 2, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "image_size": 16}
    vision |= {"out_hidden_size": 16, "intermediate_size": 32}
    images = Glm4vImageProcessorPil(patch_size=4, size={"shortest_edge": 16 * 16, "longest_edge": 2 * 32 * 32})
    chat = Glm4vImageProcessor(images, words, template("<|begin_of_image|><|image|><|end_of_image|>"))
    return Glm4vForConditionalGeneration(Glm4vConfig(text_config=text, vision_config=vision, **ids)), chat


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
    "sliding_internvl": sliding_internvl,
    "llava": llava,
    "sliding_llava": sliding_llava,
    "chunked_llava": chunked_llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "mistral3": mistral3,
    "qwen2_vl": lambda: qwen("2"),
    "qwen2_5_vl": lambda: qwen("2.5"),
    "qwen3_vl": lambda: qwen("3"),
    "qwen3_5": lambda: qwen("3.5"),
    "glm4v": glm4v,
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
