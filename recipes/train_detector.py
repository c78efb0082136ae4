"""Train a detector: `madkd train --task detection`."""

from madkd_hf.cli.main import run_command


if __name__ == "__main__":
    run_command("train", "--task=detection")
