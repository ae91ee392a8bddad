"""Textures of the procedural scenes, made once per process, read-only: noise, clouds, sensor grain, trees."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import List, Tuple

import cv2
import numpy as np

from gradseg.data.scenes.canvas import Array

TREES = 36
_TREE_HW = (384, 320)


def fractal(rng: np.random.RandomState, size: int, octaves: int, first: int = 4, fall: float = 0.55) -> Array:
    """Tileable fractal noise, float32 (size, size), zero mean, unit standard deviation. first: cells of octave one."""
    out = np.zeros((size, size), np.float32)
    gain = 1.0
    for octave in range(octaves):
        cells = min(first << octave, size)
        scale = size // cells
        grid = np.pad(rng.randn(cells, cells).astype(np.float32), 2, mode="wrap")
        smooth = cv2.resize(grid, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        out += gain * smooth[2 * scale : 2 * scale + size, 2 * scale : 2 * scale + size]
        gain *= fall
    out -= out.mean()
    out /= out.std() + 1e-6
    return out


@lru_cache(maxsize=None)
def asphalt(kind: int) -> Array:
    """Tileable factors of ground brightness, uint8 (512, 512), 128 meaning 1. kind 0 is grain, 1 patches and stains."""
    rng = np.random.RandomState(101 + kind)
    if kind == 0:
        noise = 0.7 * fractal(rng, 512, 3, 128, 1.1) + 0.45 * fractal(rng, 512, 4, 8, 0.8)
        specks = ((rng.rand(512, 512) > 0.992) * rng.randn(512, 512)).astype(np.float32)
        tone = 128 + 15 * noise + 30 * cv2.GaussianBlur(specks, (0, 0), 0.7)
    else:
        tone = 128 + 11 * fractal(rng, 512, 6, 4, 0.7)
    return np.asarray(np.clip(tone, 0, 255).astype(np.uint8))


@lru_cache(maxsize=None)
def clouds(kind: int) -> Array:
    """Tileable cloud cover, float32 (256, 256) in 0..1."""
    noise = fractal(np.random.RandomState(211 + kind), 256, 6, 4, 0.6)
    return np.asarray(1.0 / (1.0 + np.exp(-1.6 * noise)), np.float32)


@lru_cache(maxsize=None)
def grain(height: int, width: int) -> Array:
    """Sensor noise, int16 (height + 64, width + 64, 3), to cut frames from; standard deviation 16, a little soft."""
    rng = np.random.RandomState(307)
    white = rng.standard_normal((height + 64, width + 64, 3)).astype(np.float32)
    soft = cv2.GaussianBlur(white, (0, 0), 0.7)
    mixed = 0.6 * white + soft / soft.std()
    return np.asarray(np.rint(16 * mixed / mixed.std()).astype(np.int16))


def _branch(
    segments: List[Tuple[float, ...]], rnd: random.Random, x: float, y: float, angle: float, length: float, width: float
) -> None:
    """Appends a branch (x0, y0, x1, y1, width) and its children, up to twigs."""
    x1, y1 = x + length * np.sin(angle), y - length * np.cos(angle)
    segments.append((x, y, x1, y1, width))
    if length < 0.022:
        return
    for _ in range(2 if rnd.random() < 0.75 else 3):
        turn = angle * 0.97 + rnd.gauss(0, 0.40)
        _branch(segments, rnd, x1, y1, turn, length * rnd.uniform(0.66, 0.86), width * 0.64)
    if length > 0.06 and rnd.random() < 0.8:
        f = rnd.uniform(0.3, 0.8)
        side = angle + rnd.choice((-0.8, 0.8))
        _branch(segments, rnd, x + f * (x1 - x), y + f * (y1 - y), side, length * 0.6, width * 0.5)


def _wood(rnd: random.Random, bare: bool) -> Array:
    """Coverage of trunk and branches, uint8; the tree fills the texture from its foot at the bottom centre."""
    h, w = _TREE_HW
    segments: List[Tuple[float, ...]] = []
    _branch(segments, rnd, 0.0, 0.0, rnd.gauss(0, 0.04), rnd.uniform(0.17, 0.24), 0.03)
    ends = np.array(segments)
    scale_y = (h - 8) / -min(ends[:, 3].min(), -0.3)
    scale_x = min(scale_y, (w / 2 - 6) / max(np.abs(ends[:, 2]).max(), 0.1))
    mask = np.zeros((h, w), np.uint8)
    for x0, y0, x1, y1, width in segments:
        a = (int((w / 2 + x0 * scale_x) * 16), int((h - 1 + y0 * scale_y) * 16))
        b = (int((w / 2 + x1 * scale_x) * 16), int((h - 1 + y1 * scale_y) * 16))
        wide = width * scale_y
        fresh = np.clip(85 + 70 * wide, 0, 255) if bare else np.clip(30 + 70 * wide, 0, 255)
        cv2.line(mask, a, b, int(fresh), max(1, int(wide + 0.5)), cv2.LINE_AA, 4)
    return mask


@lru_cache(maxsize=None)
def _tree(index: int) -> Tuple[Array, Array]:
    """uint8 BGRA premultiplied (384, 320) and the uint8 mask of its label. index % 3: bare, leafy, evergreen."""
    rnd, rng = random.Random(7000 + index), np.random.RandomState(7000 + index)
    h, w = _TREE_HW
    kind = index % 3
    wood = _wood(rnd, kind == 0).astype(np.float32) / 255
    leaves = np.zeros((h, w), np.float32)
    yy, xx = np.mgrid[0:h, 0:w].astype(np.float32)
    noise = fractal(rng, 512, 7, 4, 0.72)[:h, :w]
    edge = np.minimum(np.minimum(xx, w - xx) / 12, np.minimum(yy, h - yy) / 12).clip(0, 1)
    if kind == 1:
        shape = 1.0 - ((xx - w / 2) / (w * 0.37)) ** 2 - ((yy - h * 0.38) / (h * 0.29)) ** 2
        leaves = np.clip((shape + 0.30 * noise) * 9, 0, 1) * edge
    elif kind == 2:
        shape = 0.9 * ((yy - h * 0.04) / h) - np.abs(xx - w / 2) / (w * 0.46)
        leaves = np.clip((shape * 2 + 0.22 * noise) * 9, 0, 1) * (yy < h * 0.92) * edge
    alpha = np.maximum(wood, leaves)
    sun = 0.95 + 0.42 * noise + 0.5 * (0.45 - yy / h) + 0.30 * rng.randn(h, w).astype(np.float32)
    green = np.array(rnd.choice(((38, 62, 56), (30, 56, 48), (34, 48, 40), (36, 74, 72), (46, 76, 88))), np.float32)
    bark = np.array((50, 55, 62), np.float32) * rnd.uniform(0.5, 1.2) * (0.8 + 0.4 * (xx > w / 2))[:, :, None]
    mix = leaves[:, :, None]
    colour = (bark * (1 - mix) + green * np.clip(sun, 0.15, 2.6)[:, :, None] * mix) * alpha[:, :, None]
    bgra = np.dstack((colour, 255 * alpha))
    dense = cv2.GaussianBlur(alpha, (0, 0), 4.0 if kind == 0 else 1.2)
    label = np.where((dense > (0.13 if kind == 0 else 0.5)) | (alpha > 0.6), 255, 0).astype(np.uint8)
    return np.clip(bgra, 0, 255).astype(np.uint8), label


@lru_cache(maxsize=None)
def tree(index: int) -> List[Tuple[Array, Array]]:
    """Tree `index` as a billboard with its mip levels, see `Canvas.sprite`. The label takes the gaps between twigs for
    tree, as CamVid's annotators did."""
    mips = [_tree(index)]
    while mips[-1][0].shape[0] > 12:
        size = (mips[-1][0].shape[1] // 2, mips[-1][0].shape[0] // 2)
        colour, label = (cv2.resize(m, size, interpolation=cv2.INTER_AREA) for m in mips[-1])
        mips.append((colour, label))
    return mips
