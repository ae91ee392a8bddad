"""A fine-tuning run from its settings: checkpoint and data brought together, trained into a folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Optional

import torch

from gradseg.base.errors import GradsegError
from gradseg.base.files import refuse_inputs, write_json
from gradseg.base.options import check_threads
from gradseg.graphs.load import load_checkpoint_for
from gradseg.models.checkpoint import Checkpoint
from gradseg.models.spec import STRIDE, size_problem
from gradseg.train.feed.batches import Cached
from gradseg.train.feed.sets import Resized, open_sets
from gradseg.train.qat.finetune_settings import FinetuneSettings
from gradseg.train.qat.finetuner import Finetuner, FinetuneResult
from gradseg.train.qat.sparsity import left_dense
from gradseg.train.records import prepare_folder


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
    for name in ("best.pth", "last.pth"):
        refuse_inputs(out / name, [settings.checkpoint], "--out")
    prepare_folder(out, False, "choose another --out")
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
