"""What there is to see of a procedural street at a time: what stands along it, and what moves on it."""

from __future__ import annotations

import math
import random
from typing import Any, Iterator, List, Sequence, Tuple

from gradseg.data.scenes.cars import Car
from gradseg.data.scenes.people import Person
from gradseg.data.scenes.world import CHUNK, Thing, World, chunk

SIGHT = 130.0


def visible(world: World, cam_s: float, time: float) -> List[Thing]:
    """Everything between a chunk behind the camera and `SIGHT`, farthest first."""
    out: List[Thing] = []
    for index in range(math.floor((cam_s - 15) / CHUNK), math.floor((cam_s + SIGHT) / CHUNK) + 1):
        for side in (-1, 1):
            out += world.kept(chunk, index, side)
    out += _traffic(world, cam_s, time)
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
