"""The files that every pipeline of versus.py starts from. Needs torch, but for `spec_of`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradseg.base.errors import GradsegError
from gradseg.base.files import atomic_path, write_json
from gradseg.benchmarks.common.job import Job
from gradseg.benchmarks.survey.base import LOGITS
from gradseg.models.spec import ModelSpec, spec_for
from gradseg.runtime.engines.protocol import read_spec


def prepare(job: Job) -> dict[str, Any]:
    """Leaves spec.json in the job's folder, and a checkpoint if the network is untrained; gives what it costs."""
    from gradseg.benchmarks.common.untrained import untrained_network
    from gradseg.models.checkpoint import save_checkpoint
    from gradseg.models.counts import count

    job.folder.mkdir(parents=True, exist_ok=True)
    if not job.trained and not job.checkpoint.is_file():
        save_checkpoint(job.checkpoint, untrained_network(spec_for(job.model, input_hw=job.input_hw), 0))
    found = job.load()
    if found.spec.arch != job.model:
        raise GradsegError(f"{job.checkpoint}: is of architecture {found.spec.arch}, not {job.model}")
    write_json(job.folder / "spec.json", found.spec.to_dict())
    counts = count(found.network, job.input_hw)
    return {"gmac": counts.macs / 1e9, "parameters": counts.parameters, "classes": list(found.spec.classes)}


def spec_of(job: Job) -> ModelSpec:
    """The network's spec at the size that is measured, as it was left in the job's folder when it was prepared."""
    return read_spec(job.folder / "spec.json")


def export_logits(job: Job) -> Path:
    """The network as PyTorch's exporter writes it, float32 `input` (1, 3, h, w) → `logits` (1, C, h, w), kept as
    logits.onnx. BatchNorm is folded by the exporter where it can; no pass of GradSeg's has touched it."""
    from gradseg.graphs.from_torch import onnx_from_torch

    path = job.folder / LOGITS
    if not path.is_file():
        found = job.load()
        with atomic_path(path) as temporary:
            temporary.write_bytes(onnx_from_torch(found.network, found.spec, fold=True).SerializeToString())
    return path
