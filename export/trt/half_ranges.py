"""Which operators of a network must stay in FP32 when the rest computes in FP16, and why. Needs onnx; no torch.

float16 holds magnitudes up to 65504, with 11 significant bits from 2^-14 on. A network is run in FP32 on frames; where
the largest magnitude of a tensor, doubled, is beyond 65504, or, halved, is no normal number any more, the operators
that write and read it are kept. The factor of two is for frames that were not seen and for partial sums inside a
kernel that accumulates in float16: it costs one bit of the 40 octaves that float16 spans.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple

import numpy as np
import onnx

from gradseg.calibration.qdq.plan import COMPUTE
from gradseg.calibration.ranges.collect import statistics_from_frames
from gradseg.graphs.graph import Graph, attribute, shapes_of
from gradseg.graphs.passes.to_half import LARGEST, SATURATING, SMALLEST, float_tensors

SAFETY = 2.0
UNIT = 2.0**-11  # float16's relative rounding error
COARSE = 2.0**-8  # relative error of a single constant that is too much
# whether kernels sum in float16 is not documented, so nothing that they sum may pass its range on the way
SUMS = ("GlobalAveragePool", "ReduceMean", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp")
INTEGER_SCALES = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Kept:
    """An operator that stays in FP32. node: its name in the ONNX."""

    node: str
    why: str


def magnitudes(
    model: onnx.ModelProto, frames: Iterable[np.ndarray[Any, Any]], threads: Optional[int] = None
) -> Dict[str, float]:
    """Float tensor → its largest magnitude over frames, uint8 BGR (H, W, 3) of any size, consumed one at a time.

    Memory does not grow with the network's depth. Raises what `statistics_from_frames` does.
    """
    constant = {tensor.name for tensor in model.graph.initializer}
    unpacked = (node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constant)
    weights = {name for node in unpacked for name in node.output}
    tensors = [name for name in float_tensors(model) if name not in weights]
    seen = statistics_from_frames(model, tensors, frames, threads=threads).observers
    return {name: max(-seen[name].low, seen[name].high) for name in tensors}


def kept_in_float(model: onnx.ModelProto, largest: Mapping[str, float], typed: bool = True) -> List[Kept]:
    """The operators to keep in FP32, in the graph's order, each with the first reason found.

    Args:
        model: FP32, or INT8 with Q/DQ; every node with a name of its own.
        largest: from `magnitudes` of that model.
        typed: scales become float16, too. Otherwise the builder chooses types itself; operators in INT8 are left to it.
    """
    graph = Graph(model)
    checker = _Checker(graph, largest, shapes_of(model), typed)
    why: Dict[str, str] = {}
    for node in graph.nodes:
        reason = checker.reason(node)
        if reason:
            why[node.name] = reason
    for node in graph.nodes:  # an activation function computes as the convolution before it, so that they stay fused
        before = graph.producer(node.input[0]) if node.op_type in ("Relu", "Clip", "LeakyRelu") else None
        if before is None or before.op_type not in COMPUTE or len(graph.consumers(node.input[0])) > 1:
            continue
        for one, other in ((node, before), (before, node)):
            if one.name in why:
                why.setdefault(other.name, why[one.name])
    nodes = [node for node in graph.nodes if node.op_type not in INTEGER_SCALES]
    if not typed:
        nodes = [node for node in nodes if not checker.in_int8(node)]
    return [Kept(node.name, why[node.name]) for node in nodes if node.name in why]


class _Checker:
    """Finds the reason, if there is one, why a node cannot compute in float16."""

    def __init__(
        self, graph: Graph, largest: Mapping[str, float], shapes: Mapping[str, List[int]], typed: bool
    ) -> None:
        self.graph, self.largest, self.shapes, self.typed = graph, largest, shapes, typed
        self.writer = {name: node for node in graph.nodes for name in node.output}
        self.bad: Dict[str, str] = {}
        for name, value in largest.items():
            if value * SAFETY > LARGEST:
                self.bad[name] = f"values up to {value:.3g}"
            elif 0.0 < value < SAFETY * SMALLEST:
                self.bad[name] = f"values of {value:.3g} at most"
        if typed:
            self._scales()

    def _scales(self) -> None:
        """Tensors whose INT8 scale is no normal number of float16."""
        for node in self.graph.nodes:
            if node.op_type in INTEGER_SCALES and node.input[0] not in self.graph.weights:
                scale = float(self.graph.weights[node.input[1]].max())
                if not SMALLEST <= scale <= LARGEST:
                    name = node.input[0] if node.op_type == "QuantizeLinear" else node.output[0]
                    self.bad.setdefault(name, f"INT8 scale {scale:.3g}")

    def reason(self, node: onnx.NodeProto) -> Optional[str]:
        for name in [*node.output, *node.input]:
            if name in self.bad:
                return self.bad[name]
        if node.op_type in INTEGER_SCALES:
            return None
        return self._sum(node) or self._constants(node)

    def in_int8(self, node: onnx.NodeProto) -> bool:
        """Whether a node reads what was dequantised."""
        return any(name in self.writer and self.writer[name].op_type in INTEGER_SCALES for name in node.input)

    def _sum(self, node: onnx.NodeProto) -> Optional[str]:
        if node.op_type not in SUMS or node.input[0] not in self.largest:
            return None
        before, after = self.shapes[node.input[0]], self.shapes[node.output[0]]
        count = int(np.prod(before)) // max(1, int(np.prod(after)))
        reach = self.largest[node.input[0]] * count
        return f"sums up to {reach:.3g}" if reach > LARGEST else None

    def _constants(self, node: onnx.NodeProto) -> Optional[str]:
        if node.op_type == "Resize":
            return None  # its constants are no values
        for index, name in enumerate(node.input):
            exact, rounded = self._weights(name)
            if exact is None or exact.size == 0:
                continue
            if node.op_type in SATURATING:
                exact, rounded = np.clip(exact, -LARGEST, LARGEST), np.clip(rounded, -LARGEST, LARGEST)
            finite = np.abs(exact[np.isfinite(exact)])
            if finite.size and finite.max() > LARGEST:
                return f"a weight of {finite.max():.3g}"
            if self._loses(node, index, exact, rounded):
                return f"weights of {finite.max():.3g} at most" if finite.max() < SMALLEST else "small weights"
        return None

    def _weights(self, name: str) -> Tuple[Any, Any]:
        """A node's constant operand in float64, exact and as the float16 form has it; (None, None) for anything else.

        Of dequantised weights it is their scales that are rounded.
        """
        with np.errstate(over="ignore"):
            value = self.graph.weights.get(name)
            if value is not None and value.dtype == np.float32:
                return value.astype(np.float64), value.astype(np.float16).astype(np.float64)
            node = self.writer.get(name)
            if not self.typed or node is None or node.op_type != "DequantizeLinear":
                return None, None
            packed = self.graph.weights.get(node.input[0])
            if packed is None:
                return None, None
            scale = self.graph.weights[node.input[1]]
            view = [1] * packed.ndim
            if scale.size > 1:
                view[attribute(node, "axis", 1)] = -1
            wide = packed.astype(np.float64)
            rounded = scale.astype(np.float16).astype(np.float64)
            return wide * scale.reshape(view), wide * rounded.reshape(view)

    def _loses(self, node: onnx.NodeProto, index: int, exact: Any, rounded: Any) -> bool:
        """Whether rounding changes more than float16 does anyway, because of numbers below its normal ones.

        Taken is the rounding error beyond 2^-11 of each weight. What it can do to an output at most, the largest input
        times the sum of these errors over a channel's weights, must stay below 2^-11 of the largest output.
        """
        error = np.abs(np.where(np.isfinite(exact), rounded - exact, 0.0))
        if exact.size == 1 or node.op_type == "BatchNormalization":  # its variances are divided by
            return bool((error > COARSE * np.abs(exact)).any())
        beyond = np.maximum(error - UNIT * np.abs(exact), 0.0)
        if not beyond.any():
            return False
        effect = beyond.max()
        others = [self.largest[name] for name in node.input if name in self.largest and name != node.input[index]]
        if node.op_type in (*COMPUTE, "MatMul", "Gemm") and index < 2:
            effect = beyond.sum(axis=_summed(node, index, exact.ndim)).max() * max(others, default=1.0)
        elif node.op_type in ("Mul", "Div", "PRelu"):
            effect *= max(others, default=1.0)
        return bool(effect > UNIT * max((self.largest.get(name, 0.0) for name in node.output), default=0.0))


def _summed(node: onnx.NodeProto, index: int, ndim: int) -> Tuple[int, ...]:
    """The axes of a weight tensor over which an output sums."""
    if node.op_type in COMPUTE:
        output = 0 if node.op_type == "Conv" else 1
        return tuple(axis for axis in range(ndim) if axis != output)
    flipped = bool(attribute(node, "transB" if index else "transA", 0))
    return ((ndim - 2) if bool(index) != flipped else (ndim - 1),)


def kept_text(kept: List[Kept], shown: int = 3) -> str:
    """'2 layers kept in FP32: a (values up to 1e+05), b (…)'; '' for none. At most `shown` are named."""
    if not kept:
        return ""
    named = ", ".join(f"{each.node} ({each.why})" for each in kept[:shown])
    more = f" and {len(kept) - shown} more" if len(kept) > shown else ""
    return f"{len(kept)} {'layer' if len(kept) == 1 else 'layers'} kept in FP32: {named}{more}"
