"""Fine-tunes a finished checkpoint for INT8, for sparse weights, or both.

python train/finetune.py CKPT --target tidl --data camvid:DIR/train --val camvid:DIR/val --out runs/tidl
python train/finetune.py CKPT --sparsity 2:4 --target trt --data SPEC --out runs/sparse
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any, Optional, Sequence

import torch

from gradseg.base.errors import GradsegError, run_main
from gradseg.base.files import refuse_inputs, write_json
from gradseg.base.options import METHODS, check_threads
from gradseg.calibration.qdq.targets import TARGETS
from gradseg.data.specs import GRAMMAR
from gradseg.graphs.inputs import load_checkpoint_for
from gradseg.models.checkpoint import Checkpoint
from gradseg.models.spec import STRIDE, parse_size, size_problem
from gradseg.train.feed.augment import PRESETS
from gradseg.train.feed.batches import Cached
from gradseg.train.feed.sets import HOLD_OUT, Resized, open_sets
from gradseg.train.qat.finetune_settings import SCALES, FinetuneSettings
from gradseg.train.qat.finetuner import Finetuner, FinetuneResult
from gradseg.train.qat.sparsity import left_dense
from gradseg.train.records import prepare_folder

OTHER_OUT = "choose another --out"


def finetune(settings: FinetuneSettings, out: Path, threads: Optional[int] = None) -> FinetuneResult:
    """Trains `settings` into folder `out`: best.pth, last.pth, log.csv, settings.json.

    Raises GradsegError for a checkpoint, data, sizes or a folder that do not fit.
    """
    check_threads(threads)
    if threads is not None:
        torch.set_num_threads(threads)
    ckpt: Checkpoint = load_checkpoint_for(settings.checkpoint, settings.arch, settings.size)
    check_base(ckpt, settings.checkpoint)
    train, val = open_sets(settings.data, settings.val, settings.limit, settings.val_limit)
    if tuple(train.classes) != tuple(ckpt.spec.classes):
        raise GradsegError(
            f"--data {settings.data}: its classes differ from those of {settings.checkpoint}; fine-tuning goes on with "
            "the same ones"
        )
    settings = dataclasses.replace(settings, crop=crop_of(settings, ckpt.spec.input_hw))
    refuse_inputs(out / "best.pth", [settings.checkpoint], "--out")
    refuse_inputs(out / "last.pth", [settings.checkpoint], "--out")
    prepare_folder(out, False, OTHER_OUT)
    sparsity = settings.wanted_sparsity()
    if sparsity is not None:
        for name in left_dense(ckpt.network, sparsity):
            print(f"note: {name} stays dense: its input channels do not divide into fours, or it is a deconvolution")
    write_json(out / "settings.json", settings.to_dict())
    data = Cached(Resized(train, ckpt.spec.input_hw))
    return Finetuner(settings, ckpt, data, val, out, threads).run()


def check_base(ckpt: Checkpoint, path: str) -> None:
    """GradsegError unless the checkpoint is a float one: scales are learned from the float weights."""
    stored = ckpt.info.get("quantisation")
    if isinstance(stored, dict):
        base = (stored.get("base") or {}).get("file", "its base")
        raise GradsegError(
            f"{path}: is fine-tuned for INT8 already (target {stored.get('target')}); start from the float checkpoint "
            f"that it was made from, {base}"
        )


def crop_of(settings: FinetuneSettings, size_hw: tuple[int, int]) -> tuple[int, int]:
    """The training crop: as asked for, else half of the network's size, rounded up to what fits."""
    half = tuple(max(STRIDE, -(-side // (2 * STRIDE)) * STRIDE) for side in size_hw)
    crop = settings.crop or (half[0], half[1])
    problem = size_problem(crop)
    if problem:
        raise GradsegError(f"--crop: {problem}")
    return crop


def parser() -> argparse.ArgumentParser:
    """The command line; every default is `FinetuneSettings`'."""
    base = FinetuneSettings("", "", target="tidl")
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("checkpoint", help="finished float checkpoint (.pth)")
    add("--data", required=True, help=f"training frames: {GRAMMAR}")
    add("--val", help="validation frames, a data spec (default: every tenth frame is held out)")
    add("--out", required=True, type=Path, help="folder for checkpoints and the log")
    add("--arch", help="architecture of a bare state dict, such as erfnet for public ERFNet checkpoints")
    add("--size", type=parse_size, help="input size HxW in place of the checkpoint's")
    add("--target", choices=tuple(TARGETS), help="INT8 of which device; left out: float")
    add("--scales", choices=SCALES, default=base.scales, help=f"of INT8 (default {base.scales})")
    add("--pow2", "--power-of-two", dest="power_of_two", action="store_true", help="activation scales as powers of two")
    add("--reduce-range", action="store_true", help="weights within ±63, for CPUs without VNNI")
    add("--sparsity", help="share of zeros such as 0.6, or 2:4")
    add("--prune-until", type=float, default=base.prune_until, help="share of the run in which zeros are added")
    add("--epochs", type=int, default=base.epochs, help=f"(default {base.epochs})")
    add("--lr", type=float, default=base.lr, help=f"peak, relative to a layer's weights (default {base.lr:g})")
    add("--batch", type=int, default=base.batch, help=f"frames per step (default {base.batch})")
    add("--crop", type=parse_size, help="training crop HxW (default: half of the network's size)")
    add("--augment", choices=tuple(PRESETS), default=base.augment, help=f"(default {base.augment})")
    add("--distill", type=float, default=base.distill, help=f"weight of the float network (default {base.distill:g})")
    add("--ema", type=float, default=base.ema, help=f"decay of the averaged weights (default {base.ema:g})")
    add("--calib-frames", type=int, default=base.calib_frames, help=f"of --data (default {base.calib_frames})")
    add("--method", choices=METHODS, default=base.method, help=f"of calibration (default {base.method})")
    add("--seed", type=int, default=base.seed)
    add("--limit", type=int, help="use at most this many frames")
    add("--val-limit", type=int, help="validate on at most this many frames")
    add("--val-every", type=int, default=base.val_every, help="validate every so many epochs")
    add("--threads", type=int, help="CPU threads")
    return made


def main(argv: Optional[Sequence[str]] = None) -> int:
    values: dict[str, Any] = vars(parser().parse_args(argv))
    out, threads = values.pop("out"), values.pop("threads")
    if values["val"] is None:
        print(f"no --val: every {HOLD_OUT}th frame of --data is held out for validation", flush=True)
    result = finetune(FinetuneSettings(**values), out, threads)
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
