"""A folder of photographs as people have them, through all commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from builders.quick_python import warm_python
from datasets import load_from_disk
from PIL import Image


ROOT = Path(__file__).parents[2]
EASY_VQA = ROOT / "recipes" / "easy_vqa"
CLASSES = {"Grünes Dreieck": ("#00a000", 14), "blue  SQUARE": ("#2020d0", 9), "Röd cirkel 🔴": ("#d02020", 7)}
RARE = "seltsam"  # a single image: it cannot be in two parts
BROKEN = ("blue  SQUARE/cut off.JPEG", "Grünes Dreieck/empty.jpg", "Röd cirkel 🔴/page.png")
UNREADABLE = (BROKEN[0], BROKEN[2])  # an empty file is none of the images
STUDENT = {"backbone": "recipes/easy_vqa/student", "pretrained": False, "max_steps": 2, "image_store_scale": 1.5}
STUDENT |= {"per_device_train_batch_size": 4, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "no"}
STUDENT |= {"do_predict": True, "report_to": "none", "learning_rate": 0.01, "use_cpu": True}


def make_mess(folder: Path) -> Path:
    """Classes of very different sizes in files of many kinds, three of them broken, and what else lies about."""
    generator = np.random.default_rng(0)
    for name, (colour, count) in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            picture = Image.new("RGB", (64 + number, 60), "white")
            picture.paste(colour, (10, 10, 40, 40))
            pixels = np.asarray(picture).astype(int) + generator.integers(-9, 9, (60, 64 + number, 1))
            picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            mode, ending = [
                ("RGB", "JPG"), ("RGB", "jpeg"), ("CMYK", "Jpg"), ("P", "PNG"), ("RGBA", "png"), ("L", "TIFF"),
                ("RGB", "webp"), ("RGB", "bmp"),
            ][number % 8]  # fmt: skip
            picture.convert(mode).save(folder / name / f"IMG_{number:03d} überall.{ending}")
    (folder / RARE).mkdir()
    Image.new("RGB", (64, 64), "black").save(folder / RARE / "only one.JPG")
    inner = folder / "blue  SQUARE" / "batch 2"
    inner.mkdir()
    Image.new("RGB", (64, 64), "#2020d0").save(inner / "a test of train.JPG")
    whole = folder / "blue  SQUARE" / "IMG_000 überall.JPG"
    (folder / BROKEN[0]).write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (folder / BROKEN[1]).touch()
    (folder / BROKEN[2]).write_text("<html><body>404 Not Found</body></html>")
    for stray in ("Thumbs.db", ".DS_Store", "notes.txt", "Grünes Dreieck/IMG_000 überall.txt", "labels.pdf"):
        (folder / stray).write_bytes(b"what lies about")
    (folder / ".hidden").mkdir()
    shutil.copy(whole, folder / ".hidden" / "backup.jpg")
    return folder


@pytest.fixture(scope="module")
def mess(tmp_path_factory) -> Path:
    return make_mess(tmp_path_factory.mktemp("mess") / "Fotos & Bilder")


@pytest.fixture(scope="module")
def yamls(tmp_path_factory) -> Path:
    """The students of a comparison, the classes in it named by the user's own folder."""
    folder = tmp_path_factory.mktemp("yaml")
    (folder / "base.yaml").write_text(yaml.safe_dump({**STUDENT, "aspect_alpha": 0}))
    (folder / "distill.yaml").write_text(yaml.safe_dump({**STUDENT, "aspect_alpha": 4}))
    return folder


def command(name: str, *argv: str | Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    line = [warm_python(), f"recipes/{name}.py", *map(str, argv)]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def asks(mess: Path) -> list[str]:
    return ["--dataset", str(mess), "--bank", str(EASY_VQA / "aspects.json"), "--teacher", str(EASY_VQA / "teacher")]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def done(result: subprocess.CompletedProcess) -> str:
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Traceback" not in result.stderr
    return result.stdout + result.stderr


@pytest.mark.slow
def test_all_broken_images_are_named_before_anything_begins(mess, yamls, tmp_path):
    compared = ["--baseline", yamls / "base.yaml", "--distill", yamls / "distill.yaml"]
    before = contents(mess)
    for name, argv in {
        "attach_aspects": [],
        "train_student": ["--config", yamls / "distill.yaml"],
        "compare": compared,
        "tune": [*compared, "--grid", '{"learning_rate": [0.01]}'],
        "select_questions": ["--sample", "20", "--keep", "4"],
    }.items():
        result = command(name, *argv, *asks(mess), "--output_dir", tmp_path / name)
        assert result.returncode == 1, name
        assert "Traceback" not in result.stderr
        for broken in BROKEN:
            assert Path(broken).name in result.stdout + result.stderr, (name, broken, result.stderr[-2000:])
        assert not list((tmp_path / name).rglob("*.safetensors"))
    assert contents(mess) == before


@pytest.mark.slow
def test_the_mess_goes_through_all_commands(mess, yamls, tmp_path):
    before, skip = contents(mess), ["--on_error", "skip"]
    said = done(command("attach_aspects", *asks(mess), *skip, "--output_dir", tmp_path / "labelled"))
    assert "4 classes" in said and "notes.txt" in said or ".txt" in said
    rows = load_from_disk(tmp_path / "labelled")["train"]
    assert rows.features["label"].names == sorted([*CLASSES, RARE])
    assert len(rows) == sum(count for _, count in CLASSES.values()) + 2 + len(UNREADABLE)
    assert sum(answer is None for answer in rows["aspect_logits"]) == len(UNREADABLE)

    said = done(command("train_student", "--config", yamls / "distill.yaml", *skip, "--dataset", tmp_path / "labelled",
                        "--output_dir", tmp_path / "student", "--do_predict", "false"))  # fmt: skip
    assert RARE in said
    results = json.loads((tmp_path / "student" / "all_results.json").read_text())
    assert 0 <= results["eval_accuracy"] <= 1

    done(command("train_student", "--config", yamls / "distill.yaml", *skip, *asks(mess),
                 "--output_dir", tmp_path / "direct", "--do_predict", "false"))  # fmt: skip

    with_test = tmp_path / "with a test"
    shutil.copytree(mess, with_test / "Train")
    for name in CLASSES:
        (with_test / "TEST" / name).mkdir(parents=True)
        for number in (1, 2, 3):
            for path in (with_test / "Train" / name).glob(f"IMG_{number:03d}*.[JPjp][PNpn]*"):
                path.rename(with_test / "TEST" / name / path.name)
    compared = ["--baseline", yamls / "base.yaml", "--distill", yamls / "distill.yaml", "--seeds", "1"]
    said = done(command("compare", *compared, *asks(with_test), *skip, "--images_per_class", "1",
                        "--output_dir", tmp_path / "compared"))  # fmt: skip
    report = json.loads((tmp_path / "compared" / "report.json").read_text())
    assert set(report["accuracy"]) == {"base", "madkd", "shuffled", "constant"}
    done(command("tune", *compared, *asks(with_test), *skip, "--images_per_class", "1",
                 "--grid", '{"learning_rate": [0.01]}', "--output_dir", tmp_path / "tuned"))  # fmt: skip
    done(command("select_questions", *asks(mess), *skip, "--sample", "20", "--keep", "4",
                 "--output_dir", tmp_path / "selected"))  # fmt: skip
    assert contents(mess) == before
