"""Students trained side by side."""

import multiprocessing
import os

import cells


def _gpu_of_worker(turns, visible, found):
    cells._begin_worker(turns, visible)
    found.put(os.environ.get("CUDA_VISIBLE_DEVICES"))


def _gpus_of_workers(count: int) -> list:
    fork = multiprocessing.get_context("fork")
    turns, found = fork.SimpleQueue(), fork.Queue()
    for turn in range(count):
        turns.put(turn)
    workers = [fork.Process(target=_gpu_of_worker, args=(turns, cells.devices(), found)) for _ in range(count)]
    for worker in workers:
        worker.start()
    return sorted((found.get(timeout=60) for _ in workers), key=str)


def test_each_worker_has_one_gpu_and_they_take_turns(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert _gpus_of_workers(3) == ["4", "4", "7"]


def test_no_gpu_no_choice(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert cells.devices() == [] and _gpus_of_workers(1) == [None]


def test_as_many_students_as_gpus(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,GPU-3")
    assert cells._jobs() == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cells._jobs() == 1
