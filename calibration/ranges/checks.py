"""Is a set of frames fit to calibrate on? Warnings that say what was found and what to do. NumPy and OpenCV only.

A signature of a few hundred bytes is kept of every frame, no picture.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import cv2
import numpy as np

from gradseg.calibration.ranges.collect import Statistics
from gradseg.graphs.frames import FrameSource, Named
from gradseg.runtime.preprocess import Preprocessor

ENOUGH_FRAMES, FEW_FRAMES = 32, 16  # what is advised, and below what there is a warning
THUMBNAIL = 16  # pixels a side
NEAR = 1.0  # mean difference of two thumbnails in grey levels (of 255) below which frames count as nearly the same:
# neighbouring frames of a 25-per-second dash camera differ by 0.7, frames of the same drive a second apart by 4
BLACK, BLACK_SHARE = 24, 0.9  # grey level below which a pixel is black; share of such pixels in a dark frame
WHITE, WHITE_SHARE = 250, 0.5
NAMED = 4  # names that a warning lists


@dataclass(frozen=True)
class Signature:
    """What is kept of a frame. digest: SHA-256 of its pixels as the network gets them. thumbnail: grey, int16 (n,)."""

    name: str
    digest: bytes
    thumbnail: np.ndarray[Any, Any]
    dark: bool
    bright: bool


def signature_of(name: str, frame: np.ndarray[Any, Any]) -> Signature:
    """The signature of a frame, uint8 BGR (h, w, 3), preprocessed."""
    grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
    small = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    return Signature(
        name,
        hashlib.sha256(frame.tobytes()).digest(),
        small.reshape(-1).astype(np.int16),
        bool((grey < BLACK).mean() > BLACK_SHARE),
        bool((grey >= WHITE).mean() > WHITE_SHARE),
    )


class Watched(FrameSource):
    """The frames of another source, preprocessed to `input_hw` as the runtime does it, each with its signature kept.

    A frame is valid until the next one. `signatures` and `sha256`: of the latest iteration.
    """

    def __init__(self, source: FrameSource, input_hw: Tuple[int, int]) -> None:
        super().__init__(source.name, source.limit, source.skip_bad)
        self.source, self._prepare = source, Preprocessor(input_hw)
        self.signatures: List[Signature] = []

    def named(self) -> Iterator[Named]:
        self.signatures = []
        for name, frame in self.source.named():
            prepared = self._prepare(frame)[0]
            self.signatures.append(signature_of(name, prepared))
            yield name, prepared
        self.skipped, self.warning = self.source.skipped, self.source.warning

    @property
    def sha256(self) -> str:
        """Hex SHA-256 over the frames' own, in order."""
        return hashlib.sha256(b"".join(each.digest for each in self.signatures)).hexdigest()


def frame_warnings(signatures: Sequence[Signature]) -> List[str]:
    """What is wrong with the frames themselves: too few, the same one twice, dark, over-exposed."""
    return [*_too_few(signatures), *_duplicates(signatures), *_light(signatures)]


def _too_few(signatures: Sequence[Signature]) -> List[str]:
    count = len({each.digest for each in signatures})
    if count == 1:
        return [
            "a single frame: the ranges fit this one picture and others will be clipped; calibrate on at least "
            f"{ENOUGH_FRAMES} frames of different places and light"
        ]
    if count < FEW_FRAMES:
        return [
            f"only {count} different frames: rare bright or high-contrast scenes are missing from the ranges; "
            f"{ENOUGH_FRAMES} to {4 * ENOUGH_FRAMES} frames of different places and light are sensible"
        ]
    return []


def _duplicates(signatures: Sequence[Signature]) -> List[str]:
    first: Dict[bytes, str] = {}
    exact, near = [], []
    earlier: np.ndarray[Any, Any] = np.zeros((len(signatures), THUMBNAIL * THUMBNAIL), np.int16)
    for index, each in enumerate(signatures):
        earlier[index] = each.thumbnail
        if each.digest in first:
            exact.append(f"{each.name} = {first[each.digest]}")
            continue
        first[each.digest] = each.name
        if index:
            distance = np.abs(earlier[:index] - each.thumbnail).mean(axis=1)
            if distance.min() < NEAR:
                near.append(f"{each.name} ~ {signatures[int(distance.argmin())].name}")
    warnings = []
    if exact:
        warnings.append(
            f"{len(exact)} of {len(signatures)} frames are there twice ({_listed(exact)}): they add nothing and weigh "
            "their scene more; remove the copies"
        )
    if near:
        warnings.append(
            f"{len(near)} of {len(signatures)} frames are nearly the same as an earlier one ({_listed(near)}): take "
            "frames that lie further apart, or fewer (--frames)"
        )
    return warnings


def _light(signatures: Sequence[Signature]) -> List[str]:
    warnings = []
    for field, what in (("dark", "nearly black"), ("bright", "over-exposed")):
        names = [each.name for each in signatures if getattr(each, field)]
        if names:
            warnings.append(
                f"{len(names)} of {len(signatures)} frames ({100 * len(names) / len(signatures):.0f} %) are {what} "
                f"({_listed(names)}): leave them out unless the network must work on such frames"
            )
    return warnings


def prediction_warnings(statistics: Statistics, classes: Sequence[str]) -> List[str]:
    """What the network made of the frames: classes that it never predicted, tensors that are always zero."""
    warnings = []
    never = [name for name, pixels in zip(classes, statistics.predicted) if pixels == 0]
    if never:
        warnings.append(
            f"classes never predicted on these frames: {', '.join(never)}; the ranges may not fit what shows "
            "them: add frames that do"
        )
    zero = [name for name, seen in statistics.observers.items() if seen.always_zero]
    if zero:
        warnings.append(
            f"{len(zero)} tensors are zero on every frame ({_listed(zero)}): dead layers, or wrong input; check "
            "the network's mean and std, and its training"
        )
    return warnings


def leakage_warnings(signatures: Sequence[Signature], validation: FrameSource, input_hw: Tuple[int, int]) -> List[str]:
    """Frames that also are in a validation set, found by their pixels as the network gets them."""
    calibrated = {each.digest: each.name for each in signatures}
    watched = Watched(validation, input_hw)
    for _ in watched.named():
        pass
    shared = [f"{calibrated[s.digest]} = {s.name}" for s in watched.signatures if s.digest in calibrated]
    if not shared:
        return []
    return [
        f"{len(shared)} frames of the validation set {validation.name} are calibrated on ({_listed(shared)}): its mIoU "
        "would flatter INT8; calibrate on other frames, such as the training set"
    ]


def source_warnings(source: FrameSource) -> List[str]:
    """What the source itself met: frames that could not be read, an early end."""
    warnings = [source.warning] if source.warning else []
    if source.skipped:
        warnings.append(
            f"{len(source.skipped)} frames could not be read and were skipped ({_listed(source.skipped)}): repair or "
            "replace them"
        )
    return warnings


def _listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
