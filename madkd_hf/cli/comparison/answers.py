"""What the answers alone would give: classes by a logistic regression on them, beside the students."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from ... import AspectBank
from ...data.columns import is_labelled, read_answers, stored
from ...data.duplicates import shown_in
from ...selection.posterior import fit_posterior
from .. import train
from .cells import Cell
from .options import CompareArguments


NO_OTHERS = "No image has answers but the training images"
LABEL_OTHERS = "label the validation images, too (`madkd label --splits train validation`)"


class AnswersAlone:
    """Of a comparison of classifiers: how well a logistic regression on the answers about the training images of each
    seed tells the classes of other images that have answers.

    Those are the test images where all of them have answers; else the validation images, and the training images that
    were not drawn for the seed. Nothing is chosen on them.
    """

    def __init__(self, args: CompareArguments, labelled: DatasetDict, bank: AspectBank):
        self.args, self.bank, self.rows = args, bank, labelled[args.train_split]
        self.answers = self._read(self.rows)
        self.others = {"test": self._read(labelled[args.test_split], complete=True)}
        if not len(self.others["test"][0]):
            validation = labelled.get(args.eval_split)
            self.others = {} if validation is None else {"validation": self._read(validation)}
        self.known: dict[tuple[int | None, bytes], dict[str, Any]] = {}

    def measure(self, cells: Mapping[tuple[str, int], Cell], count: int | None = None) -> dict[str, Any]:
        """For the draws of these students, with the answers to the first `count` questions, or to all.

        Returns:
            In the order of the seeds: `accuracy` in per cent, `fitted` (on how many training images), and `images`
            (tested on how many); and `of`: whether these are of "test", or of "validation" and "train". Or `unknown`:
            why there is no such number.
        """
        condition = (
            self.args.treated if self.args.treated in self.args.controls() else next(iter(self.args.controls()))
        )
        seeds = []
        for seed in range(self.args.seeds):
            drawn = self._drawn(cells[condition, seed])
            key = (count, drawn.tobytes())
            try:
                self.known[key] = self.known.get(key) or self._of_draw(drawn, count)
            except ValueError as error:
                return {"unknown": str(error)}
            seeds.append(self.known[key])
        found = {name: [values[name] for values in seeds] for name in ("accuracy", "fitted", "images")}
        return {**found, "of": seeds[0]["of"]}

    def _read(self, rows: Dataset, complete: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Answers [n, Q] and class indices [n], -1 where unknown; with `complete`, none unless all have answers."""
        nothing = np.empty((0, len(self.bank)), dtype=np.float32), np.empty(0, dtype=np.int64)
        if not is_labelled(rows.features):
            return nothing
        logits, _, counts = read_answers(rows, self.bank)
        if complete and (counts["unlabelled"] or not counts["images"]):
            return nothing
        return logits, stored(rows, self.args.label_column).fill_null(-1).to_numpy()

    def _drawn(self, cell: Cell) -> np.ndarray:
        """The training images that a student sees, as ascending row numbers."""
        student, training = train.parse(list(cell.argv))
        places = self.rows.select_columns(self.args.label_column).add_column("row", list(range(len(self.rows))))
        return np.sort(self.args.command.draw(places, student, training.seed)["row"][:])

    def _of_draw(self, drawn: np.ndarray, count: int | None) -> dict[str, Any]:
        others = dict(self.others)
        if "test" not in others:
            rest = np.flatnonzero(~shown_in(self.rows, (self.rows, drawn), self.args.image_column))
            rest = np.setdiff1d(rest, drawn)  # also those whose files cannot be compared
            others["train"] = tuple(values[rest] for values in self.answers)
        usable = {name: ~np.isnan(logits).any(axis=1) & (labels >= 0) for name, (logits, labels) in others.items()}
        others = {name: [values[usable[name]] for values in others[name]] for name in others if usable[name].any()}
        if not others:
            raise ValueError(f"{NO_OTHERS}; {LABEL_OTHERS}." if self.others else f"{NO_OTHERS}.")
        logits, labels = (np.concatenate(values) for values in zip(*others.values()))
        classes = self.args.command.classes(self.rows, self.args).num_classes
        posterior = fit_posterior(self.answers[0][drawn, :count], self.answers[1][drawn], classes)
        right = posterior.class_logits(logits[:, :count]).argmax(axis=1) == labels
        counts = {"fitted": posterior.rows, "images": len(labels), "of": list(others)}
        return {"accuracy": 100 * float(right.mean()), **counts}
