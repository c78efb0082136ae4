"""The card of an aspect dataset: what is in it, what each question is worth, who answered, how to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import ClassLabel, DatasetInfo, Features, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData, constants, hf_hub_download
from huggingface_hub.errors import HTTPError

from ..aspects import AspectBank
from ..report.comparison import code_span, markdown_table
from ..report.evidence import Evidence, evidence_table, evidence_terms
from .upload import TAG


TEMPLATE = Path(__file__).parent / "cards" / "dataset.md"
SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M"}


@dataclass(frozen=True)
class DatasetFacts:
    """What the card tells of.

    Attributes:
        repo_id: where it will be.
        features: of the rows.
        splits: with their rows and bytes.
        labelled: split -> rows with answers.
        file_bytes: size of the Parquet files.
        bank: the questions, and in its provenance who answered them about which images.
        image_column, label_column: names of columns.
        license: an identifier of the Hub, where known.
    """

    repo_id: str
    features: Features
    splits: Sequence[SplitInfo]
    labelled: Mapping[str, int]
    file_bytes: int
    bank: AspectBank
    image_column: str
    label_column: str | None
    license: str | None = None


def dataset_card(facts: DatasetFacts, evidence: Evidence, token: str | None = None) -> DatasetCard:
    """The card, licence and language carried over from the card of the source dataset, where that is on the Hub.

    Args:
        facts: what there is.
        evidence: what `write_evidence` found; its pictures are expected in `figures/`.
        token: to read the source's card.
    """
    provenance = dict(facts.bank.provenance or {})
    source = provenance.pop("dataset", None) or {}
    inherited = _source_card(source, token)
    license = facts.license or inherited.get("license")
    who = [[name, code_span(value)] for name, value in provenance.items() if value is not None]
    label = facts.features.get(facts.label_column) if facts.label_column else None
    return DatasetCard.from_template(
        _front_matter(facts, source, inherited, license),
        template_path=str(TEMPLATE),
        name=facts.repo_id.split("/")[-1],
        hub=constants.ENDPOINT,
        facts=facts,
        model=provenance.get("model"),
        model_url=f"{constants.ENDPOINT}/{provenance['model']}" if provenance.get("commit") else None,
        source=source,
        chosen_license=license,
        splits=_split_table(facts),
        questions=evidence_table(evidence.rows, questions=True),
        terms=evidence_terms(evidence.rows),
        warnings=evidence.warnings,
        classes=label.num_classes if isinstance(label, ClassLabel) else None,
        has_labels=label is not None,
        class_picture=(evidence.path.parent / "figures" / "teacher.png").is_file(),
        provenance=markdown_table([["What", "Value"], *who]) if who else "The bank does not say.",
        train_split=max(facts.labelled, key=facts.labelled.get),
        eval_split=next((split for split in ("validation", "test") if split in facts.labelled), None),
    )


def _front_matter(
    facts: DatasetFacts, source: Mapping[str, Any], inherited: Mapping[str, Any], license: str | None
) -> DatasetCardData:
    rows = sum(split.num_examples for split in facts.splits)
    front = DatasetCardData(
        license=license,
        license_name=inherited.get("license_name") if license == "other" else None,
        license_link=inherited.get("license_link") if license == "other" else None,
        language=inherited.get("language"),
        annotations_creators=["machine-generated"],
        task_categories=["image-classification"],
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


def _source_card(source: Mapping[str, Any], token: str | None) -> dict[str, Any]:
    """What the card of the source dataset states; nothing where there is none to be had."""
    if not source.get("commit"):
        return {}
    try:
        path = hf_hub_download(
            source["id"], constants.REPOCARD_NAME, repo_type="dataset", revision=source["commit"], token=token
        )
        return DatasetCard.load(path, ignore_metadata_errors=True).data.to_dict()
    except (HTTPError, OSError):
        return {}


def _split_table(facts: DatasetFacts) -> str:
    rows = [[split.name, f"{split.num_examples:,}", f"{facts.labelled[split.name]:,}"] for split in facts.splits]
    return markdown_table([["Split", "Rows", "With answers"], *rows], right=(1, 2))
