"""The JavaScript that a static Space runs a student with: pinned, and checked by the browser before it runs."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import VENDOR


CDN = "https://cdn.jsdelivr.net"


@dataclass(frozen=True)
class Asset:
    """A file of an npm package.

    Attributes:
        name, role: of the file, and what the page needs it for.
        package, version: of npm.
        size: bytes.
        sha384: base64, as Subresource Integrity writes it.
    """

    name: str
    role: str
    package: str
    version: str
    size: int
    sha384: str

    @property
    def url(self) -> str:
        """Where the CDN has this very file."""
        return f"{CDN}/npm/{self.package}@{self.version}/dist/{self.name}"

    def entry(self, offline: bool) -> dict[str, Any]:
        """What the page has to know of it."""
        url = f"vendor/{self.name}" if offline else self.url
        return {"role": self.role, "url": url, "bytes": self.size, "integrity": f"sha384-{self.sha384}"}


# The runtime for processors alone: students are small, it is half as large as the one for WebGPU, and its numbers are
# the same on every machine. transformers.js 4.3.1 was built with this version of it.
_TRANSFORMERS, _RUNTIME = ("@huggingface/transformers", "4.3.1"), ("onnxruntime-web", "1.31.0-dev.20260914-8d85527a0")
_SUMS = (
    (586230, "AFNtlNOt2vbygtlRCUX2TDgkE+EyonjbCLxAfqezYwJJDVlozUhg+yKs4cPwyjHR"),
    (24381, "rwgdUeIyqfd2lxMuhdqXYPnZiluDqSM5liz/q+ulIt4vYtB52NCoTVWBkm1KFOeN"),
    (14264838, "LrOPe1yNsLVzhsriuQfxO06RWx/XakR0S8uiOMx7HVJP6N/IEaR1EAgJMFeTanif"),
)
ASSETS = tuple(
    Asset(name, role, *package, *sums)
    for name, role, package, sums in zip(
        VENDOR, ("library", "factory", "runtime"), (_TRANSFORMERS, _RUNTIME, _RUNTIME), _SUMS
    )
)


def find_assets(folder: str | Path) -> dict[str, Path]:
    """The pinned files in a folder, wherever they lie in it, by name.

    Args:
        folder: for instance one into which archives of `npm pack` were unpacked, or `node_modules`.

    Raises:
        ValueError: one is missing, or is not the pinned one.
    """
    folder, found = Path(folder), {}
    if not folder.is_dir():
        raise ValueError(
            f"There is no folder {folder} with JavaScript files: pass --offline_assets with one, as {_HOW}"
        )
    for asset in ASSETS:
        paths = [path for path in sorted(folder.rglob(asset.name)) if path.is_file()]
        same = [path for path in paths if path.stat().st_size == asset.size and sha384(path) == asset.sha384]
        if not same:
            wrong = f"{paths[0]} is another file" if paths else f"{asset.name} is not there"
            raise ValueError(
                f"--offline_assets needs {asset.name} of {asset.package} {asset.version} in {folder}, and {wrong}: "
                f"{_HOW}"
            )
        found[asset.name] = same[0]
    return found


PACKAGES = " ".join(f"{package}@{version}" for package, version in (_TRANSFORMERS, _RUNTIME))
_HOW = f"run `npm pack {PACKAGES} && for f in *.tgz; do tar xzf $f; done` in a folder, and pass it."


def sha384(path: Path) -> str:
    return base64.b64encode(hashlib.sha384(path.read_bytes()).digest()).decode()
