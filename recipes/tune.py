"""Choose settings on validation images, see madkd_hf/cli/tune.py."""

from madkd_hf.cli.main import run_command


if __name__ == "__main__":
    run_command("tune")
