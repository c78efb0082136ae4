"""How many questions to ask for and how, and how many requests and tokens that takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..aspects import LONGEST, Aspect
from ..llm import LLM
from ..text import counted, hidden_character, terminal
from .prompts import GROUPS, ask_choice, ask_questions
from .store import Store


SELECTION_ROUNDS = 3
FEWEST = 5  # questions to ask for at once: less is not worth a request
TOKENS_PER_QUESTION = 48  # with id and group, as JSON
CHARACTERS_PER_TOKEN = 4  # of English, for estimates


@dataclass(frozen=True)
class Plan:
    """How to ask.

    Attributes:
        candidates: N, how many good questions to collect.
        keep: Q, how many of them to select.
        groups: the kinds of aspects; requests take turns.
        per_request: the most questions to ask for at once.
        max_rounds: how many requests for questions to make; by default three times what a perfect LLM needs.
        max_tokens: the longest answer; by default what the questions asked for take, and what the LLM spares to think.
        seed: of sampling.
    """

    candidates: int = 100
    keep: int = 50
    groups: Sequence[str] = field(default_factory=lambda: tuple(GROUPS))
    per_request: int = 20
    max_rounds: int | None = None
    max_tokens: int | None = None
    seed: int = 0

    def __post_init__(self):
        for name in ("candidates", "keep", "per_request"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected 1 or more.")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}: expected 1 or more.")
        if self.max_rounds is not None and self.max_rounds < 0:
            raise ValueError(f"max_rounds is {self.max_rounds}: expected 0 or more.")
        if self.candidates < self.keep:
            raise ValueError(
                f"{self.keep} questions cannot be selected from {counted(self.candidates, 'candidate')}: ask for as "
                "many --candidates as you --keep, or more."
            )
        if (
            not self.groups
            or len({name.strip().lower() for name in self.groups}) < len(self.groups)  # answers are read so
            or not all(name.strip() for name in self.groups)
        ):
            raise ValueError(f"The groups are {list(self.groups)}: expected one name or more, each once.")
        for name in self.groups:  # before anything is paid: no bank takes them
            if len(name) > LONGEST["group"] or hidden_character(name):
                raise ValueError(
                    f"The group {terminal(repr(name), 80)} is no short text of what can be seen: pass another name."
                )

    @property
    def rounds(self) -> int:
        """The most requests for questions in one run."""
        needed = max(len(self.groups), math.ceil(self.candidates / self.per_request))
        return 3 * needed if self.max_rounds is None else self.max_rounds

    def request(self, round: int, missing: int) -> tuple[str, int]:
        """The group and the number of questions of a round's request."""
        turn = round % len(self.groups)
        share = math.ceil(missing / (len(self.groups) - turn))
        return self.groups[turn], min(self.per_request, max(share, FEWEST))

    def tokens(self, count: int, llm: LLM) -> int:
        """The longest answer with `count` questions."""
        return self.max_tokens or TOKENS_PER_QUESTION * count + llm.spare_tokens


class Estimate(NamedTuple):
    """What is to come, for an LLM without faults, and the most that the rounds allow.

    Tokens are estimates; thoughts of reasoning models are written tokens, too.
    """

    requests: int
    tokens_in: int
    tokens_out: int
    most_requests: int
    most_tokens_in: int
    most_tokens_out: int

    def cost(self, price_in: float, price_out: float) -> tuple[float, float]:
        """USD, expected and at most, from prices in USD per million tokens."""
        expected = self.tokens_in * price_in + self.tokens_out * price_out
        most = self.most_tokens_in * price_in + self.most_tokens_out * price_out
        return expected / 1e6, most / 1e6


def estimate(store: Store, llm: LLM, plan: Plan) -> Estimate:
    """Count what `generate` would ask from here on, without asking."""
    typical = "Does the image show a typical aspect here?"
    texts, requests, read, written = store.questions, 0, 0, 0
    round = store.next_round
    while len(texts) < plan.candidates and requests < plan.rounds:
        group, count = plan.request(round + requests, plan.candidates - len(texts))
        read += _size(ask_questions(store.task.class_names, store.task.domain, count, group, texts))
        written += TOKENS_PER_QUESTION * count
        texts = texts + [typical] * count
        requests += 1
    rounds = plan.rounds if len(store.aspects) < plan.candidates else 0
    longest = _size(ask_questions(store.task.class_names, store.task.domain, plan.per_request, "visual", texts))
    selects = plan.keep < len(texts)
    choice = _size(ask_choice(store.task.class_names, store.task.domain, plan.keep, [Aspect("", q) for q in texts]))
    answer = 4 * plan.keep + 16
    return Estimate(
        requests + selects,
        read + selects * choice,
        written + selects * answer,
        rounds + selects * SELECTION_ROUNDS,
        rounds * longest + selects * SELECTION_ROUNDS * choice,
        rounds * plan.tokens(plan.per_request, llm) + selects * SELECTION_ROUNDS * plan.tokens(plan.keep // 4, llm),
    )


def _size(messages: Sequence[dict[str, str]]) -> int:
    return sum(len(turn["content"]) for turn in messages) // CHARACTERS_PER_TOKEN
