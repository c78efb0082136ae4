"""Images, labelled."""

import numpy as np
import PIL.Image
import torch
from builders import tiny
from builders.labelling import encoded, teacher
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
)

from madkd_hf import AspectBank, AspectTeacher


BANK = tiny.bank(3)
COLUMNS = ["aspect_logits", "aspect_mass", "aspect_bank"]


def rows(count: int = 5, seed: int = 0) -> Dataset:
    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
    columns = {"image": tiny.images(count, 20, seed), "label": [i % 2 for i in range(count)]}
    return Dataset.from_dict(columns, features=features)


def splits() -> DatasetDict:
    return DatasetDict({"train": rows(5), "test": rows(3, seed=1)})


def expected(dataset: Dataset, of: AspectTeacher | None = None, bank: AspectBank = BANK) -> torch.Tensor:
    return (of or teacher()).read(dataset["image"][:], bank).logits


def assert_answers(dataset: Dataset, values: torch.Tensor) -> None:
    answers = torch.tensor(dataset["aspect_logits"][:], dtype=torch.float32)
    torch.testing.assert_close(answers, values, atol=1e-5, rtol=0)


# Real pictures


def pictures() -> dict[str, dict | None]:
    """Name -> what a dataset stores; those whose name starts with "bad" cannot be read."""
    colour = tiny.images(1, 40)[0]
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    deep = PIL.Image.fromarray((np.arange(1600).reshape(40, 40) * 40).astype(np.uint16))
    whole = encoded(colour)["bytes"]
    return {
        "colour": encoded(colour),
        "palette": encoded(colour.convert("P"), "GIF"),
        "bad: truncated": {"bytes": whole[: len(whole) // 2], "path": None},
        "alpha": encoded(colour.convert("RGBA")),
        "CMYK": encoded(colour.convert("CMYK"), "JPEG"),
        "bad: zero bytes": {"bytes": b"", "path": None},
        "16 bits": encoded(deep),
        "grey": encoded(colour.convert("L")),
        "turned": encoded(colour, "JPEG", exif=exif),
        "1 x 4000": encoded(colour.resize((1, 4000))),
        "bad: null": None,
        "bad: no file": {"bytes": None, "path": "nowhere.png"},
    }


def of_pictures() -> Dataset:
    return Dataset.from_dict({"image": list(pictures().values())}, features=Features({"image": Image()}))
