"""Networks lowered to the native engine, and its operators checked one by one."""

from __future__ import annotations

import functools
from typing import Any, Optional

import numpy as np
import onnx
import pytest
from export_toys import SCENES, exported
from native_reference import step

from gradseg.base.errors import GradsegError
from gradseg.calibration.qdq.int8 import Settings, calibrated, int8_from_calibrated
from gradseg.calibration.qdq.native_form import native_form, reference_form
from gradseg.export.native.lower import lowered
from gradseg.graphs.sessions import OnnxRunner, exposed
from gradseg.models.spec import ModelSpec, distinct_palette
from gradseg.runtime.native.checks import halo_needed
from gradseg.runtime.native.library import Library, open_library
from gradseg.runtime.native.program import HEAD, UPSAMPLE, NativeOp, NativeProgram, NativeTensor

BUILD = "needs the native library: pip install -e . with a C compiler, or GRADSEG_NATIVE_LIBRARY=FILE"
NEAR = 1e-3  # distance from a half within which float32 and fused arithmetic may round either way


def quantised_for_native(model: onnx.ModelProto, **changes: Any) -> onnx.ModelProto:
    """The Q/DQ model of target native, calibrated on scenes of 64x96."""
    settings = Settings("native", frames=4, **changes)
    return int8_from_calibrated(calibrated(model, SCENES, 4, settings.equalise, threads=1), settings, native_form)


@functools.cache
def toy_int8(arch: str = "dg2-star-light") -> onnx.ModelProto:
    """Shared between tests: do not change it in place."""
    return quantised_for_native(exported(arch))


@functools.cache
def toy_program(arch: str = "dg2-star-light") -> NativeProgram:
    """Shared between tests: do not change it in place."""
    return lowered(toy_int8(arch))[0]


def library() -> Library:
    """The native library; skips the test where it was not built."""
    try:
        return open_library()
    except GradsegError:
        pytest.skip(BUILD)


def far_off(found: Any, expected: Any, exact: Any, near: float = NEAR) -> int:
    """How many integers differ by more than what lies near a half may: 0 there or 1."""
    off = np.abs(found.astype(np.int64) - expected)
    at_half = np.abs(np.abs(exact - np.floor(exact)) - 0.5) < near
    return int((off > at_half).sum())


def check_against_onnx_runtime(model: onnx.ModelProto, frame: np.ndarray[Any, Any]) -> NativeProgram:
    """Every operator of a Q/DQ model's program computes what ONNX Runtime does, from what that computed before.

    So one value at a half does not change what comes after it. frame: uint8 BGR (1, h, w, 3).
    """
    program, known = lowered(model)
    reference = reference_form(model)
    names = [n.output[0] for n in reference.graph.node if n.op_type == "DequantizeLinear" and n.output[0] in known]
    values = OnnxRunner(exposed(reference, names), threads=1, integers=False).run(frame, names)
    expected = {}
    for name, value in zip(names, values, strict=True):
        place = known[name]
        tensor = program.tensors[place.index]
        whole = np.zeros((tensor.height, tensor.width, tensor.channels), np.uint8)
        whole[:, :, place.order] = np.rint(value[0] / np.float32(place.scale)).transpose(1, 2, 0) + place.zero
        expected[place.index] = whole
    tensors, exact = blank(program, frame[0])
    last = {op.output: index for index, op in enumerate(program.ops)}
    for index, op in enumerate(program.ops[:-1]):
        step(program, op, tensors, exact)
        if op.output not in expected or last[op.output] != index:
            continue
        found, wanted = tensors[op.output], expected[op.output]
        wrong = far_off(found, wanted, exact[op.output], 5e-3)
        # a value between a convolution and its upsampling may be off by an eighth, hence a result by one
        few = found.size // 500 if op.kind == UPSAMPLE else 0
        assert wrong <= few and np.abs(found.astype(int) - wanted).max() <= 1, f"operator {index}, {op.name}: {wrong}"
        tensors[op.output] = wanted
    return program


def blank(program: NativeProgram, frame: np.ndarray[Any, Any]) -> tuple[dict[int, Any], dict[int, Any]]:
    """Tensors before the first operator, and room for the values before rounding."""
    tensors: dict[int, Any] = {0: frame}
    exact: dict[int, Any] = {}
    for index, tensor in enumerate(program.tensors[1:], 1):
        shape = (tensor.height, tensor.width, tensor.channels)
        tensors[index] = np.zeros(shape, np.int16 if tensor.dtype else np.uint8)
        exact[index] = np.zeros(shape)
    return tensors, exact


def label_anything(program: NativeProgram, tensor: int) -> NativeOp:
    """A head that ends a program at a tensor."""
    end = program.tensors[tensor]
    op = NativeOp(HEAD, "end", tensor, -1, end.channels, 2, out_h=end.height, out_w=end.width)
    op.weight, op.bias = np.ones((2, end.channels, 1, 1), np.float32), np.zeros(2, np.float32)
    return op


def check_library(program: NativeProgram, frame: np.ndarray[Any, Any], isa: Optional[str], threads: int = 1) -> None:
    """The C library computes each operator as NumPy does from what C had before. frame: uint8 BGR (h, w, 3)."""
    found = library()
    for index, op in enumerate(program.ops[:-1]):
        end = index + 2 if program.tensors[op.output].dtype else index + 1  # int16 needs its upsampling
        ops = program.ops[:end]
        cut = NativeProgram(program.spec, program.tensors, [*ops, label_anything(program, ops[-1].output)])
        plan = found.create(cut, threads, isa)
        run_plan(plan, frame, program.tensors[ops[-1].output])
        tensors, exact = blank(program, frame)
        for tensor in {op.input, op.residual, op.output} - {0, -1}:
            known = plan.read(tensor)
            if known is not None:
                tensors[tensor] = known
        few = 0
        if op.input and plan.read(op.input) is None:  # one with the operator before: that is computed here
            few = 3  # one of its values may lie at a half
            before = next(each for each in program.ops if each.output == op.input)
            tensors[before.input] = plan.read(before.input) if before.input else frame
            step(program, before, tensors, exact)
        result = tensors[op.output].copy()
        step(program, op, tensors, exact)
        wrong = far_off(result, tensors[op.output], exact[op.output])
        assert wrong <= few, f"{isa}: operator {index}, {op.name}: {wrong} of {result.size}"
        plan.close()


def run_plan(plan: Any, frame: np.ndarray[Any, Any], end: NativeTensor) -> np.ndarray[Any, Any]:
    """Labels of the size of the tensor that the head reads."""
    labels: np.ndarray[Any, Any] = np.zeros((end.height, end.width), np.uint8)
    plan.run(frame.ctypes.data, frame.strides[0], labels.ctypes.data)
    return labels


def program_of(tensors: list[NativeTensor], ops: list[NativeOp], classes: int = 3) -> NativeProgram:
    """A program with its halos, of any operators."""
    for index, tensor in enumerate(tensors):
        tensor.halo = halo_needed(ops, tensors, index)
    names = tuple(f"class {index}" for index in range(classes))
    hw = (tensors[0].height, tensors[0].width)
    return NativeProgram(ModelSpec("toy", names, distinct_palette(classes), hw, blocks=""), tensors, ops)
