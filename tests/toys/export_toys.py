"""Networks for the export tests: random weights, but with labels that vary as a trained network's do."""

from __future__ import annotations

import copy
import functools
from typing import Any, Iterator, List

import numpy as np
import onnx
import pytest
import torch

from gradseg.benchmarks.common.untrained import even_classes, vary_norms
from gradseg.data.scenes.frames import ScenesData
from gradseg.models.checkpoint import Checkpoint
from gradseg.models.networks.erfnet import SegNetwork
from gradseg.models.spec import ModelSpec, spec_for
from gradseg.runtime.preprocess import normalised_chw

HW = (64, 96)
SCENES = "scenes:frames=4,size=64x96"


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    """Networks this small only wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def frames(count: int = 4) -> List[np.ndarray[Any, Any]]:
    """Scene frames as batches, uint8 BGR (1, 64, 96, 3)."""
    data = ScenesData(count, HW, 0)
    return [data[index].image[None] for index in range(count)]


def lively(spec: ModelSpec, seed: int = 0) -> SegNetwork:
    """A network in eval mode whose BatchNorms hold the statistics of scenes and whose classes all occur somewhere."""
    torch.manual_seed(seed)
    network = SegNetwork(spec, dropout_scale=0.0)
    batch = torch.from_numpy(np.concatenate([normalised_chw(frame, spec) for frame in frames()]))
    vary_norms(network, 1.0)
    with torch.no_grad():
        network.train()(batch)
        even_classes(network, network.eval()(batch))
    return network


@functools.cache
def checkpoint(arch: str = "dg2-star-light", seed: int = 0, **preprocessing: Any) -> Checkpoint:
    """Shared between tests: change only a `copied` one."""
    spec = spec_for(arch, input_hw=HW, **preprocessing)
    return Checkpoint(spec, lively(spec, seed))


@functools.cache
def exported(arch: str = "dg2-star-light") -> onnx.ModelProto:
    """Its deployment form; do not change it in place."""
    from gradseg.graphs.from_torch import onnx_from_checkpoint

    return onnx_from_checkpoint(checkpoint(arch))


def int8_from_fp32(model: onnx.ModelProto, source: str, settings: Any, threads: int = 1) -> onnx.ModelProto:
    """The Q/DQ model of `settings` (`qdq.int8.Settings`), calibrated on `source`."""
    from gradseg.calibration.qdq.int8 import calibrated, int8_from_calibrated

    made: onnx.ModelProto = int8_from_calibrated(
        calibrated(model, source, settings.frames, settings.equalise, threads), settings
    )
    return made


def logits_of(ckpt: Checkpoint, frame: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return np.asarray(ckpt.network(torch.from_numpy(normalised_chw(frame, ckpt.spec))).numpy())


def copied(ckpt: Checkpoint) -> Checkpoint:
    return copy.deepcopy(ckpt)
