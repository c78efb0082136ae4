"""Label a dataset with the answers of a multimodal LLM, see madkd_hf/cli/label.py."""

from madkd_hf.cli.main import run_command


if __name__ == "__main__":
    run_command("label")
