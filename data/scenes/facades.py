"""Facades of the procedural scenes: walls with windows, doors and shopfronts, made once per process. Read-only."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Sequence, Tuple

import cv2
import numpy as np

from gradseg.data.scenes.canvas import Array
from gradseg.data.scenes.textures import fractal

FACADES = 72  # index % 4 + 2 is the number of floors
PIXELS_PER_METRE = 28.0

# Wall colours, BGR: stock, red and brown brick, stone, render, concrete.
WALLS = (
    (92, 120, 142), (66, 76, 116), (56, 73, 100), (112, 133, 146), (170, 184, 188), (200, 204, 205),
    (104, 107, 108), (80, 88, 96), (134, 140, 143), (70, 84, 92), (122, 146, 170), (52, 58, 74), (84, 104, 122),
)  # fmt: skip
FASCIAS = (
    (38, 36, 130), (96, 50, 26), (36, 80, 34), (28, 28, 32), (40, 140, 180), (110, 92, 40),
    (180, 180, 178), (60, 30, 60),
)  # fmt: skip
GOODS = (
    (150, 160, 165), (60, 62, 110), (110, 90, 70), (70, 110, 120), (40, 40, 44), (90, 96, 98),
    (60, 84, 62), (130, 150, 175),
)  # fmt: skip
_FRAMES = ((222, 225, 227), (222, 225, 227), (60, 60, 60), (40, 58, 76))


def _scaled(colour: Sequence[float], factor: float) -> Tuple[int, int, int]:
    b, g, r = (min(255, int(c * factor)) for c in colour)
    return b, g, r


def _wall(index: int, height: int, width: int, brick: bool) -> Array:
    """Bare wall, uint8 BGR: mortar courses or render with grime and streaks of rain."""
    rnd, rng = random.Random(8000 + index), np.random.RandomState(8000 + index)
    tone = np.ones((height, width), np.float32)
    tone += 0.07 * cv2.resize(fractal(rng, 256, 5, 4), (width, height), interpolation=cv2.INTER_LINEAR)
    streaks = cv2.resize(rng.randn(4, width // 3).astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    tone += 0.03 * streaks
    if brick:
        rows, cols = height // 3 + 1, width // 7 + 1
        bricks = np.repeat(np.repeat(rng.randn(rows, cols).astype(np.float32), 3, 0), 7, 1)
        for row in range(0, rows, 2):
            bricks[row * 3 : row * 3 + 3] = np.roll(bricks[row * 3 : row * 3 + 3], 3, 1)
        tone += 0.10 * bricks[:height, :width]
        tone[::3] *= 1.06
    else:
        tone += 0.03 * rng.randn(height, width).astype(np.float32)
    tone *= np.linspace(1.05, 0.9, height, dtype=np.float32)[:, None]
    wall = np.array(WALLS[rnd.randrange(len(WALLS))], np.float32)
    out: Array = np.clip(tone[:, :, None] * wall, 0, 255).astype(np.uint8)
    return out


def _pane(tile: Array, rnd: random.Random, x: int, y: int, x1: int, y1: int, frame: Tuple[int, int, int]) -> None:
    """One sash window with its glass."""
    dark = rnd.uniform(14, 60)
    rows = np.linspace(rnd.uniform(1.0, 2.6), 0.8, max(y1 - y, 1))[:, None, None]
    tile[y:y1, x:x1] = np.clip(dark * rows * np.array((1.08, 1.0, 0.94)), 0, 255)
    style = rnd.random()
    if style < 0.3:
        cv2.rectangle(tile, (x, y), (x + (x1 - x) // 4, y1), (140, 146, 150), -1)
        cv2.rectangle(tile, (x1 - (x1 - x) // 4, y), (x1, y1), (140, 146, 150), -1)
    elif style < 0.5:
        cv2.rectangle(tile, (x, y), (x1, y + (y1 - y) // 3), (150, 158, 164), -1)
    cv2.line(tile, ((x + x1) // 2, y), ((x + x1) // 2, y1), frame, 1)
    cv2.line(tile, (x, (y + y1) // 2), (x1, (y + y1) // 2), frame, 2)


def _windows(tile: Array, rnd: random.Random, top: int, bottom: int, count: int) -> None:
    """A floor of `count` windows between two rows."""
    height, width = bottom - top, tile.shape[1]
    pitch = width / count
    w, h = pitch * rnd.uniform(0.36, 0.6), height * rnd.uniform(0.46, 0.62)
    frame = rnd.choice(_FRAMES)
    lintel = rnd.choice((0.75, 1.3))
    for i in range(count):
        x, y = int((i + 0.5) * pitch - w / 2), int(top + height * 0.2)
        x1, y1 = int(x + w), int(y + h)
        wall = tile[max(y - 4, 0), max(x - 5, 0)]
        cv2.rectangle(tile, (x - 3, y - 6), (x1 + 3, y - 1), _scaled(wall, lintel), -1)
        cv2.rectangle(tile, (x - 2, y - 2), (x1 + 2, y1 + 2), frame, -1)
        cv2.rectangle(tile, (x - 1, y - 2), (x1 + 1, y + 1), _scaled(frame, 0.5), -1)
        _pane(tile, rnd, x, y, x1, y1, frame)
        cv2.line(tile, (x - 4, y1 + 3), (x1 + 4, y1 + 3), (168, 172, 175), 3)
        cv2.line(tile, (x - 4, y1 + 6), (x1 + 4, y1 + 6), _scaled(wall, 0.65), 2)


def _shopfront(tile: Array, rnd: random.Random, top: int) -> None:
    """A fascia with lettering over glass, from row `top` down."""
    bottom, width = tile.shape[0], tile.shape[1]
    fascia = rnd.choice(FASCIAS)
    tile[top:] = _scaled(fascia, 0.45)
    band = int((bottom - top) * rnd.uniform(0.16, 0.24))
    cv2.rectangle(tile, (0, top), (width, top + band), fascia, -1)
    cv2.line(tile, (0, top), (width, top), (170, 170, 170), 2)
    cv2.line(tile, (0, top + band), (width, top + band), (30, 30, 30), 3)
    ink = (225, 228, 230) if sum(fascia) < 380 else (40, 36, 36)
    x, stop = width * rnd.uniform(0.1, 0.3), width * rnd.uniform(0.6, 0.9)
    while x < stop:  # letters
        step = rnd.randint(6, 11)
        a, b = (int(x), top + band // 4), (int(x) + step - 3, top + band * 3 // 4)
        shape = rnd.random()
        if shape < 0.4:
            cv2.rectangle(tile, a, b, ink, 2)
        elif shape < 0.7:
            cv2.line(tile, a, (a[0], b[1]), ink, 2)
            cv2.line(tile, (a[0], b[1]), (b[0], (a[1] + b[1]) // 2), ink, 2)
        else:
            cv2.ellipse(tile, ((a[0] + b[0]) // 2, (a[1] + b[1]) // 2), (step // 2 - 1, band // 4), 0, 0, 300, ink, 2)
        x += step + rnd.choice((0, 0, 0, 0, 8))
    panes = rnd.randint(2, 4)
    for i in range(panes):
        x0, x1 = int(i * width / panes) + 4, int((i + 1) * width / panes) - 4
        y0, y1 = top + band + 5, bottom - rnd.choice((3, 12, 18))
        _display(tile, rnd, x0, y0, x1, y1)


def _display(tile: Array, rnd: random.Random, x0: int, y0: int, x1: int, y1: int) -> None:
    """A shop window: goods in the dark behind a reflection."""
    shade = rnd.uniform(0.5, 1.5)
    tile[y0:y1, x0:x1] = np.array((34, 33, 32)) * shade
    for _ in range(rnd.randint(5, 14)):
        a, b = rnd.randint(x0, x1 - 4), rnd.randint((y0 + y1) // 2, y1 - 2)
        wide, tall = rnd.randint(3, 16), rnd.randint(3, 24)
        colour = _scaled(rnd.choice(GOODS), rnd.uniform(0.35, 0.9))
        cv2.rectangle(tile, (a, b - tall // 2), (min(a + wide, x1), min(b + tall // 2, y1)), colour, -1)
    if rnd.random() < 0.35:  # poster
        a = rnd.randint(x0, max(x0, x1 - 20))
        cv2.rectangle(tile, (a, y0 + 6), (min(a + 18, x1), min(y0 + 32, y1)), rnd.choice(GOODS), -1)
    slope = np.linspace(0, 1, y1 - y0)[:, None] + np.linspace(0, 1, x1 - x0)[None, :]
    glare = (np.abs(slope - rnd.uniform(0.2, 1.6)) < rnd.uniform(0.1, 0.3)).astype(np.float32) * 22
    region = tile[y0:y1, x0:x1]
    region[:] = np.clip(cv2.GaussianBlur(region, (0, 0), 1.0) + glare[:, :, None], 0, 255)


def _ground_floor(tile: Array, rnd: random.Random, top: int) -> None:
    if rnd.random() < 0.5:
        _shopfront(tile, rnd, top)
        return
    _windows(tile, rnd, top, tile.shape[0], rnd.choice((2, 3)))
    bottom = tile.shape[0]
    x, h = rnd.randint(10, tile.shape[1] - 46), int((bottom - top) * 0.74)
    door = rnd.choice(((56, 36, 26), (36, 36, 90), (44, 70, 36), (32, 32, 32), (190, 190, 190)))
    cv2.rectangle(tile, (x - 5, bottom - h - 5), (x + 35, bottom), (200, 203, 206), -1)
    cv2.rectangle(tile, (x, bottom - h), (x + 30, bottom), door, -1)
    cv2.rectangle(tile, (x + 4, bottom - h + 4), (x + 26, bottom - h + 14), (60, 58, 54), -1)


def _curtain_wall(tile: Array, rnd: random.Random, top: int, floor: int) -> None:
    """A modern floor: a band of glass between mullions."""
    width = tile.shape[1]
    y0, y1 = top + floor // 5, top + floor * 4 // 5
    step = rnd.choice((24, 36, 48))
    for x in range(0, width, step):
        tone = rnd.uniform(0.5, 1.7)
        cv2.rectangle(tile, (x, y0), (x + step, y1), _scaled((62, 56, 50), tone), -1)
        cv2.line(tile, (x, y0), (x, y1), (170, 170, 170), 2)
    cv2.rectangle(tile, (0, y0 - 3), (width, y0), (150, 150, 150), -1)
    cv2.rectangle(tile, (0, y1), (width, y1 + 3), (150, 150, 150), -1)


@lru_cache(maxsize=None)
def _facade(index: int) -> Array:
    rnd = random.Random(9000 + index)
    floors = 2 + index % 4
    floor = int(rnd.uniform(2.9, 3.5) * PIXELS_PER_METRE)
    width, height = int(rnd.uniform(6, 11) * PIXELS_PER_METRE), floors * floor
    tile = _wall(index, height, width, rnd.random() < 0.65)
    modern, count = rnd.random() < 0.2, rnd.choice((2, 3, 3, 4))
    sill = rnd.random() < 0.4
    for level in range(floors - 1):
        state = rnd.getstate()
        if modern:
            _curtain_wall(tile, rnd, level * floor, floor)
        else:
            style = random.Random(f"{index}/windows")  # every floor alike
            _windows(tile, style, level * floor, level * floor + floor, count)
            if sill:
                cv2.line(tile, (0, (level + 1) * floor), (width, (level + 1) * floor), (150, 155, 158), 4)
        rnd.setstate(state)
        rnd.random()
    _ground_floor(tile, rnd, height - floor)
    cv2.rectangle(tile, (0, 0), (width, 5), _scaled(tile[8, 8], 1.25), -1)  # cornice and its shadow
    cv2.rectangle(tile, (0, 6), (width, 9), _scaled(tile[12, 8], 0.6), -1)
    if rnd.random() < 0.7:  # rainwater pipe
        cv2.line(tile, (width - 5, 0), (width - 5, height), (42, 42, 42), 3)
    return tile


@lru_cache(maxsize=None)
def facade(index: int, halve_x: int, halve_y: int, mirrored: bool = False) -> Array:
    """Facade `index`, uint8 BGR, shrunk by 2**halve in each direction against aliasing."""
    tile = _facade(index)
    size = (max(tile.shape[1] >> halve_x, 2), max(tile.shape[0] >> halve_y, 2))
    small = cv2.resize(tile, size, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(small[:, ::-1]) if mirrored else small


@lru_cache(maxsize=None)
def side_wall(index: int) -> Array:
    """The end wall that goes with facade `index`, uint8 BGR (96, 96)."""
    wall = cv2.GaussianBlur(_wall(index, 192, 192, index % 3 > 0), (0, 0), 1.0)
    return cv2.resize(wall, (96, 96), interpolation=cv2.INTER_AREA)


@lru_cache(maxsize=None)
def wall_colour(index: int) -> Tuple[float, float, float]:
    b, g, r = side_wall(index).reshape(-1, 3).mean(0)
    return float(b), float(g), float(r)


def facade_metres(index: int) -> Tuple[float, float]:
    """Width and height of facade `index`."""
    tile = _facade(index)
    return tile.shape[1] / PIXELS_PER_METRE, tile.shape[0] / PIXELS_PER_METRE
