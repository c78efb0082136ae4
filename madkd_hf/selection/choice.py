"""Choice by evidence: from the teacher's answers about a sample of images, the questions that are worth asking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import special

from ..aspects import AspectBank
from .information import (
    SAME_QUESTION,
    SHUFFLES,
    QuestionEvidence,
    class_codes,
    class_entropy,
    conditional_information,
    correlations,
    question_evidence,
)


Criterion = Literal["cmim", "jmi", "mrmr"]
SURE = 3  # standard deviations above the mean of shuffled classes, from which an answer tells more than chance
REDUNDANT_FROM = 0.95  # share of a question's information, from which the kept questions make it redundant
MOST_NAMED = 3  # kept questions in a reason


@dataclass(frozen=True)
class Choice:
    """What became of one candidate, and why.

    Attributes:
        evidence: its id, its question, and what its answers are like by themselves.
        rank: 1 for the candidate that was chosen first, and so on; None where it is not kept.
        reason: "kept", "weaker than the kept", "constant", "low mass", "same as X", "opposite of X", "told already by
            X, Y", or "no more than chance", with the ids of kept questions.
        score: what its answer told, in bits beyond chance, when it was chosen or refused; None if refused before.
        redundancy: what of its information beyond chance the questions chosen before had told already, in bits;
            below 0 where they make it tell more. None like `score`.
        told_by: the kept question that tells most of it; None where there was none yet, or `score` is None.
    """

    evidence: QuestionEvidence
    rank: int | None
    reason: str
    score: float | None = None
    redundancy: float | None = None
    told_by: str | None = None

    @property
    def id(self) -> str:
        return self.evidence.id

    @property
    def kept(self) -> bool:
        return self.rank is not None


@dataclass(frozen=True)
class Selection:
    """What `select_questions` found.

    Attributes:
        choices: one for each candidate, in the order of the candidates.
        bank: the kept questions in order of choice, without provenance.
        asked: how many were to be kept; `len(bank)` is less where fewer are worth anything.
        images, classes: how many images with answers and a class the choice rests on, and how many classes they show.
        class_bits: entropy of their classes, in bits: all that there is to tell.
    """

    choices: tuple[Choice, ...]
    bank: AspectBank
    asked: int
    images: int
    classes: int
    class_bits: float
    criterion: Criterion

    @property
    def ordered(self) -> list[Choice]:
        """The kept by rank, then those that would add something, then the others, most informative first."""
        weaker = {True: lambda c: c.score, False: lambda c: c.evidence.information or 0}

        def place(choice: Choice) -> tuple[int, float]:
            able = choice.reason == "weaker than the kept"
            return (0, choice.rank) if choice.kept else (2 - able, -weaker[able](choice))

        return sorted(self.choices, key=place)

    @property
    def message(self) -> str:
        """In a sentence or two: how many were kept, and why not more."""
        n_kept, n_total = len(self.bank), len(self.choices)
        text = f"Kept {n_kept} of {n_total} questions, by their answers about {self.images} images of "
        text += f"{self.classes} classes."
        if n_kept < self.asked:
            text += (
                f" {self.asked} were asked for, but each of the others is constant, unanswered, told already by those "
                "kept, or tells no more than chance: ask for fewer, add other candidates, or label more images."
            )
        return text


def select_questions(
    logits: np.ndarray,
    mass: np.ndarray | None,
    labels: Sequence[Any] | None,
    bank: AspectBank,
    keep: int,
    criterion: Criterion = "cmim",
) -> Selection:
    """Keep the questions whose answers tell most about the class beyond what the kept ones have told.

    Greedy, by conditional mutual information maximisation (CMIM; Fleuret, JMLR 5, 2004, eq. 6): next comes the
    candidate i with the highest

        score(i) = min over kept j of I(A_i; C | B_j)
                 = I(A_i; C) - max over kept j of [I(A_i; B_j) - I(A_i; B_j | C)],

    that is, information about the class C less redundancy with the kept question that tells most of the same (the
    second form: Brown et al., JMLR 13, 2012, section 4). The first one has the highest I(A_i; C).

    The answer A_i is soft, as in `selection.information`: yes with the image's probability p_i. What is known of the
    kept question is the target itself, not one draw from it: B_j says whether p_j is high or low, cut where that
    explains most of its variance (Otsu 1979). So a paraphrase or negation tells nothing new, however undecided both
    are; two independent draws would seem to tell more than one. With n_b and n_bc images in cell b, and of class c:

        I(A_i; C | B_j) = sum over b of n_b / n [H(mean p_i in b) - sum over c of n_bc / n_b H(mean p_i in b, c)].

    Chance lifts this estimate where images are few. It is measured by 20 shuffles of the classes within each b, and
    its mean is subtracted; a candidate has to lie 3 standard deviations above it for each kept j, and to have more
    than 5% of its own information left. What falls short is never chosen, nor are constant questions, those with low
    mass, and those whose log-odds correlate by more than 0.99 with a chosen one's. The order of the candidates decides
    ties alone.

    `criterion="jmi"` takes the mean over kept j in place of the minimum (Yang & Moody 1999), `"mrmr"` subtracts the
    mean of I(A_i; B_j) (Peng, Long & Ding 2005); neither refuses what is told already. Both forget a paraphrase: its
    one twin counts for less, the more other questions are kept. JMI finds pairs that tell something only together,
    which CMIM finds only while the partner is the sole question kept.

    Args:
        logits: [n, N] log-odds of yes; rows with a NaN have no answers and are left out.
        mass: [n, N] probabilities of yes and no together, where known.
        labels: [n] classes, all of one type; None where unknown.
        bank: the N candidates, of which `keep` are to be kept.

    Raises:
        ValueError: no labels, fewer than two classes, sizes that differ, no question worth anything.
    """
    if keep < 1:
        raise ValueError(f"Expected to keep at least 1 question; got keep={keep}.")
    if criterion not in ("cmim", "jmi", "mrmr"):
        raise ValueError(f"Unknown criterion {criterion!r}: expected 'cmim', 'jmi' or 'mrmr'.")
    if labels is None:
        raise ValueError("Choosing by evidence needs the class of each image; got none: pass labels.")
    evidence = question_evidence(logits, mass, labels, bank.questions, bank.ids)
    codes = class_codes(labels)
    usable = ~np.isnan(logits).any(axis=1) & (codes >= 0)
    logits, codes = logits[usable].astype(np.float64), np.unique(codes[usable], return_inverse=True)[1]
    classes = len(np.unique(codes))
    if classes < 2:
        raise ValueError(
            f"The {len(codes)} images with answers and a class show {classes} class{'es' * (classes != 1)}, and there "
            "is nothing to tell apart: take images of at least two."
        )
    search = _Search(logits, codes, evidence, keep, criterion)
    search.run()
    if not search.chosen:
        raise ValueError(
            f"None of the {len(bank)} questions tells more about the class than chance with {len(codes)} images of "
            f"{classes} classes: label more images of each class, or ask other questions."
        )
    bank_kept = AspectBank([bank[i] for i in search.chosen])
    choices = tuple(search.choice(i) for i in range(len(bank)))
    return Selection(choices, bank_kept, keep, len(codes), classes, class_entropy(codes.tolist()), criterion)


class _Search:
    """The greedy search for `keep` of all candidates; `chosen` are their indices in order."""

    def __init__(
        self,
        logits: np.ndarray,
        codes: np.ndarray,
        evidence: Sequence[QuestionEvidence],
        keep: int,
        criterion: Criterion,
    ):
        self.evidence, self.keep, self.criterion, self.codes = evidence, keep, criterion, codes
        self.p = special.expit(logits)
        self.correlations = correlations(logits)
        self.information, self.limit = _beyond_chance(self.p, codes, np.zeros(len(codes), dtype=int))
        self.scores = self.information
        self.chosen: list[int] = []
        self.candidates = [i for i, row in enumerate(evidence) if not {"constant", "low mass"} & set(row.notes)]
        self.new_bits = np.empty((0, len(evidence)))  # [chosen, N]: I(A_i; C | B_j) beyond chance, of candidates
        self.is_new = np.empty((0, len(evidence)), dtype=bool)  # whether that is clearly more than chance
        self.shared = np.empty((0, len(evidence)))  # [chosen, N]: I(A_i; B_j)
        self.decided: dict[int, Choice] = {}

    def run(self) -> None:
        while len(self.chosen) < self.keep and (able := self._able()):
            self._take(max(able, key=lambda i: self.scores[i]))
            for i, reason in [(i, self._refusal(i)) for i in self.candidates]:
                if reason:
                    self._drop(i, reason)
        able = self._able()
        for i in list(self.candidates):
            self._drop(i, "weaker than the kept" if i in able else "no more than chance")

    def _able(self) -> list[int]:
        """Who may come next: the first question has to tell something by itself."""
        return [i for i in self.candidates if self.chosen or self.information[i] > self.limit[i]]

    def _refusal(self, i: int) -> str:
        """Why a candidate cannot be chosen any more; empty where it can."""
        ids = [self.evidence[j].id for j in self.chosen]
        for j, name in zip(self.chosen, ids):
            if abs(self.correlations[i, j]) > SAME_QUESTION:
                return f"{'same as' if self.correlations[i, j] > 0 else 'opposite of'} {name}"
        if self.criterion != "cmim" or self.is_new[:, i].all():
            return ""
        if self.new_bits[:, i].min() > self.information[i] / 2 or self.information[i] <= self.limit[i]:
            return "no more than chance"
        redundant_with = [k for k in np.argsort(self.new_bits[:, i], kind="stable") if not self.is_new[k, i]]
        return f"told already by {', '.join(ids[k] for k in redundant_with[:MOST_NAMED])}"

    def _take(self, best: int) -> None:
        self._drop(best, "kept", rank=len(self.chosen) + 1)
        self.chosen.append(best)
        high, p = _high(self.p[:, best]).astype(int), self.p[:, self.candidates]
        new_bits, limit, shared = np.zeros((3, len(self.evidence)))
        new_bits[self.candidates], limit[self.candidates] = _beyond_chance(p, self.codes, high)
        shared[self.candidates] = conditional_information(p, high)
        self.new_bits = np.vstack([self.new_bits, new_bits])
        self.is_new = np.vstack([self.is_new, new_bits > np.maximum(limit, (1 - REDUNDANT_FROM) * self.information)])
        self.shared = np.vstack([self.shared, shared])
        if self.criterion == "mrmr":
            self.scores = self.information - self.shared.mean(axis=0)
        else:
            self.scores = self.new_bits.min(axis=0) if self.criterion == "cmim" else self.new_bits.mean(axis=0)

    def _drop(self, i: int, reason: str, rank: int | None = None) -> None:
        """Decide on a candidate, chosen or refused."""
        self.candidates.remove(i)
        score = float(self.scores[i])
        told_by = self.evidence[self.chosen[int(self.new_bits[:, i].argmin())]].id if self.chosen else None
        redundancy = float(self.information[i]) - score
        self.decided[i] = Choice(self.evidence[i], rank, reason, score, redundancy, told_by)

    def choice(self, i: int) -> Choice:
        notes = self.evidence[i].notes
        return self.decided.get(i) or Choice(self.evidence[i], None, "low mass" if "low mass" in notes else "constant")


def _high(p: np.ndarray) -> np.ndarray:
    """[n] whether each value lies in the upper of the two groups that explain most of the variance (Otsu 1979)."""
    values = np.sort(p)
    below = np.arange(1, len(values))
    sums = values.cumsum()
    between = (sums[:-1] - sums[-1] * below / len(values)) ** 2 / (below * (len(values) - below))
    between[values[1:] <= values[:-1]] = -1  # no cut between equal values
    return p > values[between.argmax()] if between.max() > 0 else np.zeros(len(p), dtype=bool)


def _beyond_chance(p: np.ndarray, codes: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """I(A_i; class | cells) less what chance gives, and what that has to exceed: [N] bits each."""
    generator = np.random.default_rng(0)
    by_chance = []
    order = np.argsort(cells, kind="stable")
    for _ in range(SHUFFLES):
        mixed = np.empty_like(codes)
        mixed[order] = codes[np.lexsort((generator.random(len(cells)), cells))]  # within each cell
        by_chance.append(conditional_information(p, mixed, cells))
    mean = np.mean(by_chance, axis=0)
    return conditional_information(p, codes, cells) - mean, SURE * np.std(by_chance, axis=0, ddof=1) + 1e-9
