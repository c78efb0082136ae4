"""The lower bounds of setup.py as exact versions, one a line, for `pip install -r`: all extras included.

python tests/bounds.py > bounds.txt
"""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from unittest.mock import patch


SETUP = Path(__file__).resolve().parents[1] / "setup.py"


def bounds() -> list[str]:
    """Every requirement of setup.py with `==` in place of `>=`.

    Raises:
        ValueError: a requirement has no lower bound.
    """
    os.chdir(SETUP.parent)  # it reads the README
    with patch("setuptools.setup") as setup:
        runpy.run_path(str(SETUP))
    settings = setup.call_args.kwargs
    groups = [settings["install_requires"], *settings["extras_require"].values()]
    requirements = list(dict.fromkeys(requirement for group in groups for requirement in group))
    if unbound := [requirement for requirement in requirements if requirement.count(">=") != 1]:
        raise ValueError(f"No lower bound: {', '.join(unbound)}: write each as name>=version.")
    return [requirement.replace(">=", "==") for requirement in requirements]


if __name__ == "__main__":
    print("\n".join(bounds()))
