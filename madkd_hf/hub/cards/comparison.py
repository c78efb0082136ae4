"""What `madkd compare` found, for the card of a student."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...data.origin import Origin, RefusedFileError
from ...files import read_json
from ...report.comparison import drawn_sentence, over_controls, real_gain, table, terms_of, verdict_of
from ...text import markdown, terminal
from ..sources import DataSource


FIGURES = {  # none of them shows an image of the dataset
    "accuracies.png": "Accuracy on the test images: every dot is one student.",
    "ap.png": "AP on the test images: every dot is one student.",
    "learning_curves.png": "The same on the validation images while the students learn.",
    "aspect_learning.png": "How well the student's answers rank what is in the validation images as the teacher's do "
    "(AUROC).",
}


def read_comparison(folder: str | os.PathLike, config: Any = None) -> dict[str, Any]:
    """What `madkd compare` left in a folder, for the card of a student with this configuration."""
    try:
        report = read_json(Path(folder) / "report.json", "report of a comparison", "run `madkd compare` again")
        terms = terms_of(report)
        scores = {name: report[terms.key][name] for name in terms.conditions if name in report[terms.key]}
        _check_values({**report, terms.key: scores}, terms.key)
        report[terms.key] = scores
        comparison_text(report, str, False), table(report)  # what the card uses is there
        if not scores or {len(values) for values in scores.values()} != {len(report["seeds"])}:
            raise ValueError(f"one {terms.score} for each seed is missing")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        reason = terminal(repr(error) if isinstance(error, LookupError) else error)
        raise ValueError(
            f"{folder} holds no comparison ({reason}): pass the output folder of a finished `madkd compare`."
        ) from error
    detects = report.get("task") == "detection"
    if config is not None and detects != hasattr(config, "detector_config"):
        raise ValueError(
            f"The comparison in {folder} is of {'detectors' if detects else 'classifiers'} and this student is none: "
            "pass one of its own kind, or leave it out."
        )
    if config is not None and config.num_aspects:
        about = report.get("bank"), list(report.get("aspect_auroc") or [])
        if any(reported and reported != own for reported, own in zip(about, (config.aspect_bank, config.aspect_ids))):
            raise ValueError(
                f"The comparison in {folder} is about other questions than the student's, whose bank is "
                f"{config.aspect_bank}: pass one with the same bank, or leave it out."
            )
    return report


def _check_values(report: Mapping[str, Any], key: str) -> None:
    """Raise ValueError, or what a wrong type raises, where what a card tells of a report is no number or no text."""
    gains = [report.get("gain"), *(report.get("controls") or {}).values()]
    gains += [gain for by_control in (report.get("gains") or {}).values() for gain in by_control.values()]
    numbers = [score for values in report[key].values() for score in values] + list(report["seeds"])
    for gain in filter(None, gains):
        low, high = gain["ci95"]
        numbers += [gain["mean"]] if low is None and high is None else [gain["mean"], low, high]
    counts = ("classes", "images_per_class", "unlabelled", "scenes", "smoothing")
    numbers += [report[name] for name in counts if report.get(name) is not None]
    numbers += [value for value in (report.get("aspect_auroc") or {}).values() if value is not None]
    texts = [report[name] for name in ("dataset", "commit", "bank", "train_split") if report.get(name) is not None]
    texts += [text for pair in (report.get("drawn") or {}).items() for text in pair]
    for value in numbers:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{value!r} stands where a number is expected")
    for value in texts:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} stands where text is expected")


def comparison_text(report: Mapping[str, Any], link: Any, among: bool) -> str:
    """What stands above the table: the verdict, who was compared on what, and how to read it.

    `link` makes text of a `DataSource`; `among`: the student of the card is one of those compared.
    """
    terms = terms_of(report)
    scores = report[terms.key]
    students, seeds = len(scores) * len(report["seeds"]), len(report["seeds"])
    conditions = f"{len(scores)} condition{'s' * (len(scores) > 1)}"
    parts = [f"**{verdict_of(report)}.**"] if report.get("gain") else []
    subject = f"{students} students were" if students > 1 else "1 student was"
    seeds_of_each = f"{seeds} seeds{' each' if len(scores) > 1 else ''}" if seeds > 1 else "one seed"
    dataset = f" on {link(DataSource(report['dataset'], report.get('commit')))}" if report.get("dataset") else ""
    details = [f"{report['classes']:d} classes"] if report.get("classes") else []
    details += [markdown(split)] if (split := report.get("train_split") or "train") != "train" else []
    dataset += f" ({'; '.join(details)})" if dataset and details else ""
    count = report.get("images_per_class")
    images = f", {count:d} image{'s' * (count > 1)} per class" if count else ""
    images += f", some also on {report['unlabelled']:,d} without a class" if report.get("unlabelled") else ""
    images += f", {report['scenes']:d} labelled images each" if report.get("scenes") else ""
    is_it = "is it" if students == 1 else "is one of them"
    parts.append(
        f"{subject} trained for the comparison{dataset}{images}: {conditions} with {seeds_of_each}"
        + (f"; the student in this repo {is_it}." if among else ".")
    )
    gains = [name for name in ("gain", "controls") if report.get(name)]
    parts.append(
        f"{terms.are} "
        + ("means ± standard deviations over the seeds on the test images" if seeds > 1 else "on the test images")
        + ("; gains are paired by seed, with a 95% interval." if gains and seeds > 1 else ".")
    )
    strength = f" by {report['smoothing']:g}" if report.get("smoothing") else ""
    controls = {
        "image_shuffled": "gives each image the answers of another",
        "shuffled": f"gives each {terms.about} the answers of another",
        "constant": f"gives all {terms.about}s the same answers",
        **{
            f"{name}_shuffled": f"is `{name}` with the answers of other images"
            for name in ("unlabelled", "posterior", "both")
        },
        "smoothing": f"learns the classes alone, with labels smoothed{strength}",
    }
    meanings = ", ".join(f"`{name}` {text}" for name, text in controls.items() if name in scores)
    parts += [f"{real_gain(report)}: {meanings}."] if real_gain(report) else []
    parts += filter(None, [over_controls(report), drawn_sentence(report)])
    return " ".join(parts)


def copy_figures(comparison: str | os.PathLike, folder: Path) -> dict[str, str]:
    """Copies the pictures into `folder`/figures; returns file name -> caption."""
    own, captions = Origin.of_folder(comparison), {}
    for name, caption in FIGURES.items():
        try:
            content = own.read(str(Path(comparison) / "figures" / name))
        except (RefusedFileError, FileNotFoundError):
            continue  # what is no picture, or a link out of the folder, is not published
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        (folder / "figures" / name).write_bytes(content)
        captions[name] = caption
    return captions
