"""A headless Chromium, where there is one."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


FLAGS = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync""".split()  # a browser that asks nobody for anything of its own accord
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@contextmanager
def browser() -> Iterator[Any]:
    """Playwright's handle on it; a test without playwright or a browser is skipped."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("there is no Chromium here")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield chromium
        finally:
            chromium.close()


@contextmanager
def opened(
    chromium: Any, address: str, width: int = 1280, height: int = 900, **options: Any
) -> Iterator[tuple[Any, list[str]]]:
    """A page, and what it asked for and complained about: requests, messages of the console, errors."""
    page = chromium.new_page(viewport={"width": width, "height": height}, **options)
    noted: list[str] = []
    page.on("console", lambda message: noted.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: noted.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (noted.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: noted.append(f"request: {request.url}"))
    page.goto(address)
    try:
        yield page, noted
    finally:
        page.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a web server that shows the files of a folder."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def barriers(page: Any) -> list[str]:
    """What axe-core finds that keeps people out, serious or critical; skipped without MADKD_AXE, its axe.min.js."""
    path = os.environ.get("MADKD_AXE")
    if not path:
        pytest.skip("MADKD_AXE names no axe.min.js")
    page.evaluate(Path(path).read_text(encoding="utf-8") + "; 0")
    found = page.evaluate(
        "axe.run().then(r => r.violations.map(v => [v.impact, v.id + ': ' + v.nodes.map(n => n.html).join(' ')]))"
    )
    return [text for impact, text in found if impact in ("serious", "critical")]
