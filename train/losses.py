"""Losses on logits (N, C, H, W) and int64 labels (N, H, W) with `IGNORE` where nothing is known."""

from __future__ import annotations

from typing import Any, Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gradseg.base.errors import GradsegError
from gradseg.data.base import IGNORE, Dataset
from gradseg.models.spec import ModelSpec
from gradseg.runtime.metrics import Confusion
from gradseg.runtime.preprocess import Preprocessor, normalised_chw, resize_labels
from gradseg.train.settings import WEIGHTINGS


def class_shares(data: Dataset, most: int = 400, name: str = "--data") -> np.ndarray[Any, Any]:
    """Pixel share of each class over at most `most` evenly spread frames, float64 (C,), summing to 1."""
    counts = np.zeros(len(data.classes), np.int64)
    step = max(1, len(data) // most)
    for index in range(0, len(data), step):
        counts += np.bincount(data[index].label.ravel(), minlength=256)[: len(counts)]
    if not counts.sum():
        raise GradsegError(f"every label of {name} is ignored; give frames with labelled pixels")
    shares: np.ndarray[Any, Any] = counts / counts.sum()
    return shares


def class_weights(shares: np.ndarray[Any, Any], weighting: str, power: float = 1.0) -> Tensor:
    """float32 (C,) with mean 1 over the classes present; absent classes weigh 0 when weighted by frequency.

    "enet": 1 / ln(1.02 + share) (Paszke et al., ENet, 2016). "median": median share / share (Eigen & Fergus, ICCV
    2015). `power` below 1 softens either.
    """
    if weighting not in WEIGHTINGS:
        raise GradsegError(f"class weighting {weighting!r}; one of {', '.join(WEIGHTINGS)}")
    present = shares > 0
    weights = np.ones_like(shares)
    if weighting == "enet":
        weights = 1 / np.log(1.02 + shares)
    elif weighting == "median":
        weights = np.median(shares[present]) / np.where(present, shares, 1)
    weights = np.where(present, weights, 0 if weighting != "none" else 1) ** power
    return torch.from_numpy(weights / weights[present].mean()).float()


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Class-weighted cross-entropy, mean over the weight of the labelled pixels; 0 if there are none."""
    if bool((labels == IGNORE).all()):
        return logits.sum() * 0
    return F.cross_entropy(logits, labels, weights, ignore_index=IGNORE)


def soft_jaccard(logits: Tensor, labels: Tensor) -> Tensor:
    """1 − mean soft intersection over union of the classes present in the batch (a smooth stand-in for mIoU)."""
    valid = (labels != IGNORE).unsqueeze(1)
    classes = logits.shape[1]
    target = F.one_hot(labels.where(valid[:, 0], torch.zeros_like(labels)), classes).permute(0, 3, 1, 2) * valid
    probability = logits.softmax(1) * valid
    present = target.sum((0, 2, 3)).to(logits.dtype)
    inter = (probability * target).sum((0, 2, 3))
    union = probability.sum((0, 2, 3)) + present - inter
    keep = (present > 0).to(logits.dtype)
    return 1 - ((inter + 1) / (union + 1) * keep).sum() / keep.sum().clamp_min(1)


def coarse_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Phase 1: logits (N, C, H/8, W/8) against full-resolution labels reduced to class shares per 8x8 cell.

    The share-weighted cross-entropy is the mean over the cell's labelled pixels, so thin things count by their area
    instead of vanishing in a nearest-neighbour reduction.
    """
    valid = labels != IGNORE
    classes = logits.shape[1]
    target = F.one_hot(labels.where(valid, torch.zeros_like(labels)), classes) * valid.unsqueeze(-1)
    shares = F.adaptive_avg_pool2d(target.permute(0, 3, 1, 2).to(logits.dtype), (logits.shape[2], logits.shape[3]))
    weighted = shares * weights.view(1, -1, 1, 1)
    return -(weighted * logits.log_softmax(1)).sum() / weighted.sum().clamp_min(1e-6)


@torch.inference_mode()
def evaluate(
    logits_of: Callable[[Tensor], Tensor],
    spec: ModelSpec,
    data: Dataset,
    device: torch.device | str = "cpu",
    indices: Iterable[int] | None = None,
) -> Confusion:
    """Confusion matrix over `data` (or the samples at `indices`).

    `logits_of` maps float32 (1, 3, h, w) to logits (1, C, h', w'); coarser logits are interpolated bilinearly to the
    network's input size. Labels are resized to the frame by nearest neighbour, as on a device. The caller sets
    evaluation mode.
    """
    preprocess = Preprocessor(spec.input_hw)
    confusion = Confusion(spec.num_classes)
    for index in range(len(data)) if indices is None else indices:
        sample = data[index]
        x = torch.from_numpy(normalised_chw(preprocess(sample.image), spec)).to(device)
        logits = logits_of(x.contiguous(memory_format=torch.channels_last)).float()
        if tuple(logits.shape[2:]) != tuple(spec.input_hw):
            logits = torch.nn.functional.interpolate(logits, spec.input_hw, mode="bilinear", align_corners=False)
        labels = logits.argmax(1)[0].to(torch.uint8).cpu().numpy()
        confusion.update(resize_labels(labels, sample.label.shape[:2]), sample.label)
    return confusion
