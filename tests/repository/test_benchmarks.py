"""The benchmarks print tables and are no tests; here only that they run."""

import json

import numpy as np
import pytest
from builders import classifiers, tiny
from builders.labelled_birds import save_labelled
from builders.llm_server import LLMServer, Model

from benchmarks import (
    exactness,
    exporting,
    faithfulness,
    label_mistakes,
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
