"""The report of a comparison: report.json and report.md; figures.py draws it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import write_whole
from ..text import block, code, counted, jsonable, markdown
from .comparison import (
    answers_alone_text,
    drawn_sentence,
    left_out_sentence,
    markdown_table,
    over_controls,
    table,
    terms_of,
    verdict_of,
)


def write_report(report: Mapping[str, Any], output_dir: str | os.PathLike) -> Path:
    """Write `report.json` and `report.md`; returns the latter's path.

    Args:
        report: what `summarise` returns and, where known, `dataset` (its name), `images_per_class` or `scenes` (how
            many training images), `smoothing` (of that condition's labels), `settings` (options of all students),
            `answers_alone` (of `cli.comparison.answers`), `teacher` (its provenance), `seconds` (stage -> seconds),
            `command` (a shell line), `figures` (file name under `output_dir/figures` -> caption; only those there are
            shown), `train_split` (its name), `drawn` ("validation" or "test" -> how its images were drawn) and
            `validated` (whether there are validation images).
        output_dir: a folder, made where missing.
    """
    output_dir = Path(output_dir)
    content = json.dumps(jsonable(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    on = f"Multi-aspect knowledge distillation on {markdown(report['dataset'])}" if report.get("dataset") else "Report"
    parts = [f"# {on}", _what_was_run(report)]
    parts += [f"**{verdict_of(report)}.**"] if report.get("gain") else []
    parts += [table(report), *filter(None, [over_controls(report), answers_alone_text(report)])]
    parts += [left_out_sentence(report["left_out"])] if report.get("left_out") else []
    parts += filter(None, [drawn_sentence(report)])
    for file, caption in (report.get("figures") or {}).items():
        if (output_dir / "figures" / file).is_file():
            parts.append(f"![{Path(file).stem.replace('_', ' ')}](figures/{file})\n\n{caption}")
    if report.get("seconds"):
        rows = [[markdown(stage), f"{seconds:.1f}"] for stage, seconds in report["seconds"].items()]
        parts.append("## Time\n\n" + markdown_table([["Stage", "Seconds"], *rows], right=(1,)))
    if report.get("teacher"):
        rows = [[markdown(key), code(value)] for key, value in report["teacher"].items()]
        parts.append("## Teacher\n\n" + markdown_table([["What", "Value"], *rows]))
    if report.get("command"):
        parts.append(f"## Reproduce\n\n{block(report['command'], 'bash')}")
    for path, text in (("report.json", content), ("report.md", "\n\n".join(parts) + "\n")):
        write_whole(output_dir / path, text)
    return output_dir / "report.md"


def _what_was_run(report: Mapping[str, Any]) -> str:
    terms = terms_of(report)
    conditions, seeds = len(report[terms.key]), len(report["seeds"])
    was = "was" if conditions * seeds == 1 else "were"
    text = f"{counted(conditions * seeds, 'student')} (conditions: {conditions}, seeds: {seeds}) {was} trained"
    text += f" on {markdown(report['dataset'])}" if report.get("dataset") else ""
    split = report.get("train_split") or "train"
    text += f" ({markdown(split)})" if split != "train" else ""
    text += f" with {report['images_per_class']} images per class" if report.get("images_per_class") else ""
    text += f", some also on {report['unlabelled']:,} without a class" if report.get("unlabelled") else ""
    text += f" with {report['scenes']} labelled images each" if report.get("scenes") else ""
    text += f", the labels of `smoothing` smoothed by {report['smoothing']:g}" if report.get("smoothing") else ""
    settings = [f"{markdown(option)} {markdown(value)}" for option, value in (report.get("settings") or {}).items()]
    text += f", with {', '.join(settings)} (each that knows the option)" if settings else ""
    model = (report.get("teacher") or {}).get("model")
    text += f"; the teacher is {code(model)}" if model else ""
    paired = "; gains are paired by seed, with a 95% t interval" if seeds > 1 else ""
    spread = ": mean ± standard deviation over the seeds" if seeds > 1 else ""
    return f"{text}. {terms.are} on the test images{spread}{paired}."
