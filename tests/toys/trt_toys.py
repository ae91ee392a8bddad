"""What the TensorRT tests share: the library where it is installed, a stand-in for another, INT8 models."""

from __future__ import annotations

import functools
import sys
from typing import Any, Sequence, Tuple

import onnx
import pytest
from export_toys import HW, SCENES, checkpoint, exported, int8_from_fp32, one_torch_thread  # noqa: F401
from trt_surfaces import make, surface

from gradseg.calibration.qdq.int8 import Settings
from gradseg.runtime.engines.trt_library import import_one


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


def network_of(trt: Any, layers: Sequence[Any] = (), hw: Tuple[int, int] = HW, batch: int = 1) -> None:
    """Cans a deployment-form network of these layers, and a plan, for a stand-in from `surface`."""
    shape = (batch, *hw)
    trt.returns.update(
        {
            "INetworkDefinition.num_inputs": 1,
            "INetworkDefinition.num_outputs": 1,
            "INetworkDefinition.num_layers": len(layers),
            "INetworkDefinition.get_layer": lambda index: layers[index],
            "INetworkDefinition.get_input": lambda index: make(trt, "ITensor", shape=(*shape, 3), dtype=uint8(trt)),
            "INetworkDefinition.get_output": lambda index: make(trt, "ITensor", shape=shape, dtype=uint8(trt)),
            "IHostMemory.bytes": b"plan",
        }
    )


def uint8(trt: Any) -> Any:
    return trt.DataType.UINT8


def classic(version: str = "8.5.3", gpu: bool = True) -> Any:
    """A stand-in for the `tensorrt` module of a recorded version, which builds b"plan" from anything."""
    trt = surface(version)
    network_of(trt)
    if not gpu:

        def refuse(logger: Any) -> Any:
            logger.log(trt.ILogger.Severity.WARNING, "Unable to determine GPU memory usage")
            logger.log(trt.ILogger.Severity.WARNING, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

        trt.returns["Builder"] = refuse
    return trt
