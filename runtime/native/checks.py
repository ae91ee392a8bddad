"""What a program must hold before the native library may run it: the library itself checks nothing."""

from __future__ import annotations

from typing import Any, List, Set

import numpy as np

from gradseg.models.spec import MAX_SIDE
from gradseg.runtime.native.program import (
    ADD,
    BLOCK,
    CONV,
    DEPTHWISE,
    HEAD,
    KINDS,
    POOL,
    S16,
    U8,
    UPSAMPLE,
    NativeOp,
    NativeProgram,
    NativeTensor,
)

MOST = 127  # of weights: -127 to 127
MOST_CHANNELS = 4096
MOST_TENSOR = 1 << 31  # bytes
MOST_ALL = 1 << 34  # bytes
MOST_SUM = (1 << 31) // (255 * MOST)  # products of uint8 and int8 in an int32
MOST_KERNEL = 15  # pixels along a side
MOST_STRIDE = 16
MOST_HALO = 64  # pixels; also the largest dilation
MOST_OFFSETS = 4096  # GS_OFFSETS_MAX
MOST_HEAD = 512  # channels that a head reads


class Problem(ValueError):  # noqa: N818 one line of a message, not yet an error
    """Something in a program that the library cannot run."""


def check_program(program: NativeProgram) -> None:
    """Raises Problem, naming tensor or operator, unless every index, size and shape fits every other."""
    spec, tensors, ops = program.spec, program.tensors, program.ops
    _need(2 <= len(tensors) <= 65536 and 2 <= len(ops) <= 65536, f"{len(tensors)} tensors and {len(ops)} operators")
    for index, tensor in enumerate(tensors):
        _check_tensor(tensor, index)
    _need(sum(map(_bytes_of, tensors)) <= MOST_ALL, "its tensors need more than 16 GiB")
    frame = tensors[0]
    _need((frame.height, frame.width) == spec.input_hw, f"frame of {frame.height}x{frame.width}, not the spec's size")
    written: Set[int] = {0}
    for index, op in enumerate(ops):
        where = f"operator {index} ({op.name[:80]})"
        _need(0 <= op.kind < len(KINDS), f"{where}: kind {op.kind}")
        _need((op.kind == HEAD) == (index == len(ops) - 1), f"{where}: the head, and nothing else, stands last")
        _check_numbers(op, where)
        _need(op.input in written, f"{where}: reads tensor {op.input}, which nothing has written")
        if op.kind == HEAD:
            _need(op.output == -1 and op.cout == spec.num_classes, f"{where}: does not give the spec's classes")
            _need((op.out_h, op.out_w) == spec.input_hw, f"{where}: does not give labels of the frame's size")
        else:
            _need(0 < op.output < len(tensors) and op.output != op.input, f"{where}: writes tensor {op.output}")
        if op.residual != -1:
            _need(op.kind in (CONV, ADD), f"{where}: no residual can be added here")
            _need(op.residual in written - {0, op.output}, f"{where}: adds tensor {op.residual}")
        _check_shapes(program, op, where)
        written.add(op.output)


def _need(fits: bool, problem: str) -> None:
    if not fits:
        raise Problem(problem)


def _check_tensor(tensor: NativeTensor, index: int) -> None:
    where = f"tensor {index}"
    _need(1 <= tensor.height <= MAX_SIDE and 1 <= tensor.width <= MAX_SIDE, f"{where}: {tensor.height}x{tensor.width}")
    if index == 0:
        _need(tensor.channels == 3 and tensor.dtype == U8, f"{where}: the frame is not uint8 of 3 channels")
        _need(0 <= tensor.zero < 1 << 24, f"{where}: zero is {tensor.zero}")
    else:
        _need(BLOCK <= tensor.channels <= MOST_CHANNELS, f"{where}: {tensor.channels} channels")
        _need(tensor.channels % BLOCK == 0, f"{where}: {tensor.channels} channels, no multiple of {BLOCK}")
        _need(tensor.dtype in (U8, S16), f"{where}: dtype {tensor.dtype}")
        _need(0 <= tensor.zero <= (255 if tensor.dtype == U8 else 0), f"{where}: zero is {tensor.zero}")
    _need(0 <= tensor.halo <= MOST_HALO, f"{where}: halo {tensor.halo}")
    _need(_bytes_of(tensor) <= MOST_TENSOR, f"{where}: more than 2 GiB")


def _bytes_of(tensor: NativeTensor) -> int:
    pixels = (tensor.height + 2 * tensor.halo) * (tensor.width + 2 * tensor.halo)
    return pixels * tensor.channels * (1 + tensor.dtype)


def _check_numbers(op: NativeOp, where: str) -> None:
    """The operator's own numbers and arrays, without regard to the tensors."""
    limits = {
        ("cin", "cout", "groups"): (1, MOST_CHANNELS),
        ("kh", "kw"): (1, MOST_KERNEL),
        ("sy", "sx", "oy", "ox"): (1, MOST_STRIDE),
        ("dy", "dx"): (1, MOST_HALO),
        ("py", "px", "out_offset"): (0, MOST_CHANNELS),
        ("pt", "pl"): (-MAX_SIDE, MAX_SIDE),
        ("out_h", "out_w"): (1, MAX_SIDE),
    }
    for names, (low, high) in limits.items():
        for name in names:
            value = getattr(op, name)
            _need(low <= value <= high, f"{where}: {name} is {value}, expected {low} to {high}")
    _need(op.cin % op.groups == 0 and op.cout % op.groups == 0, f"{where}: {op.groups} groups of {op.cin} channels")
    _need(abs(op.residual_scale) <= float(np.finfo(np.float32).max), f"{where}: residual_scale is {op.residual_scale}")
    shape = weight_shape(op)
    _check_array(op.weight, np.float32 if op.kind == HEAD else np.int8, shape, f"{where}: weight")
    scaled = () if op.kind == UPSAMPLE else (op.cout,)
    _check_array(op.scale, np.float32, () if op.kind == HEAD else scaled, f"{where}: scale")
    _check_array(op.bias, np.float32, scaled, f"{where}: bias")
    if shape and op.kind != HEAD:
        terms = op.kh * op.kw * (1 if op.kind == DEPTHWISE else op.cin // op.groups)
        _need(terms <= MOST_SUM, f"{where}: sums of {terms} products may overflow")


def weight_shape(op: NativeOp) -> Any:
    """The shape of an operator's weights; () where it has none."""
    if op.kind == CONV:
        return (op.cout, op.kh, op.kw, op.cin // max(op.groups, 1))
    if op.kind == DEPTHWISE:
        return (op.cin, op.kh, op.kw)
    return (op.cout, op.cin, op.kh, op.kw) if op.kind == HEAD else ()


def _check_array(array: Any, dtype: Any, shape: Any, where: str) -> None:
    if shape == ():
        _need(array is None, f"{where} has no use here")
        return
    _need(array is not None and array.dtype == dtype and array.shape == shape, f"{where} is not {shape}")
    _need(array.flags.c_contiguous, f"{where} is not contiguous")
    if dtype == np.int8:
        _need(int(array.min()) >= -MOST, f"{where} holds -128")
    else:
        _need(bool(np.isfinite(array).all()), f"{where} is not finite")


def _check_shapes(program: NativeProgram, op: NativeOp, where: str) -> None:
    source = program.tensors[op.input]
    form = f"{where}: not in the form of its kind"
    _need(op.cin <= source.channels, f"{where}: {op.cin} channels of {source.channels}")
    _need(source.dtype == (S16 if op.kind == UPSAMPLE else U8), f"{where}: reads dtype {source.dtype}")
    if op.kind == HEAD:
        size = (source.height * op.kh, source.width * op.kw)
        _need((op.kh, op.kw) in ((1, 1), (2, 2)) and size == (op.out_h, op.out_w), form)
        _need(op.input > 0 and source.channels <= MOST_HEAD, form)
        return
    target = program.tensors[op.output]
    plain = (op.groups, op.oy, op.ox, op.py, op.px) == (1, 1, 1, 0, 0)
    unit = (op.kh, op.kw, op.sy, op.sx, op.dy, op.dx, op.pt, op.pl) == (1, 1, 1, 1, 1, 1, 0, 0)
    same = op.cin == op.cout == source.channels == target.channels and op.out_offset == 0
    _need(op.kind == CONV or (target.dtype == U8 and plain), form)
    _need(op.kind in (CONV, POOL) or (same and op.input > 0), form)
    if op.kind == CONV:
        _need(target.dtype == U8 or (op.out_offset == 0 and op.residual == -1), form)
        _need(op.residual == -1 or op.out_offset == 0, f"{where}: a residual beside other channels")
        _need(op.input > 0 or (op.groups, op.cin, op.dx) == (1, 3, 1), f"{where}: no convolution of a frame")
        _need(op.kh * op.kw * (source.channels // 4 + 1) <= MOST_OFFSETS, f"{where}: too large a kernel")
        _need(op.out_offset + op.cout <= target.channels, f"{where}: writes channels beyond {target.channels}")
    elif op.kind == POOL:
        _need((op.kh, op.kw, op.sy, op.sx, op.pt, op.pl, op.dy, op.dx) == (2, 2, 2, 2, 0, 0, 1, 1), form)
        _need(op.cin == op.cout == source.channels, f"{where}: pools {op.cin} channels of {source.channels}")
        _need(op.out_offset + op.cout <= target.channels, f"{where}: writes channels beyond {target.channels}")
        _need((op.out_h, op.out_w) == (target.height, target.width), form)
    elif op.kind == DEPTHWISE:
        _need((op.kh, op.kw, op.sy, op.sx) == (3, 3, 1, 1) and op.dy == op.dx == op.pt == op.pl, form)
        _need((op.out_h, op.out_w) == (source.height, source.width) == (target.height, target.width), form)
    elif op.kind == UPSAMPLE:
        _need(unit and target.zero == 0, form)
        _need((op.out_h, op.out_w) == (2 * source.height, 2 * source.width), f"{where}: does not double the size")
    else:
        _need(unit and op.residual != -1, form)
        _need((op.out_h, op.out_w) == (source.height, source.width), form)
    if op.kind != UPSAMPLE:
        _check_reads(source, op, where)
    _check_writes(program, op, where)


def _check_writes(program: NativeProgram, op: NativeOp, where: str) -> None:
    target = program.tensors[op.output]
    _need((op.out_h - 1) * op.oy + op.py < target.height, f"{where}: writes rows beyond {target.height}")
    _need((op.out_w - 1) * op.ox + op.px < target.width, f"{where}: writes columns beyond {target.width}")
    if op.residual != -1:
        other = program.tensors[op.residual]
        shape = (other.height, other.width, other.channels, other.dtype)
        _need(shape == (target.height, target.width, target.channels, U8), f"{where}: adds a tensor of another shape")


def _check_reads(source: NativeTensor, op: NativeOp, where: str) -> None:
    for size, out, stride, kernel, dilation, before in (
        (source.height, op.out_h, op.sy, op.kh, op.dy, op.pt),
        (source.width, op.out_w, op.sx, op.kw, op.dx, op.pl),
    ):
        last = (out - 1) * stride - before + (kernel - 1) * dilation
        inside = before <= source.halo and last < size + source.halo and -before < size
        _need(inside, f"{where}: reads beyond its input's halo")


def halo_needed(ops: List[NativeOp], tensors: List[NativeTensor], index: int) -> int:
    """The pixels around a tensor that its readers read."""
    most, tensor = 0, tensors[index]
    for op in ops:
        if op.input == index and op.kind not in (UPSAMPLE, HEAD):
            down = (op.out_h - 1) * op.sy - op.pt + (op.kh - 1) * op.dy - (tensor.height - 1)
            right = (op.out_w - 1) * op.sx - op.pl + (op.kw - 1) * op.dx - (tensor.width - 1)
            most = max(most, op.pt, op.pl, down, right)
    return most
