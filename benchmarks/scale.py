"""What grows with the number of images? Memory and the time of a row, labelled as a stream and as a map.

Made-up images of 64 pixels (JPEG, about 4 kB) are labelled by a teacher that only looks at how bright they are,
so that the time is that of decoding, of the job and of the disk. Each job runs in a process of its own. Its highest
memory is what it holds itself (RssAnon in Linux): files that are mapped stay in memory as long as there is room, and
go when there is none. The time of a row is that of the first tenth of all images, and of the last.

    python benchmarks/scale.py [--images 1000 100000] [--ways stream map] [--questions 50] [--shard_size 500]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from madkd_hf import Aspect, AspectBank, Reading, attach_aspects
from madkd_hf.report import markdown_table
from madkd_hf.teachers import Teacher


ROOT = Path(__file__).resolve().parents[1]
FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})


class Brightness(Teacher):
    """Answers each question by how bright an image is, at once; notes when it was asked."""

    identity = {"model": "brightness"}

    def __init__(self) -> None:
        self.asked: list[tuple[int, float]] = []  # images so far, and when

    def read(self, images: Sequence[Image.Image], bank: AspectBank) -> Reading:
        self.asked.append(((self.asked[-1][0] if self.asked else 0) + len(images), time.perf_counter()))
        bright = torch.tensor([np.asarray(image).mean() / 128 - 1 for image in images], dtype=torch.float32)
        return Reading(bright[:, None].repeat(1, len(bank)), torch.ones(len(images), len(bank)))

    def microseconds(self, first: float, last: float) -> float:
        """Of a row, between these shares of all images."""
        images = self.asked[-1][0]
        begun, ended = (min(self.asked, key=lambda at: abs(at[0] - share * images)) for share in (first, last))
        return 1e6 * (ended[1] - begun[1]) / (ended[0] - begun[0])


class Peak(threading.Thread):
    """The most memory that this process has held itself, in bytes, looked at every 20 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0

    def run(self) -> None:
        while True:
            line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
            self.bytes = max(self.bytes, int(line.split()[1]) * 1024)
            time.sleep(0.02)


def made_up(count: int, size: int = 64) -> Iterator[dict[str, Any]]:
    """Images of noise, which compress badly."""
    import io

    for seed in range(count):
        pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG")
        yield {"image": {"bytes": file.getvalue(), "path": None}, "label": seed % 10}


def label(way: str, count: int, questions: int, shard_size: int) -> dict[str, Any]:
    """Label the images here and now, and measure this process."""
    torch.set_num_threads(1)
    peak = Peak()
    peak.start()
    bank = AspectBank([Aspect(f"bright-{i}", f"Is it brighter than {i}?") for i in range(questions)])
    teacher = Brightness()
    with tempfile.TemporaryDirectory() as folder:
        if way == "stream":
            rows = datasets.IterableDataset.from_generator(made_up, features=FEATURES, gen_kwargs={"count": count})
        else:
            settings = {"features": FEATURES, "gen_kwargs": {"count": count}, "cache_dir": f"{folder}/cache"}
            rows = datasets.Dataset.from_generator(made_up, **settings)
        settings = {"shard_size": shard_size, "stream_name": f"{count} images" if way == "stream" else None}
        started = time.perf_counter()
        attach_aspects(rows, bank, teacher, work_dir=f"{folder}/work", **settings)
        seconds = time.perf_counter() - started
        written = sum(path.stat().st_size for path in Path(folder, "work").rglob("*") if path.is_file())
    return {
        "way": way,
        "images": count,
        "peak_mb": peak.bytes / 1e6,
        "written_mb": written / 1e6,
        "seconds": seconds,
        "first_us": teacher.microseconds(0, 0.1),
        "last_us": teacher.microseconds(0.9, 1),
    }


def measure(way: str, count: int, questions: int, shard_size: int) -> dict[str, Any]:
    """The same in a process of its own, since a process never forgets its peak."""
    command = [sys.executable, __file__, "--questions", str(questions), "--shard_size", str(shard_size)]
    command += ["--one", way, str(count)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 100000], help="how many, one job each")
    parser.add_argument("--ways", nargs="+", choices=["stream", "map"], default=["stream", "map"])
    parser.add_argument("--questions", type=int, default=50, help="of the bank")
    parser.add_argument("--shard_size", type=int, default=500, help="rows of a shard")
    parser.add_argument("--json", metavar="FILE", help="write the rows there, too")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(label(args.one[0], int(args.one[1]), args.questions, args.shard_size)))
        return
    rows = [measure(way, count, args.questions, args.shard_size) for way in args.ways for count in args.images]
    head = [
        "Labelled as",
        "Images",
        "Written, MB",
        "Highest memory, MB",
        "A row of the first tenth, µs",
        "last",
    ]
    table = [
        [row["way"], f"{row['images']:,}", *(f"{row[name]:.0f}" for name in ("written_mb", "peak_mb", "first_us"))]
        + [f"{row['last_us']:.0f}"]
        for row in rows
    ]
    print(markdown_table([head, *table], right=range(1, 6)))
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
