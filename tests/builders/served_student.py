"""A student with random weights behind an address, in a thread of this process; real HTTP."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from builders import classifiers, tiny
from PIL import Image

from madkd_hf import AspectBank, MadkdForImageClassification
from madkd_hf.serving.app import build_app
from madkd_hf.serving.limits import Limits
from madkd_hf.serving.server import Server, address_of, listen
from madkd_hf.serving.student import ServedStudent


CLASSES = {0: "cat", 1: "dog", 2: "cow", 3: "hen"}
BANK = tiny.bank(3)


def model(bank: AspectBank | None = BANK, name: str = "resnet") -> MadkdForImageClassification:
    """Scores that differ much from image to image."""
    torch.manual_seed(0)
    made = MadkdForImageClassification.from_backbone(classifiers.config(name), CLASSES, bank, pretrained=False)
    pixels = classifiers.processor(name)([*tiny.images(16, 32)], return_tensors="pt")["pixel_values"]
    classifiers.settle(made, pixels)
    return made


def saved(folder: Path, bank: AspectBank | None = BANK) -> Path:
    model(bank).save_pretrained(folder)
    classifiers.processor("resnet").save_pretrained(folder)
    return folder


def student(bank: AspectBank | None = BANK, name: str = "resnet") -> ServedStudent:
    from madkd_hf.serving.student import reasons_of

    made = model(bank, name)
    return ServedStudent(made, classifiers.processor(name), "tiny", reasons_of(made, Path("nowhere")))


@contextlib.contextmanager
def serving(served: ServedStudent, key: str | None = None, **limits: Any) -> Iterator[str]:
    """The address, as long as it is served."""
    ready = threading.Event()
    with listen("127.0.0.1", 0) as opened:
        settings = Limits(**limits)
        server = Server(build_app(served, settings, key), settings, ready.set)
        thread = threading.Thread(target=server.run, args=([opened],))
        thread.start()
        try:
            assert ready.wait(60)
            yield address_of(opened)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def ask(url: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Status and JSON, or text, of a request; `body` is bytes, or what becomes JSON."""
    status, _, content = exchange(url, path, body, **headers)
    try:
        return status, json.loads(content)
    except ValueError:
        return status, content.decode()


def exchange(url: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers in lower case and body of an answer."""
    host, _, port = url.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    if body is not None and not isinstance(body, bytes) and not hasattr(body, "__next__"):
        body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()
