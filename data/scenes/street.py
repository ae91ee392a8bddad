"""Things that stand in the procedural scenes: buildings, trees, posts with signs, fences and hedges."""

from __future__ import annotations

import random
from typing import Sequence, Tuple

import numpy as np

from gradseg.data.scenes.canvas import BUILDING, FENCE, POLE, SIGN, TREE, Array, Bend, Canvas, Colour
from gradseg.data.scenes.facades import FACADES, facade, facade_metres, side_wall, wall_colour
from gradseg.data.scenes.textures import TREES, tree

SLATES = ((56, 56, 60), (50, 60, 84), (64, 66, 70))


class Building:
    """A house along the street from s to s + length, its facade at lateral distance `front`; side -1 left, 1 right."""

    def __init__(
        self, rnd: random.Random, side: int, s: float, front: float, low: bool = False, hidden: float = 0.0
    ) -> None:
        """hidden: how much of the end wall that faces us a neighbour hides, metres from the ground."""
        self.side, self.s, self.front, self.hidden = side, s, front, hidden
        floors = rnd.choice((0, 0, 0, 1)) if low else rnd.choice((0, 1, 1, 1, 2, 2, 3))
        self.index = rnd.randrange(FACADES // 4) * 4 + floors
        self.length, self.height = facade_metres(self.index)
        tint = rnd.uniform(0.65, 1.3)
        self.tint = [tint * rnd.uniform(0.96, 1.04) for _ in range(3)]
        self.depth = rnd.uniform(8, 13)
        self.roof = rnd.uniform(2.2, 3.2) if low or rnd.random() < 0.6 else 0.0
        slate, tone = rnd.choice(SLATES), rnd.uniform(0.8, 1.3)
        self.slate = [c * tone for c in slate]
        self.chimney = rnd.random() < 0.7

    def draw(self, canvas: Canvas, cam_s: float, cam_x: float, bend: Bend, sun: Sequence[float]) -> None:
        """sun: brightness of faces that look left, right and at the camera."""
        full0, z1 = self.s - cam_s, self.s + self.length - cam_s
        z0 = max(full0, 0.5)
        if z1 < 0.8:
            return
        x0, x1 = self.side * self.front - cam_x + bend(z0), self.side * self.front - cam_x + bend(z1)
        edge = self.side * (canvas.point(x1, 0, z1)[0] - canvas.centre)
        if edge > canvas.width / 2 or canvas.focal * self.height / z0 < 2:
            return
        shade = sun[0] if self.side > 0 else sun[1]
        if self.roof:
            self._roof(canvas, x0, x1, z0, z1, 0.65 + 0.45 * shade)
        if full0 > 0.5 and self.hidden < self.height + self.roof:
            self._end_wall(canvas, x0, z0, 0.85 * sun[2])
        self._facade(canvas, x0, x1, z0, z1, full0, shade)

    def _roof(self, canvas: Canvas, x0: float, x1: float, z0: float, z1: float, shade: float) -> None:
        h, top, mid = self.height, self.height + self.roof, 0.5 * self.side * self.depth
        eaves = 0.3 * self.side
        slope = ((x0 - eaves, h - 0.1, z0), (x0 + mid, top, z0), (x1 + mid, top, z1), (x1 - eaves, h - 0.1, z1))
        canvas.poly(canvas.project(slope), canvas.colour(self.slate, z0, shade), BUILDING)
        if self.chimney and z0 > 1:
            x, z, y = x0 + mid, z0 + 0.4, top - 0.7
            stack = canvas.project(((x - 0.6, y, z), (x + 0.6, y, z), (x + 0.6, y + 2.0, z), (x - 0.6, y + 2.0, z)))
            canvas.poly(stack, canvas.colour(wall_colour(self.index), z, 0.6), BUILDING)
            for shift in (-0.3, 0.3):
                u, v = canvas.point(x + shift, y + 2.0, z)
                k = canvas.focal / z
                canvas.box(u - 0.13 * k, v - 0.4 * k, u + 0.13 * k, v, canvas.colour((60, 80, 130), z, 0.7), BUILDING)

    def _end_wall(self, canvas: Canvas, x: float, z: float, shade: float) -> None:
        h, back = self.height, x + self.side * self.depth
        peak = (0.5 * (x + back), h + self.roof, z)
        outline = ((x, 0, z), (x, h, z), peak, (back, h, z), (back, 0, z))
        if self.hidden or canvas.focal * self.depth / z < 30:
            colour = [c * t for c, t in zip(wall_colour(self.index), self.tint)]
            canvas.poly(canvas.project(outline), canvas.colour(colour, z, shade), BUILDING)
            return
        top = h + max(self.roof, 0.01)
        corners = ((x, top, z), (back, top, z), (back, 0, z), (x, 0, z))
        canvas.quad(corners, side_wall(self.index), [t * shade for t in self.tint], z, BUILDING, outline)

    def _facade(self, canvas: Canvas, x0: float, x1: float, z0: float, z1: float, full0: float, shade: float) -> None:
        across = abs(canvas.point(x1, 0, z1)[0] - canvas.point(x0, 0, z0)[0])
        tall = canvas.focal * self.height / z0
        cut = min(max((z0 - full0) / self.length, 0.0), 0.98)
        texture = facade(self.index, 0, 0)
        halve_x = halve_y = 0
        while halve_x < 4 and texture.shape[1] * (1 - cut) / (2 << halve_x) > across * 0.9:
            halve_x += 1
        while halve_y < 4 and texture.shape[0] / (2 << halve_y) > tall * 0.9:
            halve_y += 1
        texture = facade(self.index, halve_x, halve_y, self.side > 0)
        hidden = int(cut * texture.shape[1])  # what is behind the camera
        h = self.height
        if self.side > 0:
            texture = texture[:, : texture.shape[1] - hidden]
            corners = ((x1, h, z1), (x0, h, z0), (x0, 0, z0), (x1, 0, z1))
        else:
            texture = texture[:, hidden:]
            corners = ((x0, h, z0), (x1, h, z1), (x1, 0, z1), (x0, 0, z0))
        canvas.quad(corners, texture, [t * shade for t in self.tint], 0.6 * z0 + 0.4 * z1, BUILDING)


class Tree:
    """A billboard tree of `height` metres at street position s and lateral x. kinds: 0 bare, 1 leafy, 2 evergreen."""

    def __init__(self, rnd: random.Random, s: float, x: float, height: float, kinds: Sequence[int]) -> None:
        self.s, self.x, self.height = s, x, height
        self.index = rnd.randrange(TREES // 3) * 3 + rnd.choice(list(kinds))
        self.spread = rnd.uniform(0.8, 1.1) * rnd.choice((-1, 1))  # negative: mirrored, by drawing right to left
        tone = rnd.uniform(0.75, 1.2)
        self.tint = [tone * rnd.uniform(0.95, 1.05) for _ in range(3)]

    def draw(self, canvas: Canvas, x: float, z: float, light: float) -> None:
        if not 1.5 < z < 180:
            return
        u, v = canvas.point(x, 0, z)
        tall = canvas.focal * self.height / z
        half = 0.5 * tall * abs(self.spread) * 320 / 384
        canvas.sprite(tree(self.index), (u - half, v - tall, u + half, v), [t * light for t in self.tint], z, TREE)


def hedge(canvas: Canvas, a: Tuple[float, float], b: Tuple[float, float], height: float, colour: Colour) -> None:
    """A clipped hedge between two ground points (x, z), b the farther one; class tree."""
    (x0, z0), (x1, z1) = a, b
    gain = [c / w for c, w in zip(colour, wall_colour(0))]
    if x0 < x1:
        corners = ((x0, height, z0), (x1, height, z1), (x1, 0, z1), (x0, 0, z0))
    else:
        corners = ((x1, height, z1), (x0, height, z0), (x0, 0, z0), (x1, 0, z1))
    canvas.quad(corners, side_wall(0), gain, z0, TREE)


class Barrier:
    """A fence along the street: kind 0 boards, 1 wall with coping, 2 railings. The label covers the gaps."""

    def __init__(self, kind: int, height: float, colour: Colour) -> None:
        self.kind, self.height, self.colour = kind, height, colour

    def draw(self, canvas: Canvas, a: Tuple[float, float], b: Tuple[float, float], phase: float) -> None:
        """From ground point a = (x, z) to the farther b. phase: metres of fence before a, to keep bars in place."""
        (x0, z0), (x1, z1) = a, b
        h = self.height
        if self.kind == 2:
            pixels = canvas.project(((x0, 0.02, z0), (x0, h, z0), (x1, h, z1), (x1, 0.02, z1)))
            canvas.mark(pixels, FENCE)  # the gaps show what is behind
            for low, high in ((0.10, 0.15), (0.93, 1.0)):
                rail = canvas.project(((x0, low * h, z0), (x0, high * h, z0), (x1, high * h, z1), (x1, low * h, z1)))
                canvas.poly(rail, canvas.colour(self.colour, z0, 1.1))
        else:
            gain = [c / w for c, w in zip(self.colour, wall_colour(1))]
            corners = ((x0, h, z0), (x1, h, z1), (x1, 0, z1), (x0, 0, z0))
            canvas.quad(corners, side_wall(1), gain, z0, FENCE)
            rim = canvas.project(((x0, h * 0.93, z0), (x0, h, z0), (x1, h, z1), (x1, h * 0.93, z1)))
            canvas.poly(rim, canvas.colour(self.colour, z0, 1.25))
        step, width = ((0.3, 0.025), (2.4, 0.12), (0.15, 0.022))[self.kind]
        self._bars(canvas, a, b, step, width, phase)

    def _bars(
        self, canvas: Canvas, a: Tuple[float, float], b: Tuple[float, float], step: float, width: float, phase: float
    ) -> None:
        """Upright bars every `step` metres, thinned out where they cannot be told apart."""
        (x0, z0), (x1, z1) = a, b
        shade, h = 1.0 if self.kind == 2 else 0.72, self.height
        while canvas.focal * step * 0.3 / z0 < 0.9 and step < 3:
            step *= 2
        z = np.arange(z0 + step - phase % step, z1, step, dtype=np.float32)
        if not len(z):
            return
        x = x0 + (x1 - x0) * (z - z0) / (z1 - z0)
        feet = canvas.project(np.stack((x, np.full_like(z, 0.02), z), 1))
        tops = canvas.project(np.stack((x, np.full_like(z, h), z), 1))
        bars: Array = np.stack((tops, feet), 1)[(feet[:, 0] > -20) & (feet[:, 0] < canvas.width + 20)]
        for part in (bars[: len(bars) // 3], bars[len(bars) // 3 :]):
            if len(part):
                k = float((part[:, 1, 1] - part[:, 0, 1]).mean()) / h  # pixels per metre
                canvas.lines(part, width * k, canvas.colour(self.colour, canvas.focal / max(k, 1.0), shade))


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
