"""Whether a model can become a student, asked before data are loaded or labelled: no weights are read for it."""

from __future__ import annotations

from transformers import PretrainedConfig

from ..base.models import check_model
from ..models.configuration_madkd import MadkdConfig
from ..models.modeling_madkd import MadkdForImageClassification, check_architecture, head_parameters


def check_backbone(backbone: str, pretrained: bool = True, revision: str | None = None) -> None:
    """Refuse what `MadkdForImageClassification.from_backbone` or its image processor would fail at; reads no weights.

    Raises:
        ValueError, ImportError: in one sentence.
    """

    def check(config: PretrainedConfig) -> None:
        check_architecture(config)
        head_parameters(config.backbone_config if isinstance(config, MadkdConfig) else config)

    check_model(MadkdForImageClassification, backbone, pretrained, revision, check)
