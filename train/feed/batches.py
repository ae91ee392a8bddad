"""From a dataset to batches: frames cached in memory, augmented on a thread while the network trains."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from gradseg.data.base import IGNORE, Dataset, Sample
from gradseg.models.spec import ModelSpec
from gradseg.runtime.preprocess import normalised_chw
from gradseg.train.feed.augment import Augment, random_crop

CACHE_BYTES = 4 << 30  # frames beyond this are read again each epoch
AHEAD = 3


class Cached(Dataset):
    """Keeps samples in memory once read, up to `CACHE_BYTES`; safe to read from several threads."""

    def __init__(self, base: Dataset) -> None:
        self.base, self.classes, self.palette = base, base.classes, base.palette
        self._kept: dict[int, Sample] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> Sample:
        found = self._kept.get(index)
        if found is None:
            found = self.base[index]
            self._bytes += found.image.nbytes + found.label.nbytes
            if self._bytes <= CACHE_BYTES:
                self._kept[index] = found
        return found


def epoch_order(count: int, seed: int, epoch: int, rank: int, world: int, batch: int) -> list[list[int]]:
    """This process's batches of sample indices for one epoch, a pure function of its arguments.

    Every process gets the same number of batches; the last batch is filled up from the start of the permutation, so
    every sample is seen at least once.
    """
    order = np.random.default_rng([seed, epoch]).permutation(count).tolist()
    step = batch * world
    total = -(-count // step) * step
    order = (order * (-(-total // count)))[:total]
    mine = order[rank::world]
    return [mine[i : i + batch] for i in range(0, len(mine), batch)]


class Feeder:
    """Iterates an epoch's batches as (float32 (N, 3, h, w) normalised channels-last, int64 labels (N, h, w)).

    One producer thread stays at most `AHEAD` batches ahead. Augmentation is drawn from (seed, epoch, sample, place in
    the batch), so a resumed run sees what an uninterrupted one would have seen.
    """

    def __init__(
        self, data: Dataset, spec: ModelSpec, crop_hw: tuple[int, int], how: Augment, seed: int, epoch: int
    ) -> None:
        self.data, self.spec, self.crop_hw, self.how = data, spec, crop_hw, how
        self.seed, self.epoch = seed, epoch

    def batches(self, order: Sequence[Sequence[int]]) -> Iterator[tuple[Tensor, Tensor]]:
        producer, ready = ThreadPoolExecutor(1), deque[Future[tuple[Tensor, Tensor]]]()
        try:
            for indices in order:
                ready.append(producer.submit(self._batch, indices))
                if len(ready) > AHEAD:
                    yield ready.popleft().result()
            while ready:
                yield ready.popleft().result()
        finally:
            producer.shutdown(cancel_futures=True)

    def _batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        height, width = self.crop_hw
        images = np.empty((len(indices), height, width, 3), np.uint8)
        labels = np.full((len(indices), height, width), IGNORE, np.uint8)
        for row, index in enumerate(indices):
            rng = np.random.default_rng([self.seed, self.epoch, index, row])
            images[row], labels[row] = random_crop(self.data[index], self.crop_hw, self.how, rng)
        return self._inputs(images), torch.from_numpy(labels).long()

    def _inputs(self, images: np.ndarray[Any, Any]) -> Tensor:
        x = torch.from_numpy(normalised_chw(images, self.spec))
        return x.contiguous(memory_format=torch.channels_last)


class PixelFeeder(Feeder):
    """The same batches for a deployment-form network: uint8 BGR (N, h, w, 3), int64 labels (N, h, w)."""

    def _inputs(self, images: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(images)
