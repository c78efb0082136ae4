"""Every architecture's own processor, from files as the Hub has them, whether or not there is a torchvision."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from builders import tiny
from builders.questions import bank, pictures
from builders.quick_python import quick_python
from builders.tiny_mllms import LAYOUTS, MLLMS, mllm, on_the_hub
from transformers import AutoProcessor, ConvNextImageProcessorPil
from transformers.utils import is_torchvision_available

from madkd_hf import AspectTeacher
from madkd_hf.teachers.mllm import processors


ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # PaliGemma's processor
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MLLMS)
def test_a_teacher_as_the_hub_has_it_is_loaded_and_reads(name, layout, tmp_path):
    model, files = on_the_hub(name)
    model.save_pretrained(tmp_path)
    files.save(tmp_path, layout)
    teacher = AspectTeacher.from_pretrained(tmp_path, device="cpu", strategy="full")
    assert type(teacher.processor).__name__ == files.name
    images = pictures()[:2]
    expected = AspectTeacher(*mllm(name), strategy="full").read(images, bank())
    torch.testing.assert_close(teacher.read(images, bank()).logits, expected.logits)


@pytest.mark.skipif(not is_torchvision_available(), reason="compares with what torchvision makes possible")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MLLMS)
def test_without_its_video_part_a_processor_gives_the_same_pixels_and_tokens(name, layout, tmp_path):
    on_the_hub(name)[1].save(tmp_path, layout)
    whole = AutoProcessor.from_pretrained(tmp_path)
    with processors._without_videos():
        ours = AutoProcessor.from_pretrained(tmp_path)
    assert type(ours) is type(whole)
    text = AspectTeacher(on_the_hub(name)[0], whole).layout(bank()).texts[0]
    for image in pictures():
        expected, given = (each(images=[image], text=[text], return_tensors="pt") for each in (whole, ours))
        assert given.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(torch.as_tensor(given[key]), torch.as_tensor(value)), key


@pytest.mark.skipif(is_torchvision_available(), reason="there is nothing that stands in for it")
def test_what_stands_in_for_a_video_processor_refuses_videos(tmp_path):
    chat = mllm("internvl")[1]
    assert chat.video_processor.initial_shift is True and chat.video_processor.fps is None
    with pytest.raises(NotImplementedError, match="Videos need torchvision: install"):
        chat.video_processor([tiny.images(2)])


BROKEN = {
    "of another torch": "raise RuntimeError('operator torchvision::nms does not exist')",
    "with a library missing": "raise OSError('libcudart.so.13: cannot open shared object file')",
    "halfway": "import torchvision.ops",
    "by name only": "",
}
USE = """
{first}
from madkd_hf import AspectTeacher, MadkdForImageClassification, MadkdForObjectDetection
from builders import questions, tiny
from transformers import AutoImageProcessor, DetrConfig, DetrImageProcessor

teacher = AspectTeacher.from_pretrained({folder!r}, device="cpu")
print("answers", tuple(teacher.read(tiny.images(2), questions.bank()).logits.shape))
tiny_detr = DetrConfig(backbone_config=tiny.resnet(), d_model=16, num_queries=4, encoder_layers=1, decoder_layers=1,
    encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16)
names = {{0: "a", 1: "b"}}
student = MadkdForImageClassification.from_backbone(tiny.resnet(), id2label=names, bank=tiny.bank())
detector = MadkdForObjectDetection.from_detector(tiny_detr, id2label=names, bank=tiny.bank())
images = AutoImageProcessor.from_pretrained({folder!r} + "/student")(tiny.images(1), return_tensors="pt")
print("student", tuple(student(images["pixel_values"]).logits.shape))
boxes = DetrImageProcessor(size={{"height": 32, "width": 32}})(tiny.images(1), return_tensors="pt")
print("detector", tuple(detector(**boxes).logits.shape))
"""


@pytest.mark.parametrize(
    ("fault", "first"),
    [
        ("of another torch", ""),
        ("of another torch", "from transformers import HfArgumentParser; import datasets"),
        *(pytest.param(fault, "", marks=pytest.mark.slow) for fault in list(BROKEN)[1:]),
    ],
)
def test_everything_works_beside_a_torchvision_that_fails_at_import(fault, first, tmp_path):
    model, files = on_the_hub("internvl")
    model.save_pretrained(tmp_path)
    files.save(tmp_path, "old")
    (tmp_path / "student").mkdir()
    ConvNextImageProcessorPil(size={"shortest_edge": 16}).save_pretrained(tmp_path / "student")
    package = tmp_path / "site" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(BROKEN[fault])
    code = USE.format(folder=str(tmp_path), first=first)
    path = ":".join(map(str, (tmp_path / "site", ROOT, ROOT / "tests")))
    done = subprocess.run(
        [quick_python(), "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env={"PATH": "", "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    for line in ("answers (2, 7)", "student (1, 2)", "detector (1, 4, 3)"):
        assert line in done.stdout
    assert "torchvision is installed and cannot be imported" in done.stderr
    assert "pip uninstall torchvision" in done.stderr


# Images in another way than by default


SETTINGS = {  # what makes fewer tokens of a large image
    "internvl": {"crop_to_patches": False},
    "qwen2_vl": {"size": {"longest_edge": 16 * 16, "shortest_edge": 8 * 8}},
    "idefics3": {"do_image_splitting": False},
    "smolvlm": {"do_image_splitting": False},
    "mistral3": {"size": {"longest_edge": 16}},
}
MORE = {"gemma3": {"do_pan_and_scan": True}}  # whose other settings are the whole processor's


def loaded(name, folder, **options):
    model, files = on_the_hub(name)
    model.save_pretrained(folder)
    files.save(folder, next(iter(LAYOUTS)))
    return AspectTeacher.from_pretrained(folder, device="cpu", **options)


@pytest.mark.parametrize("name", SETTINGS)
def test_images_are_seen_as_the_settings_say_by_every_way_of_reading(name, tmp_path):
    images = [picture.resize((160, 90)) for picture in pictures()[:2]]
    usual, ours = loaded(name, tmp_path), loaded(name, tmp_path, images_kwargs=SETTINGS[name])
    assert ours.identity["images_kwargs"] == SETTINGS[name] and "images_kwargs" not in usual.identity
    tokens = [each.layout(bank()).inputs(images[0])["input_ids"].shape[1] for each in (ours, usual)]
    assert tokens[0] < tokens[1]
    answers = ours.read(images, bank()).logits
    assert ours.plan["strategy"] != "full" and not torch.allclose(
        answers, usual.read(images, bank()).logits, atol=1e-3
    )
    full = loaded(name, tmp_path, images_kwargs=SETTINGS[name], strategy="full").read(images, bank()).logits
    torch.testing.assert_close(answers, full, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MORE)
def test_settings_join_those_of_the_whole_processor(name, tmp_path):
    image = pictures()[0].resize((1200, 400))
    usual, ours = loaded(name, tmp_path), loaded(name, tmp_path, images_kwargs=MORE[name])
    pixels = [each.layout(bank()).inputs(image)["pixel_values"] for each in (usual, ours)]
    assert len(pixels[0]) == 1 < len(pixels[1])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (3, "images_kwargs are settings by name.*received 3"),
        ({"image_seq_length": 2}, "names 'image_seq_length', and"),
        ({"max_patch": 1}, "names 'max_patch', and GotOcr2ImageProcessor.* knows crop_size, .*max_patches"),
        ({"crop_to_patches": "maybe"}, "cannot see an image with images_kwargs={'crop_to_patches': 'maybe'}"),
        ({"size": {"height": 24, "width": 24}}, "cannot read an image with images_kwargs=.*: pass other ones"),
    ],
)
def test_settings_that_it_cannot_see_with_are_refused(given, said, tmp_path):
    with pytest.raises(ValueError, match=said) as raised:
        loaded("internvl", tmp_path, images_kwargs=given).prepare(pictures()[:1], bank())
    assert "\n" not in str(raised.value)
