"""What every student with aspects has, whatever its task. This file travels with saved models."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file


class AspectConfig(PretrainedConfig):
    """A configuration that knows its aspects and where the student comes from.

    Args:
        aspect_ids: Q short names of the aspects, in the bank's order.
        aspect_questions: the Q yes/no questions, in the same order.
        aspect_bank: fingerprint of the bank that ids and questions come from.
        aspect_groups: what kind of aspect each is, in the same order; None where the bank does not say.
        aspect_teacher: who answered the questions, {"model": name or id, "commit": of the Hub or None}.
        base_model: the Hub id whose weights the student started from; None for random weights or those of a folder.
        base_model_revision: the commit of these weights.
        custom_pipelines: what the code beside a saved model offers to `pipeline`; `save_pretrained` of the model fills
            it in.
        kwargs: of `PretrainedConfig`.
    """

    def __init__(
        self,
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
        super().__init__(**kwargs)
        self.aspect_ids = list(aspect_ids or [])
        self.aspect_questions = list(aspect_questions or [])
        self.aspect_bank = aspect_bank
        self.aspect_groups = aspect_groups
        self.aspect_teacher = aspect_teacher
        self.base_model = base_model
        self.base_model_revision = base_model_revision
        self.custom_pipelines = custom_pipelines
        if len(self.aspect_ids) != len(self.aspect_questions):
            raise ValueError(
                f"Each aspect needs one id and one question; received {len(self.aspect_ids)} ids and "
                f"{len(self.aspect_questions)} questions."
            )

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


class Start(NamedTuple):
    """What a new student starts from.

    Attributes:
        config: of the source, a student or an inner model.
        pretrained: whether the source has weights to take.
        facts: what `AspectConfig` is to know of bank and source.
        options: for `from_pretrained` of the source.
    """

    config: PretrainedConfig
    pretrained: bool
    facts: dict[str, Any]
    options: dict[str, Any]


class AspectModel(PreTrainedModel):
    """A model around one of transformers, which it calls `base_model_prefix`, with aspects beside its own outputs."""

    main_input_name = "pixel_values"
    # The loss is a mean over the batch: the Trainer has to divide it by the accumulation steps itself.
    accepts_loss_kwargs = False
    pipelines: dict[str, dict[str, Any]] = {}  # what the code that is saved along offers to `pipeline`

    def _options(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What the inner model's `forward` is given of the options of ours."""
        options = {name: value for name, value in kwargs.items() if name != "num_items_in_batch"}  # of a Trainer
        for name in ("output_hidden_states", "output_attentions"):
            if options.get(name) is None and getattr(self.config, name):
                options[name] = True
        return options

    @classmethod
    def _start(
        cls, source: str | Path | PretrainedConfig, bank: Any, pretrained: bool, kwargs: dict[str, Any]
    ) -> Start:
        """What a new student starts from; `kwargs` are those of `from_pretrained`."""
        facts = {} if bank is None else aspects_of(bank)
        kwargs = {**kwargs, "trust_remote_code": False}  # a student carries no code but its own
        if isinstance(source, PretrainedConfig):
            return Start(source, False, facts, kwargs)
        if not Path(source).is_dir():
            kwargs["revision"] = commit = model_commit(source, **kwargs)
            facts |= {"base_model": str(source), "base_model_revision": commit} if pretrained else {}
        config = inner_config(cls.config_class, source, cls.base_model_prefix, **kwargs)
        is_student = config.model_type == cls.config_class.model_type
        if is_student and pretrained and "base_model" not in facts:  # of a folder: what that student began with
            facts |= {"base_model": config.base_model, "base_model_revision": config.base_model_revision}
        return Start(config, pretrained, facts, kwargs)

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        """The inner model knows how: those of timm do it in a way of their own."""
        getattr(self, self.base_model_prefix)._set_gradient_checkpointing(*args, **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """As usual; the code that is saved along has the aspect pipeline, and the config announces it."""
        self.config.custom_pipelines = self.pipelines if self.config.num_aspects else None
        return super().save_pretrained(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As usual. Another `id2label` renames the classes; for another number of them, the head must be a new one.

        Raises:
            ValueError: another number of classes, without `ignore_mismatched_sizes=True`.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):
                raise
            raise ValueError(
                f"The student {pretrained_model_name_or_path} has another number of classes or aspects than was asked "
                "for: leave num_labels out and pass as many names as it has, or ignore_mismatched_sizes=True for a "
                "new, untrained head."
            ) from error


def build(auto_class: Any, config: PretrainedConfig) -> PreTrainedModel:
    """The inner model, with random weights; ImportError says what it needs that is not installed."""
    try:
        return auto_class.from_config(config, trust_remote_code=False)
    except ImportError as error:
        raise ImportError(" ".join(str(error).split())) from error


def inner_config(config_class: type, name: str, what: str, **kwargs: Any) -> PretrainedConfig:
    """The configuration in a folder or on the Hub: of a student, or of a model of transformers.

    Raises:
        ValueError: it needs code of its own; `what` is what the message calls a model that does not.
    """
    content, _ = PretrainedConfig.get_config_dict(name, **kwargs)
    if content.get("model_type") == config_class.model_type:
        return config_class.from_pretrained(name, **kwargs)
    if content.get("auto_map") and content.get("model_type") not in CONFIG_MAPPING:
        raise ValueError(
            f"{name} needs code of its own (trust_remote_code), which a student cannot carry: choose a {what} that "
            "transformers has itself."
        )
    return AutoConfig.from_pretrained(name, **kwargs)


def refuse_own_code(kind: str, what: str) -> None:
    """Raise ValueError where transformers has no such model type."""
    if kind not in CONFIG_MAPPING:
        raise ValueError(
            f"The {what}'s model type {kind!r} needs code of its own (trust_remote_code), which a student cannot "
            "carry: choose an architecture that transformers has."
        )


def aspects_of(bank: Any) -> dict[str, Any]:
    """What a configuration says of an `AspectBank`, as arguments of `AspectConfig`."""
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


def model_commit(repo: str, revision: str | None = None, **kwargs: Any) -> str | None:
    """The commit of the configuration that `from_pretrained` would take, or the revision as it came."""
    names = ("token", "cache_dir", "local_files_only", "force_download", "subfolder")
    options = {name: kwargs[name] for name in names if name in kwargs}
    path = cached_file(repo, "config.json", revision=revision, **options)
    snapshot = re.search(r"/snapshots/([0-9a-f]{40})/", Path(path).as_posix())
    return snapshot[1] if snapshot else revision


def scored_answers(config: AspectConfig, aspect_logits: torch.Tensor) -> list[dict[str, Any]]:
    """For [Q] aspect scores a list of `label`, `question` and `score` (the probability of yes), the highest first."""
    scores = aspect_logits.float().sigmoid().tolist()
    aspects = zip(config.aspect_ids, config.aspect_questions, scores)
    answers = [{"label": name, "question": question, "score": score} for name, question, score in aspects]
    return sorted(answers, key=lambda answer: -answer["score"])


def answer_lines(answers: list[dict[str, Any]]) -> list[str]:
    """Answers for a terminal, a line each: `  striped wings: 0.93`."""
    return [f"  {printable(answer['label'])}: {answer['score']:.2f}" for answer in answers]


def printable(text: str) -> str:
    """Names that strangers may have chosen, without what moves a terminal's cursor."""
    return "".join(c if c.isprintable() or c in "\u200c\u200d" else c.encode("unicode_escape").decode() for c in text)
