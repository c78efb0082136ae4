"""The student that detects: a detector of transformers with an aspect head. This file travels with saved models."""

from __future__ import annotations

import copy
import inspect
import re
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from transformers import AutoConfig, AutoModelForObjectDetection, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput, cached_file

from .configuration_madkd_detection import MadkdDetectionConfig


@dataclass
class MadkdObjectDetectionOutput(ModelOutput):
    """
    Args:
        loss: the detector's own loss, when labels were given.
        loss_dict: its parts by name.
        logits: [B, N, C] or [B, N, C + 1] class scores of the N queries, as the detector has them.
        pred_boxes: [B, N, 4] boxes (center x, center y, width, height), in parts of the image.
        aspect_logits: aspect scores before the sigmoid, in the bank's order: [B, N, Q] of the queries, or [B, Q] of
            the images, by the configuration's `aspect_level`.
        matches: which query the detector's own matcher gave to which object in the last layer, when labels were given:
            B pairs of index tensors, into the N queries and into the image's objects.
    """

    loss: torch.FloatTensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    logits: torch.FloatTensor | None = None
    pred_boxes: torch.FloatTensor | None = None
    aspect_logits: torch.FloatTensor | None = None
    matches: list[tuple[torch.Tensor, torch.Tensor]] | None = None


class MadkdForObjectDetection(PreTrainedModel):
    """A detector that also answers Q aspect questions, about each object or about the image.

    About objects, the aspect head reads what the class head reads: the last state of each query. About the image, it
    reads the mean over all positions (of all scales) of the encoder's output, padding left out; in a detector without
    an encoder of its own, whose queries run along with the patches (YOLOS), the mean over the patches. Classes and
    boxes are those of the detector, which `to_plain` gives back; queries that only training has are left out.
    """

    config_class = MadkdDetectionConfig
    base_model_prefix = "detector"
    main_input_name = "pixel_values"
    # The loss is a mean over the batch: the Trainer has to divide it by the accumulation steps itself.
    accepts_loss_kwargs = False

    def __init__(self, config: MadkdDetectionConfig):
        super().__init__(config)
        self.detector = AutoModelForObjectDetection.from_config(config.detector_config)
        _check_outputs(self.detector, config.aspect_level)
        self.takes_mask = "pixel_mask" in inspect.signature(self.detector.forward).parameters
        self.aspect_head = nn.Linear(_width(config.detector_config, config.aspect_level), config.num_aspects)
        self.supports_gradient_checkpointing = self.detector.supports_gradient_checkpointing
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
    ) -> MadkdObjectDetectionOutput:
        """
        Args:
            pixel_values: [B, channels, height, width], as the image processor makes them.
            pixel_mask: [B, height, width], 1 where the image is and 0 where it was padded.
            labels: of each image `class_labels` [n] and `boxes` [n, 4], as the detector wants them. `aspect_logits`
                may be among them: they are for the aspect loss.
        """
        if labels is not None:
            labels = [{name: label[name] for name in label if name != "aspect_logits"} for label in labels]
        mask = {"pixel_mask": pixel_mask} if self.takes_mask and pixel_mask is not None else {}
        about_image = self.config.aspect_level == "image"
        encoder = getattr(self.detector.base_model, "encoder", None) if about_image and mask else None
        with _matcher_calls(labels is not None) as calls, _mask_of(encoder) as encoder_mask:
            outputs = self.detector(pixel_values=pixel_values, labels=labels, return_dict=True, **mask)
        # The loss matches the last layer first, without the queries that stand in front of the others for denoising.
        rows, matches = calls[0] if calls else (outputs.logits.shape[1], None)
        if about_image:
            features = self._pooled(outputs, rows, pixel_values.shape[-2:], pixel_mask, encoder_mask)
        else:
            features = _states(outputs)[:, -rows:]
        return MadkdObjectDetectionOutput(
            loss=outputs.loss,
            loss_dict=outputs.loss_dict,
            logits=outputs.logits[:, -rows:],
            pred_boxes=outputs.pred_boxes[:, -rows:],
            aspect_logits=self.aspect_head(features),
            matches=matches,
        )

    def _pooled(
        self,
        outputs: ModelOutput,
        rows: int,
        shape: tuple[int, int],
        pixel_mask: torch.Tensor | None,
        encoder_mask: list[torch.Tensor],
    ) -> torch.Tensor:
        """The mean over the positions of the images: [B, width].

        Args:
            rows: N, the number of queries.
            shape: height and width of the batch, in pixels.
            pixel_mask: [B, height, width], where the images are.
            encoder_mask: one [B, positions], where the images are among the encoder's positions, if it was told.
        """
        features = outputs.get("encoder_last_hidden_state")
        if features is None and not _joins_patches(self.detector.config):
            raise ValueError(_no("features of the image", self.detector, 'take aspect_level="object"'))
        if isinstance(features, torch.Tensor) and features.ndim == 3:
            positions, mask = features, next(iter(encoder_mask), None)
        else:
            maps = [self._patches(outputs, rows, shape)] if features is None else features
            positions = torch.cat([each.flatten(2).transpose(1, 2) for each in maps], dim=1)
            mask = None
            if pixel_mask is not None:  # as detectors make their masks smaller
                pixel_mask = pixel_mask[:, None].float()
                masks = [nn.functional.interpolate(pixel_mask, size=each.shape[-2:]).flatten(1) for each in maps]
                mask = torch.cat(masks, dim=1)
        if mask is None:
            return positions.mean(dim=1)
        weights = mask.to(positions.dtype)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
        return (weights[:, None] @ positions)[:, 0]

    def _patches(self, outputs: ModelOutput, rows: int, shape: tuple[int, int]) -> torch.Tensor:
        """[B, width, height, width of the grid]: the patch tokens, which stand in front of the query tokens."""
        size = self.config.detector_config.patch_size
        sizes = (size, size) if isinstance(size, int) else size
        grid = [pixels // each for pixels, each in zip(shape, sizes)]
        tokens = _states(outputs)[:, :-rows][:, -grid[0] * grid[1] :]
        return tokens.transpose(1, 2).unflatten(2, grid)

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        """The detector knows how."""
        self.detector._set_gradient_checkpointing(*args, **kwargs)

    @classmethod
    def from_detector(
        cls,
        detector: str | PretrainedConfig,
        id2label: dict[int, str],
        bank: Any = None,
        aspect_level: str = "object",
        pretrained: bool = True,
        **kwargs: Any,
    ) -> MadkdForObjectDetection:
        """A new student: the detector keeps its pretrained weights, save those whose shape the classes change.

        Args:
            detector: id of a detector on the Hub, a folder, or a configuration (then all weights are random). Of a
                student, the detector.
            id2label: the C classes. Where the detector has as many, its class head is kept.
            bank: an `AspectBank` of Q questions; without one the student is the plain detector.
            aspect_level: "object" or "image", what the questions are about.
            pretrained: False takes the architecture alone from the id or folder, as for training from scratch.
            kwargs: of `from_pretrained` (`revision`, `token`, `cache_dir`, `trust_remote_code`, ...).
        """
        origin = {} if bank is None else _aspects_of(bank)
        if isinstance(detector, PretrainedConfig):
            config, pretrained = copy.deepcopy(detector), False
        else:
            if not Path(detector).is_dir():
                kwargs["revision"] = commit = _commit_of(detector, **kwargs)
                origin |= {"base_model": str(detector), "base_model_revision": commit} if pretrained else {}
            config = AutoConfig.from_pretrained(detector, **kwargs)
        is_student = config.model_type == MadkdDetectionConfig.model_type
        if is_student and pretrained and "base_model" not in origin:  # of a folder: what that student began with
            origin |= {"base_model": config.base_model, "base_model_revision": config.base_model_revision}
        config.id2label = {int(index): name for index, name in id2label.items()}
        config.label2id = {name: index for index, name in config.id2label.items()}
        model = cls(
            MadkdDetectionConfig(config.detector_config if is_student else config, aspect_level=aspect_level, **origin)
        )
        if pretrained:
            source = AutoModelForObjectDetection.from_pretrained(
                detector, config=config, ignore_mismatched_sizes=True, **kwargs
            )
            model.detector.load_state_dict((source.detector if is_student else source).state_dict())
        return model

    def to_plain(self) -> PreTrainedModel:
        """The bare transformers detector: the same classes and boxes, no aspects, no code of ours.

        Returns:
            A copy of the detector, of its own class.
        """
        plain = copy.deepcopy(self.detector)
        plain.zero_grad()
        return plain


def _check_outputs(detector: nn.Module, level: str) -> None:
    """What can be said before the first image, from the class of what the detector's forward says it returns.

    Raises:
        ValueError: it has no states of queries, or no features of the image.
    """
    promised = inspect.signature(detector.forward).return_annotation
    for each in typing.get_args(promised) or (promised,):
        if not (inspect.isclass(each) and issubclass(each, ModelOutput)):
            continue
        fields = each.__dataclass_fields__
        if "last_hidden_state" not in fields or "pred_boxes" not in fields:
            raise ValueError(_no("states of its queries", detector, 'take a relative of "detr" or "yolos"'))
        if level == "image" and "encoder_last_hidden_state" not in fields and not _joins_patches(detector.config):
            raise ValueError(_no("features of the image", detector, 'take aspect_level="object"'))


def _joins_patches(config: PretrainedConfig) -> bool:
    """Queries run along with the patches, whose states come with theirs: YOLOS, and what calls its setting so."""
    return hasattr(config, "num_detection_tokens")


def _no(what: str, detector: nn.Module, remedy: str) -> str:
    return f"{type(detector).__name__} gives no {what} for the aspect head to read: {remedy}."


def _states(outputs: ModelOutput) -> torch.Tensor:
    """[B, rows, width]: the last states, those of the queries at the end.

    Raises:
        ValueError: there are none.
    """
    if outputs.get("last_hidden_state") is None:
        raise ValueError(
            f"The aspect head reads `last_hidden_state`, the states of the queries, and {type(outputs).__name__} came "
            'without: take a relative of "detr" or "yolos".'
        )
    return outputs.last_hidden_state


def _width(config: PretrainedConfig, level: str) -> int:
    """How wide what the aspect head reads is; some encoders are of another width than the queries."""
    names = ["d_model", "hidden_size"]
    if level == "image":
        names = ["encoder_hidden_dim", *names]
    return next(getattr(config, name) for name in names if hasattr(config, name))


@contextmanager
def _matcher_calls(wanted: bool) -> Iterator[list[tuple[int, list[tuple[torch.Tensor, torch.Tensor]]]]]:
    """How many queries a matcher was given, and what it answered, call by call.

    A detector builds its matcher anew for every loss and keeps what it answers to itself.
    """
    calls = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if type(module).__name__.endswith("HungarianMatcher"):
            calls.append((inputs[0]["logits"].shape[1], output))

    handle = register_module_forward_hook(note) if wanted else None  # every module pays a little for it
    try:
        yield calls
    finally:
        if handle is not None:
            handle.remove()


@contextmanager
def _mask_of(encoder: nn.Module | None) -> Iterator[list[torch.Tensor]]:
    """The `attention_mask` over its positions that the encoder is given, if any."""
    masks = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs.get("attention_mask") is not None:
            masks.append(kwargs["attention_mask"])

    handle = None if encoder is None else encoder.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield masks
    finally:
        if handle is not None:
            handle.remove()


def _aspects_of(bank: Any) -> dict[str, Any]:
    groups = [aspect.group for aspect in bank]
    return {
        "aspect_ids": bank.ids,
        "aspect_questions": bank.questions,
        "aspect_bank": bank.fingerprint,
        "aspect_groups": groups if any(groups) else None,
        "aspect_teacher": _teacher_of(bank.provenance),
    }


def _teacher_of(provenance: dict[str, Any] | None) -> dict[str, str | None] | None:
    """Model and commit; of a folder only the name, which tells a stranger more than a path of another machine."""
    name = (provenance or {}).get("model")
    if not name:
        return None
    on_the_hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not Path(name).exists()
    commit = provenance.get("commit")
    if commit is None and re.fullmatch("[0-9a-f]{40}", provenance.get("revision") or ""):
        commit = provenance["revision"]
    return {"model": name if on_the_hub else Path(name).name, "commit": commit}


def _commit_of(repo: str, revision: str | None = None, **kwargs: Any) -> str | None:
    """The commit of the configuration that `from_pretrained` would take, or the revision as it came."""
    names = ("token", "cache_dir", "local_files_only", "force_download", "subfolder")
    options = {name: kwargs[name] for name in names if name in kwargs}
    path = cached_file(repo, "config.json", revision=revision, **options)
    found = re.search(r"/snapshots/([0-9a-f]{40})/", Path(path).as_posix())
    return found[1] if found else revision


MadkdDetectionConfig.register_for_auto_class()
MadkdForObjectDetection.register_for_auto_class("AutoModelForObjectDetection")
