"""The networks of the survey as files that every engine's converter can start from. Needs torch and onnx."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Tuple

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.benchmarks.common.untrained import untrained_network
from gradseg.benchmarks.survey.base import Source
from gradseg.data.scenes.frames import SceneVideo
from gradseg.graphs.onnx_export import onnx_from_checkpoint
from gradseg.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from gradseg.models.counts import count
from gradseg.models.spec import ARCHS, spec_for
from gradseg.runtime.preprocess import normalised_chw

FRAMES = 8  # for calibration and, in turn, for timing
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


def write_source(name: str, size_hw: Tuple[int, int], folder: Path) -> dict[str, object]:
    """Writes a network's files and source.json, a `Source`, into `folder`; what stands about it in the result."""
    found, origin = network_for(name, size_hw)
    folder.mkdir(parents=True, exist_ok=True)
    source = Source(
        str(folder / "network.pth"), str(folder / "logits.onnx"), str(folder / "frames.npy"), found.spec.input_hw
    )
    found.network.spec = found.spec  # what the checkpoint says
    save_checkpoint(source.checkpoint, found.network)
    Path(source.onnx).write_bytes(onnx_from_checkpoint(found, logits=True).SerializeToString())
    video = SceneVideo(found.spec.input_hw, SEED)
    frames = [normalised_chw(video.frame(5 * index).image[None], found.spec) for index in range(FRAMES)]
    np.save(source.frames, np.concatenate(frames))
    (folder / "source.json").write_text(json.dumps(dataclasses.asdict(source)), "utf-8")
    macs = count(found.network, found.spec.input_hw).macs  # last: it moves the network to torch's meta device
    return {
        "id": found.spec.arch,
        "weights": origin,
        "input_hw": list(found.spec.input_hw),
        "gmac": round(macs / 1e9, 3),
    }
