"""Ask an LLM for questions, see madkd_hf/cli/ask.py."""

from madkd_hf.cli.main import run_command


if __name__ == "__main__":
    run_command("ask")
