"""A network's layers as INT8 sees them, and the network with any of them quantised. Needs onnx; no torch.

A layer is a convolution or deconvolution, or a sum or concatenation, that the target computes in INT8, with the
pooling, resizing and shuffling that hands on its result. Where that follows an operator in float, it is a layer of its
own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, List, Mapping, Optional, Tuple

import numpy as np

from gradseg.calibration.qdq.int8 import Calibrated, Form, Settings
from gradseg.calibration.qdq.plan import COMPUTE, PASS_THROUGH, Plan, pixel_tensors, plan_for, result_of
from gradseg.calibration.qdq.quantise import quantised
from gradseg.calibration.qdq.repair import bias_corrected
from gradseg.calibration.qdq.targets import Quantisation
from gradseg.graphs.graph import Graph, shapes_of

JOINING = ("Add", "Concat")


@dataclass(frozen=True)
class Layer:
    """name: its first node's. nodes: all that belong to it. output: the tensor it hands on, after the ReLU.

    macs: multiply-accumulates per frame, weights: how many; 0 for sums. values: numbers in the output.
    """

    name: str
    operator: str
    nodes: Tuple[str, ...]
    output: str
    macs: int
    weights: int
    values: int


def layers_of(model: Any, plan: Plan) -> List[Layer]:
    """The layers of a deployment-form model (onnx.ModelProto) that a plan quantises, in the network's order.

    The plan may be of another form of the model, as long as nodes keep their names.
    """
    graph, shapes, chosen = Graph(model), shapes_of(model), set(plan.nodes)
    exact, found = pixel_tensors(graph), []
    for node in graph.nodes:
        leads = node.op_type in (*COMPUTE, *JOINING) or (node.input[0] in plan.tensors and node.input[0] not in exact)
        if node.name not in chosen or not leads:
            continue
        output, macs, weights = result_of(graph, node), 0, 0
        if node.op_type in COMPUTE:
            weights = int(graph.weights[node.input[1]].size)
            # every weight meets every pixel of the smaller of the two maps once
            macs = weights * int(np.prod(shapes[node.output[0] if node.op_type == "Conv" else node.input[0]][2:]))
        nodes = (node.name, *(name for name in _handed_on(graph, output) if name in chosen))
        chosen.difference_update(nodes)
        values = int(np.prod(shapes[node.output[0]]))
        found.append(Layer(node.name, node.op_type, nodes, output, macs, weights, values))
    return found


def _handed_on(graph: Graph, tensor: str) -> List[str]:
    """The names of the poolings, resizings and shuffles that a tensor goes through."""
    found: List[str] = []
    for node in graph.consumers(tensor):
        if node.op_type in PASS_THROUGH and node.input[0] == tensor:
            found += [node.name, *_handed_on(graph, node.output[0])]
    return found


@dataclass(frozen=True)
class Int8Parts:
    """A network of which any part can be quantised.

    model: FP32 (onnx.ModelProto), equalised if the scales are of the equalised one. activations: a scale for every
    tensor that the target's plan observes. means: for bias correction. form: as for `int8.int8_model`.
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


def rounded(model: Any, tensor: str) -> str:
    """What the operators of a quantised model read in place of a tensor: it after its Q/DQ pair, or itself."""
    readers = {(node.op_type, node.input[0]): node.output[0] for node in model.graph.node if node.input}
    packed = readers.get(("QuantizeLinear", tensor))
    return tensor if packed is None else str(readers["DequantizeLinear", packed])
