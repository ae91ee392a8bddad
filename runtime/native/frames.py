"""Frames to the network's size and labels back to the frame's by the native library: OpenCV's bytes in less time.

It computes what OpenCV computes: bilinear in steps of 1/2048 for frames, nearest for labels. For each pair of sizes it
is held against the OpenCV that is there, once; where a byte differs, or the library or the CPU has nothing, OpenCV goes
on.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, Callable, Optional, Tuple

import cv2
import numpy as np

from gradseg.runtime.native.library import library_path

UNITS = 2048  # of a bilinear factor, as in OpenCV's uint8 arithmetic
FRAME_BLOCK, FRAME_WINDOW = 16, 64  # output bytes that the C side makes at once, input bytes that they may come from
LABEL_BLOCK, LABEL_WINDOW = 64, 128

Size = Tuple[int, int]
Array = Any


class ResizeStruct(ctypes.Structure):
    """`gs_resize`."""

    _fields_ = [
        *[(name, ctypes.c_int32) for name in ("out_width", "out_height", "blocks")],
        *[(name, ctypes.c_void_p) for name in ("starts", "order", "across", "rows", "down")],
    ]


class RepeatStruct(ctypes.Structure):
    """`gs_repeat`."""

    _fields_ = [
        *[(name, ctypes.c_int32) for name in ("in_width", "out_width", "out_height")],
        *[(name, ctypes.c_void_p) for name in ("starts", "order", "rows")],
    ]


@functools.lru_cache(maxsize=None)
def functions() -> Optional[Any]:
    """The C functions of `frames.h`; None if they were not built or this CPU lacks their instructions."""
    path = library_path()
    if path is None:
        return None
    try:
        found = ctypes.CDLL(str(path))
        found.gs_frames_available.restype = ctypes.c_int32
        if not found.gs_frames_available():
            return None
        pointer = ctypes.c_void_p
        found.gs_resize_frame.restype, found.gs_resize_labels.restype = None, None
        found.gs_resize_frame.argtypes = [pointer, pointer, ctypes.c_int64, pointer, pointer]
        found.gs_resize_labels.argtypes = [pointer, pointer, pointer]
    except (OSError, AttributeError):  # no library, or one without these
        return None
    return found


class FrameResize:
    """uint8 BGR (H, W, 3) of `from_hw` → (h, w, 3) of `to_hw`. Made by `frame_resize`. Not reentrant."""

    def __init__(self, c: Any, from_hw: Size, to_hw: Size) -> None:
        (height, width), (out_height, out_width) = from_hw, to_hw
        low, part = _taps(out_width, width)
        part = np.where((low < 0) | (low >= width - 1), np.float32(0), part)
        low = np.clip(low, 0, width - 1)
        bytes_of = np.arange(3)
        places = np.stack([(np.minimum(low + i, width - 1)[:, None] * 3 + bytes_of).ravel() for i in (0, 1)], -1)
        self._starts, self._order, fits = _blocks(places, FRAME_BLOCK, width * 3, FRAME_WINDOW)
        blocks = len(self._starts)
        self._across: np.ndarray[Any, Any] = np.zeros((blocks * FRAME_BLOCK, 2), np.int16)
        self._across[: len(places)] = np.repeat(_factors(part), 3, axis=0)
        low, part = _taps(out_height, height)
        self._rows = np.ascontiguousarray(np.stack([np.clip(low + i, 0, height - 1) for i in (0, 1)], -1), np.int32)
        self._down = _factors(part)
        self._scratch: np.ndarray[Any, Any] = np.zeros(2 * FRAME_BLOCK * blocks + 32, np.int16)
        tables = (self._starts, self._order, self._across, self._rows, self._down)
        self._struct = ResizeStruct(out_width, out_height, blocks, *[table.ctypes.data for table in tables])
        self.address, self._scratch_at = ctypes.addressof(self._struct), self._scratch.ctypes.data
        self._c, self.fits = c, fits

    def __call__(self, frame: np.ndarray[Any, Any], out: np.ndarray[Any, Any]) -> bool:
        """Writes `out`, contiguous; False, and nothing is written, if the frame is not `packed`."""
        if not packed(frame):
            return False
        self._c.gs_resize_frame(self.address, frame.ctypes.data, frame.strides[0], out.ctypes.data, self._scratch_at)
        return True


class LabelResize:
    """uint8 (h, w) of `from_hw` → (H, W) of `to_hw`, both contiguous. Made by `label_resize`."""

    def __init__(self, c: Any, from_hw: Size, to_hw: Size) -> None:
        (height, width), (out_height, out_width) = from_hw, to_hw
        self._starts, self._order, self.fits = _blocks(
            _nearest(out_width, width)[:, None], LABEL_BLOCK, width, LABEL_WINDOW
        )
        self._rows = _nearest(out_height, height)
        tables = (self._starts, self._order, self._rows)
        self._struct = RepeatStruct(width, out_width, out_height, *[table.ctypes.data for table in tables])
        self._c, self.address = c, ctypes.addressof(self._struct)

    def __call__(self, labels: np.ndarray[Any, Any], out: np.ndarray[Any, Any]) -> None:
        self._c.gs_resize_labels(self.address, labels.ctypes.data, out.ctypes.data)


class ForSizes:
    """Keeps what `make` gives for a pair of sizes. It is made when the same pair comes again: then more of it will."""

    def __init__(self, make: Callable[[Size, Size], Any]) -> None:
        self._make, self._made, self._tried = make, None, False  # type: Any, Any, bool
        self._sizes: Tuple[Size, Size] = ((0, 0), (0, 0))

    def expect(self, from_hw: Size, to_hw: Size) -> None:
        """Makes it now: that pair will come."""
        if from_hw != to_hw:
            self._sizes, self._made, self._tried = (from_hw, to_hw), self._make(from_hw, to_hw), True

    def __call__(self, from_hw: Size, to_hw: Size) -> Any:
        if (from_hw, to_hw) != self._sizes:
            self._sizes, self._made, self._tried = (from_hw, to_hw), None, False
        elif not self._tried:
            self._made, self._tried = self._make(from_hw, to_hw), True
        return self._made


def packed(frame: np.ndarray[Any, Any]) -> bool:
    """Whether the pixels of uint8 BGR (H, W, 3) lie side by side in each of its rows, one row below the other."""
    row, pixel, byte = frame.strides
    return (pixel, byte) == (3, 1) and row >= 3 * frame.shape[1]


def frame_resize(from_hw: Size, to_hw: Size) -> Optional[FrameResize]:
    """The native resize of frames for these sizes, or None if there is none that equals OpenCV's."""
    return _like_opencv(FrameResize, from_hw, to_hw, (3,), cv2.INTER_LINEAR)  # type: ignore[no-any-return]


def label_resize(from_hw: Size, to_hw: Size) -> Optional[LabelResize]:
    """The native resize of labels for these sizes, or None if there is none that equals OpenCV's."""
    return _like_opencv(LabelResize, from_hw, to_hw, (), cv2.INTER_NEAREST_EXACT)  # type: ignore[no-any-return]


def _like_opencv(kind: Any, from_hw: Size, to_hw: Size, channels: Tuple[int, ...], interpolation: int) -> Any:
    """A `kind` for these sizes, held against OpenCV on bytes without order, the same every time; None if it differs."""
    c = functions()
    made = kind(c, from_hw, to_hw) if c is not None else None
    if made is None or not made.fits:
        return None
    given = np.random.RandomState(0).randint(0, 256, (*from_hw, *channels), np.uint8)
    out = np.empty((*to_hw, *channels), np.uint8)
    made(given, out)
    return made if np.array_equal(out, cv2.resize(given, to_hw[::-1], interpolation=interpolation)) else None


def _taps(out: int, size: int) -> Tuple[Array, Array]:
    """Of each output: the lower of the two inputs that it lies between, int32, and the upper one's share, float32."""
    at = ((np.arange(out) + 0.5) * (1.0 / (out / size)) - 0.5).astype(np.float32)
    low = np.floor(at).astype(np.int32)
    return low, (at - low).astype(np.float32)


def _factors(part: Array) -> Array:
    """Shares of the upper input, float32 (n,) → factors of both, int16 (n, 2)."""
    return np.ascontiguousarray(np.rint(np.stack([1 - part, part], -1) * UNITS), np.int16)


def _nearest(out: int, size: int) -> Array:
    """Which input each output takes, as OpenCV has it: int32 (out,)."""
    ramp = np.arange(size, dtype=np.float32)[None]
    return cv2.resize(ramp, (out, 1), interpolation=cv2.INTER_NEAREST_EXACT)[0].astype(np.int32)


def _blocks(places: Array, block: int, row_bytes: int, window: int) -> Tuple[Array, Array, bool]:
    """Input positions of each output, (n, taps) → where each block starts to read, int32 (blocks,), and positions from
    there, uint8 (blocks, block * taps); whether all lie within `window` bytes that are in the row."""
    count = -(-len(places) // block)
    padded = np.pad(places, ((0, count * block - len(places)), (0, 0)), mode="edge").reshape(count, -1)
    starts = np.minimum(padded.min(axis=1), row_bytes - window).astype(np.int32)
    order = padded - starts[:, None]
    fits = row_bytes >= window and int(order.max()) < window
    return starts, order.astype(np.uint8), fits
