"""FP32 deployment-form ONNX and real frames → its INT8 form, what it was calibrated on in the metadata.

    frames → `calibrated`: statistics of every tensor, once → scales for a target and a method → `Int8Parts.int8`

One pass over the frames serves every target and every method.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Tuple, Union

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.calibration.qdq.layers import Layer, layers_of, rounded
from gradseg.calibration.qdq.plan import Plan, plan_for, result_of
from gradseg.calibration.qdq.quantise import WeightSettings, mark_int8, quantised
from gradseg.calibration.qdq.repair import bias_corrected, equalised, mean_tensors
from gradseg.calibration.qdq.targets import NATIVE, TARGETS, Quantisation, target_named
from gradseg.calibration.ranges.collect import Statistics, statistics_from_frames
from gradseg.calibration.ranges.ranges_file import quantisation_of
from gradseg.graphs.frames import FrameSource, open_frames
from gradseg.graphs.graph import Graph, is_quantised

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
        return WeightSettings(self.per_channel, self.reduce_range)


@dataclass(frozen=True)
class Calibrated:
    """A model in FP32, equalised if that was asked for, with the statistics of what its tensors hold on real frames."""

    model: Any  # onnx.ModelProto
    statistics: Statistics
    equalised: bool
    source: str

    @property
    def note(self) -> Dict[str, Any]:
        """What a model's metadata say of the frames."""
        return {"source": self.source, "frames": self.statistics.frames, "equalise": self.equalised}

    def activations(self, target: str, method: str, power_of_two: bool = False) -> Dict[str, Quantisation]:
        """The scales of every observed tensor."""
        wanted = target_named(target)
        return {
            name: quantisation_of(self.statistics, name, wanted, method, power_of_two)
            for name in self.statistics.observers
        }


def calibrated(
    model: Any,
    source: Union[str, FrameSource],
    frames: int,
    equalise: bool = True,
    threads: Optional[int] = None,
    skip_bad: bool = False,
    show: bool = False,
) -> Calibrated:
    """Shows the frames of `source`, open or as `open_frames` takes it, to a model (onnx.ModelProto, FP32).

    show: says on a terminal how many frames are done.

    Raises GradsegError for a source that does not open or a model in INT8 already.
    """
    if is_quantised(model):
        raise GradsegError("the model is in INT8 already; calibrate its FP32 form")
    base = equalised(model) if equalise else model
    tensors, means = observed_tensors(base)
    shown = source if isinstance(source, FrameSource) else open_frames(source, frames, skip_bad)
    statistics = statistics_from_frames(base, tensors, shown, means, threads, frames if show else 0)
    return Calibrated(base, statistics, equalise, shown.name)


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


@dataclass(frozen=True)
class Int8Parts:
    """A network of which any part, or all, can be quantised.

    model: FP32 (onnx.ModelProto), equalised if the scales are of the equalised one. activations: a scale for every
    tensor that the target's plan observes. means: mean per channel of the convolutions' inputs, for bias correction.
    form: a rewriting for the target's engine that keeps the names of activations, applied first.
    """

    model: Any
    activations: Mapping[str, Quantisation]
    means: Mapping[str, np.ndarray[Any, Any]]
    settings: Settings
    form: Optional[Form] = None

    @staticmethod
    def of(found: Calibrated, settings: Settings, form: Optional[Form] = None) -> Int8Parts:
        """From statistics that were gathered."""
        scales = found.activations(settings.target, settings.method, settings.power_of_two)
        return Int8Parts(found.model, scales, found.statistics.means, settings, form)

    @cached_property
    def ready(self) -> Any:
        """The FP32 model in the form that is quantised."""
        return self.model if self.form is None else self.form(self.model)

    @cached_property
    def whole(self) -> Plan:
        """Everything that the target computes in INT8, but for what the settings keep in float."""
        return plan_for(self.ready, self.settings.target, self.settings.keep_float)

    def layers(self) -> List[Layer]:
        return layers_of(self.model, self.whole)

    def only(self, layer: Layer) -> Plan:
        """The plan that quantises one layer: its weights, and those activations that the target rounds for its sake.

        These are its inputs and, but for `trt` which rounds inputs alone, its result after the ReLU. On the CPU a sum
        runs in INT8 only beside another operator that does; here it is quantised nevertheless.
        """
        others = (name for name in self.whole.nodes if name not in layer.nodes)
        plan = plan_for(self.ready, self.settings.target, (*self.settings.keep_float, *others))
        if layer.name in plan.nodes:
            return plan
        graph = Graph(self.ready)
        node = next(each for each in graph.nodes if each.name == layer.name)
        tensors = [name for name in [*node.input, result_of(graph, node)] if name in self.whole.tensors]
        return Plan((layer.name,), {name: self.whole.tensors[name] for name in tensors})

    def written(self, plan: Plan) -> Any:
        """The Q/DQ model in which that much is quantised."""
        model, target, weights = self.ready, self.settings.target, self.settings.weights()
        if self.settings.bias_correction:
            model = bias_corrected(model, plan, target, weights, self.means)
        return quantised(model, plan, self.activations, target, weights)

    def int8(self, note: Optional[Mapping[str, Any]] = None) -> Any:
        """The Q/DQ model, with the settings, and `note` about its calibration, in the metadata."""
        result = self.written(self.whole)
        mark_int8(result, self.settings.target, {**asdict(self.settings), **(note or {})})
        return result

    def alone(self, layer: Layer) -> Any:
        """The Q/DQ model in which one layer is quantised: what else reads its inputs reads them in float."""
        plan = self.only(layer)
        model = self.written(plan)
        own = [node for node in model.graph.node if node.name in layer.nodes]
        handed = {layer.output, *(name for node in own for name in node.output)}
        inputs = {rounded(model, name): name for name in plan.tensors if name not in handed}
        for node in model.graph.node:
            for index, name in enumerate(node.input):
                if node.name not in layer.nodes and name in inputs:
                    node.input[index] = inputs[name]
        return model


def int8_from_calibrated(found: Calibrated, settings: Settings, form: Optional[Form] = None) -> Any:
    """The Q/DQ model for a target and a method from statistics that were gathered once."""
    return Int8Parts.of(found, settings, form).int8(found.note)
