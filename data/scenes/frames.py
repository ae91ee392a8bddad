"""Procedural street scenes with exact labels in the 11 CamVid classes: still frames and a moving video.

NumPy and OpenCV only. Everything is a function of the seed and the frame number.
"""

from __future__ import annotations

import math
import random
from typing import Tuple

from gradseg.base.errors import GradsegError
from gradseg.data.base import Dataset, Sample
from gradseg.data.scenes.canvas import Canvas
from gradseg.data.scenes.painting import paint
from gradseg.data.scenes.world import World
from gradseg.models.spec import CAMVID_CLASSES, CAMVID_PALETTE

MIN_SIDE, MAX_SIDE = 32, 4320


def _checked(size_hw: Tuple[int, int]) -> Tuple[int, int]:
    height, width = int(size_hw[0]), int(size_hw[1])
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in (height, width)):
        raise GradsegError(f"scenes of {height}x{width}: use {MIN_SIDE}x{MIN_SIDE} to {MAX_SIDE}x{MAX_SIDE}")
    return height, width


def _camera(size_hw: Tuple[int, int], rnd: random.Random) -> Canvas:
    height, width = size_hw
    focal = min(1.36 * height, 1.36 * width) * rnd.uniform(0.85, 1.2)
    return Canvas(size_hw, focal, height * rnd.uniform(0.455, 0.515), rnd.uniform(1.15, 1.45))


class ScenesData(Dataset):
    """`frames` still scenes, each of its own street, light and camera; sample i depends on (seed, i, size_hw) alone."""

    classes = CAMVID_CLASSES
    palette = CAMVID_PALETTE

    def __init__(self, frames: int, size_hw: Tuple[int, int], seed: int) -> None:
        self.frames, self.size_hw, self.seed = int(frames), _checked(size_hw), int(seed)

    def __len__(self) -> int:
        return self.frames

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.frames:
            raise IndexError(index)
        key = f"still/{self.seed}/{index}"
        rnd = random.Random(key + "/camera")
        world = World(key)
        canvas = _camera(self.size_hw, rnd)
        paint(world, canvas, rnd.uniform(0, 40), rnd.uniform(0, 60))
        return Sample(world.light.expose(canvas.image, index), canvas.label, f"scene-{self.seed}-{index}")


class SceneVideo:
    """A drive along one endless street; `frame(i)` is a function of (seed, size_hw, fps, i), at any i >= 0."""

    classes = CAMVID_CLASSES
    palette = CAMVID_PALETTE

    def __init__(self, size_hw: Tuple[int, int], seed: int, fps: float = 25.0) -> None:
        if fps <= 0:
            raise GradsegError(f"scene video at {fps} frames/s: the rate must be above 0")
        self.size_hw, self.seed, self.fps = _checked(size_hw), int(seed), float(fps)
        self._world = World(f"video/{seed}")

    def frame(self, i: int) -> Sample:
        time = i / self.fps
        canvas = _camera(self.size_hw, random.Random(f"video/{self.seed}/camera"))
        canvas.horizon += self.size_hw[0] * 0.003 * math.sin(3.1 * time)
        paint(self._world, canvas, 8.0 * time + 4.0 * math.sin(0.25 * time), time)
        return Sample(self._world.light.expose(canvas.image, i), canvas.label, f"video-{self.seed}-{i}")
