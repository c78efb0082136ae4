"""Does the memory of a labelling job stay flat, however long the stream?

Labels streams of made-up images with the demo's tiny teacher, each in a process of its own, and prints the highest
memory that each process held (resident set). The images exist nowhere but on their way through.

    python benchmarks/streaming.py [--images 1000 20000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
SHARD = 200


def made_up(count: int, size: int = 64) -> Iterator[dict[str, Any]]:
    """Images of noise, which compress badly: `count` JPEG files of about 4 kB."""
    import io

    import numpy as np
    from PIL import Image

    for seed in range(count):
        pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG")
        yield {"image": {"bytes": file.getvalue(), "path": None}, "label": seed % 10}


def label(count: int) -> dict[str, Any]:
    """Label one stream here and now, and measure this process."""
    import datasets
    import torch

    from madkd_hf import AspectBank, AspectTeacher, attach_aspects

    torch.set_num_threads(1)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    stream = datasets.IterableDataset.from_generator(made_up, features=features, gen_kwargs={"count": count})
    bank = AspectBank.load(ROOT / "recipes" / "easy_vqa" / "aspects.json")
    teacher = AspectTeacher.from_pretrained(str(ROOT / "recipes" / "easy_vqa" / "teacher"))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        attach_aspects(stream, bank, teacher, work_dir=folder, shard_size=SHARD)
        seconds = time.perf_counter() - started
        written = sum(path.stat().st_size for path in Path(folder).glob("data/*.parquet"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"images": count, "peak_mb": peak / 1e6, "written_mb": written / 1e6, "seconds": seconds}


def measure(count: int) -> dict[str, Any]:
    """The same in a process of its own, since a process never forgets its peak."""
    command = [sys.executable, __file__, "--one", str(count)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 20000], help="lengths of the streams")
    parser.add_argument("--json", metavar="FILE", help="write the rows there, too")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(label(args.one)))
        return
    rows = [measure(count) for count in args.images]
    print("| Stream | Parquet written, MB | Highest memory, MB | of the first | images/s |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        row |= {"name": f"{row['images']:,} images", "ratio": row["peak_mb"] / rows[0]["peak_mb"]}
        numbers = f"{row['written_mb']:.0f} | {row['peak_mb']:.0f} | {row['ratio']:.2f}"
        print(f"| {row['name']} | {numbers} | {row['images'] / row['seconds']:.0f} |")
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
