"""The job survives: killed at any moment, its disk full, a worker dead, it goes on and ends with the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from builders import tiny
from builders.labelling_jobs import (
    BANK,
    COLUMNS,
    EASY_VQA,
    ROOT,
    SHARD,
    TWO,
    asked,
    columns,
    kill_trials,
    label,
    recipe,
    rows,
)
from datasets import load_from_disk

from madkd_hf import AspectTeacher, attach_aspects


# Kill -9


@pytest.mark.parametrize("stream", [False, True], ids=["rows", "stream"])
def test_a_killed_job_goes_on_and_ends_with_the_same_bits(tmp_path, stream):
    kill_trials(tmp_path, trials=6, seed=1, stream=stream)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True], ids=["rows", "stream"])
def test_many_killed_jobs(tmp_path, stream):
    kill_trials(tmp_path, trials=100, seed=2, stream=stream)


# Workers


def test_two_processes_give_what_one_gives(tmp_path):
    argv = ["--limit", "24", "--shard_size", "8", "--splits", "train"]
    one = recipe(*argv, "--output_dir", tmp_path / "one", "--work_dir", tmp_path / "work one")
    assert one.returncode == 0, one.stderr
    two = recipe(*argv, "--output_dir", tmp_path / "two", "--work_dir", tmp_path / "work two", launch=TWO)
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("are in") == 1 and "24/24" in two.stderr
    assert two.stderr.count("questions an image:   0%") == 1
    first, second = (load_from_disk(tmp_path / name) for name in ("one", "two"))
    for split in first:
        for name in COLUMNS:
            assert first[split][name][:] == second[split][name][:]
    manifests = [json.loads((tmp_path / f"work {name}" / "manifest.json").read_text()) for name in ("one", "two")]
    assert manifests[0] == manifests[1]


@pytest.mark.slow
def test_a_dead_worker_s_shards_are_done_at_the_next_start(tmp_path):
    argv = ["--limit", "400", "--shard_size", "4", "--output_dir", tmp_path / "out", "--work_dir", tmp_path / "work"]
    command = [sys.executable, *TWO, "recipes/attach_aspects.py", "--config", EASY_VQA / "attach.yaml", *argv]
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
    done = recipe(*argv)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_ino == inode for path, inode in kept.items())
    assert None not in load_from_disk(tmp_path / "out")["train"]["aspect_logits"][:]


def test_a_bad_image_stops_all_workers_and_is_told_once(tmp_path):
    (tmp_path / "images").mkdir()
    for i, image in enumerate(tiny.images(12)):
        image.save(tmp_path / "images" / f"{i:02d}.png")
    (tmp_path / "images" / "05.png").write_bytes(b"no image")
    argv = ["--dataset", tmp_path / "images", "--output_dir", tmp_path / "out", "--shard_size", "2"]
    done = recipe(*argv, "--work_dir", tmp_path / "work", launch=TWO)
    assert done.returncode != 0
    assert done.stderr.count("images/05.png (it is no image that Pillow can read): repair or remove") == 1


@pytest.mark.slow
def test_a_mistake_is_told_once_by_all_workers(tmp_path):
    done = recipe("--output_dir", tmp_path / "out", "--bank", "nowhere/aspects.json", launch=TWO)
    assert done.returncode != 0
    assert done.stderr.count("error: There is no ") == 1 and "nowhere/aspects.json" in done.stderr


# Disks


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
sys.argv[:1], sys.path[0] = [], "recipes"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_full_disk_is_told_in_one_sentence_and_what_was_done_is_kept(tmp_path):
    argv = ["--limit", "60", "--output_dir", tmp_path / "out", "--work_dir", tmp_path / "work"]
    assert recipe(*argv, "--limit", "8", "--shard_size", "4").returncode == 0
    (tmp_path / "work" / "manifest.json").unlink()
    for path in tmp_path.glob("work/shards/*"):
        path.unlink()
    full = recipe(*argv, "--shard_size", "50", launch=("-c", LIMITED))
    assert full.returncode == 1
    (said,) = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
    assert f"Cannot write to {tmp_path / 'work'} (File too large): 0 of 2 shards of split 'train' are complete" in said
    assert said.endswith("make room there or make it writable, and run the same command again.")
    assert not list(tmp_path.rglob("*.partial"))
    done = recipe(*argv)
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
