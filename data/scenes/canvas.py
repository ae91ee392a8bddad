"""Drawing surface of the procedural scenes: an image and its label, painted together from far to near."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Optional, Sequence, Tuple

import cv2
import numpy as np

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]
else:
    Array = np.ndarray

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)  # as CAMVID_CLASSES
Colour = Tuple[float, float, float]  # BGR, 0..255
Mips = Sequence[Tuple[Array, Array]]
NEAR = 0.4  # metres; whatever is closer to the camera is projected as if it were this far
_FIX = 16.0  # OpenCV's fixed-point coordinates: 4 fractional bits
_FLAGS = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP


class Bend:
    """How a street of shape x(s) = amplitude * sin(2 pi s / length + phase) runs as seen from s = cam_s: a call gives
    its sideways offset in metres at a distance ahead, relative to its tangent here."""

    def __init__(self, amplitude: float, length: float, phase: float, cam_s: float) -> None:
        self._amplitude, self._k = amplitude, 2 * math.pi / length
        self._angle = self._k * cam_s + phase
        self._here = amplitude * math.sin(self._angle)
        self.slope = amplitude * self._k * math.cos(self._angle)

    def __call__(self, z: float) -> float:
        if not self._amplitude:
            return 0.0
        return self._amplitude * math.sin(self._angle + self._k * z) - self._here - self.slope * z

    def offsets(self, z: Array) -> Array:
        """The same for an array of distances."""
        out: Array = self._amplitude * np.sin(self._angle + self._k * z) - self._here - self.slope * z
        return out


class Canvas:
    """A pinhole camera with an image (uint8 BGR, H x W x 3) and a label (uint8, H x W) behind it.

    Camera coordinates are metres: x right, y up from the road, z forward. The camera stands at height `eye`; pitch is a
    shift of `horizon`, in pixels from the top. haze: share of `haze_colour` in what is seen 100 m away, 0..1.
    sun: direction of the light, ambient and directed strength, for `shading`.
    """

    def __init__(self, size_hw: Tuple[int, int], focal: float, horizon: float, eye: float) -> None:
        self.height, self.width = size_hw
        self.focal, self.horizon, self.eye = focal, horizon, eye
        self.centre = self.width / 2.0
        self.image = np.zeros((self.height, self.width, 3), np.uint8)
        self.label = np.zeros((self.height, self.width), np.uint8)
        self._foot, self._scale = np.array((0.0, eye), np.float32), np.array((focal, -focal), np.float32)
        self._origin = np.array((self.centre, horizon), np.float32)
        self.haze, self.haze_colour = 0.2, (225.0, 222.0, 215.0)
        self.sun: Tuple[float, float, float] = (0.0, 1.0, 0.0)
        self.ambient, self.direct = 0.75, 0.35

    def project(self, points: Any) -> Array:
        """(N, 3) metres → (N, 2) float32 pixels; clamping depth to `NEAR` keeps lines along z straight."""
        p = np.asarray(points, np.float32)
        out: Array = (p[:, :2] - self._foot) * (self._scale / np.maximum(p[:, 2:], NEAR)) + self._origin
        return out

    def point(self, x: float, y: float, z: float) -> Tuple[float, float]:
        """`project` for one point."""
        scale = self.focal / max(z, NEAR)
        return self.centre + x * scale, self.horizon + (self.eye - y) * scale

    def colour(self, colour: Sequence[float], z: float, shade: float = 1.0) -> Colour:
        """`colour` times `shade`, seen through z metres of haze."""
        h = self.haze * min(z * 0.01, 1.0)
        a = (1.0 - h) * shade
        hb, hg, hr = self.haze_colour
        return colour[0] * a + hb * h, colour[1] * a + hg * h, colour[2] * a + hr * h

    def shading(self, normals: Array) -> Array:
        """Brightness of faces with these unit normals (N, 3), camera coordinates."""
        lit: Array = self.ambient + self.direct * np.maximum(normals @ np.asarray(self.sun, np.float32), 0.0)
        return lit

    def poly(self, pixels: Any, colour: Sequence[float], cls: Optional[int] = None) -> None:
        """Fills a convex polygon of pixels; without `cls` the label stays."""
        fixed = _fixed(pixels)
        cv2.fillConvexPoly(self.image, fixed, colour, cv2.LINE_AA, 4)
        if cls is not None:
            cv2.fillConvexPoly(self.label, fixed, cls, cv2.LINE_8, 4)

    def mark(self, pixels: Any, cls: int) -> None:
        """Fills a convex polygon of the label alone."""
        cv2.fillConvexPoly(self.label, _fixed(pixels), cls, cv2.LINE_8, 4)

    def shape(self, pixels: Any, colour: Sequence[float], cls: Optional[int] = None) -> None:
        """`poly` for a polygon that need not be convex."""
        fixed = [_fixed(pixels)]
        cv2.fillPoly(self.image, fixed, colour, cv2.LINE_AA, 4)
        if cls is not None:
            cv2.fillPoly(self.label, fixed, cls, cv2.LINE_8, 4)

    def box(
        self, u0: float, v0: float, u1: float, v1: float, colour: Sequence[float], cls: Optional[int] = None
    ) -> None:
        """Fills an upright rectangle of pixels."""
        self.poly(((u0, v0), (u1, v0), (u1, v1), (u0, v1)), colour, cls)

    def limb(
        self, a: Sequence[float], b: Sequence[float], width: float, colour: Sequence[float], cls: Optional[int] = None
    ) -> None:
        """A thick line with round ends between two pixels, at least one pixel wide."""
        pa, pb = _pair(a), _pair(b)
        thick = min(max(1, int(width + 0.5)), 255)
        cv2.line(self.image, pa, pb, colour, thick, cv2.LINE_AA, 4)
        if cls is not None:
            cv2.line(self.label, pa, pb, cls, thick, cv2.LINE_8, 4)

    def disc(self, c: Sequence[float], radius: float, colour: Sequence[float], cls: Optional[int] = None) -> None:
        """A filled circle; centre and radius in pixels."""
        centre, r = _pair(c), min(max(8, int(radius * _FIX)), 30000)
        cv2.circle(self.image, centre, r, colour, -1, cv2.LINE_AA, 4)
        if cls is not None:
            cv2.circle(self.label, centre, r, cls, -1, cv2.LINE_8, 4)

    def lines(self, ends: Array, width: float, colour: Sequence[float]) -> None:
        """Many lines (N, 2, 2) of pixels in the image, of one width; the label stays."""
        cv2.polylines(self.image, list(_fixed(ends)), False, colour, min(max(1, int(width + 0.5)), 255), cv2.LINE_AA, 4)

    def window(self, left: float, top: float, right: float, bottom: float) -> Optional[Tuple[int, int, int, int]]:
        """Integer bounds u0, v0, u1, v1 of the part of a rectangle that is inside the frame, or None."""
        u0, v0 = int(min(max(left, 0), self.width)), int(min(max(top, 0), self.height))
        u1, v1 = int(min(max(right + 2, 0), self.width)), int(min(max(bottom + 2, 0), self.height))
        return (u0, v0, u1, v1) if u1 > u0 and v1 > v0 else None

    def quad(self, corners: Any, texture: Array, gain: Sequence[float], z: float, cls: int, extra: Any = None) -> None:
        """Paints a textured quadrilateral, hazed as if z metres away. corners: (4, 3) metres, the texture's top left,
        top right, bottom right, bottom left. gain: BGR factors. extra: an outline (N, 3) to paint instead."""
        pixels = self.project(corners)
        outline = pixels if extra is None else self.project(extra)
        low, high = outline.min(0), outline.max(0)
        window = self.window(float(low[0]), float(low[1]), float(high[0]), float(high[1]))
        if window is None:
            return
        u0, v0, u1, v1 = window
        h, w = texture.shape[:2]
        corner = np.array((u0, v0), np.float32)
        matrix = cv2.getPerspectiveTransform(pixels - corner, np.array(((0, 0), (w, 0), (w, h), (0, h)), np.float32))
        patch = cv2.warpPerspective(texture, matrix, (u1 - u0, v1 - v0), flags=_FLAGS, borderMode=cv2.BORDER_REPLICATE)
        patch = cv2.transform(patch, self._grade(gain, z))
        mask = np.zeros((v1 - v0, u1 - u0), np.uint8)
        cv2.fillConvexPoly(mask, _fixed(outline - corner), 255, cv2.LINE_8, 4)
        cv2.copyTo(patch, mask, self.image[v0:v1, u0:u1])
        cv2.fillConvexPoly(self.label, _fixed(outline), cls, cv2.LINE_8, 4)

    def _grade(self, gain: Sequence[float], z: float, alpha: bool = False) -> Array:
        """Affine colour map: gain, then z metres of haze, which comes with the alpha of premultiplied colours."""
        h = self.haze * min(z * 0.01, 1.0)
        matrix = np.zeros((3, 4), np.float32)
        for i in range(3):
            matrix[i, i] = gain[i] * (1.0 - h)
            matrix[i, 3] = self.haze_colour[i] * h / (255.0 if alpha else 1.0)
        return matrix

    def sprite(self, mips: Mips, box: Sequence[float], gain: Sequence[float], z: float, cls: int) -> None:
        """Paints an upright billboard. mips: (uint8 BGRA premultiplied, uint8 mask of the label) at halving sizes.
        box: left, top, right, bottom in pixels."""
        left, top, right, bottom = box
        window = self.window(left, top, right - 2, bottom - 2)
        if window is None or right - left < 1 or bottom - top < 1:
            return
        u0, v0, u1, v1 = window
        level = 0
        while level + 1 < len(mips) and mips[level + 1][0].shape[0] >= (bottom - top) * 0.9:
            level += 1
        colour, mask = mips[level]
        su, sv = colour.shape[1] / (right - left), colour.shape[0] / (bottom - top)
        matrix = np.array(((su, 0, (u0 + 0.5 - left) * su - 0.5), (0, sv, (v0 + 0.5 - top) * sv - 0.5)), np.float32)
        size = (u1 - u0, v1 - v0)
        patch = cv2.warpAffine(colour, matrix, size, flags=_FLAGS, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
        inside = cv2.warpAffine(mask, matrix, size, flags=_FLAGS, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
        region = self.image[v0:v1, u0:u1]
        keep = cv2.cvtColor(cv2.bitwise_not(cv2.extractChannel(patch, 3)), cv2.COLOR_GRAY2BGR)
        behind = cv2.multiply(region, keep, scale=1 / 255.0)
        cv2.add(behind, cv2.transform(patch, self._grade(gain, z, alpha=True)), dst=region)
        self.label[v0:v1, u0:u1][inside > 127] = cls


def _fixed(pixels: Any) -> Array:
    """Float pixels → int32 with 4 fractional bits; `NEAR` keeps whatever is projected within range."""
    return (np.asarray(pixels, np.float32) * _FIX).astype(np.int32)


def _pair(p: Sequence[float]) -> Tuple[int, int]:
    return int(min(max(p[0], -20000.0), 20000.0) * _FIX), int(min(max(p[1], -20000.0), 20000.0) * _FIX)
