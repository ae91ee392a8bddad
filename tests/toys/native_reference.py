"""A plain NumPy interpreter of native programs: what runtime/native/gradseg_native.h says, operator by operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gradseg.runtime.native.program import (
    ADD,
    CONV,
    DEPTHWISE,
    HEAD,
    POOL,
    S16,
    UPSAMPLE,
    NativeOp,
    NativeProgram,
    NativeTensor,
)


@dataclass
class Ran:
    """tensors: index → integers (h, w, channels). exact: index → values before rounding, of every write; NaN where
    nothing was written. labels: uint8 (h, w). scores: the head's, int64 (h, w, classes)."""

    tensors: dict[int, np.ndarray[Any, Any]]
    exact: dict[int, np.ndarray[Any, Any]]
    labels: np.ndarray[Any, Any]
    scores: np.ndarray[Any, Any]


def run(program: NativeProgram, frame: np.ndarray[Any, Any]) -> Ran:
    """frame: uint8 BGR (h, w, 3)."""
    tensors: dict[int, np.ndarray[Any, Any]] = {0: frame}
    exact: dict[int, np.ndarray[Any, Any]] = {}
    for index, tensor in enumerate(program.tensors[1:], 1):
        shape = (tensor.height, tensor.width, tensor.channels)
        tensors[index] = np.zeros(shape, np.int16 if tensor.dtype == S16 else np.uint8)
        exact[index] = np.full(shape, np.nan)
    for op in program.ops[:-1]:
        step(program, op, tensors, exact)
    scores = head(program.ops[-1], tensors)
    return Ran(tensors, exact, scores.argmax(axis=2).astype(np.uint8), scores)


def step(program: NativeProgram, op: NativeOp, tensors: dict[int, Any], exact: dict[int, Any]) -> None:
    """One operator but the head: reads and writes `tensors`, notes the values before rounding in `exact`."""
    source, target = tensors[op.input], program.tensors[op.output]
    if op.kind == UPSAMPLE:
        value = upsampled(source).astype(np.float64)
    elif op.kind == ADD:
        value = source.astype(np.float64) * op.scale[0] + op.bias[0]
    else:
        value = sums(program.tensors[op.input], source, op) * op.scale + op.bias
    rows = slice(op.py, op.py + (op.out_h - 1) * op.oy + 1, op.oy)
    columns = slice(op.px, op.px + (op.out_w - 1) * op.ox + 1, op.ox)
    channels = slice(op.out_offset, op.out_offset + op.cout)
    if op.residual >= 0:
        value = value + tensors[op.residual][rows, columns, channels] * np.float64(np.float32(op.residual_scale))
    low, high = (-8187, 8187) if target.dtype == S16 else (0, 255)
    tensors[op.output][rows, columns, channels] = np.clip(np.rint(value), low, high)
    exact[op.output][rows, columns, channels] = value


def padded(tensor: NativeTensor, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A tensor with its halo, int64."""
    halo = tensor.halo
    height, width, channels = values.shape
    wide = np.empty((height + 2 * halo, width + 2 * halo, channels), np.int64)
    wide[:] = [tensor.zero >> shift & 255 for shift in (0, 8, 16)] if channels == 3 else tensor.zero
    wide[halo : halo + height, halo : halo + width] = values
    return wide


def sums(tensor: NativeTensor, values: np.ndarray[Any, Any], op: NativeOp) -> np.ndarray[Any, Any]:
    """The integer sums of a convolution, or the maxima of a pooling, as float64 (out_h, out_w, cout)."""
    wide = padded(tensor, values)[:, :, : op.cin]
    taps = []
    for i in range(op.kh):
        for j in range(op.kw):
            y, x = tensor.halo - op.pt + i * op.dy, tensor.halo - op.pl + j * op.dx
            last_y, last_x = y + (op.out_h - 1) * op.sy, x + (op.out_w - 1) * op.sx
            assert 0 <= y <= last_y < wide.shape[0] and 0 <= x <= last_x < wide.shape[1]
            taps.append(wide[y : last_y + 1 : op.sy, x : last_x + 1 : op.sx])
    patches = np.stack(taps, 2)  # (out_h, out_w, kh * kw, cin)
    if op.kind == POOL:
        return patches.max(axis=2).astype(np.float64)
    assert op.weight is not None
    if op.kind == DEPTHWISE:
        weight = op.weight.reshape(op.cin, -1).astype(np.float64)
        return np.einsum("yxkc,ck->yxc", patches.astype(np.float64), weight)
    assert op.kind == CONV
    found = []
    for group in range(op.groups):
        inputs, outputs = op.cin // op.groups, op.cout // op.groups
        weight = op.weight[group * outputs : (group + 1) * outputs].reshape(outputs, -1).astype(np.float64)
        part = patches[:, :, :, group * inputs : (group + 1) * inputs]
        found.append(part.reshape(*part.shape[:2], -1).astype(np.float64) @ weight.T)
    return np.concatenate(found, 2)


def upsampled(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Eighths of steps → steps at twice the size, bilinear with half-pixel centres, edges repeated; int64.

    First between rows, then between columns; halves are rounded up both times.
    """
    doubled = values.astype(np.int64)
    for axis, rounding, shift in ((0, 2, 2), (1, 16, 5)):
        size = doubled.shape[axis]
        wide = np.concatenate([doubled.take([0], axis), doubled, doubled.take([-1], axis)], axis)
        here, before, after = (wide.take(range(k, k + size), axis) for k in (1, 0, 2))
        pair = np.stack([3 * here + before, 3 * here + after], axis + 1)
        shape = [*doubled.shape[:axis], 2 * size, *doubled.shape[axis + 1 :]]
        doubled = (pair.reshape(shape) + rounding) >> shift
    return doubled


@dataclass
class HeadIntegers:
    """A label head's numbers as integers. weight: (classes, cin, kh, kw). bias, takes_part: (classes, kh, kw).

    scale: what weights and biases were multiplied by. bits: of a class's number in a sum.
    """

    weight: np.ndarray[Any, Any]
    bias: np.ndarray[Any, Any]
    takes_part: np.ndarray[Any, Any]
    scale: float
    bits: int


def head_integers(op: NativeOp) -> HeadIntegers:
    assert op.kind == HEAD and op.weight is not None and op.bias is not None
    weight = op.weight.astype(np.float64)
    bias = np.broadcast_to(op.bias.astype(np.float64)[:, None, None, None], (op.cout, 1, op.kh, op.kw))
    terms = 255 * weight
    # cumsum adds one term after another, as the library does
    least = np.concatenate([bias, np.minimum(terms, 0)], 1).cumsum(1)[:, -1]
    most = np.concatenate([bias, np.maximum(terms, 0)], 1).cumsum(1)[:, -1]
    takes_part = most >= least.max(0)
    bottom, top = np.where(takes_part, least, np.inf).min(0), np.where(takes_part, most, -np.inf).max(0)
    middle, reach = (bottom + top) / 2, float(((top - bottom) / 2).max())
    largest = float((np.abs(weight).max(1) * takes_part).max())
    bits = min(op.cout - 1, 31).bit_length()
    limit = 2.0 ** (31 - bits) - 2 - (255 * op.cin + 1) / 2
    ratio = min(32639 / largest if largest else np.inf, limit / reach if reach else np.inf)
    scale = 2.0 ** (np.frexp(ratio)[1] - 1) if np.isfinite(ratio) else 1.0
    whole = np.rint(weight * scale * takes_part[:, None]).astype(np.int64)
    start = np.rint((bias[:, 0] - middle) * scale * takes_part).astype(np.int64)
    return HeadIntegers(whole, start, takes_part, scale, bits)


def head(op: NativeOp, tensors: dict[int, Any]) -> np.ndarray[Any, Any]:
    """int64 scores (h, w, classes), the least int64 where a class takes no part."""
    known = head_integers(op)
    limit = 1 << (31 - known.bits)
    assert np.abs(known.weight).max() <= 32639
    source = tensors[op.input][:, :, : op.cin].astype(np.float64)
    # float64 products of such integers are exact, and so are their sums
    blocks = np.einsum("hwi,oiyx->hywxo", source, known.weight.astype(np.float64)).astype(np.int64)
    blocks = blocks + known.bias.transpose(1, 2, 0)[None, :, None]
    assert np.abs(blocks).max() < limit
    blocks[:] = np.where(known.takes_part.transpose(1, 2, 0)[None, :, None], blocks, np.iinfo(np.int64).min)
    return np.asarray(blocks.reshape(op.out_h, op.out_w, -1))
