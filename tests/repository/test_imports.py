"""The house plan: who may import whom is in pyproject.toml."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]


def lint(folder: Path) -> subprocess.CompletedProcess:
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_the_import_contracts_hold():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        ("data/columns.py", "labelling"),
        ("report/figures.py", "selection"),
        ("students/base/distilling.py", "students.classification"),
        ("hub/upload.py", "cli.arguments"),
        ("labelling/job.py", "students"),
    ],
)
def test_an_arrow_back_up_is_found(lower, upper, tmp_path):
    shutil.copytree(ROOT / "madkd_hf", tmp_path / "madkd_hf", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with open(tmp_path / "madkd_hf" / lower, "a", encoding="utf-8") as file:
        file.write(f"\nimport madkd_hf.{upper}\n")
    done = lint(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "is not allowed to import" in done.stdout and f"madkd_hf.{upper}" in done.stdout
