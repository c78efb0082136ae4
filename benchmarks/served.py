"""How much of what a server can serve does labelling get out of it?

The server of the tests runs in a process of its own: 50 ms an answer, 64 at once, so 1,280 answers a second if it did
nothing else. What it really serves, a bare client shows that sends one and the same request, before and after a job
that labels made-up images. The table says which share of that the job got, and how much of one core it took for a
request.

    python benchmarks/served.py [--images 120] [--questions 50] [--seconds 0.05] [--at_once 64] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]


def serve(seconds: float, at_once: int, dialect: str) -> None:
    """Be the server, until the end of the standard input."""
    sys.path.insert(0, str(ROOT / "tests"))
    from builders.llm_server import LLMServer

    with LLMServer(seconds=seconds, at_once=at_once, dialects=(dialect,), keeps=False) as server:
        print(server.url, flush=True)
        sys.stdin.read()


async def bare(url: str, body: bytes, requests: int, at_once: int) -> float:
    """Answers a second to one and the same request, with twice as many of them in flight as the server takes."""
    import aiohttp

    left = iter(range(requests))

    async def send() -> None:
        for _ in left:
            async with session.post(url, data=body, headers=headers) as answer:
                await answer.read()

    headers, connector = {"Content-Type": "application/json"}, aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        started = time.perf_counter()
        await asyncio.gather(*[send() for _ in range(2 * at_once)])
        return requests / (time.perf_counter() - started)


def measure(images: int, questions: int, seconds: float, at_once: int, dialect: str) -> dict[str, Any]:
    """Label once, and compare with what the server could do at most."""
    import numpy as np
    from datasets import Dataset
    from PIL import Image

    from madkd_hf import Aspect, AspectBank, attach_aspects
    from madkd_hf.teachers import load_teacher
    from madkd_hf.teachers.served.images import encode

    bank = AspectBank([Aspect(f"q{i}", f"Is it number {i}?", "visual") for i in range(questions)])
    draw = np.random.default_rng(0)
    pixels = [draw.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(images)]
    rows = Dataset.from_dict({"image": [Image.fromarray(part) for part in pixels]})
    command = [sys.executable, __file__, "--serve", "--seconds", str(seconds), "--at_once", str(at_once)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "--dialect", dialect], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        url = server.stdout.readline().strip()
        teacher = load_teacher(url, model="tiny")
        before, after = teacher.dialect.request(bank.questions[: teacher.questions_per_request])
        url, body = url + teacher.dialect.path, before + encode(rows[0]["image"]).base64 + after
        most = [asyncio.run(bare(url, body, 3000, at_once))]
        before = sum(endpoint.usage.requests for endpoint in teacher.endpoints)
        with tempfile.TemporaryDirectory() as folder:
            started, used = time.perf_counter(), time.process_time()
            attach_aspects(rows, bank, teacher, work_dir=folder)
            took, used = time.perf_counter() - started, time.process_time() - used
        requests = sum(endpoint.usage.requests for endpoint in teacher.endpoints) - before
        most.append(asyncio.run(bare(url, body, 3000, at_once)))
        server.stdin.close()
    return {
        "name": f"{dialect}, {images} images, {questions} questions",
        "requests": requests,
        "requests_a_second": requests / took,
        "images_a_second": images / took,
        "bare": sum(most) / 2,
        "ratio": 2 * requests / took / sum(most),
        "cpu_ms": 1000 * used / requests,
        "found": teacher.endpoints[0].limiter.limit,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=0.05, help="an answer of the server takes")
    parser.add_argument("--at_once", type=int, default=64, help="answers that the server makes at a time")
    parser.add_argument("--dialect", default="chat-ids")
    parser.add_argument("--json", metavar="FILE", help="write the row there, too")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.seconds, args.at_once, args.dialect)
        return
    row = measure(args.images, args.questions, args.seconds, args.at_once, args.dialect)
    print("| Job | Requests | Requests/s | Bare client | Share of it | images/s | CPU, ms a request | At once |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    numbers = (
        f"{row['requests']:,} | {row['requests_a_second']:,.0f} | {row['bare']:,.0f} | {row['ratio']:.1%} | "
        f"{row['images_a_second']:.1f}"
    )
    print(f"| {row['name']} | {numbers} | {row['cpu_ms']:.2f} | {row['found']} |")
    if args.json:
        Path(args.json).write_text(json.dumps([row], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
