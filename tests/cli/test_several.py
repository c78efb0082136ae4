"""Several comparisons by one command: their folders, what is refused, a failure in between, and the table of all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders import tiny
from builders.commands import EASY_VQA, command, refuse
from builders.labelled_birds import save_labelled
from transformers import ViTImageProcessorPil

from madkd_hf.cli.compare import folder_of, parse_all, split_configs


STUDENT = {"pretrained": False, "num_train_epochs": 1, "per_device_train_batch_size": 12, "use_cpu": True}
STUDENT |= {"image_store": "none", "learning_rate": 0.01}


@pytest.fixture
def two(tmp_path) -> list[Path]:
    """The files of two comparisons, of different images."""
    tiny.resnet().save_pretrained(tmp_path / "backbone")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "backbone")
    configs = []
    for seed, name in enumerate(("finches", "herons")):
        save_labelled(tmp_path / name / "labelled", seed)
        write(tmp_path / name / "student.yaml", STUDENT | {"backbone": str(tmp_path / "backbone")})
        config = {"dataset": "labelled", "baseline": "student.yaml", "seeds": 3, "conditions": ["base", "madkd"]}
        configs.append(write(tmp_path / name / "compare.yaml", config))
    return configs


def write(path: Path, content: dict) -> Path:
    path.write_text(json.dumps(content))  # which is YAML, too
    return path


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_one_that_fails_is_named_and_the_same_command_goes_on_with_it(two, tmp_path):
    student = two[1].with_name("student.yaml")
    settings = read(student)
    write(student, settings | {"learning_rate": 1e38, "max_steps": 3, "max_grad_norm": 0})  # which diverges
    out = tmp_path / "out"
    argv = ["recipes/compare.py", "--config", *two, "--output_dir", out, "--seeds", "1", "--jobs", "1"]
    failed = command(*argv)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr, failed.stderr
    assert f"Comparison 2 of 2: {two[1]} did not finish; the same command goes on with what remains: {two[1]}." in (
        failed.stderr
    )
    assert "error: The student base-0 failed" in failed.stderr
    assert read(out / "finches" / "report.json")["seeds"] == [0] and not (out / "report.json").exists()

    before = {path: path.stat().st_mtime_ns for path in (out / "finches").rglob("*") if path.is_file()}
    write(student, settings)
    done = command(*argv)
    assert done.returncode == 0, done.stderr
    assert f"Comparison 1 of 2: {two[0]} is finished already" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    entries = read(out / "report.json")["comparisons"]
    assert [entry["comparison"] for entry in entries] == ["finches", "herons"]
    for entry in entries:
        own = read(out / entry["comparison"] / "report.json")
        assert {key: entry[key] for key in ("accuracy", "gain", "dataset")} == {
            key: own[key] for key in ("accuracy", "gain", "dataset")
        }
    page = (out / "report.md").read_text()
    assert page.count("| finches ") == page.count("| herons ") == 1 and "(herons/report.md)" in page
    assert "| finches " in done.stdout and "Distilled students are ahead" in done.stdout


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ("recipes/dtd/compare.yaml", "dtd"),
        ("recipes/flowers102/small_compare.yaml", "flowers102-small_compare"),
        ("recipes/easy_vqa/../dtd/compare.yaml", "dtd"),
        ("/compare.yaml", "compare"),
    ],
)
def test_a_folder_is_named_by_its_file_alone(config, name):
    assert folder_of(config) == name


def test_files_are_told_from_other_words():
    argv = ["--seeds", "1", "--config", "a.yaml", "b.yaml", "--conditions", "base", "madkd", "--config=c.yaml"]
    assert split_configs(argv) == (["a.yaml", "b.yaml", "c.yaml"], ["--seeds", "1", "--conditions", "base", "madkd"])


def test_options_hold_for_all_and_each_has_its_own_folder(two, tmp_path):
    parsed, output_dir = parse_all(list(map(str, two)), ["--seeds", "4", "--output_dir", str(tmp_path / "out")])
    assert output_dir == str(tmp_path / "out")
    assert [(args.seeds, args.output_dir) for _, args in parsed] == [
        (4, str(tmp_path / "out" / name)) for name in ("finches", "herons")
    ]
    assert [args.dataset for _, args in parsed] == [str(config.with_name("labelled")) for config in two]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "several comparisons need one folder for all, pass --output_dir"),
        (["--output_dir", "out", "--work_dir", "work"], "have the same work_dir, work: leave it off the command line"),
        (["--output_dir", "out", "--push_to_hub", "--hub_model_id", "you/it"], "have the same hub_model_id, you/it"),
        (["--output_dir", "out", "--baseline", ""], "herons/compare.yaml: No baseline given: pass --baseline"),
        (["--output_dir", "out", "--sedes", "1"], "did you mean 'seeds'"),
    ],
)
def test_what_cannot_be_for_several_is_refused(two, words, expected):
    with pytest.raises(ValueError, match=expected):
        parse_all(list(map(str, two)), words)


def test_two_files_with_one_name_are_refused(two, tmp_path):
    (tmp_path / "b" / "herons").mkdir(parents=True)
    other = write(tmp_path / "b" / "herons" / "compare.yaml", {"baseline": str(two[0].with_name("student.yaml"))})
    said = refuse("compare", "--config", two[1], other, "--output_dir", tmp_path / "out")
    assert f"{two[1]} and {other} have the same output_dir, {tmp_path / 'out' / 'herons'}: rename a file" in said


def test_all_are_checked_before_the_first_begins(two, tmp_path):
    write(two[1], read(two[1]) | {"dataset": "recipes.easy_vqa.data:load_nothing", "seeds": 0})
    said = refuse("compare", "--config", *two, "--output_dir", tmp_path / "out")
    assert f"{two[1]}: 2 things are wrong" in said and "seeds=0" in said and "load_nothing" in said
    assert not (tmp_path / "out").exists()


def test_a_folder_with_a_users_report_is_not_written_to(two, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.md").write_text("mine")
    said = refuse("compare", "--config", *two, "--output_dir", tmp_path / "out")
    assert "report.md" in said and [path.name for path in (tmp_path / "out").iterdir()] == ["report.md"]
    assert (tmp_path / "out" / "report.md").read_text() == "mine"


def test_help_of_several_is_that_of_one(capsys):
    assert refuse("compare", "--config", EASY_VQA / "compare.yaml", EASY_VQA / "labels.yaml", "--help") == "0"
    assert "recipes/dtd/compare.yaml recipes/cub200/compare.yaml" in capsys.readouterr().out
