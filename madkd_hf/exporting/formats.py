"""What students can be exported to, by the exporters of transformers: one row a format."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel


PIXELS = "pixel_values"
OPSET = 18  # of ONNX: old enough for the runtimes of browsers
LARGEST_FILE = 1 << 30  # bytes of weights inside one ONNX file, which may have 2 GB


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        name: of the format, and of its folder beside the weights.
        file: of the exported model in that folder.
        extra: what `pip install "madkd_hf[...]"` has to name; "" where pip installs the packages by their own names.
        packages: modules that it needs.
        exporter, config: classes of `transformers.exporters`.
        any_batch: whether a file takes any number of images; otherwise one, as it plans its memory beforehand.
    """

    name: str
    file: str
    extra: str
    packages: tuple[str, ...]
    exporter: str
    config: str
    any_batch: bool = True

    def check_installed(self) -> None:
        """Raise ImportError, with what to install, where something is missing."""
        missing = [package for package in self.packages if importlib.util.find_spec(package) is None]
        if missing:
            install = f'"madkd_hf[{self.extra}]"' if self.extra else " ".join(missing)
            raise ImportError(
                f"To export to {self.name} needs {', '.join(missing)}, which is not installed: pip install {install}"
            )
        if not can_export():
            raise ImportError(
                f"To export to {self.name} needs a newer transformers than {transformers.__version__}: pip install "
                '-U "transformers>=5.23"'
            )


def can_export() -> bool:
    """Whether this transformers has exporters that save, read back and run what they made."""
    if importlib.util.find_spec("transformers.exporters") is None:
        return False
    return getattr(importlib.import_module("transformers.exporters"), "ExportedModel", None) is not None


FORMATS = {
    row.name: row
    for row in (
        Format("onnx", "model.onnx", "onnx", ("onnx", "onnxscript", "onnxruntime"), "OnnxExporter", "OnnxConfig"),
        Format("openvino", "openvino_model.xml", "", ("openvino",), "OpenVINOExporter", "OpenVINOConfig"),
        Format("executorch", "model.pte", "", ("executorch",), "ExecutorchExporter", "ExecutorchConfig", False),
    )
}


class Exported:
    """A model in another format, read back from its file.

    Attributes:
        format, path: what it is, and the file.
        outputs: names of what it gives, "logits" and perhaps "aspect_logits".
    """

    def __init__(self, format: Format, path: Path, metadata: Any, outputs: list[str]):
        self.format, self.path, self.outputs = format, path, outputs
        self._metadata = metadata
        self._model: Any = None

    def __call__(self, pixels: torch.Tensor) -> dict[str, np.ndarray]:
        """Outputs by name, in float32 on the CPU, for pixel values [B, channels, height, width] of any B."""
        if self._model is None:
            self._model = self._open()
        parts = [pixels] if self.format.any_batch else pixels.split(1)
        outputs = [self._model(**{PIXELS: part}) for part in parts]
        return {name: np.concatenate([np.asarray(output[name]) for output in outputs]) for name in self.outputs}

    def _open(self) -> Any:
        from transformers import exporters

        program = getattr(exporters, self.format.exporter).load_program(self.path)
        component = exporters.ExportedComponent(program, self._metadata)
        options = {"config": {"INFERENCE_PRECISION_HINT": "f32"}} if self.format.name == "openvino" else {}
        return exporters.ExportedModel({"model": component}, self.format.name).to("cpu", **options)


def export(
    model: PreTrainedModel, format: Format, path: Path, pixels: torch.Tensor, quantizer: Any = None
) -> Exported:
    """Write a model in that format, for any number of images of this size, or for one, see `Format.any_batch`.

    Args:
        model: whose outputs are logits, and perhaps aspect_logits; in evaluation mode.
        path: of the file, in a folder that is there.
        pixels: [B, channels, height, width], two or more, to trace it with.
        quantizer: one of `transformers.exporters`.

    Raises:
        ValueError: the architecture cannot be exported.
    """
    from transformers import exporters

    shapes = {PIXELS: {0: torch.export.Dim("batch")}} if format.any_batch else None
    pixels = pixels if format.any_batch else pixels[:1]
    options: dict[str, Any] = {"dynamic_shapes": shapes}
    options |= {"quantizer": quantizer}
    options |= {"opset_version": OPSET} if format.name == "onnx" else {}
    try:
        with _quiet():
            exporter = getattr(exporters, format.exporter)()
            config = getattr(exporters, format.config)(**options)
            component = exporter.export(model, {PIXELS: pixels}, config).components["model"]
            _save(component.program, format, exporter, path)
    except Exception as error:  # whatever an exporter raises of an architecture that it cannot do
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{type(model).__name__} cannot be exported to {format.name} ({reason}): try another format, or train "
            "another backbone, as microsoft/resnet-18."
        ) from error
    outputs = [name for name in ("logits", "aspect_logits") if name == "logits" or hasattr(model.config, "aspect_ids")]
    return Exported(format, path, component.metadata, outputs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress that exporters print, and their remarks on versions and internals."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _save(program: Any, format: Format, exporter: Any, path: Path) -> None:
    """As the exporter does it, but an ONNX model in one file where it fits, which every runtime finds."""
    if format.name != "onnx":
        exporter.save_program(program, path)
        return
    import onnx_ir

    weights = sum(value.const_value.nbytes for value in program.graph.initializers.values())
    onnx_ir.save(program, path, external_data=f"{path.name}_data" if weights > LARGEST_FILE else None)
