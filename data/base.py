"""What a labelled dataset is to the rest of GradSeg."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Sequence, Tuple, TypeVar

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.models.spec import Rgb

T = TypeVar("T")
IGNORE = 255  # label value of pixels that count neither in the loss nor in the metrics


@dataclass(frozen=True)
class Sample:
    """One labelled frame. image: uint8 BGR (H, W, 3). label: uint8 (H, W), class index or `IGNORE`."""

    image: np.ndarray[Any, Any]
    label: np.ndarray[Any, Any]
    name: str


class Dataset:
    """A finite, indexable sequence of samples with classes in common. Frames may differ in size."""

    classes: Tuple[str, ...]
    palette: Tuple[Rgb, ...]

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        raise NotImplementedError


class Subset(Dataset):
    """The samples of `base` at `indices`."""

    def __init__(self, base: Dataset, indices: Sequence[int]) -> None:
        self.base, self.indices = base, list(indices)
        self.classes, self.palette = base.classes, base.palette

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.base[self.indices[index]]


class Concat(Dataset):
    """Several datasets one after the other; raises GradsegError unless their classes are the same, in order."""

    def __init__(self, parts: Sequence[Dataset]) -> None:
        self.parts = list(parts)
        self.classes, self.palette = parts[0].classes, parts[0].palette
        for part in parts[1:]:
            if part.classes != self.classes:
                raise GradsegError(
                    f"data with different classes cannot be mixed: {list(self.classes)} and {list(part.classes)}"
                )

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, index: int) -> Sample:
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)


def spread(data: Dataset, limit: int) -> Dataset:
    """At most `limit` samples (at least 1), evenly spread over the dataset."""
    if limit < 1:
        raise GradsegError(f"--limit {limit}: at least 1 frame is needed")
    if limit >= len(data):
        return data
    return Subset(data, evenly(range(len(data)), limit))


def evenly(items: Sequence[T], limit: int) -> List[T]:
    """At most `limit` of the items, evenly spread."""
    count = min(limit, len(items))
    return [items[i * len(items) // count] for i in range(count)]
