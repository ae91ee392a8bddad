"""The arithmetic of lowering: quantised convolutions, sums, poolings → the native engine's operators. NumPy only.

A tensor's channels may lie in another order in memory than the network numbers them (`order`: network's index → place),
so that channel shuffles cost nothing. Zero points and ReLU are folded into biases, see runtime/native/gradseg_native.h.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Iterator, List, Optional, Tuple

import numpy as np

from gradseg.runtime.native.program import ADD, BLOCK, CONV, DEPTHWISE, POOL, UPSAMPLE, NativeOp

Array = Any  # np.ndarray; Python 3.8 evaluates this line


@dataclass
class Stored:
    """A tensor in memory: real = scale * (stored - zero). zero: (channels,), as the network numbers them."""

    index: int
    scale: float
    zero: Array
    order: Array
    height: int
    width: int

    @property
    def channels(self) -> int:
        return len(self.order)


def reordered(source: Stored, channels: Array) -> Stored:
    """A tensor seen so that its channel c is what was its channel channels[c]."""
    return replace(source, zero=source.zero[channels], order=source.order[channels])


@dataclass
class Target:
    """Where a result goes: channels from `offset` on of tensor `index`, real = scale * (stored - zero)."""

    index: int
    scale: float
    zero: int
    height: int
    width: int
    offset: int = 0


@dataclass
class Convolution:
    """weight: int8 (cout, cin, kh, kw), dense, both channels as the network numbers them; real = weight * steps[cout].
    pads: top, left. place: see `gs_op`'s oy, py, ox, px, out_h, out_w."""

    weight: Array
    steps: Array
    bias: Array
    strides: Tuple[int, int] = (1, 1)
    dilations: Tuple[int, int] = (1, 1)
    pads: Tuple[int, int] = (0, 0)
    place: Optional[Tuple[int, int, int, int, int, int]] = None


def stored_channels(channels: int) -> int:
    return -(-channels // BLOCK) * BLOCK


def conv_op(
    name: str, conv: Convolution, source: Stored, target: Target, order: Array, residual: Optional[Stored] = None
) -> NativeOp:
    """A convolution whose output channel o goes to place order[o] behind the target's offset."""
    outputs, inputs = conv.weight.shape[:2]
    scale, bias = folded(conv.weight, conv.steps, conv.bias, source, target, residual)
    dense = np.zeros((outputs, inputs, *conv.weight.shape[2:]), np.int8)
    dense[np.ix_(order, source.order)] = conv.weight
    groups = 1 if source.index == 0 else groups_of(dense)  # the frame is read whole
    rows = np.empty(outputs, np.int64)
    rows[order] = np.arange(outputs)
    place = conv.place or (1, 0, 1, 0, target.height, target.width)
    op = NativeOp(CONV, name, source.index, target.index, inputs, outputs, groups=groups, out_offset=target.offset)
    op.kh, op.kw = dense.shape[2:]
    op.sy, op.sx = conv.strides
    op.dy, op.dx = conv.dilations
    op.pt, op.pl = conv.pads
    op.oy, op.py, op.ox, op.px, op.out_h, op.out_w = place
    op.weight = np.ascontiguousarray(true_groups(dense, groups).transpose(0, 2, 3, 1))
    op.scale, op.bias = scale[rows], bias[rows]
    if residual is not None:
        op.residual, op.residual_scale = residual.index, float(np.float32(residual.scale / target.scale))
    return op


def folded(
    weight: Array, steps: Array, bias: Array, source: Stored, target: Target, residual: Optional[Stored] = None
) -> Tuple[Array, Array]:
    """float32 (scale, bias) per output channel with all zero points in them: value = acc * scale + bias."""
    corner = np.einsum("oiyx,i->o", weight.astype(np.float64), source.zero.astype(np.float64))
    scale, shift = _rescaled(steps, bias, corner, source, target)
    if residual is not None:
        shift = shift - residual.zero * (residual.scale / target.scale)
    return scale.astype(np.float32), shift.astype(np.float32)


def _rescaled(steps: Array, bias: Array, corner: Array, source: Stored, target: Target) -> Tuple[Array, Array]:
    """float64 (scale, shift): stored result = acc * scale + shift. corner: what acc is where the input stands for 0."""
    scale = steps.astype(np.float64) * source.scale / target.scale
    return scale, bias.astype(np.float64) / target.scale - scale * corner + target.zero


def groups_of(dense: Array) -> int:
    """The most groups that weights (cout, cin, kh, kw) fall into: outside their diagonal blocks all is 0."""
    outputs, inputs = dense.shape[:2]
    used = dense.reshape(outputs, inputs, -1).any(axis=2)
    for groups in range(int(np.gcd(outputs, inputs)), 1, -1):
        if outputs % groups == 0 == inputs % groups:
            block = np.kron(np.eye(groups, dtype=bool), np.ones((outputs // groups, inputs // groups), bool))
            if not used[~block].any():
                return groups
    return 1


def true_groups(dense: Array, groups: int) -> Array:
    """Block-diagonal weights (cout, cin, …) → (cout, cin / groups, …)."""
    rows = np.split(dense, groups)
    return np.concatenate([np.split(some, groups, axis=1)[index] for index, some in enumerate(rows)])


def depthwise_op(name: str, conv: Convolution, source: Stored, target: Target) -> NativeOp:
    """A 3x3 depthwise convolution, weight (channels, 1, 3, 3); channels lie as in its input."""
    stored = stored_channels(source.channels)
    op = NativeOp(DEPTHWISE, name, source.index, target.index, stored, stored, kh=3, kw=3)
    op.dy = op.dx = op.pt = op.pl = conv.dilations[0]
    op.out_h, op.out_w = target.height, target.width
    corner = conv.weight.astype(np.float64).sum(axis=(1, 2, 3)) * source.zero
    rescaled = _rescaled(conv.steps, conv.bias, corner, source, target)
    op.weight = _placed(conv.weight[:, 0], source.order, stored, np.int8)
    op.scale, op.bias = (_placed(each, source.order, stored, np.float32) for each in rescaled)
    return op


def _placed(values: Array, order: Array, count: int, dtype: Any) -> Array:
    result: Array = np.zeros((count, *values.shape[1:]), dtype)
    result[order] = values
    return result


def pool_op(name: str, source: Stored, target: Target, factor: Array, bias: Array, whole: bool) -> NativeOp:
    """2x2 maxima, times factor[c] plus bias[c] (real numbers); channels lie as in the input, behind the offset.

    whole: it writes all channels that the target is stored with.
    """
    count = stored_channels(source.channels) if whole else source.channels
    op = NativeOp(POOL, name, source.index, target.index, count, count, out_offset=target.offset)
    op.kh = op.kw = op.sy = op.sx = 2
    op.out_h, op.out_w = target.height, target.width
    rescaled = _rescaled(factor, bias, source.zero, source, target)
    op.scale, op.bias = (_placed(each, source.order, count, np.float32) for each in rescaled)
    return op


def add_op(name: str, first: Stored, second: Stored, target: Target) -> NativeOp:
    """The sum of two tensors whose channels lie alike."""
    stored = stored_channels(first.channels)
    op = NativeOp(ADD, name, first.index, target.index, stored, stored, residual=second.index)
    op.out_h, op.out_w = target.height, target.width
    scale, other = first.scale / target.scale, second.scale / target.scale
    shift = target.zero - scale * float(first.zero[0]) - other * float(second.zero[0])
    op.scale, op.bias = np.full(stored, scale, np.float32), np.full(stored, shift, np.float32)
    op.residual_scale = float(np.float32(other))
    return op


def upsample_op(name: str, source: int, target: Target, channels: int) -> NativeOp:
    stored = stored_channels(channels)
    return NativeOp(UPSAMPLE, name, source, target.index, stored, stored, out_h=target.height, out_w=target.width)


def copy_of(channels: int) -> Convolution:
    """A 1x1 convolution that changes nothing, for what must be rescaled, moved or reordered."""
    weight = np.eye(channels, dtype=np.int8).reshape(channels, channels, 1, 1)
    return Convolution(weight, np.ones(channels), np.zeros(channels))


def deconvolution_parts(
    weight: Array, steps: Array, bias: Array, strides: Any, dilations: Any, pads: Any, out_hw: Tuple[int, int]
) -> Iterator[Convolution]:
    """A deconvolution, int8 weight (cin, cout, kh, kw), as one convolution for each phase of its output pixels.

    Output row s * y + phase reads input row y + (phase + pad - d * k) / s for those k for which this is whole.
    """
    turned = weight.transpose(1, 0, 2, 3)
    for py in range(strides[0]):
        rows = _taps(py, strides[0], dilations[0], pads[0], weight.shape[2])
        for px in range(strides[1]):
            columns = _taps(px, strides[1], dilations[1], pads[1], weight.shape[3])
            top, left = min([o for o, _ in rows], default=0), min([o for o, _ in columns], default=0)
            height = max([o for o, _ in rows], default=0) - top + 1
            width = max([o for o, _ in columns], default=0) - left + 1
            part = np.zeros((*turned.shape[:2], height, width), np.int8)
            for y, ky in rows:
                for x, kx in columns:
                    part[:, :, y - top, x - left] = turned[:, :, ky, kx]
            height, width = -(-(out_hw[0] - py) // strides[0]), -(-(out_hw[1] - px) // strides[1])
            place = (strides[0], py, strides[1], px, height, width)
            yield Convolution(part, steps, bias, (1, 1), (1, 1), (-top, -left), place)


def _taps(phase: int, stride: int, dilation: int, pad: int, size: int) -> List[Tuple[int, int]]:
    """(offset of the input pixel, index in the kernel) of the taps that meet an output phase."""
    reach = [(phase + pad - dilation * k, k) for k in range(size)]
    return [(offset // stride, k) for offset, k in reach if offset % stride == 0]
