"""recipes/jobs/label.py: what its header asks for, and what it does with a server and a Hub."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from builders import tiny
from builders.commands import ROOT
from builders.llm_server import LLMServer
from builders.quick_python import online_python
from datasets import Dataset, Image
from huggingface_hub import HfApi

from madkd_hf import AspectBank


SCRIPT = "recipes/jobs/label.py"
IMAGES, SHARD = 20, 4
# What the script starts for a model on the GPUs of a job: the tests' server, by the words that vLLM takes.
VLLM = """#!{python}
import argparse, sys, time
sys.path[:0] = [{tests!r}]
from builders.llm_server import LLMServer
parser = argparse.ArgumentParser()
for word in ("command", "model", "--host", "--data-parallel-size"):
    parser.add_argument(word)
parser.add_argument("--port", type=int)
args, more = parser.parse_known_args()
assert (args.command, args.host, args.data_parallel_size) == ("serve", "127.0.0.1", "1")
assert more == ["--max-model-len", "9"]
if args.model == "too/large":
    sys.exit(3)
with LLMServer(name=args.model, port=args.port):
    time.sleep(600)
"""


@pytest.fixture
def place(hub, tmp_path):
    """A dataset and a bank on the Hub, and a folder for the work."""
    rows = Dataset.from_dict({"image": tiny.images(IMAGES), "label": [i % 2 for i in range(IMAGES)]})
    rows.cast_column("image", Image()).to_parquet(file := io.BytesIO())
    hub.add_repo("you/birds", {"data/train-00000-of-00001.parquet": file.getvalue()}, "dataset")
    tiny.bank(3).save(tmp_path / "bank")
    hub.add_repo("you/questions", tmp_path / "bank", "dataset")
    (tmp_path / "work").mkdir()
    return tmp_path


def command(hub, place, *words, server=None, python=None):
    words = [python or online_python(hub), SCRIPT, "--model", "tiny", "--work", place / "work", *words]
    words += ["--dataset", "you/birds", "--bank", "you/questions", "--hub_dataset_id", "you/birds-aspects"]
    words += ["--output_dir", place / "out", "--shard_size", SHARD, *(["--server", server.url] if server else [])]
    bin_first = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = hub.environment(hub.home) | {"PATH": bin_first, "PYTHONPATH": str(ROOT)}
    return {"args": [*map(str, words)], "cwd": ROOT, "env": environment}


def run(*args, **kwargs):
    return subprocess.run(**command(*args, **kwargs), capture_output=True, text=True)


def test_the_header_is_one_that_hugging_face_jobs_reads():
    hf = Path(sys.executable).with_name("hf")
    words = ["jobs", "uv", "run", "--dry-run", "-v", "hf://buckets/you/labelling:/work", SCRIPT, "--model", "a/b"]
    shown = subprocess.run([hf, *words], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    rows = dict(re.findall(r"^  (\w+) +(.*)$", shown.stdout, re.MULTILINE))
    assert rows["image"].startswith("vllm/vllm-openai") and rows["args"] == "--model a/b"
    assert rows["timeout"] == "4h (from script)" and rows["secrets"].startswith("HF_TOKEN=")


@pytest.mark.slow
def test_it_is_ended_goes_on_and_publishes_what_the_server_says(hub, place):
    with LLMServer(seconds=0.05, at_once=2) as server:
        whole = command(hub, place, server=server, python=sys.executable)  # forks would not end with their parent
        begun = subprocess.Popen(**whole, start_new_session=True)
        while len(list(place.glob("work/shards/*.arrow"))) < 2:
            assert begun.poll() is None
            time.sleep(0.02)
        os.killpg(begun.pid, signal.SIGKILL)  # as a job's time limit ends all that is in it
        begun.wait()
        kept = {path.name: path.stat().st_ino for path in place.glob("work/shards/*.arrow")}
        assert len(kept) < IMAGES / SHARD
        server.seconds, asked = 0.0, len(server.requests)
        done = run(hub, place, server=server)
        assert done.returncode == 0, done.stderr
        assert len(server.requests) - asked < 3 * IMAGES
    assert "Published: " in done.stdout
    assert kept.items() <= {path.name: path.stat().st_ino for path in place.glob("work/shards/*.arrow")}.items()
    assert AspectBank.load("you/birds-aspects").provenance["model"] == "tiny"
    files = hub.files("you/birds-aspects", "dataset")
    (content,) = (content for name, content in files.items() if name.endswith(".parquet"))
    rows = pq.read_table(io.BytesIO(content), columns=["aspect_logits"]).to_pylist()
    assert len(rows) == IMAGES
    for row, image in zip(rows, tiny.images(IMAGES)):
        for z, question in zip(row["aspect_logits"], tiny.bank(3).questions):
            expected, _ = server.model.answer(image, f"Answer with yes or no. {question}")
            assert z == pytest.approx(expected, abs=1e-4)


@pytest.fixture
def own_vllm(place):
    (place / "bin").mkdir()
    (place / "bin" / "vllm").write_text(VLLM.format(python=sys.executable, tests=str(ROOT / "tests")))
    (place / "bin" / "vllm").chmod(0o755)


def test_it_starts_and_ends_a_server_of_its_own(hub, place, own_vllm):
    done = run(hub, place, "--vllm_options", "--max-model-len 9")
    assert done.returncode == 0, done.stderr
    port = re.search(r"vllm serve tiny .*--port (\d+)", done.stdout)[1]
    with pytest.raises(OSError):
        import urllib.request

        urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5)
    assert HfApi().repo_exists("you/birds-aspects", repo_type="dataset")


def test_what_cannot_go_well_ends_in_a_sentence(hub, place, own_vllm):
    words = ["--model", "too/large", "--vllm_options", "--max-model-len 9"]
    failed = run(hub, place, *words)
    assert failed.returncode == 1 and "vLLM ended with 3 before it served too/large" in failed.stderr
    taken = run(hub, place, "--teacher", "elsewhere")
    assert taken.returncode == 2 and "--teacher is set by this script: leave it out" in taken.stderr
    (place / "work").rmdir()
    nowhere = run(hub, place)
    assert nowhere.returncode == 2 and "is no folder: mount a volume there" in nowhere.stderr
