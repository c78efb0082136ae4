"""A student beside the teacher that it learnt from, both behind an address: what they say, and how fast.

The same client asks both for the same test images of easy-VQA, by System One, which `transformers serve` and
`madkd serve` speak. Per question: how often both say the same side, the correlation of their log-odds, and how far the
student's probabilities are from the teacher's (expected calibration error, in ten bins). Then the time of single
requests, and of many clients at once, with all questions about one image in a request; and the student's memory.

    transformers serve recipes/easy_vqa/teacher --device cpu --port 8001
    madkd serve runs/student
    python benchmarks/serving.py --teacher http://127.0.0.1:8001/v1 --teacher_model recipes/easy_vqa/teacher \\
        --student http://127.0.0.1:8000/v1 --student_model student [--images 200] [--minutes 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import re
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from madkd_hf import AspectBank
from madkd_hf.report import markdown_table
from madkd_hf.teachers import load_teacher


BINS = 10
BANK = Path(__file__).resolve().parents[1] / "recipes/easy_vqa/aspects.json"


def calibration_error(p: np.ndarray, truth: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error of probabilities [n] against others, or against answers of 0 and 1 [n]."""
    places = np.minimum((p * bins).astype(int), bins - 1)
    groups = [places == place for place in range(bins)]
    return float(sum(abs(p[g].mean() - truth[g].mean()) * g.mean() for g in groups if g.any()))


def compared(questions: Sequence[str], teacher: np.ndarray, student: np.ndarray) -> list[dict[str, Any]]:
    """One row a question, and the mean of all; from log-odds [n, Q]."""
    p, q = 1 / (1 + np.exp(-student)), 1 / (1 + np.exp(-teacher))
    rows = []
    for k, question in enumerate(questions):
        varies = student[:, k].std() > 0 and teacher[:, k].std() > 0
        rows.append(
            {
                "name": question,
                "agreement": float(((student[:, k] > 0) == (teacher[:, k] > 0)).mean()),
                "correlation": float(np.corrcoef(student[:, k], teacher[:, k])[0, 1]) if varies else float("nan"),
                "error": calibration_error(p[:, k], q[:, k]),
                "error_hard": calibration_error(p[:, k], (q[:, k] > 0.5).astype(float)),
            }
        )
    numbers = ("agreement", "correlation", "error", "error_hard")
    return [*rows, {"name": "mean", **{name: float(np.nanmean([row[name] for row in rows])) for name in numbers}}]


def requests_of(model: str, questions: Sequence[str], images: Sequence[Image.Image]) -> list[bytes]:
    """One request an image, with all questions."""
    asked = {f"q{k}": {"type": "noul", "instructions": question} for k, question in enumerate(questions)}
    bodies = []
    for image in images:
        file = io.BytesIO()
        image.convert("RGB").save(file, "PNG")
        asset = {"type": "image", "format": "png", "data_base64": base64.b64encode(file.getvalue()).decode()}
        body = {"model": model, "state": "<asset-1>", "questions": asked, "assets": {"<asset-1>": asset}}
        bodies.append(json.dumps(body).encode())
    return bodies


def send(connection: http.client.HTTPConnection, path: str, body: bytes) -> None:
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise SystemExit(f"{path} answers {answer.status}: {content[:300].decode(errors='replace')}")


def timed(address: str, bodies: Sequence[bytes], clients: int, seconds: float) -> dict[str, float]:
    """Requests a second, and milliseconds that half and 99% of them took at most, from so many clients at once."""
    url, end, turns = urlsplit(address), time.perf_counter() + seconds, count()
    took: list[list[float]] = [[] for _ in range(clients)]

    def client(mine: list[float]) -> None:
        connection = http.client.HTTPConnection(url.hostname, url.port, timeout=300)
        while time.perf_counter() < end:
            started = time.perf_counter()
            send(connection, f"{url.path}/systemone", bodies[next(turns) % len(bodies)])
            mine.append(time.perf_counter() - started)
        connection.close()

    threads = [threading.Thread(target=client, args=(mine,)) for mine in took]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    all_of_them = 1000 * np.array([second for mine in took for second in mine])
    rate = len(all_of_them) / (time.perf_counter() - started)
    p50, p99 = (float(np.percentile(all_of_them, part)) for part in (50, 99))
    return {"requests": len(all_of_them), "requests_a_second": rate, "p50": p50, "p99": p99}


def watched(address: str, every: float, stop: threading.Event) -> Iterator[tuple[float, float]]:
    """Seconds since the begin, and MiB that the server says to hold, until it is stopped."""
    url, started = urlsplit(address), time.perf_counter()
    while True:
        connection = http.client.HTTPConnection(url.hostname, url.port, timeout=60)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        if found := re.search(r"^process_resident_memory_bytes (\S+)", text, re.MULTILINE):
            yield time.perf_counter() - started, float(found[1]) / 2**20
        if stop.wait(every):
            return


def memory_while(address: str, bodies: Sequence[bytes], clients: int, seconds: float) -> tuple[dict, list]:
    """The times of many clients, and the memory of the server meanwhile."""
    stop, seen = threading.Event(), []
    watcher = threading.Thread(target=lambda: seen.extend(watched(address, max(1.0, seconds / 10), stop)))
    watcher.start()
    row = timed(address, bodies, clients, seconds)
    stop.set()
    watcher.join()
    return row, seen


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    from recipes.easy_vqa.data import load_easy_vqa

    bank = AspectBank.load(BANK)
    images = load_easy_vqa()["test"].select(range(args.images))["image"][:]
    sides = {"teacher": (args.teacher, args.teacher_model), "student": (args.student, args.student_model)}
    said = {side: load_teacher(url, model=model).read(images, bank).logits for side, (url, model) in sides.items()}
    rows = compared(bank.questions, *(said[side].double().numpy() for side in sides))
    print(table(rows))
    for side, (url, model) in sides.items():
        bodies, seconds = requests_of(model, bank.questions, images), 60 * args.minutes
        single = timed(url, bodies, 1, min(20, seconds))
        many, seen = (
            memory_while(url, bodies, args.clients, seconds)
            if side == "student"
            else (timed(url, bodies, args.clients, min(60, seconds)), [])
        )
        rows += [{"name": f"{side}, 1 client", **single}, {"name": f"{side}, {args.clients} clients", **many}]
        rows += [{"name": "memory", "seconds": second, "mib": mib} for second, mib in seen]
    print("\n" + speed_table(rows))
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    head = ["Question", "Same side, %", "Correlation", "ECE of p", "ECE of yes/no"]
    cells = [
        [
            row["name"],
            f"{100 * row['agreement']:.1f}",
            *(f"{row[name]:.3f}" for name in ("correlation", "error", "error_hard")),
        ]
        for row in rows
    ]
    return markdown_table([head, *cells], right=(1, 2, 3, 4))


def speed_table(rows: Sequence[dict[str, Any]]) -> str:
    speeds, memory = ([row for row in rows if name in row] for name in ("p50", "mib"))
    head = ["Server", "Requests", "Requests/s", "p50, ms", "p99, ms"]
    cells = [
        [row["name"], f"{row['requests']:,}", *(f"{row[name]:.0f}" for name in ("requests_a_second", "p50", "p99"))]
        for row in speeds
    ]
    text = markdown_table([head, *cells], right=(1, 2, 3, 4))
    if memory:
        text += "\n\nMemory of the student's server, MiB after seconds: "
        text += ", ".join(f"{row['mib']:.0f} after {row['seconds']:.0f}" for row in memory) + "."
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, metavar="ADDRESS")
    parser.add_argument("--teacher_model", required=True)
    parser.add_argument("--student", required=True, metavar="ADDRESS")
    parser.add_argument("--student_model", required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=1.0, help="with many clients, the teacher at most one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    args = parser.parse_args()
    rows = measure(args)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
