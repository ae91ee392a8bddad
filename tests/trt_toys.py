"""What the TensorRT tests share: the library where it is installed, a stand-in for another, INT8 models."""

from __future__ import annotations

import functools
import sys
import types
from typing import Any, Tuple

import onnx
import pytest
from export_toys import HW, SCENES, checkpoint, exported, one_torch_thread  # noqa: F401

from gradseg.calibration.int8 import Settings, int8_from_fp32
from gradseg.runtime.trt_library import import_one


def find_rtx() -> Tuple[str, Any]:
    """TensorRT-RTX, or the test is skipped; it builds without a GPU."""
    found = import_one("tensorrt_rtx")
    if found is None:
        pytest.skip("needs TensorRT-RTX: pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings")
    return "tensorrt_rtx", found


@functools.cache
def int8(arch: str, target: str) -> onnx.ModelProto:
    return int8_from_fp32(exported(arch), SCENES, Settings(target, frames=2), threads=1)


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


class FakeTensor:
    def __init__(self, shape: Tuple[int, ...]) -> None:
        self.shape, self.dtype = shape, "uint8"


def classic(version: str = "8.5.2", typed: bool = False, gpu: bool = True) -> Any:
    """A stand-in for the `tensorrt` module: what `build_plan` touches, as 8.5 (or, typed, as 11) has it."""
    trt: Any = types.ModuleType("tensorrt")
    trt.__version__ = version
    trt.DataType = types.SimpleNamespace(UINT8="uint8")
    trt.NetworkDefinitionCreationFlag = types.SimpleNamespace(**({} if typed else {"EXPLICIT_BATCH": 0}))
    trt.BuilderFlag = types.SimpleNamespace(**({} if typed else {"FP16": "FP16", "INT8": "INT8"}))

    class ILogger:
        Severity = types.SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)

    class Builder:
        def __init__(self, logger: Any) -> None:
            if not gpu:
                logger.log(1, "CUDA initialization failure with error: 100")
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def create_network(self, flags: int) -> Any:
            trt.network_flags = flags
            return types.SimpleNamespace(
                num_inputs=1,
                num_outputs=1,
                get_input=lambda index: FakeTensor((1, *HW, 3)),
                get_output=lambda index: FakeTensor((1, *HW)),
            )

        def create_builder_config(self) -> Any:
            trt.set_flags = []
            return types.SimpleNamespace(set_flag=trt.set_flags.append)

        def build_serialized_network(self, network: Any, config: Any) -> bytes:
            return b"plan"

    class OnnxParser:
        def __init__(self, network: Any, logger: Any) -> None:
            pass

        def parse(self, data: bytes) -> bool:
            return True

    trt.ILogger, trt.Builder, trt.OnnxParser = ILogger, Builder, OnnxParser
    return trt
