"""Random resized crops and flips that follow from the seed, the epoch and the image alone; mixup."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from PIL import Image


TRIES = 10
RATIOS = (3 / 4, 4 / 3)


def image_key(image: Image.Image) -> int:
    """A number by which an image is known again wherever it is stored: from its size and a glance at its pixels."""
    pixels = image.resize((8, 8), Image.Resampling.NEAREST).tobytes()
    return zlib.crc32(f"{image.size} ".encode() + pixels)


def chances(seed: int, epoch: int, keys: np.ndarray, count: int) -> np.ndarray:
    """[B, count] uniform numbers in [0, 1) for each key, whatever other keys stand beside it.

    SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), which is counted and not stepped through: a generator object for
    each image would cost more than its crop.
    """
    start = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    state = _mixed(_mixed(keys.astype(np.uint64) ^ start))[:, None]
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (_mixed(state + steps) >> np.uint64(11)) * 2.0**-53


def _mixed(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def random_crops(
    sizes: np.ndarray, keys: np.ndarray, scale: float, flip: float, seed: int = 0, epoch: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a random resized crop and a horizontal flip for each image (the paper's augmentation).

    A crop keeps an area share in `scale`..1 (1 turns cropping off) and has an aspect ratio in 3/4..4/3, uniform on a
    log scale. The first of ten draws that fits into the image is taken, else the largest centred box within those
    ratios, as torchvision's `RandomResizedCrop` does.

    Args:
        sizes: [B, 2] width and height of the images, in pixels.
        keys: [B] of the images, see `image_key`.
        flip: probability of mirroring.

    Returns:
        [B, 4] left, top, right, bottom in pixels of the image; [B] whether to mirror.
    """
    width, height = sizes[:, :1].astype(float), sizes[:, 1:].astype(float)
    drawn = chances(seed, epoch, keys, 1 + 4 * TRIES)
    flips, (share, shape, x, y) = drawn[:, 0] < flip, drawn[:, 1:].reshape(-1, 4, TRIES).swapaxes(0, 1)
    if scale == 1:
        return np.concatenate([np.zeros_like(sizes), sizes], axis=1), flips
    area = width * height * (scale + (1 - scale) * share)
    low, high = np.log(RATIOS)
    ratio = np.exp(low + (high - low) * shape)
    w, h = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (0 < w) & (w <= width) & (0 < h) & (h <= height)
    left, top = np.floor(x * (width - w + 1)), np.floor(y * (height - h + 1))
    first = fits.argmax(axis=1)
    boxes = np.stack([left, top, left + w, top + h], axis=2)[np.arange(len(sizes)), first].astype(int)
    for i in np.flatnonzero(~fits.any(axis=1)):
        boxes[i] = _centred(*sizes[i].tolist())
    return boxes, flips


def _centred(width: int, height: int) -> tuple[int, int, int, int]:
    ratio = min(max(width / height, RATIOS[0]), RATIOS[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def strong_view(pixels: torch.Tensor, draw: np.random.Generator) -> torch.Tensor:
    """A harder view of images that are cropped and mirrored already: other contrast, brightness and colour, and a
    square of up to half the side left out (cut-out).

    The first three are of RandAugment (Cubuk et al., NeurIPS 2020), which FixMatch takes; those that turn or shear are
    left to the crops.

    Args:
        pixels: [B, 3, H, W], normalised: 0 is the mean.
    """
    count, _, height, width = pixels.shape

    def factors(low: float, high: float) -> torch.Tensor:
        drawn = draw.uniform(low, high, count).astype(np.float32)
        return torch.from_numpy(drawn).to(pixels.device, pixels.dtype)[:, None, None, None]

    view = pixels - pixels.mean(dim=(2, 3), keepdim=True)
    view = view * factors(0.4, 1.6) + pixels.mean(dim=(2, 3), keepdim=True) + factors(-0.6, 0.6)
    grey = view.mean(dim=1, keepdim=True)
    view = grey + (view - grey) * factors(0.0, 1.8)
    sides = draw.uniform(0, 0.5, count)
    for image, side, (y, x) in zip(view, sides, draw.uniform(0, 1, (count, 2))):
        h, w = round(side * height), round(side * width)
        top, left = round(y * (height - h)), round(x * (width - w))
        image[:, top : top + h, left : left + w] = 0
    return view


def mixup(
    inputs: dict[str, torch.Tensor], alpha: float, draw: np.random.Generator
) -> tuple[torch.Tensor, list[tuple[float, dict]]]:
    """Blends each image with another of its batch (Zhang et al., ICLR 2018), by a share from Beta(alpha, alpha).

    Cross-entropy and BCE are linear in their targets, so the loss of blended targets is the blend of the losses: class
    and aspect targets are mixed alike, and a row without answers adds nothing for its share.

    Returns:
        Blended `pixel_values` [B, 3, H, W]; (share, batch whose targets count for that share), twice.
    """
    share, pixels = draw.beta(alpha, alpha), inputs["pixel_values"]
    order = torch.from_numpy(draw.permutation(len(pixels))).to(pixels.device)
    partners = {name: values[order] for name, values in inputs.items()}
    return share * pixels + (1 - share) * partners["pixel_values"], [(share, inputs), (1 - share, partners)]
