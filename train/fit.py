"""Trains a network of the family: `python train/fit.py dg2-star-light --data camvid:DIR --out runs/dg2`."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from pathlib import Path
from typing import Any, Optional, Sequence

import torch

from gradseg.base.errors import GradsegError, run_main
from gradseg.base.files import write_json
from gradseg.base.options import check_threads
from gradseg.data.base import Dataset
from gradseg.data.specs import GRAMMAR
from gradseg.models.spec import ARCHS, STRIDE, parse_size, size_problem, spec_for
from gradseg.train.feed.augment import PRESETS
from gradseg.train.feed.batches import Cached
from gradseg.train.feed.sets import HOLD_OUT, Resized, open_sets
from gradseg.train.losses import WEIGHTINGS
from gradseg.train.records import prepare_folder
from gradseg.train.schedules import ALPHA_SCHEDULES
from gradseg.train.settings import PRECISIONS, FitSettings
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


def parser() -> argparse.ArgumentParser:
    """The command line; every default is `FitSettings`'."""
    base = FitSettings(arch="", data="")
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("arch", metavar="ID", help=f"architecture: {', '.join(ARCHS)}")
    made.add_argument("--data", default="scenes:", help=f"training frames: {GRAMMAR}")
    made.add_argument("--val", help="validation frames, a data spec (default: every tenth frame is held out)")
    made.add_argument("--init", help="checkpoint whose weights to start from (other classes get new prediction layers)")
    made.add_argument("--out", required=True, type=Path, help="folder for checkpoints, logs and curves")
    made.add_argument("--resume", action="store_true", help="continue the run in --out after a kill")
    made.add_argument("--direct", action="store_true", help="ordinary training of the grouped network, one phase")
    made.add_argument("--epochs", type=int, default=base.epochs, help="epochs of all phases together")
    made.add_argument("--encoder-epochs", type=int, help="epochs of the encoder phase (default: 40 %%)")
    made.add_argument("--decoder-epochs", type=int, help="epochs with the encoder held (default: 10 %%)")
    made.add_argument("--batch", type=int, default=base.batch, help="frames per step and process")
    made.add_argument("--size", type=parse_size, help="network input HxW (default: the first frame's size)")
    made.add_argument("--crop", type=parse_size, help="training crop HxW (default: --size)")
    made.add_argument("--augment", choices=tuple(PRESETS), default=base.augment, help="how much frames are varied")
    made.add_argument("--class-weights", choices=WEIGHTINGS, default=base.class_weights, help="class weighting")
    made.add_argument("--class-power", type=float, default=base.class_power, help="exponent on the class weights")
    made.add_argument("--jaccard", type=float, default=base.jaccard, help="weight of the soft Jaccard loss")
    made.add_argument("--lr", type=float, default=base.lr, help="peak learning rate (AdamW)")
    made.add_argument("--weight-decay", type=float, default=base.weight_decay)
    made.add_argument("--ema", type=float, default=base.ema, help="decay of the averaged weights, 0 for none")
    made.add_argument("--dropout", type=float, default=base.dropout, help="factor on ERFNet's dropout rates")
    made.add_argument("--alpha-schedule", choices=ALPHA_SCHEDULES, default=base.alpha_schedule)
    made.add_argument(
        "--alpha-until", type=float, default=base.alpha_until, help="share of the encoder phase until alpha is 0"
    )
    made.add_argument("--precision", choices=PRECISIONS, default=base.precision, help="mixed precision")
    made.add_argument("--seed", type=int, default=base.seed)
    made.add_argument("--limit", type=int, help="use at most this many frames")
    made.add_argument("--val-limit", type=int, help="validate on at most this many frames")
    made.add_argument("--val-every", type=int, default=base.val_every, help="validate every so many epochs")
    made.add_argument("--threads", type=int, help="CPU threads of this process")
    return made


def main(argv: Optional[Sequence[str]] = None) -> int:
    try:
        values: dict[str, Any] = vars(parser().parse_args(argv))
    except argparse.ArgumentTypeError as error:  # pragma: no cover - argparse reports it itself
        raise GradsegError(str(error)) from error
    out, resume, threads = values.pop("out"), values.pop("resume"), values.pop("threads")
    if values["val"] is None and not resume and int(os.environ.get("RANK", "0")) == 0:
        print(f"no --val: every {HOLD_OUT}th frame of --data is held out for validation", flush=True)
    result = fit(FitSettings(**values), out, resume, threads)
    if int(os.environ.get("RANK", "0")) == 0:
        for name, value in result.per_class.items():
            print(f"{name:<16}{'absent' if math.isnan(value) else f'{value:.4f}'}")
        print(f"{result.best}: finalised, best validation mIoU {result.miou:.4f}")
    return 0


if __name__ == "__main__":
    run_main(main)
