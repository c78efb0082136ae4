"""How many images does one core decode and preprocess in a second, and how many cores does a reading rate need?

A JPEG of 500 x 375 pixels is decoded and made into what a multimodal LLM takes, by InternVL's image processor for one
tile of 448 pixels, and for as many as it makes of such an image (13); in one thread.

    python benchmarks/preprocessing.py
    python benchmarks/preprocessing.py --rate 100    # images/s that a card reads: how many cores keep it busy
    python benchmarks/preprocessing.py --sizes 500x375 4000x3000 6000x4500 12000x9000    # large photographs, too
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image


def photograph(width: int = 500, height: int = 375) -> bytes:
    """Noise that is smooth in the small, as a JPEG of some 50 kB."""
    coarse = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def decode(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


def processors() -> dict[str, Callable[[Image.Image], int]]:
    """By name what takes an image and returns the number of its tiles."""
    size = {"height": 448, "width": 448}
    with_pillow = transformers.GotOcr2ImageProcessorPil
    kinds = {"Pillow": with_pillow}
    default = transformers.GotOcr2ImageProcessor  # torchvision's, where that is installed
    if default is not with_pillow:
        kinds["torchvision"] = default
    made = {}
    for kind, processor in kinds.items():
        one = processor(size=size, crop_to_patches=False)
        several = processor(size=size, crop_to_patches=True, min_patches=1, max_patches=12)
        for tiles, each in (("1 tile", one), ("all tiles", several)):
            made[f"{tiles}, {kind}"] = lambda image, each=each: len(each(image, return_tensors="pt")["pixel_values"])
    return made


def rate(step: Callable[[], object], least: float) -> float:
    """Steps a second, over `least` seconds, after one that does not count."""
    step()
    start, count = time.perf_counter(), 0
    while (taken := time.perf_counter() - start) < least or not count:
        step()
        count += 1
    return count / taken


def measure(args: argparse.Namespace) -> list[dict[str, float | str]]:
    torch.set_num_threads(1)
    rows = []
    for width, height in args.sizes:
        content, size = photograph(width, height), f"{width} x {height}"
        ways = {"decoding alone": lambda image: 0}
        ways |= {f"decoding, {name}": process for name, process in processors().items()}
        for name, process in ways.items():
            found = rate(lambda process=process, content=content: process(decode(content)), args.seconds)
            row = {"name": name, "size": size, "tiles": process(decode(content)), "images_per_second": found}
            each = f"{found:.4g} images/s of one core, {1000 / found:.4g} ms each"
            line = f"{size}, {name} ({row['tiles']} tiles): {each}"
            if args.rate:
                row["cores"] = args.rate / found
                line += f"; {args.rate:g} images/s need {row['cores']:.1f} cores"
            print(line, flush=True)
            rows.append(row)
    return rows


def width_and_height(text: str) -> tuple[int, int]:
    """500x375 -> (500, 375)"""
    width, height = text.split("x")
    return int(width), int(height)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, help="images/s for which to say how many cores are needed")
    sizes = {"type": width_and_height, "nargs": "+", "default": [(500, 375)]}
    parser.add_argument("--sizes", **sizes, help="width x height of the photographs")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement, at least")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    args = parser.parse_args()
    rows = measure(args)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
