"""Paints a procedural street as a camera sees it, from far to near."""

from __future__ import annotations

from typing import Any

from gradseg.data.scenes.canvas import Bend, Canvas
from gradseg.data.scenes.ground import paint_ground, paint_sky, paint_skyline
from gradseg.data.scenes.street import Barrier, hedge
from gradseg.data.scenes.traffic import visible
from gradseg.data.scenes.world import World

BEHIND = ("building", "barrier", "hedge", "tree", "hanging")  # what stands behind the pavement


def paint(world: World, canvas: Canvas, cam_s: float, time: float) -> None:
    """Paints the street seen from s = cam_s at `time` seconds."""
    look, bend = world.light, world.bend(cam_s)
    canvas.haze = look.haze
    canvas.haze_colour = (float(look.sky_low[0]), float(look.sky_low[1]), float(look.sky_low[2]))
    canvas.sun, canvas.ambient, canvas.direct = look.direction, look.ambient, look.direct
    things = visible(world, cam_s, time)
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
