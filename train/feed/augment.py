"""Random crops and colours for training frames. NumPy and OpenCV; every draw comes from the generator passed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from gradseg.data.base import IGNORE, Sample

Image = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Augment:
    """What is varied. scale: range of the random zoom (log-uniform). flip: mirror half of the frames. colour: strength
    0..1 of brightness, contrast, gamma, saturation and white-balance changes. soften: share of frames blurred or noisy.
    """

    scale: tuple[float, float] = (0.6, 1.8)
    flip: bool = True
    colour: float = 0.6
    soften: float = 0.15


NO_AUGMENT = Augment(scale=(1.0, 1.0), flip=False, colour=0.0, soften=0.0)
PRESETS = {"full": Augment(), "light": Augment(scale=(0.8, 1.25), colour=0.3, soften=0.0), "none": NO_AUGMENT}


def random_crop(
    sample: Sample, crop_hw: tuple[int, int], how: Augment, rng: np.random.Generator
) -> tuple[Image, Image]:
    """A crop of the randomly zoomed sample: uint8 BGR (h, w, 3) and uint8 labels (h, w), `IGNORE` beyond the frame."""
    height, width = sample.label.shape
    zoom = float(np.exp(rng.uniform(np.log(how.scale[0]), np.log(how.scale[1]))))
    # take the source window first and resize only that: same crop, fewer pixels touched
    window_h, window_w = (max(2, round(c / zoom)) for c in crop_hw)
    top = int(rng.integers(min(0, height - window_h), max(0, height - window_h) + 1))
    left = int(rng.integers(min(0, width - window_w), max(0, width - window_w) + 1))
    image = _window(sample.image, top, left, window_h, window_w, 0)
    label = _window(sample.label, top, left, window_h, window_w, IGNORE)
    if (window_h, window_w) != tuple(crop_hw):
        smooth = cv2.INTER_LINEAR if zoom >= 1 else cv2.INTER_AREA
        image = cv2.resize(image, (crop_hw[1], crop_hw[0]), interpolation=smooth)
        label = cv2.resize(label, (crop_hw[1], crop_hw[0]), interpolation=cv2.INTER_NEAREST_EXACT)
    if how.flip and rng.random() < 0.5:
        image, label = cv2.flip(image, 1), cv2.flip(label, 1)
    if how.colour > 0:
        image = vary_colour(image, how.colour, rng)
    if rng.random() < how.soften:
        image = _soften(image, rng)
    return np.ascontiguousarray(image), np.ascontiguousarray(label)


def _window(source: Image, top: int, left: int, height: int, width: int, fill: int) -> Image:
    """source[top:top+height, left:left+width], with `fill` where that lies outside."""
    y0, x0 = max(0, top), max(0, left)
    y1, x1 = min(source.shape[0], top + height), min(source.shape[1], left + width)
    inside = source[y0:y1, x0:x1]
    pad = (y0 - top, top + height - y1, x0 - left, left + width - x1)
    if not any(pad):
        return inside
    return cv2.copyMakeBorder(inside, *pad, cv2.BORDER_CONSTANT, value=(fill,) * 3)


def vary_colour(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Gamma, contrast, brightness and white balance through one look-up table per channel, then saturation."""
    ramp = np.arange(256, dtype=np.float32) / 255
    gamma = np.exp(rng.uniform(-0.4, 0.4) * strength)
    contrast = 1 + rng.uniform(-0.4, 0.4) * strength
    shift = rng.uniform(-0.15, 0.15) * strength
    tables = []
    for _ in range(3):
        gain = 1 + rng.uniform(-0.12, 0.12) * strength
        tables.append(((ramp**gamma - 0.5) * contrast + 0.5 + shift) * gain)
    table = np.clip(np.stack(tables, 1) * 255 + 0.5, 0, 255).astype(np.uint8)[:, None, :]
    image = cv2.LUT(image, table.reshape(1, 256, 3))
    saturation = 1 + rng.uniform(-0.6, 0.6) * strength
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    return cv2.addWeighted(image, saturation, grey, 1 - saturation, 0)


def _soften(image: Image, rng: np.random.Generator) -> Image:
    if rng.random() < 0.5:
        return cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.2)))
    noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(2, 8))
    noisy: Image = np.clip(image + noise, 0, 255).astype(np.uint8)
    return noisy
