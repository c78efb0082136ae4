"""A real vLLM and the same weights here: `make test-vllm`, which is not among the other tests.

It wants one of two things in the environment:

- MADKD_VLLM_PYTHON, an interpreter that has vLLM; the tests start a server of a tiny model with it.
- MADKD_VLLM_SERVER, the address of a vLLM that runs, and MADKD_VLLM_MODEL, the folder or Hub id of what it serves.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import servable
from builders.commands import ROOT
from builders.labelling_jobs import EASY_VQA
from builders.quick_python import warm_python
from datasets import load_from_disk

from madkd_hf import AspectBank, AspectTeacher
from madkd_hf.teachers import load_teacher


IMAGES, SHARD = 50, 5
SERVER, MODEL = os.environ.get("MADKD_VLLM_SERVER"), os.environ.get("MADKD_VLLM_MODEL")
PYTHON = os.environ.get("MADKD_VLLM_PYTHON")

pytestmark = [pytest.mark.slow, pytest.mark.vllm]


@pytest.fixture(scope="module")
def vllm(tmp_path_factory):
    """The address of a server, and the folder of what it serves."""
    if SERVER:
        if not MODEL:
            pytest.fail("MADKD_VLLM_SERVER needs MADKD_VLLM_MODEL, the folder or the Hub id of the served model.")
        yield SERVER, MODEL
        return
    if not PYTHON or not shutil.which(PYTHON):
        pytest.skip(f"There is no vLLM: MADKD_VLLM_PYTHON is {PYTHON!r}, expected an interpreter that has it.")
    folder = tmp_path_factory.mktemp("vllm")
    local, served = servable.save(folder)
    with servable.vllm(Path(PYTHON), served, folder) as url:
        yield url, str(local)


@pytest.fixture(scope="module")
def name(vllm):
    """Of the model on the server."""
    import json
    import urllib.request

    with urllib.request.urlopen(f"{vllm[0].rstrip('/')}/models") as answer:
        return json.load(answer)["data"][0]["id"]


@pytest.fixture(scope="module")
def bank():
    return AspectBank.load(EASY_VQA / "aspects.json")


@pytest.fixture(scope="module")
def local(vllm, bank):
    """The images, and what the teacher says of them here."""
    from recipes.easy_vqa.data import load_easy_vqa

    images = load_easy_vqa()["train"].select(range(IMAGES))["image"][:]
    return images, AspectTeacher.from_pretrained(vllm[1]).read(images, bank)


def compare(logits, mass, reading):
    z = reading.logits.numpy()
    dz, dm = np.abs(np.asarray(logits) - z).max(), np.abs(np.asarray(mass) - reading.mass.numpy()).max()
    print(f"\n{z.size} answers: z has sd {z.std():.3f}; largest dz {dz:.1e}, {dz / z.std():.1e} sd; mass {dm:.1e}")
    assert dz < 1e-3 * z.std() and dm < 1e-4 and z.std() > 0.1


def test_it_gives_the_numbers_of_the_local_teacher(vllm, name, bank, local):
    images, reading = local
    teacher = load_teacher(vllm[0], model=name)
    served = teacher.read(images, bank)
    compare(served.logits, served.mass, reading)
    assert teacher.dialect.name == "chat-ids" and not served.missing.any()
    assert torch.equal(torch.tensor(teacher.dialect.words.ids).sort()[0], ids_of(vllm[1]))


def ids_of(model):
    """Of yes and no for the local teacher."""
    teacher = AspectTeacher.from_pretrained(model)
    return torch.tensor([*teacher.yes.values(), *teacher.no.values()]).sort()[0]


def test_killed_labelling_goes_on_and_gives_the_same_numbers(vllm, name, bank, tmp_path):
    words = ["--config", EASY_VQA / "attach.yaml", "--limit", IMAGES, "--teacher", vllm[0], "--teacher_model", name]
    words += ["--shard_size", SHARD, "--work_dir", tmp_path / "work", "--output_dir", tmp_path / "out"]
    command = [warm_python(), "recipes/attach_aspects.py", *map(str, words)]
    begun = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    while len(shards(tmp_path)) < 2:
        assert begun.poll() is None, begun.stderr.read().decode()
        time.sleep(0.02)
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    kept = shards(tmp_path)
    assert 2 <= len(kept) < IMAGES / SHARD
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert kept.items() <= shards(tmp_path).items()
    rows = load_from_disk(tmp_path / "out")["train"]
    reading = AspectTeacher.from_pretrained(vllm[1]).read(rows["image"][:], bank)
    print(f"\nkilled after {len(kept)} of {IMAGES // SHARD} shards")
    compare(rows["aspect_logits"][:], rows["aspect_mass"][:], reading)


def shards(folder):
    return {path.name: path.stat().st_ino for path in folder.glob("work/shards/*.arrow")}
