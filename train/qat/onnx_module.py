"""A deployment-form ONNX graph of our family as a trainable PyTorch module, with fake quantisation where INT8 has it.

Training the exported graph itself, in place of the network that it came from, means that nothing lies between what
training sees and what runs: BatchNorms are folded, ReLUs and sums stand where the engine has them, and the tensors that
are quantised carry the names that the writer of the INT8 graph uses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterator, Mapping, Optional

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from gradseg.base.errors import GradsegError
from gradseg.calibration.qdq.plan import COMPUTE, pixel_tensors, plan_for
from gradseg.calibration.qdq.quantise import WeightSettings, channel_axis, weight_scales
from gradseg.calibration.qdq.targets import MOST, REDUCED, Quantisation, Target, target_named, weight_scale
from gradseg.graphs.graph import Graph, attribute
from gradseg.train.qat.fake_quant import ActivationQuantiser, WeightQuantiser
from gradseg.train.qat.onnx_operators import Operator, operator

Array = np.ndarray[Any, Any]
FINE = 2047  # 12 bits: with inputs of 8 bits a sum of 16 products fits a float32's 24
IDENTICAL = ("Reshape", "Transpose", "MaxPool")  # a quantised tensor stays on its grid


@dataclass(frozen=True)
class Folded:
    """A convolution of the deployment form. weight: float32 as ONNX has it; bias: float32 (outputs,)."""

    weight: Array
    bias: Array


@dataclass(frozen=True)
class _Node:
    name: str
    op_type: str
    inputs: tuple[str, ...]
    output: str
    run: Operator
    last_uses: tuple[str, ...]  # tensors that nothing reads afterwards


class OnnxModule(nn.Module):
    """Frames (N, H, W, 3) in BGR, uint8 or their values as floats → float logits (N, C, H, W).

    `model` is in the deployment form, batch 1 and a fixed size; the module takes any batch of that size. Weights and
    biases of its convolutions are parameters, named after the nodes, so that modules of one network at different sizes
    share a state dict. `quantise` adds fake quantisation. Raises GradsegError naming an operator that it does not know.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        graph = Graph(model)
        self.weights, self.biases = nn.ParameterDict(), nn.ParameterDict()
        self.activation_steps, self.weight_steps = nn.ModuleDict(), nn.ModuleDict()
        self.fine_steps = nn.ModuleDict()  # of layers that stay float
        self.masks: dict[str, Tensor] = {}  # by node: weights that are held at zero where the mask is
        self.sources: dict[str, str] = {}  # by quantised tensor: the tensor whose scale it has
        self.pixels = pixel_tensors(graph)
        self.input = graph.model.graph.input[0].name
        body, self.logits, self.interleaved = _until_argmax(graph)
        self.repeats: dict[str, int] = {}  # by node: how often the graph holds a copy of the bias
        last: dict[str, str] = {}
        for node in body:
            last.update(dict.fromkeys(node.input, node.name))
        self.nodes = [self._node(graph, node, last) for node in body]

    def _node(self, graph: Graph, node: onnx.NodeProto, last: Mapping[str, str]) -> _Node:
        if node.op_type in COMPUTE:
            weight = graph.weights.get(node.input[1])
            if weight is None:
                raise GradsegError(f"{node.name}: its weights are not constant; it cannot be fine-tuned")
            if self.interleaved and node.output[0] in _before_reshape(graph, self.logits):
                self.repeats[node.name] = 4  # one bias per class, four output pixels
            self._add_parameters(graph, node, weight)
        run = operator(graph, node)
        uses = tuple(name for name in dict.fromkeys(node.input) if last[name] == node.name and name != self.logits)
        inputs = tuple(name for name in node.input if name and name not in graph.weights)
        return _Node(node.name, node.op_type, inputs, node.output[0], run, uses)

    def _add_parameters(self, graph: Graph, node: onnx.NodeProto, weight: Array) -> None:
        group = attribute(node, "group", 1)
        outputs = weight.shape[0] if node.op_type == "Conv" else weight.shape[1] * group
        bias = np.zeros(outputs, np.float32)  # one that is all zero was dropped by an export pass
        if len(node.input) > 2 and node.input[2]:
            bias = graph.weights[node.input[2]]
        bias = bias[: outputs // self.repeats.get(node.name, 1)]
        self.weights[_key(node.name)] = nn.Parameter(torch.from_numpy(weight.astype(np.float32)))
        self.biases[_key(node.name)] = nn.Parameter(torch.from_numpy(bias.astype(np.float32)))

    def quantise(
        self,
        model: onnx.ModelProto,
        target: str,
        activations: Mapping[str, Quantisation],
        power_of_two: bool,
        learned: bool,
        reduce_range: bool = False,
    ) -> None:
        """Adds fake quantisation as `calibration.quantise` plans it for `target`.

        Biases are rounded to the accumulator's step, input scale times weight scale, for every target: engines with
        integer sums do that themselves, and here it is seen. Where all scales are powers of two, the label head, which
        stays float, gets weights of 12 bits: its sums are exact then, too, in whatever order an engine takes them.

        Args:
            model: the model that the module was made of. Weight scales start from the module's own weights.
            activations: for every observed tensor of the plan; GradsegError naming one that is missing.
            power_of_two: activation scales are (targets that want them have them anyway).
            learned: scales are parameters; else they stay as they are.
            reduce_range: weights within ±63.
        """
        wanted, plan, graph = target_named(target), plan_for(model, target), Graph(model)
        powers = power_of_two or wanted.power_of_two
        missing = [name for name in plan.observed() if name not in activations]
        if missing:
            raise GradsegError(f"no range for tensor {missing[0]} ({len(missing)} missing); calibrate this model again")
        for name in plan.observed():
            exact = name in self.pixels
            start = Quantisation(1.0, 0, False) if exact and not wanted.signed else activations[name]
            self.activation_steps[_key(name)] = ActivationQuantiser(start, powers, learned and not exact)
        self.sources = dict(plan.tensors)
        for node in graph.nodes:
            if node.op_type in COMPUTE and node.name in plan.nodes:
                self._quantise_weights(node, wanted, learned, reduce_range)
            elif node.op_type in COMPUTE and wanted.power_of_two and node.input[0] in self.sources:
                weight = self.weight_of(node.name).detach().numpy()
                scales = weight_scale(weight, None, FINE // 2, power_of_two=True)  # room to grow
                self.fine_steps[_key(node.name)] = WeightQuantiser(scales, None, FINE, True, learned=False)

    def _quantise_weights(self, node: onnx.NodeProto, target: Target, learned: bool, reduce_range: bool) -> None:
        settings = WeightSettings(reduce_range=reduce_range)
        scales = weight_scales(self.weight_of(node.name).detach().numpy(), node, target, settings)
        axis, most = channel_axis(node, target, settings), REDUCED if reduce_range else MOST
        self.weight_steps[_key(node.name)] = WeightQuantiser(scales, axis, most, target.power_of_two, learned)

    def forward(self, frames: Tensor) -> Tensor:
        values = {self.input: frames}
        for node in self.nodes:
            inputs = [values[name] for name in node.inputs]
            if node.op_type in COMPUTE:
                inputs += self._operands(node)
            result = node.run(*inputs)
            source = self.sources.get(node.output)
            if source is not None and not (node.op_type in IDENTICAL and node.inputs[0] in self.sources):
                result = self.activation_steps[_key(source)](result)
            values[node.output] = result
            for name in node.last_uses:
                values.pop(name, None)
        logits = values[self.logits]
        if not self.interleaved:
            return logits
        count, _, classes, height, width = logits.shape
        by_pixel = logits.view(count, 2, 2, classes, height, width).permute(0, 3, 4, 1, 5, 2)
        return by_pixel.reshape(count, classes, 2 * height, 2 * width)

    def _operands(self, node: _Node) -> list[Tensor]:
        """Weight and bias of a convolution as they run: masked, on the grid, the bias repeated."""
        key = _key(node.name)
        weight, bias = self.weights[key], self.biases[key]
        if node.name in self.masks:
            weight = weight * self.masks[node.name]
        steps = self.weight_steps if key in self.weight_steps else self.fine_steps
        if key in steps:
            quantiser = steps[key]
            assert isinstance(quantiser, WeightQuantiser)
            weight = quantiser(weight)
            scale = self._input_scale(node.inputs[0])
            if scale is not None:
                bias = quantiser.bias(bias, scale)
        return [weight, bias.repeat(self.repeats.get(node.name, 1))]

    def _input_scale(self, tensor: str) -> Optional[Tensor]:
        if tensor in self.sources:
            quantiser = self.activation_steps[_key(self.sources[tensor])]
            assert isinstance(quantiser, ActivationQuantiser)
            scale: Tensor = quantiser.step()
            return scale
        return torch.ones(()) if tensor in self.pixels else None

    @torch.no_grad()
    def folded(self) -> dict[str, Folded]:
        """Node name → its convolution as it runs: pruned, on the grid."""
        found = {}
        for node in self.nodes:
            if node.op_type in COMPUTE:
                weight, bias = self._operands(node)
                found[node.name] = Folded(weight.cpu().numpy().copy(), bias.cpu().numpy().copy())
        return found

    def convolutions(self) -> list[str]:
        """The nodes that have weights, in order."""
        return [node.name for node in self.nodes if node.op_type in COMPUTE]

    def weight_of(self, node: str) -> nn.Parameter:
        """The float weights that are trained."""
        return self.weights[_key(node)]  # type: ignore[no-any-return]

    def bias_of(self, node: str) -> nn.Parameter:
        """The float bias that is trained: of the label head one value per class."""
        return self.biases[_key(node)]  # type: ignore[no-any-return]

    def step_parameters(self) -> Iterator[nn.Parameter]:
        """The learned steps, none if they are fixed."""
        yield from self.activation_steps.parameters()
        yield from self.weight_steps.parameters()

    def activation_quantisations(self) -> dict[str, Quantisation]:
        """Tensor → its quantisation, for every tensor that owns one."""
        names = dict.fromkeys(self.sources.values())
        return {name: self.activation_steps[_key(name)].quantisation() for name in names}  # type: ignore[operator]

    def weight_scales(self) -> dict[str, Array]:
        """Node name → the float32 scales of its weights."""
        names = [node.name for node in self.nodes if _key(node.name) in self.weight_steps]
        return {name: self.weight_steps[_key(name)].scales() for name in names}  # type: ignore[operator]


def _key(name: str) -> str:
    """A name as PyTorch allows it for a parameter."""
    return name.replace(".", ":")


def _until_argmax(graph: Graph) -> tuple[list[onnx.NodeProto], str, bool]:
    """(nodes that the argmax needs in order, its input, whether that is (1, 4, C, h, w) of four interleaved maps)."""
    argmax = [node for node in graph.nodes if node.op_type == "ArgMax"]
    if len(argmax) != 1 or attribute(argmax[0], "axis") not in (1, 2):
        raise GradsegError("fine-tuning needs a deployment-form model, which ends in one ArgMax over its classes")
    needed, body = {argmax[0].input[0]}, []
    for node in reversed(graph.nodes):
        if set(node.output) & needed:
            needed.update(node.input)
            body.append(node)
    return body[::-1], argmax[0].input[0], attribute(argmax[0], "axis") == 2


def _before_reshape(graph: Graph, tensor: str) -> list[str]:
    producer = graph.producer(tensor)
    return [producer.input[0]] if producer is not None and producer.op_type == "Reshape" else []
