"""The card of a Space: README.md, whose front matter tells the Hub what to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from huggingface_hub import constants

from ..hub.sources import HUB_ID, link
from ..hub.upload import TAG
from ..text import counted, front, markdown, one_line
from . import GRADIO, STATIC
from .model import SpaceModel


SDK_VERSION = "6.31.0"  # of Gradio: what the page was tried with
PYTHON_VERSION = "3.11"
RUN = ("sdk", "sdk_version", "python_version", "app_file")  # how the Hub runs a Space: never a person's older settings
LONGEST_TITLE = 80


@dataclass(frozen=True)
class SpaceFacts:
    """What a Space says of itself beyond what the student knows.

    Attributes:
        title: of the page.
        models, datasets: Hub ids to link to.
        license: one of the Hub's identifiers.
    """

    title: str
    models: Sequence[str] = ()
    datasets: Sequence[str] = ()
    license: str | None = None

    def __post_init__(self) -> None:
        for name in (*self.models, *self.datasets):
            if not HUB_ID.fullmatch(name):
                raise ValueError(f"{name!r} is no Hub id to link to: expected owner/name.")

    @property
    def links(self) -> list[dict[str, str]]:
        """For the page."""
        kinds = (("Model", "", self.models), ("Dataset", "datasets/", self.datasets))
        return [
            {"kind": kind, "text": name, "url": f"{constants.ENDPOINT}/{folder}{name}"}
            for kind, folder, names in kinds
            for name in names
        ]


def card(kind: str, model: SpaceModel, facts: SpaceFacts, manual: Mapping[str, Any] | None = None) -> str:
    """README.md of a Space.

    Args:
        manual: front matter that a person wrote there; it stays, but for what says how the Space is run.
    """
    run: dict[str, Any] = {"sdk": kind}
    run |= (
        {"sdk_version": SDK_VERSION, "python_version": PYTHON_VERSION, "app_file": "app.py"} if kind == GRADIO else {}
    )
    run |= {"app_file": "index.html"} if kind == STATIC else {}
    look = {"title": facts.title, "emoji": "🔎", "colorFrom": "blue", "colorTo": "green"}
    found = {"models": list(facts.models), "datasets": list(facts.datasets), "license": facts.license}
    found = {name: value for name, value in found.items() if value}
    kept = {name: value for name, value in (manual or {}).items() if name not in RUN}
    data = {**look, **run, **found, "tags": [TAG, "image-classification"]}
    data |= {name: value for name, value in kept.items() if name in look or name not in data}
    matter = yaml.safe_dump(front(data), sort_keys=False, allow_unicode=True)
    return f"---\n{matter}---\n\n{_text(kind, model, facts)}"


def _text(kind: str, model: SpaceModel, facts: SpaceFacts) -> str:
    aspects = len(model.because.ids) if model.because else 0
    says = f", and tells which of its answers to {counted(aspects, 'question')} speak for that" * bool(aspects)
    where = {
        STATIC: "It runs in the browser of whoever opens it, with transformers.js: no image leaves that browser.",
        GRADIO: "It runs on the server of this Space, with ONNX Runtime: images are sent there.",
    }[kind]
    lines = [
        f"# {markdown(one_line(facts.title, LONGEST_TITLE))}",
        f"A small image classifier: it names the class of an image, one of {len(model.classes)}{says}.",
        where,
    ]
    lines += [f"Model: {link(name)}" for name in facts.models]
    lines += [f"Dataset: {link(name, 'datasets/')}" for name in facts.datasets]
    lines += ["Made by `madkd space`; to change it, run the command again."]
    return "\n\n".join(lines) + "\n"
