"""Many students, side by side: what compare.py and tune.py train."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm.auto import tqdm

import madkd_hf
from madkd_hf.aspects import BANK_FILE


@dataclass(frozen=True)
class Cell:
    """One student to train: `words` are the command line of `script`, a recipe; `metric` is the number that counts."""

    name: str
    words: tuple[str, ...]
    folder: str
    metric: str = "test_accuracy"
    script: str = "train_student"

    @property
    def score(self) -> str:
        """What its results call the number that counts, on whatever images: "accuracy"."""
        return self.metric.split("_", 1)[1]

    @property
    def key(self) -> str:
        """What decides the result: the words, the files and folders that they name, and the versions of the code."""
        args, _ = importlib.import_module(self.script).parse(list(self.words))
        named = [Path(word) for word in (*self.words, args.begins_with)]
        content = [path.read_bytes().hex() for name in named for path in _inputs(name)]
        weights = sorted(Path(args.begins_with).glob("*.safetensors"))
        content += [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in weights]
        versions = [madkd_hf.__version__, transformers.__version__, torch.__version__]
        return hashlib.sha256(json.dumps([self.words, content, versions]).encode()).hexdigest()[:16]


def _inputs(path: Path) -> list[Path]:
    """The small files that tell what stands at a path: a YAML file, a labelled dataset, a backbone."""
    if path.is_file():
        return [path]
    dataset = [*path.glob("*/state.json"), path / BANK_FILE] if (path / BANK_FILE).is_file() else []
    return sorted(
        file for file in [*dataset, path / "config.json", path / "preprocessor_config.json"] if file.is_file()
    )


def run_cells(cells: list[Cell], jobs: int | None) -> dict[str, dict[str, Any]]:
    """Train what is not trained yet, `jobs` at a time; returns each cell's numbers by its name.

    Among them are the `score` that counts (per cent; AP in points), its `curve` on the validation images, `seconds`,
    and all `metrics` of the recipe.

    Raises:
        ValueError: a student failed; the message names its log.
    """
    done = {cell.name: result for cell in cells if (result := finished(cell)) is not None}
    todo = [cell for cell in cells if cell.name not in done]
    os.environ["OMP_NUM_THREADS"] = "1"  # read when a worker starts; two threads on a busy core pair slow each other
    workers, spawn = min(jobs or _jobs(), len(todo)) or 1, multiprocessing.get_context("spawn")
    turns = spawn.SimpleQueue()  # no thread of its own that an interruption would have to end
    for turn in range(workers):
        turns.put(turn)
    pool = ProcessPoolExecutor(workers, spawn, initializer=_begin_worker, initargs=(turns, devices()))
    by_the_user = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited by the workers: we end them ourselves
    futures = {pool.submit(train_cell, cell): cell for cell in todo}
    signal.signal(signal.SIGINT, by_the_user)
    try:
        with tqdm(total=len(cells), initial=len(done), unit=" students", desc="training") as bar:
            for future in as_completed(futures):
                cell = futures[future]
                done[cell.name] = future.result()
                bar.update()
                bar.set_postfix_str(f"{cell.name}: {cell.score} {done[cell.name][cell.score]:.1f}")
    except BaseException as error:
        for worker in pool._processes.values():
            worker.terminate()
        if isinstance(error, Exception):
            error = ValueError(f"The student {cell.name} failed ({error}); its log is {cell.folder}/log.txt.")
        raise error from None
    finally:
        pool.shutdown(cancel_futures=True)
    return {cell.name: done[cell.name] for cell in cells}


def _begin_worker(turns: multiprocessing.SimpleQueue, visible: list[str]) -> None:
    """A GPU of its own, as far as there are some; and no student is trained on when the user killed the command."""
    if visible:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[turns.get() % len(visible)]

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def devices() -> list[str]:
    """The GPUs that this command may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(i) for i in range(torch.cuda.device_count())] if named is None else [n for n in named.split(",") if n]


def _jobs() -> int:
    """One student a GPU, or a core; on another accelerator one at a time."""
    if torch.accelerator.is_available():
        return len(devices()) or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def finished(cell: Cell) -> dict[str, Any] | None:
    path = Path(cell.folder) / "cell.json"
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["result"] if content["key"] == cell.key else None


def train_cell(cell: Cell) -> dict[str, Any]:
    """In a worker: one run of the recipe, its output in a log."""
    recipe = importlib.import_module(cell.script)
    started = time.perf_counter()
    folder = Path(cell.folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with (
        open(folder / "log.txt", "w", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            trainer = recipe.train(*recipe.parse(list(cell.words)))
        except Exception:
            traceback.print_exc()
            raise
    metrics = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    name = f"eval_{cell.score}"
    curve = {entry["step"]: 100 * entry[name] for entry in trainer.state.log_history if name in entry}
    result = {
        cell.score: 100 * metrics[cell.metric],
        "curve": list(curve.items()),
        "seconds": time.perf_counter() - started,
        "metrics": metrics,
    }
    partial = folder / "cell.json.partial"
    partial.write_text(json.dumps({"key": cell.key, "result": result}), encoding="utf-8")
    partial.replace(folder / "cell.json")
    return result
