"""How far each way of reading is from one forward pass per question, for every architecture of the tests.

Tiny models with random weights, in float32: the largest difference in log-odds over their standard deviation between
questions. What is in brackets is ruled out by the architecture's configuration; a dash could not be computed.

    python benchmarks/exactness.py
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from tqdm.auto import tqdm

from madkd_hf import AspectTeacher
from madkd_hf.report import markdown_table
from madkd_hf.teachers.mllm.selfcheck import allowed, check
from madkd_hf.teachers.mllm.strategies import STRATEGIES


sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from builders.tiny_mllms import MLLMS, mllm  # noqa: E402
from teachers.test_strategies import bank, pictures  # noqa: E402


def measure(names: list[str]) -> list[dict[str, object]]:
    rows = []
    for name in tqdm(names, unit=" architectures"):
        teacher = AspectTeacher(*mllm(name))
        layout = teacher.layout(bank())
        with torch.inference_mode():
            errors, _ = check(teacher.model, layout, pictures(), teacher.reduce, list(STRATEGIES), 64)
        plan = teacher.prepare(pictures(), bank())
        own = {"errors": errors, "allowed": allowed(teacher.model, layout), "chosen": plan["strategy"]}
        rows.append({"name": name, **own})
    return rows


def table(rows: list[dict[str, object]]) -> str:
    others = [name for name in STRATEGIES if name != "full"]
    lines = [["Architecture", *others, "auto takes"]]
    for row in rows:
        cells = []
        for name in others:
            text = "-" if row["errors"][name] is None else f"{row['errors'][name]:.0e}"
            cells.append(text if name in row["allowed"] else f"({text})")
        lines.append([row["name"], *cells, row["chosen"]])
    return markdown_table(lines, right=range(1, len(others) + 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", choices=MLLMS, default=list(MLLMS), help="by default all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    rows = measure(args.architectures)
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
