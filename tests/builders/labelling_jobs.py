"""Labelling in processes of its own."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from builders import tiny
from builders.children import START, be_quiet
from builders.quick_python import warm_python
from datasets import Dataset, Features, Image, IterableDataset, Value

from madkd_hf import AspectTeacher, attach_aspects


ROOT = Path(__file__).parents[2]


EASY_VQA = ROOT / "recipes" / "easy_vqa"


BANK = tiny.bank(3)


ROWS, SHARD = 40, 6  # the last shard is shorter


COLUMNS = ["aspect_logits", "aspect_mass", "aspect_bank"]


class Logging(AspectTeacher):
    """Notes in a file, which survives it, how many images it was asked about."""

    log: Path

    def read(self, images, bank):
        with open(self.log, "a") as file:
            file.write(f"{len(images)}\n")
        return super().read(images, bank)


def rows() -> Dataset:
    columns = {"image": tiny.images(ROWS, 20), "label": range(ROWS)}
    return Dataset.from_dict(columns, features=Features({"image": Image(), "label": Value("int64")}))


def label(folder: Path, stream: bool = False):
    teacher = Logging(tiny.internvl(), tiny.processor(), "full")
    teacher.log = folder / "log.txt"
    source = rows()
    if stream:
        source = source.to_iterable_dataset()
    return attach_aspects(source, BANK, teacher, work_dir=folder / "work", shard_size=SHARD)


def columns(labelled: Dataset | IterableDataset) -> list[tuple]:
    return [tuple(row[name] for name in ["label", *COLUMNS]) for row in labelled.remove_columns("image")]


def asked(folder: Path) -> int:
    log = folder / "log.txt"
    return sum(map(int, log.read_text().split())) if log.exists() else 0


def shards(folder: Path) -> dict[str, int]:
    """Complete shards and the files behind them."""
    files = [*folder.glob("work/shards/*.arrow"), *folder.glob("work/data/*.parquet")]
    return {path.name: path.stat().st_ino for path in files}


def dies(name: str, call: int) -> Callable[[], None]:
    """Kill this process in the midst of its n-th call of os.fsync or os.replace: while a file is written."""

    def arrange() -> None:
        original, calls = getattr(os, name), iter(range(call + 1))

        def deadly(*args):
            if next(calls, None) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args)

        setattr(os, name, deadly)

    return arrange


def child(folder: Path, stream: bool, arrangement: tuple[str, int] | None) -> None:
    be_quiet()
    if arrangement:
        dies(*arrangement)()
    label(folder, stream)


def run_and_kill(folder: Path, stream: bool, dice: random.Random, seconds: float) -> None:
    arrangement = (dice.choice(["fsync", "replace"]), dice.randrange(9)) if dice.random() < 0.4 else None
    process = START.Process(target=child, args=(folder, stream, arrangement))
    process.start()
    process.join(60 if arrangement else dice.uniform(0, seconds))
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)


def kill_trials(folder: Path, trials: int, seed: int, stream: bool) -> None:
    """Each trial is one job that is killed up to three times, and then left alone."""
    folder.mkdir(exist_ok=True)
    for name in ("warm up", "undisturbed"):
        (folder / name).mkdir()
        started = time.monotonic()
        process = START.Process(target=child, args=(folder / name, stream, None))
        process.start()
        process.join()
        seconds = time.monotonic() - started
    expected = columns(label(folder / "undisturbed", stream))
    dice, kills, interrupted = random.Random(seed), 0, 0
    for trial in range(trials):
        place = folder / str(trial)
        place.mkdir()
        for _ in range(dice.choice([1, 1, 2, 3])):
            before = shards(place), asked(place)
            run_and_kill(place, stream, dice, seconds)
            after = shards(place)
            assert before[0].items() <= after.items(), "a complete shard was made again"
            repeated = asked(place) - before[1] - SHARD * (len(after) - len(before[0]))
            assert repeated <= SHARD, "a kill may cost one shard"
            kills += 1
            interrupted += 0 < len(after) < -(-ROWS // SHARD)
        kept = shards(place)
        count = asked(place)
        labelled = label(place, stream)
        assert columns(labelled) == expected
        assert kept.items() <= shards(place).items()
        assert asked(place) - count == max(0, ROWS - SHARD * len(kept))
        assert not list(place.rglob("*.partial"))
    print(
        f"{trials} jobs, {kills} kills, {interrupted} of them between the first shard and the last: all the same bits"
    )
    assert interrupted


def recipe(*words: str | Path, launch: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    config = ["--config", str(EASY_VQA / "attach.yaml")]
    command = [warm_python(), *launch, "recipes/attach_aspects.py", *config, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


# On machines without accelerators, `accelerate launch --cpu` starts one process whatever --num_processes says; with
# --multi_gpu it starts as many as one asks for, on whatever device there is.
TWO = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
