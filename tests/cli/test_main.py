"""`madkd`: which command a user means."""

from __future__ import annotations

import datetime
import os
import pkgutil
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest
from builders.commands import EASY_VQA, ROOT, command
from huggingface_hub.cli.extensions import ExtensionManifest
from huggingface_hub.errors import HTTPError

from madkd_hf import __version__
from madkd_hf.cli import main as cli
from madkd_hf.cli.main import COMMANDS
from madkd_hf.cli.options import task_of


def test_without_a_command_it_lists_them():
    done = command("-m", "madkd_hf")
    assert done.returncode == 1 and not done.stdout
    assert all(f"  {verb} " in done.stderr for verb in COMMANDS)
    asked = command("-m", "madkd_hf", "--help")
    assert asked.returncode == 0 and asked.stdout == done.stderr


def test_the_version():
    assert command("-m", "madkd_hf", "--version").stdout == f"madkd_hf {__version__}\n"


@pytest.mark.parametrize(
    ("typed", "remedy"), [("lable", "did you mean label?"), ("xyz", "expected one of ask, choose"), ("--task", "ask")]
)
def test_a_word_that_is_no_command_gets_one_sentence(typed, remedy):
    done = command("-m", "madkd_hf", typed, "--config", "x.yaml")
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert repr(typed) in done.stderr and remedy in done.stderr


def test_pip_installs_the_command():
    (entry,) = re.findall(r'"madkd = ([\w.]+:\w+)"', (ROOT / "setup.py").read_text(encoding="utf-8"))
    assert pkgutil.resolve_name(entry) is cli.main


@pytest.mark.parametrize(
    ("argv", "task"),
    [
        (["--config", EASY_VQA / "distill.yaml"], "classification"),
        ([f"--config={EASY_VQA / 'detect.yaml'}"], "detection"),
        (["--detector", "PekingU/rtdetr_r18vd"], "detection"),
        (["--task", "detection", "--dataset", "d"], "detection"),
        (["--config", "absent.yaml"], "classification"),
        ([], "classification"),
    ],
)
def test_the_task_is_an_option_or_follows_from_the_others(argv, task):
    assert task_of([*map(str, argv)]) == task


def test_an_unknown_task_gets_one_sentence():
    done = command("-m", "madkd_hf", "train", "--task", "segmentation")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "'segmentation'" in done.stderr and "--task classification or detection" in done.stderr


def test_train_says_which_options_each_task_has():
    assert "--backbone" in command("-m", "madkd_hf", "train", "--help").stdout
    assert "--detector" in command("-m", "madkd_hf", "train", "--help", "--task", "detection").stdout


def test_scripts_of_the_recipes_are_the_same_commands():
    for script, verb in (("attach_aspects", "label"), ("train_student", "train")):
        said = [
            command(*start, "--limmit", "3").stderr for start in ([f"recipes/{script}.py"], ["-m", "madkd_hf", verb])
        ]
        assert said[0] == said[1] and said[0].startswith("error: ") and "did you mean 'limit'?" in said[0]


def test_hf_knows_madkd_as_an_extension(tmp_path):
    """As `hf extensions install` leaves it, which takes it from GitHub."""
    executable = Path(sysconfig.get_path("scripts"), "hf-madkd")
    folder = tmp_path / ".local" / "share" / "hf" / "extensions" / "hf-madkd"
    names = {"owner": "you", "repo": "hf-madkd", "repo_id": "you/hf-madkd", "short_name": "madkd", "type": "python"}
    now = datetime.datetime.now(datetime.timezone.utc)
    ExtensionManifest(**names, executable_path=str(executable), installed_at=now).save(folder)
    (folder / ".latest_commit").touch()  # looked up today: no network
    done = subprocess.run(
        [executable.with_name("hf"), "madkd", "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert done.returncode == 0 and "label" in done.stdout and "compare" in done.stdout, done.stderr


def test_a_connection_that_fails_is_told_in_one_sentence(capsys):
    """The Hub's client has errors of its own for it, which are no OSError."""

    def main():
        raise HTTPError("Name or service not known")

    with pytest.raises(SystemExit, match="error: A connection failed .Name or service not known.: check the network"):
        cli.run(main)
