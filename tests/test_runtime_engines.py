"""Engines: ONNX Runtime in every form, PyTorch against the network itself, TensorRT up to where a GPU is needed."""

from __future__ import annotations

import ctypes
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_toys import HW, SPEC, deployment_onnx, expected_labels, logits_onnx

from gradseg.models.errors import GradsegError
from gradseg.models.spec import spec_for
from gradseg.runtime import Segmenter
from gradseg.runtime.engine import open_engine, read_spec
from gradseg.runtime.preprocess import normalised_chw


def random_batch(seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (1, *HW, 3), np.uint8)


# -- ONNX Runtime ------------------------------------------------------------------------------------------------------


def test_deployment_form(tmp_path: Path) -> None:
    engine = open_engine(deployment_onnx(tmp_path / "m.onnx"), threads=1)
    assert engine.spec == SPEC and engine.device == "CPU" and engine.precision == "int8"
    assert engine.backend.startswith("onnxruntime 1.")
    assert engine.calibration == {"frames": 3}  # type: ignore[attr-defined]
    for seed in range(3):
        batch = random_batch(seed)
        labels = engine.infer(batch)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, expected_labels(batch))
    engine.close()
    engine.close()


def test_output_is_one_buffer_and_input_may_move(tmp_path: Path) -> None:
    engine = open_engine(deployment_onnx(tmp_path / "m.onnx"))
    one, two = random_batch(1), random_batch(2)
    address = engine.infer(one).ctypes.data
    assert engine.infer(two).ctypes.data == address
    one[:] = 255  # same address, other content
    assert (engine.infer(one) == 10).all()


@pytest.mark.parametrize("metadata", [True, False])
def test_logits_form(tmp_path: Path, metadata: bool) -> None:
    weights = np.random.default_rng(1).normal(size=(11, 3))
    spec = spec_for("d", input_hw=HW)
    path = logits_onnx(tmp_path / "m.onnx", weights, metadata=metadata)
    if not metadata:
        (tmp_path / "m.onnx.json").write_text(json.dumps({"spec": spec.to_dict()}))
    batch = random_batch()
    wanted = np.einsum("ck,nkhw->nchw", weights, normalised_chw(batch, spec)).argmax(1)
    assert (open_engine(path).infer(batch) == wanted).mean() > 0.999


def test_foreign_onnx_says_how_to_give_the_spec_and_takes_it(tmp_path: Path) -> None:
    path = deployment_onnx(tmp_path / "m.onnx", metadata=False)
    with pytest.raises(GradsegError, match=r"without GradSeg's metadata.*m\.onnx\.json.*--spec") as caught:
        open_engine(path)
    assert caught.value.exit_code == 2
    (tmp_path / "s.json").write_text(SPEC.to_json())
    engine = open_engine(path, spec=read_spec(tmp_path / "s.json"))
    np.testing.assert_array_equal(engine.infer(random_batch()), expected_labels(random_batch()))


def test_spec_that_disagrees_with_the_graph_is_refused(tmp_path: Path) -> None:
    wrong_size = deployment_onnx(tmp_path / "a.onnx", spec=SPEC.with_size((48, 64)))
    with pytest.raises(GradsegError, match=r"input 'frame'.*expected uint8 \(1, 48, 64, 3\)"):
        open_engine(wrong_size)
    with pytest.raises(GradsegError, match=r"output 'logits'.*11 classes"):
        open_engine(logits_onnx(tmp_path / "b.onnx", np.zeros((5, 3))))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.onnx", None, "no such file; expected an engine"),
        ("empty.onnx", b"", "is empty"),
        ("text.onnx", b"hello, world", "cannot load it"),
        ("m.zip", b"x", "unknown kind of engine '.zip'; expected .onnx"),
        ("text.pth", b"hello", "not a PyTorch checkpoint"),
    ],
)
def test_bad_engine_files_are_one_line(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GradsegError, match=message) as caught:
        open_engine(path)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_truncated_onnx(tmp_path: Path) -> None:
    path = deployment_onnx(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(GradsegError, match="truncated, not an ONNX model"):
        open_engine(path)


def test_wrong_batches_and_threads_are_refused(tmp_path: Path) -> None:
    path = deployment_onnx(tmp_path / "m.onnx")
    with pytest.raises(GradsegError, match="--threads 0"):
        open_engine(path, threads=0)
    engine = open_engine(path)
    for bad in (np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, *HW, 3), np.float32), random_batch()[:, :, ::-1]):
        with pytest.raises(GradsegError, match="engine input: expected contiguous uint8"):
            engine.infer(bad)


def test_missing_backend_is_exit_code_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = deployment_onnx(tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(GradsegError, match="pip install onnxruntime") as caught:
        open_engine(path)
    assert caught.value.exit_code == 3


# -- Segmenter ---------------------------------------------------------------------------------------------------------


def test_segmenter_gives_labels_at_frame_size_that_stay(tmp_path: Path) -> None:
    with Segmenter(deployment_onnx(tmp_path / "m.onnx")) as segmenter:
        black, white = np.zeros((50, 70, 3), np.uint8), np.full((50, 70, 3), 255, np.uint8)
        first, second = segmenter(black), segmenter(white)
        assert first.shape == (50, 70) and (first == 0).all() and (second == 10).all()
        out = np.empty((50, 70), np.uint8)
        assert segmenter(white, out=out) is out
        picture = segmenter.overlay(black, second, alpha=1.0)
        assert picture.shape == (50, 70, 3)
        assert tuple(picture[0, 0, ::-1]) == segmenter.spec.palette[10] and segmenter.classes[10] == "bicyclist"


# -- PyTorch -----------------------------------------------------------------------------------------------------------


def test_torch_engine_equals_the_network(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'gradseg[train]'")
    from gradseg.models.checkpoint import load_checkpoint, save_checkpoint
    from gradseg.models.network import SegNetwork

    torch.manual_seed(0)
    save_checkpoint(tmp_path / "m.pth", SegNetwork(SPEC))
    engine, network = open_engine(tmp_path / "m.pth"), load_checkpoint(tmp_path / "m.pth").network
    for seed in range(2):
        batch = random_batch(seed)
        with torch.inference_mode():
            wanted = network(torch.from_numpy(normalised_chw(batch, SPEC))).argmax(1).numpy()
        got = engine.infer(batch)
        assert got.dtype == np.uint8 and got.shape == (1, *HW)
        assert (got == wanted).mean() > 0.999, "channels_last may turn ties over, no more"
    engine.close()


def test_checkpoint_without_torch_is_exit_code_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.pth").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(GradsegError, match="needs PyTorch, and this machine has none") as caught:
        open_engine(tmp_path / "m.pth")
    assert caught.value.exit_code == 3


# -- TensorRT: stand-ins for the two libraries that keep "device" memory in the host's ---------------------------------


class FakeCudart(types.ModuleType):
    """cuda-python's runtime module as far as it is used; every call returns (error, value…)."""

    cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815

    def __init__(self, gpus: int) -> None:
        super().__init__("cuda.bindings.runtime")
        self.gpus, self.held = gpus, {}  # type: ignore[var-annotated]

    def cudaGetDeviceCount(self) -> Any:  # noqa: N802
        return (0, self.gpus)

    def cudaGetDeviceProperties(self, device: int) -> Any:  # noqa: N802
        return (0, types.SimpleNamespace(name=b"Toy GPU\0\0", major=8, minor=7))

    def cudaStreamCreate(self) -> Any:  # noqa: N802
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
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(GradsegError, match=r"needs tensorrt or tensorrt_rtx.*this machine has none") as caught:
        open_engine(plan)
    assert caught.value.exit_code == 3


def test_plan_without_gpu_is_exit_code_3(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt(monkeypatch, gpus=0)
    with pytest.raises(GradsegError, match="needs an NVIDIA GPU with its driver, and this machine has none") as caught:
        open_engine(plan)
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
    assert not cudart.held


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
