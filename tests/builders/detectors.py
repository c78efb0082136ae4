"""Small detectors."""

from __future__ import annotations

import pytest
import torch
import transformers
from builders import tiny
from transformers import (
    ConditionalDetrConfig,
    DeformableDetrConfig,
    DetrConfig,
    DetrImageProcessorPil,
    DFineConfig,
    LwDetrConfig,
    LwDetrViTConfig,
    ResNetConfig,
    RTDetrConfig,
    RTDetrV2Config,
    YolosConfig,
)

from madkd_hf import MadkdForObjectDetection


CLASSES = {0: "cat", 1: "dog", 2: "cow"}


N, Q, SIDE = 6, 3, 64


LAYERS = {"encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}


DETR = LAYERS | {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "d_model": 32, "num_queries": N, "dropout": 0.0}


MAPS = {"encoder_hidden_dim": 16, "encoder_in_channels": [8, 16, 16], "decoder_in_channels": [16] * 3}


RT_DETR = DETR | MAPS | {"decoder_n_points": 2, "num_denoising": 4}


VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 16}


LW_DETR = {"decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 2, "projector_scale_factors": [1.0]}


LW_DETR |= {"d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 16, "num_queries": N, "hidden_expansion": 0.5}


def backbone(*stages: int) -> dict:
    """A ResNet of strides 4, 8, 16 and 32, of which a detector takes these stages."""
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "layer_type": "basic"}
    return {"backbone_config": ResNetConfig(**sizes, out_features=[f"stage{i}" for i in stages])}


PLAIN = backbone(4) | {"use_timm_backbone": False}


SCALES = backbone(2, 3, 4) | {"use_timm_backbone": False}


TWO_STAGE = {"two_stage": True, "with_box_refine": True, "two_stage_num_proposals": N}


ARCHITECTURES = {
    "detr": lambda: DetrConfig(**DETR, **PLAIN, auxiliary_loss=True),
    "conditional_detr": lambda: ConditionalDetrConfig(**DETR, **PLAIN),
    "deformable_detr": lambda: DeformableDetrConfig(**DETR, **SCALES),
    "deformable_detr, two stages": lambda: DeformableDetrConfig(**DETR, **SCALES, **TWO_STAGE, auxiliary_loss=True),
    "rt_detr": lambda: RTDetrConfig(**RT_DETR, **backbone(2, 3, 4)),
    "rt_detr_v2": lambda: RTDetrV2Config(**RT_DETR, **backbone(2, 3, 4)),
    "d_fine": lambda: DFineConfig(**RT_DETR | {"decoder_n_points": [2] * 3}, **backbone(2, 3, 4), lqe_hidden_dim=8),
    "yolos": lambda: YolosConfig(**VIT | {"image_size": [SIDE] * 2}, intermediate_size=16, num_detection_tokens=N),
}


def grouped() -> LwDetrConfig:
    vit = LwDetrViTConfig(**VIT, num_windows=4, pretrain_image_size=SIDE, window_block_indices=[0], out_indices=[1, 2])
    return LwDetrConfig(**LW_DETR, backbone_config=vit, group_detr=2)


def grouped_rf_detr():
    if not hasattr(transformers, "RfDetrConfig"):
        pytest.skip("this transformers has no RF-DETR")
    windows = {"num_windows": 2, "window_block_indexes": [0], "out_indices": [1, 2], "mlp_ratio": 2}
    vit = transformers.RfDetrDinov2Config(**VIT, **windows)
    return transformers.RfDetrConfig(**LW_DETR, backbone_config=vit, group_detr=2)


GROUPED = {"lw_detr": grouped, "rf_detr": grouped_rf_detr}


def detector(name: str = "detr", level: str = "object", questions: int = Q) -> MadkdForObjectDetection:
    torch.manual_seed(0)
    bank = tiny.bank(questions) if questions else None
    config = (ARCHITECTURES | GROUPED)[name]()
    model = MadkdForObjectDetection.from_detector(config, CLASSES, bank, aspect_level=level)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # boxes, offsets and embeddings of tiny models are all but equal at first
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


def pixels(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def processor() -> DetrImageProcessorPil:
    return DetrImageProcessorPil(size={"height": SIDE, "width": SIDE})
