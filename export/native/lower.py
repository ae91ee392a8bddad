"""Q/DQ model of the calibration target `native` → program of the native engine. Needs onnx; no torch.

Every QuantizeLinear is a tensor in memory; what lies between two of them becomes one operator: a convolution with its
residual sum and ReLU, an upsampling, a pooling. A concatenation is several operators that write side by side, a
deconvolution one for each phase of its output pixels, a channel shuffle an order of channels in memory.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import onnx

from gradseg.calibration.qdq.plan import COMPUTE, fused_branch, is_relu
from gradseg.export.native import ops
from gradseg.export.native.head import head_of
from gradseg.export.native.ops import Convolution, Stored, Target
from gradseg.export.native.reader import (
    SHUFFLE,
    NotLowered,
    Reader,
    Weights,
    frame_of,
    keeps_size,
    one_input_each,
    windows,
)
from gradseg.graphs.graph import attribute
from gradseg.models import metadata
from gradseg.runtime.native.checks import Problem, check_program, halo_needed
from gradseg.runtime.native.program import BLOCK, EIGHTHS, HEAD, S16, U8, NativeOp, NativeProgram, NativeTensor


def native_program(model: onnx.ModelProto) -> NativeProgram:
    """Lowers a Q/DQ model in the deployment form, see `native_form`; NotLowered names what has no operator."""
    return lowered(model)[0]


def lowered(model: onnx.ModelProto) -> Tuple[NativeProgram, Dict[str, Stored]]:
    """The program, and where the model's float tensors lie in its memory."""
    known = {entry.key: entry.value for entry in model.metadata_props}
    spec = metadata.spec_from_metadata(known, "the Q/DQ model")
    lowering = _Lowering(Reader(model))
    lowering.run()
    calibration = metadata.calibration_of(known) or {}
    program = NativeProgram(spec, lowering.tensors, lowering.ops, "int8", calibration)
    try:
        check_program(program)
    except Problem as problem:
        raise NotLowered(None, str(problem)) from problem
    return program, lowering.known


class _Lowering:
    """The state of lowering one model. known: float tensor's name → where it lies in memory."""

    def __init__(self, reader: Reader) -> None:
        self.reader, self.graph, self.writer = reader, reader.graph, reader.writer
        self.tensors: List[NativeTensor] = []
        self.ops: List[NativeOp] = []
        self.known: Dict[str, Stored] = {}
        self.shuffled = reader.shuffled()

    def run(self) -> None:
        frame, self.known = frame_of(self.reader)
        self.tensors.append(frame)
        for node in self.graph.nodes:
            if node.op_type == "QuantizeLinear":
                self._store(node)
        self._head()
        for index, tensor in enumerate(self.tensors):
            tensor.halo = halo_needed(self.ops, self.tensors, index)

    def _new(self, channels: int, scale: float, zero: int, height: int, width: int, dtype: int = U8) -> Target:
        self.tensors.append(NativeTensor(height, width, ops.stored_channels(channels), 0, dtype, zero))
        return Target(len(self.tensors) - 1, scale, zero, height, width)

    def _store(self, node: Any) -> None:
        """The operators that compute what a QuantizeLinear rounds."""
        scale, zero = self.reader.scale_zero(node)
        channels, height, width = self.reader.map_shape(node.input[0])
        target = self._new(channels, scale, zero, height, width)
        order = self._emit(node.input[0], target, None)
        for reader in self.graph.consumers(node.output[0]):
            if reader.op_type != "DequantizeLinear" or self.reader.scale_zero(reader) != (scale, zero):
                raise NotLowered(reader, "reads 8-bit integers")
            self.known[reader.output[0]] = Stored(target.index, scale, np.full(channels, zero), order, height, width)

    def _stored(self, name: str) -> Stored:
        """Where a float tensor lies that operators read."""
        if name in self.known:
            return self.known[name]
        core, relu, shuffle = self._peeled(name)
        node = self.writer.get(core)
        if core in self.known and not relu:
            found = ops.reordered(self.known[core], shuffle)
        elif node is not None and node.op_type == "MaxPool" and core == name:
            found = self._pooled(node)
        else:
            raise NotLowered(node, "its result is not quantised")
        self.known[name] = found
        return found

    def _peeled(self, name: str) -> Tuple[str, bool, Any]:
        """What lies before ReLU and channel shuffles: (a tensor, whether there is a ReLU, its channel for each)."""
        relu, order = False, np.arange(self.reader.map_shape(name)[0])
        while name not in self.known:
            node = self.writer.get(name)
            if node is not None and is_relu(self.graph, node):
                relu, name = True, node.input[0]
            elif node is not None and node.op_type in SHUFFLE:
                name, inner = self.reader.shuffle_before(node)
                order = inner[order]
            else:
                break
        return name, relu, order

    def _emit(self, name: str, target: Target, want: Optional[Any]) -> Any:
        """Operators that compute a float tensor into a target; gives where each of its channels lies in it.

        want: where they shall lie; None: anywhere.
        """
        core, relu, shuffle = self._peeled(name)
        if relu and target.zero != 0:  # 8 bits clip at 0: first without zero point, then moved
            whole = self._new(len(shuffle), target.scale, 0, target.height, target.width)
            order = self._emit(name, whole, None)
            source = Stored(whole.index, whole.scale, np.zeros(len(order)), order, whole.height, whole.width)
            return self._copy(source, target, want)
        self._check_limits(name, target)
        if core in self.known:
            return self._copy(ops.reordered(self.known[core], shuffle), target, want)
        node = self.writer.get(core)
        if node is None or node.op_type not in (*COMPUTE, "Add", "Resize", "Concat", "MaxPool"):
            raise NotLowered(node)
        if node.op_type in COMPUTE:
            return self._conv(node, shuffle, target, want)
        if node.op_type == "Add":
            return self._add(node, shuffle, target)
        if node.op_type == "Resize":
            return self._resize(node, shuffle, target)
        if node.op_type == "Concat":
            return self._concat(node, target)[shuffle]
        if not self._poolable(node, target):
            return self._copy(ops.reordered(self._stored(core), shuffle), target, want)
        return self._pool(node, target, np.ones(len(shuffle)), np.zeros(len(shuffle)), shuffle)

    def _check_limits(self, name: str, target: Target) -> None:
        """A ReLU6 must end where its 8 bits end."""
        node = self.writer.get(name)
        while node is not None and (is_relu(self.graph, node) or node.op_type in SHUFFLE):
            limited = node.op_type == "Clip" and len(node.input) > 2 and node.input[2]
            if limited and float(self.reader.constant(node, 2)) < 254.5 * target.scale:
                raise NotLowered(node, "its limit is below what its 8 bits hold")
            node = self.writer.get(node.input[0])

    def _copy(self, source: Stored, target: Target, want: Optional[Any]) -> Any:
        order = want if want is not None else np.arange(source.channels)
        self.ops.append(ops.conv_op("copy", ops.copy_of(source.channels), source, target, order))
        return order

    def _conv(
        self, node: Any, shuffle: Any, target: Target, want: Optional[Any] = None, residual: Optional[Stored] = None
    ) -> Any:
        found = self.reader.weights(node)
        parts = self.reader.parts(node, found, shuffle, (target.height, target.width))
        pool = self.writer.get(node.input[0])
        if node.input[0] not in self.known and pool is not None and pool.op_type == "MaxPool" and residual is None:
            taken = one_input_each(parts[0].weight) if len(parts) == 1 and windows(node)[0] == (1, 1) else None
            if taken is not None and want is None and self._poolable(pool, target):
                factor = parts[0].weight[np.arange(len(taken)), taken, 0, 0] * parts[0].steps
                return self._pool(pool, target, factor, parts[0].bias, taken)
        source = self._stored(node.input[0])
        self._check_padding(node, source, parts)
        if want is None and residual is None and self._is_depthwise(node, found, source, target):
            rows = Convolution(found.weight[shuffle], parts[0].steps, parts[0].bias, *windows(node))
            moved = ops.reordered(source, shuffle)
            self.ops.append(ops.depthwise_op(node.name, rows, moved, target))
            return moved.order
        if residual is not None:
            want = residual.order
        elif want is None:
            want = self._preferred(len(shuffle))
        for part in parts:
            self.ops.append(ops.conv_op(node.name, part, source, target, want, residual))
        return want

    def _is_depthwise(self, node: Any, found: Weights, source: Stored, target: Target) -> bool:
        """Whether a convolution is one of the 3x3 depthwise ones that have an operator of their own."""
        depthwise = node.op_type == "Conv" and found.weight.shape == (source.channels, 1, 3, 3)
        whole = source.index != 0 and self._is_whole(target, source.channels)
        return depthwise and whole and found.group == source.channels and keeps_size(node)

    def _check_padding(self, node: Any, source: Stored, parts: List[Convolution]) -> None:
        """What lies outside a tensor must stand for 0; only the frame has a zero point for each channel."""
        uneven = source.index != 0 and len(set(source.zero.tolist())) > 1
        blue, green, red = (self.tensors[0].zero >> shift & 255 for shift in (0, 8, 16))
        other = source.index == 0 and not np.array_equal(source.zero, [blue, green, red])
        if (uneven or other) and any(part.weight.shape[2:] != (1, 1) for part in parts):
            raise NotLowered(node, "what its padding stands for is not 0 everywhere")

    def _preferred(self, channels: int) -> Any:
        """An order in which both sides of a shuffle fall into blocks: by group behind it, then by group before it."""
        groups, index = self.shuffled.get(channels, 1), np.arange(channels)
        order = np.empty(channels, np.int64)
        order[np.lexsort((index, index % groups, index // (channels // groups)))] = index
        return order

    def _add(self, node: Any, shuffle: Any, target: Target) -> Any:
        branch = fused_branch(self.graph, node, shuffled=True)
        if branch is not None:
            other = node.input[1] if node.input[0] == branch else node.input[0]
            core, _, inner = self._peeled(branch)
            residual = ops.reordered(self._stored(other), shuffle)
            return self._conv(self.writer[core], inner[shuffle], target, None, residual)
        first, second = (ops.reordered(self._stored(name), shuffle) for name in node.input)
        second = self._aligned(second, first.order)
        self.ops.append(ops.add_op(node.name, first, second, target))
        return first.order

    def _aligned(self, source: Stored, order: Any) -> Stored:
        """A tensor with its channels in the given order, copied if they are not."""
        if np.array_equal(source.order, order):
            return source
        zero = self.tensors[source.index].zero
        target = self._new(source.channels, source.scale, zero, source.height, source.width)
        self._copy(source, target, order)
        return replace(source, index=target.index, order=order)

    def _resize(self, node: Any, shuffle: Any, target: Target) -> Any:
        channels, height, width = self.reader.map_shape(node.input[0])
        doubles = (target.height, target.width) == (2 * height, 2 * width)
        centres = attribute(node, "coordinate_transformation_mode", b"half_pixel")
        plain = attribute(node, "mode", b"nearest") == b"linear" and not attribute(node, "antialias", 0)
        if not doubles or not plain or centres not in (b"half_pixel", b"pytorch_half_pixel"):
            raise NotLowered(node, "only bilinear interpolation to twice the size, with half-pixel centres, is there")
        if target.zero != 0:
            raise NotLowered(node, "its result must not be negative, such as before a ReLU")
        between = self._new(channels, target.scale / EIGHTHS, 0, height, width, S16)
        core, relu, inner = self._peeled(node.input[0])
        producer = self.writer.get(core)
        if core not in self.known and not relu and producer is not None and producer.op_type in COMPUTE:
            order = self._conv(producer, inner[shuffle], between)
        else:
            order = self._copy(ops.reordered(self._stored(node.input[0]), shuffle), between, None)
        self.ops.append(ops.upsample_op(node.name, between.index, target, channels))
        return order

    def _concat(self, node: Any, target: Target) -> Any:
        if attribute(node, "axis") not in (1, -3):
            raise NotLowered(node, "along another axis than the channels")
        orders, offset = [], 0
        for name in node.input:
            place = replace(target, offset=target.offset + offset)
            orders.append(offset + self._emit(name, place, None))
            offset += self.reader.map_shape(name)[0]
        return np.concatenate(orders)

    def _pool(self, node: Any, target: Target, factor: Any, bias: Any, taken: Any) -> Any:
        """Maxima of 2x2 pixels, times factor[c] plus bias[c]; output c is of input taken[c]."""
        strides, dilations, _ = windows(node)
        padded = any(attribute(node, "pads", [])) or attribute(node, "ceil_mode", 0)
        if list(attribute(node, "kernel_shape")) != [2, 2] or (strides, dilations, padded) != ((2, 2), (1, 1), False):
            raise NotLowered(node, "only maxima of 2x2 pixels with stride 2, without padding, are there")
        source = self._stored(node.input[0])
        whole = self._is_whole(target, source.channels)
        if whole and source.index == 0:
            wide = self._new(source.channels, 1.0, 0, source.height, source.width)
            order = self._copy(replace(source, zero=np.zeros(3)), wide, None)
            source = replace(source, index=wide.index, order=order)  # the bytes as they were
        source = ops.reordered(source, taken)
        self.ops.append(ops.pool_op(node.name, source, target, factor, bias, whole))
        return source.order

    def _poolable(self, node: Any, target: Target) -> bool:
        """Whether a pooling can write where it shall: all stored channels, or those of the frame."""
        source = self._stored(node.input[0])
        return source.index == 0 or source.channels % BLOCK == 0 or self._is_whole(target, source.channels)

    def _pooled(self, node: Any) -> Stored:
        """A pooling that several operators read: a tensor of its own with its input's scale."""
        source = self._stored(node.input[0])
        channels, height, width = self.reader.map_shape(node.output[0])
        target = self._new(channels, source.scale, int(source.zero[0]), height, width)
        kept = np.arange(channels)
        raw = (source.zero - target.zero) * source.scale  # the maxima as they are stored
        order = self._pool(node, target, np.ones(channels), raw, kept)
        return Stored(target.index, source.scale, source.zero, order, height, width)

    def _is_whole(self, target: Target, channels: int) -> bool:
        """Whether so many channels are all that a target's tensor has."""
        tensor = self.tensors[target.index]
        return target.offset == 0 and tensor.dtype == U8 and tensor.channels == ops.stored_channels(channels)

    def _head(self) -> None:
        head = head_of(self.reader)
        source = self._stored(head.source)
        weight = head.weight.astype(np.float64) * source.scale
        if weight.shape[2] > 1 and source.zero.any():
            raise NotLowered(self.writer.get(head.source), "a head of 2x2 labels needs an input with zero point 0")
        placed = np.zeros(weight.shape, np.float32)
        placed[:, source.order] = weight
        classes, inputs, size, _ = weight.shape
        op = NativeOp(HEAD, head.name, source.index, -1, inputs, classes, kh=size, kw=size)
        op.out_h, op.out_w = size * source.height, size * source.width
        op.weight = placed
        op.bias = (head.bias - weight[:, :, 0, 0] @ source.zero).astype(np.float32)
        self.ops.append(op)
