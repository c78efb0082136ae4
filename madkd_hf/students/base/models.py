"""Checks of any model that is to become a student: its files, configuration and image processor."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open

from ...data.image_processors import load_image_processor
from ..models.aspects_of_madkd import AspectModel, inner_config


WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def check_model(
    student: type[AspectModel], name: str, pretrained: bool = True, revision: str | None = None, **options: Any
) -> None:
    """Refuse a model that no such student can be made of, or whose image processor cannot be used; reads no weights.

    Args:
        student: the class of the student.
        name: of the model, a Hub id or a folder.
        pretrained: whether its weights are wanted.
        options: of `from_backbone` or `from_detector`.

    Raises:
        ValueError, ImportError: in one sentence.
    """
    files = _files(name, revision)
    version = {} if revision is None else {"revision": revision}
    what = student.base_model_prefix
    try:
        config = inner_config(student.config_class, name, what, trust_remote_code=False, **version)
    except Exception as error:  # whatever a configuration with odd values makes transformers raise
        if "trust_remote_code" in str(error):
            raise
        reason = " ".join(str(error).split()).split(". ")[0]
        raise ValueError(
            f"The config.json of {name} is none that transformers can read ({reason}): repair it, or name another "
            "model."
        ) from error
    with torch.device("meta"):
        getattr(student, f"from_{what}")(config, id2label=config.id2label, **options)
    if pretrained:
        _check_weights(name, files)
    load_image_processor(name, **version)


def _files(name: str, revision: str | None) -> list[str]:
    folder = Path(name)
    files = [path.name for path in folder.iterdir()] if folder.is_dir() else _files_on_hub(name, revision)
    if "config.json" not in files:
        raise ValueError(f"{name} is no model of transformers, it has no config.json: name another one.")
    return files


def _check_weights(name: str, files: list[str]) -> None:
    """Whether there are weights, and in a folder, whether they are whole, as far as their headers tell."""
    if not any(weights in files or f"{weights}.index.json" in files for weights in WEIGHTS):
        raise ValueError(
            f"{name} has a configuration and no weights (model.safetensors): pass --pretrained false "
            "(pretrained=False) to train it from scratch, or name a model with weights."
        )
    folder = Path(name)
    if not folder.is_dir():
        return
    index = folder / "model.safetensors.index.json"
    files = [folder / "model.safetensors"]
    try:
        if index.is_file() and not files[0].is_file():
            files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        for file in files if index.is_file() or files[0].is_file() else []:
            with safe_open(file, "pt"):
                pass
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"The weights in {folder} are not whole ({error}): copy them again, or pass --pretrained false "
            "(pretrained=False) to train from scratch."
        ) from error


def _files_on_hub(name: str, revision: str | None) -> list[str]:
    """Asked once; where the Hub does not answer, those in the cache."""
    try:
        return [file.rfilename for file in HfApi().model_info(name, revision=revision).siblings or ()]
    except HFValidationError as error:
        raise ValueError(
            f"There is no folder {name}: name a folder that exists, or a Hub id as owner/name."
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"{name} is neither a folder here nor a model that the Hub shows you: check the spelling, or log in with "
            "`hf auth login` if it is private or gated."
        ) from error
    except (HTTPError, OSError) as error:
        if isinstance(error, HfHubHTTPError) and 400 <= getattr(error.response, "status_code", 0) < 500:
            raise ValueError(
                f"The Hub does not give {name} ({str(error).splitlines()[0]}): check id and revision."
            ) from error
        try:
            cached = Path(snapshot_download(name, revision=revision, local_files_only=True))
        except (OSError, ValueError):
            raise ValueError(
                f"{name} is neither a folder here nor in the cache, and the Hub cannot be reached "
                f"({str(error).splitlines()[0]}): check the spelling and the connection."
            ) from error
        return [path.name for path in cached.iterdir()]


def check_classes(n_classes: int, config: Any) -> None:
    """Raise ValueError where the dataset's classes are not as many as the model's."""
    if n_classes != config.num_labels:
        raise ValueError(
            f"The dataset has {n_classes} classes and the model {config.num_labels}: "
            "build the model with the dataset's id2label."
        )


def check_has_column(columns: Iterable[str], name: str, column: str, option: str) -> None:
    """Raise ValueError where the rows of this name have no such column, which `option` names."""
    if column not in columns:
        what = "objects" if option == "boxes_column" else f"{option.removesuffix('_column')}s"
        raise ValueError(
            f"There is no column {column!r} in {name}, only {sorted(columns)}: name the {what} with {option}."
        )
