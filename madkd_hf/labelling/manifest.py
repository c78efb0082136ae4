"""The manifest of a labelling job: it says whose the shards in a folder are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..files import read_json, read_record
from ..text import first_difference


MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 2  # 1 had shards that did not say whose they are
SETTLED = ("shard_size", "plan", "complete", "finished")  # what the job itself decides while it runs
WHAT = {"bank": "answers to questions", "class_teacher": "scores of classes"}  # entries that a job may do without
REMEDY = "move what is there away, or pass another work_dir"


def read_manifest(folder: Path, keys: set[str]) -> dict[str, Any] | None:
    """The manifest in the folder, with at least these keys; None where there is none."""
    path, what = folder / MANIFEST_FILE, "manifest of a labelling job"
    if not path.exists():
        return None
    version = read_json(path, what, REMEDY).get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:  # whose checksum may be of another kind
        raise ValueError(f"{path} has format {version!r}, this version of madkd_hf reads {FORMAT_VERSION}: {REMEDY}.")
    manifest = read_record(path, what, REMEDY)
    manifest.setdefault("class_teacher", None)  # which earlier versions did not know
    if missing := {"splits", "shard_size", *keys} - set(manifest):
        raise ValueError(f"{path} is damaged, no {what} ({sorted(missing)[0]!r} is missing): {REMEDY}.")
    return manifest


def refuse_another(folder: Path, before: dict[str, Any], current: dict[str, Any]) -> None:
    """Raise ValueError where the manifest in the folder is not ours, with the first difference in words."""
    for name in current:
        if name in SETTLED:
            continue
        now, then = current[name], before[name]
        if name == "splits":
            now, then = ({split: part[split] for split in now if split in then} for part in (now, then))
        if difference := job_difference(then, now, name):
            raise ValueError(
                f"{folder} holds another labelling job: {difference}; pass another work_dir for this job, or "
                "delete that one to start over."
            )


def merged(before: dict[str, Any], current: dict[str, Any]) -> dict[str, Any]:
    """Ours and what others settled: the first to choose decides, and finished splits add up."""
    return {
        **before,
        "plan": current["plan"] if before["plan"] is None else before["plan"],
        "splits": {**before["splits"], **current["splits"]},
        "complete": {**before["complete"], **current["complete"]},
        "finished": {**before["finished"], **current["finished"]},
    }


def job_difference(then: Any, now: Any, name: str) -> str | None:
    """The first place where two labelling jobs part in an entry of their manifests, in words."""
    if name == "prompts" and then and now:
        return None if then["tokens"] == now["tokens"] else _of_prompts(then, now)
    if name in WHAT and None in (then, now) and then != now:
        words = [WHAT[name] if part else f"no {WHAT[name]}" for part in (then, now)]
        return f"it asks for {words[0]}, here for {words[1]}"
    if name == "boxes" and None in (then, now) and then != now:
        levels = ["each image" if boxes is None else f"each object in {boxes['column']!r}" for boxes in (then, now)]
        return f"it asks about {levels[0]}, here about {levels[1]}"
    if name == "splits":
        return next(filter(None, (_of_split(split, then[split], now[split]) for split in now)), None)
    return difference_of(then, now, name)


def _of_split(split: str, then: dict[str, Any], now: dict[str, Any]) -> str | None:
    if then.get("rows") != now.get("rows"):
        return f"its split {split!r} has {then.get('rows')} rows, here {now.get('rows')} (another --limit?)"
    if then.get("labelled") != now.get("labelled"):
        is_labelled = ("is", "is not") if then.get("labelled") else ("is not", "is")
        return f"its split {split!r} {is_labelled[0]} among those to label, here it {is_labelled[1]}"
    return difference_of(then, now, f"rows of split {split!r}")


def difference_of(then: Any, now: Any, name: str) -> str | None:
    """The first place where two values part, in words; `name` is what they are of, "" where their keys say it."""
    if isinstance(then, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*then, *now])
        parts = (difference_of(then.get(key), now.get(key), f"{name}.{key}".lstrip(".")) for key in keys)
        return next(filter(None, parts), None)
    if then == now:
        return None
    return f"its {name.replace('.', ' ')} is {_short(then)}, here {_short(now)}"


def _of_prompts(then: dict[str, str], now: dict[str, str]) -> str:
    if then["example"] == now["example"]:
        return f"the tokens of its prompts are others ({then['tokens']}, here {now['tokens']}: another tokenizer?)"
    parts = [repr(part) for part in first_difference(then["example"], now["example"])]
    return f"its prompts are others ({parts[0]}, here {parts[1]}: another --date, or another chat template?)"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
