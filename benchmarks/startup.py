"""How long does it take to begin: CPU seconds of imports, of help, and until a mistake is told.

Every command runs in fresh processes, one after the other by turns, and the table shows the median. `ratio` is to
`import torch, transformers, datasets`.

    python benchmarks/startup.py [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


LIBRARIES = "import torch, transformers, datasets"
VERBS, TYPO = ("ask", "choose", "label", "train", "compare", "tune", "serve"), "photso/birds"
COMMANDS = {  # name -> words behind `python`
    LIBRARIES: ["-c", LIBRARIES],
    f"{LIBRARIES}, madkd_hf": ["-c", f"{LIBRARIES}, madkd_hf"],
    "import madkd_hf": ["-c", "import madkd_hf"],
    "madkd --help": ["-m", "madkd_hf", "--help"],
    **{f"madkd {verb} --help": ["-m", "madkd_hf", verb, "--help"] for verb in VERBS},
    **{f"madkd {verb}, a mistyped option": ["-m", "madkd_hf", verb, "--limmit", "3"] for verb in ("label", "train")},
    **{f"madkd {verb}, a mistyped folder": ["-m", "madkd_hf", verb, "--dataset", TYPO] for verb in ("label", "train")},
}


def measure(words: list[str], folder: str) -> tuple[float, float]:
    """CPU seconds and seconds by the clock of one process."""
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    before, started = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True)
    wall, after = time.perf_counter() - started, os.times()
    return sum(getattr(after, name) - getattr(before, name) for name in ("children_user", "children_system")), wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "photos", "birds").mkdir(parents=True)
        for _ in range(args.rounds + 1):  # the first round fills the caches of the disk
            for name, words in COMMANDS.items():
                seconds[name].append(measure(words, folder))
    rows: list[dict[str, Any]] = []
    for name, rounds in seconds.items():
        cpu, wall = (statistics.median(values) for values in zip(*rounds[1:]))
        rows.append({"name": name, "cpu_seconds": cpu, "seconds": wall})
    print("| what | CPU seconds | seconds | ratio |\n| --- | ---: | ---: | ---: |")
    for row in rows:
        row["ratio"] = row["cpu_seconds"] / rows[0]["cpu_seconds"]
        print(f"| {row['name']} | {row['cpu_seconds']:.2f} | {row['seconds']:.2f} | {row['ratio']:.3f} |")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
