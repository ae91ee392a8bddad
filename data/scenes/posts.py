"""Posts at the kerb of the procedural scenes, with what they carry, and the signs of shops."""

from __future__ import annotations

import random
from typing import Tuple

from gradseg.data.scenes.canvas import POLE, SIGN, Canvas, Colour

_HEIGHTS = {
    "lamp": (6, 9), "light": (3.3, 3.5), "sign": (2.2, 3.2), "bollard": (0.9, 1.1), "board": (2.6, 3.6), "pole": (4, 8),
}  # fmt: skip
_WIDTHS = {"lamp": 0.16, "light": 0.13, "sign": 0.08, "bollard": 0.15, "board": 0.12, "pole": 0.2}
PLATES: Tuple[Colour, ...] = (
    (150, 72, 20), (40, 40, 150), (200, 200, 200), (40, 90, 40), (40, 150, 190), (90, 46, 18), (60, 60, 62),
)  # fmt: skip


class Post:
    """A street light, traffic light, road sign, notice board, bollard or plain pole. Posts are of class pole, what they
    carry of class sign (traffic light heads too, as in CamVid's 11 classes)."""

    def __init__(self, rnd: random.Random, kind: str, side: int) -> None:
        self.kind, self.side = kind, side
        self.height, self.width = rnd.uniform(*_HEIGHTS[kind]), _WIDTHS[kind]
        self.paint: Colour = rnd.choice(((62, 64, 66), (96, 98, 98), (38, 41, 40), (130, 132, 130)))
        self.face = rnd.choice(("disc", "triangle", "square", "disc", "arrow"))
        self.plate = rnd.choice(PLATES)
        self.state = rnd.randrange(3)
        self.size = rnd.uniform(0.85, 1.3)
        self.back = rnd.random() < 0.25  # seen from behind

    def draw(self, canvas: Canvas, x: float, z: float) -> None:
        if not 1.0 < z < 130:
            return
        k = canvas.focal / z
        u, foot = canvas.point(x, 0, z)
        top = canvas.point(x, self.height, z)[1]
        if not -3 * k < u < canvas.width + 3 * k:
            return
        w = max(self.width * k, 1.0) / 2
        canvas.box(u - w, top, u + w, foot, canvas.colour(self.paint, z, 0.8), POLE)
        if w > 1:
            canvas.box(u - w * 0.6, top, u, foot, canvas.colour(self.paint, z, 1.15))
        if self.kind == "lamp":
            reach = -self.side * 1.5 * k
            arm = top - 0.15 * k
            canvas.limb((u, top), (u + reach, arm), 0.09 * k, canvas.colour(self.paint, z), POLE)
            canvas.limb((u + reach, arm), (u + reach * 1.35, arm), 0.16 * k, canvas.colour((140, 142, 140), z), POLE)
            canvas.box(u - 1.5 * w, foot - 1.1 * k, u + 1.5 * w, foot, canvas.colour(self.paint, z, 0.9), POLE)
        elif self.kind == "light":
            self._traffic_light(canvas, u, top, k, z)
        elif self.kind == "bollard":
            canvas.box(u - w, top, u + w, top + 0.15 * k, canvas.colour((200, 202, 202), z))
        elif self.kind in ("sign", "board"):
            self._sign(canvas, u, top, k, z)

    def _traffic_light(self, canvas: Canvas, u: float, top: float, k: float, z: float) -> None:
        canvas.box(u - 0.21 * k, top - 0.05 * k, u + 0.21 * k, top + 1.0 * k, canvas.colour((20, 20, 20), z), SIGN)
        for i, colour in enumerate(((50, 50, 235), (30, 160, 240), (120, 220, 60))):
            lit = 1.0 if i == self.state and not self.back else 0.15
            canvas.disc((u, top + (0.17 + 0.3 * i) * k), 0.1 * k, canvas.colour(colour, z, lit))

    def _sign(self, canvas: Canvas, u: float, top: float, k: float, z: float) -> None:
        r = 0.36 * k * self.size
        rim = canvas.colour((90, 92, 92) if self.back else (40, 40, 165), z)
        inner = canvas.colour((84, 86, 86) if self.back else (205, 206, 206), z)
        if self.kind == "board":
            canvas.box(u - 1.6 * r, top, u + 1.6 * r, top + 2.8 * r, canvas.colour(self.plate, z, 0.9), SIGN)
            for i in range(3):
                v = top + (0.5 + 0.7 * i) * r
                canvas.box(u - 1.2 * r, v, u + (0.3 + 0.3 * i) * r, v + 0.2 * r, canvas.colour((190, 190, 190), z))
        elif self.face in ("disc", "arrow"):
            blue = self.face == "arrow" and not self.back
            canvas.disc((u, top + r), r, canvas.colour((150, 80, 30), z) if blue else rim, SIGN)
            if blue:
                canvas.limb((u - 0.35 * r, top + 0.6 * r), (u + 0.35 * r, top + 1.4 * r), 0.25 * r, inner)
            else:
                canvas.disc((u, top + r), r * 0.72, inner)
        elif self.face == "triangle":
            outer = ((u, top - 0.2 * r), (u + 1.1 * r, top + 1.7 * r), (u - 1.1 * r, top + 1.7 * r))
            canvas.poly(outer, rim, SIGN)
            canvas.poly(((u, top + 0.3 * r), (u + 0.65 * r, top + 1.45 * r), (u - 0.65 * r, top + 1.45 * r)), inner)
        else:
            canvas.box(u - r, top, u + r, top + 2 * r, canvas.colour(self.plate, z), SIGN)
            canvas.box(u - 0.6 * r, top + 0.5 * r, u + 0.6 * r, top + 0.9 * r, inner)


class HangingSign:
    """A shop sign that stands out from a facade, 3 m above the pavement; class sign."""

    def __init__(self, rnd: random.Random) -> None:
        self.plate, self.size, self.y = rnd.choice(PLATES), rnd.uniform(0.7, 1.3), rnd.uniform(2.8, 4.2)

    def draw(self, canvas: Canvas, x: float, z: float, side: int) -> None:
        if not 1.5 < z < 90:
            return
        k = canvas.focal / z * self.size
        u, v = canvas.point(x, self.y, z)
        u -= side * 0.5 * k
        canvas.box(u - 0.42 * k, v - 0.45 * k, u + 0.42 * k, v + 0.45 * k, canvas.colour(self.plate, z, 0.85), SIGN)
        canvas.box(u - 0.3 * k, v - 0.1 * k, u + 0.3 * k, v + 0.08 * k, canvas.colour((200, 200, 200), z))
