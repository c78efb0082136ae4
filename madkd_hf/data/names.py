"""Whether a dataset's name means a folder here or a dataset of the Hub, and what to say where there is neither."""

from __future__ import annotations

import difflib
import functools
import os
from pathlib import Path


PATIENCE = 15  # seconds for the one question whether the Hub has such a dataset
OF_FILES = (".csv", ".json", ".jsonl", ".parquet", ".arrow", ".zip", ".tar", ".gz", ".jpg", ".jpeg", ".png", ".txt")


def looks_like_path(name: str) -> bool:
    """Whether a name that does not exist here was meant as a path, not as a Hub id.

    A Hub id is `name` or `owner/name`. Where there is a folder called like the owner, or a path with nearly the same
    name, a path was meant.
    """
    if name.startswith((".", "/", "~")) or name.endswith(("/", *OF_FILES)) or "\\" in name or name.count("/") > 1:
        return True
    return "/" in name and (Path(name.split("/")[0]).is_dir() or bool(similar(Path(name))))


def similar(path: Path) -> str:
    """A path that exists and has nearly this name, as the end of a sentence: " (did you mean birds?)"."""
    there = next((parent for parent in path.parents if parent.is_dir()), None)
    if there is None:
        return ""
    missing = path.relative_to(there).parts
    close = difflib.get_close_matches(missing[0].lower(), names := _by_lower_case(there), 1, 0.6)
    candidate = there.joinpath(names[close[0]], *missing[1:]) if close else None
    return f" (did you mean {candidate}?)" if candidate is not None and candidate.exists() else ""


def _by_lower_case(folder: Path) -> dict[str, str]:
    try:
        return {name.lower(): name for name in os.listdir(folder)}
    except OSError:
        return {}


def dataset_commit(name: str, revision: str | None) -> str | None:
    """The commit of a dataset of the Hub, asked once; None where the Hub cannot be reached and its files are here."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    path = Path(name)
    nothing = f"There is no folder {name} here{similar(path)}"
    if looks_like_path(name):
        raise ValueError(f"{nothing}: pass --dataset with a folder that exists, a Hub id, or module:function.")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"{nothing}, and that is no Hub id: expected owner/name.") from error
    commit, problem = _commit_on_hub(name, revision)
    if problem is None or (problem.startswith("cannot be reached") and _is_cached(name)):
        return commit
    raise ValueError(f"{nothing}, and the Hub {problem}.")


@functools.cache
def _commit_on_hub(name: str, revision: str | None) -> tuple[str | None, str | None]:
    """The commit, or what the Hub said instead; asked once, so that what is read and what is written of it agree."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return HfApi().dataset_info(name, revision=revision, timeout=PATIENCE).sha, None
    except RevisionNotFoundError:
        return None, f"has no revision {revision!r} of the dataset {name}: pass another --dataset_revision"
    except RepositoryNotFoundError:
        return None, f"has no dataset {name} that you may see: look at its name, or log in with `hf auth login`"
    except (HTTPError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return None, f"cannot be reached ({reason})"


def _is_cached(name: str) -> bool:
    """Whether `load_dataset` finds the dataset, prepared before, without the Hub."""
    import datasets
    from datasets.naming import camelcase_to_snakecase

    *owner, last = name.split("/")
    folder = Path(datasets.config.HF_DATASETS_CACHE, "___".join([*owner, camelcase_to_snakecase(last)]))
    return any(folder.glob("*/*/*"))
