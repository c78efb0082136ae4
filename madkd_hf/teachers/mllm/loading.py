"""From a name to a model and its processor, or to one sentence that says why there is none."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.utils import CONFIG_NAME, cached_file, extract_commit_hash

from ...files import read_json
from ...text import chain_of_causes
from ..errors import one_sentence_errors
from .processors import load_processor, set_images_kwargs


EXPECTED = "expected an image-text-to-text model, such as OpenGVLab/InternVL3-1B-hf"
HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
# Where multimodal LLMs are registered, the usual place first; the last is for code that comes with a model.
REGISTERED = (AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoModelForCausalLM)
WITH_ITS_CODE = ("AutoModelForImageTextToText", "AutoModelForVision2Seq", "AutoModelForCausalLM", "AutoModel")
IN_PLACE_OF_CONFIG = {  # what a repo without config.json is
    "adapter_config.json": "is an adapter (PEFT), not a model: merge it into the model that it was trained on "
    "(merge_and_unload, save_pretrained) and pass that folder",
    "model_index.json": f"is a diffusers pipeline, which makes images and answers no questions: {EXPECTED}",
    ".gguf": "holds GGUF files, whose part for images transformers does not read: pass the repo that they were made "
    "from",
}


def load(
    name: str | os.PathLike,
    revision: str | None,
    trust_remote_code: bool,
    images_kwargs: Mapping[str, Any] | None = None,
    **model_options: Any,
) -> tuple[PreTrainedModel, ProcessorMixin, str | None]:
    """The model, its processor, and the commit that they are of; or one sentence that says why there is none."""
    place = _place(str(name))
    config_file = _config_file(place, revision)
    commit = extract_commit_hash(config_file, None)
    options = {"revision": commit or revision, "trust_remote_code": trust_remote_code}
    content = read_json(config_file, f"{CONFIG_NAME} of {place}", "download or save the model again")
    _check_code(place, content, trust_remote_code)
    with one_sentence_errors(place, "configuration"):
        config = AutoConfig.from_pretrained(place, **options)
    auto = _auto_class(config, content)
    if auto is None:
        raise ValueError(f"{place} is {_kind(content)}: {EXPECTED}.")
    with one_sentence_errors(place, "processor"):
        processor = load_processor(place, **options)
    if getattr(processor, "image_processor", None) is None:
        raise ValueError(takes_no_images(place))
    if images_kwargs:
        set_images_kwargs(processor, images_kwargs)
    with one_sentence_errors(place, "model"):
        model = auto.from_pretrained(place, **options, **model_options)
    if not model.can_generate():
        raise ValueError(f"{place} is {_kind(content)}, which writes no text: {EXPECTED}.")
    return model, processor, commit


def takes_no_images(name: str) -> str:
    return f"{name} takes no images (it has no image processor): {EXPECTED}."


def _place(name: str) -> str:
    """A folder that is there, or a Hub id: what can only be a folder is not looked for on the Hub."""
    path = Path(name).expanduser()
    if name and path.is_dir():
        return str(path)
    if path.is_file():
        what = IN_PLACE_OF_CONFIG[".gguf"].replace("holds GGUF files", "is a GGUF file")
        raise ValueError(f"{name} {what if path.suffix == '.gguf' else 'is a file: pass the folder of the model'}.")
    if not HUB_ID.fullmatch(name) or ("/" in name and Path(path.parts[0]).is_dir()):
        raise FileNotFoundError(f"There is no folder {name}: pass the folder of a model, or a Hub id (owner/name).")
    return name


def _config_file(place: str, revision: str | None) -> str:
    try:
        file = cached_file(place, CONFIG_NAME, revision=revision)
        if file is None:  # for folders, nothing is raised
            raise FileNotFoundError(place)
        return file
    except OSError as error:
        causes = list(chain_of_causes(error))
        there = f"on the Hub{f' at revision {revision!r}' if revision else ''}"
        if _any(causes, GatedRepoError):
            reason = (
                f"{place} is gated: accept its terms at https://huggingface.co/{place}, and log in (hf auth login)"
            )
        elif _any(causes, RepositoryNotFoundError, HFValidationError):
            reason = f"There is no model {place}, neither a folder here nor on the Hub: check the name, or log in "
            reason += "(hf auth login) if it is private"
        elif _any(causes, RevisionNotFoundError):
            reason = f"{place} has no revision {revision!r} on the Hub: pass a branch, a tag or a commit of it"
        elif _is_missing(place, error, causes):
            reason = f"{place} {_without_config(place, revision)}"
        else:
            reason = f"{place} cannot be had {there} now, and is no folder here: check the name and the connection"
        raise OSError(f"{reason}.") from error


def _is_missing(place: str, error: OSError, causes: list[BaseException]) -> bool:
    """Whether there is a model, and no configuration in it; offline, nobody knows."""
    if Path(place).is_dir():
        return True
    return _any(causes, EntryNotFoundError) and not _any(causes, FileNotFoundError) or "does not appear" in str(error)


def _without_config(place: str, revision: str | None) -> str:
    try:
        folder = Path(place)
        names = os.listdir(folder) if folder.is_dir() else HfApi().list_repo_files(place, revision=revision)
    except OSError:
        names = []
    for mark, what in IN_PLACE_OF_CONFIG.items():
        if any(file.endswith(mark) for file in names):
            return what
    return f"has no {CONFIG_NAME}, so it is no model of transformers: {EXPECTED}"


def _check_code(place: str, content: dict[str, Any], trusted: bool) -> None:
    known = content.get("model_type") in CONFIG_MAPPING
    if "model_type" not in content and "auto_map" not in content:
        raise ValueError(
            f"The {CONFIG_NAME} of {place} names no model_type, so transformers cannot load it: {EXPECTED}."
        )
    if not known and "auto_map" not in content:
        raise ValueError(
            f"{place} is {_kind(content)}, which transformers {transformers.__version__} does not know: update "
            "transformers, or pass a version of the model that was made for it, often with -hf in its name."
        )
    if not known and not trusted:
        raise ValueError(
            f"{place} brings code of its own: pass trust_remote_code (--trust_remote_code true) if you trust it, or a "
            "version of the model without, often with -hf in its name."
        )


def _auto_class(config: PreTrainedConfig, content: dict[str, Any]) -> Any:
    """Where a model of this kind is registered as one that writes text."""
    registered = next((auto for auto in REGISTERED if type(config) in auto._model_mapping), None)
    if registered is None and type(config) not in AutoModel._model_mapping:
        own = content.get("auto_map") or {}
        name = next((name for name in WITH_ITS_CODE if name in own), None)
        return name and getattr(transformers, name, AutoModelForImageTextToText)
    return registered


def _kind(content: dict[str, Any]) -> str:
    names = content.get("architectures") or [content.get("model_type")]
    return f"a {names[0]}"


def _any(causes: list[BaseException], *kinds: type) -> bool:
    return any(isinstance(cause, kinds) for cause in causes)
