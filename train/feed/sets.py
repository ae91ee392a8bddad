"""The frames of a run: training and validation sets, brought to the network's size."""

from __future__ import annotations

from typing import Optional

from gradseg.base.errors import GradsegError
from gradseg.data.base import Dataset, Sample, Subset, spread
from gradseg.data.specs import open_data
from gradseg.runtime.preprocess import Preprocessor, resize_labels

HOLD_OUT = 10  # without --val every tenth frame is held out


class Resized(Dataset):
    """Samples brought to the network's size as the runtime does it: frames bilinearly, labels by nearest neighbour."""

    def __init__(self, base: Dataset, size_hw: tuple[int, int]) -> None:
        self.base, self.size_hw = base, size_hw
        self.classes, self.palette = base.classes, base.palette

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> Sample:
        sample = self.base[index]
        if sample.label.shape == self.size_hw:
            return sample
        image = Preprocessor(self.size_hw)(sample.image)[0]
        return Sample(image, resize_labels(sample.label, self.size_hw), sample.name)


def open_sets(
    data_spec: str, val_spec: Optional[str], limit: Optional[int] = None, val_limit: Optional[int] = None
) -> tuple[Dataset, Dataset]:
    """Training and validation frames; without a validation spec every tenth frame is held out.

    limit: at most this many frames of either, evenly spread. val_limit: in its place for the validation frames.
    """
    data = open_data(data_spec)
    if val_spec is not None:
        val = open_data(val_spec)
        if val.classes != data.classes:
            raise GradsegError(f"--val {val_spec}: its classes differ from those of --data {data_spec}")
    else:
        if len(data) < 2:
            raise GradsegError(f"--data {data_spec}: one frame only; give --val, or at least two frames")
        val = Subset(data, range(0, len(data), HOLD_OUT))
        data = Subset(data, [i for i in range(len(data)) if i % HOLD_OUT])
    if limit is not None:
        data = spread(data, limit)
    val_limit = limit if val_limit is None else val_limit
    if val_limit is not None:
        val = spread(val, val_limit)
    return data, val
