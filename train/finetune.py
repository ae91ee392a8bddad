"""Fine-tunes a finished checkpoint for INT8, for sparse weights, or both.

python train/finetune.py CKPT --target tidl --data camvid:DIR/train --val camvid:DIR/val --out runs/tidl
python train/finetune.py CKPT --sparsity 2:4 --target trt --data SPEC --out runs/sparse
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, Optional, Sequence

from gradseg.base.errors import run_main
from gradseg.base.options import add, add_common, command_parser
from gradseg.base.packages import need
from gradseg.calibration.qdq.targets import TARGETS
from gradseg.data.specs import GRAMMAR
from gradseg.models.spec import parse_size
from gradseg.train.feed.augment import PRESETS
from gradseg.train.feed.sets import HOLD_OUT
from gradseg.train.qat.finetune_settings import SCALES, FinetuneSettings


def parser() -> argparse.ArgumentParser:
    """The command line; every default is `FinetuneSettings`'."""
    base = FinetuneSettings("", "", target="tidl")
    made = command_parser("train/finetune.py", __doc__)
    say = made.add_argument
    say("checkpoint", help="finished float checkpoint (.pth)")
    add(made, "--data", required=True, help=f"training frames: {GRAMMAR}")
    say("--out", required=True, type=Path, help="folder for checkpoints and the log")
    add(made, "--size", type=parse_size)
    say("--target", choices=tuple(TARGETS), help="INT8 of which device; left out: float")
    say("--scales", choices=SCALES, default=base.scales, help=f"of INT8 (default {base.scales})")
    add(made, "--pow2", "--power-of-two", dest="power_of_two")
    say("--reduce-range", action="store_true", help="weights within ±63, for CPUs without VNNI")
    say("--sparsity", help="share of zeros such as 0.6, or 2:4")
    say("--prune-until", type=float, default=base.prune_until, help="share of the run in which zeros are added")
    say("--epochs", type=int, default=base.epochs, help=f"passes over the frames (default {base.epochs})")
    say("--lr", type=float, default=base.lr, help=f"peak, relative to a layer's weights (default {base.lr:g})")
    say("--batch", type=int, default=base.batch, help=f"frames per step (default {base.batch})")
    say("--crop", type=parse_size, help="training crop HxW (default: half of the network's size)")
    say("--augment", choices=tuple(PRESETS), default=base.augment, help=f"of frames (default {base.augment})")
    say("--distill", type=float, default=base.distill, help=f"weight of the float network (default {base.distill:g})")
    say("--ema", type=float, default=base.ema, help=f"decay of the averaged weights (default {base.ema:g})")
    add(made, "--calib-frames", help=f"of --data, to calibrate on first (default {base.calib_frames})")
    say("--seed", type=int, default=base.seed, help="of order and augmentation")
    say("--val-limit", type=int, help="validate on at most this many frames")
    say("--val-every", type=int, default=base.val_every, help="validate every so many epochs")
    add_common(made, "--method", "--val", "--arch", "--limit", "--threads")
    return made


def main(argv: Optional[Sequence[str]] = None) -> int:
    values: dict[str, Any] = vars(parser().parse_args(argv))
    out, threads = values.pop("out"), values.pop("threads")
    need("fine-tuning", "export", "torch", "onnx", "onnxruntime", "rich")  # settings want PyTorch to read --sparsity
    from gradseg.train.qat.finetuning import finetune

    settings = FinetuneSettings(**values)
    if settings.val is None:
        print(f"no --val: every {HOLD_OUT}th frame of --data is held out for validation", flush=True)
    result = finetune(settings, out, threads)
    for name, value in result.export.per_class.items():
        print(f"{name:<16}{'absent' if value is None else f'{value:.4f}'}")
    if result.sparsity is not None:
        zeros = result.sparsity
        print(f"zeros: {zeros['achieved']:.4f} of the pruned layers' weights, {zeros['overall']:.4f} of all weights")
    agreement = result.export.agreement or 0.0
    print(f"export in ONNX Runtime: labels equal to those that training saw on {100 * agreement:.4f} % of the pixels")
    start = "-" if math.isnan(result.start) else f"{result.start:.4f}"
    print(f"{result.best}: mIoU {result.export.miou:.4f} (float {result.before:.4f}, before fine-tuning {start})")
    return 0


if __name__ == "__main__":
    run_main(main)
