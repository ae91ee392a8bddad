"""Vehicles of the procedural scenes: small shaded 3-D models, one mesh per kind, painted face by face."""

from __future__ import annotations

import math
import random
from functools import lru_cache
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from gradseg.data.scenes.canvas import CAR, Canvas, Colour


class Body(NamedTuple):
    """Metres, and positions along the car from -1 (rear) to 1 (front) or up from 0 to 1 (roof)."""

    length: float
    width: float
    height: float
    rear: float  # where the rear window meets the waist
    roof_rear: float
    roof_front: float
    screen: float  # where the windscreen meets the bonnet
    waist: float
    tip: float  # height of the bonnet's front edge
    tumble: float  # roof width / waist width
    panes: Tuple[Tuple[float, float], ...]  # side windows between rear (0) and screen (1)


_CAR = ((0.03, 0.47), (0.50, 0.97))
_LONG = ((0.03, 0.30), (0.33, 0.62), (0.65, 0.97))
_BUS = tuple((k / 6 + 0.01, k / 6 + 0.15) for k in range(6))
BODIES: Dict[str, Body] = {
    "hatchback": Body(3.9, 1.68, 1.45, -0.95, -0.66, 0.06, 0.48, 0.60, 0.48, 0.78, _CAR),
    "saloon": Body(4.5, 1.75, 1.42, -0.66, -0.36, 0.06, 0.42, 0.60, 0.48, 0.77, _CAR),
    "estate": Body(4.5, 1.75, 1.48, -0.97, -0.84, 0.06, 0.44, 0.60, 0.48, 0.78, _LONG),
    "offroad": Body(4.4, 1.82, 1.80, -0.985, -0.93, 0.10, 0.40, 0.58, 0.53, 0.84, _LONG),
    "van": Body(5.2, 1.95, 2.2, -0.99, -0.98, 0.42, 0.70, 0.52, 0.44, 0.92, ((0.72, 0.97),)),
    "bus": Body(10.0, 2.5, 3.1, -0.995, -0.99, 0.965, 0.99, 0.36, 0.34, 0.97, _BUS),
}
PAINTS: Tuple[Colour, ...] = (
    (168, 170, 172), (150, 152, 154), (120, 118, 112), (30, 28, 27), (42, 40, 38), (84, 46, 32), (104, 62, 38),
    (36, 34, 112), (30, 26, 82), (205, 207, 208), (225, 226, 226), (54, 64, 40), (80, 80, 83), (124, 104, 76),
)  # fmt: skip
_RING = [(math.cos(k * math.pi / 7), math.sin(k * math.pi / 7)) for k in range(14)]
_NORMALS: Mapping[Any, Sequence[float]] = {
    "left": (-1.0, 0.0, 0.0),
    "right": (1.0, 0.0, 0.0),
    "front": (0.0, 0.0, 1.0),
    "rear": (0.0, 0.0, -1.0),
}


class Face(NamedTuple):
    """start, stop: its points in the mesh. size: smallest car height in pixels at which it is worth painting."""

    start: int
    stop: int
    material: str
    shade: float
    cls: Optional[int]
    size: float


class Mesh:
    """Convex faces in painting order; a face is hidden if its normal looks away from the camera."""

    def __init__(self) -> None:
        self._points: List[Sequence[float]] = []
        self._normals: List[Sequence[float]] = []
        self.faces: List[Face] = []

    def add(
        self,
        points: Sequence[Sequence[float]],
        material: str,
        normal: Any,
        shade: float = 1.0,
        cls: Optional[int] = CAR,
        size: float = 0.0,
    ) -> None:
        """normal: outwards, a vector or one of left, right, front, rear; zero for what is seen from everywhere."""
        start = len(self._points)
        self._points += list(points)
        self._normals.append(_NORMALS[normal] if isinstance(normal, str) else normal)
        self.faces.append(Face(start, len(self._points), material, shade, cls, size))

    def freeze(self) -> Mesh:
        self.points = np.array(self._points, np.float32)
        self.normals = np.array(self._normals, np.float32)
        self.anchors = self.points[[f.start for f in self.faces]]
        return self


@lru_cache(maxsize=None)
def mesh_of(kind: str) -> Mesh:
    """The mesh of a kind of vehicle, wheels on y = 0, centred, facing +z; metres."""
    body = BODIES[kind]
    mesh = Mesh()
    radius = 0.30 if body.height < 1.7 else 0.36 if body.height < 3 else 0.45
    _inner_wheels(mesh, body, radius)
    _hull(mesh, body)
    _wheels(mesh, body, radius)
    _ends(mesh, body, kind)
    _cabin(mesh, body, kind)
    return mesh.freeze()


def _hull(mesh: Mesh, b: Body) -> None:
    """Everything below the windows."""
    w, h, half = b.width / 2, b.height, b.length / 2
    low = 0.24 / h
    nose = b.tip - 0.5 * (b.waist - b.tip)
    outline = (
        (-0.95, low, 0.92), (-1.0, 0.22, 0.96), (-1.0, 0.36, 0.96), (-0.97, 0.42, 0.95), (-0.96, b.waist, 0.93),
        (b.screen, b.waist, 0.97), (0.5 * (b.screen + 0.93), 0.4 * b.waist + 0.6 * b.tip + 0.02, 0.95),
        (0.93, b.tip, 0.90), (0.985, nose, 0.90), (1.0, 0.24, 0.93), (0.97, low, 0.90),
    )  # fmt: skip
    rows = [(f, y * h, z * half) for z, y, f in outline]
    for (f0, y0, z0), (f1, y1, z1) in zip(rows, rows[1:]):  # rear, deck, bonnet, nose
        corners = ((-f0 * w, y0, z0), (f0 * w, y0, z0), (f1 * w, y1, z1), (-f1 * w, y1, z1))
        mesh.add(corners, "paint", _up(y1 - y0, z1 - z0))
    for name, side in (("left", -1), ("right", 1)):
        mesh.add([(side * w * (0.97 if 0 < i < 10 else 0.94), y, z) for i, (_, y, z) in enumerate(rows)], "paint", name)
        sill = ((low, -0.95), (0.24, -0.99), (0.24, 0.99), (low, 0.96))
        mesh.add([(side * w, y * h, z * half) for y, z in sill], "paint", name, 0.72, None, 14)
        for z in (-0.32 * half, 0.28 * half) if h < 2 else ():  # door gaps
            gap = ((side * w, 0.2 * h, z), (side * w, b.waist * h, z), (side * w, b.waist * h, z + 0.03))
            mesh.add(gap, "paint", name, 0.6, None, 40)


def _up(dy: float, dz: float) -> Tuple[float, float, float]:
    """Outward normal of a strip of the outline that goes from rear to front over the top."""
    length = math.hypot(dy, dz) + 1e-9
    return 0.0, dz / length, -dy / length


def _inner_wheels(mesh: Mesh, b: Body, radius: float) -> None:
    """Wheels seen from within the track, below the sill."""
    w, half = b.width / 2, b.length / 2
    for side, away in ((-1, "right"), (1, "left")):
        inner = side * (w - 0.2)
        for z in (-0.60 * half, 0.63 * half):
            mesh.add([(inner, radius + radius * s, z + radius * c) for c, s in _RING], "tyre", away, 1.0, CAR, 6)
            for end in (-0.8, 0.8):
                corners = ((inner, 0), (side * w * 0.98, 0), (side * w * 0.98, radius), (inner, radius))
                mesh.add([(x, y, z + end * radius) for x, y in corners], "tyre", away, 0.8)


def _wheels(mesh: Mesh, b: Body, radius: float) -> None:
    w, half = b.width / 2, b.length / 2
    for name, side in (("left", -1), ("right", 1)):
        for z in (-0.60 * half, 0.63 * half):
            for scale, material, cls, size in _WHEEL:
                r, floor = radius * scale, 0.0 if scale <= 1 else 0.2
                ring = [(side * w * 0.985, max(radius + r * s, floor), z + r * c) for c, s in _RING]
                mesh.add(ring, material, name, 1.0, cls, size)


# arch, tyre, hub and axle: share of the radius, material, class, smallest car worth it
_WHEEL = ((1.22, "dark", None, 14), (1.0, "tyre", CAR, 0), (0.62, "hub", None, 8), (0.2, "dark", None, 30))


def _ends(mesh: Mesh, b: Body, kind: str) -> None:
    """Lamps, plates, bumpers and grille."""
    w, h, half = b.width / 2, b.height, b.length / 2
    tall = kind in ("van", "bus")
    lamp = (0.26 if tall else 0.36) * h

    def patch(name: str, x: float, y: float, dx: float, dy: float, material: str, size: float = 10) -> None:
        z = half * (1.0 if name == "front" else -1.0)
        corners = ((x - dx, y - dy, z), (x + dx, y - dy, z), (x + dx, y + dy, z), (x - dx, y + dy, z))
        mesh.add(corners, material, name, 1.0, None, size)

    for name in ("front", "rear"):
        patch(name, 0, 0.21 * h if not tall else 0.45, w * 0.9, 0.06, "trim", 12)
        for side in (-1, 1):
            if name == "front":
                patch(name, side * w * 0.68, lamp + 0.03, w * 0.20, 0.075, "head")
                patch(name, side * w * 0.80, lamp, w * 0.06, 0.06, "amber", 30)
            else:
                patch(name, side * w * 0.80, lamp + (0.12 if not tall else 0.1), w * 0.12, 0.10, "tail", 5)
        patch(name, 0, lamp - (0.14 if name == "front" else -0.1), 0.26, 0.06, f"plate {name}", 8)
    patch("front", 0, lamp + 0.03, w * 0.42, 0.06, "dark", 12)
    patch("rear", 0, 0.3 * h, w * 0.9, 0.015, "dark", 30)


def _cabin(mesh: Mesh, b: Body, kind: str) -> None:
    w, h, half = b.width / 2, b.height, b.length / 2
    base, top, wy = 0.93 * w, w * b.tumble * 0.97, b.waist * h
    rear, screen = (b.rear * half, wy), (b.screen * half, wy)
    up_r, up_f = (b.roof_rear * half, 0.97 * h), (b.roof_front * half, 0.985 * h)
    crown = 0.5 * (up_r[0] + up_f[0])
    for side in (-1, 1):
        lean = np.array((side * (up_f[1] - wy), base - top, 0.0)) / math.hypot(up_f[1] - wy, base - top)

        def on_side(a: float, c: float, side: int = side) -> Tuple[float, float, float]:
            """Along from rear (0) to screen (1), up from waist (0) to roof (1)."""
            z = (rear[0] + (screen[0] - rear[0]) * a) * (1 - c) + (up_r[0] + (up_f[0] - up_r[0]) * a) * c
            return side * (base + (top - base) * c), wy + (0.98 * h - wy) * c, z

        mesh.add([on_side(0, 0), on_side(0, 1), on_side(1, 1), on_side(1, 0)], "paint", tuple(lean), 0.92)
        for a, c in b.panes:
            pane = [on_side(a, 0.06), on_side(a + 0.02, 0.86), on_side(c - 0.01, 0.86), on_side(c, 0.06)]
            mesh.add(pane, "glass", tuple(lean), 1.0, None, 5)
            glint = [on_side(a + 0.01, 0.55), on_side(a + 0.02, 0.86), on_side(c - 0.01, 0.86), on_side(c, 0.70)]
            mesh.add(glint, "glint", tuple(lean), 0.8, None, 20)
    for name, low, high in (("rear", rear, up_r), ("front", screen, up_f)):
        normal = _up(high[1] - low[1], high[0] - low[0]) if name == "rear" else _up(low[1] - high[1], low[0] - high[0])
        corners = ((-base, low[1], low[0]), (base, low[1], low[0]), (top, high[1], high[0]), (-top, high[1], high[0]))
        mesh.add(corners, "paint", normal, 0.9)
        if kind == "van" and name == "rear":
            continue
        for a, c, material, size in ((0.08, 0.90, "glass", 0), (0.45, 0.90, "glint", 8)):
            glass = []
            for f, s in ((a, -1), (a, 1), (c, 1), (c, -1)):
                x = (base + (top - base) * f) * 0.90
                glass.append((s * x, low[1] + (high[1] - low[1]) * f, low[0] + (high[0] - low[0]) * f))
            mesh.add(glass, material, normal, 1.0 if name == "front" else 0.75, None, size)
    for (z0, y0), (z1, y1) in ((up_r, (crown, h)), ((crown, h), up_f)):
        mesh.add(((-top, y0, z0), (top, y0, z0), (top, y1, z1), (-top, y1, z1)), "paint", _up(y1 - y0, z1 - z0), 1.1)
    if kind != "bus":
        for side in (-1, 1):
            z = screen[0] - 0.35
            mirror = [(side * (w * 0.95 + a), wy + c, z) for a, c in ((0, 0.02), (0.16, 0.03), (0.16, 0.15), (0, 0.13))]
            mesh.add(mirror, "paint", (0.0, 0.0, 0.0), 0.7, CAR, 24)


class Car:
    """One parked or driving vehicle."""

    def __init__(self, rnd: random.Random, bus: bool = False) -> None:
        kinds = ("hatchback", "hatchback", "saloon", "estate", "offroad", "van") + (("bus",) if bus else ())
        self.kind = rnd.choice(kinds)
        body = BODIES[self.kind]
        self.stretch = rnd.uniform(0.95, 1.06)
        self.length, self.width, self.height = body.length * self.stretch, body.width, body.height
        self.lamps_on = rnd.random() < 0.15
        paint = rnd.choice(PAINTS)
        bumper: Colour = rnd.choice(((paint[0] * 0.75, paint[1] * 0.75, paint[2] * 0.75), (44.0, 44.0, 45.0)))
        self.colours: Dict[str, Colour] = {
            "paint": paint, "glass": (40.0, 37.0, 35.0), "glint": (112.0, 108.0, 100.0), "tyre": (24.0, 24.0, 25.0),
            "dark": (20.0, 20.0, 20.0), "hub": rnd.choice(((118.0, 118.0, 120.0), (70.0, 70.0, 72.0))),
            "trim": bumper, "head": (205.0, 210.0, 212.0),
            "tail": (32.0, 28.0, 118.0), "amber": (40.0, 120.0, 210.0), "plate front": (200.0, 205.0, 205.0),
            "plate rear": (60.0, 185.0, 205.0),
        }  # fmt: skip

    def draw(self, canvas: Canvas, x: float, z: float, yaw: float, lights: bool = False) -> None:
        """Paints the car with its centre at (x, 0, z), camera coordinates; yaw 0 drives away, pi towards the camera."""
        if z < -self.length or z > 180:
            return
        cos, sin = math.cos(yaw), math.sin(yaw)
        turn = np.array(((cos, 0, -sin), (0, 1, 0), (sin, 0, cos)), np.float32)
        mesh = mesh_of(self.kind)
        offset = np.array((x, 0, z), np.float32)
        stretch = np.array((1, 1, self.stretch), np.float32)
        pixels = canvas.project((mesh.points * stretch) @ turn + offset)
        if pixels[:, 0].max() < 0 or pixels[:, 0].min() > canvas.width:
            return
        eye = (np.array((-x, canvas.eye, -z), np.float32) @ turn.T) / stretch
        facing = ((eye - mesh.anchors) * mesh.normals).sum(1)
        shade = canvas.shading(mesh.normals @ turn)
        size = canvas.focal * self.height / max(z, 1.0)
        lit = {"head": (250.0, 252.0, 255.0), "tail": (60.0, 60.0, 240.0)} if lights or self.lamps_on else {}
        for face, turned, bright in zip(mesh.faces, facing.tolist(), shade.tolist()):
            if turned < 0 or size < face.size:
                continue
            colour = lit.get(face.material) or self.colours[face.material]
            tone = 1.0 if face.material in lit else bright * face.shade
            canvas.poly(pixels[face.start : face.stop], canvas.colour(colour, z, tone), face.cls)
