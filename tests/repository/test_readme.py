"""What README tells people to type, typed; what it shows, compared with what the recipes wrote."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from builders import tiny
from builders.quick_python import quick_bin, quick_python
from builders.student_files import student_files
from transformers import AutoModelForImageClassification, Dinov2Config, ViTImageProcessorPil

from madkd_hf import AspectBank


ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)([^\n]*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
NOT_HERE = {"install", "gpu", "hub"}  # marked so in the block's first line
RUN = [
    (language, code)
    for language, marks, code in BLOCKS
    if language in ("bash", "python") and marks.strip() not in NOT_HERE
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")  # the blocks write to runs/, and read what is in the checkout
    quick_bin(tmp_path / "bin")
    return tmp_path


def run_block(language: str, code: str, folder: Path, environment: dict[str, str]) -> str:
    environment = {**environment, "PYTHONPATH": str(folder)}
    environment["PATH"] = f"{folder / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    interpreter = [quick_python(), "-c"] if language == "python" else ["bash", "-euc"]
    done = subprocess.run([*interpreter, code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("language", "code"), RUN, ids=[f"{language}-{i}" for i, (language, _) in enumerate(RUN)])
def test_block_runs(language, code, folder):
    run_block(language, code, folder, {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"})


def dinov2(folder: Path) -> Path:
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8)
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def test_hub_blocks_run_in_order_of_what_they_need(hub, folder):
    """With small things under the names of large ones; what is published comes before what uses it."""
    birds = {}
    for i, image in enumerate(tiny.images(24, 64)):
        image.save(folder / "photo.jpg")
        birds[f"train/{['finch', 'heron'][i % 2]}/{i}.jpg"] = (folder / "photo.jpg").read_bytes()
    hub.add_repo("you/birds", birds, "dataset")
    hub.add_repo("microsoft/resnet-18", student_files(folder))
    hub.add_repo("facebook/dinov2-small", dinov2(folder / "dinov2"))
    hub.add_repo("OpenGVLab/InternVL3-8B-hf", ROOT / "recipes/easy_vqa/teacher")
    (bank,) = (code for language, _, code in BLOCKS if language == "json")
    (folder / "aspects.json").write_text(bank)
    blocks = [(language, code) for language, marks, code in BLOCKS if marks.strip() == "hub"]
    needs = [block for block in blocks if re.search("you/bird-student|you/birds-aspects", block[1])]
    publish = [block for block in needs if "--push_to_hub" in block[1]]
    first = [block for block in blocks if block not in needs]
    printed = [
        run_block(*block, folder, hub.environment(folder / "home"))
        for block in [*first, *publish, *(block for block in needs if block not in publish)]
    ]
    assert len(first) == 4 and len(publish) == 1 and len(needs) == 5
    assert f"Published: {hub.url}/datasets/you/birds-aspects" in printed[4]
    assert "Does the bird have a hooked beak?" in printed[7]
    assert "hooked beak: " in printed[5]


def test_every_kind_of_block_is_run():
    assert {language for language, _ in RUN} == {"bash", "python"}


def test_the_bank_it_shows_is_one(tmp_path):
    (code,) = (code for language, _, code in BLOCKS if language == "json")
    (tmp_path / "aspects.json").write_text(code)
    assert len(AspectBank.load(tmp_path)) == 2


def test_files_and_pictures_it_links_to_are_there():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_tables_it_shows_are_the_reports():
    results = ROOT / "recipes/easy_vqa/results"
    reports = [(results / name).read_text(encoding="utf-8") for name in ("report.md", "detection/report.md")]
    rows = re.findall(r"^\| (?:base|madkd|image|image_shuffled|object|shuffled|constant): .*$", README, re.MULTILINE)
    assert [sum(row in report for row in rows) for report in reports] == [4, 6] and len(rows) == 10


def test_make_targets_it_names_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(
        re.findall(r"make ([a-z][a-z-]*)", " ".join(re.findall(r"`[^`]+`|^make .*$", README, flags=re.MULTILINE)))
    )
    assert named <= targets
