"""How many dense TFLOP/s does this machine reach? What other rates are shares of.

Products of two square matrices of random numbers (zeros would need less power, and run faster), repeated for a second
after three that do not count.

    python benchmarks/matmul.py --device cuda
    python benchmarks/matmul.py --device cpu --sizes 512 --dtypes float32
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch


def seconds(size: int, dtype: torch.dtype, device: str, least: float) -> float:
    """Of one product, the mean of as many as fill `least` seconds."""
    torch.manual_seed(0)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    synchronize = torch.cuda.synchronize if device.startswith("cuda") else lambda: None

    def repeated(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            left @ right
        synchronize()
        return time.perf_counter() - start

    repeated(3)
    times = 1
    while (taken := repeated(times)) < least:
        times = max(2 * times, int(1.1 * times * least / taken))
    return taken / times


def measure(args: argparse.Namespace) -> list[dict[str, float | str]]:
    rows = []
    for dtype in args.dtypes:
        for size in args.sizes:
            rate = 2 * size**3 / seconds(size, getattr(torch, dtype), args.device, args.seconds) / 1e12
            rows.append({"name": f"{dtype}, {size}", "dtype": dtype, "size": size, "tflops": rate})
            print(f"{dtype}, {size} x {size}: {rate:.4g} TFLOP/s")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 8192, 16384], help="sides of the matrices")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], help="what to compute in")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement, at least")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to compute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    args = parser.parse_args()
    rows = measure(args)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
