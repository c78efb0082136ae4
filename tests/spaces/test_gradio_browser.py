"""A Gradio Space as the Hub runs it: its app.py in an environment of its own, opened in a real Chromium.

MADKD_GRADIO_PYTHON is an interpreter with Gradio and the requirements.txt of a Space alone: `make test-browser`
makes one. Gradio wants an older Pillow than the one that everything else is tested with.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from builders import tiny
from builders.browser import barriers, browser, opened
from builders.hostile import STRINGS
from builders.space_images import expected_of, save_images
from builders.space_students import make_space

from madkd_hf.spaces import DATA, GRADIO
from madkd_hf.spaces.card import SpaceFacts


PYTHON = os.environ.get("MADKD_GRADIO_PYTHON")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON, reason="MADKD_GRADIO_PYTHON names no interpreter")]
LINES = "all => all.map(e => [...e.querySelector('.madkd-line').children].map(part => part.textContent))"


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """The address of the app, started as the Hub does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "GRADIO_SERVER_PORT": str(port)}
    environment |= {"HF_HUB_OFFLINE": "1", "GRADIO_TEMP_DIR": str(folder / "temporary")}
    log = open(folder / "log.txt", "w")
    app = subprocess.Popen([PYTHON, "app.py"], cwd=folder, env=environment, stdout=log, stderr=log)
    address, until = f"http://127.0.0.1:{port}/", time.monotonic() + 120
    try:
        while True:
            try:
                urllib.request.urlopen(address, timeout=5)
                break
            except OSError:
                assert app.poll() is None and time.monotonic() < until, (folder / "log.txt").read_text()
                time.sleep(0.3)
        yield address
    finally:
        app.terminate()
        app.wait(20)
        log.close()


def read(tab, path: Path) -> tuple[list[list[str]], list[list[str]]]:
    """Names and percentages of the classes, questions and weights of the reasons, as they are shown."""
    if tab.get_by_label("Remove Image").count():
        tab.get_by_label("Remove Image").first.click()
        tab.locator("#classes").get_by_text("Choose an image.").wait_for()
    tab.locator("input[type=file]").first.set_input_files(path)
    tab.locator("#classes li").first.wait_for()
    tab.locator("#reasons li").first.wait_for()
    return tab.locator("#classes li").evaluate_all(LINES), tab.locator("#reasons li").evaluate_all(LINES)


def test_it_reads_what_python_reads_and_keeps_nobody_out(exported, birds, tmp_path):
    examples = [(image, "finch") for image in tiny.images(2, 48)]
    make_space(exported, tmp_path, GRADIO, SpaceFacts("Birds", ["you/birds"]), examples=examples)
    baseline = json.loads((tmp_path / DATA).read_text(encoding="utf-8"))["baseline"]
    (tmp_path / "photos").mkdir()
    with running(tmp_path) as address, browser() as chromium:
        with opened(chromium, address) as (tab, noted):
            tab.locator("#classes").wait_for()
            for path in save_images(tmp_path / "photos"):
                classes, reasons = read(tab, path)
                expected_classes, expected_reasons = expected_of(birds, path, baseline)
                assert classes[0][0] == max(expected_classes, key=expected_classes.get), path
                for name, percent in classes:
                    assert float(percent.rstrip("%")) == pytest.approx(100 * expected_classes[name], abs=0.51), path
                for question, weight in reasons:
                    shown = float(weight.split()[0].replace("−", "-"))
                    assert shown == pytest.approx(expected_reasons[question][1], abs=0.0051), path
            outside = [note for note in noted if note.startswith("request: http") and address not in note]
            assert not outside and barriers(tab) == []
        with opened(chromium, address, 390, 844, color_scheme="dark") as (tab, _):
            tab.get_by_label("Thumbnail 2 of 2").click()  # an example
            tab.locator("#reasons li").first.wait_for()
            assert barriers(tab) == [] and tab.evaluate("document.documentElement.scrollWidth") <= 390


def test_hostile_texts_are_text(strangers, tmp_path):
    make_space(strangers, tmp_path, GRADIO, SpaceFacts("</script><script>alert(1)</script>" + STRINGS["html"]))
    data = json.loads((tmp_path / DATA).read_text(encoding="utf-8"))
    (tmp_path / "photos").mkdir()
    with running(tmp_path) as address, browser() as chromium, opened(chromium, address) as (tab, noted):
        tab.locator("#classes").wait_for()
        assert tab.locator("h1").text_content() == data["title"]
        classes, reasons = read(tab, save_images(tmp_path / "photos")[0])
        assert {name for name, _ in classes} <= set(data["classes"]) and len(classes) == 5
        assert {question for question, _ in reasons} <= set(data["questions"]) and len(reasons) == 8
        choice = tab.get_by_label("Reasons for the class")
        for text in (STRINGS["script"], STRINGS["image in html"], STRINGS["template"]):
            choice.fill(text)
            tab.get_by_role("option").filter(has_text=text).first.click()
            tab.locator("#reasons").get_by_text(f"“{text}”").wait_for()
    assert not [note for note in noted if note.startswith("dialog") or "127.0.0.1:9/" in note or "evil" in note]
