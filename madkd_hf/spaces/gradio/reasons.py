"""From what a student computes to what is shown. Every text is escaped: strangers wrote them."""

from __future__ import annotations

import html
from typing import Any

import numpy as np


MOST_CLASSES, MOST_REASONS = 5, 4  # shown at once; of reasons, on each side


def class_probabilities(data: dict[str, Any], logits: np.ndarray) -> np.ndarray:
    """Of classes; each on its own where an image may show several."""
    if data["independent"]:
        return 1 / (1 + np.exp(-logits))
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def reasons(data: dict[str, Any], aspect_logits: np.ndarray, label: int) -> list[dict[str, Any]]:
    """The weight of each answer for a class, what speaks most for it first; see because.py of madkd_hf.

    Args:
        data: of space.json.
        aspect_logits: [Q] log-odds of yes.
        label: index of the class.
    """
    weights = np.array(data["effects"][label]) * (aspect_logits - np.array(data["baseline"]))
    answers = 1 / (1 + np.exp(-aspect_logits))
    return [
        {"question": data["questions"][q], "answer": float(answers[q]), "weight": float(weights[q])}
        for q in np.argsort(-weights, kind="stable")
    ]


def percent(p: float) -> str:
    return "under 1%" if p < 0.005 else "over 99%" if p > 0.995 else f"{100 * p:.0f}%"


def text(value: str) -> str:
    """For HTML and for Gradio's own templates: letters, digits and spaces as they are, the rest by number."""
    return "".join(c if c.isalnum() or c == " " else f"&#{ord(c)};" for c in value)


def classes_html(data: dict[str, Any], probabilities: np.ndarray) -> str:
    """The most probable classes, with bars."""
    lines = []
    for rank, c in enumerate(np.argsort(-probabilities, kind="stable")[:MOST_CLASSES]):
        line = _line(data["classes"][c], percent(probabilities[c]), "" if rank else " madkd-first")
        lines.append(f"<li>{line}{_track('', 100 * probabilities[c])}</li>")
    return f'<h2>Class</h2><ol class="madkd-classes" aria-label="Classes">{"".join(lines)}</ol>'


def reasons_html(data: dict[str, Any], found: list[dict[str, Any]], label: int) -> str:
    """What speaks most for a class and most against it, with bars from the middle."""
    largest = max([abs(one["weight"]) for one in found] + [1e-9])
    lines = []
    for k, one in enumerate(found):
        if MOST_REASONS <= k < len(found) - MOST_REASONS:
            continue
        side = "against" if one["weight"] < 0 else "for"
        sign = "−" if one["weight"] < 0 else "+"
        answer = one["answer"]
        said = f"Yes, {percent(answer)}" if answer >= 0.5 else f"No, {percent(1 - answer)}"
        weight = f"{sign}{abs(one['weight']):.2f} {side}"
        line = _line(one["question"], weight, "", f"madkd-{side}")
        track = _track(f" madkd-{side}-fill", 50 * abs(one["weight"]) / largest)
        lines.append(f'<li>{line}<span class="madkd-answer">{text(said)}</span>{track}</li>')
    head = f"What speaks for “{text(data['classes'][label])}”, and what against it:"
    items = f'<ul class="madkd-reasons" aria-label="Reasons">{"".join(lines)}</ul>'
    return f'<h2>Because</h2><p class="madkd-quiet">{head}</p>{items}'


def links_html(data: dict[str, Any]) -> str:
    links = [
        f'<a href="{html.escape(link["url"])}" rel="noopener">{text(link["kind"])}&#58; {text(link["text"])}</a>'
        for link in data["links"]
    ]
    return f'<p class="madkd-quiet">{" · ".join(links)}</p>' if links else ""


def _line(left: str, right: str, kind: str, right_kind: str = "") -> str:
    parts = f'<span>{text(left)}</span><span class="{right_kind}">{text(right)}</span>'
    return f'<span class="madkd-line{kind}">{parts}</span>'


def _track(kind: str, width: float) -> str:
    return (
        f'<span class="madkd-track" aria-hidden="true"><span class="madkd-fill{kind}" style="width:{width:.1f}%">'
        "</span></span>"
    )
