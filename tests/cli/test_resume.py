"""The job survives: killed at any moment, its disk full, a worker dead, it goes on and ends with the same bits."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import tiny
from builders.quick_python import quick_python
from datasets import Dataset, Features, Image, IterableDataset, Value, load_from_disk

from madkd_hf import AspectTeacher, attach_aspects


ROOT = Path(__file__).parents[2]
EASY_VQA = ROOT / "recipes" / "easy_vqa"
BANK = tiny.bank(3)
ROWS, SHARD = 40, 6  # the last shard is shorter
COLUMNS = ["aspect_logits", "aspect_mass", "aspect_bank"]
START = multiprocessing.get_context("forkserver")
START.set_forkserver_preload(["tiny", "madkd_hf", "datasets", "test_resume"])


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
    teacher = Logging(tiny.internvl(), tiny.processor())
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


# Kill -9


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
    sys.stderr = open(os.devnull, "w")
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


@pytest.mark.xdist_group("killed")  # one server of processes to kill is enough
@pytest.mark.parametrize("stream", [False, True], ids=["rows", "stream"])
def test_a_killed_job_goes_on_and_ends_with_the_same_bits(tmp_path, stream):
    kill_trials(tmp_path, trials=6, seed=1, stream=stream)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True], ids=["rows", "stream"])
def test_many_killed_jobs(tmp_path, stream):
    kill_trials(tmp_path, trials=100, seed=2, stream=stream)


# Workers


def recipe(*words: str | Path, launch: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    config = ["--config", str(EASY_VQA / "attach.yaml")]
    command = [quick_python(), *launch, "recipes/attach_aspects.py", *config, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


# On machines without accelerators, `accelerate launch --cpu` starts one process whatever --num_processes says; with
# --multi_gpu it starts as many as one asks for, on whatever device there is.
TWO = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")


def test_two_processes_give_what_one_gives(tmp_path):
    words = ["--limit", "50", "--shard_size", "8", "--splits", "train"]
    one = recipe(*words, "--output_dir", tmp_path / "one", "--work_dir", tmp_path / "work one")
    assert one.returncode == 0, one.stderr
    two = recipe(*words, "--output_dir", tmp_path / "two", "--work_dir", tmp_path / "work two", launch=TWO)
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("are in") == 1 and "50/50" in two.stderr
    assert two.stderr.count("questions an image:   0%") == 1
    first, second = (load_from_disk(tmp_path / name) for name in ("one", "two"))
    for split in first:
        for name in COLUMNS:
            assert first[split][name][:] == second[split][name][:]
    manifests = [json.loads((tmp_path / f"work {name}" / "manifest.json").read_text()) for name in ("one", "two")]
    assert manifests[0] == manifests[1]


@pytest.mark.slow
def test_a_dead_worker_s_shards_are_done_at_the_next_start(tmp_path):
    words = ["--limit", "400", "--shard_size", "4", "--output_dir", tmp_path / "out", "--work_dir", tmp_path / "work"]
    command = [sys.executable, *TWO, "recipes/attach_aspects.py", "--config", EASY_VQA / "attach.yaml", *words]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        list(map(str, command)), cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    ) as launcher:
        while len(list(tmp_path.glob("work/shards/*.arrow"))) < 4 and launcher.poll() is None:
            time.sleep(0.05)
        workers = [line.split() for line in os.popen(f"ps --no-headers -o pid --ppid {launcher.pid}").readlines()]
        os.kill(int(workers[-1][0]), signal.SIGKILL)
        said = launcher.stderr.read()
    assert launcher.returncode != 0
    assert (
        said.count("stopped: a worker ended or the job was cancelled: ") == 1
        and "of 100 shards of split 'train' are complete and kept in" in said
    )
    kept = {path: path.stat().st_ino for path in tmp_path.glob("work/shards/*.arrow")}
    assert 4 <= len(kept) < 100
    done = recipe(*words)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_ino == inode for path, inode in kept.items())
    assert None not in load_from_disk(tmp_path / "out")["train"]["aspect_logits"][:]


def test_a_bad_image_stops_all_workers_and_is_told_once(tmp_path):
    (tmp_path / "images").mkdir()
    for i, image in enumerate(tiny.images(12)):
        image.save(tmp_path / "images" / f"{i:02d}.png")
    (tmp_path / "images" / "05.png").write_bytes(b"no image")
    words = ["--dataset", tmp_path / "images", "--output_dir", tmp_path / "out", "--shard_size", "2"]
    done = recipe(*words, "--work_dir", tmp_path / "work", launch=TWO)
    assert done.returncode != 0
    assert done.stderr.count("images/05.png (it is no image that Pillow can read): repair or remove") == 1


@pytest.mark.slow
def test_a_mistake_is_told_once_by_all_workers(tmp_path):
    done = recipe("--output_dir", tmp_path / "out", "--bank", "nowhere/aspects.json", launch=TWO)
    assert done.returncode != 0
    assert done.stderr.count("error: There is no bank at") == 1


# Disks


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
sys.argv[:1], sys.path[0] = [], "recipes"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_full_disk_is_told_in_one_sentence_and_what_was_done_is_kept(tmp_path):
    words = ["--limit", "60", "--output_dir", tmp_path / "out", "--work_dir", tmp_path / "work"]
    assert recipe(*words, "--limit", "8", "--shard_size", "4").returncode == 0
    (tmp_path / "work" / "manifest.json").unlink()
    for path in tmp_path.glob("work/shards/*"):
        path.unlink()
    full = recipe(*words, "--shard_size", "50", launch=("-c", LIMITED))
    assert full.returncode == 1
    (said,) = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
    assert f"Cannot write to {tmp_path / 'work'} (File too large): 0 of 2 shards of split 'train' are complete" in said
    assert said.endswith("make room there or make it writable, and run the same command again.")
    assert not list(tmp_path.rglob("*.partial"))
    done = recipe(*words)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("where", ["a file", "below a file", "read-only"])
def test_a_folder_that_cannot_be_written_to(tmp_path, where):
    if where == "read-only" and os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir(mode=0o500)
    folder = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "work"}.get(
        where, tmp_path / "folder/w"
    )
    message = {
        "a file": "Cannot write to .*file, which is a file: pass another work_dir",
        "below a file": "Cannot write to .*work, which lies in a file: pass another work_dir",
        "read-only": r"Cannot write to .*w \(.*\): nothing is lost; make room there or make it",
    }[where]
    with pytest.raises(OSError, match=message):
        attach_aspects(rows(), BANK, AspectTeacher(tiny.internvl(), tiny.processor()), work_dir=folder)


@pytest.mark.parametrize("damage", ["truncated", "zeros", "empty"])
@pytest.mark.parametrize("stream", [False, True], ids=["rows", "stream"])
def test_a_damaged_shard_is_made_again(tmp_path, damage, stream):
    expected = columns(label(tmp_path, stream))
    path = sorted(path for path in tmp_path.glob("work/*/*") if path.suffix != ".json")[2]
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "zeros": bytes(len(whole)), "empty": b""}[damage])
    before = asked(tmp_path)
    assert columns(label(tmp_path, stream)) == expected
    assert asked(tmp_path) == before + SHARD and path.read_bytes() == whole


def test_ctrl_c_says_what_is_kept(tmp_path, monkeypatch):
    from madkd_hf.labelling.shards import WorkDir

    write = WorkDir.write

    def stop_at_the_third(self, split, index, table):
        if index == 2:
            raise KeyboardInterrupt
        write(self, split, index, table)

    monkeypatch.setattr(WorkDir, "write", stop_at_the_third)
    with pytest.raises(
        KeyboardInterrupt, match=r"2 of 7 shards of split 'train' are complete and kept in .*run the same"
    ):
        label(tmp_path)
