"""An aspect dataset on the Hub: Parquet with images and answers, the bank, and a card that explains both."""

from __future__ import annotations

import itertools
import operator
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, Features, Image, IterableDataset, SplitInfo, concatenate_datasets
from datasets.arrow_writer import ParquetWriter
from datasets.table import table_cast
from huggingface_hub import CommitInfo
from tqdm.auto import tqdm

from ..aspects import AspectBank
from ..data.boxes import check_box_format
from ..data.class_targets import count_targets, facts_of
from ..data.columns import ASPECT_COLUMNS, CLASS_COLUMNS, about_objects, check_bank
from ..data.embedding import embed_files
from ..data.objects import BOX, count_objects, flatten_objects, object_fields
from ..data.origin import Origin
from ..data.rows import SPLIT_NAME, split_name
from ..data.target_facts import TARGETS_FILE, TargetFacts
from ..files import check_name, remove_stale, temporary
from ..selection.evidence import write_evidence
from ..text import get_logger
from .cards.dataset import DatasetFacts, ObjectFacts, dataset_card, source_of, source_terms
from .sources import DataSource
from .upload import HubRepo


logger = get_logger(__name__)

OWN_FILES = ("README.md", "aspects.json", TARGETS_FILE, "data/*-of-*.parquet")
OWN_FILES += ("figures/questions.png", "figures/teacher.png")
ROW_GROUP = 100  # images that a reader of a stream loads at once
SHARD_BYTES = 500_000_000
DEFAULT_FORMAT = "coco"  # of boxes, that of attach_aspects

Rows = Dataset | IterableDataset


def push_aspect_dataset(
    dataset: Rows | Mapping[str, Rows],
    bank: AspectBank,
    repo_id: str,
    *,
    image_column: str = "image",
    label_column: str | None = "label",
    boxes_column: str = "objects",
    box_format: str | None = None,
    license: str | None = None,
    private: bool = True,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload a dataset with aspects",
    work_dir: str | os.PathLike | None = None,
    class_targets: TargetFacts | None = None,
) -> CommitInfo:
    """Publish a labelled dataset: one commit with all splits as Parquet (images inside), `aspects.json` and a card.

    Where rows have class targets, `class_targets.json` says whose they are, and how good.

    `load_dataset(repo_id)`, as a stream or not, and `AspectBank.load(repo_id)` read it back. The same call again goes
    on after a failure, and replaces what an earlier one published.

    Args:
        dataset: what `attach_aspects` returns: one split or several, streams included.
        bank: its bank, as `madkd label` leaves it beside the dataset, or
            `AspectBank(bank.aspects, teacher.provenance)`: without provenance, the card cannot say who answered. Where
            that has an entry `dataset` (`id`, `commit`), or `datasets` knows where the rows came from, the card names
            the source and takes over its licence.
        repo_id: "owner/name", or a name of your own.
        image_column, label_column: the images, and the classes, if any, for the card. Where the answers are about
            objects, the classes are a field of these, by default "label" or "category".
        boxes_column: the objects of a dataset for object detection; one without such a column is for classification.
        box_format: what the 4 numbers of a box are, as `attach_aspects` takes it, whose default is the one here where
            the answers are about objects; about others, the card says nothing of it by default.
        license: one of the Hub's identifiers; by default that of the source dataset, where the provenance names one.
        private: whether a new repo is private.
        token: a Hub token; by default HF_TOKEN or the one that `hf auth login` stored.
        revision: the branch to commit to, made where it is missing.
        create_pr: open a pull request with the commit.
        commit_message: its title.
        work_dir: where all files are made first (as much room as the images need); by default a temporary folder.
        class_targets: what is known of the class targets, as `TargetFacts.load` reads it beside a labelled dataset;
            the numbers of rows are counted.

    Raises:
        ValueError: a dataset without answers, or with answers to other questions.
        HubError: it cannot be published; the repo is as it was.
    """
    splits = _splits(dataset)
    _check(splits, bank, image_column, boxes_column, box_format)
    label = _label(next(iter(splits.values())).features, label_column, boxes_column)
    repo = HubRepo(repo_id, "dataset", private, token, revision, create_pr).check(license)
    bank = _with_source(bank, splits)
    terms = source_terms(source_of(bank.provenance.get("dataset")), license, repo) | repo.manual_metadata()
    features = Features({**next(iter(splits.values())).features, image_column: Image()})  # not `decode=False`
    with _staged(work_dir) as folder:
        files = Path(folder) / "files"
        infos = [write_parquet(rows, split, files / "data", features) for split, rows in splits.items()]
        infos = [info for info in infos if info.num_examples]  # `load_dataset` fails where one split is empty
        if not infos:
            raise ValueError("The dataset has no rows: nothing is published.")
        bank.save(files)
        counts = {info.name: _count_targets(files / "data", info.name) for info in infos}
        targets = facts_of(counts, [class_targets])
        if targets:
            targets.save(files)
        answers = {info.name: _answers(files / "data", info.name, [label, boxes_column]) for info in infos}
        everything, about = concatenate_datasets(list(answers.values())), "image"
        if about_objects(features):
            everything, about = flatten_objects(everything, boxes_column, label), "object"
        evidence = write_evidence(everything, bank, folder, label, about)
        facts = DatasetFacts(
            repo.repo_id,
            features,
            infos,
            {split: _answered(rows) for split, rows in answers.items()},
            sum(path.stat().st_size for path in (files / "data").iterdir()),
            bank,
            image_column,
            label,
            {**terms, "license": license} if license else terms,
            _objects(answers, features, boxes_column, box_format),
            targets,
        )
        dataset_card(facts, evidence).save(files / "README.md")
        (Path(folder) / "figures").rename(files / "figures")
        return repo.push(files, commit_message, OWN_FILES)


@contextmanager
def _staged(work_dir: str | os.PathLike | None) -> Iterator[Path]:
    """A folder for the files to publish, of this call alone; what a killed one has left is removed."""
    place = Path(tempfile.gettempdir() if work_dir is None else work_dir)
    remove_stale(place)
    folder = temporary(place / "publish")
    folder.mkdir(0o700, parents=True)  # in a temporary folder, other users can look around
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _splits(dataset: Rows | Mapping[str, Rows]) -> dict[str, Rows]:
    if isinstance(dataset, Rows):
        return {split_name(dataset): dataset}
    if not dataset:
        raise ValueError("The dataset has no splits: pass what attach_aspects returns.")
    return dict(dataset)


def _check(
    splits: Mapping[str, Rows], bank: AspectBank, image_column: str, boxes_column: str, box_format: str | None
) -> None:
    """Everything that can be seen without reading images."""
    first, features = next((split, rows.features or {}) for split, rows in splits.items())
    for split, rows in splits.items():
        check_name(split, "split")
        if not SPLIT_NAME.fullmatch(split) or split == "all":
            raise ValueError(
                f"{split!r} cannot be the name of a split on the Hub: use letters, digits and _, and not 'all'."
            )
        if missing := [name for name in (*ASPECT_COLUMNS, image_column) if name not in (rows.features or {})]:
            raise ValueError(
                f"The split {split!r} has no column {missing[0]!r}, only {list(rows.features or {})}: label the "
                "dataset with attach_aspects, which gives its columns to splits without answers, too, and pass "
                "image_column where it has another name."
            )
        if rows.features != features:
            raise ValueError(
                f"The splits {first!r} and {split!r} have other columns ({features} and {rows.features}): give them "
                "the same, or publish them apart."
            )
        if isinstance(rows, Dataset):
            check_bank(rows, bank.fingerprint, f"split {split!r}")
    check_box_format(box_format or DEFAULT_FORMAT)
    if about_objects(features) and not object_fields(features, boxes_column):
        raise ValueError(
            f"The answers are about objects, and there is no column {boxes_column!r} of objects with a field {BOX!r}, "
            f"only {list(features)}: pass boxes_column."
        )


def _label(features: Features, label_column: str | None, boxes_column: str) -> str | None:
    """Where the classes are, a column or a field of the objects, if anywhere."""
    by_object = about_objects(features)
    there = list(object_fields(features, boxes_column) if by_object else features)
    if label_column in there or label_column is None:
        return label_column
    if label_column != "label":
        kind = f"field {label_column!r} of {boxes_column!r}" if by_object else f"column {label_column!r}"
        raise ValueError(f"There is no {kind} of classes, only {there}: pass label_column.")
    return "category" if by_object and "category" in there else None


def _objects(
    answers: Mapping[str, Dataset], features: Features, boxes_column: str, box_format: str | None
) -> ObjectFacts | None:
    """What the card tells of the objects, where the dataset has any."""
    if not object_fields(features, boxes_column):
        return None
    counts = {split: count_objects(rows.data[boxes_column]) for split, rows in answers.items()}
    by_object = about_objects(features)
    answered = {split: pc.sum(pc.list_value_length(rows.data["aspect_logits"])) for split, rows in answers.items()}
    return ObjectFacts(
        boxes_column,
        box_format or (DEFAULT_FORMAT if by_object else None),
        counts,
        {split: count.as_py() or 0 for split, count in answered.items()} if by_object else None,
    )


def _with_source(bank: AspectBank, splits: Mapping[str, Rows]) -> AspectBank:
    """The bank to show: with the dataset that the rows are of, and without folders of somebody's machine."""
    if not bank.provenance:
        logger.warning("The bank does not say who answered: pass AspectBank(bank.aspects, teacher.provenance).")
    provenance = dict(bank.provenance or {})
    if "dataset" not in provenance and (source := DataSource.of(next(iter(splits.values())))):
        provenance["dataset"] = {
            "id": source.name,
            "config": source.config,
            "revision": None,
            "commit": source.revision,
        }
    model = str(provenance.get("model", ""))
    if not provenance.get("commit") and re.search(r"^[/~.]|\.\.|[\\:]", model):
        provenance["model"] = PureWindowsPath(model).name  # whose separators are both / and \
    return AspectBank(bank.aspects, provenance)


def _answered(rows: Dataset) -> list[int]:
    """Indices of the rows with answers; an image without objects has none."""
    lengths = pc.list_value_length(rows.data["aspect_logits"])
    return pc.indices_nonzero(pc.greater(lengths, 0).fill_null(False)).to_pylist()


def write_parquet(rows: Rows, split: str, folder: Path, features: Features) -> SplitInfo:
    """Write a split as `folder/<split>-00000-of-0000N.parquet`; images that are only paths are read and put inside."""
    folder.mkdir(parents=True, exist_ok=True)
    info, paths = SplitInfo(split), []
    with tqdm(total=len(rows) if isinstance(rows, Dataset) else None, unit=" rows", desc=f"writing {split}") as bar:
        for _, tables in itertools.groupby(_by_shard(rows, split, features), key=operator.itemgetter(0)):
            paths.append(folder / f"{split}-{len(paths):05d}")
            writer = ParquetWriter(features=features, path=str(paths[-1]))
            for _, table in tables:
                writer.write_table(table, ROW_GROUP)
                bar.update(len(table))
            examples, size = writer.finalize()
            info.num_examples += examples
            info.num_bytes += size
    for path in paths:
        path.rename(f"{path}-of-{len(paths):05d}.parquet")
    return info


def _by_shard(rows: Rows, split: str, features: Features) -> Iterator[tuple[int, pa.Table]]:
    """Tables of whole rows, images inside, and the number of the file that each belongs to."""
    size, n_rows, origin = 0, 0, Origin.of(rows)
    for table in rows.with_format("arrow").iter(ROW_GROUP):
        table = table_cast(table, features.arrow_schema)
        table = embed_files(table, features, origin, lambda row, start=n_rows: f"row {start + row} of split {split!r}")
        yield size // SHARD_BYTES, table
        size += table.nbytes
        n_rows += len(table)


def _count_targets(folder: Path, split: str) -> Counter[str]:
    """Class teacher -> how many rows of a split have its scores."""
    total: Counter[str] = Counter()
    for path in sorted(folder.glob(f"{split}-*.parquet")):
        names = [name for name in CLASS_COLUMNS if name in pq.read_schema(path).names]
        total += count_targets(pq.read_table(path, columns=names)) if names else Counter()
    return total


def _answers(folder: Path, split: str, columns: Sequence[str | None]) -> Dataset:
    """Answers of a split and these columns, where it has them, without the images beside them."""
    tables = []
    for path in sorted(folder.glob(f"{split}-*.parquet")):
        names = [name for name in dict.fromkeys([*ASPECT_COLUMNS, *columns]) if name in pq.read_schema(path).names]
        tables.append(pq.read_table(path, columns=names))
    return Dataset(pa.concat_tables(tables))
