"""Train a classifier, see madkd_hf/cli/train.py."""

from madkd_hf.cli.main import run_command


if __name__ == "__main__":
    run_command("train")
