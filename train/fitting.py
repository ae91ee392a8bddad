"""A training run from its settings: data and sizes brought together, trained into a folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Optional

import torch

from gradseg.base.errors import GradsegError
from gradseg.base.files import write_json
from gradseg.base.options import check_threads
from gradseg.data.base import Dataset
from gradseg.models.spec import STRIDE, size_problem, spec_for
from gradseg.train.feed.batches import Cached
from gradseg.train.feed.sets import Resized, open_sets
from gradseg.train.records import prepare_folder
from gradseg.train.settings import FitSettings
from gradseg.train.trainer import FitResult, Trainer, make_fabric


def fit(settings: FitSettings, out: Path, resume: bool = False, threads: Optional[int] = None) -> FitResult:
    """Trains `settings` into folder `out`: best.pth, last.pth, log.csv, curves.png, tensorboard/, settings.json.

    With `resume`, continues from `out`/last.pth. Raises GradsegError for data, sizes or a folder that do not fit.
    """
    check_threads(threads)
    if threads is not None:
        torch.set_num_threads(threads)
    train, val = open_sets(settings.data, settings.val, settings.limit, settings.val_limit)
    settings = with_sizes(settings, train)
    spec = spec_for(settings.arch, train.classes, train.palette, settings.size or (0, 0))
    prepare_folder(out, resume)
    fabric = make_fabric(settings.precision)
    fabric.launch()
    trainer = Trainer(settings, spec, Cached(Resized(train, spec.input_hw)), Cached(val), out, fabric)
    if resume:
        trainer.resume()
    if fabric.is_global_zero:
        write_json(out / "settings.json", settings.to_dict())
        if trainer.started and not resume:
            print(trainer.started, flush=True)
    return trainer.run()


def with_sizes(settings: FitSettings, data: Dataset) -> FitSettings:
    """Fills in size (the first frame's, rounded down to what fits) and crop (the size); raises if they do not fit."""
    size = settings.size
    if size is None:
        height, width = data[0].label.shape
        size = (max(STRIDE, height // STRIDE * STRIDE), max(STRIDE, width // STRIDE * STRIDE))
    crop = settings.crop or size
    for name, value in (("size", size), ("crop", crop)):
        problem = size_problem(value)
        if problem:
            raise GradsegError(f"--{name}: {problem}")
    if settings.batch * (crop[0] // STRIDE) * (crop[1] // STRIDE) < 2:
        raise GradsegError("--batch 1 with a crop of 8x8: BatchNorm needs more than one value; use larger ones")
    return dataclasses.replace(settings, size=size, crop=crop)
