"""Which class has which colour, in a corner of the picture."""

from __future__ import annotations

import unicodedata
from typing import Any, Sequence, Tuple

import cv2
import numpy as np

from gradseg.models.spec import Rgb

FONT = cv2.FONT_HERSHEY_SIMPLEX
HOLD = 25  # pictures that a class stays listed after it was last seen: one that flickers makes no flickering legend
SHADE = 0.35  # of the picture that shows through behind the names
STEP = 8  # every so many rows and columns are looked at
PART, ROWS = 0.5, 12  # of the height that the legend takes at most, and its lines at most
WIDE = 0.35  # of the width


class Legend:
    """Names and colours of the classes that are to be seen, drawn once for each set of them.

    Where there are too many, those with the most pixels are listed and the last line says how many are not.

    Args:
        classes, palette: names and RGB by class index. hold: 1 for pictures that have nothing to do with each other.
    """

    def __init__(self, classes: Sequence[str], palette: Sequence[Rgb], hold: int = HOLD) -> None:
        self._names = [_ascii(name) or f"class {index}" for index, name in enumerate(classes)]
        self._palette, self._hold = palette, hold
        self._left = np.zeros(256, np.int64)  # pictures that each class stays listed for
        self._now, self._shown = np.zeros(256, np.bool_), np.zeros(256, np.bool_)
        self._shape: Tuple[int, ...] = ()
        self._panel = self._mask = np.empty((0, 0, 3), np.uint8)
        _width("x", 1.0)  # OpenCV 5 reads its font when it is first asked: not amid the frames

    def draw(self, image: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], left: int = 0) -> None:
        """Into `image`, uint8 BGR (H, W', 3), at the top, right of column `left`; labels: uint8 (H, W)."""
        np.subtract(self._left, 1, out=self._left)
        np.maximum(self._left, 0, out=self._left)
        some = labels[STEP // 2 :: STEP, STEP // 2 :: STEP] if min(labels.shape) > STEP else labels
        self._left[some] = self._hold
        self._left[len(self._names) :] = 0
        np.greater(self._left, 0, out=self._now)
        if labels.shape != self._shape or not np.array_equal(self._now, self._shown):
            self._shape = labels.shape
            np.copyto(self._shown, self._now)
            self._render(np.bincount(some.ravel(), minlength=256))
        height, width = self._panel.shape[:2]
        if height:
            margin = self._margin
            corner = image[margin : margin + height, left + margin : left + margin + width]
            cv2.addWeighted(corner, SHADE, self._panel, 1.0, 0.0, dst=corner)
            cv2.copyTo(self._panel, self._mask, dst=corner)

    def _render(self, pixels: np.ndarray[Any, Any]) -> None:
        """The panel: white names on black, and the colours, which the mask keeps from being mixed with the picture."""
        height, width = self._shape
        scale = max(0.35, height / 1200)
        line = round(36 * scale)
        self._margin = line // 2
        present = np.flatnonzero(self._shown)
        room = min(ROWS, int(PART * height / line))
        if len(present) > room:
            most = present[np.argsort(-pixels[present], kind="stable")][: max(0, room - 1)]
            present = np.sort(most)
        more = int(self._shown.sum()) - len(present)
        texts = [*(self._names[index] for index in present), *([f"{more} more .."] if more else [])]
        rows = [_fitting(text, scale, int(WIDE * width) - 2 * line) for text in texts]
        if not len(present) or not all(rows):  # nothing to be seen, or too small a picture
            self._panel = self._mask = np.empty((0, 0, 3), np.uint8)
            return
        wide = max(_width(row, scale) for row in rows)
        self._panel = np.zeros((line * len(rows) + line // 2, wide + 2 * line, 3), np.uint8)
        self._mask = np.zeros(self._panel.shape[:2], np.uint8)
        thick, square = max(1, round(scale)), round(0.6 * line)
        for place, row in enumerate(rows):
            base = line * (place + 1) - line // 8
            cv2.putText(self._panel, row, (line + line // 3, base), FONT, scale, (255, 255, 255), thick, cv2.LINE_AA)
            if place < len(present):
                begin = line // 3, base - square
                end = begin[0] + square, base
                colour = tuple(int(value) for value in self._palette[present[place]][::-1])
                cv2.rectangle(self._panel, begin, end, colour, cv2.FILLED)
                cv2.rectangle(self._panel, begin, end, (200, 200, 200), 1)
                cv2.rectangle(self._mask, begin, end, 255, cv2.FILLED)


def _fitting(text: str, scale: float, room: int) -> str:
    """As much of a text as has room, or ""."""
    kept = text
    while kept and _width(kept, scale) > room:
        kept = f"{kept.rstrip('.')[:-1]}.." if len(kept) > len("x..") else ""
    return kept


def _width(text: str, scale: float) -> int:
    return int(cv2.getTextSize(text, FONT, scale, max(1, round(scale)))[0][0])


def _ascii(name: str) -> str:
    """What OpenCV's font has of it: letters without their accents."""
    return unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().strip()
