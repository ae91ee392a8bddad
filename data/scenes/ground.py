"""Sky, skyline, road, pavements and shadows of the procedural scenes."""

from __future__ import annotations

import math
import random
from typing import Any, List, Sequence, Tuple

import cv2
import numpy as np

from gradseg.data.scenes.canvas import BUILDING, PAVEMENT, ROAD, SKY, TREE, Array, Bend, Canvas
from gradseg.data.scenes.light import Light
from gradseg.data.scenes.textures import asphalt, clouds
from gradseg.data.scenes.world import World

_DEPTHS = np.array((0.9, 1.6, 2.6, 4, 6, 9, 13, 19, 28, 42, 65, 100, 160, 400), np.float32)
KERB = 0.12  # metres above the road
LINE = (186.0, 190.0, 190.0)


def paint_sky(canvas: Canvas, look: Light, drift: float) -> None:
    """Fills everything down to the horizon; drift moves the clouds, in texture pixels."""
    rows = int(min(max(canvas.horizon + 2, 1), canvas.height))
    shift = int(look.cloud_shift + drift) % 256
    band = clouds(look.cloud_kind)[look.cloud_row : look.cloud_row + 72]
    window = np.take(band, np.arange(shift, shift + 112), axis=1, mode="wrap")[:, :, None]
    fade = (np.linspace(1.0, 0.0, 72, dtype=np.float32)[:, None, None]) ** 0.8
    low, high, white = (np.array(c, np.float32) for c in (look.sky_low, look.sky_high, look.cloud))
    mix = np.minimum(window * look.cloudiness, 1.0)
    small = (low + (high - low) * fade) * (1 - mix) + white * (1.0 - 0.45 * look.cloud_depth * window) * mix
    sky = np.clip(small, 0, 255).astype(np.uint8)
    cv2.resize(sky, (canvas.width, rows), dst=canvas.image[:rows], interpolation=cv2.INTER_LINEAR)
    canvas.label[:] = SKY


def paint_skyline(canvas: Canvas, key: str, heading: float) -> None:
    """Roofs and trees at the end of the street, beyond all parallax; heading shifts them, in pixels."""
    rnd = random.Random(f"{key}/skyline")
    foot = canvas.horizon + 3
    u = -1.2 * canvas.width - heading
    while u < 2.2 * canvas.width - heading:
        w, h = rnd.uniform(0.03, 0.10) * canvas.width, rnd.uniform(0.015, 0.07) * canvas.height
        house, tone = rnd.random() < 0.5, rnd.uniform(0.7, 1.2)
        bumps = [rnd.uniform(0.6, 1.0) for _ in range(9)]
        if -w < u < canvas.width:
            if house:
                roof = ((u, foot), (u, foot - h), (u + 0.5 * w, foot - 1.25 * h), (u + w, foot - h), (u + w, foot))
                canvas.poly(roof, canvas.colour((92, 96, 104), 130, tone), BUILDING)
            else:
                rise = [h * b * math.sin(math.pi * i / 8) ** 0.4 for i, b in enumerate(bumps)]
                crown = [(u + w * (0.15 * i - 0.1), foot - up) for i, up in enumerate(rise)]
                canvas.shape(crown, canvas.colour((54, 66, 64), 130, tone), TREE)
        u += w * 0.75


def strip(canvas: Canvas, left: float, right: float, bend: Bend, up: Tuple[float, float] = (0.0, 0.0)) -> Array:
    """Outline in pixels of a lengthwise strip between two lateral positions (metres right of the camera), the two edges
    at heights `up`."""
    z = _DEPTHS
    offset = bend.offsets(z)
    a = canvas.project(np.stack((left + offset, np.full_like(z, up[0]), z), 1))
    b = canvas.project(np.stack((right + offset, np.full_like(z, up[1]), z), 1))
    return np.concatenate((a, b[::-1]))


def paint_ground(canvas: Canvas, world: World, cam_s: float, bend: Bend, things: Sequence[Any]) -> None:
    """Verges, pavements, kerbs, road, side roads, markings and everything's shadow."""
    ego = world.ego
    left, right = -world.left - ego, world.right - ego
    for side in (-1, 1):
        grass = world.styles[0 if side < 0 else 1] != "town"
        outline = strip(canvas, side * 0.5 - ego, side * 120.0, bend)
        canvas.shape(outline, world.grass if grass else world.slabs, TREE if grass else PAVEMENT)
    for kerb, walk in ((left, -world.pavement[0]), (right, world.pavement[1])):
        inner = kerb + math.copysign(0.14, walk)
        canvas.shape(strip(canvas, inner, kerb + walk, bend, (KERB, KERB)), world.slabs, PAVEMENT)
        canvas.shape(strip(canvas, kerb, inner, bend, (KERB, KERB)), world.kerb, PAVEMENT)
    canvas.shape(strip(canvas, left, right, bend), world.asphalt, ROAD)
    gutter = [c * 0.84 for c in world.asphalt]
    for kerb, inwards in ((left, 0.3), (right, -0.3)):
        canvas.shape(strip(canvas, kerb, kerb + inwards, bend), gutter)
        canvas.shape(strip(canvas, kerb, kerb, bend, (0.0, KERB)), [c * 0.7 for c in world.kerb], PAVEMENT)
    for s, kind, (side, what) in things:
        if kind == "side road":
            _side_road(canvas, world, side, s - cam_s, what, bend)
        elif kind == "patch":
            _patch(canvas, world, s - cam_s, what, bend)
    _markings(canvas, world, cam_s, bend)
    shadow = np.full((canvas.height, canvas.width), 255, np.uint8)
    paint_shadows(canvas, world, cam_s, bend, things, shadow)
    _texture(canvas, cam_s, ego, shadow)


def _flat(canvas: Canvas, x0: float, x1: float, z0: float, z1: float, bend: Bend, up: float = 0.0) -> Array:
    z0 = max(z0, 0.9)
    a, b = bend(z0), bend(max(z1, z0))
    return canvas.project(((x0 + a, up, z0), (x1 + a, up, z0), (x1 + b, up, z1), (x0 + b, up, z1)))


def _side_road(canvas: Canvas, world: World, side: int, z: float, width: float, bend: Bend) -> None:
    """A street that joins from one side, with its give-way line."""
    if z + width < 1:
        return
    edge = (world.right if side > 0 else world.left) * side - world.ego
    canvas.poly(_flat(canvas, edge - side * 0.02, edge + side * 60, z, z + width, bend, 0.02), world.asphalt, ROAD)
    canvas.poly(_flat(canvas, edge, edge + side * 0.18, z + 0.3, z + width - 0.3, bend), canvas.colour(LINE, max(z, 1)))


def _patch(canvas: Canvas, world: World, z: float, what: Tuple[float, float, float, float], bend: Bend) -> None:
    """A repair or manhole in the road: lateral position, width, length, tone."""
    x, width, length, tone = what
    if z + length > 1 and z < 60:
        colour = canvas.colour(world.asphalt, z, tone)
        canvas.poly(_flat(canvas, x - world.ego, x + width - world.ego, z, z + length, bend), colour)


def _markings(canvas: Canvas, world: World, cam_s: float, bend: Bend) -> None:
    ego = world.ego
    left, right = -world.left - ego, world.right - ego
    if world.lines == "solid":
        canvas.shape(strip(canvas, -0.06 - ego, 0.06 - ego, bend), LINE)
    elif world.lines == "dashes":
        pitch, dash = world.dashes
        first = math.floor(cam_s / pitch)
        for k in range(first + int(85 / pitch), first - 1, -1):
            z0, z1 = k * pitch - cam_s, k * pitch + dash - cam_s
            if z1 > 1.2:
                canvas.poly(_flat(canvas, -0.06 - ego, 0.06 - ego, z0, z1, bend), canvas.colour(LINE, max(z0, 1)))
    if world.edges != "none":
        colour = LINE if world.edges == "white" else (70.0, 150.0, 172.0)
        for x in (left + 0.35, right - 0.35):
            for shift in (0.0,) if world.edges == "white" else (-0.09, 0.09):
                canvas.shape(strip(canvas, x + shift - 0.035, x + shift + 0.035, bend), colour)


def paint_shadows(canvas: Canvas, world: World, cam_s: float, bend: Bend, things: Sequence[Any], shadow: Array) -> None:
    """Darkens `shadow` (uint8, frame size, 255 lit) where something keeps the light off the ground."""
    look, ego = world.light, world.ego
    tone = int(255 * look.shadow)
    for s, kind, (side, what) in things:
        z = s - cam_s
        if kind == "car" and 1 < z < 100:
            car, x = what[0], what[1] - ego + bend(z)
            w, h = car.width / 2 + 0.08, car.length / 2 + 0.15
            _shade(canvas, shadow, ((x - w, z - h), (x + w, z - h), (x + w, z + h), (x - w, z + h)), min(tone, 70))
            if look.sunny:
                d = x - look.sun_side * (w + car.height * min(look.sun_slope, 1.3))
                _shade(canvas, shadow, ((x, z - h), (d, z - h + 0.4), (d, z + h - 0.4), (x, z + h)), tone)
        elif not look.sunny:
            continue
        elif kind == "building" and side == look.sun_side:
            z0, z1, reach = max(z, 0.6), z + what.length, -side * what.height * look.sun_slope * 0.6
            if z1 > z0:
                x0, x1 = side * what.front - ego + bend(z0), side * what.front - ego + bend(z1)
                corners = ((x0, z0), (x0 + reach, max(z0 - 2, 0.5)), (x1 + reach, max(z1 - 2, 0.5)), (x1, z1))
                _shade(canvas, shadow, corners, tone)
        elif kind in ("tree", "street tree") and 2 < z < 70:
            _tree_shadow(canvas, shadow, what, what.x - ego + bend(z), z, look, tone)
        elif kind in ("person", "bicycle", "post") and 1.5 < z < 50:
            x, tall = what[1] - ego + bend(z), 1.7 if kind != "post" else what[0].height
            d = x - look.sun_side * tall * look.sun_slope
            _shade(canvas, shadow, ((x - 0.1, z - 0.1), (d, z - 0.12), (d, z + 0.12), (x + 0.1, z + 0.1)), tone)
    top = max(int(canvas.horizon), 0)
    size = max(3, canvas.height // 100 | 1)
    if top < canvas.height - size:
        shadow[top:] = cv2.blur(shadow[top:], (size, size))


def _shade(canvas: Canvas, shadow: Array, ground: Sequence[Tuple[float, float]], tone: int) -> None:
    """Fills a polygon of ground points (x, z)."""
    pixels = canvas.project([(x, 0.0, z) for x, z in ground])
    fixed = np.rint(np.minimum(np.maximum(pixels, -20000), 20000) * 16).astype(np.int32)
    cv2.fillPoly(shadow, [fixed], tone, cv2.LINE_8, 4)


def _tree_shadow(canvas: Canvas, shadow: Array, tree: Any, x: float, z: float, look: Light, tone: int) -> None:
    centre = x - look.sun_side * tree.height * look.sun_slope * 0.5
    rnd = random.Random(tree.index)
    ring: List[Tuple[float, float]] = []
    for k in range(18):
        a, r = k * math.pi / 9, rnd.uniform(0.25, 0.45) * tree.height
        ring.append((centre + 1.3 * r * math.cos(a), max(z + 0.8 * r * math.sin(a), 0.6)))
    _shade(canvas, shadow, ring, int(0.5 * (tone + 255)) if tree.index % 3 == 0 else tone)
    _shade(canvas, shadow, ((x - 0.15, z), (x + 0.15, z), (centre, z + 0.2), (centre, z - 0.2)), tone)


def _texture(canvas: Canvas, cam_s: float, cam_x: float, shadow: Array) -> None:
    """Multiplies the ground by grain, stains and shadow. Textures stay in place as the camera moves."""
    top = max(int(canvas.horizon) + 2, 0)
    if top >= canvas.height:
        return
    v = np.arange(top, canvas.height, dtype=np.float32)
    z = np.minimum(canvas.focal * canvas.eye / (v + 0.5 - canvas.horizon), 200.0)
    x = (np.arange(canvas.width, dtype=np.float32) - canvas.centre)[None, :] * (z / canvas.focal)[:, None] + cam_x
    ahead = np.repeat((z + cam_s % 102.4)[:, None], canvas.width, 1)
    wide = cv2.remap(asphalt(1), x * 9.0, ahead * 5.0, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    near = int(np.searchsorted(-z, -16.0))  # rows beyond 16 m show no grain
    fade = (np.clip(7.0 / z, 0.0, 1.0))[:, None]
    factor = wide.astype(np.float32)
    # 80 texture pixels per metre
    fine = cv2.remap(asphalt(0), x[near:] * 80.0, ahead[near:] * 80.0, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    factor[near:] += (fine.astype(np.float32) - 128.0) * fade[near:]
    factor *= shadow[top:]
    grey, region = cv2.convertScaleAbs(factor, alpha=1 / 255.0), canvas.image[top:]
    cv2.multiply(region, cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), dst=region, scale=1 / 128.0)
