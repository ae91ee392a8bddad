"""The networks of the survey as files that every engine's converter can start from. Needs torch and onnx."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Tuple

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.benchmarks.common.job import Job
from gradseg.benchmarks.common.untrained import untrained_network
from gradseg.benchmarks.survey.base import FRAMES, LOGITS
from gradseg.data.scenes.frames import SceneVideo
from gradseg.graphs.from_torch import onnx_from_checkpoint
from gradseg.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from gradseg.models.counts import count
from gradseg.models.spec import ARCHS, spec_for
from gradseg.runtime.preprocess import normalised_chw

COUNT = 8  # for calibration and, in turn, for timing
SEED = 1


def network_for(name: str, size_hw: Tuple[int, int]) -> Tuple[Checkpoint, str]:
    """A checkpoint file, or an architecture's id with random weights; and which of the two, in words."""
    if name in ARCHS:
        spec = spec_for(name, input_hw=size_hw)
        return Checkpoint(spec, untrained_network(spec, SEED)), "random weights"
    if Path(name).suffix.lower() != ".pth":
        raise GradsegError(f"{name}: expected a checkpoint (.pth) or one of {', '.join(ARCHS)}")
    loaded = load_checkpoint(name)
    return Checkpoint(loaded.spec.with_size(size_hw), loaded.network), name


def write_source(name: str, size_hw: Tuple[int, int], folder: Path, threads: int = 1) -> Tuple[Job, Dict[str, Any]]:
    """Writes a network's files into `folder`, see `survey.base`; what stands about it in the result."""
    found, origin = network_for(name, size_hw)
    folder.mkdir(parents=True, exist_ok=True)
    job = Job(found.spec.arch, folder / "network.pth", name == origin, folder, threads, input_hw=found.spec.input_hw)
    found.network.spec = found.spec  # what the checkpoint says
    save_checkpoint(job.checkpoint, found.network)
    (folder / LOGITS).write_bytes(onnx_from_checkpoint(found, logits=True).SerializeToString())
    video = SceneVideo(job.input_hw, SEED)
    np.save(folder / FRAMES, [normalised_chw(video.frame(5 * i).image[None], found.spec) for i in range(COUNT)])
    macs = count(found.network, job.input_hw).macs  # last: it moves the network to torch's meta device
    return job, {"id": job.model, "weights": origin, "input_hw": list(job.input_hw), "gmac": round(macs / 1e9, 3)}
