"""FP32 deployment-form ONNX and real frames → its INT8 form, what it was calibrated on in the metadata.

    frames → `calibrated`: statistics of every tensor, once → scales for a target and a method → `int8_model`

One pass over the frames serves every target and every method.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Tuple

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.calibration.qdq.plan import plan_for
from gradseg.calibration.qdq.quantise import WeightSettings, count_quantised, quantised
from gradseg.calibration.qdq.repair import bias_corrected, equalised, mean_tensors
from gradseg.calibration.qdq.targets import NATIVE, TARGETS, Quantisation, target_named
from gradseg.calibration.ranges.collect import Statistics, statistics_from_frames
from gradseg.calibration.ranges.ranges_file import quantisation_of
from gradseg.graphs.frames import open_frames
from gradseg.graphs.graph import Graph, is_quantised
from gradseg.models import metadata

Form = Callable[[Any], Any]


@dataclass(frozen=True)
class Settings:
    """How to calibrate and quantise.

    target: see `targets`. method: minmax, percentile, entropy or mse, see `Observer.range`. frames: how many at most.
    power_of_two: activation scales as powers of two, where the target does not ask for them anyway. reduce_range:
    weights within ±63, for CPUs whose INT8 kernels saturate in int16, see `cpu.int8_saturates`. per_channel: of weight
    scales, None as the target wants. equalise, bias_correction: the repairs of `repair`. keep_float: names of nodes.
    """

    target: str = "cpu"
    method: str = "mse"
    frames: int = 32
    power_of_two: bool = False
    reduce_range: bool = False
    per_channel: Optional[bool] = None
    equalise: bool = True
    bias_correction: bool = True
    keep_float: Tuple[str, ...] = ()

    def weights(self) -> WeightSettings:
        return WeightSettings(self.per_channel, None, self.reduce_range)


@dataclass(frozen=True)
class Calibrated:
    """A model in FP32, equalised if that was asked for, with the statistics of what its tensors hold on real frames."""

    model: Any  # onnx.ModelProto
    statistics: Statistics
    equalised: bool
    source: str

    def activations(self, target: str, method: str, power_of_two: bool = False) -> Dict[str, Quantisation]:
        """The scales of every observed tensor."""
        wanted = target_named(target)
        return {
            name: quantisation_of(self.statistics, name, wanted, method, power_of_two)
            for name in self.statistics.observers
        }


def calibrated(
    model: Any,
    source: str,
    frames: int,
    equalise: bool = True,
    threads: Optional[int] = None,
    progress: Optional[Callable[[int], None]] = None,
    skip_bad: bool = False,
) -> Calibrated:
    """Shows the frames of `source` (as `open_frames` takes it) to a model (onnx.ModelProto, FP32, `frame` → `labels`).

    Raises GradsegError for a source that does not open or a model in INT8 already.
    """
    if is_quantised(model):
        raise GradsegError("the model is in INT8 already; calibrate its FP32 form")
    base = equalised(model) if equalise else model
    tensors, means = observed_tensors(base)
    shown = open_frames(source, frames, skip_bad)
    statistics = statistics_from_frames(base, tensors, shown, means, threads, progress)
    return Calibrated(base, statistics, equalise, source)


def observed_tensors(model: Any, targets: Iterable[str] = (*TARGETS, NATIVE.name)) -> Tuple[List[str], List[str]]:
    """(tensors whose ranges, tensors whose channel means) are needed to quantise a model for any of the targets."""
    graph = Graph(model)
    ranges: Dict[str, None] = {}
    means: Dict[str, None] = {}
    for target in targets:
        plan = plan_for(model, target)
        ranges.update(dict.fromkeys(plan.observed()))
        means.update(dict.fromkeys(mean_tensors(graph, plan)))
    return list(ranges), list(means)


def int8_model(
    model: Any,
    activations: Mapping[str, Quantisation],
    means: Mapping[str, np.ndarray[Any, Any]],
    settings: Settings,
    form: Optional[Form] = None,
    note: Optional[Mapping[str, Any]] = None,
) -> Any:
    """Writes the Q/DQ model.

    Args:
        model: FP32, the one that the scales are of (equalised if they are of the equalised one).
        activations: a scale for every tensor that `plan_for(model, settings.target)` observes.
        means: mean per channel of the convolutions' inputs, for bias correction.
        form: a rewriting for the target's engine that keeps the names of activations, applied first.
        note: what to keep in the metadata about the calibration, beside the settings.
    """
    ready = model if form is None else form(model)
    plan = plan_for(ready, settings.target, settings.keep_float)
    if settings.bias_correction:
        ready = bias_corrected(ready, plan, settings.target, settings.weights(), means)
    result = quantised(ready, plan, activations, settings.target, settings.weights())
    packed, total = count_quantised(result)
    known = {**asdict(settings), **(note or {}), "int8_convolutions": packed, "convolutions": total}
    metadata.set_metadata(
        result,
        {
            metadata.PRECISION: "int8",
            metadata.TARGET: settings.target,
            metadata.CALIBRATION: json.dumps(known, sort_keys=True),
        },
    )
    return result


def int8_from_calibrated(
    found: Calibrated, settings: Settings, form: Optional[Form] = None, note: Optional[Mapping[str, Any]] = None
) -> Any:
    """The Q/DQ model for a target and a method from statistics that were gathered once."""
    activations = found.activations(settings.target, settings.method, settings.power_of_two)
    known = {"source": found.source, "frames": found.statistics.frames, "equalise": found.equalised, **(note or {})}
    return int8_model(found.model, activations, found.statistics.means, settings, form, known)


def int8_from_fp32(
    model: Any,
    source: str,
    settings: Settings,
    threads: Optional[int] = None,
    progress: Optional[Callable[[int], None]] = None,
    form: Optional[Form] = None,
) -> Any:
    """onnx.ModelProto (FP32, `frame` → `labels`) → a new one with Q/DQ pairs, calibrated on `source`."""
    found = calibrated(model, source, settings.frames, settings.equalise, threads, progress)
    return int8_from_calibrated(found, settings, form)
