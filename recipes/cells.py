"""Many students, side by side: what compare.py and tune.py train."""

from __future__ import annotations

import contextlib
import hashlib
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
import train_student
import transformers
from tqdm.auto import tqdm

import madkd_hf
from madkd_hf.aspects import BANK_FILE


@dataclass(frozen=True)
class Cell:
    """One student to train: `words` are the command line of train_student.py, `metric` is the accuracy that counts."""

    name: str
    words: tuple[str, ...]
    folder: str
    metric: str = "test_accuracy"

    @property
    def key(self) -> str:
        """What decides the result: the words, the files and folders that they name, and the versions of the code."""
        args, _ = train_student.parse(list(self.words))
        named = [Path(word) for word in (*self.words, args.backbone)]
        content = [path.read_bytes().hex() for name in named for path in _inputs(name)]
        weights = sorted(Path(args.backbone).glob("*.safetensors"))
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

    Raises:
        ValueError: a student failed; the message names its log.
    """
    done = {cell.name: result for cell in cells if (result := finished(cell)) is not None}
    todo = [cell for cell in cells if cell.name not in done]
    os.environ["OMP_NUM_THREADS"] = "1"  # read when a worker starts; two threads on a busy core pair slow each other
    workers, spawn = min(jobs or _jobs(), len(todo)) or 1, multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, spawn, initializer=_end_with_parent)
    by_the_user = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited by the workers: we end them ourselves
    futures = {pool.submit(train_cell, cell): cell for cell in todo}
    signal.signal(signal.SIGINT, by_the_user)
    try:
        with tqdm(total=len(cells), initial=len(done), unit=" students", desc="training") as bar:
            for future in as_completed(futures):
                cell = futures[future]
                done[cell.name] = future.result()
                bar.update()
                bar.set_postfix_str(f"{cell.name}: {done[cell.name]['accuracy']:.1f}%")
    except BaseException as error:
        for worker in pool._processes.values():
            worker.terminate()
        if isinstance(error, Exception):
            error = ValueError(f"The student {cell.name} failed ({error}); its log is {cell.folder}/log.txt.")
        raise error from None
    finally:
        pool.shutdown(cancel_futures=True)
    return {cell.name: done[cell.name] for cell in cells}


def _end_with_parent() -> None:
    """In a worker: no student is trained on behind the back of a user who killed the command."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _jobs() -> int:
    """One student a core; on an accelerator one at a time."""
    if torch.accelerator.is_available():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def finished(cell: Cell) -> dict[str, Any] | None:
    path = Path(cell.folder) / "cell.json"
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["result"] if content["key"] == cell.key else None


def train_cell(cell: Cell) -> dict[str, Any]:
    """In a worker: one run of train_student.py, its output in a log."""
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
            trainer = train_student.train(*train_student.parse(list(cell.words)))
        except Exception:
            traceback.print_exc()
            raise
    metrics = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    curve = {
        entry["step"]: 100 * entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry
    }
    result = {
        "accuracy": 100 * metrics[cell.metric],
        "curve": list(curve.items()),
        "seconds": time.perf_counter() - started,
        "metrics": metrics,
    }
    partial = folder / "cell.json.partial"
    partial.write_text(json.dumps({"key": cell.key, "result": result}), encoding="utf-8")
    partial.replace(folder / "cell.json")
    return result
