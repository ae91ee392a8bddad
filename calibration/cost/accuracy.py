"""How well a network labels frames, in memory: mIoU and the share of labels equal to another network's."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.data.base import Dataset, evenly
from gradseg.models.spec import ModelSpec
from gradseg.runtime.metrics import Confusion
from gradseg.runtime.preprocess import Preprocessor, resize_labels

Network = Callable[["np.ndarray[Any, Any]"], "np.ndarray[Any, Any]"]


@dataclass(frozen=True)
class Score:
    """miou: fraction. per_class: IoU by class, None for one that does not occur. agreement: share of the pixels, at the
    network's size, on which the labels equal the reference's; None without one."""

    miou: float
    per_class: Dict[str, Optional[float]]
    agreement: Optional[float] = None

    def worst_class(self, other: Score) -> Tuple[str, float]:
        """The class that loses most against `other`, and its change in points of IoU (negative is a loss)."""
        changes = {
            name: 100 * (value - (other.per_class.get(name) or 0.0))
            for name, value in self.per_class.items()
            if value is not None
        }
        name = min(changes, key=lambda key: changes[key])
        return name, changes[name]


class Frames:
    """The preprocessed frames and labels of a dataset, kept in memory, so that many networks can be scored quickly.

    Args:
        frame_hw: (height, width) in pixels of what the network takes; by default the spec's input size.

    Raises GradsegError if no pixel is labelled.
    """

    def __init__(self, data: Dataset, spec: ModelSpec, frame_hw: Optional[Tuple[int, int]] = None) -> None:
        if tuple(data.classes) != tuple(spec.classes):
            raise GradsegError(
                f"the network's classes {list(spec.classes)} are not the data's {list(data.classes)}; "
                "measure on data with the classes it was trained on"
            )
        self.spec = spec
        prepare = Preprocessor(frame_hw or spec.input_hw)
        samples = (data[index] for index in range(len(data)))
        self._kept = [(prepare(sample.image).copy(), sample.label) for sample in samples]
        if not any((label < spec.num_classes).any() for _, label in self._kept):
            raise GradsegError(f"no labelled pixel in the {len(data)} frames: there is nothing to measure")

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
        """(uint8 BGR (1, h, w, 3) at the network's size, uint8 labels (H, W) at the frame's)."""
        return iter(self._kept)

    def some(self, limit: int) -> Frames:
        """At most `limit` of the frames, evenly spread; they are shared, not copied."""
        found = copy.copy(self)
        found._kept = evenly(self._kept, limit)
        return found

    def labels(self, network: Network) -> List[np.ndarray[Any, Any]]:
        """The network's labels, uint8 (h, w), of every frame, in order."""
        return [network(batch)[0].copy() for batch, _ in self._kept]

    def scored(self, network: Network) -> Tuple[Score, List[np.ndarray[Any, Any]]]:
        """The network's score, and its `labels`: to compare others with. Its agreement is that with itself, 1."""
        labels = self.labels(network)
        replay = iter(labels)
        return self.score(lambda _: next(replay)[None], labels), labels

    def score(self, network: Network, reference: Optional[List[np.ndarray[Any, Any]]] = None) -> Score:
        """network: uint8 batch → labels (1, h, w). reference: another network's `labels`."""
        confusion, same, pixels = Confusion(self.spec.num_classes), 0, 0
        for index, (batch, label) in enumerate(self._kept):
            found = network(batch)[0]
            confusion.update(resize_labels(found, label.shape[:2]), label)
            if reference is not None:
                same += int(np.count_nonzero(found == reference[index]))
                pixels += found.size
        return Score(confusion.miou(), confusion.per_class(self.spec.classes), same / pixels if pixels else None)
