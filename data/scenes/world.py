"""The street of a procedural scene: what stands where, in chunks along the road, and what moves on it."""

from __future__ import annotations

import random
from typing import Any, Dict, Tuple

from gradseg.data.scenes.canvas import Bend, Colour
from gradseg.data.scenes.light import Light


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
