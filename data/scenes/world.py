"""The street of a procedural scene: what stands where, in chunks along the road, and what moves on it."""

from __future__ import annotations

import math
import random
from typing import Any, Dict, Iterator, List, Tuple

from gradseg.data.scenes.canvas import Bend, Colour
from gradseg.data.scenes.cars import Car
from gradseg.data.scenes.light import Light
from gradseg.data.scenes.people import Person
from gradseg.data.scenes.street import Barrier, Building, HangingSign, Post, Tree


class World:
    """A street without end. Position s in metres along it; lateral positions are metres right of its centre line."""

    def __init__(self, key: str) -> None:
        self.key = key
        rnd = random.Random(key)
        self.light = Light(rnd)
        self.parking = (rnd.random() < 0.33, rnd.random() < 0.38)
        self.lane = lane = rnd.uniform(2.9, 3.5)
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
        return Bend(*self.curve, cam_s)

    def kept(self, make: Any, *key: Any) -> Any:
        """make(self, *key), remembered; make must be a pure function of the world and the key."""
        found = self._kept.get((make, *key))
        if found is None:
            found = make(self, *key)
            if len(self._kept) > 256:
                self._kept = {}
            self._kept[(make, *key)] = found
        return found


Thing = Tuple[float, str, Any]  # street position, kind, what it is; painted from far to near
CHUNK = 40.0  # metres of street that are laid out together
HEDGES = ((32, 60, 52), (38, 74, 68), (28, 48, 42))
FENCES = ((50, 66, 78), (40, 49, 56), (60, 72, 94), (34, 36, 36), (72, 78, 82))
# what stands at the kerb, and the odds of one in a chunk
_POSTS = (
    ("lamp", 0.8), ("light", 0.55), ("sign", 0.9), ("sign", 0.6), ("board", 0.45), ("bollard", 0.25), ("pole", 0.25),
)  # fmt: skip


def chunk(world: World, index: int, side: int) -> List[Thing]:
    """What stands on one side (-1 left, 1 right) between index * CHUNK and the next."""
    rnd = random.Random(f"{world.key}/{index}/{side}")
    which = 0 if side < 0 else 1
    half = world.left if side < 0 else world.right
    walk, s0 = world.pavement[which], index * CHUNK
    back, style = half + walk, world.styles[which]
    if rnd.random() < 0.22:
        style = rnd.choice(("town", "houses", "park"))
    things: List[Thing] = []
    start, stop = s0, s0 + CHUNK
    if rnd.random() < 0.22:
        width = rnd.uniform(5.5, 7.5)
        things.append((s0, "side road", (side, width)))
        start += width + 2.5
    lots = {"town": _town, "houses": _houses, "park": _park}[style]
    things += [(s, kind, (side, what)) for s, kind, what in lots(rnd, side, start, stop, back)]
    things += [(s, kind, (side, what)) for s, kind, what in _kerbside(world, rnd, side, start, stop, half, walk)]
    for _ in range(rnd.choice((0, 1, 1, 2))):
        width, length = rnd.choice(((0.7, 0.7), (1.2, 3.0), (0.5, 9.0), (2.2, 5.0)))
        x = side * rnd.uniform(0.3, half - 2.2) - (width if side < 0 else 0.0)
        place = (x, width, length, rnd.choice((0.72, 0.85, 1.12)))
        things.append((rnd.uniform(s0, stop), "patch", (side, place)))
    return things


def _town(rnd: random.Random, side: int, start: float, stop: float, back: float) -> Iterator[Thing]:
    s = start + (rnd.uniform(0, 4) if rnd.random() < 0.25 else 0.0)
    hidden = 0.0  # height of the nearer neighbour, which hides that much of the end wall
    while s < stop - 4:
        front = back + rnd.choice((0.0, 0.0, 0.0, 0.8))
        house = Building(rnd, side, s, front, hidden=hidden)
        hidden = house.height
        yield s, "building", house
        if rnd.random() < 0.4:
            yield s + rnd.uniform(0.5, 5), "hanging", (HangingSign(rnd), house.front)
        s += house.length
    if rnd.random() < 0.13:
        yield start + 2, "barrier", (Barrier(2, 1.1, (40, 42, 42)), back - 0.2, start + 2, start + 14)


def _houses(rnd: random.Random, side: int, start: float, stop: float, back: float) -> Iterator[Thing]:
    setback, s = rnd.uniform(3.5, 7), start
    while s < stop - 5:
        house = Building(rnd, side, s + rnd.uniform(0, 1.5), back + setback, low=True)
        yield house.s, "building", house
        s = house.s + house.length + rnd.choice((0.0, 0.0, 2.5))
        if rnd.random() < 0.5:
            yield s - 2, "tree", Tree(rnd, s - 2, side * (back + 2.2), rnd.uniform(3.5, 8), (0, 1, 2))
    yield from _boundary(rnd, start, stop, back)


def _park(rnd: random.Random, side: int, start: float, stop: float, back: float) -> Iterator[Thing]:
    for _ in range(rnd.randint(4, 7)):
        s = rnd.uniform(start, stop)
        yield s, "tree", Tree(rnd, s, side * (back + rnd.uniform(2, 13)), rnd.uniform(6, 12), (0, 0, 1, 2))
    yield from _boundary(rnd, start, stop, back)


def _boundary(rnd: random.Random, start: float, stop: float, back: float) -> Iterator[Thing]:
    kind = rnd.choice(("barrier", "barrier", "hedge", "open"))
    if kind == "barrier":
        barrier = Barrier(rnd.randrange(3), rnd.uniform(0.9, 1.6), rnd.choice(FENCES))
        yield start, "barrier", (barrier, back + 0.05, start, stop)
    elif kind == "hedge":
        yield start, "hedge", ((rnd.uniform(0.9, 2.0), rnd.choice(HEDGES)), back + 0.05, start, stop)


def _kerbside(
    world: World, rnd: random.Random, side: int, start: float, stop: float, half: float, walk: float
) -> Iterator[Thing]:
    """Posts, street trees, parked cars, people who stand about, guard rails."""
    for kind, odds in _POSTS:
        if rnd.random() < odds:
            x = side * (half + (rnd.uniform(0.35, 0.6) if kind != "board" else walk * 0.85))
            yield rnd.uniform(start, stop), "post", (Post(rnd, kind, side), x)
    if rnd.random() < 0.3 * world.leafy + 0.08:
        for k in range(rnd.randint(1, 3)):
            s = start + 4 + 11 * k
            yield s, "street tree", Tree(rnd, s, side * (half + 0.9), rnd.uniform(5, 9), (0, 0, 1))
    if world.parking[0 if side < 0 else 1] and rnd.random() < 0.75:
        s = start + rnd.uniform(1, 5)
        while s < stop - 3:
            if rnd.random() < 0.6:
                yaw = (0.0 if side < 0 else math.pi) + rnd.gauss(0, 0.03)
                yield s, "car", (Car(rnd), side * (half - 0.95), yaw, False)
            s += rnd.uniform(5.3, 7)
    for _ in range(rnd.choice((0, 0, 1, 1, 2))):
        s, x = rnd.uniform(start, stop), side * (half + rnd.uniform(0.7, max(walk - 0.4, 0.8)))
        for k in range(rnd.choice((1, 1, 2))):
            yield s, "person", (Person(rnd), x + 0.65 * k, rnd.uniform(0, 6.28), 0.3)
    if rnd.random() < 0.07:
        barrier = Barrier(2, 1.05, rnd.choice(((70, 74, 74), (40, 42, 42))))
        for k in range(5):  # short pieces: what stands before and behind one piece is painted after and before it
            s = start + 4 + 3.6 * k
            yield s + 3.6, "guard rail", (barrier, half + 0.25, s, s + 3.6)
