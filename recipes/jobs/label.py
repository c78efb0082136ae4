# /// script
# requires-python = ">=3.10"
# dependencies = ["madkd_hf[openai]"]
#
# [tool.hf-jobs]
# image = "vllm/vllm-openai:latest"
# flavor = "l40sx1"
# timeout = "4h"
# secrets = ["HF_TOKEN"]
# env = { UV_FIND_LINKS = "/wheels" }
# ///
"""Label a dataset of the Hub with vLLM on a rented GPU, and publish the labelled one.

It starts vLLM with one copy of the model on each GPU, labels through it with `madkd label`, pushes, and stops vLLM.
All options but those below are options of `madkd label`. Answers are kept in --work, which is to lie on a volume:
after a time limit (30 minutes, where a job names none) or any other end, the same command goes on from the last
complete shard.

    pip wheel --no-deps --wheel-dir dist .   # this package, until it is in an index
    hf jobs uv run -v ./dist:/wheels -v hf://buckets/you/labelling:/work recipes/jobs/label.py \\
        --model Qwen/Qwen3-VL-8B-Instruct --dataset you/birds --bank you/questions --hub_dataset_id you/birds-aspects

`hf jobs uv run --dry-run ...` shows what would be rented. `--flavor`, `--timeout` and `--image` before the script take
the place of what its header says.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path


OWN = ("--teacher", "--teacher_model", "--work_dir", "--push_to_hub")  # options of `madkd label` that are set here
PATIENCE = 3600  # seconds, for downloading a model and loading it


def gpus() -> int:
    """How many there are; 1 where nothing tells."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return 1
    return max(1, listed.count("GPU "))


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/models", timeout=10) as answer:
            return answer.status == 200
    except OSError:
        return False


@contextlib.contextmanager
def vllm(model: str, options: list[str]) -> Iterator[str]:
    """The address of a vLLM that serves the model, to this machine alone; it is ended afterwards."""
    if shutil.which("vllm") is None:
        raise SystemExit("There is no vllm here: pass an --image that has it, or --server with one that runs.")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["vllm", "serve", model, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--data-parallel-size", str(gpus()), *options]
    print(f"Starting: {shlex.join(command)}", flush=True)
    process = subprocess.Popen(command, start_new_session=True)  # its workers are ended with it
    url, until = f"http://127.0.0.1:{port}/v1", time.monotonic() + PATIENCE
    try:
        while not answers(url):
            if process.poll() is not None:
                raise SystemExit(
                    f"vLLM ended with {process.returncode} before it served {model}: see its lines above."
                )
            if time.monotonic() > until:
                raise SystemExit(f"vLLM did not serve {model} within {PATIENCE} s: see above.")
            time.sleep(1)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def label(url: str, model: str, work: Path, options: list[str]) -> int:
    """`madkd label` through this server; its exit status."""
    command = [sys.executable, "-m", "madkd_hf", "label", "--teacher", url, "--teacher_model", model]
    command += ["--work_dir", str(work), "--push_to_hub", *options]
    if "--output_dir" not in options:  # made of what is in --work, and pushed
        command += ["--output_dir", str(Path(tempfile.gettempdir(), "madkd_labelled"))]
    return subprocess.run(command, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="the teacher, a multimodal LLM that vLLM serves")
    parser.add_argument("--work", type=Path, default=Path("/work"), help="a folder on a volume; /work")
    parser.add_argument("--server", help="the address of a server that runs, in place of an own one")
    parser.add_argument("--vllm_options", default="", help="more for `vllm serve`, in one string")
    args, options = parser.parse_known_args()
    if taken := [option for option in options if option.partition("=")[0] in OWN]:
        parser.error(f"{taken[0]} is set by this script: leave it out; --model and --work say what it is.")
    if not args.work.is_dir():
        parser.error(f"--work {args.work} is no folder: mount a volume there (hf jobs uv run -v ...:{args.work}).")
    own = None if args.server else vllm(args.model, shlex.split(args.vllm_options))
    with own or contextlib.nullcontext(args.server) as url:
        return label(url, args.model, args.work, options)


if __name__ == "__main__":
    sys.exit(main())
