"""Many students, side by side: what `madkd compare` and `madkd tune` train."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import multiprocessing
import os
import signal
import threading
import time
import traceback
import urllib.parse
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm.auto import tqdm

import madkd_hf

from ... import AspectBank
from ...aspects import BANK_FILE
from ...data.decoding import count_cores
from ...data.unlabelled import UNLABELLED
from ...files import (
    check_folder,
    check_name,
    check_removable,
    file_checksum,
    list_files,
    own_folder,
    read_json,
    read_record,
    remove_folder,
    write_record,
)
from ...labelling.manifest import difference_of
from ...students.base.saved import ADAPTER
from .. import student, train
from ..outputs import CELL


SAFE_IN_NAMES = " +,=@()[]{}~"  # and letters, digits, "_", "-" and "."
WITHOUT_EFFECT = {  # where output goes, what is shown, how data are fetched, and `task`, which the others imply
    *("task", "output_dir", "work_dir", "comparison", "run_name", "project", "report_to", "disable_tqdm"),
    *("local_rank", "log_level", "log_level_replica", "log_on_each_node", "save_total_limit", "save_on_each_node"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
}
OF_PUBLISHING = ("hub_", "push_", "trackio_")
MODELS = ("backbone", "detector", "teacher")  # options that may name a folder with one
CELL_FILE = "cell.json"
STUDENT_FILES = ("*.safetensors", "*config.json", "*.npz", "*.py", f"{ADAPTER}/*")
MODEL_FILES = ("*.safetensors", "pytorch_model*.bin", "*config.json", "tokenizer*", "*.jinja")


@dataclass(frozen=True)
class Cell:
    """One student to train: `argv` is its command line, `metric` the number that counts."""

    name: str
    argv: tuple[str, ...]
    folder: str
    metric: str = "test_accuracy"

    @property
    def score(self) -> str:
        """What its results call the number that counts, on whatever images: "accuracy"."""
        return self.metric.split("_", 1)[1]

    @property
    def decides(self) -> dict[str, Any]:
        """All that decides the result, by name: the parsed options, digests of the dataset, bank and models that they
        name, and the versions of the code."""
        args, training_args = train.parse(list(self.argv))
        options = asdict(args) | training_args.to_dict()  # which leaves out what it finds out about the machine
        options = {name: value for name, value in options.items() if name not in WITHOUT_EFFECT}
        options = {name: value for name, value in options.items() if not name.startswith(OF_PUBLISHING)}
        dataset, bank = Path(options["dataset"] or "nowhere"), options["bank"]
        if (dataset / BANK_FILE).is_file():  # its answers are there: no teacher is asked
            options |= dict.fromkeys(("teacher", "teacher_revision"))
            options.pop("teacher_options", None)
        states = [*dataset.glob("state.json"), *dataset.glob("*/state.json")]
        if not options.get("unlabelled"):  # of images without a class it sees none
            states = [state for state in states if state.parent.name != UNLABELLED]
        if states:
            options["dataset"] = {str(state.parent.relative_to(dataset)): _fingerprint(state) for state in states}
        if bank and Path(bank).exists():
            options["bank"] = AspectBank.load(bank).fingerprint
        for name in MODELS:
            if options.get(name) and Path(options[name]).is_dir():
                options[name] = model_digests(Path(options[name]))
        versions = {"madkd_hf": madkd_hf.__version__, "transformers": transformers.__version__}
        options |= {"metric": self.metric, "versions": {**versions, "torch": torch.__version__}}
        return json.loads(json.dumps(options, default=str))  # as it will be read back


def cell_name(*parts: Any) -> str:
    """The name of a student, which is that of its folder: a value such as microsoft/resnet-18 is part of it."""
    return check_name(urllib.parse.quote("-".join(map(str, parts)), safe=SAFE_IN_NAMES), "student")


def _fingerprint(state: Path) -> str:
    """Of a saved dataset."""
    remedy = "save the dataset again, such as by the same `madkd label` into another folder"
    fingerprint = read_json(state, "state of a saved dataset", remedy).get("_fingerprint")
    if not isinstance(fingerprint, str):
        raise ValueError(f"{state} is damaged, it holds no fingerprint of a dataset: {remedy}.")
    return fingerprint


def model_digests(folder: Path) -> dict[str, str]:
    """What a model consists of: file -> digest of its content."""
    files = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.is_file()})
    return {path.name: _digest(path, path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@functools.cache
def _digest(path: Path, size: int, changed: int) -> str:
    """Of a file of this size, changed at this time: read once, however many students begin with it."""
    return file_checksum(path)


def run_cells(cells: list[Cell], jobs: int | None) -> dict[str, dict[str, Any]]:
    """Train what is not trained yet, `jobs` at a time; returns each cell's numbers by its name.

    Among them are the `score` that counts (per cent; AP in points), its `curve` on the validation images, `seconds`,
    and all `metrics` of the training. A finished student with other settings is trained again, and a line says why.

    Raises:
        ValueError: a student failed, and the message names its log; or a worker was killed.
    """
    results = {}
    for cell in cells:
        before = _read_result(cell)
        difference = before and difference_of(before["decides"], cell.decides, "")
        if before and not difference:
            results[cell.name] = before["result"]
            continue
        check_removable(cell.folder, "student")  # before the first of them is trained
        if before:
            print(f"The student {cell.name} in {cell.folder} is trained again: {difference}.")
    if todo := [cell for cell in cells if cell.name not in results]:
        _train_side_by_side(todo, min(jobs or _jobs(), len(todo)), results)
    return {cell.name: results[cell.name] for cell in cells}


def _train_side_by_side(todo: list[Cell], workers: int, results: dict[str, dict[str, Any]]) -> None:
    """Each student in a process, into `results`, which may hold some already."""
    pool = _start_workers(workers)
    user_handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited by the workers: we end them ourselves
    futures = {pool.submit(train_cell, cell): cell for cell in todo}
    signal.signal(signal.SIGINT, user_handler)
    cell, total = todo[0], len(todo) + len(results)
    try:
        with tqdm(total=total, initial=len(results), unit=" students", desc="training") as bar:
            for future in as_completed(futures):
                cell = futures[future]
                results[cell.name] = future.result()
                bar.update()
                bar.set_postfix_str(f"{cell.name}: {cell.score} {results[cell.name][cell.score]:.1f}")
    except BaseException as error:
        for worker in pool._processes.values():
            worker.terminate()
        raise _user_error(error, cell, workers, f"of {total} students {len(results)} are finished and kept") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _user_error(error: BaseException, cell: Cell, workers: int, finished: str) -> BaseException:
    """The error to show where the training of a student ended too early; `finished` says how many did not."""
    if isinstance(error, BrokenProcessPool):
        fewer = f"--jobs 1 (here it was {workers})" if workers > 1 else "a lower per_device_train_batch_size"
        return ValueError(
            "A process that trained a student was killed from outside, most likely because memory ran out: run the "
            f"same command again, with {fewer}; {finished}."
        )
    if isinstance(error, KeyboardInterrupt):
        return type(error)(f"{finished} in {Path(cell.folder).parent}; run the same command again to go on.")
    if isinstance(error, Exception):
        return ValueError(f"The student {cell.name} failed ({error}); its log is {cell.folder}/log.txt.")
    return error


def _start_workers(count: int) -> ProcessPoolExecutor:
    """Processes that train, each on a GPU of its own as far as there are some."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read when a worker starts; two threads on a busy core pair slow each other
    spawn = multiprocessing.get_context("spawn")
    numbers = spawn.SimpleQueue()  # of the workers; unlike a Queue, it has no thread to end on Ctrl-C
    for number in range(count):
        numbers.put(number)
    return ProcessPoolExecutor(count, spawn, initializer=_begin_worker, initargs=(numbers, devices()))


def _begin_worker(numbers: multiprocessing.SimpleQueue, visible: list[str]) -> None:
    """Give the worker a GPU of its own, as far as there are some, and end it with the command."""
    if visible:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[numbers.get() % len(visible)]

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    gc.freeze()  # what was imported stays: else each training looks through all of it for garbage


def devices() -> list[str]:
    """The GPUs that this command may use, as CUDA_VISIBLE_DEVICES names them."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(i) for i in range(torch.cuda.device_count())] if names is None else [n for n in names.split(",") if n]


def _jobs() -> int:
    """One student a GPU, or a core; on another accelerator one at a time."""
    if torch.accelerator.is_available():
        return len(devices()) or 1
    return count_cores()


def _read_result(cell: Cell) -> dict[str, Any] | None:
    """The saved `decides` and `result` of a finished student, whatever its settings.

    None where there is none, or a damaged one, of which a line tells.
    """
    path = Path(cell.folder) / CELL_FILE
    if not path.exists():
        return None
    again = "its student is trained again"
    try:
        content = read_record(path, "result of a student", again)
        now, then = _files(cell), content["files"]
        if changed := sorted(name for name in now | then if now.get(name) != then.get(name)):
            raise ValueError(f"{path.parent / changed[0]} is damaged or missing: {again}.")
    except ValueError as error:
        print(error)
        return None
    return content


def _files(cell: Cell) -> dict[str, str]:
    """The files of a finished student that are read later: name -> checksum."""
    folder = Path(cell.folder)
    files = sorted({path for pattern in STUDENT_FILES for path in folder.glob(pattern) if path.is_file()})
    return {path.relative_to(folder).as_posix(): file_checksum(path) for path in files}


def train_cell(cell: Cell) -> dict[str, Any]:
    """In a worker: one training, its output in a log."""
    started = time.perf_counter()
    folder, decides = Path(cell.folder), cell.decides  # as they are now; files may change while it is trained
    remove_folder(folder, "student")
    check_folder(folder, "student")
    own_folder(folder, "student", CELL)
    with (
        open(folder / "log.txt", "w", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            trainer = student.train(*train.parse(list(cell.argv)))
        except Exception:
            traceback.print_exc()
            raise
    metrics = read_json(folder / "all_results.json", "the numbers of a student", "run the same command again")
    name = f"eval_{cell.score}"
    curve = {entry["step"]: 100 * entry[name] for entry in trainer.state.log_history if name in entry}
    result = {
        cell.score: 100 * metrics[cell.metric],
        "curve": list(curve.items()),
        "seconds": time.perf_counter() - started,
        "metrics": metrics,
    }
    content = {"decides": decides, "result": result, "files": _files(cell)}
    write_record(folder / CELL_FILE, content)
    list_files(folder, "student")
    return result
