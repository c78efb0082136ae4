"""Train a classifier: `madkd train --task classification`."""

from madkd_hf.cli.main import run_command


if __name__ == "__main__":
    run_command("train", "--task=classification")
