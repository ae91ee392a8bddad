"""Trains a network of the family: `python train/fit.py dg2-star-light --data camvid:DIR --out runs/dg2`."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import Any, Optional, Sequence

from gradseg.base.errors import run_main
from gradseg.base.options import add, add_common, command_parser
from gradseg.base.packages import need
from gradseg.data.specs import GRAMMAR
from gradseg.models.spec import ARCHS, parse_size
from gradseg.train.feed.augment import PRESETS
from gradseg.train.feed.sets import HOLD_OUT
from gradseg.train.settings import ALPHA_SCHEDULES, PRECISIONS, WEIGHTINGS, FitSettings


def parser() -> argparse.ArgumentParser:
    """The command line; every default is `FitSettings`'."""
    base = FitSettings(arch="", data="")
    made = command_parser("train/fit.py", __doc__, argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("arch", metavar="ID", help=f"architecture: {', '.join(ARCHS)}")
    add(made, "--data", default="scenes:", help=f"training frames: {GRAMMAR}")
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
    made.add_argument("--weight-decay", type=float, default=base.weight_decay, help="of AdamW")
    made.add_argument("--ema", type=float, default=base.ema, help="decay of the averaged weights, 0 for none")
    made.add_argument("--dropout", type=float, default=base.dropout, help="factor on ERFNet's dropout rates")
    made.add_argument("--alpha-schedule", choices=ALPHA_SCHEDULES, default=base.alpha_schedule, help="how alpha falls")
    made.add_argument(
        "--alpha-until", type=float, default=base.alpha_until, help="share of the encoder phase until alpha is 0"
    )
    made.add_argument("--precision", choices=PRECISIONS, default=base.precision, help="mixed precision")
    made.add_argument("--seed", type=int, default=base.seed, help="of weights, order and augmentation")
    made.add_argument("--val-limit", type=int, help="validate on at most this many frames")
    made.add_argument("--val-every", type=int, default=base.val_every, help="validate every so many epochs")
    add_common(made, "--val", "--limit", "--threads")
    return made


def main(argv: Optional[Sequence[str]] = None) -> int:
    values: dict[str, Any] = vars(parser().parse_args(argv))
    out, resume, threads = values.pop("out"), values.pop("resume"), values.pop("threads")
    settings = FitSettings(**values)
    need("training", "train", "torch", "lightning_fabric", "tensorboard", "matplotlib", "rich")
    from gradseg.train.fitting import fit

    if settings.val is None and not resume and int(os.environ.get("RANK", "0")) == 0:
        print(f"no --val: every {HOLD_OUT}th frame of --data is held out for validation", flush=True)
    result = fit(settings, out, resume, threads)
    if int(os.environ.get("RANK", "0")) == 0:
        for name, value in result.per_class.items():
            print(f"{name:<16}{'absent' if math.isnan(value) else f'{value:.4f}'}")
        print(f"{result.best}: finalised, best validation mIoU {result.miou:.4f}")
    return 0


if __name__ == "__main__":
    run_main(main)
