"""The resizing of the static page is Pillow's, to the last bit."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image


SCRIPT = """
import { readFileSync, writeFileSync } from "node:fs";
const { resize } = await import(process.argv[1]);
const pixels = new Uint8Array(readFileSync(process.argv[2]));
const cases = JSON.parse(process.argv[3]);
for (const [w, h, w2, h2, filter, path] of cases) writeFileSync(path, resize(pixels, w, h, w2, h2, filter));
"""


@pytest.mark.skipif(not shutil.which("node"), reason="there is no Node here")
def test_resizing_is_pillows(tmp_path):
    width, height = 61, 47
    noise = np.random.default_rng(0).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    (tmp_path / "pixels").write_bytes(noise.tobytes())
    script = tmp_path / "resize.mjs"
    script.write_bytes(files("madkd_hf.spaces").joinpath("static", "resize.js").read_bytes())
    sizes = [(48, 48), (224, 172), (20, 100), (61, 30), (10, 47), (7, 5)]
    cases = [
        [width, height, *size, filter, str(tmp_path / f"{filter}-{size[0]}")] for filter in range(6) for size in sizes
    ]
    words = ["node", "--input-type=module", "-e", SCRIPT, script.as_uri(), str(tmp_path / "pixels"), json.dumps(cases)]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    for *_, w, h, filter, path in cases:
        expected = np.asarray(Image.fromarray(noise).resize((w, h), Image.Resampling(filter)))
        got = np.fromfile(path, dtype=np.uint8).reshape(h, w, 3)
        assert np.array_equal(got, expected), (w, h, filter, np.abs(got.astype(int) - expected).max())
