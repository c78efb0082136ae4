"""Whether a model can become a student, asked before data are loaded or labelled: no weights are read for it."""

from __future__ import annotations

from transformers import PretrainedConfig

from ..base.models import check_model
from ..models.configuration_madkd import MadkdConfig
from ..models.modeling_madkd import check_architecture, config_of, head_parameters


def check_backbone(backbone: str, pretrained: bool = True, revision: str | None = None) -> None:
    """Refuses what `MadkdForImageClassification.from_backbone` or its image processor would fail at.

    Args:
        backbone: id of an image classifier on the Hub, or a folder.
        pretrained: whether its weights are wanted.

    Raises:
        ValueError, ImportError: in one sentence.
    """

    def check(config: PretrainedConfig) -> None:
        check_architecture(config)
        head_parameters(config.backbone_config if isinstance(config, MadkdConfig) else config)

    check_model(backbone, pretrained, revision, config_of, check)
