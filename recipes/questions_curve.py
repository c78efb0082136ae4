"""How accuracy grows with the number of questions, see recipes/easy_vqa/questions_curve.py."""

import sys
from pathlib import Path

from madkd_hf.cli.main import run_command


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[1]))  # `recipes` is not installed
    run_command("recipes.easy_vqa.questions_curve")
