"""Real frames for calibration and verification: data specs and the runtime's sources. NumPy and OpenCV only.

Random data is refused: activation ranges measured on noise say nothing about those of real frames.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator, Optional, Tuple

import numpy as np

from gradseg.data.base import Dataset, spread
from gradseg.data.specs import open_data, parse_options
from gradseg.models.errors import GradsegError
from gradseg.runtime.sources import open_source

NOISE = ("random", "rand", "randn", "noise", "uniform", "gaussian", "zeros", "ones", "dummy", "synthetic")
GRAMMAR = "camvid:DIR, folder:DIR, scenes:, an image folder, a wildcard in quotes, an image or a video file"
DATA_SPECS = ("camvid:", "folder:", "scenes:")


class FrameSource:
    """Up to `limit` frames, evenly spread over what the source has. `name`: for messages.

    Iteration yields uint8 BGR (H, W, 3), one at a time: no more than one frame is held. It can be repeated and gives
    the same frames again, unless the source is a camera.
    """

    def __init__(self, name: str, limit: int) -> None:
        self.name, self.limit = name, limit

    def __iter__(self) -> Iterator[np.ndarray[Any, Any]]:
        raise NotImplementedError


def default_source(input_hw: Tuple[int, int]) -> str:
    """The source when none is given: procedural scenes at the network's size."""
    return f"scenes:size={max(32, input_hw[0])}x{max(32, input_hw[1])}"


def other_scenes(text: str) -> Optional[str]:
    """The scenes of another seed for a `scenes:` spec, to verify on what was not calibrated on; None for the rest."""
    if not text.startswith("scenes:") or "+" in text:
        return None
    options = parse_options(text[len("scenes:") :], ("frames", "seed", "size"), "scenes:")
    options["seed"] = str(int(options.get("seed", "0")) + 1000)
    return "scenes:" + ",".join(f"{key}={value}" for key, value in options.items())


def open_frames(text: str, limit: int) -> FrameSource:
    """Opens a source by its text; raises GradsegError for one that is absent, empty, unknown or random."""
    if limit < 1:
        raise GradsegError(f"{limit} frames asked for; at least 1 is needed")
    if text.partition(":")[0].strip().lower() in NOISE and not Path(text).exists():
        raise GradsegError(
            f"{text!r} refused: ranges measured on random data do not fit real frames and cost accuracy silently; "
            f"give real frames: {GRAMMAR}"
        )
    if text.startswith(DATA_SPECS):
        data = open_data(text)
        if len(data) == 0:
            raise GradsegError(f"{text}: no frames inside")
        return _DataFrames(text, limit, data)
    open_source(text).close()  # what is absent or damaged is said now
    return _SourceFrames(text, limit)


class _DataFrames(FrameSource):
    def __init__(self, text: str, limit: int, data: Dataset) -> None:
        super().__init__(text, limit)
        self._data = spread(data, limit)

    def __iter__(self) -> Iterator[np.ndarray[Any, Any]]:
        for index in range(len(self._data)):
            yield self._data[index].image


class _SourceFrames(FrameSource):
    def __iter__(self) -> Iterator[np.ndarray[Any, Any]]:
        source = open_source(self.name)
        try:
            total = source.frame_count or self.limit  # one that cannot tell gives its first frames
            count = min(self.limit, total)
            wanted = {i * total // count for i in range(count)}
            for index in range(max(wanted) + 1):
                captured = source.read()
                if captured is None:
                    return
                if index in wanted:
                    yield captured[0]
        finally:
            source.close()
