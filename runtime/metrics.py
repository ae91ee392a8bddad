"""Segmentation metrics from a confusion matrix: IoU per class, mean IoU, pixel accuracy. NumPy only."""

from __future__ import annotations

from typing import Any, Dict, Optional, Sequence

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.data.base import IGNORE


class Confusion:
    """Counts of (label, prediction) pairs over any number of frames.

    `matrix[label, prediction]` is int64 (C, C). Pixels labelled `IGNORE` are not counted. A prediction outside
    0..C-1 counts as a miss of its label (`missed[label]`), never as another class.
    """

    def __init__(self, num_classes: int) -> None:
        if not 1 <= num_classes <= IGNORE:
            raise GradsegError(f"{num_classes} classes; 1 to {IGNORE} fit uint8 labels")
        self.num_classes = num_classes
        self.matrix: np.ndarray[Any, Any] = np.zeros((num_classes, num_classes), np.int64)
        self.missed: np.ndarray[Any, Any] = np.zeros(num_classes, np.int64)

    def update(self, pred: np.ndarray[Any, Any], label: np.ndarray[Any, Any]) -> None:
        """Adds a frame (or a batch) of integer class indices; both of one shape.

        Raises GradsegError if the shapes differ or a label is neither a class nor `IGNORE`.
        """
        if pred.shape != label.shape:
            raise GradsegError(f"prediction is {pred.shape}, label {label.shape}: they must be of one size")
        classes = self.num_classes
        # one histogram of label * 256 + prediction answers everything without a boolean-mask copy
        pairs = label.astype(np.int64).ravel() * 256
        pairs += pred.astype(np.int64, copy=False).ravel()
        if pairs.size and (label.min() < 0 or label.max() > 255 or pred.min() < 0 or pred.max() > 255):
            raise GradsegError("labels and predictions must lie in 0..255")
        table = np.bincount(pairs, minlength=256 * 256).reshape(256, 256)
        stray = np.flatnonzero(table[classes:IGNORE].sum(axis=1))
        if stray.size:
            raise GradsegError(f"label value {classes + int(stray[0])} outside the {classes} classes")
        self.matrix += table[:classes, :classes]
        self.missed += table[:classes, classes:].sum(axis=1)

    def iou(self) -> np.ndarray[Any, Any]:
        """Intersection over union per class, float64 (C,), fractions; NaN where a class is in neither map."""
        hits = np.diagonal(self.matrix).astype(np.float64)
        union = self.matrix.sum(axis=0) + self.matrix.sum(axis=1) + self.missed - np.diagonal(self.matrix)
        result: np.ndarray[Any, Any] = np.full(self.num_classes, np.nan)
        np.divide(hits, union, out=result, where=union > 0)
        return result

    def per_class(self, names: Sequence[str]) -> Dict[str, Optional[float]]:
        """`iou` by the classes' names, in order; None where a class is in neither map."""
        return {name: None if np.isnan(value) else value for name, value in zip(names, self.iou().tolist())}

    def miou(self) -> float:
        """Mean of `iou` over the classes that occur; NaN if none does."""
        values = self.iou()
        present = values[~np.isnan(values)]
        return float(present.mean()) if present.size else float("nan")

    def pixel_accuracy(self) -> float:
        """Correct pixels over counted pixels, a fraction; NaN if no pixel was counted."""
        total = int(self.matrix.sum() + self.missed.sum())
        return float(np.trace(self.matrix)) / total if total else float("nan")
