"""Procedural street scenes (interface stub; being replaced)."""

from __future__ import annotations

from gradseg.data.base import Dataset, Sample


class ScenesData(Dataset):
    def __init__(self, frames: int, size_hw: tuple, seed: int) -> None:
        raise NotImplementedError
