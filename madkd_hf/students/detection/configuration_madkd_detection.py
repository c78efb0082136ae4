"""Configuration of a detector with aspect outputs. It travels with saved models: it must stay self-contained."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.utils import cached_file


ASPECT_LEVELS = ("image", "object")


class MadkdDetectionConfig(PretrainedConfig):
    """An object-detection architecture with a head of Q aspects beside those of classes and boxes.

    Args:
        detector_config: configuration (or its dictionary) of any architecture of `AutoModelForObjectDetection` that
            gives the states of its queries.
        aspect_level: what the questions are about: "object", each object by itself, or "image", the image as a whole.
        aspect_ids: Q short names of the aspects, in the bank's order.
        aspect_questions: the Q yes/no questions, in the same order.
        aspect_bank: fingerprint of the bank that ids and questions come from.
        aspect_groups: what kind of aspect each is, in the same order; None where the bank does not say.
        aspect_teacher: who answered the questions, {"model": name or id, "commit": of the Hub or None}.
        base_model: the Hub id whose weights the student started from; None for random weights or those of a folder.
        base_model_revision: the commit of these weights.
        custom_pipelines: what the code beside a saved model offers to `pipeline`; `save_pretrained` of the model fills
            it in.
        kwargs: of `PretrainedConfig`, among them `id2label`: the C classes, by default those of the detector.
            `id2label` and `label2id` are the detector's too, whichever of the two configurations was given them.
    """

    model_type = "madkd_detection"
    sub_configs = {"detector_config": AutoConfig}
    keys_to_ignore_at_inference = ["aspect_logits", "matches"]

    def __init__(
        self,
        detector_config: dict[str, Any] | PretrainedConfig | None = None,
        aspect_level: str = "object",
        aspect_ids: list[str] | None = None,
        aspect_questions: list[str] | None = None,
        aspect_bank: str | None = None,
        aspect_groups: list[str] | None = None,
        aspect_teacher: dict[str, str | None] | None = None,
        base_model: str | None = None,
        base_model_revision: str | None = None,
        custom_pipelines: dict[str, dict[str, Any]] | None = None,
        **kwargs: Any,
    ):
        if isinstance(detector_config, PretrainedConfig):
            kind, detector = detector_config.model_type, copy.deepcopy(detector_config)
        else:  # yolos: the only one whose default configuration asks for no other library
            kind, detector = (detector_config or {"model_type": "yolos"})["model_type"], None
        if kind not in CONFIG_MAPPING:
            raise ValueError(
                f"The detector's model type {kind!r} needs code of its own (trust_remote_code), which a student "
                "cannot carry: choose an architecture that transformers has."
            )
        detector = detector or AutoConfig.for_model(**(detector_config or {"model_type": kind}))
        detector._name_or_path = ""  # a folder of this machine, maybe
        detector.__dict__.pop("auto_map", None)  # code that does not come along
        if kwargs.get("id2label") is None and kwargs.get("num_labels") is None:
            kwargs["id2label"] = detector.id2label
        if kwargs.get("id2label") is not None:
            kwargs["id2label"] = {int(index): name for index, name in kwargs["id2label"].items()}
            kwargs["label2id"] = {name: index for index, name in kwargs["id2label"].items()}
        super().__init__(**kwargs)
        self.aspect_level = aspect_level
        self.aspect_ids = list(aspect_ids or [])
        self.aspect_questions = list(aspect_questions or [])
        self.aspect_bank = aspect_bank
        self.aspect_groups = aspect_groups
        self.aspect_teacher = aspect_teacher
        self.base_model = base_model
        self.base_model_revision = base_model_revision
        self.custom_pipelines = custom_pipelines
        self.detector_config = detector
        self.id2label, self.label2id = self.id2label, self.label2id  # the detector's, from here on
        if aspect_level not in ASPECT_LEVELS:
            raise ValueError(f'aspect_level is "object" or "image"; received {aspect_level!r}.')
        if len(self.aspect_ids) != len(self.aspect_questions):
            raise ValueError(
                f"Each aspect needs one id and one question; received {len(self.aspect_ids)} ids and "
                f"{len(self.aspect_questions)} questions."
            )

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "id2label" and "detector_config" in self.__dict__:
            value = {int(index): label for index, label in value.items()}
            self.label2id = {label: index for index, label in value.items()}
        super().__setattr__(name, value)
        if name in ("id2label", "label2id") and "detector_config" in self.__dict__:
            setattr(self.detector_config, name, copy.copy(value))
            if hasattr(self.detector_config, "num_classes"):  # a count of its own, which would win over the names
                self.detector_config.num_classes = len(value)

    @property
    def num_aspects(self) -> int:
        """Q."""
        return len(self.aspect_ids)

    @property
    def custom_pipelines(self) -> dict[str, dict[str, Any]]:
        """Tasks of `pipeline` beside the usual ones: a copy, because `pipeline` writes classes into what it gets."""
        return copy.deepcopy(self._custom_pipelines or {})

    @custom_pipelines.setter
    def custom_pipelines(self, value: dict[str, dict[str, Any]] | None) -> None:
        self._custom_pipelines = value

    def to_dict(self) -> dict[str, Any]:
        content = super().to_dict()
        pipelines = content.pop("_custom_pipelines", None)
        return {**content, **({"custom_pipelines": pipelines} if pipelines else {})}

    @property
    def aspect_width(self) -> int:
        """How wide what the aspect head reads is; some encoders are of another width than the queries."""
        names = ["d_model", "hidden_size"]
        if self.aspect_level == "image":
            names = ["encoder_hidden_dim", *names]
        return next(getattr(self.detector_config, name) for name in names if hasattr(self.detector_config, name))


def aspects_of(bank: Any) -> dict[str, Any]:
    """What a configuration says of an `AspectBank`, as arguments of `MadkdDetectionConfig`."""
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


def commit_of(repo: str, revision: str | None = None, **kwargs: Any) -> str | None:
    """The commit of the configuration that `from_pretrained` would take, or the revision as it came."""
    names = ("token", "cache_dir", "local_files_only", "force_download", "subfolder")
    options = {name: kwargs[name] for name in names if name in kwargs}
    path = cached_file(repo, "config.json", revision=revision, **options)
    found = re.search(r"/snapshots/([0-9a-f]{40})/", Path(path).as_posix())
    return found[1] if found else revision
