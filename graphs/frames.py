"""Real frames for calibration and verification: data specs and the runtime's sources. NumPy and OpenCV only.

Random data is refused: activation ranges measured on noise say nothing about those of real frames.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.data.base import Concat, Dataset, Subset, evenly, spread
from gradseg.data.folders import FolderData, read_image
from gradseg.data.specs import is_spec, open_data, parse_options, whole_number
from gradseg.runtime.sources.grammar import image_paths, open_source
from gradseg.runtime.sources.source import Captured, Source

NOISE = ("random", "rand", "randn", "noise", "uniform", "gaussian", "zeros", "ones", "dummy", "synthetic")
GRAMMAR = "camvid:DIR, folder:DIR, scenes:, an image folder, a wildcard in quotes, an image or a video file"

Named = Tuple[str, Any]  # a frame's name for people, and the frame, uint8 BGR (H, W, 3)


class FrameSource:
    """Up to `limit` frames, evenly spread over what the source has. `name`: for messages.

    Iteration yields uint8 BGR (H, W, 3), one at a time: no more than one frame is held; `named` gives each with its
    name. It can be repeated and gives the same frames again, unless the source is a camera.

    skip_bad: frames that cannot be read are left out, and named in `skipped` by the latest iteration; otherwise the
    first one ends it with a GradsegError. warning: what else was wrong with the latest iteration, or "".
    """

    def __init__(self, name: str, limit: int, skip_bad: bool = False) -> None:
        self.name, self.limit, self.skip_bad = name, limit, skip_bad
        self.skipped: List[str] = []
        self.warning = ""

    def named(self) -> Iterator[Named]:
        """(name, frame) one after the other."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[np.ndarray[Any, Any]]:
        for _, frame in self.named():
            yield frame


def default_source(input_hw: Tuple[int, int]) -> str:
    """The source when none is given: procedural scenes at the network's size."""
    return f"scenes:size={max(32, input_hw[0])}x{max(32, input_hw[1])}"


def other_scenes(text: str) -> Optional[str]:
    """The scenes of another seed for a `scenes:` spec, to verify on what was not calibrated on; None for the rest."""
    if not text.startswith("scenes:") or "+" in text:
        return None
    options = parse_options(text[len("scenes:") :], ("frames", "seed", "size"), "scenes:")
    options["seed"] = str(whole_number(options, "seed", 0) + 1000)
    return "scenes:" + ",".join(f"{key}={value}" for key, value in options.items())


def open_frames(text: str, limit: int, skip_bad: bool = False) -> FrameSource:
    """Opens a source by its text; raises GradsegError for one that is absent, empty, unknown or random."""
    if limit < 1:
        raise GradsegError(f"{limit} frames asked for; at least 1 is needed")
    if text.partition(":")[0].strip().lower() in NOISE and not Path(text).exists():
        raise GradsegError(
            f"{text!r} refused: ranges measured on random data do not fit real frames and cost accuracy silently; "
            f"give real frames: {GRAMMAR}"
        )
    if is_spec(text):
        data = open_data(text)
        if len(data) == 0:
            raise GradsegError(f"{text}: no frames inside")
        chosen = spread(data, limit)
        names = [frame_name(chosen, index) for index in range(len(chosen))]
        return _ListedFrames(text, limit, skip_bad, names, lambda index: chosen[index].image)
    images = image_paths(text)
    if images is not None:
        paths = evenly(images, limit)
        if not skip_bad:
            read_image(paths[0])  # what is damaged is said now
        return _ListedFrames(text, limit, skip_bad, [str(p) for p in paths], lambda index: read_image(paths[index]))
    open_source(text).close()  # what is absent or damaged is said now
    return _VideoFrames(text, limit, skip_bad)


def frame_name(data: Dataset, index: int) -> str:
    """What a frame of a dataset is called, without reading it: its image file, else its number."""
    if isinstance(data, Subset):
        return frame_name(data.base, data.indices[index])
    if isinstance(data, FolderData):
        return str(data.pairs[index][0])
    for part in data.parts if isinstance(data, Concat) else []:
        if index < len(part):
            return frame_name(part, index)
        index -= len(part)
    return f"scene {index}"


class _ListedFrames(FrameSource):
    """Frames that can be read in any order, each by itself."""

    def __init__(
        self, text: str, limit: int, skip_bad: bool, names: Sequence[str], read: Callable[[int], np.ndarray[Any, Any]]
    ) -> None:
        super().__init__(text, limit, skip_bad)
        self._names, self._read = list(names), read

    def named(self) -> Iterator[Named]:
        self.skipped = []
        for index, name in enumerate(self._names):
            try:
                frame = self._read(index)
            except GradsegError as error:
                if not self.skip_bad:
                    raise GradsegError(
                        f"{error} (calibrate.py --skip-bad goes on without it)", error.exit_code
                    ) from error
                self.skipped.append(name)
                if len(self.skipped) == len(self._names):
                    raise GradsegError(f"{self.name}: no frame can be read; the last one: {error}") from error
                continue
            yield name, frame


class _VideoFrames(FrameSource):
    """Frames that come one after the other: a video, a camera."""

    def named(self) -> Iterator[Named]:
        self.skipped, self.warning = [], ""
        source = open_source(self.name)
        try:
            total = source.frame_count or self.limit  # one that cannot tell gives its first frames
            wanted, done = evenly(range(total), self.limit), 0
            for index in range(wanted[-1] + 1):
                captured = self._next(source, index, wanted)
                if captured is None:
                    self.skipped = [f"frame {each}" for each in wanted[done:]] if source.frame_count else []
                    return
                if index == wanted[done]:
                    done += 1
                    yield f"frame {index}", captured[0]
        finally:
            source.close()

    def _next(self, source: Source, index: int, wanted: Sequence[int]) -> Optional[Captured]:
        """The source's next frame; None if it ended too soon and that may be so."""
        try:
            captured = source.read()
        except GradsegError as error:
            came = sum(1 for each in wanted if each < index)
            if source.frame_count is None or not (self.skip_bad and came):
                raise GradsegError(
                    f"{self.name}: ended after {index} frames of {source.frame_count or 'an unknown number'}, with "
                    f"{came} of the {len(wanted)} frames to calibrate on ({error}); repair the file or encode it "
                    "again (calibrate.py --skip-bad goes on with what came)",
                    error.exit_code,
                ) from error
            return None
        if captured is None:
            self.warning = source.warning
        return captured
