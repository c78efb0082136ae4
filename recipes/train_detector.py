"""Train a detector, see madkd_hf/cli/tasks/detection.py."""

from madkd_hf.cli.main import run_command


if __name__ == "__main__":
    run_command("tasks.detection")
