"""The card of an aspect dataset: what is in it, what each question is worth, who answered, how to use it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from datasets import ClassLabel, DatasetInfo, Features, SplitDict, SplitInfo, Value
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData, constants, hf_hub_download
from huggingface_hub.errors import HTTPError, RemoteEntryNotFoundError

from ...aspects import AspectBank
from ...data.boxes import BOX_FORMATS
from ...data.columns import CLASS_LOGITS, CLASS_TEACHER, CLASS_TYPES
from ...data.objects import BOX, CATEGORY, feature_path, object_fields
from ...data.target_facts import TargetFacts
from ...report.comparison import markdown_table
from ...selection.evidence import Evidence, evidence_table, evidence_terms, evidence_warnings
from ...text import as_list, code, front, markdown, python
from ..retries import HubError, reason_of, retried
from ..sources import HUB_ID, link
from ..upload import TAG, HubRepo


TEMPLATE = Path(__file__).with_name("dataset.md")
TERMS = ("license", "language", "license_name", "license_link")  # of a source's front matter
ADDRESS = re.compile(r"https://[^\s<>\"'`]+")
SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M"}


@dataclass(frozen=True)
class ObjectFacts:
    """What the card tells of objects: column, format of boxes, how many each split has, and how many with answers.

    `format` is None where nobody said; `answered` is None where the answers are about the images.
    """

    column: str
    format: str | None
    counts: Mapping[str, int]
    answered: Mapping[str, int] | None


@dataclass(frozen=True)
class DatasetFacts:
    """What the card tells of.

    Attributes:
        answered: split -> indices of the rows with answers.
        file_bytes: size of the Parquet files.
        bank: the questions, and in its provenance who answered them about which images.
        label_column: of the classes; where the answers are about objects, a field of these.
        terms: of the front matter, what is not ours to say: license, language, gating, ...
        targets: what is known of the class targets; None where there are none.
    """

    repo_id: str
    features: Features
    splits: Sequence[SplitInfo]
    answered: Mapping[str, Sequence[int]]
    file_bytes: int
    bank: AspectBank
    image_column: str
    label_column: str | None
    terms: Mapping[str, Any]
    objects: ObjectFacts | None = None
    targets: TargetFacts | None = None

    @property
    def by_object(self) -> bool:
        """Whether the questions are about each object, not about the image."""
        return self.objects is not None and self.objects.answered is not None


def source_terms(source: Mapping[str, Any] | None, license: str | None, repo: HubRepo) -> dict[str, Any]:
    """Licence and language that the card of the source dataset states, in words that the Hub of `repo` knows."""
    if not (source or {}).get("commit"):
        return {}
    options = {"filename": constants.REPOCARD_NAME, "repo_type": "dataset", "revision": source["commit"]}
    try:
        path = retried(hf_hub_download, source["id"], **options, token=repo.token)
        stated = DatasetCard(Path(path).read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    except RemoteEntryNotFoundError:
        return {}
    except (HTTPError, OSError, ValueError, yaml.YAMLError) as error:
        if license:
            return {}
        raise HubError(
            f"Cannot read in the card of {source['id']} under which licence the images are "
            f"({reason_of(error)}): try again, or pass a license (--hub_license)."
        ) from None
    stated = front({name: stated[name] for name in TERMS if stated.get(name)})
    terms = {name: stated[name] for name in ("license", "language") if _is_text(stated.get(name))}
    if "license" in stated and "license" not in terms:
        stated["license"] = terms["license"] = "other"
    if "license" in terms and not repo.knows_license(terms["license"]):
        terms |= {"license": "other", "license_name": ", ".join(as_list(terms["license"]))}
    elif terms.get("license") == "other":
        terms |= {name: stated[name] for name in ("license_name", "license_link") if isinstance(stated.get(name), str)}
    if not ADDRESS.fullmatch(terms.get("license_link", "https://x")):
        terms["license_link"] = f"{constants.ENDPOINT}/datasets/{source['id']}/blob/{source['commit']}/LICENSE"
    return terms


def dataset_card(facts: DatasetFacts, evidence: Evidence) -> DatasetCard:
    """The card; the pictures of `write_evidence` are expected in `figures/`."""
    provenance = dict(facts.bank.provenance or {})
    source = source_of(provenance.pop("dataset", None))
    facts_table = [[markdown(name), code(value)] for name, value in provenance.items() if value is not None]
    model = provenance.get("model")
    train = max(facts.answered, key=lambda split: len(facts.answered[split]))
    license = facts.terms.get("license")
    return DatasetCard.from_template(
        _front_matter(facts, source),
        template_path=str(TEMPLATE),
        name=markdown(facts.repo_id.split("/")[-1]),
        code=code,
        markdown=markdown,
        python=python,
        facts=facts,
        model=model and (link(str(model)) if provenance.get("commit") else code(model)),
        source=source,
        source_link=link(source["id"], "datasets/") if source.get("commit") else code(source.get("id") or ""),
        chosen_license=", ".join(map(str, as_list(license))),
        splits=_split_table(facts),
        unit=evidence.unit,
        questions=evidence_table(evidence.rows, questions=True),
        terms=evidence_terms(evidence.rows, evidence.unit),
        warnings=evidence_warnings(evidence.rows, evidence.unit, markdown),
        classes=_classes(facts),
        objects=f"{sum(facts.objects.counts.values()):,} objects" if facts.objects else None,
        fields=_fields(facts),
        n_scores=getattr(facts.features.get(CLASS_LOGITS), "length", -1) if facts.targets else None,
        names_teacher=CLASS_TEACHER in facts.features,
        targets=facts.targets and _targets(facts.targets),
        category_names=_category_names(facts),
        class_picture=(evidence.path.parent / "figures" / "teacher.png").is_file(),
        not_answered=not_answered(provenance.get("not_answered")),
        provenance=markdown_table([["What", "Value"], *facts_table]) if facts_table else "The bank does not say.",
        train_split=train,
        first=facts.answered[train][0],
        eval_split=next((split for split in ("validation", "test") if split in facts.answered), None),
    )


def not_answered(counts: Any) -> str | None:
    """What share of the questions got no answer, and why; None where all did, or where the bank does not say."""
    names = ("answers", "refused", "without_yes_or_no")
    if not isinstance(counts, Mapping) or not all(type(counts.get(name)) is int for name in names):
        return None
    total, refused, one_sided = (counts[name] for name in names)
    if not total:
        return None
    return (
        f"Of {total:,} answers {refused:,} ({refused / total:.2%}) were refused by the model, and {one_sided:,} "
        f"({one_sided / total:.2%}) came without yes or without no among its likeliest tokens: they are NaN in the "
        "lists."
    )


def source_of(provenance: Any) -> dict[str, str]:
    """What a bank's provenance says of the dataset, as texts; of an id that can be none of the Hub, no commit."""
    values = provenance if isinstance(provenance, Mapping) else {}
    source = {
        name: values[name] for name in ("id", "config", "revision", "commit") if isinstance(values.get(name), str)
    }
    if not HUB_ID.fullmatch(source.get("id", "")):
        source.pop("commit", None)
    return source


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def _classes(facts: DatasetFacts) -> int | str | None:
    """How many classes there are; "unnumbered" where the column holds names or numbers of classes; None without."""
    there = object_fields(facts.features, facts.objects.column) if facts.by_object else facts.features
    feature = there.get(facts.label_column) if facts.label_column else None
    if isinstance(feature, ClassLabel):
        return feature.num_classes
    return "unnumbered" if isinstance(feature, Value) and feature.dtype.startswith(CLASS_TYPES) else None


def _fields(facts: DatasetFacts) -> str | None:
    """What is stored of each object, in words."""
    if facts.objects is None:
        return None
    fields = object_fields(facts.features, facts.objects.column)
    box = f"`{BOX}` {BOX_FORMATS[facts.objects.format]}" if facts.objects.format else f"`{BOX}`"
    others = [
        f"{code(name)} (one of {feature.num_classes} classes)" if isinstance(feature, ClassLabel) else code(name)
        for name, feature in fields.items()
        if name != BOX
    ]
    return "; ".join([box, ", ".join(others)]) if others else box


def _category_names(facts: DatasetFacts) -> str | None:
    """Where a row's features keep the names of what the detector's trainer takes for classes, as Python."""
    if facts.objects is None:
        return None
    column = facts.objects.column
    if not isinstance(object_fields(facts.features, column).get("category"), ClassLabel):
        return None
    return f"{feature_path(facts.features, column, CATEGORY)}.names"


def _front_matter(facts: DatasetFacts, source: Mapping[str, Any]) -> DatasetCardData:
    rows = sum(split.num_examples for split in facts.splits)
    front = DatasetCardData(
        **facts.terms,
        annotations_creators=["machine-generated"],
        task_categories=["object-detection" if facts.objects else "image-classification"],
        size_categories=[next((name for limit, name in SIZES.items() if rows < limit), "n>10M")],
        source_datasets=[source["id"]] if source.get("commit") else None,
        pretty_name=facts.repo_id.split("/")[-1],
        tags=[TAG, "knowledge-distillation", "multi-aspect"],
    )
    files = [{"split": split.name, "path": f"data/{split.name}-*"} for split in facts.splits]
    MetadataConfigs({"default": {"data_files": files}}).to_dataset_card_data(front)
    info = DatasetInfo(
        features=facts.features,
        splits=SplitDict({split.name: split for split in facts.splits}),
        download_size=facts.file_bytes,
        dataset_size=sum(split.num_bytes for split in facts.splits),
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(front)
    return front


def _targets(targets: TargetFacts) -> str:
    """Whose the class targets are, how many, and how good."""
    rows = {split: f"{count:,}" for split, count in targets.rows.items() if count}
    table = markdown_table([["Split", "With class targets"], *map(list, rows.items())], right=[1])
    provenance = {name: value for name, value in targets.provenance.items() if value is not None}
    who = {
        "posterior": f"The posterior of the answers ({code(targets.name)}): a multinomial logistic regression from "
        f"`aspect_logits` to the classes, fitted on {targets.fitted or 0:,} images with a class. ",
        "class teacher": f"Scores of an image classifier, {code(targets.name)}. ",
        "other": f"By {code(targets.teacher)}. ",
    }[targets.kind]
    facts = [[markdown(name), code(value)] for name, value in provenance.items()]
    parts = [who + targets.quality, table, *([markdown_table([["What", "Value"], *facts])] if facts else [])]
    return "\n\n".join(parts)


def _split_table(facts: DatasetFacts) -> str:
    if facts.objects:
        n_objects, answered = facts.objects.counts, facts.objects.answered
        head = ["Split", "Images", "Objects", "Objects with answers" if facts.by_object else "Images with answers"]
        counts = {split: len(rows) for split, rows in facts.answered.items()} if answered is None else answered
        numbers = [[split.num_examples, n_objects[split.name], counts[split.name]] for split in facts.splits]
        rows = [[split.name, *(f"{number:,}" for number in of)] for split, of in zip(facts.splits, numbers)]
        return markdown_table([head, *rows], right=(1, 2, 3))
    rows = [[split.name, f"{split.num_examples:,}", f"{len(facts.answered[split.name]):,}"] for split in facts.splits]
    return markdown_table([["Split", "Rows", "With answers"], *rows], right=(1, 2))
