"""Everything that only a GPU can answer, in at most nine minutes; benchmarks/gpu.sh prepares a bare machine for it.

Each part is a process with a time limit of its own; when the time for all of them is up, the others are skipped. The
one JSON file is written after each part, so that it holds what was done, whatever ends this early.

    python benchmarks/gpu.py --output gpu.json
    python benchmarks/gpu.py --output gpu.json --only "dense rate" training
    python benchmarks/gpu.py --output gpu.json --rehearse     # tiny shapes on the CPU: does everything run?
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from madkd_hf.files import write_whole  # noqa: E402


READING = "benchmarks/reading.py --device cuda --dtype bfloat16 --rounds 3"
EPOCHS = "benchmarks/epochs.py --device cuda"
TINY_READING = "--shape tiny --tiles 1 --images 1 --questions 3 --rounds 1 --device cpu --dtype float32"
TINY_EPOCHS = "--device cpu --images 4 --batch_sizes 4 --epochs 2 --variants float32 --plain_batches 1"
TINY_EPOCHS += " --plain_seconds 0.001"
MARGIN = 3.0  # seconds kept for ending a part and writing the file
VERSIONS = (
    "torch transformers accelerate datasets evaluate huggingface_hub peft timm torchvision flash_attn numpy pillow"
)


@dataclass(frozen=True)
class Part:
    """A command line, given to Python, that leaves its rows where `--json` says.

    Attributes:
        seconds: the most it may take.
        rehearsal: options that make it tiny, on a CPU.
        least: seconds without which it is not worth to begin.
        module: a package without which it is skipped.
        rows: whether it takes `--json`.
    """

    name: str
    command: str
    seconds: float
    rehearsal: str = ""
    least: float = 20.0
    module: str = ""
    rows: bool = True


PARTS = [  # in order of worth; {flowers}, {seconds} and {gpu_tests} are filled in
    Part("dense rate", "benchmarks/matmul.py --device cuda", 60,
         "--device cpu --sizes 64 --dtypes bfloat16 --seconds 0.001"),
    Part("reading, 1B, 1 tile", f"{READING} --shape 1b --images 5 --preprocessed --seconds 25", 75, TINY_READING),
    Part("reading, 8B, 13 tiles", f"{READING} --shape 8b --tiles 13 --preprocessed --seconds 30", 120, TINY_READING),
    Part("reading, 8B, 1 tile", f"{READING} --shape 8b --images 5 --preprocessed --seconds 25", 90, TINY_READING),
    Part("preprocessing", "benchmarks/preprocessing.py", 45, "--seconds 0.001"),
    Part("training, batches of 256",
         f"{EPOCHS} --batch_sizes 256 --variants float32 bfloat16 'bfloat16, channels_last' compile --seconds 12", 110,
         TINY_EPOCHS),
    Part("training, batches of 16", f"{EPOCHS} --batch_sizes 16 --variants float32 bfloat16 compile --seconds 30", 130,
         TINY_EPOCHS),
    Part("tests", "-m pytest -q -p no:cacheprovider -o addopts= -m gpu {gpu_tests}", 60, "--collect-only",
         module="pytest", rows=False),
    Part("reading, 1B, flash attention",
         f"{READING} --shape 1b --images 5 --preprocessed --seconds 15 --attention flash_attention_2", 60,
         f"{TINY_READING} --attention sdpa", module="flash_attn"),
    Part("reading, 8B, 13 tiles, flash attention",
         f"{READING} --shape 8b --tiles 13 --preprocessed --seconds 20 --attention flash_attention_2", 90,
         f"{TINY_READING} --attention sdpa", module="flash_attn"),
    Part("reading, 1B, with preprocessing",
         f"{READING} --shape 1b --images 5 --seconds 10 --strategies cascade packed", 60, TINY_READING),
    Part("images of a training", "benchmarks/training.py --device cuda --images 800 --workers 8 --rounds 2", 60,
         "--device cpu --images 4 --batch_size 4 --workers 0 --rounds 1 --steps 1 --pairs 2"),
    Part("102 Flowers", "benchmarks/flowers.py --labelled {flowers} --seconds {seconds}", 480,
         "--epochs 1 --jobs 1 --seeds 1 --size 16", 60),
]  # fmt: skip


class Interrupted(BaseException):
    """This process was told to end."""


def gpu_tests() -> list[str]:
    """The files with tests that are marked gpu; pytest then need not import all others."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [path.relative_to(ROOT).as_posix() for path in files if "mark.gpu" in path.read_text(encoding="utf-8")]


def reason_to_skip(part: Part, args: argparse.Namespace, left: float) -> str | None:
    if args.only and not any(part.name.startswith(name) for name in args.only):
        return "not among --only"
    if "{flowers}" in part.command and not args.flowers:
        return "no folder with the labelled dataset was given: pass --flowers"
    if part.module and not args.rehearse and importlib.util.find_spec(part.module) is None:
        return f"{part.module} is not installed"
    least = 1.0 if args.rehearse else part.least
    if left < least:
        return f"{max(0.0, left):.0f} s of {args.seconds:g} were left, and it needs {least:g}"
    return None


def stop(process: subprocess.Popen) -> None:
    """End a process and all that it started."""
    for signal_number, patience in (signal.SIGTERM, 3), (signal.SIGKILL, 3):
        try:
            os.killpg(process.pid, signal_number)
            process.wait(timeout=patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def run(part: Part, args: argparse.Namespace, limit: float, folder: Path, report: dict[str, Any]) -> None:
    """Fill the part's report: status, reason, rows, what it printed."""
    rows, printed, errors = (folder / name for name in ("rows.json", "printed", "errors"))
    rows.unlink(missing_ok=True)
    filled = {"{flowers}": [str(args.flowers)], "{gpu_tests}": gpu_tests(), "{seconds}": [f"{limit - 10:.0f}"]}
    command = f"{part.command} {part.rehearsal if args.rehearse else ''}"
    argv = [word for each in shlex.split(command) for word in filled.get(each, [each])]
    argv += ["--json", str(rows)] if part.rows else []
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    with open(printed, "wb") as out, open(errors, "wb") as err:
        process = subprocess.Popen(
            [sys.executable, *argv], cwd=ROOT, env=environment, stdout=out, stderr=err, start_new_session=True
        )
        try:
            code = process.wait(timeout=limit)
            report["status"] = "failed" if code else "ok"
        except subprocess.TimeoutExpired:
            report |= {"status": "failed", "reason": f"stopped after {limit:.0f} s; rows are those done by then"}
        except Interrupted:
            report |= {"status": "failed", "reason": "the script was told to end"}
            raise
        finally:
            stop(process)
            report["printed"] = _end(printed)
            if report["status"] == "failed":
                said = _end(errors) or report["printed"]
                report["errors"] = said
                report.setdefault("reason", (said.splitlines() or [f"code {process.returncode}"])[-1])
            report["rows"] = json.loads(rows.read_text(encoding="utf-8")) if rows.exists() else []


def _end(file: Path, characters: int = 3000) -> str:
    return file.read_text(encoding="utf-8", errors="replace").strip()[-characters:]


def run_all(args: argparse.Namespace, result: dict[str, Any]) -> None:
    """All parts, each into `result`, which is written after each of them."""
    begun = time.time() if args.started is None else args.started
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        for part in PARTS:
            left = args.seconds - (time.time() - begun) - MARGIN
            report: dict[str, Any] = {"name": part.name, "status": "skipped", "seconds": 0.0, "rows": []}
            result["parts"].append(report)
            reason = reason_to_skip(part, args, left)
            start = time.monotonic()
            try:
                if reason:
                    report["reason"] = reason
                else:
                    print(f"{part.name} ...", flush=True)
                    run(part, args, min(part.seconds, left), Path(name), report)
            finally:
                report["seconds"] = round(time.monotonic() - start, 1)
                add_shares(result["parts"])
                result |= {"seconds": round(time.time() - begun, 1), "expected": expected(result["parts"])}
                write_whole(args.output, json.dumps(result, indent=2) + "\n")
            print(f"{part.name}: {report['status']}{f' ({reason})' if (reason := report.get('reason')) else ''}, "
                  f"{report['seconds']:g} s", flush=True)  # fmt: skip


def dense_rate(parts: list[dict[str, Any]]) -> float | None:
    """The best measured TFLOP/s of products in bfloat16."""
    rates = [row["tflops"] for part in parts for row in part["rows"] if row.get("dtype") == "bfloat16"]
    return max(rates, default=None)


def add_shares(parts: list[dict[str, Any]]) -> None:
    """To each row of a reading, the share of the measured dense rate."""
    rate = dense_rate(parts)
    for row in (row for part in parts for row in part["rows"] if part["name"].startswith("reading")):
        if rate and "tflops" in row:
            row["share_of_dense"] = row["tflops"] / rate


def best(key: str) -> Callable[[list[dict[str, Any]]], float | None]:
    return lambda rows: max((row[key] for row in rows if key in row), default=None)


def of(name: str, key: str) -> Callable[[list[dict[str, Any]]], float | None]:
    return lambda rows: next((row.get(key) for row in rows if row["name"] == name), None)


EXPECTED = [  # what is printed beside what was measured; nothing fails by it
    ("dense TFLOP/s in bfloat16", "dense rate", lambda rows: dense_rate([{"rows": rows}]), "-"),
    ("1B, 1 tile: times faster than full", "reading, 1B, 1 tile", best("ratio"), "at least 20"),
    ("8B, 13 tiles: times faster than full", "reading, 8B, 13 tiles", best("ratio"), "at least 30"),
    ("1B, 1 tile: share of the dense rate", "reading, 1B, 1 tile", best("share_of_dense"), "at least 0.5"),
    ("8B, 1 tile: share of the dense rate", "reading, 8B, 1 tile", best("share_of_dense"), "at least 0.5"),
    ("8B, 13 tiles: share of the dense rate", "reading, 8B, 13 tiles", best("share_of_dense"), "at least 0.5"),
    ("batches of 256: share of a plain loop's speed", "training, batches of 256",
     of("batches of 256, float32", "ratio"), "at least 0.5"),
    ("batches of 16: minutes of 240 epochs of 3,680 images", "training, batches of 16",
     of("batches of 16, float32", "minutes_of_240_epochs"), "at most 10"),
    ("102 Flowers: points gained by answers", "102 Flowers", of("mean", "gain"), "-"),
]  # fmt: skip
CORES = [("1B, 1 tile", "1 tile"), ("8B, 1 tile", "1 tile"), ("8B, 13 tiles", "all tiles")]


def expected(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was measured, beside what was expected; None where it was not measured."""
    rows = {part["name"]: part["rows"] for part in parts}
    lines = [
        {"what": what, "measured": measured(rows.get(part, [])), "expected": text}
        for what, part, measured, text in EXPECTED
    ]
    for reading, tiles in CORES:
        rate = best("images_per_second")(rows.get(f"reading, {reading}", []))
        prepared = [row for row in rows.get("preprocessing", []) if f", {tiles}, " in row["name"]]
        own = best("images_per_second")(prepared)
        what = f"{reading}: cores that preprocess as fast as the card reads"
        lines.append({"what": what, "measured": rate / own if rate and own else None, "expected": "-"})
    return lines


def machine() -> dict[str, Any]:
    """The card's name, memory and driver as nvidia-smi says; processor cores, versions."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        card = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        card = f"unknown ({type(error).__name__}: nvidia-smi says nothing)"
    versions = {}
    for name in VERSIONS.split():
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {"card": card, "cores": os.cpu_count(), "python": platform.python_version(), "versions": versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the JSON file")
    parser.add_argument("--seconds", type=float, default=540, help="for everything")
    parser.add_argument("--started", type=float, help="when the time began, as `date +%%s` says it; by default now")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="parts whose names begin so")
    parser.add_argument(
        "--flowers", type=Path, metavar="FOLDER", help="102 Flowers with answers, see docs/experiments.md"
    )
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on the CPU")
    args = parser.parse_args()
    args.flowers = args.flowers and args.flowers.expanduser().resolve()

    def interrupt(*_: Any) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGTERM, interrupt)
    result = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "rehearsal": args.rehearse}
    result |= {**machine(), "parts": []}
    try:
        run_all(args, result)
    except (Interrupted, KeyboardInterrupt):
        sys.exit(f"Told to end; {args.output} holds the parts that were done.")
    finally:
        signal.signal(signal.SIGTERM, before)
    for line in result["expected"]:
        value = "not measured" if line["measured"] is None else f"{line['measured']:.3g}"
        print(f"{line['what']}: {value} (expected: {line['expected']})")


if __name__ == "__main__":
    main()
