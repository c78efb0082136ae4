"""The card of a student: plain or with aspects, how to use it, what it scored, and what the aspects did for it."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from ...data.target_facts import TargetFacts
from ...report.comparison import markdown_table, table
from ...text import as_list, code, front, markdown, python
from ..sources import HUB_ID, DataSource, link
from ..upload import TAG, HubRepo
from .comparison import comparison_text, copy_figures, read_comparison
from .results import Evaluation, eval_results, leaderboard_file, measured_on, published_evaluations, results_table


TEMPLATE = Path(__file__).with_name("student.md")
EXPORTED, BECAUSE = ("onnx/*.onnx", "openvino/*.xml", "executorch/*.pte"), "because.json"
LEADERBOARDS = ".eval_results/madkd.yaml"


@dataclass(frozen=True)
class StudentFacts:
    """What the card tells beyond what the student knows of itself.

    Attributes:
        dataset: what it was trained on.
        datasets: Hub ids of datasets, beside that one.
        evaluations: what it scored.
        comparison: the output folder of `madkd compare`.
        compared: the student is one of those compared there.
        hyperparameters: name -> value.
        license: one of the Hub's identifiers.
        language: of the labels and questions, as the Hub writes languages.
        tags: more tags.
        model_name: the card's title; by default the repo's name.
        finetuned_from: the weights it began with, where the student does not know it: a Hub id, or another name.
        targets: the class targets that it learned from, if any.
    """

    dataset: DataSource | None = None
    datasets: Sequence[str] = ()
    evaluations: Sequence[Evaluation] = ()
    comparison: str | os.PathLike | None = None
    compared: bool = False
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = None
    language: str | Sequence[str] | None = None
    tags: Sequence[str] = ()
    model_name: str | None = None
    finetuned_from: str | None = None
    targets: TargetFacts | None = None


def dataset_facts(
    training_source: DataSource | None, dataset: Any = None, dataset_tags: Any = None, dataset_args: Any = None
) -> dict[str, Any]:
    """`dataset` and `datasets` of `StudentFacts` out of what a Trainer's `push_to_hub` takes.

    `dataset` is a `DataSource`, or one name or several; `dataset_tags` are Hub ids, `dataset_args` a configuration.
    """
    if isinstance(dataset, DataSource):
        return {"dataset": dataset, "datasets": as_list(dataset_tags)}
    tags, names = [name for name in as_list(dataset_tags) if _hub_id(name)], as_list(dataset)
    ids = dict.fromkeys([*tags, *(name for name in names if "/" in name and _hub_id(name))])
    names = tags or names
    if not names:
        return {"dataset": training_source}
    config = ", ".join(as_list(dataset_args)) or None
    if training_source and names == [training_source.name]:
        source = DataSource(training_source.name, training_source.revision, config or training_source.config)
    else:
        source = DataSource(", ".join(names), None, config, on_the_hub=len(names) == 1 and names[0] in ids)
    return {"dataset": source, "datasets": list(ids)}


def write_card(
    folder: str | os.PathLike,
    model: PreTrainedModel,
    repo: HubRepo,
    facts: StudentFacts | None = None,
    plain: bool = False,
    manual_metadata: Mapping[str, Any] | None = None,
) -> None:
    """README.md and the pictures of the comparison, of a student as `push_student` has it."""
    folder, facts, config = Path(folder), facts or StudentFacts(), model.config
    comparison, pictures = None, {}  # a report.json, and names in `figures/` with captions
    if facts.comparison is not None:
        comparison = read_comparison(facts.comparison, config)
        pictures = copy_figures(facts.comparison, folder)
    detects = _detects(config)
    evaluations = published_evaluations(facts.evaluations, config, plain, facts.dataset)
    if leaderboards := leaderboard_file(evaluations):
        (folder / ".eval_results").mkdir(exist_ok=True)
        (folder / LEADERBOARDS).write_text(leaderboards, encoding="utf-8")
    data = _front_matter(config, repo, facts, evaluations, manual_metadata or {})
    hyperparameters = [[code(name), code(value)] for name, value in facts.hyperparameters.items()]
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=markdown(data.model_name),
        shown=code,
        python=python,
        repo_id=repo.repo_id,
        revision=repo.revision,
        plain=plain,
        adapted=(folder / "adapter" / "adapter_config.json").is_file(),
        detects=detects,
        about="image" if not detects else config.aspect_level,
        what="An object detector" if detects else "An image classifier",
        auto_class="AutoModelForObjectDetection" if detects else "AutoModelForImageClassification",
        exports=exported_files(folder),
        answered=(folder / BECAUSE).is_file(),  # an export with aspects has reasons beside it
        files=sorted(path.name for path in folder.glob("*.py")),  # all that `trust_remote_code` runs
        classes=config.num_labels,
        aspects=config.num_aspects,
        example=config.aspect_ids[0] if config.aspect_ids else "",
        bare=type(_bare(model)).__name__,
        teacher=_teacher(config),
        results=results_table(evaluations, markdown),
        measured_on=measured_on(evaluations, _dataset, markdown),
        comparison=comparison and comparison_text(comparison, _dataset, facts.compared),
        comparison_table=comparison and table(comparison),
        pictures=pictures,
        questions=_questions(config, evaluations),
        measured=any(evaluation.aspect_auroc for evaluation in evaluations),
        targets=facts.targets and _targets(facts.targets),
        provenance=_provenance(model, facts),
        hyperparameters=markdown_table([["Setting", "Value"], *hyperparameters]) if hyperparameters else "",
        license=data.license,
    )
    card.save(folder / "README.md")


def exported_files(folder: Path) -> list[str]:
    """The models of other runtimes in a folder, see `exporting`."""
    found = [path for name in EXPORTED for path in folder.glob(name)]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _front_matter(
    config: Any,
    repo: HubRepo,
    facts: StudentFacts,
    evaluations: Sequence[Evaluation],
    manual_metadata: Mapping[str, Any],
) -> ModelCardData:
    data = facts.dataset
    ids = [*([data.id] if data and data.id else []), *facts.datasets]
    fields = {
        "library_name": "transformers",
        "pipeline_tag": _task(config),
        "base_model": config.base_model or _hub_id(facts.finetuned_from),
        "datasets": list(dict.fromkeys(ids)) or None,
        "language": list(facts.language) if isinstance(facts.language, tuple) else facts.language,
        "license": facts.license,
        "tags": list(dict.fromkeys([_task(config), "knowledge-distillation", TAG, *facts.tags])),
        "model_name": facts.model_name or repo.repo_id.split("/")[-1],
        "eval_results": eval_results(evaluations, _task(config)) or None,
    }
    fields = {name: value if name == "eval_results" else front(value) for name, value in fields.items()}
    return ModelCardData(**{**manual_metadata, **{name: value for name, value in fields.items() if value is not None}})


def _detects(config: Any) -> bool:
    return hasattr(config, "detector_config")


def _task(config: Any) -> str:
    """As the Hub calls it."""
    return "object-detection" if _detects(config) else "image-classification"


def _bare(model: PreTrainedModel) -> PreTrainedModel:
    """The transformers model inside."""
    return model.detector if _detects(model.config) else model.backbone


def _questions(config: Any, evaluations: Sequence[Evaluation]) -> str:
    measured = next((evaluation.aspect_auroc for evaluation in evaluations if evaluation.aspect_auroc), None)
    columns = {"Aspect": [code(name) for name in config.aspect_ids]}
    columns["Question"] = [markdown(question) for question in config.aspect_questions]
    if config.aspect_groups:
        columns["Group"] = [markdown(group) for group in config.aspect_groups]
    if measured:
        columns["AUROC"] = [f"{value:.2f}" if value is not None and math.isfinite(value) else "" for value in measured]
    rows = [list(columns), *(list(row) for row in zip(*columns.values()))]
    return markdown_table(rows, right=[3 if config.aspect_groups else 2]) if config.aspect_ids else ""


def _dataset(data: DataSource) -> str:
    return link(data.id, "datasets/") if data.id else code(data.shown)


def _hub_id(name: str | None) -> str | None:
    """The name where it can be an id of the Hub, and is no path of this machine."""
    return name if name and HUB_ID.fullmatch(name) and not Path(name).exists() else None


def _teacher(config: Any) -> str:
    teacher = config.aspect_teacher or {}
    name = teacher.get("model")
    return link(name) if teacher.get("commit") else code(name) if name else ""


def _weights(config: Any, facts: StudentFacts) -> str:
    if base := config.base_model or _hub_id(facts.finetuned_from):
        return link(base) + _at(config.base_model_revision)
    return code(Path(facts.finetuned_from).name) if facts.finetuned_from else "none of the Hub"


def _provenance(model: PreTrainedModel, facts: StudentFacts) -> str:
    config, data = model.config, facts.dataset
    versions = {"madkd_hf": importlib.import_module("madkd_hf"), "transformers": transformers, "torch": torch}
    rows = {
        "Architecture": code(type(_bare(model)).__name__),
        "Weights it began with": _weights(config, facts),
        "Dataset": data and _dataset(data) + _at(data.revision),
        "Teacher": _teacher(config) + _at((config.aspect_teacher or {}).get("commit")),
        "Questions": f"{config.num_aspects}, fingerprint {code(config.aspect_bank)}" * bool(config.num_aspects),
        "Versions": ", ".join(f"{name} {module.__version__}" for name, module in versions.items()),
    }
    return markdown_table([["What", "Which"], *([key, value] for key, value in rows.items() if value)])


def _targets(targets: TargetFacts) -> str:
    """Which class targets the student learned from, in sentences."""
    count = sum(targets.rows.values())
    who = {
        "posterior": "the classes that a multimodal LLM's answers speak for, by a logistic regression fitted on "
        f"{targets.fitted or 0:,} images with a class ({code(targets.name)})",
        "class teacher": f"the scores of an image classifier ({code(targets.name)})",
        "other": f"scores by {code(targets.teacher)}",
    }[targets.kind]
    return f"Class targets of {count:,} training images: {who}. {targets.quality}"


def _at(commit: str | None) -> str:
    return f" at {code(commit)}" if commit else ""
