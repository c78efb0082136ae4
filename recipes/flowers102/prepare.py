"""Oxford 102 Flowers from its original files, in its official splits, as a dataset that `madkd label` takes.

Get the photographs (https://www.robots.ox.ac.uk/~vgg/data/flowers/102): `102flowers.tgz` unpacked, which leaves a
folder `jpg`, with `imagelabels.mat` and `setid.mat` beside that folder. (A folder of Parquet files with the columns
image, label, label_name, file and official_split is read as well.)

    python recipes/flowers102/prepare.py --photographs FOLDER --output_dir runs/flowers102/photographs

Test images that are all but equal to a training or validation image are left out, and counted.
"""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_dataset
from PIL import Image as PILImage
from scipy.io import loadmat


SPLITS = {"train": "trnid", "validation": "valid", "test": "tstid"}  # as setid.mat calls them
CLASSES = 102
SAME = 4  # of 64 bits: photographs whose difference hashes differ in so few look the same


def of_archive(folder: Path) -> DatasetDict:
    """The splits of the original archive; classes are called by their numbers, 1 to 102, as it has no names."""
    labels = loadmat(folder / "imagelabels.mat")["labels"].ravel()
    numbers = loadmat(folder / "setid.mat")
    features = Features({"image": Image(), "label": ClassLabel(names=list(map(str, range(1, CLASSES + 1))))})
    features["file"] = Value("string")
    splits = {}
    for split, name in SPLITS.items():
        files = [f"image_{number:05d}.jpg" for number in numbers[name].ravel()]
        columns = {"image": [str(folder / "jpg" / file) for file in files], "file": files}
        columns["label"] = [int(labels[number - 1]) - 1 for number in numbers[name].ravel()]
        splits[split] = Dataset.from_dict(columns, features)
    return DatasetDict(splits)


def of_parquet(folder: Path) -> DatasetDict:
    """The same of a copy in Parquet, which knows the names of the classes."""
    rows = load_dataset("parquet", data_files=sorted(map(str, folder.glob("*.parquet"))), split="train")
    names = dict(zip(rows["label"], rows["label_name"]))
    official = np.array([{"val": "validation", "valid": "validation"}.get(s, s) for s in rows["official_split"]])
    rows = rows.select_columns(["image", "label", "file"])
    rows = rows.cast_column("label", ClassLabel(names=[names[label] for label in range(CLASSES)]))
    return DatasetDict({split: rows.select(np.flatnonzero(official == split)) for split in SPLITS})


def hashes(rows: Dataset) -> Iterator[int]:
    """The difference hash of each photograph: whether it becomes darker from each of 8 x 9 points to the next."""
    for image in rows["image"]:
        points = np.asarray(image.convert("L").resize((9, 8), PILImage.Resampling.LANCZOS), dtype=np.int16)
        yield int("".join("01"[int(bit)] for bit in (points[:, 1:] < points[:, :-1]).ravel()), 2)


def without_near_duplicates(splits: DatasetDict) -> tuple[DatasetDict, list[str]]:
    """The splits without the test photographs that look like one of training or validation, and their files."""
    seen = np.array([*hashes(splits["train"]), *hashes(splits["validation"])], dtype=np.uint64)
    same = []
    for i, value in enumerate(hashes(splits["test"])):
        bits = np.bitwise_xor(seen, np.uint64(value)).view(np.uint8).reshape(-1, 8)
        if np.unpackbits(bits, axis=1).sum(axis=1).min() <= SAME:
            same.append(i)
    test = splits["test"]
    kept = test.select(np.setdiff1d(np.arange(len(test)), same))
    return DatasetDict({**splits, "test": kept}), [test[i]["file"] for i in same]


def prepare(folder: Path) -> tuple[DatasetDict, list[str]]:
    """The three splits, and the test photographs that were left out of them.

    Raises:
        FileNotFoundError: a file of the archive is missing.
    """
    if any(folder.glob("*.parquet")):
        return without_near_duplicates(of_parquet(folder))
    for name in ("imagelabels.mat", "setid.mat", "jpg"):
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"There is no {name} in {folder}: expected the folder jpg of 102flowers.tgz, with imagelabels.mat and "
                "setid.mat beside it."
            )
    return without_near_duplicates(of_archive(folder))


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="The folder with jpg/ and the .mat files.")
    parser.add_argument("--output_dir", type=Path, required=True, help="The folder for the dataset.")
    args = parser.parse_args()
    if args.output_dir.exists() and any(args.output_dir.iterdir()):
        parser.error(f"{args.output_dir} is not empty: pass a new folder.")
    try:
        splits, left_out = prepare(args.photographs.expanduser())
    except FileNotFoundError as error:
        parser.error(str(error))
    splits.save_to_disk(args.output_dir)
    counts = ", ".join(f"{len(rows):,} {split}" for split, rows in splits.items())
    print(f"{counts} images in {args.output_dir}. Left out of the test, as near duplicates of the others: {left_out}")


if __name__ == "__main__":
    main()
