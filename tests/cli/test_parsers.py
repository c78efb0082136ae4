"""Which options each command has, and what is said where they are another command's."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from argparse import SUPPRESS

import pytest
from builders.commands import EASY_VQA, ROOT, refuse

from madkd_hf.cli.arguments import GROUPS, parser_of
from madkd_hf.cli.compare import check_given, parse
from madkd_hf.cli.options import training_options
from madkd_hf.cli.tasks import command_of
from madkd_hf.cli.train import parser_of as training_parser
from madkd_hf.data.problems import Problems
from madkd_hf.students.tasks import TASKS


@pytest.mark.parametrize(
    ("script", "file", "command", "keys"),
    [
        ("attach_aspects", "distill.yaml", "train", "backbone, pretrained"),
        ("compare", "attach.yaml", "label", "splits"),
        ("train_student", "attach.yaml", "label", "splits"),
        ("train_student", "compare.yaml", "compare", "baseline, distill"),
        ("generate_questions", "select.yaml", "choose", "bank, teacher"),
    ],
)
def test_a_file_of_another_command_is_told_with_that_command(script, file, command, keys, tmp_path):
    said = refuse(script, "--config", EASY_VQA / file, "--output_dir", tmp_path / "out")
    assert said.startswith(f"error: {EASY_VQA / file} has keys of `madkd {command}` ({keys}") and "\n" not in said
    assert "pass it to that command" in said


def test_a_hint_at_another_command_reaches_other_processes_and_lists_of_problems():
    problems = Problems()
    problems.step(parse, ["--config", str(EASY_VQA / "attach.yaml")])
    problems.add("Another thing is wrong.")
    assert "has keys of `madkd label`" in str(pickle.loads(pickle.dumps(problems.errors[0])))
    with pytest.raises(ValueError, match="has keys of `madkd label`"):
        problems.raise_all()


def test_a_typing_error_in_a_file_gets_the_option_that_was_meant(tmp_path):
    for script, line in (
        ("attach_aspects", "teachr: x"),
        ("train_student", "backbone: x\nlearning_rte: 1\nmax_steps: 2"),
    ):
        (tmp_path / "a.yaml").write_text(line)
        said = refuse(script, "--config", tmp_path / "a.yaml")
        assert "Unknown key" in said and ("did you mean 'teacher'?" in said or "did you mean 'learning_rate'?" in said)


@pytest.mark.parametrize("name", ["baseline", "distill"])
def test_files_of_a_comparison_are_found_beside_its_own_first(name, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.yaml").write_text("")
    (tmp_path / "a.yaml").write_text("")
    (tmp_path / "here" / "compare.yaml").write_text(f"{name}: a.yaml")
    monkeypatch.chdir(tmp_path)
    assert getattr(parse(["--config", "here/compare.yaml"]), name) == "here/a.yaml"
    (tmp_path / "here" / "a.yaml").unlink()
    assert getattr(parse(["--config", "here/compare.yaml"]), name) == "a.yaml"
    (tmp_path / "here" / "b.yaml").write_text("")
    (tmp_path / "a.yaml").unlink()
    said = refuse("compare", "--config", tmp_path / "here" / "compare.yaml")
    assert f"`{name}: a.yaml`" in said and "neither beside it nor in" in said and "\n" not in said


def test_the_help_of_a_comparison_names_all_conditions():
    (conditions,) = [action.help for action in parser_of("compare")._actions if action.dest == "conditions"]
    for task in TASKS:
        command = command_of(task)
        others = [*command.on_request, *(name for name in command.of_unlabelled if "_" not in name)]
        others += [name for name in (command.class_teacher, *command.of_class_teacher) if name]
        default = ", ".join(name for name in command.controls if name not in (*others, *command.of_unlabelled))
        assert f"or {task}: {default}" in conditions and all(name in conditions for name in others)


def test_without_a_file_for_distilled_students_they_are_trained_as_the_plain_one(tmp_path):
    file = str(EASY_VQA / "baseline.yaml")
    args = parse(["--baseline", file, "--output_dir", str(tmp_path)])
    check_given(args)
    assert args.distill == file
    assert "No baseline given: pass --baseline" in refuse("compare", "--output_dir", tmp_path)


def test_what_an_extra_brings_is_told_with_the_extra():
    files = [*(ROOT / "madkd_hf").rglob("*.py"), ROOT / "recipes/easy_vqa/data.py"]
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    extras = {"demo", "detection", "gguf", "openai", "peft", "serving"}
    assert set(re.findall(r'pip install "madkd_hf\[(\w+)\]"', text)) == extras
    assert all(f'    "{extra}": [' in (ROOT / "setup.py").read_text(encoding="utf-8") for extra in extras)


HEAVY = ("torch", "transformers", "datasets", "sklearn", "matplotlib", "jinja2", "peft", "pandas", "pyarrow", "scipy")


@pytest.mark.parametrize("task", TASKS)
def test_options_of_a_training_are_known_from_their_source(task):
    from madkd_hf.students.base.training_args import MadkdTrainingArguments

    def parts(options):
        actions = training_parser(task, options)._actions
        return {(action.dest, action.nargs): (action.help, action.choices and [*action.choices]) for action in actions}

    def defaults(options):
        return {action.dest: action.default for action in training_parser(task, options)._actions}

    assert parts(training_options()) == parts(MadkdTrainingArguments)
    light, whole = map(defaults, (training_options(), MadkdTrainingArguments))
    assert {name for name in light if light[name] != whole[name]} == {"optim"} and light["optim"] == SUPPRESS


def test_help_and_a_mistyped_option_of_a_training_come_before_anything_large_is_imported():
    code = """
import contextlib, io, sys
from madkd_hf.cli.main import main
sys.argv, said = ["madkd", "train", "--help"], io.StringIO()
with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
    main()
assert all(f"--{name} " in said.getvalue() for name in ("backbone", "aspect_alpha", "learning_rate"))
sys.argv = ["madkd", "train", "--no-bf16", "--learning-rat", "1"]
try:
    main()
except SystemExit as stopped:
    print(stopped.code, [m for m in ("torch", "transformers", "sklearn") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.stdout.startswith("error: Unknown option --learning_rat: did you mean 'learning_rate'?"), done.stderr
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize("commands", [[""], list(GROUPS)])
def test_help_and_mistakes_come_before_anything_large_is_imported(commands):
    code = f"""
import contextlib, io, sys
from madkd_hf.cli.main import main
for command in {commands}:
    for words in (["--help"], ["--dataset", "recipes/easyvqa"], ["--limmit", "3"], ["--config", "recipes/nix.yaml"]):
        sys.argv, said = ["madkd", *filter(None, [command]), *words], io.StringIO()
        with contextlib.redirect_stdout(said):
            try:
                main()
            except SystemExit as stopped:
                print(stopped.code)
        print(len(said.getvalue()), command, words, said.getvalue()[:200], [m for m in {HEAVY} if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.endswith(" []") for line in lines) == 4 * len(commands), done.stdout
