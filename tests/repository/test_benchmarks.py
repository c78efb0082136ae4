"""The benchmarks print tables and are no tests; here only that they run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from builders import classifiers, tiny
from builders.labelled_birds import save_labelled
from builders.llm_server import LLMServer, Model
from builders.quick_python import warm_python

from benchmarks import (
    classes,
    exactness,
    exporting,
    faithfulness,
    gpu,
    label_mistakes,
    matmul,
    preprocessing,
    reading,
    served,
    served_exactness,
    serving,
    startup,
    training,
)
from madkd_hf import AspectBank, MadkdForImageClassification
from madkd_hf.teachers import load_teacher


def test_the_table_of_exactness(tmp_path, capsys, monkeypatch):
    words = ["exactness.py", "--architectures", "internvl", "--json", str(tmp_path / "rows.json")]
    monkeypatch.setattr("sys.argv", words)
    exactness.main()
    assert "| internvl" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["chosen"] == "cascade" and max(row["errors"].values()) < 1e-4


def test_the_table_of_reading(tmp_path, capsys, monkeypatch):
    few = ["--shape", "tiny", "--questions", "3", "--rounds", "2", "--seconds", "0", "--device", "cpu"]
    few += ["--strategies", "packed", "--preprocessed"]
    monkeypatch.setattr("sys.argv", ["reading.py", *few, "--json", str(tmp_path / "rows.json")])
    reading.main()
    said = capsys.readouterr().out
    assert "attention sdpa" in said and "1 rounds, without preprocessing" in said and "| packed " in said
    full, packed = json.loads((tmp_path / "rows.json").read_text())
    assert full["ratio"] == 1 and full["max_error"] == 0 and packed["max_error"] < 1e-3
    done = [row["tflops"] / row["images_per_second"] for row in (full, packed)]
    assert 2 < done[0] / done[1] < 3.1  # three questions about one image, which is read once or three times


def test_a_strategy_that_cannot_read_is_told_beside_the_others(capsys, monkeypatch):
    def refuse(*_):
        raise ValueError("no mask is taken")

    monkeypatch.setitem(reading.STRATEGIES, "packed", refuse)
    monkeypatch.setattr("sys.argv", ["reading.py", "--shape", "tiny", "--questions", "2", "--device", "cpu"])
    reading.main()
    said = capsys.readouterr().out
    assert "packed cannot read this: ValueError: no mask is taken" in said and "| cascade " in said


def test_rates_of_products_and_of_preprocessing(tmp_path, monkeypatch):
    words = ["--sizes", "8", "--dtypes", "float32", "--seconds", "0", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["matmul.py", *words, "--json", str(tmp_path / "rows.json")])
    matmul.main()
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["name"] == "float32, 8" and row["tflops"] > 0
    words = ["--seconds", "0", "--rate", "10", "--json", str(tmp_path / "rows.json")]
    monkeypatch.setattr("sys.argv", ["preprocessing.py", *words])
    threads = preprocessing.torch.get_num_threads()
    preprocessing.main()
    preprocessing.torch.set_num_threads(threads)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["tiles"] for row in rows][:3] == [0, 1, 13]
    assert all(row["cores"] == pytest.approx(10 / row["images_per_second"]) for row in rows)


@pytest.mark.slow
def test_the_table_of_training(tmp_path, capsys, monkeypatch):
    few = ["--images", "8", "--batch_size", "4", "--workers", "0", "--rounds", "1", "--steps", "1"]
    few += ["--pairs", "2"]
    monkeypatch.setattr("sys.argv", ["training.py", *few, "--json", str(tmp_path / "rows.json")])
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    training.main()
    assert "| our store " in capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert set(rows) == {"example", "reference", "data_path", "distilled_step"}
    assert all(row["ratio"] > 0 for row in rows.values()) and rows["example"]["ratio"] == 1
    low, high = rows["distilled_step"]["ci95"]
    assert low < rows["distilled_step"]["ratio"] < high


def test_the_table_of_startup(tmp_path, capsys, monkeypatch):
    quick = {name: startup.COMMANDS[name] for name in ("madkd --help", "madkd label --help")}
    monkeypatch.setattr(startup, "COMMANDS", quick)
    monkeypatch.setattr("sys.argv", ["startup.py", "--rounds", "1", "--json", str(tmp_path / "rows.json")])
    startup.main()
    assert "| madkd label --help |" in capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert rows["madkd --help"]["ratio"] == 1 < rows["madkd label --help"]["ratio"]


def test_the_table_of_classes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(classes, "COMMANDS", {"madkd view": classes.COMMANDS["madkd view"]})
    words = ["--classes", "3", "--questions", "2", "--json", str(tmp_path / "rows.json")]
    monkeypatch.setattr("sys.argv", ["classes.py", *words])
    classes.main()
    assert "|       3 |         2 | madkd view |" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["seconds"] > 0 and row["peak_mb"] > 50


def test_classes_of_made_up_images_answer_alike_and_differ():
    rows = classes.made_up(40)["train"]
    bank = AspectBank([f"Is it {i}?" for i in range(100)])
    answers = classes.Code().read(rows["image"][:], bank).logits > 0
    same = (answers[:, None] == answers[None]).float().mean(-1)
    alike = np.equal.outer(rows["label"][:], rows["label"][:])
    assert same[alike].min() > 0.6 and same[~alike].mean() == pytest.approx(0.5, abs=0.05)


def test_the_table_of_wrong_labels(tmp_path, capsys, monkeypatch):
    save_labelled(tmp_path / "birds")
    words = ["--labelled", str(tmp_path / "birds"), "--share", "0.2", "--seeds", "2", "--folds", "0"]
    monkeypatch.setattr("sys.argv", ["label_mistakes.py", *words, "--json", str(tmp_path / "rows.json")])
    label_mistakes.main()
    assert f"| {label_mistakes.OURS}" in capsys.readouterr().out
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows[0]["name"] == label_mistakes.OURS and len(rows[0]["auroc"]) == 2
    assert all(0 <= value <= 1 for row in rows for value in (*row["auroc"], *row["top"]))


def test_the_table_of_faithfulness(tmp_path, capsys, monkeypatch):
    save_labelled(tmp_path / "birds")
    bank = AspectBank(["Is it red?", "Is it blue?", "Is it wet?"])
    names = {0: "finch", 1: "heron"}
    student = MadkdForImageClassification.from_backbone(classifiers.config("resnet"), names, bank, pretrained=False)
    student.save_pretrained(tmp_path / "student")
    classifiers.processor("resnet").save_pretrained(tmp_path / "student")
    words = ["--student", str(tmp_path / "student"), "--dataset", str(tmp_path / "birds"), "--images", "8"]
    monkeypatch.setattr("sys.argv", ["faithfulness.py", *words, "--json", str(tmp_path / "rows.json")])
    faithfulness.main()
    assert "| smallest change " in capsys.readouterr().out
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["name"], row["removed"]) for row in rows] == [(name, 1) for name in faithfulness.REMOVALS]
    assert all(row["images"] == 8 and row["top"] <= row["random"] <= row["last"] for row in rows[:1])


def test_the_table_of_exports(tmp_path, capsys, monkeypatch):
    pytest.importorskip("onnxscript")
    words = ["exporting.py", "--architectures", "resnet", "--json", str(tmp_path / "rows.json")]
    monkeypatch.setattr("sys.argv", words)
    exporting.main()
    assert "| resnet " in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["difference"] < 1e-4 < 10 * row["spread"] and row["classes"] == row["answers"] == 1


def test_the_table_of_a_server(tmp_path, capsys, monkeypatch):
    few = ["--images", "4", "--questions", "3", "--seconds", "0.001"]
    monkeypatch.setattr("sys.argv", ["served.py", *few, "--json", str(tmp_path / "rows.json")])
    served.main()
    assert "| chat-ids, 4 images, 3 questions | 12 |" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["requests"] == 12 and 0 < row["ratio"] < 1


def test_the_table_of_served_answers():
    with LLMServer() as server, LLMServer(Model(seed=1)) as other:
        same, different = (load_teacher(each.url, model="tiny") for each in (server, other))
        row, _ = served_exactness.measure(same, load_teacher(server.url, model="tiny"), tiny.bank(3), 3, 1)
        wrong, _ = served_exactness.measure(same, different, tiny.bank(3), 3, 1)
    assert row["dz"] == row["mass"] == 0 < row["z_sd"] and row["ratio"] > 0
    assert wrong["dz_sd"] > 0.1 and wrong["mass"] > 0.01
    assert "| served beside local, chat-ids |" in served_exactness.show([row])


def test_the_table_of_a_served_student(tmp_path, capsys, monkeypatch):
    pytest.importorskip("prometheus_client")
    from builders import served_student

    with served_student.serving(served_student.student(AspectBank.load(serving.BANK))) as url:
        words = [
            "--teacher",
            f"{url}/v1",
            "--teacher_model",
            "tiny",
            "--student",
            f"{url}/v1",
            "--student_model",
            "tiny",
        ]
        words += ["--images", "8", "--clients", "2", "--minutes", "0.01", "--json", str(tmp_path / "rows.json")]
        monkeypatch.setattr("sys.argv", ["serving.py", *words])
        serving.main()
    said = capsys.readouterr().out
    assert "| Is there a circle in the image? " in said and "| student, 2 clients " in said and "MiB after" in said
    rows = {row["name"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert rows["mean"]["agreement"] == 1 and rows["mean"]["correlation"] > 0.999 and rows["mean"]["error"] < 1e-6
    assert rows["student, 2 clients"]["requests"] > 0 and rows["student, 2 clients"]["p50"] > 0


def test_calibration_errors():
    p = np.array([0.1, 0.1, 0.9, 0.9])
    assert serving.calibration_error(p, p) == 0
    assert serving.calibration_error(p, np.array([0, 0, 1, 0])) == pytest.approx(0.5 * 0.1 + 0.5 * 0.4)


# The script for a GPU


ROWS = "import json, sys; json.dump([{'name': 'cascade', 'ratio': 20, 'tflops': 2}], open(sys.argv[-1], 'w'))"


def run_gpu(tmp_path, monkeypatch, parts, *words):
    """What its file says after these parts, by their names, and all of it."""
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr("sys.argv", ["gpu.py", "--output", str(tmp_path / "gpu.json"), *words])
    gpu.main()
    found = json.loads((tmp_path / "gpu.json").read_text())
    return {part["name"]: part for part in found["parts"]}, found


def test_parts_for_a_gpu_that_fail_overrun_or_lack_something(tmp_path, monkeypatch, capsys):
    dense = ROWS.replace("'tflops': 2", "'tflops': 4, 'dtype': 'bfloat16'")
    forever = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])"
    parts = [
        gpu.Part("dense rate", f'-c "{dense}"', 20),
        gpu.Part("reading, 1B, 1 tile", f'-c "{ROWS}"', 20),
        gpu.Part("broken", "-c \"raise SystemExit('no such kernel')\"", 20),
        gpu.Part("overruns", f'-c "{ROWS}; {forever}; time.sleep(99)"', 1),
        gpu.Part("lacks a package", "-c 0", 20, module="no_such_package"),
        gpu.Part("102 Flowers", "benchmarks/flowers.py --labelled {flowers}", 20),
        gpu.Part("too long", "-c 0", 20, least=600),
    ]
    found, whole = run_gpu(tmp_path, monkeypatch, parts, "--seconds", "60")
    assert list(found) == [part.name for part in parts]
    assert found["reading, 1B, 1 tile"]["status"] == "ok"
    assert found["reading, 1B, 1 tile"]["rows"][0]["share_of_dense"] == 0.5
    assert found["broken"]["status"] == "failed" and found["broken"]["reason"] == "no such kernel"
    assert found["overruns"]["status"] == "failed" and "stopped after 1 s" in found["overruns"]["reason"]
    assert found["overruns"]["rows"][0]["ratio"] == 20 and found["overruns"]["seconds"] < 10
    skipped = {name: part["reason"] for name, part in found.items() if part["status"] == "skipped"}
    assert list(skipped) == ["lacks a package", "102 Flowers", "too long"]
    assert "no_such_package is not installed" in skipped["lacks a package"] and "--flowers" in skipped["102 Flowers"]
    assert "of 60 were left, and it needs 600" in skipped["too long"]
    assert whole["card"] and whole["versions"]["torch"] and whole["seconds"] > 1
    said = capsys.readouterr().out
    assert "1B, 1 tile: times faster than full: 20 (expected: at least 20)" in said
    assert "1B, 1 tile: share of the dense rate: 0.5 (expected: at least 0.5)" in said
    assert "8B, 13 tiles: times faster than full: not measured" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_gpu_script_that_is_killed_leaves_the_parts_that_were_done(number, tmp_path):
    script = "import sys; from benchmarks import gpu; gpu.PARTS = [gpu.Part('quick', '-c 0', 20, rows=False),"
    script += " gpu.Part('long', '-c \"import time; time.sleep(15)\"', 20, rows=False)]; gpu.main()"
    file = tmp_path / "gpu.json"
    environment = {**os.environ, "PYTHONPATH": str(Path(gpu.__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-c", script, "--output", file], env=environment, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    while "long ..." not in process.stdout.readline():
        pass
    time.sleep(0.2)
    process.send_signal(number)
    if number == signal.SIGTERM:
        assert "holds the parts that were done" in process.communicate(timeout=20)[1]
    process.wait(timeout=20)
    parts = json.loads(file.read_text())["parts"]
    assert parts[0]["name"] == "quick" and parts[0]["status"] == "ok"
    if number == signal.SIGTERM:
        assert parts[1]["status"] == "failed" and "told to end" in parts[1]["reason"]


@pytest.mark.slow
def test_all_parts_for_a_gpu_are_rehearsed(tmp_path, monkeypatch):
    save_labelled(tmp_path / "birds")
    monkeypatch.setattr("sys.executable", warm_python())
    words = ["--rehearse", "--flowers", str(tmp_path / "birds")]
    found, whole = run_gpu(tmp_path, monkeypatch, gpu.PARTS, *words)
    assert list(found) == [part.name for part in gpu.PARTS]
    assert {name: part["reason"] for name, part in found.items() if part["status"] != "ok"} == {}
    assert all(part["rows"] for name, part in found.items() if name != "tests")
    assert not [row for part in found.values() for row in part["rows"] if "failed" in row]
    assert whole["rehearsal"] and all(0 < row["share_of_dense"] for row in found["reading, 8B, 1 tile"]["rows"])
    measured = {line["what"]: line["measured"] for line in whole["expected"]}
    assert measured["8B, 13 tiles: times faster than full"] > 1
    assert measured["8B, 13 tiles: cores that preprocess as fast as the card reads"] > 0
    assert {row["name"] for row in found["102 Flowers"]["rows"]} >= {"base-0", "madkd-0", "mean"}


def test_the_script_for_a_bare_gpu_machine(tmp_path):
    """From a plain copy of the repository, with a wheel that is not installed, and one that does not fit."""
    root = Path(gpu.__file__).parents[1]
    copy = tmp_path / "copy"
    (copy / "benchmarks").mkdir(parents=True)
    for name in ("gpu.sh", "gpu.py", "matmul.py"):
        (copy / "benchmarks" / name).write_bytes((root / "benchmarks" / name).read_bytes())
    (copy / "madkd_hf").symlink_to(root / "madkd_hf")
    (tmp_path / "wheels").mkdir()
    wheel(tmp_path / "wheels")
    (tmp_path / "wheels/old-1.0-cp27-cp27m-any.whl").write_bytes(b"")
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": ""}
    words = [tmp_path / "out", tmp_path / "wheels", "--rehearse", "--only", "dense rate"]
    command = ["bash", copy / "benchmarks/gpu.sh", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "old-1.0-cp27-cp27m-any.whl does not fit this machine and is left out" in done.stderr
    found = json.loads((tmp_path / "out/gpu.json").read_text())
    assert found["parts"][0]["status"] == "ok" and found["parts"][0]["rows"][0]["tflops"] > 0
    assert {part["reason"] for part in found["parts"][1:]} == {"not among --only"}
    assert found["versions"]["timm"] == "99.0"


def wheel(folder: Path) -> None:
    """A package called timm, without content."""
    import zipfile

    with zipfile.ZipFile(folder / "timm-99.0-py3-none-any.whl", "w") as archive:
        archive.writestr("timm.py", "")
        archive.writestr("timm-99.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: timm\nVersion: 99.0\n")
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr("timm-99.0.dist-info/WHEEL", tags)
        archive.writestr("timm-99.0.dist-info/RECORD", "")
