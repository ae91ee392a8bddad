"""Plans for the runtime's tests: files with their manifests, and a TensorRT that runs them on the stand-in GPU.

The TensorRT is a recorded surface of some version (trt_surfaces.py), so that names and arguments are that version's;
what the plan computes is here: labels = blue channel modulo 11.
"""

from __future__ import annotations

import hashlib
import json
import sys
import types
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import pytest
from cuda_toys import Device, Stream, cuda_python, pycuda
from runtime_toys import HW, SPEC
from trt_surfaces import make, surface

from gradseg.base.errors import GradsegError
from gradseg.runtime.cuda.gpu import Gpu
from gradseg.runtime.engines import trt_manifest as manifest_module

GPU = Gpu("Toy GPU", "sm87", "L4T 35.4.1", "11.4", 8 << 30, True, 8, 1_000_000, 3_000_000, 128, 4 << 20)
PLAN = b"a plan" * 9
NO_GPU = "needs an NVIDIA GPU with its driver; this machine has none"


def manifest(data: bytes = PLAN, **changes: Any) -> Dict[str, Any]:
    """A manifest that fits PLAN, TensorRT 8.5.3 and GPU, with `changes`."""
    fits: Dict[str, Any] = {
        "format": "gradseg.plan/1",
        "plan": {"file": "m.plan", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
        "spec": SPEC.to_dict(),
        "frame_hw": list(HW),
        "batch": 1,
        "precision": "int8",
        "library": "tensorrt",
        "version": "8.5.3.1",
        "compute_capability": ["sm87"],
        "gpu": {"name": GPU.name, "compute_capability": "sm87"},
        "options": {},
    }
    return {**fits, **changes}


def write_plan(folder: Path, data: bytes = PLAN, name: str = "m.plan", **changes: Any) -> Path:
    """The plan with its manifest."""
    (folder / name).write_bytes(data)
    (folder / f"{name}.json").write_text(json.dumps(manifest(data, **changes)))
    return folder / name


def fields_for(trt: Any) -> Dict[str, Any]:
    """What a manifest says of a plan built by that library."""
    library = "tensorrt_rtx" if "rtx" in trt.__name__ else "tensorrt"
    return {"library": library, "version": trt.__version__}


class Context:
    """An execution context: names and arguments are checked by the recorded surface, the work is queued on `device`."""

    def __init__(self, trt: Any, device: Device, frames: Tuple[int, ...]) -> None:
        self._strict, self._trt, self._device = make(trt, "IExecutionContext"), trt, device
        self._frames, self._runs, self._stream = frames, 0, 0
        self.addresses: Dict[str, int] = {}

    def set_tensor_address(self, *arguments: Any) -> bool:
        given = self._strict.set_tensor_address(*arguments)
        self.addresses[arguments[0]] = arguments[1]
        return bool(given)

    def execute_async_v3(self, *arguments: Any) -> bool:
        """The addresses are those of now, as for a kernel that is launched or captured."""
        if not self._strict.execute_async_v3(*arguments):
            return False
        stream: Stream = self._device.streams[arguments[0]]
        assert self._stream in (0, id(stream)), "a context stays on one stream, or its activations are overwritten"
        self._runs, self._stream = self._runs + 1, id(stream)
        if self._runs == 1 and stream.capturing is not None:  # TensorRT allocates in the first run
            self._device.invalid = True
            return False
        frame, labels = self.addresses["frame"], self.addresses["labels"]
        batch, height, width, _ = self._frames
        pixels = batch * height * width

        def work() -> None:
            self._device.view(labels, pixels)[:] = self._device.view(frame, 3 * pixels)[::3] % 11

        self._device.queue(stream, work)
        return True


def toy_trt(version: str, device: Device, frames: Tuple[int, ...] = (1, *HW, 3)) -> Any:
    """TensorRT of a recorded version, for a plan that takes `frames`; its `loaded` lists what was deserialised."""
    trt = surface(version)
    trt.loaded = []
    trt.contexts = []

    def load(data: bytes) -> Any:
        trt.loaded.append(data)
        return make(trt, "ICudaEngine")

    def context(*_: Any) -> Any:
        trt.contexts.append(Context(trt, device, frames))
        return trt.contexts[-1]

    trt.returns.update(
        {
            "Runtime.deserialize_cuda_engine": load,
            "Runtime.num_DLA_cores": 2,
            "ICudaEngine.num_io_tensors": 2,
            "ICudaEngine.get_tensor_name": lambda index: ("labels", "frame")[index],
            "ICudaEngine.get_tensor_mode": lambda name: trt.TensorIOMode["INPUT" if name == "frame" else "OUTPUT"],
            "ICudaEngine.get_tensor_shape": lambda name: frames if name == "frame" else frames[:3],
            "ICudaEngine.get_tensor_dtype": lambda name: trt.DataType["UINT8"],
            "ICudaEngine.create_execution_context": context,
        }
    )
    return trt


CUDA_MODULES = ("cuda", "cuda.bindings", "cuda.bindings.runtime", "cuda.cudart", "pycuda", "pycuda.driver")
TRT_MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_libs", "tensorrt_rtx_bindings")


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


def put(monkeypatch: pytest.MonkeyPatch, modules: Dict[str, Any]) -> None:
    """Makes modules importable; packages above them are made if need be."""
    for name, module in modules.items():
        parts = name.split(".")
        for depth in range(1, len(parts)):
            above = ".".join(parts[:depth])
            if above not in modules:
                monkeypatch.setitem(sys.modules, above, types.ModuleType(above))
        monkeypatch.setitem(sys.modules, name, module)


def install(
    monkeypatch: pytest.MonkeyPatch,
    device: Device,
    trt: Optional[Any],
    gpu: Optional[Gpu] = GPU,
    cuda: Optional[Dict[str, Any]] = None,
) -> None:
    """A machine with that GPU (None: without), that TensorRT and cuda-python, or `cuda`'s modules instead of it."""
    hide(monkeypatch, *CUDA_MODULES, *TRT_MODULES)
    if trt is not None:
        put(monkeypatch, {"tensorrt_rtx" if "rtx" in trt.__name__ else "tensorrt": trt})
    put(monkeypatch, {"cuda.bindings.runtime": cuda_python(device)} if cuda is None else cuda)

    def need(where: str) -> Gpu:
        if gpu is None:
            raise GradsegError(f"{where} {NO_GPU}", 3)
        return gpu

    monkeypatch.setattr(manifest_module, "need_gpu", need)


def old_cuda_python(device: Device) -> Dict[str, Any]:
    """The layout before 12.6."""
    return {"cuda.cudart": cuda_python(device)}


def only_pycuda(device: Device, primary: bool = True) -> Dict[str, Any]:
    return {"pycuda.driver": pycuda(device, primary)}


def calls_of(device: Device) -> List[str]:
    """What was called so far; starts anew."""
    found, device.calls[:] = list(device.calls), []
    return found
