"""More tiny multimodal LLMs than `tiny.internvl`, one per way in which architectures take images.

Their processors are those of transformers, loaded from files as the Hub has them: nothing is left out or replaced.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from builders.tiny import CHAT_TEMPLATE, tokenizer, widen
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BaseImageProcessor,
    CLIPImageProcessorPil,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vImageProcessorPil,
    GotOcr2ImageProcessorPil,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PixtralImageProcessorPil,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipImageProcessorPil,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
)

from madkd_hf.teachers.mllm.processors import load_processor


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


LAYOUTS = ("new", "old")


@dataclass
class HubProcessor:
    """The files of a processor as the Hub has them, written without the classes that would write them.

    Attributes:
        name: the class of the processor.
        images: its image processor.
        words: its tokenizer.
        template: its chat template, if any.
        video: the settings of its video processor, if it has one.
        settings: its own.
    """

    name: str
    images: BaseImageProcessor
    words: PreTrainedTokenizerFast
    template: str | None
    video: dict[str, Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: str | Path, layout: str = "new") -> None:
        """Write a file for each part and fast image processors ("old"), or one for all parts ("new")."""
        name = type(self.images).__name__.removesuffix("Pil")
        images = json.loads(self.images.to_json_string()) | {"image_processor_type": name}
        whole = {"processor_class": self.name, **self.settings}
        self.words.save_pretrained(folder)
        files: dict[str, Any] = {}
        if layout == "new":
            whole["image_processor"] = images
            if self.video:
                whole["video_processor"] = self.video
        else:
            files["preprocessor_config.json"] = {
                **images,
                "image_processor_type": f"{name}Fast",
                "processor_class": self.name,
            }
            if self.video:
                files["video_preprocessor_config.json"] = {**self.video, "processor_class": self.name}
        files["processor_config.json"] = whole
        for file, content in files.items():
            (Path(folder) / file).write_text(json.dumps(content, indent=2), encoding="utf-8")
        if self.template is not None:
            (Path(folder) / "chat_template.jinja").write_text(self.template, encoding="utf-8")

    def load(self, config: PreTrainedConfig | None = None) -> ProcessorMixin:
        with TemporaryDirectory() as folder:
            self.save(folder)
            if config:  # decides which tokenizer some are given
                config.save_pretrained(folder)
            return load_processor(folder)


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


def llava(words: PreTrainedTokenizerFast | None = None, **text) -> tuple[PreTrainedModel, HubProcessor]:
    words = words or tokenizer()
    text = {**TEXT, "model_type": "llama", "vocab_size": len(words), **text}
    vision = {**VISION, "model_type": "clip_vision_model"}
    model = LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, image_token_id=2))
    images = CLIPImageProcessorPil(size=SQUARE, do_center_crop=False)
    settings = {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return model, HubProcessor("LlavaProcessor", images, words, template("<image>"), settings=settings)


def llava_next() -> tuple[PreTrainedModel, HubProcessor]:
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
    return model, HubProcessor("LlavaNextProcessor", images, words, template("<image>"), settings=settings)


def internvl(**text) -> tuple[PreTrainedModel, HubProcessor]:
    """Tiles, as many as the image's shape asks for, and a small copy of the whole, 4 tokens each."""
    names = {"context_image_token": "<IMG_CONTEXT>", "start_image_token": "<img>", "end_image_token": "</img>"}
    words = tokenizer(special=(*names.values(), "<video>"), **names, video_token="<video>")
    text = {**TEXT, "model_type": "qwen2", "vocab_size": len(words), **text}
    config = InternVLConfig(vision_config=VISION, text_config=text, image_token_id=2)
    images = GotOcr2ImageProcessorPil(size=SQUARE, max_patches=4)
    video = {"video_processor_type": "InternVLVideoProcessor", "size": SQUARE, "initial_shift": True}
    settings = {"image_seq_length": 4}
    chat = HubProcessor("InternVLProcessor", images, words, template("<IMG_CONTEXT>"), video, settings)
    return InternVLForConditionalGeneration(config), chat


def sliding_internvl() -> tuple[PreTrainedModel, HubProcessor]:
    """A window shorter than the image and the question in every other layer of the text model."""
    return internvl(use_sliding_window=True, sliding_window=8, layer_types=["sliding_attention", "full_attention"])


def sliding_llava() -> tuple[PreTrainedModel, HubProcessor]:
    """A window shorter than the image and the question in every layer, which its config says by one number alone."""
    return llava(model_type="mistral", sliding_window=8, num_hidden_layers=4)  # layer by layer back to the image


def chunked_llava() -> tuple[PreTrainedModel, HubProcessor]:
    """Llama 4's text model: attention within chunks of 8 positions, then a layer without positions; experts."""
    layers = {"attention_chunk_size": 8, "no_rope_layers": [1, 0], "head_dim": 8, "intermediate_size_mlp": 32}
    return llava(model_type="llama4_text", num_local_experts=2, **layers)


def llava_onevision() -> tuple[PreTrainedModel, HubProcessor]:
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
    video = {"video_processor_type": "LlavaOnevisionVideoProcessor", "size": SQUARE}
    chat = HubProcessor("LlavaOnevisionProcessor", images, words, template("<image>"), video, settings)
    return LlavaOnevisionForConditionalGeneration(config), chat


def mistral3() -> tuple[PreTrainedModel, HubProcessor]:
    """Image sizes as they are, two-dimensional positions in the vision tower, four patches merged into one."""
    words = tokenizer(special=("[IMG]", "[IMG_BREAK]", "[IMG_END]"))
    text = {**TEXT, "model_type": "mistral", "head_dim": 8, "vocab_size": len(words)}
    vision = {**VISION, "model_type": "pixtral", "image_size": 32, "head_dim": 8}
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_id=2)
    images = PixtralImageProcessorPil(size={"longest_edge": 32}, patch_size=8)
    settings = {"patch_size": 4, "spatial_merge_size": 2}
    chat = HubProcessor("PixtralProcessor", images, words, template("[IMG]"), settings=settings)
    return Mistral3ForConditionalGeneration(config), chat


def qwen(version: str) -> tuple[PreTrainedModel, HubProcessor]:
    """Positions in three dimensions, image sizes as they are.

    Version 3 also feeds image features into later layers; 3.5 has a layer of linear attention, a running state.
    """
    special = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>")
    words = bpe(*special) if version == "3.5" else tokenizer(special=special)  # 3.5 always splits text in its own way
    start, image, end, video = words.convert_tokens_to_ids(list(special))
    ids = {
        "vision_start_token_id": start,
        "image_token_id": image,
        "vision_end_token_id": end,
        "video_token_id": video,
    }
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
    name = {"2": "Qwen2VL", "2.5": "Qwen2_5_VL"}.get(version, "Qwen3VL")
    video = {"video_processor_type": f"{'Qwen3VL' if version[0] == '3' else 'Qwen2VL'}VideoProcessor", "patch_size": 4}
    chat = template("".join(special[:3]))
    return model, HubProcessor(f"{name}Processor", images, words, chat, video)


def glm4v() -> tuple[PreTrainedModel, HubProcessor]:
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
    video = {"video_processor_type": "Glm4vVideoProcessor", "patch_size": 4}
    image = "<|begin_of_image|><|image|><|end_of_image|>"
    chat = HubProcessor("Glm4vProcessor", images, words, template(image), video)
    return Glm4vForConditionalGeneration(Glm4vConfig(text_config=text, vision_config=vision, **ids)), chat


def idefics3() -> tuple[PreTrainedModel, HubProcessor]:
    """Cuts an image into tiles and adds a small copy of the whole."""
    cells = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    special = ("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *cells)
    words = tokenizer(special=special)
    text = {**TEXT, "model_type": "llama", "vocab_size": len(words)}
    vision = {**VISION, "num_hidden_layers": 1}
    config = Idefics3Config(text_config=text, vision_config=vision, image_token_id=2, scale_factor=2, pad_token_id=0)
    images = Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    chat = HubProcessor("Idefics3Processor", images, words, template("<image>"), settings={"image_seq_len": 4})
    return Idefics3ForConditionalGeneration(config), chat


def smolvlm() -> tuple[PreTrainedModel, HubProcessor]:
    """Idefics3's tiles, and a processor that wants to spell out the number of a video's frames."""
    model, idefics = idefics3()
    config = SmolVLMConfig(**{name: value for name, value in model.config.to_dict().items() if name != "model_type"})
    images = SmolVLMImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    video = {"video_processor_type": "SmolVLMVideoProcessor", "num_frames": 64, "fps": 1, "size": {"longest_edge": 16}}
    chat = HubProcessor("SmolVLMProcessor", images, idefics.words, idefics.template, video, idefics.settings)
    return SmolVLMForConditionalGeneration(config), chat


def gemma3() -> tuple[PreTrainedModel, HubProcessor]:
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
    chat = HubProcessor("Gemma3Processor", images, words, template("<boi>"), settings={"image_seq_length": 4})
    return Gemma3ForConditionalGeneration(config), chat


def paligemma() -> tuple[PreTrainedModel, HubProcessor]:
    """No chat template, a newline of its own after the text, and attention in both directions over the prompt."""
    words = tokenizer()
    text = {**TEXT, "model_type": "gemma", "head_dim": 8, "vocab_size": len(words)}
    config = PaliGemmaConfig(
        text_config=text, vision_config=VISION, projection_dim=16, hidden_size=16, image_token_id=2
    )
    images = SiglipImageProcessorPil(size=SQUARE)
    images.image_seq_length = 16
    words.bos_token = "<pad>"
    return PaliGemmaForConditionalGeneration(config), HubProcessor("PaliGemmaProcessor", images, words, None)


MLLMS = {
    "internvl": internvl,
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
    "smolvlm": smolvlm,
    "gemma3": gemma3,
    "paligemma": paligemma,
}


def on_the_hub(name: str, seed: int = 0) -> tuple[PreTrainedModel, HubProcessor]:
    """A model whose weights are wide enough for its answers to differ, and the files of its processor."""
    torch.manual_seed(seed)
    model, chat = MLLMS[name]()
    widen(model, seed)
    return model.eval(), chat


def mllm(name: str, seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The same, with the processor itself."""
    model, chat = on_the_hub(name, seed)
    return model, chat.load(model.config)
