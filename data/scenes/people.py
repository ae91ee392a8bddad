"""Pedestrians and bicyclists of the procedural scenes: jointed figures in three dimensions."""

from __future__ import annotations

import math
import random
from typing import List, Sequence, Tuple

from gradseg.data.scenes.canvas import BICYCLIST, PEDESTRIAN, Canvas

SKINS = ((115, 145, 185), (85, 115, 160), (55, 75, 115), (125, 160, 200))
CLOTHES = (
    (24, 22, 22), (28, 25, 25), (40, 32, 28), (58, 40, 26), (32, 30, 62), (52, 55, 58), (96, 96, 98), (26, 40, 32),
    (36, 48, 66), (20, 20, 23), (70, 66, 60), (150, 152, 155),
)  # fmt: skip
HAIRS = ((18, 18, 20), (26, 38, 52), (60, 88, 115), (100, 100, 100))
_RING = [(math.cos(k * math.pi / 6), math.sin(k * math.pi / 6)) for k in range(12)]
Point = Tuple[float, float, float]  # right, up, ahead
Part = Tuple[Point, Point, float, Sequence[float]]  # ends, width, colour


class Person:
    """A pedestrian, or a bicyclist if `rides`; limbs follow a walking or pedalling phase."""

    def __init__(self, rnd: random.Random, rides: bool = False) -> None:
        self.rides = rides
        self.size = rnd.gauss(1.0, 0.06)
        self.coat, self.legs = rnd.choice(CLOTHES), rnd.choice(CLOTHES[:9])
        self.skin, self.hair = rnd.choice(SKINS), rnd.choice(HAIRS)
        self.steel = rnd.choice(((60, 50, 90), (70, 60, 50), (40, 40, 42), (110, 110, 112)))
        self.bag, self.long_coat = rnd.random() < 0.3, rnd.random() < 0.3
        self.helmet = rnd.random() < 0.4
        self.bulk = rnd.uniform(0.88, 1.18)

    def draw(self, canvas: Canvas, x: float, z: float, yaw: float, phase: float) -> None:
        """Paints with the feet at (x, 0, z); yaw 0 moves away from the camera; phase in radians of a stride."""
        if not 1.2 < z < 125:
            return
        reach = canvas.focal / z
        if not -2 * reach < canvas.centre + x * reach < canvas.width + 2 * reach:
            return
        cos, sin, k = math.cos(yaw), math.sin(yaw), self.size

        def at(right: float, up: float, ahead: float) -> Tuple[float, float]:
            """A point of the figure in pixels."""
            return canvas.point(x + (right * cos + ahead * sin) * k, up * k, z + (ahead * cos - right * sin) * k)

        if self.rides:
            tyre = canvas.colour((20, 20, 21), z)
            for ahead in (0.53, -0.53) if cos > 0 else (-0.53, 0.53):
                ring = [at(0, 0.34 + 0.34 * a, ahead + 0.34 * b) for a, b in _RING]
                for start, stop in zip(ring, ring[1:] + ring[:1]):
                    canvas.limb(start, stop, 0.055 * reach, tyre, BICYCLIST)
        parts, up, ahead = self._rider(phase) if self.rides else self._walker(phase)
        cls = BICYCLIST if self.rides else PEDESTRIAN
        if reach < 16:  # some twenty pixels tall: no hands and shoes to see
            parts = [part for part in parts if part[2] >= (0.11 if reach > 8 else 0.15)]
        parts.sort(key=lambda part: (part[0][0] + part[1][0]) * sin - (part[0][2] + part[1][2]) * cos)
        for p, q, width, colour in parts:
            canvas.limb(at(*p), at(*q), width * k * reach, canvas.colour(colour, z), cls)
        self._head(canvas, *at(0, up, ahead), 0.112 * k * reach, z, cos, sin)

    def _head(self, canvas: Canvas, u: float, v: float, r: float, z: float, cos: float, sin: float) -> None:
        cls, turned = BICYCLIST if self.rides else PEDESTRIAN, u + 0.25 * r * sin
        canvas.limb((u, v + 0.4 * r), (u, v - 0.25 * r), 1.75 * r, canvas.colour(self.hair, z), cls)
        if cos < 0.35:
            canvas.limb((turned, v + 0.45 * r), (turned, v), 1.35 * r, canvas.colour(self.skin, z))
        if self.rides and self.helmet:
            shell = canvas.colour((60, 60, 130) if self.bag else (150, 152, 155), z)
            canvas.disc((u, v - 0.45 * r), 0.95 * r, shell, cls)

    def _walker(self, phase: float) -> Tuple[List[Part], float, float]:
        """Body parts, height of the head and how far ahead it is."""
        swing, bob = 0.30 * math.sin(phase), 0.015 * math.cos(2 * phase)
        hip, neck, k = 0.90 + bob, 1.44 + bob, self.bulk
        lift_l, lift_r = 0.10 * max(0.0, math.cos(phase)), 0.10 * max(0.0, -math.cos(phase))
        dark = tuple(c * 0.8 for c in self.legs)
        sleeve = tuple(c * 0.85 for c in self.coat)
        shoe = (22, 22, 24)
        parts: List[Part] = [
            ((-0.09, hip, 0), (-0.09, 0.48, 0.5 * swing + 0.4 * lift_l), 0.16 * k, self.legs),
            ((-0.09, 0.48, 0.5 * swing + 0.4 * lift_l), (-0.09, 0.08 + lift_l, swing), 0.115 * k, self.legs),
            ((-0.09, 0.05 + lift_l, swing - 0.04), (-0.09, 0.04 + lift_l, swing + 0.14), 0.08, shoe),
            ((0.09, hip, 0), (0.09, 0.48, -0.5 * swing + 0.4 * lift_r), 0.16 * k, dark),
            ((0.09, 0.48, -0.5 * swing + 0.4 * lift_r), (0.09, 0.08 + lift_r, -swing), 0.115 * k, dark),
            ((0.09, 0.05 + lift_r, -swing - 0.04), (0.09, 0.04 + lift_r, -swing + 0.14), 0.08, shoe),
            ((-0.21 * k, neck - 0.10, 0), (-0.25 * k, 1.12, -0.4 * swing), 0.105, sleeve),
            ((-0.25 * k, 1.12, -0.4 * swing), (-0.23 * k, 0.88, -0.8 * swing + 0.05), 0.085, sleeve),
            ((0.21 * k, neck - 0.10, 0), (0.25 * k, 1.12, 0.4 * swing), 0.105, sleeve),
            ((0.25 * k, 1.12, 0.4 * swing), (0.23 * k, 0.88, 0.8 * swing + 0.05), 0.085, sleeve),
            ((-0.10 * k, neck - 0.13, 0), (-0.07 * k, hip + 0.02, 0), 0.25 * k, self.coat),
            ((0.10 * k, neck - 0.13, 0), (0.07 * k, hip + 0.02, 0), 0.25 * k, self.coat),
            ((0, neck - 0.05, 0), (0, neck + 0.1, 0.02), 0.11, self.skin),
        ]
        if self.long_coat:
            parts += [((s * 0.08, hip, 0), (s * 0.13, 0.55, 0), 0.24 * k, self.coat) for s in (-1, 1)]
        if self.bag:
            parts.append(((0.28 * k, 0.72, 0.05), (0.28 * k, 0.86, 0.05), 0.17, (30, 34, 46)))
        return parts, neck + 0.20, 0.02

    def _rider(self, phase: float) -> Tuple[List[Part], float, float]:
        parts: List[Part] = [
            ((0, 0.34, -0.53), (0, 0.88, -0.20), 0.04, self.steel),
            ((0, 0.90, 0.40), (0, 0.34, 0.53), 0.045, self.steel),
            ((0, 0.80, -0.18), (0, 0.78, 0.38), 0.045, self.steel),
            ((0, 0.30, 0), (0, 0.78, 0.38), 0.045, self.steel),
            ((0, 0.30, 0), (0, 0.80, -0.18), 0.045, self.steel),
            ((0, 0.30, 0), (0, 0.34, -0.53), 0.04, self.steel),
            ((-0.27, 1.02, 0.36), (0.27, 1.02, 0.36), 0.045, (28, 28, 28)),
            ((0, 0.92, -0.30), (0, 0.93, -0.06), 0.09, (22, 22, 22)),
        ]
        for side in (-1, 1):
            turn = phase if side < 0 else phase + math.pi
            up, ahead = 0.30 + 0.17 * math.sin(turn), 0.17 * math.cos(turn)
            knee = (side * 0.14, 0.72 + 0.12 * math.sin(turn), 0.26 + 0.06 * math.cos(turn))
            leg = self.legs if side < 0 else tuple(c * 0.8 for c in self.legs)
            parts += [
                ((side * 0.10, 0.98, -0.15), knee, 0.15 * self.bulk, leg),
                (knee, (side * 0.12, up + 0.04, ahead - 0.03), 0.11, leg),
                ((side * 0.12, up, ahead - 0.06), (side * 0.12, up, ahead + 0.12), 0.07, (22, 22, 24)),
                ((side * 0.20, 1.42, 0.12), (side * 0.26, 1.18, 0.22), 0.10, self.coat),
                ((side * 0.26, 1.18, 0.22), (side * 0.25, 1.04, 0.36), 0.085, self.coat),
                ((side * 0.08, 1.02, -0.16), (side * 0.10, 1.40, 0.09), 0.24 * self.bulk, self.coat),
            ]
        parts.append(((0, 1.46, 0.14), (0, 1.56, 0.18), 0.11, self.skin))
        if self.bag:
            parts.append(((0, 1.12, -0.22), (0, 1.30, -0.12), 0.26, (50, 52, 80)))
        return parts, 1.66, 0.2
