"""Does `madkd view` bring up labels that are wrong? On easy-VQA with a share of the labels exchanged at random.

Prints how well each way ranks the exchanged labels: area under the ROC curve, and the share of them among as many
images at the top. The answers are the tiny teacher's; confident learning (Northcutt et al. 2021) needs
`pip install cleanlab`, and is given the probabilities of a distilled student, trained on the other folds with the same
wrong labels, and those of the answers themselves.

    python benchmarks/label_mistakes.py --labelled runs/labelled [--seeds 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import Dataset, DatasetDict, load_from_disk
from scipy.special import softmax
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from madkd_hf import AspectBank
from madkd_hf.cli.main import run
from madkd_hf.data.columns import read_answers
from madkd_hf.report import markdown_table
from madkd_hf.selection.posterior import held_out_logits
from madkd_hf.viewer.suspects import judge


ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ROOT / "recipes/easy_vqa/distill.yaml"
OURS = "madkd view"


def exchanged(labels: np.ndarray, share: float, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels [n] of which a share is another class at random, and which rows these are."""
    generator = np.random.default_rng(seed)
    wrong = generator.choice(len(labels), round(share * len(labels)), replace=False)
    noisy = labels.copy()
    noisy[wrong] = (noisy[wrong] + generator.integers(1, classes, len(wrong))) % classes
    return noisy, np.isin(np.arange(len(labels)), wrong)


def student_probabilities(rows: Dataset, labels: np.ndarray, folder: Path, folds: int, steps: int) -> np.ndarray:
    """[n, C] of students that have not seen the image, trained on these labels and the answers."""
    classes = rows.features["label"].num_classes
    with_labels = rows.remove_columns("label").add_column("label", labels.tolist(), feature=rows.features["label"])
    settings = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    for name in ("images_per_class", "teacher"):
        settings.pop(name)
    settings |= {"max_steps": steps, "eval_strategy": "no", "save_strategy": "no", "dataset": str(folder / "data")}
    settings |= {name: str(ROOT / settings[name]) for name in ("backbone", "bank")}
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    probabilities = np.zeros((len(labels), classes))
    for k, (trained, tested) in enumerate(StratifiedKFold(folds, shuffle=True, random_state=0).split(labels, labels)):
        parts = {"train": trained, "validation": tested[:classes], "test": tested}
        DatasetDict({name: with_labels.select(part) for name, part in parts.items()}).save_to_disk(folder / "data")
        train(folder / "settings.yaml", folder / f"student{k}")
        with np.load(folder / f"student{k}/test_predictions.npz") as predictions:
            probabilities[tested] = softmax(predictions["logits"].astype(float), axis=1)
    return probabilities


def train(settings: Path, output_dir: Path) -> None:
    """`madkd train`, in this process."""
    import sys

    from madkd_hf.cli.train import main

    before, sys.argv = sys.argv, ["madkd train", "--config", str(settings), "--output_dir", str(output_dir)]
    try:
        run(main)
    finally:
        sys.argv = before


def ways(rows: Dataset, bank: AspectBank, labels: np.ndarray, folds: int, steps: int) -> dict[str, np.ndarray]:
    """Way of ranking -> score [n], higher for labels that are likelier to be wrong."""
    answers, _, _ = read_answers(rows, bank)
    classes = rows.features["label"].num_classes
    scores = {OURS: judge(answers, labels, classes).scores}
    try:
        from cleanlab.rank import get_label_quality_scores
    except ModuleNotFoundError:
        print("cleanlab is not installed, and confident learning is left out: pip install cleanlab")
        return scores
    with tempfile.TemporaryDirectory() as folder:
        student = student_probabilities(rows, labels, Path(folder), folds, steps) if folds else None
    answered = np.exp(held_out_logits(answers, labels, classes).astype(float))
    for name, p in (("confident learning, student", student), ("confident learning, answers", answered)):
        if p is not None:
            p = p / p.sum(axis=1, keepdims=True)
            scores[name] = -get_label_quality_scores(labels, p, method="self_confidence", adjust_pred_probs=True)
    return scores


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows, bank = load_from_disk(args.labelled)["train"], AspectBank.load(args.labelled)
    right, classes = np.array(rows["label"]), rows.features["label"].num_classes
    figures: dict[str, list[tuple[float, float]]] = {}
    for seed in range(args.seeds):
        labels, wrong = exchanged(right, args.share, classes, seed)
        for name, scores in ways(rows, bank, labels, args.folds, args.steps).items():
            top = np.argsort(-scores, kind="stable")[: wrong.sum()]
            figures.setdefault(name, []).append((roc_auc_score(wrong, scores), float(wrong[top].mean())))
    return [
        {"name": name, "auroc": [auroc for auroc, _ in pairs], "top": [top for _, top in pairs]}
        for name, pairs in figures.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    lines = [["Way", "AUROC", "Lowest", "Wrong among as many at the top, %"]]
    for row in rows:
        means = [f"{np.mean(row['auroc']):.4f}", f"{min(row['auroc']):.4f}", f"{100 * np.mean(row['top']):.1f}"]
        lines.append([row["name"], *means])
    return markdown_table(lines, right=(1, 2, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labelled", type=Path, default=Path("runs/labelled"), help="what `madkd label` wrote")
    parser.add_argument("--share", type=float, default=0.05, help="of the labels that are exchanged")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, default=3, help="students for each seed; 0 trains none")
    parser.add_argument("--steps", type=int, default=1000, help="of each student")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    args = parser.parse_args()
    rows = measure(args)
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
