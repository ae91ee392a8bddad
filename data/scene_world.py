"""The street of a procedural scene: what stands where, in chunks along the road, and what moves on it."""

from __future__ import annotations

import math
import random
from typing import Any, Dict, Iterator, List, Sequence, Tuple

from gradseg.data.scene_canvas import Bend, Canvas, Colour
from gradseg.data.scene_cars import Car
from gradseg.data.scene_ground import paint_ground, paint_sky, paint_skyline
from gradseg.data.scene_layout import CHUNK, Thing, chunk
from gradseg.data.scene_light import Light
from gradseg.data.scene_people import Person
from gradseg.data.scene_street import Barrier, hedge

SIGHT = 130.0
BEHIND = ("building", "barrier", "hedge", "tree", "hanging")  # what stands behind the pavement


class World:
    """A street without end. Position s in metres along it; lateral positions are metres right of its centre line."""

    def __init__(self, key: str) -> None:
        self.key = key
        rnd = random.Random(key)
        self.light = Light(rnd)
        self.parking = (rnd.random() < 0.33, rnd.random() < 0.38)
        lane = rnd.uniform(2.9, 3.5)
        self.lane = lane
        self.left = lane + (2.0 if self.parking[0] else 0.25)
        self.right = lane + (2.0 if self.parking[1] else 0.25)
        self.ego = -lane / 2 + rnd.uniform(-0.2, 0.4)  # we keep left
        self.pavement = (rnd.uniform(1.6, 3.8), rnd.uniform(1.6, 3.8))
        self.styles = tuple(rnd.choices(("town", "houses", "park"), (0.62, 0.18, 0.20))[0] for _ in range(2))
        self.curve = (rnd.choice((0.0, 0.0, 1.0)) * rnd.uniform(2, 7), rnd.uniform(160, 300), rnd.uniform(0, 6.28))
        self.kerb: Colour = rnd.choice(((118, 121, 123), (94, 96, 98), (134, 138, 140)))
        grey, slab = rnd.uniform(78, 112), rnd.uniform(74, 122)
        self.asphalt: Colour = (grey * 1.03, grey, grey * 0.97)
        self.slabs: Colour = (slab * 0.97, slab, slab * rnd.uniform(0.99, 1.05))
        self.grass: Colour = rnd.choice(((46, 92, 84), (44, 80, 76), (52, 100, 88)))
        self.leafy, self.traffic = rnd.random(), rnd.uniform(0.4, 1.0)
        self.lines = rnd.choice(("dashes", "dashes", "dashes", "solid", "none"))
        self.dashes = rnd.choice(((6.0, 3.6), (6.0, 2.0), (9.0, 6.0)))
        self.edges = rnd.choice(("white", "yellow", "none"))
        self._kept: Dict[Tuple[Any, ...], Any] = {}

    def bend(self, cam_s: float) -> Bend:
        return Bend(self.curve[0], self.curve[1], self.curve[2], cam_s)

    def kept(self, make: Any, *key: Any) -> Any:
        """make(self, *key), remembered; make must be a pure function of the world and the key."""
        found = self._kept.get((make, *key))
        if found is None:
            found = make(self, *key)
            if len(self._kept) > 256:
                self._kept = {}
            self._kept[(make, *key)] = found
        return found

    def visible(self, cam_s: float, time: float) -> List[Thing]:
        """Everything between a chunk behind the camera and `SIGHT`, farthest first."""
        out: List[Thing] = []
        for index in range(math.floor((cam_s - 15) / CHUNK), math.floor((cam_s + SIGHT) / CHUNK) + 1):
            for side in (-1, 1):
                out += self.kept(chunk, index, side)
        out += _traffic(self, cam_s, time)
        out.sort(key=lambda thing: -thing[0])
        return out


def _stream(
    world: World, name: str, gap: float, speed: float, cam_s: float, time: float
) -> Iterator[Tuple[float, int]]:
    """Positions s and numbers of a stream with one member every `gap` metres that moves at `speed` m/s along s."""
    drift = speed * time
    for k in range(math.floor((cam_s - drift - 5) / gap), math.floor((cam_s - drift + SIGHT) / gap) + 1):
        jitter = random.Random(f"{world.key}/{name}/{k}").uniform(0.1, 0.75)
        yield (k + jitter) * gap + drift, k


def _oncoming(world: World, k: int) -> Any:
    rnd = random.Random(f"{world.key}/oncoming car/{k}")
    return Car(rnd, bus=True) if rnd.random() < world.traffic * 0.6 else False


def _ahead(world: World) -> Sequence[Tuple[Car, float, float]]:
    """Cars before us in our lane: car, distance, lateral position."""
    rnd = random.Random(f"{world.key}/ahead")
    out, distance = [], rnd.uniform(9, 42)
    for _ in range(3):
        car = Car(rnd)
        if rnd.random() < world.traffic * 0.6:
            out.append((car, distance, world.ego + rnd.uniform(-0.3, 0.3)))
        distance += rnd.uniform(12, 30)
    return tuple(out)


def _group(world: World, name: str, k: int) -> List[Tuple[Person, float, float]]:
    """Walkers side by side: person, 0..1 across the pavement, phase."""
    rnd = random.Random(f"{world.key}/{name} group/{k}")
    if rnd.random() < 0.25:
        return []
    across = rnd.random()
    return [(Person(rnd), across + 0.3 * i, rnd.uniform(0, 6.28)) for i in range(rnd.choice((1, 1, 1, 2)))]


def _cyclist(world: World, name: str, k: int) -> Any:
    rnd = random.Random(f"{world.key}/{name} rider/{k}")
    return (Person(rnd, rides=True), rnd.uniform(0, 0.5), rnd.gauss(0, 0.12)) if rnd.random() < 0.42 else False


def _crosser(world: World, k: int) -> Any:
    rnd = random.Random(f"{world.key}/crossing/{k}")
    return (Person(rnd), rnd.choice((-1, 1)), rnd.uniform(14, 24)) if rnd.random() < 0.4 else False


def _traffic(world: World, cam_s: float, time: float) -> Iterator[Thing]:
    """What moves. Every position is a function of time (and, for who crosses and who drives ahead, of ours)."""
    for s, k in _stream(world, "oncoming", 26.0, -9.0, cam_s, time):
        car = world.kept(_oncoming, k)
        if car:
            yield s, "car", (1, (car, 0.5 * world.lane, math.pi, world.light.lamps))
    for i, (car, distance, x) in enumerate(world.kept(_ahead)):
        s = cam_s + distance + 2.5 * math.sin(0.3 * time + 2 * i) + 0.5 * car.length
        yield s, "car", (-1, (car, x, 0.0, world.light.lamps))
    for name, side, speed in (("a", -1, 1.35), ("b", -1, -1.2), ("c", 1, 1.25), ("d", 1, -1.4)):
        half, walk = (world.left, world.pavement[0]) if side < 0 else (world.right, world.pavement[1])
        for s, k in _stream(world, name, 34.0, speed, cam_s, time):
            for person, across, phase in world.kept(_group, name, k):
                x = side * (half + 0.6 + across * max(walk - 1.2, 0.2))
                yield s, "person", (side, (person, x, phase + 2 * math.pi * time * 0.95, 0.0 if speed > 0 else math.pi))
    for name, side, speed in (("e", -1, 4.5), ("f", 1, -5.0)):
        parked = 2.0 if world.parking[0 if side < 0 else 1] else 0.0
        for s, k in _stream(world, name, 55.0, speed, cam_s, time):
            rider = world.kept(_cyclist, name, k)
            if rider:
                person, shift, turn = rider
                x = side * ((world.left if side < 0 else world.right) - parked - 0.35 - shift)
                yield s, "bicycle", (side, (person, x, 5.5 * time + k, turn + (0.0 if speed > 0 else math.pi)))
    for s, k in _stream(world, "cross", 70.0, 0.0, cam_s, time):
        crosser = world.kept(_crosser, k)
        if crosser:
            person, way, near = crosser
            done = min(max((near + 42 - (s - cam_s)) / 42, 0.0), 1.0)  # reaches the other side well before we pass
            path = -world.left - 0.8 + (world.left + world.right + 1.6) * (done if way > 0 else 1 - done)
            walking = 0 < done < 1
            yield s, "person", (way, (person, path, 9.0 * done * 2.2 if walking else 0.3, way * math.pi / 2))


def paint(world: World, canvas: Canvas, cam_s: float, time: float) -> None:
    """Paints the street seen from s = cam_s at `time` seconds."""
    look, bend = world.light, world.bend(cam_s)
    canvas.haze = look.haze
    canvas.haze_colour = (float(look.sky_low[0]), float(look.sky_low[1]), float(look.sky_low[2]))
    canvas.sun, canvas.ambient, canvas.direct = look.direction, look.ambient, look.direct
    things = world.visible(cam_s, time)
    paint_sky(canvas, look, time * 0.3)
    paint_skyline(canvas, world.key, canvas.focal * bend.slope)
    paint_ground(canvas, world, cam_s, bend, things)
    for behind in (True, False):
        for s, kind, (side, what) in things:
            if (kind in BEHIND) == behind:
                _place(world, canvas, cam_s, bend, s, kind, side, what)


def _place(world: World, canvas: Canvas, cam_s: float, bend: Bend, s: float, kind: str, side: int, what: Any) -> None:
    z, ego, look = s - cam_s, world.ego, world.light
    if kind == "building":
        what.draw(canvas, cam_s, ego, bend, look.faces)
    elif kind in ("tree", "street tree"):
        what.draw(canvas, what.x - ego + bend(z), z, 0.7 + 0.3 * look.faces[2])
    elif kind in ("barrier", "guard rail", "hedge"):
        _place_barrier(world, canvas, cam_s, bend, side, what)
    elif kind == "post":
        what[0].draw(canvas, what[1] - ego + bend(z), z)
    elif kind == "hanging":
        what[0].draw(canvas, side * what[1] - ego + bend(z), z, side)
    elif kind == "car":
        car, x, yaw, lights = what
        car.draw(canvas, x - ego + bend(z), z, yaw, lights)
    elif kind in ("person", "bicycle"):
        person, x, phase, yaw = what
        person.draw(canvas, x - ego + bend(z), z, yaw, phase)


def _place_barrier(world: World, canvas: Canvas, cam_s: float, bend: Bend, side: int, what: Any) -> None:
    """A barrier or hedge, in pieces short enough to follow the street."""
    barrier, x, s0, s1 = what
    pieces = max(1, int((s1 - s0) / 10))
    step = (s1 - s0) / pieces
    for k in range(pieces - 1, -1, -1):
        z0, z1 = s0 + k * step - cam_s, s0 + (k + 1) * step - cam_s
        near = max(z0, 0.6)
        if z1 <= near:
            continue
        a, b = (side * x - world.ego + bend(near), near), (side * x - world.ego + bend(z1), z1)
        if isinstance(barrier, Barrier):
            barrier.draw(canvas, a, b, near + cam_s - s0)
        else:
            hedge(canvas, a, b, barrier[0], barrier[1])
