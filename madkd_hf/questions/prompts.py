"""What the LLM is asked: N questions on distinct aspects, then the Q that tell the classes apart (paper section 3.1).

The paper asks for all N at once. Here each request asks for some questions of one group and tells what is there
already, so that the answers fit into any context, every question has its group, and a broken answer costs little.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Literal

from ..aspects import Aspect
from ..llm import Message
from ..text import counted


Style = Literal["json", "simple"]

GROUPS = {
    "visual": "what one sees: colour, shape, size, pattern, texture, parts and how they are placed",
    "categorical": "what kind of thing it is: families that several classes share, what it is made of, what it is for",
    "environmental": "what is around it: background, place, light, season, other things beside it",
}
EXAMPLES = {
    "visual": ("Is it mostly of one colour?", "Does it have straight edges?", "Does it fill most of the image?"),
    "categorical": ("Is it made by people?", "Is it alive?", "Is it used every day?"),
    "environmental": ("Is the background plain?", "Is there something beside it?", "Is the light bright?"),
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
        class_names: the C classes.
        domain: what the images are, in a few words.
        count: how many questions.
        group: what kind of aspect they shall be about.
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
    return _messages("\n\n".join(parts))


def ask_simply(
    class_names: Sequence[str], domain: str, count: int, group: str, known: Sequence[str] = (), seed: int = 0
) -> list[Message]:
    """The same for an LLM too small for that, which would go on with a long list: an example, and a short request.

    Three class names and three known questions stand for all of them, others with each seed. The example is answered
    by `examples(group)`: what repeats these is not the LLM's.
    """
    draw = random.Random(seed)
    of = domain.strip().rstrip(".") or "objects"
    sample = draw.sample(list(class_names), min(3, len(class_names)))
    names = ", ".join(f'"{name}"' for name in sample) if _have_commas(class_names) else ", ".join(sample)
    about = f"about {group} aspects of {of} ({names}, ...)."
    request = f"Write {counted(count, 'other yes/no question')} {about}"
    if known:
        request += f" Not these: {' '.join(draw.sample(list(known), min(3, len(known))))}"
    answer = "\n".join(f"{number}. {question}" for number, question in enumerate(examples(group), 1))
    return _messages(f"Write 3 yes/no questions {about}", answer, request)


def examples(group: str) -> tuple[str, ...]:
    """Three questions of that kind that fit most images."""
    return EXAMPLES.get(group, EXAMPLES["visual"])


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
    return _messages("\n\n".join(parts))


def _about(class_names: Sequence[str], domain: str) -> str:
    of = f" of {domain.strip().rstrip('.')}" if domain.strip() else ""
    begin = f"An image dataset{of} has {len(class_names)} classes:"
    if _have_commas(class_names):  # "tench, Tinca tinca, goldfish" could be two classes or three
        return "\n- ".join([begin, *class_names])
    return f"{begin} {', '.join(class_names)}."


def _have_commas(class_names: Sequence[str]) -> bool:
    return any("," in name for name in class_names)


def _messages(*turns: str) -> list[Message]:
    """The user's turns and the assistant's, by turns."""
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": turn} for index, turn in enumerate(turns)]
    return [{"role": "system", "content": SYSTEM}, *messages]
