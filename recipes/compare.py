"""Compare students over seeds, see madkd_hf/cli/compare.py."""

from madkd_hf.cli.main import run_command


if __name__ == "__main__":
    run_command("compare")
