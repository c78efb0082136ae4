"""What the LLM is asked: N questions on distinct aspects, then the Q that tell the classes apart (paper section 3.1).

The paper asks for all N at once. Here each request asks for some questions of one group and tells what is there
already, so that the answers fit into any context, every question has its group, and a broken answer costs little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..aspects import Aspect
from ..llm import Message
from ..text import counted


GROUPS = {
    "visual": "what one sees: colour, shape, size, pattern, texture, parts and how they are placed",
    "categorical": "what kind of thing it is: families that several classes share, what it is made of, what it is for",
    "environmental": "what is around it: background, place, light, season, other things beside it",
}
SYSTEM = (
    "You write yes/no questions about images. A vision model that sees one image at a time will answer each of them."
)


def question_schema(groups: Sequence[str]) -> dict[str, Any]:
    """JSON schema of an answer with questions."""
    properties = {
        "id": {"type": "string"},
        "question": {"type": "string"},
        "group": {"type": "string", "enum": list(groups)},
    }
    item = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return _object("questions", item)


def choice_schema() -> dict[str, Any]:
    """JSON schema of an answer with numbers."""
    return _object("selected", {"type": "integer"})


def _object(name: str, item: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: {"type": "array", "items": item}},
        "required": [name],
        "additionalProperties": False,
    }


def ask_questions(
    class_names: Sequence[str],
    domain: str,
    count: int,
    group: str,
    known: Sequence[str] = (),
    name_classes: bool = False,
) -> list[Message]:
    """The request for `count` questions of one group, as JSON.

    Args:
        domain: what the images are, in a few words.
        known: questions that are there already.
        name_classes: whether questions may name a class.
    """
    kind = f"{group} aspects" + (f" ({GROUPS[group]})" if group in GROUPS else "")
    parts = [
        _about(class_names, domain),
        f"Write {counted(count, 'question')} about {kind}. Each is about another aspect, clear and easy to see in one "
        "image, and true for some of the classes only, so that the answers help to tell the classes apart.",
        "Every question is answered by yes or no, begins with a word like Is, Are, Does or Has, is about one thing "
        '(no "or"), is short, and ends with a question mark.'
        + ("" if name_classes else " No question contains the name of a class."),
    ]
    if known:
        parts.append("These exist already; do not repeat or rephrase them:\n" + "\n".join(f"- {q}" for q in known))
    parts.append(
        'Answer with JSON only: {"questions": [{"id": "<one to three words that name the aspect>", '
        f'"question": "<the question>", "group": "{group}"}}, ...]}}'
    )
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "\n\n".join(parts)}]


def ask_choice(
    class_names: Sequence[str], domain: str, count: int, aspects: Sequence[Aspect], chosen: Sequence[int] = ()
) -> list[Message]:
    """The request to select `count` of the numbered aspects, beside those `chosen` already (positions from 0)."""
    numbered = [f"{index + 1}. {aspect.question}" for index, aspect in enumerate(aspects) if index not in set(chosen)]
    parts = [
        _about(class_names, domain),
        "Here are candidate questions:\n" + "\n".join(numbered),
        f"Select {counted(count, 'question')} that differ most from each other and best tell the classes apart"
        + (" together with these, which are selected already:" if chosen else "."),
    ]
    if chosen:
        parts[-1] += "\n" + "\n".join(f"- {aspects[index].question}" for index in chosen)
    parts.append(f'Answer with JSON only, with {counted(count, "number")}: {{"selected": [<number>, ...]}}')
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "\n\n".join(parts)}]


def _about(class_names: Sequence[str], domain: str) -> str:
    of = f" of {domain.strip().rstrip('.')}" if domain.strip() else ""
    begin = f"An image dataset{of} has {len(class_names)} classes:"
    if any("," in name for name in class_names):  # "tench, Tinca tinca, goldfish" could be two classes or three
        return "\n- ".join([begin, *class_names])
    return f"{begin} {', '.join(class_names)}."
