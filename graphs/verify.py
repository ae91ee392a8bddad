"""What an exported network must pass before it is saved: the framework's labels, repeatable, and not a constant."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, List, Optional, Tuple

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.graphs.frames import open_frames
from gradseg.graphs.sessions import OnnxRunner, scores_of
from gradseg.runtime.preprocess import Preprocessor

TIE = 1e-4  # relative distance of the two largest logits below which a pixel has no defined label
NEEDED = 0.9999  # share of the other pixels whose labels must agree
FRAMES = 4

Network = Callable[["np.ndarray[Any, Any]"], "np.ndarray[Any, Any]"]
Scores = Callable[["np.ndarray[Any, Any]"], Optional["np.ndarray[Any, Any]"]]


@dataclass
class Agreement:
    """Pixels compared, pixels with equal labels among them, near-ties that were left out, frames."""

    pixels: int = 0
    equal: int = 0
    ties: int = 0
    frames: int = 0

    @property
    def fraction(self) -> float:
        return self.equal / self.pixels if self.pixels else 1.0

    def add(
        self,
        labels: np.ndarray[Any, Any],
        expected: np.ndarray[Any, Any],
        counted: Optional[np.ndarray[Any, Any]] = None,
    ) -> None:
        """Labels against expected labels; `counted` masks out pixels that have no defined label. GradsegError if their
        shapes differ."""
        if labels.shape != expected.shape:
            raise GradsegError(f"labels are {labels.shape}, those expected {expected.shape}")
        mask = np.ones(labels.shape, np.bool_) if counted is None else counted
        self.pixels, self.equal = self.pixels + int(mask.sum()), self.equal + int((mask & (labels == expected)).sum())
        self.ties += int((~mask).sum())
        self.frames += labels.shape[0] if labels.ndim == 3 else 1

    def __str__(self) -> str:
        ties = f", {self.ties} near-ties left out" if self.ties else ""
        return f"{100 * self.fraction:.4f} % of {self.pixels} pixels in {self.frames} frames{ties}"


def verification_batches(
    source: str, input_hw: tuple[int, int], limit: int = FRAMES, batch: int = 1
) -> List[np.ndarray[Any, Any]]:
    """Up to `limit` preprocessed batches, uint8 BGR (batch, h, w, 3); a single frame is joined by its mirror image.

    In each batch stand `batch` frames in a row, from one further on than in the batch before.
    """
    prepare = Preprocessor(input_hw)
    batches = [prepare(frame).copy() for frame in open_frames(source, limit)]
    if not batches:
        raise GradsegError(f"{source}: no frames to verify with")
    if len(batches) == 1:
        batches.append(np.ascontiguousarray(batches[0][:, :, ::-1]))
    count = len(batches)
    return [np.concatenate([batches[(first + index) % count] for index in range(batch)]) for first in range(count)]


def labels_from_logits(logits: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Logits (1, C, H, W) → labels uint8 (1, H, W) and the mask of pixels that are not near-ties."""
    margin, size = margins(logits, 1)
    return logits.argmax(axis=1).astype(np.uint8), margin >= TIE * size


def margins(scores: np.ndarray[Any, Any], axis: int) -> Tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Distance of the two best scores along `axis`, and the larger of their magnitudes: float32 without that axis."""
    best = np.partition(np.moveaxis(scores, axis, -1).astype(np.float32), -2, axis=-1)[..., -2:]
    return best[..., 1] - best[..., 0], np.abs(best).max(axis=-1)


def check_equal(network: Network, reference: Network, batches: List[np.ndarray[Any, Any]], where: str) -> Agreement:
    """Compares labels with the logits of `reference`; GradsegError below 99.99 % of the pixels that are no ties.

    network: uint8 batch → labels (1, H, W). reference: uint8 batch → float logits (1, C, H, W).
    """
    agreement = Agreement()
    for batch in batches:
        logits = reference(batch)
        if not np.isfinite(logits).all():
            raise GradsegError(f"{where}: the network's logits are not finite on real frames; not written")
        expected, counted = labels_from_logits(logits)
        agreement.add(network(batch), expected, counted)
    if agreement.fraction < NEEDED:
        raise GradsegError(
            f"{where}: labels agree with the PyTorch network on only {agreement}; {100 * NEEDED:.2f} % are needed. "
            "Nothing was written; please report the checkpoint's architecture"
        )
    return agreement


def compare(
    network: Network, reference: Network, batches: List[np.ndarray[Any, Any]], where: str, scores: Scores
) -> Tuple[Agreement, List[str]]:
    """How far two networks (uint8 batch → labels) agree, and warnings; `network` must pass `check_alive`."""
    warnings = check_alive(network, batches, where, scores)
    return agreement_of(network, reference, batches), warnings


def agreement_of(
    network: Network,
    reference: Network,
    batches: List[np.ndarray[Any, Any]],
    decided: Optional[Callable[["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"], "np.ndarray[Any, Any]"]] = None,
) -> Agreement:
    """Labels of two networks compared; with `decided`, see `ties.Decided`, near-ties are left out and counted."""
    agreement = Agreement()
    for batch in batches:
        labels, expected = network(batch), reference(batch)
        agreement.add(labels, expected, None if decided is None else decided(batch, expected))
    return agreement


def check_alive(
    network: Network, batches: List[np.ndarray[Any, Any]], where: str, scores: Optional[Scores]
) -> List[str]:
    """GradsegError unless the same frame gives the same answer twice and some other frame another answer.

    A network that has hardly been trained may give one label map for every frame and still look at its input. Then
    `scores` (uint8 batch → the floats that the argmax is taken over) must differ between frames, and a warning for the
    user is returned. `scores` is None where they cannot be had; then there is the warning alone.
    """
    first = network(batches[0]).copy()
    if not np.array_equal(first, network(batches[0])):
        raise GradsegError(f"{where}: gives two answers for one frame; nothing was written")
    if any(not np.array_equal(first, network(batch)) for batch in batches[1:]):
        return []
    if scores is None:
        return [f"warning: {where} labels {len(batches)} different frames alike; its scores were not looked at"]
    floats = [scores(batch) for batch in batches]
    if floats[0] is None or all(other is None or np.array_equal(floats[0], other) for other in floats[1:]):
        raise GradsegError(
            f"{where}: gives the same answer for {len(batches)} different frames, so it does not look at its input. "
            "Nothing was written. If these frames look alike, verify on more varied ones with --data SOURCE"
        )
    return [
        f"warning: {where} labels {len(batches)} different frames alike (only its scores differ): hardly trained, "
        "or the frames look alike"
    ]


def check_as_it_is(
    data: bytes, input_hw: tuple[int, int], source: str, where: str, batch: int = 1
) -> Tuple[List[str], str]:
    """`check_alive` for an ONNX file that is used unchanged: warnings, and what was found in one line.

    input_hw, batch: of the frames that it takes.

    Without onnxruntime, or where that cannot load the file, the line says that nothing was measured. Needs no onnx;
    without it `check_alive` cannot look at the scores.
    """
    try:
        runner = OnnxRunner(data, where)
    except GradsegError as error:
        reason = "no onnxruntime here" if error.exit_code == 3 else str(error)
        return [], f"agreement not measured: {reason}"
    scores: Optional[Scores] = None
    with contextlib.suppress(ImportError):
        import onnx

        scores = partial(scores_of, onnx.ModelProto.FromString(data), where=where)
    batches = verification_batches(source, input_hw, batch=batch)
    warnings = check_alive(lambda frames: runner.run(frames)[0], batches, where, scores)
    found = "repeatable" if warnings else "repeatable, and not the same for every frame"
    return warnings, f"labels: {found}, {len(batches)} frames of the ONNX in ONNX Runtime on the CPU"
