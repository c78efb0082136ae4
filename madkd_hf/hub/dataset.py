"""An aspect dataset on the Hub: Parquet with images and answers, the bank, and a card that explains both."""

from __future__ import annotations

import itertools
import operator
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, IterableDataset, SplitInfo, concatenate_datasets
from datasets.arrow_writer import ParquetWriter
from datasets.table import embed_table_storage, table_cast
from huggingface_hub import CommitInfo
from tqdm.auto import tqdm

from ..aspects import ASPECT_COLUMNS, AspectBank
from ..report.evidence import write_evidence
from .dataset_card import DatasetFacts, dataset_card
from .upload import HubRepo


OURS = ("README.md", "aspects.json", "data/*.parquet", "figures/*.png")
ROW_GROUP = 100  # images that a reader of a stream has to load at once
SHARD_BYTES = 500_000_000

Rows = Dataset | IterableDataset


def push_aspect_dataset(
    dataset: Rows | Mapping[str, Rows],
    bank: AspectBank,
    repo_id: str,
    *,
    image_column: str = "image",
    label_column: str | None = "label",
    license: str | None = None,
    private: bool = True,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload a dataset with aspects",
    work_dir: str | os.PathLike | None = None,
) -> CommitInfo:
    """Publish a labelled dataset: one commit with all splits as Parquet (images inside), `aspects.json` and a card.

    `load_dataset(repo_id)`, as a stream or not, and `AspectBank.load(repo_id)` read it back. The same call again goes
    on after a failure, and replaces what an earlier one published.

    Args:
        dataset: what `attach_aspects` returns: one split or several, streams included.
        bank: its bank; with provenance (`AspectBank(bank.aspects, teacher.provenance)`) the card says who answered.
        repo_id: "owner/name", or a name of your own.
        image_column, label_column: the images, and the classes, if any, for the card.
        license: one of the Hub's identifiers; by default that of the source dataset, where the provenance names one.
        private: whether a new repo is private.
        token: a Hub token; by default HF_TOKEN or the one that `hf auth login` stored.
        revision: the branch to commit to, made where it is missing.
        create_pr: open a pull request with the commit.
        commit_message: its title.
        work_dir: where all files are made first (as much room as the images need); by default a temporary folder.

    Raises:
        ValueError: a dataset without answers, or with answers to other questions.
        HubError: it cannot be published; the repo is as it was.
    """
    splits = {str(dataset.split or "train"): dataset} if isinstance(dataset, Rows) else dict(dataset)
    for split, rows in splits.items():
        _check(split, rows, bank)
    repo = HubRepo(repo_id, "dataset", private, token, revision, create_pr).check()
    with tempfile.TemporaryDirectory(dir=work_dir, prefix=".publish-") as folder:
        files = Path(folder) / "files"
        infos = [write_parquet(rows, split, files / "data") for split, rows in splits.items()]
        infos = [info for info in infos if info.num_examples]  # `load_dataset` fails where one split is empty
        bank = _without_paths(bank)
        bank.save(files)
        answers = {info.name: _answers(files / "data", info.name, label_column) for info in infos}
        evidence = write_evidence(concatenate_datasets(list(answers.values())), bank, folder, label_column)
        facts = DatasetFacts(
            repo.repo_id,
            next(iter(splits.values())).features,
            infos,
            {split: len(rows) - rows.data["aspect_logits"].null_count for split, rows in answers.items()},
            sum(path.stat().st_size for path in (files / "data").iterdir()),
            bank,
            image_column,
            label_column,
            license,
        )
        dataset_card(facts, evidence, token).save(files / "README.md")
        (Path(folder) / "figures").rename(files / "figures")
        return repo.push(files, commit_message, OURS)


def _check(split: str, rows: Rows, bank: AspectBank) -> None:
    features = rows.features or {}
    if missing := [name for name in ASPECT_COLUMNS if name not in features]:
        raise ValueError(
            f"The split {split!r} has no column {missing[0]!r}, only {list(features)}: label the dataset with "
            "attach_aspects, which gives the columns to splits without answers, too."
        )
    if isinstance(rows, Dataset):
        prints = rows.select_columns("aspect_bank").with_format("arrow")[:]["aspect_bank"].unique().to_pylist()
        if foreign := set(prints) - {None, bank.fingerprint}:
            raise ValueError(
                f"The split {split!r} was labelled with the bank {foreign.pop()} and this one is {bank.fingerprint}: "
                "use the aspects.json beside the dataset."
            )


def _without_paths(bank: AspectBank) -> AspectBank:
    """The bank to show: of a teacher in a folder its name, not where the folder is on somebody's machine."""
    provenance = dict(bank.provenance or {})
    if os.path.isabs(str(provenance.get("model", ""))):
        provenance["model"] = Path(provenance["model"]).name
    return AspectBank(bank.aspects, provenance or None)


def write_parquet(rows: Rows, split: str, folder: Path) -> SplitInfo:
    """Write a split as `folder/<split>-00000-of-0000N.parquet`; images that are only paths are read and put inside.

    Raises:
        FileNotFoundError: an image whose file is gone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    info, paths = SplitInfo(split), []
    with tqdm(total=len(rows) if isinstance(rows, Dataset) else None, unit=" rows", desc=f"writing {split}") as bar:
        for _, tables in itertools.groupby(_by_shard(rows), key=operator.itemgetter(0)):
            paths.append(folder / f"{split}-{len(paths):05d}")
            writer = ParquetWriter(features=rows.features, path=str(paths[-1]))
            for _, table in tables:
                writer.write_table(table, ROW_GROUP)
                bar.update(len(table))
            examples, size = writer.finalize()
            info.num_examples += examples
            info.num_bytes += size
    for path in paths:
        path.rename(f"{path}-of-{len(paths):05d}.parquet")
    return info


def _by_shard(rows: Rows) -> Iterator[tuple[int, pa.Table]]:
    """Tables of whole rows, images inside, and the number of the file that each belongs to."""
    schema, size = rows.features.arrow_schema, 0
    for table in rows.with_format("arrow").iter(ROW_GROUP):
        table = embed_table_storage(table_cast(table, schema))
        yield size // SHARD_BYTES, table
        size += table.nbytes


def _answers(folder: Path, split: str, label_column: str | None) -> Dataset:
    """Answers and classes of a split, without the images beside them."""
    tables = []
    for path in sorted(folder.glob(f"{split}-*.parquet")):
        wanted = [name for name in (*ASPECT_COLUMNS, label_column) if name in pq.read_schema(path).names]
        tables.append(pq.read_table(path, columns=wanted))
    return Dataset(pa.concat_tables(tables))
