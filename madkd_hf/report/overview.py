"""Several comparisons in one table."""

from __future__ import annotations

import json
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import write_whole
from ..text import block, code, counted, jsonable, markdown
from .comparison import ANSWERS, WITH_MLLM, gain_text, markdown_table, mean_text, points_text, terms_of, treated_of


KEPT = ("task", "seeds", "accuracy", "map", "roles", "treated", "gain", "gains", "controls", "answers_alone")
KEPT += ("smoothing",)
ABOUT = ("dataset", "commit", "images_per_class", "scenes")


def summarise_all(reports: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What one table tells of many comparisons.

    Args:
        reports: name -> the `report.json` of a comparison, perhaps of a grid.

    Returns:
        An entry for each comparison, or for each point of its grid: `comparison` (its name), `point` (of the grid:
        option -> value), what `comparison.summarise` returns, and `dataset`, `commit`, `images_per_class`, `scenes`.
    """
    entries = []
    for name, report in reports.items():
        for part in report.get("points") or [report]:
            point = dict(part.get("point") or {})
            about = {key: report.get(key) for key in ABOUT}
            about |= {key: point.pop(key) for key in ABOUT if key in point}
            entry = {"comparison": name, "point": point, **about}
            entries.append(entry | {key: part[key] for key in KEPT if part.get(key) is not None})
    return entries


def overview_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """A line for each entry of `summarise_all`: its students' scores on the test images, and gains over base."""
    controls = list(dict.fromkeys(name for entry in entries for name in entry.get("controls") or {}))
    units = {terms_of(entry).in_table.split(", ")[-1] for entry in entries}
    unit = f", {units.pop()}" if len(units) == 1 else ", % or AP"
    head = ["Comparison", "Dataset", "Images per class", "Seeds", f"Base{unit}", f"Distilled{unit}", "Gain over base"]
    answers = [ANSWERS] if any(map(_answers_alone, entries)) else []
    rows = [_row(entry, controls, bool(answers)) for entry in entries]
    return markdown_table([[*head, *controls, *answers], *rows], range(2, 99))


def _answers_alone(entry: Mapping[str, Any]) -> list[float]:
    return (entry.get("answers_alone") or {}).get("accuracy") or []


def _row(entry: Mapping[str, Any], controls: Sequence[str], shows_answers: bool) -> list[str]:
    terms = terms_of(entry)
    scores, point = entry[terms.key], ", ".join(f"{option} {value}" for option, value in entry["point"].items())
    name = markdown(entry["comparison"]) + (f" ({code(point)})" if point else "")
    images = f"{entry['scenes']} scenes" if entry.get("scenes") else str(entry.get("images_per_class") or "all")
    means = [mean_text(scores[one], 2) if one in scores else "" for one in ("base", treated_of(entry))]
    own = entry.get("controls") or {}
    gains = [gain_text(entry, treated_of(entry)), *(points_text(own[one]) if one in own else "" for one in controls)]
    row = [name, markdown(entry.get("dataset") or ""), images, str(len(entry["seeds"])), *means, *gains]
    answers = _answers_alone(entry)
    return [*row, *([mean_text(answers) if answers else ""] if shows_answers else [])]


def overview_verdict(entries: Sequence[Mapping[str, Any]]) -> str:
    """In a sentence: where distilled students are ahead, and where clearly."""
    gains = [entry["gain"] for entry in entries if entry.get("gain")]
    if not gains:
        return "Nothing to compare: train both base and distilled students."
    ahead, clear = sum(gain["mean"] > 0 for gain in gains), sum((gain["ci95"][0] or -1) > 0 for gain in gains)
    return (
        f"Distilled students are ahead of the base ones on average in {ahead} of {counted(len(gains), 'row')}, and "
        f"clearly, with an interval above 0, in {clear}."
    )


def write_overview(entries: Sequence[Mapping[str, Any]], output_dir: str | os.PathLike, command: str) -> Path:
    """Write `report.json` and `report.md` (its path); each comparison's own report is in the folder of its name."""
    output_dir = Path(output_dir)
    names = dict.fromkeys(entry["comparison"] for entry in entries)
    links = [f"[{markdown(name)}]({urllib.parse.quote(name)}/report.md)" for name in names]
    parts = [
        "# Multi-aspect knowledge distillation: comparisons",
        "Scores on the test images, mean ± standard deviation over the seeds; gains over base in points, paired by "
        "seed, with a 95% t interval. Columns after that are controls: a real gain must beat theirs."
        + (
            f" The last column is {WITH_MLLM}; each report says on which images."
            if any(map(_answers_alone, entries))
            else ""
        ),
        f"**{overview_verdict(entries)}**",
        overview_table(entries),
        f"Reports: {', '.join(links)}.",
        f"## Reproduce\n\n{block(command, 'bash')}",
    ]
    content = json.dumps(jsonable({"comparisons": entries, "command": command}), indent=2, ensure_ascii=False)
    write_whole(output_dir / "report.json", content + "\n")
    return write_whole(output_dir / "report.md", "\n\n".join(parts) + "\n")
