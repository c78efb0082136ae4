"""What the static page makes of pixels is what Python makes of them, to the last bit."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.image_transforms import center_crop


SCRIPT = """
import { readFileSync, writeFileSync } from "node:fs";
const { crop, resize } = await import(process.argv[1]);
const pixels = new Uint8Array(readFileSync(process.argv[2]));
const cases = JSON.parse(process.argv[3]);
for (const [w, h, w2, h2, filter, path] of cases) {
  writeFileSync(path, filter === null ? crop(pixels, w, h, w2, h2) : resize(pixels, w, h, w2, h2, filter));
}
"""


WIDTH, HEIGHT = 61, 47
NOISE = np.random.default_rng(0).integers(0, 256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="there is no Node here")


def run(cases: list[tuple[int, int, int | None]], folder: Path) -> list[np.ndarray]:
    """Widths, heights and filters, None to crop; the images that the page's code makes."""
    (folder / "pixels").write_bytes(NOISE.tobytes())
    script = folder / "resize.mjs"
    script.write_bytes(files("madkd_hf.spaces").joinpath("static", "resize.js").read_bytes())
    listed = json.dumps([[WIDTH, HEIGHT, *case, str(folder / str(k))] for k, case in enumerate(cases)])
    words = ["node", "--input-type=module", "-e", SCRIPT, script.as_uri(), str(folder / "pixels"), listed]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    return [
        np.fromfile(folder / str(k), dtype=np.uint8).reshape(height, width, 3)
        for k, (width, height, _) in enumerate(cases)
    ]


def test_resizing_is_pillows_to_the_last_bit(tmp_path):
    sizes = [(48, 48), (224, 172), (20, 100), (61, 30), (10, 47), (7, 5)]
    cases = [(*size, filter) for filter in range(6) for size in sizes]
    for (*size, filter), got in zip(cases, run(cases, tmp_path)):
        rows = Image.fromarray(NOISE).resize((size[0], HEIGHT), Image.Resampling(filter))  # first, as before Pillow 13
        expected = np.asarray(rows.resize(size, Image.Resampling(filter)))
        assert np.array_equal(got, expected), (size, filter)


def test_cropping_is_that_of_transformers(tmp_path):
    cases = [(32, 32, None), (33, 32, None), (100, 31, None), (40, 90, None), (62, 48, None), (61, 47, None)]
    for (width, height, _), got in zip(cases, run(cases, tmp_path)):
        assert np.array_equal(got, center_crop(NOISE, (height, width), input_data_format="channels_last"))
