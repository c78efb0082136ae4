"""A tiny random model of every image-classification architecture of transformers, and an image processor for it."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING, BaseImageProcessor, PretrainedConfig, PreTrainedModel
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.utils import is_torchvision_available


SIDE = 32
STEPS = {"hidden_sizes": [8, 16], "depths": [1, 1]}
BLOCKS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 8}
WIDE = {**BLOCKS, "intermediate_size": 32}
LEVIT = {"hidden_sizes": [16] * 3, "num_attention_heads": [2] * 3, "depths": [1] * 3, "key_dim": [4] * 3}
SWIN = {"image_size": SIDE, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
FOUR = {"hidden_sizes": [8] * 4, "depths": [1] * 4}
PYRAMID = {**FOUR, "num_attention_heads": [1] * 4}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 20}
TEXT |= {"bos_token_id": 1, "eos_token_id": 2}
TWO_TOWERS = {"vision_config": WIDE, "text_config": TEXT}
EFFICIENT = {"in_channels": [8], "out_channels": [8], "strides": [1], "kernel_sizes": [3], "depthwise_padding": []}
EFFICIENT |= {"num_block_repeats": [1], "expand_ratios": [1], "batch_norm_eps": 1e-9, "width_coefficient": 0.1}
FOCAL = {"hidden_sizes": [8, 8], "depths": [1, 1], "focal_levels": [1, 1], "focal_windows": [3, 3]}
HIERA = {"depths": [1, 1], "num_heads": [1, 1], "num_query_pool": 1, "masked_unit_attention": [True, False]}
HGNET = {"embedding_size": 8, "depths": [1, 1], "hidden_sizes": [8, 8], "stem_channels": [3, 8, 8]}
HGNET |= {f"stage_{name}_channels": [8, 8] for name in ("in", "mid", "out")}
HGNET |= {"stage_num_blocks": [1, 1], "stage_downsample": [False, True], "stage_downsample_strides": [2, 2]}
HGNET |= {"stage_light_block": [False, True], "stage_kernel_size": [3, 3], "stage_numb_of_layers": [1, 1]}
PERCEIVER = {"num_latents": 4, "d_latents": 16, "d_model": 16, "num_self_attends_per_block": 1}
TEXTNET = {"stem_out_channels": 8, "hidden_sizes": [8] * 5, "conv_layer_kernel_sizes": [[[3, 3]]] * 4}

SETTINGS = {
    "beit": WIDE,
    "bit": {**STEPS, "embedding_size": 8, "num_groups": 2},
    "clip": TWO_TOWERS,
    "convnext": {**STEPS, "num_stages": 2},
    "convnextv2": {**STEPS, "num_stages": 2},
    "cvt": {"embed_dim": [8] * 3, "num_heads": [1] * 3, "depth": [1, 2, 3]},
    "data2vec-vision": WIDE,
    "deit": WIDE,
    "dinov2": BLOCKS,
    "dinov2_with_registers": BLOCKS,
    "donut-swin": SWIN,
    "efficientnet": {**EFFICIENT, "hidden_dim": 128, "image_size": SIDE},
    "focalnet": {**FOCAL, "image_size": SIDE, "embed_dim": 8},
    "hgnet_v2": HGNET,
    "hiera": {**HIERA, "embed_dim": 8, "image_size": [SIDE, SIDE], "masked_unit_size": [4, 4]},
    "ijepa": WIDE,
    "levit": {"image_size": SIDE, **LEVIT, "mlp_ratio": [2] * 3, "attention_ratio": [2] * 3},
    "metaclip_2": TWO_TOWERS,
    "mobilenet_v1": {"depth_multiplier": 0.125, "image_size": SIDE},
    "mobilenet_v2": {"depth_multiplier": 0.1, "image_size": SIDE, "depth_divisible_by": 4, "min_depth": 4},
    "mobilevit": {"image_size": SIDE, "hidden_sizes": [8] * 3, "neck_hidden_sizes": [8] * 7, "num_attention_heads": 1},
    "mobilevitv2": {"base_attn_unit_dims": [8] * 3, "width_multiplier": 0.1, "n_attn_blocks": [1] * 3},
    "perceiver": {**PERCEIVER, "num_self_attention_heads": 2, "num_cross_attention_heads": 1, "image_size": SIDE},
    "poolformer": FOUR,
    "pvt": {"image_size": SIDE, **PYRAMID},
    "pvt_v2": {"image_size": SIDE, **PYRAMID},
    "regnet": {**STEPS, "embedding_size": 8, "groups_width": 8},
    "resnet": {**STEPS, "embedding_size": 8, "layer_type": "basic"},
    "segformer": {**PYRAMID, "decoder_hidden_size": 8},
    "siglip": TWO_TOWERS,
    "swiftformer": {"image_size": SIDE, "depths": [1] * 4, "embed_dims": [8] * 4},
    "swin": SWIN,
    "swinv2": {**SWIN, "pretrained_window_sizes": [0, 0]},
    "textnet": {**TEXTNET, "image_size": [SIDE, SIDE], "conv_layer_strides": [[2]] * 4},
    "vit": WIDE,
    "vit_msn": WIDE,
}
# No students: what they take is not an image's pixels, or what they give is no class scores.
OTHERS = {
    "imagegpt": {"vocab_size": 17, "n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2},
    "pp_lcnet": {"scale": 0.1, "class_expand": 16},
    "shieldgemma2": {},
    "siglip2": {"vision_config": {name: WIDE[name] for name in WIDE if name != "image_size"}, "text_config": TEXT},
}
# Students where another library is installed.
LIBRARIES = {
    "dinat": ("natten", {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "kernel_size": 3}),
    "timm_wrapper": ("timm", {"architecture": "resnet10t", "model_args": {"in_chans": 3}}),
}
SIDES = {"mobilevitv2": 64}  # a larger image where strides leave nothing of a small one


def config(name: str) -> PretrainedConfig:
    settings = (SETTINGS | OTHERS | {key: value for key, (_, value) in LIBRARIES.items()})[name]
    return CONFIG_MAPPING[name](**settings)


def settle(model: PreTrainedModel, pixels: torch.Tensor) -> None:
    """Take the statistics of batch norms from these images: with those of new weights, deep models give the same
    outputs for all images."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over the passes
    model.train()
    with torch.no_grad():
        model(pixels)
    model.eval()


def processor(name: str) -> BaseImageProcessor:
    """The architecture's own, of images as small as its model's."""
    side = SIDES.get(name, SIDE)
    kind = getattr(transformers, (IMAGE_PROCESSOR_MAPPING_NAMES.get(name) or {}).get("pil", "ViTImageProcessorPil"))
    if kind.__name__.startswith("TimmWrapper"):
        return kind(pretrained_cfg={"input_size": [3, side, side]})
    square = {"height": side, "width": side}
    by_edge = kind.__name__.startswith(("ConvNext", "TextNet"))
    try:
        made = kind(size={"shortest_edge": side} if by_edge else square, crop_size=square)
    except ImportError as error:  # some releases of transformers have some of Pillow's processors ask for it
        if is_torchvision_available():
            raise
        pytest.skip(f"{kind.__name__} needs torchvision here: {error}")
    if kind.__name__.startswith("TextNet"):  # it keeps the ratio of the sides
        made.do_center_crop = True
    return made
