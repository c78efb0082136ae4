"""`madkd label` and `madkd train` in several processes."""

from __future__ import annotations

import os
import signal
import time

import pytest
from builders.commands import EASY_VQA, command
from cli.test_users_files import start

from madkd_hf.cli.launch import split


LABEL = ("-m", "madkd_hf", "label", "--config", EASY_VQA / "attach.yaml", "--num_processes", "2")


def test_words_for_accelerate_are_taken_off_the_command():
    argv = "--config a.yaml --num_processes 2 --splits a b --gpu_ids=0,1 --debug x --multi_gpu --limit 3".split()
    for_launch, for_command = split(argv, {"--num_processes", "--gpu_ids", "--debug", "--multi_gpu", "--config_file"})
    assert for_launch == ["--num_processes", "2", "--gpu_ids=0,1", "--multi_gpu"]
    assert for_command == "--config a.yaml --splits a b --debug x --limit 3".split()


def test_as_many_processes_as_one_asks_for_and_their_error(tmp_path):
    done = command(*LABEL, "--device_map", "auto", "--limit", "2", "--output_dir", tmp_path / "out")
    assert done.returncode == 1, done.stderr
    assert "each of the 2 processes loads its own" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config_file", "nothere.yaml"], "There is no file nothere.yaml"),
        (["--config-file", EASY_VQA / "distill.yaml"], "the options of a command come by --config."),
        (["--num_processes", "two"], "invalid int value: 'two'"),
        (["--num-processes"], "expected one argument"),
    ],
)
def test_what_accelerate_cannot_take_is_told_in_a_sentence(words, said):
    done = command("-m", "madkd_hf", "train", *words, "--dataset", "you/birds")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and said in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("sent", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "stopped")])
def test_a_launch_that_is_stopped_while_it_loads_says_so(sent, code, word, tmp_path):
    code_of_module = """
import os, signal, sys

class Stop:
    def find_spec(self, name, *_):
        if name == "accelerate.commands.launch":
            os.kill(os.getpid(), signal.Signals[sys.argv[-1]])

sys.meta_path.insert(0, Stop())
from madkd_hf.cli.main import main
main()
"""
    with start("-c", code_of_module, *LABEL[2:], "--output_dir", tmp_path / "out", sent) as job:
        said = job.stdout.read()
        job.wait(60)
    assert job.returncode == code and said.startswith(word) and said.count("\n") == 1, said[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "stopped")])
def test_a_stopped_launch_says_what_is_kept_and_exits_as_shells_expect(sent, code, word, tmp_path):
    argv = ["--limit", "400", "--shard_size", "4", "--work_dir", tmp_path / "work", "--output_dir", tmp_path / "out"]
    with start(*LABEL, *argv) as job:
        while not list(tmp_path.glob("work/shards/*.arrow")) and job.poll() is None:
            time.sleep(0.1)
        os.kill(job.pid, signal.Signals[sent])
        said = job.stdout.read()
        job.wait(60)
    assert job.returncode == code, said[-3000:]
    assert said.count(f"\n{word}") == 1 and "are complete and kept" in said and "Traceback" not in said, said[-3000:]
