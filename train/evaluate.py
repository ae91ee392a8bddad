"""Evaluating a PyTorch network through the runtime's own preprocessing, at each frame's full resolution."""

from __future__ import annotations

from typing import Callable, Iterable

import torch
from torch import Tensor

from gradseg.data.base import Dataset
from gradseg.models.spec import ModelSpec
from gradseg.runtime.metrics import Confusion
from gradseg.runtime.preprocess import Preprocessor, normalised_chw, resize_labels


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
