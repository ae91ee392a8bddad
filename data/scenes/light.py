"""Light, weather and camera faults of the procedural scenes."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from gradseg.data.scenes.canvas import Array
from gradseg.data.scenes.textures import grain

# sky at the horizon, sky high up, clouds: BGR
_SKIES = {
    "bright": ((250, 248, 242), (252, 246, 228), (255, 255, 253)),
    "sunny": ((250, 243, 224), (240, 208, 160), (255, 253, 249)),
    "overcast": ((236, 234, 228), (214, 212, 207), (242, 241, 238)),
    "dusk": ((236, 230, 220), (214, 200, 182), (196, 190, 180)),
}
# range of exposure, range of gamma
_TONES = {
    "bright": ((0.95, 1.3), (1.1, 1.4)),
    "sunny": ((0.95, 1.25), (1.1, 1.4)),
    "overcast": ((0.9, 1.2), (1.1, 1.35)),
    "dusk": ((0.72, 0.92), (1.35, 1.75)),
}


class Light:
    """One time of day and one camera, drawn from `rnd`: what colours the scene gets, how the frame is degraded."""

    def __init__(self, rnd: random.Random) -> None:
        weather = rnd.choices(("bright", "sunny", "overcast", "dusk"), (0.4, 0.25, 0.17, 0.18))[0]
        self.sunny = weather == "sunny" or (weather == "bright" and rnd.random() < 0.4)
        self.lamps = weather == "dusk"
        self.sun_side = rnd.choice((-1, 1))  # the side of the street that the sun is on
        contrast = rnd.uniform(0.25, 0.5) if self.sunny else rnd.uniform(0.0, 0.12)
        toward = rnd.uniform(0.55, 0.95)  # faces that look at us: the sun is often ahead
        turn = contrast * self.sun_side
        self.faces = (1.0 - turn, 1.0 + turn, toward)  # faces that look left, right, at the camera
        self.shadow = rnd.uniform(0.42, 0.68) if self.sunny else 1.0
        self.sun_slope = rnd.uniform(0.6, 2.2)  # metres of shadow per metre of height
        self.direction = (0.55 * self.sun_side, 0.75, rnd.uniform(-0.6, 0.5))
        self.ambient, self.direct = (0.55, 0.68) if self.sunny else (0.70, 0.46)
        self.sky_low, self.sky_high, self.cloud = _SKIES[weather]
        self.cloudiness = rnd.uniform(0.2, 1.3)
        self.cloud_depth = rnd.uniform(0.1, 0.6) if weather in ("overcast", "dusk") else rnd.uniform(0, 0.15)
        self.cloud_kind, self.cloud_shift, self.cloud_row = rnd.randrange(4), rnd.randrange(256), rnd.randrange(160)
        self.haze = rnd.uniform(0.08, 0.4)
        self._camera(rnd, weather)

    def _camera(self, rnd: random.Random, weather: str) -> None:
        exposures, gammas = _TONES[weather]
        self.exposure, self.gamma = rnd.uniform(*exposures), rnd.uniform(*gammas)
        warmth, green = rnd.gauss(-0.01, 0.03), rnd.gauss(0.0, 0.012)
        self.cast = (1.0 - warmth, 1.0 + green, 1.0 + warmth)
        self.noise = rnd.choice((0.08, 0.15, 0.25, 0.4)) * rnd.uniform(0.7, 1.3)
        self.blur = rnd.choice((0.0, 0.0, 0.4, 0.5, 0.7, 0.9))  # standard deviation in pixels of a 360-row frame
        self.smear = rnd.choice((0, 0, 0, 0, 3))  # sideways, same unit
        self.jpeg = rnd.choice((0, 0, 0, 80, 60))  # quality; 0 is none
        self.vignette = rnd.choice((0.0, 0.08, 0.2))
        self.bloom = rnd.uniform(0.02, 0.14)

    def expose(self, image: Array, frame: int) -> Array:
        """The frame as the camera delivers it: bloom, blur, tone, vignette, noise, compression."""
        height, width = image.shape[:2]
        image = self._bloom(image)
        if self.smear and height >= 120:
            image = cv2.blur(image, (max(3, round(height / 360 * self.smear) | 1), 1))
        if self.blur and height >= 120:
            sigma = self.blur * height / 360
            size = int(2 * sigma + 1.5) * 2 - 1
            image = cv2.GaussianBlur(image, (max(size, 3), max(size, 3)), sigma)
        image = cv2.LUT(image, self._tone())
        if self.vignette:
            image = cv2.multiply(image, _vignette(height, width, self.vignette), scale=1 / 255.0)
        rnd = random.Random(f"noise/{frame}")
        top, left = rnd.randrange(65), rnd.randrange(65)
        noise = grain(height, width)[top : top + height, left : left + width]
        noisy = cv2.scaleAdd(noise, self.noise, image.astype(np.int16))
        out: Any = cv2.convertScaleAbs(np.maximum(noisy, 0))
        if self.jpeg:
            _, data = cv2.imencode(".jpg", out, (cv2.IMWRITE_JPEG_QUALITY, self.jpeg))
            out = cv2.imdecode(data, cv2.IMREAD_COLOR)
        return np.asarray(out)

    def _bloom(self, image: Array) -> Array:
        """Bright areas spill over dark ones."""
        height, width = image.shape[:2]
        small = cv2.resize(image, (max(width // 16, 2), max(height // 16, 2)), interpolation=cv2.INTER_AREA)
        glow = cv2.resize(cv2.GaussianBlur(small, (0, 0), 2.0), (width, height), interpolation=cv2.INTER_LINEAR)
        return cv2.addWeighted(image, 1.0 - 0.6 * self.bloom, glow, self.bloom, 0)

    def _tone(self) -> Array:
        ramp = np.arange(256, dtype=np.float32) / 255
        table = np.empty((1, 256, 3), np.uint8)
        for i in range(3):
            table[0, :, i] = np.clip(255 * (ramp * self.exposure * self.cast[i]) ** self.gamma, 0, 255)
        return table


@lru_cache(maxsize=8)
def _vignette(height: int, width: int, strength: float) -> Array:
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    mask = 1 - strength * np.clip((x * x + y * y) / 2, 0, 1) ** 1.2
    return np.repeat((255 * mask).astype(np.uint8)[:, :, None], 3, 2)
