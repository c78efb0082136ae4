"""The house plan: who may import whom is in pyproject.toml."""

import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parents[2]


def test_the_import_contracts_hold():
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout
