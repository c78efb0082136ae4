"""Images as people choose them on a page, and what a student says of them in Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from madkd_hf import MadkdForImageClassification
from madkd_hf.data.image_processors import load_image_processor
from madkd_hf.data.rgb import to_rgb
from madkd_hf.students.classification.because import Because


ROTATED = 6  # of EXIF: stored lying on its side


def save_images(folder: Path) -> list[Path]:
    """Shapes and files that a browser and Python might read in two ways.

    None is tall and large: of some such, Pillow 13 resizes the columns first, and older ones and the page the rows.
    """
    generator = np.random.default_rng(0)
    noise = Image.fromarray(generator.integers(0, 256, size=(427, 640, 3), dtype=np.uint8))
    photo = Image.blend(noise.resize((9, 7)).resize((640, 427), Image.Resampling.BICUBIC), noise, 0.3)
    exif = Image.Exif()
    exif[0x0112] = ROTATED
    transparent = photo.convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(photo.size).point(lambda value: 255 * (value > 120)))
    saved = {
        "lossless.png": (photo, {}),
        "upright.jpg": (photo, {"quality": 90}),
        "rotated.jpg": (photo, {"quality": 90, "exif": exif}),
        "transparent.png": (transparent, {}),
        "grey.png": (photo.convert("L"), {}),
        "small.png": (photo.resize((20, 31)), {}),
        "wide.webp": (photo.resize((700, 120)).filter(ImageFilter.BLUR), {"lossless": True}),
    }
    for name, (image, options) in saved.items():
        image.save(folder / name, **options)
    return [folder / name for name in saved]


@torch.inference_mode()
def expected_of(student: Path, path: Path, baseline: list[float]):
    """Probabilities by class, and answer and weight by question, of the class that is named."""
    model = MadkdForImageClassification.from_pretrained(student).eval()
    with Image.open(path) as file:
        pixels = load_image_processor(str(student))([to_rgb(file)], return_tensors="pt")["pixel_values"]
    output = model(pixels)
    probabilities = output.logits[0].softmax(0)
    because = Because.of_student(model, baseline)
    reasons = because.reasons(output.aspect_logits[0].tolist(), int(probabilities.argmax()))
    classes = {name: float(probabilities[index]) for index, name in model.config.id2label.items()}
    return classes, {reason.question: (reason.answer, reason.weight) for reason in reasons}
