"""Choose the questions that are worth asking, see madkd_hf/cli/choose.py."""

from madkd_hf.cli.main import run_command


if __name__ == "__main__":
    run_command("choose")
