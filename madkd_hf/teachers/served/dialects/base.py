"""What a dialect is: how questions about an image are put to a server, and how its answers are read and checked."""

from __future__ import annotations

import json
import math
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


IMAGE = uuid.uuid4().hex  # stands for the image's base64 in a body, until that is sent
DATA_URL = f"data:image/png;base64,{IMAGE}"
ENOUGH = 8  # different numbers, before a rounding is taken for one


class Answer(NamedTuple):
    """What a server says to one question.

    Attributes:
        yes, no: logarithms of the probabilities, or of a common multiple of them; -inf where the server names none.
        mass: of both together; NaN where the dialect does not tell.
        refused: the server does not want to answer; all numbers are NaN.
        raw: the numbers as they were sent.
    """

    yes: float
    no: float
    mass: float = math.nan
    refused: bool = False
    raw: tuple[float, ...] = ()


REFUSED = Answer(math.nan, math.nan, refused=True)


class UnusableAnswerError(ValueError):
    """An answer that is none, in a few words; `permanent` where asking again helps nobody."""

    def __init__(self, reason: str, permanent: bool = False):
        super().__init__(reason)
        self.permanent = permanent


@dataclass(frozen=True)
class Words:
    """The tokens that say yes and no: spelling -> id where a tokenizer is known, and the two words otherwise."""

    yes: dict[str, int]
    no: dict[str, int]
    answer_tokens: tuple[str, str] | None = None

    @property
    def ids(self) -> list[int]:
        return [*self.yes.values(), *self.no.values()]


class Dialect(ABC):
    """One way to ask.

    Args:
        model: its name on the server.
        words: what says yes and no, for dialects that read tokens.
        prompt: the user turn with `{question}`; None for the dialect's own.
        system: a system prompt, if any.

    Attributes:
        name: on the command line.
        path: below the server's address.
        prompt: see `Args`.
        most_questions: in one request.
        mass_known: whether answers tell the probability of yes and no together.
        shares_prefix: whether a server that has read an image keeps that for further requests about it.
        default_prompt: where none is given.
    """

    name: str
    path: str
    most_questions = 1
    mass_known = False
    shares_prefix = False
    default_prompt = "{question}"

    def __init__(self, model: str, words: Words, prompt: str | None = None, system: str | None = None):
        self.model, self.words, self.system = model, words, system
        self.prompt = self.default_prompt if prompt is None else prompt

    @abstractmethod
    def body(self, questions: Sequence[str]) -> dict[str, Any]:
        """The request, with IMAGE where the base64 of the image goes."""

    @abstractmethod
    def answers(self, response: dict[str, Any], count: int) -> list[Answer]:
        """What a response says to each of the questions, in their order.

        Raises:
            UnusableAnswerError: an answer is missing, is another question's, or is no number.
        """

    def request(self, questions: Sequence[str]) -> tuple[bytes, bytes]:
        """What is sent before the base64 of the image, and behind it."""
        before, after = json.dumps(self.body([self.text(question) for question in questions])).split(IMAGE)
        return before.encode(), after.encode()

    def text(self, question: str) -> str:
        """The question as the model is asked it."""
        return self.prompt.replace("{question}", question)

    def log_odds(self, answer: Answer, step: float | None) -> float:
        """z of yes against no; NaN where the answer does not say. `step` is what the raw numbers are rounded to."""
        return answer.yes - answer.no if math.isfinite(answer.yes) and math.isfinite(answer.no) else math.nan

    def step(self, answers: Sequence[Answer]) -> float | None:
        """What the raw numbers of some answers are rounded to; None where no rounding is seen."""
        return None

    def precision(self, step: float | None) -> str:
        """How exact answers are, in words for a card."""
        return "as sent, no rounding seen" if step is None else f"log-odds in steps of {step:g}"

    def refuse(self, option: str, refusal: str) -> bool:
        """Whether the request can do without something that the server refuses with these words; it does from now."""
        return False


class Probabilities(Dialect):
    """A dialect whose answers are probabilities of yes; what else the model might have said is not told.

    Attributes:
        finest: what probabilities near 1 are rounded to at least.
    """

    finest = 2.0**-24  # of float32

    def log_odds(self, answer: Answer, step: float | None) -> float:
        """As the probability says, which is clipped at half a step: 0.00 of two decimals may be anything to 0.005."""
        if not answer.raw:
            return math.nan
        (p,) = answer.raw
        p = min(max(p, step / 2), 1 - step / 2) if step else min(max(p, 1e-38), 1 - self.finest / 2)
        return math.log(p) - math.log1p(-p)

    def step(self, answers: Sequence[Answer]) -> float | None:
        """A power of ten: two decimals at least, since those of 0.5 and 1.0 say little; None beyond four."""
        numbers = [answer.raw[0] for answer in answers if answer.raw]
        decimals = max((len(f"{p:.12f}".rstrip("0").partition(".")[2]) for p in numbers), default=2)
        return 10.0 ** -max(2, decimals) if decimals <= 4 else None

    def precision(self, step: float | None) -> str:
        return "probabilities of float32" if step is None else f"probabilities of {round(-math.log10(step))} decimals"

    @staticmethod
    def answer(value: Any) -> Answer:
        """A probability, checked."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise UnusableAnswerError(f"the probability is {str(value)[:40]!r}")
        p = float(value)
        yes, no = (math.log(part) if part > 0 else -math.inf for part in (p, 1 - p))
        return Answer(yes, no, raw=(p,))


def grid_of(differences: Sequence[float]) -> float | None:
    """The coarsest power of two, 1/2 to 1/128, whose multiples all these numbers are; None where there is none."""
    numbers = {round(abs(number), 6) for number in differences if abs(number) > 1e-4 and math.isfinite(number)}
    if len(numbers) < ENOUGH:
        return None
    for exponent in range(1, 8):
        step = 2.0**-exponent
        if all(abs(number / step - round(number / step)) * step < 5e-5 for number in numbers):
            return step
    return None
