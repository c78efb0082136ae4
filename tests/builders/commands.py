"""What a user types, in this process or in one of its own."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from builders.local_hub import LocalHub
from builders.quick_python import online_python, warm_python

from madkd_hf.cli.main import run


ROOT = Path(__file__).parents[2]
EASY_VQA = ROOT / "recipes" / "easy_vqa"
MODULES = {  # script -> module
    "attach_aspects": "madkd_hf.cli.label",
    "generate_questions": "madkd_hf.cli.ask",
    "questions_curve": "recipes.easy_vqa.questions_curve",
    "select_questions": "madkd_hf.cli.choose",
    "train_detector": "madkd_hf.cli.train",
    "train_student": "madkd_hf.cli.train",
}
OPTIONS = {"train_detector": ["--task=detection"], "train_student": ["--task=classification"]}  # that a script adds


def recipe(name: str, *words: str | Path) -> None:
    """Run a recipe as a command line would, in this process: importing torch anew for each test takes too long."""
    before = sys.argv, Path.cwd()
    sys.argv = [f"recipes/{name}.py", *OPTIONS.get(name, []), *map(str, words)]
    os.chdir(ROOT)
    try:
        run(importlib.import_module(MODULES.get(name, f"madkd_hf.cli.{name}")).main)
    finally:
        sys.argv = before[0]
        os.chdir(before[1])


def refuse(name: str, *words: str | Path) -> str:
    """The sentence with which a recipe ends."""
    with pytest.raises(SystemExit) as stopped:
        recipe(name, *words)
    return str(stopped.value)


def command(*words: str | Path, hub: LocalHub | None = None) -> subprocess.CompletedProcess:
    """`python` with these words, in a process of its own, which knows this Hub or none."""
    python = online_python(hub) if hub else warm_python()
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment = hub.environment(hub.home) if hub else offline
    words = [python, *map(str, words)]
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
