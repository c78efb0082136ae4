"""What questions chosen by evidence are worth against questions drawn at random, by what their answers alone tell.

The questions are chosen on the answers about the training images, a logistic regression on the chosen answers is
fitted on the same images, and its accuracy is that on the validation images; no test image and no student is needed.
Any dataset does whose training and validation images have classes and answers to all questions.

    python recipes/flowers102/questions.py --dataset runs/flowers102/labelled --output_dir runs/flowers102/questions

Leaves questions_curve.md, figures/questions_curve.png, and what each question tells by itself: questions.md.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import load_from_disk

from madkd_hf import AspectBank
from madkd_hf.cli.arguments import command_line
from madkd_hf.data.columns import read_answers, read_labels
from madkd_hf.files import write_whole
from madkd_hf.report.comparison import markdown_table, mean_text
from madkd_hf.report.figures import GREY, STUDENT, new_axes, new_figure, save
from madkd_hf.selection.choice import select_questions
from madkd_hf.selection.evidence import write_evidence
from madkd_hf.selection.posterior import fit_posterior
from madkd_hf.text import block


TITLE = "Accuracy of the answers alone against the number of questions"
SPLITS = ("train", "validation")


class Answers:
    """The answers about the training and the validation images, and what some of the questions tell together."""

    def __init__(self, folder: Path, label_column: str):
        self.bank, splits = AspectBank.load(folder), load_from_disk(folder)
        if missing := set(SPLITS) - set(splits):
            raise ValueError(f"There is no split {missing.pop()!r} in {folder}: it has {list(splits)}.")
        self.rows = [splits[split] for split in SPLITS]
        self.answers = [read_answers(rows, self.bank) for rows in self.rows]
        self.labels, (self.names, _) = zip(*(read_labels(rows, label_column) for rows in self.rows))
        if None in self.labels:
            raise ValueError(f"There is no column {label_column!r} of classes: pass --label_column.")
        self.known: dict[tuple[int, ...], float] = {}

    def chosen(self, count: int) -> list[int]:
        """Positions of the questions that are chosen by evidence; they may be fewer than asked for."""
        selection = select_questions(*self.answers[0][:2], self.labels[0], self.bank, count)
        return [self.bank.ids.index(name) for name in selection.bank.ids]

    def accuracy(self, questions: Sequence[int]) -> float:
        """In per cent of the validation images, of a regression on the answers to these questions."""
        questions = tuple(sorted(questions))
        if questions not in self.known:
            train, validation = (logits[:, questions] for logits, *_ in self.answers)
            index = {name: code for code, name in enumerate(self.names)}
            codes = [np.array([index.get(label, -1) for label in labels]) for labels in self.labels]
            logits = fit_posterior(train, codes[0], len(index), self.names).class_logits(validation)
            tested = ~np.isnan(logits).any(axis=1) & (codes[1] >= 0)
            self.known[questions] = 100 * float((logits.argmax(axis=1) == codes[1])[tested].mean())
        return self.known[questions]


def measure(answers: Answers, counts: Sequence[int], draws: int) -> list[dict]:
    """For each number of questions: `count`, `kept` by evidence, `evidence`, and `random`, an accuracy a draw."""
    orders = [np.random.default_rng(seed).permutation(len(answers.bank)) for seed in range(draws)]
    points = []
    for count in counts:
        chosen, random = answers.chosen(count), [answers.accuracy(order[:count]) for order in orders]
        points.append({"count": count, "kept": len(chosen), "evidence": answers.accuracy(chosen), "random": random})
    return points


def table(points: Sequence[dict]) -> str:
    head = ["Questions", "By evidence, %", "At random, %", "Lowest to highest draw", "Evidence less random, points"]
    lines = [head]
    for point in points:
        fewer = f" ({point['kept']} kept)" if point["kept"] < point["count"] else ""
        drawn, ahead = point["random"], point["evidence"] - np.mean(point["random"])
        lines.append([str(point["count"]), f"{point['evidence']:.1f}{fewer}", mean_text(drawn)])
        lines[-1] += [f"{min(drawn):.1f} to {max(drawn):.1f}", f"{ahead:+.1f}"]
    return markdown_table(lines, right=range(5))


def plot(points: Sequence[dict], path: Path) -> Path:
    """The mean and the range of the random draws, and the choice by evidence."""
    x, drawn = [point["count"] for point in points], np.array([point["random"] for point in points])
    figure = new_figure(7.0, 4.4, TITLE)
    ax = new_axes(figure, f"Logistic regression; band: lowest to highest of {drawn.shape[1]} random draws")
    ax.fill_between(x, drawn.min(axis=1), drawn.max(axis=1), color=GREY, alpha=0.2, linewidth=0)
    ax.plot(x, drawn.mean(axis=1), "o--", color=GREY, linewidth=2, label="at random: mean")
    evidence = [point["evidence"] for point in points]
    ax.plot(x, evidence, "o-", color=STUDENT, linewidth=2.4, label="by evidence")
    ax.set(xlabel="questions asked of each image", ylabel="accuracy on the validation images, %")
    ax.set_xticks(x)
    ax.grid(axis="y", color="#EEEEEE")
    ax.legend(frameon=False, loc="lower right", fontsize=9)
    return save(figure, path)


def run(args: Namespace) -> None:
    answers = Answers(args.dataset, args.label_column)
    if wrong := [count for count in args.counts if not 0 < count <= len(answers.bank)]:
        raise ValueError(f"Cannot choose {wrong[0]} of {len(answers.bank)} questions: pass other --counts.")
    print(write_evidence(answers.rows[0], answers.bank, args.output_dir, args.label_column).table)
    points = measure(answers, sorted(args.counts), args.draws)
    plot(points, args.output_dir / "figures" / "questions_curve.png")
    train, validation = (f"{len(rows):,} {split} images" for rows, split in zip(answers.rows, SPLITS))
    about = f"Of {len(answers.bank)} questions, chosen and fitted on {train}, tested on {validation}."
    parts = [f"# {TITLE}", about, table(points)]
    parts += ["![The curve](figures/questions_curve.png)", block(f"python {command_line()}", "bash")]
    path = write_whole(args.output_dir / "questions_curve.md", "\n\n".join(parts) + "\n")
    print(f"\n{table(points)}\nTable and picture: {path}")


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True, help="A folder that `madkd label` left.")
    parser.add_argument("--output_dir", type=Path, required=True, help="The folder for tables and pictures.")
    parser.add_argument("--label_column", default="label", help="The column of classes.")
    parser.add_argument("--counts", type=int, nargs="+", default=[5, 10, 20, 50], help="How many questions to choose.")
    parser.add_argument("--draws", type=int, default=5, help="Random draws for each number of questions.")
    args = parser.parse_args()
    try:
        run(args)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
