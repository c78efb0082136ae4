"""Students in other formats: the same numbers, the files that other runtimes look for, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import classifiers, tiny
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from madkd_hf import AspectBank, MadkdDetectionConfig, MadkdForImageClassification
from madkd_hf.exporting import student as exporting
from madkd_hf.exporting.formats import FORMATS, Format, can_export
from madkd_hf.exporting.student import export_student, load_for_export, made_up_images
from madkd_hf.students.classification.because import Because


pytest.importorskip("onnxscript")
pytestmark = pytest.mark.skipif(not can_export(), reason="this transformers cannot read exports back")
ort = pytest.importorskip("onnxruntime")
CLASSES = {0: "cat", 1: "dog", 2: "cow", 3: "hen"}
BANK = AspectBank(["Is it red?", "Does it fly?"])
ALWAYS = ("resnet", "vit")
SLOW = ("beit", "convnext", "deit", "dinov2", "efficientnet", "focalnet", "mobilenet_v2", "mobilevit", "poolformer")
SLOW += ("pvt", "regnet", "segformer", "swin", "textnet")
SIZES = (1, 2, 7)  # of batches


def student(name: str = "resnet", bank: AspectBank | None = BANK) -> MadkdForImageClassification:
    torch.manual_seed(0)
    return MadkdForImageClassification.from_backbone(classifiers.config(name), CLASSES, bank, pretrained=False)


def saved(folder: Path, bank: AspectBank | None = BANK) -> Path:
    student(bank=bank).save_pretrained(folder)
    classifiers.processor("resnet").save_pretrained(folder)
    return folder


def run(path: Path, pixels: torch.Tensor) -> dict[str, np.ndarray]:
    """What ONNX Runtime itself makes of a file, without any of our or transformers' code."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["pixel_values"]
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"pixel_values": pixels.numpy()})))


@pytest.mark.parametrize("name", [*ALWAYS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_an_export_gives_the_same_numbers_for_batches_of_any_size(name, tmp_path):
    model, processor = student(name), classifiers.processor(name)
    images = made_up_images(8)
    classifiers.settle(model, processor(images, return_tensors="pt")["pixel_values"])
    exported = export_student(model, processor, tmp_path, aspects=True)
    assert exported.agreement.difference < 1e-4 and exported.agreement.images == 32
    with torch.no_grad():
        logits = model(processor(images, return_tensors="pt")["pixel_values"]).logits
    assert logits.std(dim=0).mean() > 1000 * exported.agreement.difference  # there is something to compare
    assert exported.agreement.classes == exported.agreement.answers == 1
    for size in SIZES:
        pixels = processor(images[:size], return_tensors="pt")["pixel_values"]
        outputs = run(tmp_path / "onnx/model.onnx", pixels)
        with torch.no_grad():
            expected = model(pixels)
        assert list(outputs) == ["logits", "aspect_logits"]
        np.testing.assert_allclose(outputs["logits"], expected.logits, atol=1e-4)
        np.testing.assert_allclose(outputs["aspect_logits"], expected.aspect_logits, atol=1e-4)


def test_the_folder_is_a_plain_model_with_its_export_beside_it(tmp_path):
    model = student()
    exported = export_student(model, classifiers.processor("resnet"), tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == {
        *("config.json", "preprocessor_config.json", "model.safetensors", "onnx/model.onnx", ".madkd.json"),
    }
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "resnet" and config["id2label"] == {str(k): v for k, v in CLASSES.items()}
    plain = AutoModelForImageClassification.from_pretrained(tmp_path)
    pixels = AutoImageProcessor.from_pretrained(tmp_path)(tiny.images(3), return_tensors="pt")["pixel_values"]
    outputs = run(exported.path, pixels)
    assert list(outputs) == ["logits"]
    with torch.no_grad():
        np.testing.assert_allclose(outputs["logits"], plain(pixels).logits, atol=1e-4)
        np.testing.assert_allclose(outputs["logits"], model(pixels).logits, atol=1e-4)


def test_with_aspects_the_configuration_names_them_and_reasons_are_beside(tmp_path):
    export_student(student(), classifiers.processor("resnet"), tmp_path, aspects=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["aspect_ids"] == BANK.ids and config["aspect_questions"] == BANK.questions
    because = Because.load(tmp_path)
    assert because.ids == BANK.ids and because.effects.shape == (4, 2) and because.baseline.any()
    AutoModelForImageClassification.from_pretrained(tmp_path)  # names that it does not know do no harm
    export_student(student(), classifiers.processor("resnet"), tmp_path)  # without, in the same folder
    assert not (tmp_path / "because.json").exists()
    assert "aspect_ids" not in json.loads((tmp_path / "config.json").read_text())


def test_an_eight_bit_model_is_calibrated_on_some_images_and_measured_on_the_others(tmp_path):
    exported = export_student(
        student(), classifiers.processor("resnet"), tmp_path, aspects=True, images=tiny.images(24, 64), int8=True
    )
    assert exported.quantized == tmp_path / "onnx/model_quantized.onnx"
    agreement = exported.quantized_agreement
    assert agreement.images == exported.agreement.images == 12 and 0 < agreement.difference < 1
    assert 0 <= agreement.classes <= 1 and "% of the classes and" in str(agreement)
    pixels = classifiers.processor("resnet")(tiny.images(2), return_tensors="pt")["pixel_values"]
    assert run(exported.quantized, pixels)["logits"].shape == (2, 4)
    import onnx

    kinds = {tensor.data_type for tensor in onnx.load(exported.quantized).graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    export_student(student(), classifiers.processor("resnet"), tmp_path)
    assert not exported.quantized.exists()  # of the student before


def test_an_export_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="computes something else: on 32 images.*nothing was kept"):
        export_student(student(), classifiers.processor("resnet"), tmp_path)
    assert [path.name for path in (tmp_path / "onnx").iterdir()] == ["notes.txt"]


def test_what_an_exporter_cannot_do_is_one_sentence(tmp_path):
    class Strange(MadkdForImageClassification):
        def to_plain(self):
            plain = super().to_plain()
            forward = plain.forward
            plain.forward = lambda pixel_values: forward(pixel_values * float(pixel_values.sum().item() > 0 or 2))
            return plain

    model = student()
    model.__class__ = Strange
    with pytest.raises(ValueError, match="cannot be exported to onnx.*try another format, or train another backbone"):
        export_student(model, classifiers.processor("resnet"), tmp_path)
    assert not [*tmp_path.rglob("*.onnx")]


def test_files_of_a_user_are_not_overwritten(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="config.json was not written by this command"):
        export_student(student(), classifiers.processor("resnet"), tmp_path)
    assert (tmp_path / "config.json").read_text() == "{}"


def test_a_model_of_a_user_beside_an_export_stays(tmp_path):
    own = tmp_path / "onnx" / "model_of_mine.onnx"
    own.parent.mkdir()
    own.write_bytes(b"mine")
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"of an older export")
    exporting._remove_exports(tmp_path)
    assert [path.name for path in own.parent.iterdir()] == [own.name]


def test_a_format_that_is_not_installed_says_what_to_install():
    nowhere = Format("onnx", "model.onnx", "onnx", ("onnx", "no_such_module"), "OnnxExporter", "OnnxConfig")
    with pytest.raises(ImportError, match=r'no_such_module.*pip install "madkd_hf\[onnx\]"'):
        nowhere.check_installed()


def test_openvino_gives_the_same_numbers_where_it_is_installed(tmp_path):
    openvino = pytest.importorskip("openvino")
    model, processor = student(), classifiers.processor("resnet")
    exported = export_student(model, processor, tmp_path, "openvino", aspects=True)
    assert exported.path == tmp_path / "openvino/openvino_model.xml" and exported.agreement.difference < 1e-4
    compiled = openvino.Core().compile_model(str(exported.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    pixels = processor(tiny.images(3), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        np.testing.assert_allclose(compiled(pixels.numpy())["logits"], model(pixels).logits, atol=1e-4)


def test_executorch_gives_the_same_numbers_where_it_is_installed(tmp_path):
    pytest.importorskip("executorch")
    exported = export_student(student(), classifiers.processor("resnet"), tmp_path, "executorch", aspects=True)
    assert exported.path == tmp_path / "executorch/model.pte" and exported.path.stat().st_size > 1000
    assert exported.agreement.images == 32 and exported.agreement.difference < 1e-4


def test_students_and_plain_models_are_loaded_and_others_refused(tmp_path):
    model, _ = load_for_export(str(saved(tmp_path / "student")), aspects=True)
    assert type(model) is MadkdForImageClassification and model.dtype == torch.float32
    student().to_plain().save_pretrained(tmp_path / "plain")
    classifiers.processor("resnet").save_pretrained(tmp_path / "plain")
    model, processor = load_for_export(str(tmp_path / "plain"))
    assert export_student(model, processor, tmp_path / "out").agreement.difference < 1e-4
    for folder in ("plain", saved(tmp_path / "bare", bank=None).name):
        with pytest.raises(ValueError, match="has no aspects: leave out --aspects"):
            load_for_export(str(tmp_path / folder), aspects=True)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="is no student.*pass the folder that `madkd train` wrote"):
        load_for_export(str(tmp_path / "nothing"))
    detector = Path(__file__).parents[2] / "recipes/easy_vqa/detector"
    with pytest.raises(ValueError, match="only image classifiers are exported so far, no detectors"):
        load_for_export(str(detector))
    MadkdDetectionConfig(AutoConfig.from_pretrained(detector)).save_pretrained(tmp_path / "detector")
    with pytest.raises(ValueError, match="a madkd_detection model.*no detectors: pass a classifier"):
        load_for_export(str(tmp_path / "detector"))


def test_every_format_has_a_name_and_what_it_needs():
    assert {name: row.name for name, row in FORMATS.items()} == {name: name for name in FORMATS}
    assert all(row.packages and row.file.startswith(("model", "openvino_model")) for row in FORMATS.values())
