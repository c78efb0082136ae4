"""A Space as a folder: a page on which anybody tries a student, complete where its page is there."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, constants
from PIL import Image

from ..files import own_folder, write_whole, writing
from ..hub.upload import HubRepo
from ..text import one_line
from . import CARD, DATA, EXAMPLE, KIND, NAMES, PAGES, STATIC
from .assets import ASSETS, CDN
from .card import LONGEST_TITLE, SpaceFacts, card
from .model import SpaceModel


LONGEST = 300  # characters of a class or a question
EXAMPLE_SIZE = 512  # pixels of the longer side
QUALITY = 95  # of the JPEG files: a student may notice less
STORES = "https://*.huggingface.co https://*.hf.co"  # where the Hub keeps large files


def write_space(
    model: SpaceModel,
    output_dir: str | Path,
    kind: str,
    facts: SpaceFacts,
    examples: Sequence[tuple[Image.Image, str]] = (),
    assets: Mapping[str, Path] | None = None,
) -> None:
    """Write a folder that is a Space: `README.md`, the page, `space.json`, and the model beside them.

    Args:
        model: of `prepared`.
        output_dir: a new folder, or one that this function wrote.
        kind: "static" or "gradio".
        examples: images to try it with, RGB, and what they show ("" where that is unknown).
        assets: for a static Space, files of `find_assets` to bring along; without them, they come from a CDN.

    Raises:
        ValueError: a folder with other files.
    """
    folder = own_folder(output_dir, KIND, NAMES)
    with writing(folder, "the Space is not complete"):
        _remove_earlier(folder)
        for path in _ours(model.folder):
            _copy(path, folder / path.relative_to(model.folder))
        for number, (image, _) in enumerate(examples, 1):
            _save_example(image, folder / EXAMPLE.format(number))
        for name, path in (assets or {}).items():
            _copy(path, folder / "vendor" / name)
        data = page_data(kind, model, facts, [shown for _, shown in examples], bool(assets))
        write_whole(folder / DATA, json.dumps(data, ensure_ascii=True, allow_nan=False) + "\n")
        write_whole(folder / CARD, card(kind, model, facts))
        for name in PAGES[kind]:
            write_whole(folder / name, page_file(kind, name, model, bool(assets)))


def page_data(kind: str, model: SpaceModel, facts: SpaceFacts, shown: Sequence[str], offline: bool) -> dict[str, Any]:
    """What the page reads. Texts of strangers are here, and nowhere in its code."""
    because = model.because
    data = {
        "title": one_line(facts.title, LONGEST_TITLE),
        "classes": [one_line(name, LONGEST) for name in model.classes],
        "independent": model.independent,
        "questions": [one_line(text, LONGEST) for text in because.questions] if because else [],
        "effects": [[float(f"{value:.6g}") for value in row] for row in because.effects] if because else [],
        "baseline": [float(f"{value:.6g}") for value in because.baseline] if because else [],
        "against": model.baseline,
        "links": facts.links,
        "examples": [
            {"file": EXAMPLE.format(number), "shows": one_line(text, LONGEST)} for number, text in enumerate(shown, 1)
        ],
        "model": model.input,
    }
    return data | ({"assets": [asset.entry(offline) for asset in ASSETS]} if kind == STATIC else {})


def page_file(kind: str, name: str, model: SpaceModel, offline: bool) -> bytes:
    """A file of the page. It is the same for every student; only the places that it may load from differ."""
    if name == "rgb.py":  # the same eyes as those of the training
        return files("madkd_hf.data").joinpath(name).read_bytes()
    folder = STATIC if name == "bars.css" else kind
    content = files(__package__).joinpath(folder, name).read_bytes()
    if name != "index.html":
        return content
    hosts = [*([] if offline else [CDN]), *([constants.ENDPOINT, STORES] if model.hub else [])]
    return content.replace(b"connect-src 'self'", " ".join(["connect-src 'self'", *hosts]).encode())


def push_space(folder: str | Path, kind: str, model: SpaceModel, facts: SpaceFacts, repo: HubRepo) -> CommitInfo:
    """Publish a Space in one commit; what an earlier one left that does not belong to this one is removed.

    Raises:
        HubError: it cannot be published; the repo is as it was.
    """
    repo = repo.check(facts.license)
    with tempfile.TemporaryDirectory(prefix="madkd-space-") as staged:
        for path in _ours(Path(folder)):
            _copy(path, Path(staged) / path.relative_to(folder))
        (Path(staged) / CARD).write_text(card(kind, model, facts, repo.manual_metadata()), encoding="utf-8")
        return repo.push(staged, "Upload a Space of a student", NAMES)


def _ours(folder: Path) -> list[Path]:
    """The files of a Space that are there."""
    return sorted({path for pattern in NAMES for path in folder.glob(pattern) if path.is_file()})


def _remove_earlier(folder: Path) -> None:
    """Remove what an earlier Space left in a folder of ours: it may have been of another kind or student."""
    for path in _ours(folder):
        path.unlink()


def _copy(path: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, place)


def _save_example(image: Image.Image, path: Path) -> None:
    """A copy without the metadata of the original."""
    path.parent.mkdir(exist_ok=True)
    small = image.convert("RGB").copy()
    small.info.clear()
    small.thumbnail((EXAMPLE_SIZE, EXAMPLE_SIZE), Image.Resampling.LANCZOS)
    small.save(path, "JPEG", quality=QUALITY, subsampling=0)
