"""The TensorRT engine with stand-ins for the two libraries that keep "device" memory in the host's."""

from __future__ import annotations

import ctypes
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_toys import HW, SPEC

from gradseg.models.errors import GradsegError
from gradseg.runtime import trt_library
from gradseg.runtime.engine import open_engine


def random_batch(seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (1, *HW, 3), np.uint8)


class FakeCudart(types.ModuleType):
    """cuda-python's runtime module as far as it is used; every call returns (error, value…)."""

    cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815

    def __init__(self, gpus: int) -> None:
        super().__init__("cuda.bindings.runtime")
        self.gpus, self.held, self.streams = gpus, {}, 0  # type: ignore[var-annotated]

    def cudaGetDeviceCount(self) -> Any:  # noqa: N802
        return (0, self.gpus)

    def cudaGetDeviceProperties(self, device: int) -> Any:  # noqa: N802
        return (0, types.SimpleNamespace(name=b"Toy GPU\0\0", major=8, minor=7))

    def cudaStreamCreate(self) -> Any:  # noqa: N802
        self.streams += 1
        return (0, 77)

    def cudaMalloc(self, count: int) -> Any:  # noqa: N802
        buffer = (ctypes.c_uint8 * count)()
        self.held[ctypes.addressof(buffer)] = buffer
        return (0, ctypes.addressof(buffer))

    cudaMallocHost = cudaMalloc  # noqa: N815

    def cudaFree(self, pointer: int) -> Any:  # noqa: N802
        del self.held[pointer]
        return (0,)

    cudaFreeHost = cudaFree  # noqa: N815

    def cudaMemcpyAsync(self, target: int, source: int, count: int, kind: int, stream: int) -> Any:  # noqa: N802
        assert stream == 77
        ctypes.memmove(target, source, count)
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> Any:  # noqa: N802
        return (0,)

    def cudaStreamDestroy(self, stream: int) -> Any:  # noqa: N802
        self.streams -= 1
        return (0,)


class FakePlan:
    """Engine and execution context in one: labels = blue channel modulo 11."""

    shapes = {"labels": (1, *HW), "frame": (1, *HW, 3)}  # noqa: RUF012
    num_io_tensors = 2

    def __init__(self) -> None:
        self.addresses = {}  # type: ignore[var-annotated]

    def get_tensor_name(self, index: int) -> str:
        return list(self.shapes)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "frame" else "out"

    def get_tensor_shape(self, name: str) -> Any:
        return self.shapes[name]

    def get_tensor_dtype(self, name: str) -> str:
        return "uint8"

    def create_execution_context(self) -> FakePlan:
        return self

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        pixels = HW[0] * HW[1]
        frame = np.frombuffer((ctypes.c_uint8 * (3 * pixels)).from_address(self.addresses["frame"]), np.uint8)
        labels = np.frombuffer((ctypes.c_uint8 * pixels).from_address(self.addresses["labels"]), np.uint8)
        labels[:] = frame[::3] % 11
        return True


def fake_tensorrt(monkeypatch: pytest.MonkeyPatch, gpus: int = 1, plan: Any = FakePlan) -> FakeCudart:
    trt: Any = types.ModuleType("tensorrt")
    trt.__version__ = "10.3.0"
    trt.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
    trt.TensorIOMode = types.SimpleNamespace(INPUT="in", OUTPUT="out")
    trt.DataType = types.SimpleNamespace(UINT8="uint8")
    trt.Runtime = lambda logger: types.SimpleNamespace(deserialize_cuda_engine=lambda raw: plan() if plan else None)
    cudart = FakeCudart(gpus)
    for name, module in (("tensorrt", trt), ("cuda", types.ModuleType("cuda")), ("cuda.bindings.runtime", cudart)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "cuda.bindings", types.ModuleType("cuda.bindings"))
    return cudart


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A plan file with its sidecar."""
    (tmp_path / "m.plan").write_bytes(b"plan")
    (tmp_path / "m.plan.json").write_text(json.dumps({"spec": SPEC.to_dict(), "precision": "int8"}))
    return tmp_path / "m.plan"


def test_plan_without_tensorrt_is_exit_code_3(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cudart = fake_tensorrt(monkeypatch)
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(GradsegError, match=r"needs tensorrt or tensorrt_rtx, and it cannot be imported") as caught:
        open_engine(plan)
    assert caught.value.exit_code == 3 and not cudart.streams


def test_tensorrt_whose_shared_library_is_missing_counts_as_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(trt_library.importlib, "import_module", broken)
    assert trt_library.import_one("tensorrt") is None and trt_library.import_first() is None


@pytest.mark.parametrize("way", ["no GPU", "no driver", "no cuda-python", "nothing at all"])
def test_plan_without_gpu_is_exit_code_3(plan: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    def no_driver() -> Any:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    cudart = fake_tensorrt(monkeypatch, gpus=0, plan=lambda: pytest.fail("deserialised without a GPU"))
    if way == "no driver":
        monkeypatch.setattr(cudart, "cudaGetDeviceCount", no_driver)
    gone = {"no cuda-python": ("cuda",), "nothing at all": ("cuda", "tensorrt", "tensorrt_rtx")}.get(way, ())
    for name in gone:
        for module in [found for found in sys.modules if found.split(".")[0] == name] + [name]:
            monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(GradsegError) as caught:
        open_engine(plan)
    said = str(caught.value)
    assert said.startswith(f"{plan}: a TensorRT engine needs an NVIDIA GPU with its driver and cuda-python; ")
    assert ("cannot be imported here: pip install cuda-python" if gone else "this machine has no usable GPU") in said
    assert caught.value.exit_code == 3


def test_plan_runs_by_names_and_frees_its_memory(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cudart = fake_tensorrt(monkeypatch)
    engine = open_engine(plan)
    assert (engine.backend, engine.device, engine.precision) == ("tensorrt 10.3.0", "Toy GPU", "int8")
    for seed in range(2):
        batch = random_batch(seed)
        np.testing.assert_array_equal(engine.infer(batch), batch[..., 0] % 11)
    assert len(cudart.held) == 4
    engine.close()
    engine.close()
    assert not cudart.held and not cudart.streams and engine.threads is None


class FloatOutput(FakePlan):
    """A plan whose second tensor is refused, after the first one's buffers were allocated."""

    def get_tensor_dtype(self, name: str) -> str:
        return "uint8" if name == "frame" else "float"


class NoAddress(FakePlan):
    def set_tensor_address(self, name: str, address: int) -> bool:
        return name == "frame"


class NoContext(FakePlan):
    def create_execution_context(self) -> Any:
        return None


@pytest.mark.parametrize("broken", [FloatOutput, NoAddress, NoContext, None])
def test_plan_that_cannot_be_opened_frees_what_it_took(
    plan: Path, monkeypatch: pytest.MonkeyPatch, broken: Any
) -> None:
    cudart = fake_tensorrt(monkeypatch, plan=broken)
    with pytest.raises((GradsegError, RuntimeError)):
        open_engine(plan)
    assert not cudart.held and not cudart.streams


def test_freeing_goes_on_after_an_error_and_happens_once(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cudart = fake_tensorrt(monkeypatch)
    engine, freed = open_engine(plan), []

    def fails(pointer: int) -> Any:
        freed.append(pointer)
        return (700,)

    monkeypatch.setattr(cudart, "cudaFree", fails)
    engine.close()
    engine.close()
    assert len(freed) == 2 == len(cudart.held) and not cudart.streams, "pinned memory and stream are freed all the same"


@pytest.mark.parametrize(
    "built", [{"version": "8.5.2", "compute_capability": "sm87"}, {"version": "10.3.0", "compute_capability": "sm90"}]
)
def test_plan_of_another_version_or_gpu_names_both(plan: Path, monkeypatch: pytest.MonkeyPatch, built: Any) -> None:
    fake_tensorrt(monkeypatch, plan=None)
    plan.with_name("m.plan.json").write_text(json.dumps({"spec": SPEC.to_dict(), **built}))
    wanted = f"built by TensorRT {built['version']} for {built['compute_capability']}; this is 10.3.0 on sm87. Rebuild"
    with pytest.raises(GradsegError, match=wanted):
        open_engine(plan)


def test_plan_that_does_not_load_or_is_alone(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt(monkeypatch, plan=None)
    with pytest.raises(GradsegError, match="cannot load it: damaged, or built by another"):
        open_engine(plan)
    plan.with_name("m.plan.json").unlink()
    with pytest.raises(GradsegError, match=r"no m\.plan\.json with its ModelSpec"):
        open_engine(plan)
