"""The TensorRT engine on the stand-in GPU: right labels whatever the order in which a GPU does its work, nothing left
behind, and every name and argument as each recorded TensorRT has it."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any, Callable, List, Tuple

import numpy as np
import pytest
from cuda_toys import Device, cuda_python
from plan_toys import PLAN, calls_of, fields_for, install, old_cuda_python, only_pycuda, toy_trt, write_plan
from runtime_toys import HW
from trt_surfaces import VERSIONS

from gradseg.base.errors import GradsegError
from gradseg.runtime.cuda.cuda_python_backend import CudaPython
from gradseg.runtime.engines import trt_library
from gradseg.runtime.engines.open import open_engine
from gradseg.runtime.engines.protocol import Overlapping
from gradseg.runtime.engines.trt import TrtEngine
from gradseg.runtime.engines.trt_manifest import StalePlan

ORDERS = ["late", "early", *range(8)]


def batch_of(seed: int, count: int = 1, hw: Tuple[int, int] = HW) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, *hw, 3), np.uint8)


def labels_of(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return batch[..., 0] % 11


def opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch, device: Device, version: str = "8.5.3", **options: Any
) -> Any:
    """An engine on the stand-in; `options` of `install` and `TrtEngine`."""
    trt = toy_trt(version, device)
    given = {name: options.pop(name) for name in ("cuda", "gpu") if name in options}
    install(monkeypatch, device, trt, **given)
    return TrtEngine(write_plan(folder, **fields_for(trt)), **options)


def stream_through(engine: Any, frames: int = 7) -> None:
    """Frames through begin and finish, two under way, the caller's array overwritten as soon as it may be."""
    mine, wanted = batch_of(0), []  # type: ignore[var-annotated]
    for seed in range(frames):
        if seed % 3:
            mine[...] = batch_of(seed)
            engine.begin(mine)
        else:
            engine.staging[...] = batch_of(seed)
            engine.begin(engine.staging)
        wanted.append(labels_of(batch_of(seed)))
        mine[...] = 255
        if len(wanted) == 2:
            np.testing.assert_array_equal(engine.finish(), wanted.pop(0))
    np.testing.assert_array_equal(engine.finish(), wanted.pop(0))


# -- right in every order, on every version


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_every_recorded_tensorrt(
    version: str, cuda_graph: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device = Device()
    engine = opened(tmp_path, monkeypatch, device, version, cuda_graph=cuda_graph)
    assert engine.backend.split()[0] == ("tensorrt_rtx" if "rtx" in version else "tensorrt")
    assert version.replace("rtx-", "") in engine.backend and isinstance(engine, Overlapping)
    assert (engine.device, engine.precision, engine.threads) == ("Toy GPU", "int8", None)
    assert (engine.batch, engine.frame_hw, engine.uses_cuda_graph) == (1, HW, cuda_graph)
    for seed in range(3):
        np.testing.assert_array_equal(engine.infer(batch_of(seed)), labels_of(batch_of(seed)))
    stream_through(engine)
    engine.close()
    engine.close()
    assert device.held == 0 and capsys.readouterr() == ("", "")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("way", ["graph", "plain", "pycuda"])
def test_labels_are_right_in_every_order(order: Any, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(order)
    cuda = only_pycuda(device) if way == "pycuda" else None
    engine = opened(tmp_path, monkeypatch, device, cuda=cuda, cuda_graph=way == "graph")
    stream_through(engine)
    for seed in range(3):
        np.testing.assert_array_equal(engine.infer(batch_of(seed)), labels_of(batch_of(seed)))
    engine.begin(batch_of(1))  # and is closed with a batch under way
    engine.close()
    assert device.held == 0


def waits_only_for(kept: str) -> Callable[..., None]:
    """Breaks the order between uploads, inferences and downloads on one side."""

    def broken(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        real = CudaPython.wait_for

        def wait_for(self: CudaPython, stream: Any, event: Any) -> None:
            if any(event is getattr(each, kept) for each in engine._sets):
                real(self, stream, event)

        monkeypatch.setattr(CudaPython, "wait_for", wait_for)

    return broken


def no_synchronisation(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaPython, "synchronise", lambda self, stream: None)


def one_set_for_all(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrtEngine, "_free_set", lambda self: self._sets[0])


def swapped_graphs(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = engine._sets
    one.graph, two.graph = two.graph, one.graph


@pytest.mark.parametrize(
    "broken",
    [waits_only_for("uploaded"), waits_only_for("inferred"), no_synchronisation, one_set_for_all, swapped_graphs],
    ids=["downloads early", "infers early", "does not wait", "one set", "swapped graphs"],
)
def test_the_stand_in_notices_a_race(
    broken: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the things that the engine's docstring argues from, taken away, gives wrong labels in some order."""
    wrong = 0
    for order in ORDERS:
        with monkeypatch.context() as patch:
            device = Device(order)
            engine = opened(tmp_path, patch, device)
            broken(engine, patch)
            try:
                stream_through(engine)
            except AssertionError:
                wrong += 1
    assert wrong


def test_staging_is_uploaded_from_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened(tmp_path, monkeypatch, Device())
    copied: List[Any] = []
    monkeypatch.setattr(np, "copyto", lambda *arguments: copied.append(arguments))
    engine.begin(engine.staging)
    first = engine._under_way[0].frames.ctypes.data
    assert engine.staging.ctypes.data != first and not copied
    engine.begin(engine.staging)
    assert not copied and len(engine._under_way) == 2
    with pytest.raises(RuntimeError, match="two batches are under way; finish"):
        _ = engine.staging


def test_stage_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened(tmp_path, monkeypatch, Device(3))
    for seed in range(2):
        times = engine.stage_times(batch_of(seed))
        assert list(times) == ["upload", "inference", "download"] and min(times.values()) > 0
        np.testing.assert_array_equal(engine._sets[0].labels, labels_of(batch_of(seed)))
    stream_through(engine)
    engine.begin(batch_of(0))
    for call in (engine.stage_times, engine.infer):
        with pytest.raises(RuntimeError, match="begun batches are not finished"):
            call(batch_of(0))


def test_several_frames_of_another_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(1)
    trt = toy_trt("10.3.0", device, (4, 40, 56, 3))
    install(monkeypatch, device, trt)
    engine: Any = open_engine(write_plan(tmp_path, batch=4, frame_hw=[40, 56], **fields_for(trt)))
    assert (engine.batch, engine.frame_hw, engine.spec.input_hw) == (4, (40, 56), HW)
    batch = batch_of(5, 4, (40, 56))
    np.testing.assert_array_equal(engine.infer(batch), labels_of(batch))
    with pytest.raises(GradsegError, match=r"expected contiguous uint8 BGR \(4, 40, 56, 3\), found uint8 \(1, 24"):
        engine.infer(batch_of(0))


def test_misuse_is_told_and_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened(tmp_path, monkeypatch, Device())
    with pytest.raises(RuntimeError, match="finish\\(\\) without begin"):
        engine.finish()
    engine.begin(batch_of(1))
    engine.begin(batch_of(2))
    with pytest.raises(RuntimeError, match="two batches are under way"):
        engine.begin(batch_of(3))
    for seed in (1, 2):
        np.testing.assert_array_equal(engine.finish(), labels_of(batch_of(seed)))
    engine.close()
    with pytest.raises(RuntimeError, match="is closed"):
        engine.infer(batch_of(0))


# -- CUDA graphs


def test_a_graph_is_captured_once_for_each_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    engine = opened(tmp_path, monkeypatch, device)
    trt = engine._trt
    assert len(trt.contexts) == 2 and trt.contexts[0].addresses != trt.contexts[1].addresses
    assert len(trt.called("IExecutionContext.execute_async_v3")) == 4, "a plain run and a capture for each"
    calls_of(device)
    stream_through(engine, 5)
    assert len(trt.called("IExecutionContext.execute_async_v3")) == 4
    assert calls_of(device).count("cudaGraphLaunch") == 5 and not device.graphs and len(device.executables) == 2


@pytest.mark.parametrize("fails", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiateWithFlags"])
def test_without_a_graph_it_is_enqueued_plainly_and_said_once(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device = Device()
    modules = {"cuda.bindings.runtime": cuda_python(device, fails)}
    if fails == "cudaStreamEndCapture":  # the real one ends the capture all the same

        def end(stream: Any) -> Any:
            stream.capturing = None
            return (901, None)

        modules["cuda.bindings.runtime"].cudaStreamEndCapture = end
    engine = opened(tmp_path, monkeypatch, device, cuda=modules)
    assert not engine.uses_cuda_graph
    stream_through(engine)
    engine.close()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"no CUDA graph ({fails}: " in said and "enqueued plainly" in said
    assert device.held == 0


def test_a_capture_that_tensorrt_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device = Device()
    trt = toy_trt("10.3.0", device)
    install(monkeypatch, device, trt)
    capturing = lambda *_: all(stream.capturing is None for stream in device.streams.values())  # noqa: E731
    trt.returns["IExecutionContext.execute_async_v3"] = capturing
    engine = TrtEngine(write_plan(tmp_path, **fields_for(trt)))
    stream_through(engine)
    engine.close()
    assert "no CUDA graph (TensorRT refused to queue it)" in capsys.readouterr().err and device.held == 0


@pytest.mark.parametrize("primary", [True, False])
def test_pycuda_in_another_thread(
    primary: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in the video loop: opened here, used in the inference thread, closed here."""
    device = Device(2)
    modules = only_pycuda(device, primary)
    engine = opened(tmp_path, monkeypatch, device, cuda=modules)
    assert not engine.uses_cuda_graph
    problems: List[BaseException] = []

    def work() -> None:
        try:
            stream_through(engine)
        except BaseException as error:  # noqa: BLE001 told below
            problems.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert not problems and engine.stage_times(batch_of(0))
    engine.close()
    assert modules["pycuda.driver"].contexts == 0 and not device.memory
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "CUDA graphs need cuda-python (pip install cuda-python)" in said


@pytest.mark.parametrize("layout", ["new", "old"])
def test_cuda_python_in_another_thread(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    engine = opened(tmp_path, monkeypatch, device, cuda=old_cuda_python(device) if layout == "old" else None)
    found: List[Any] = []
    thread = threading.Thread(target=lambda: found.append(engine.infer(batch_of(4)).copy()))
    thread.start()
    thread.join(60)
    np.testing.assert_array_equal(found[0], labels_of(batch_of(4)))
    assert len(device.threads) == 2


# -- errors and interrupts at every step


class Fault:
    """Lets the n-th call to CUDA end otherwise."""

    def __init__(self, runtime: Any, ends: Callable[[], Any]) -> None:
        self.countdown, self.ends, self.struck = -1, ends, False
        for name in [name for name in vars(runtime) if name.startswith("cuda") and callable(vars(runtime)[name])]:
            setattr(runtime, name, self._watched(getattr(runtime, name)))

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any) -> Any:
            self.countdown -= 1
            if self.countdown == 0:
                self.struck = True
                return self.ends()
            return call(*arguments)

        return watched


def failing() -> Any:
    return (700, None)  # cudaErrorIllegalAddress


def out_of_memory() -> Any:
    return (2, None)


def interrupted() -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize("ends", [failing, out_of_memory, interrupted])
def test_a_fault_at_any_step_of_opening_leaves_nothing(
    ends: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(1, 200):
        device = Device()
        runtime = cuda_python(device)
        fault = Fault(runtime, ends)
        fault.countdown, engine = step, None
        try:
            engine = opened(tmp_path, monkeypatch, device, cuda={"cuda.bindings.runtime": runtime})
            np.testing.assert_array_equal(engine.infer(batch_of(1)), labels_of(batch_of(1)))
        except (GradsegError, RuntimeError, KeyboardInterrupt) as error:
            assert not isinstance(error, GradsegError) or error.exit_code == 3
        for _ in range(2):
            with contextlib.suppress(KeyboardInterrupt):
                if engine is not None:
                    engine.close()
        assert device.held <= 1, f"step {step}: only what could not be freed stays"
        if not fault.struck:
            break
    assert step > 60 and device.held == 0, "every step was tried"


@pytest.mark.parametrize("order", ["late", "early", 1])
@pytest.mark.parametrize("ends", [failing, interrupted])
def test_a_fault_at_any_step_of_a_frame_spoils_no_other(
    order: Any, ends: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(order)
    runtime = cuda_python(device)
    fault = Fault(runtime, ends)
    engine = opened(tmp_path, monkeypatch, device, cuda={"cuda.bindings.runtime": runtime})
    for use in (engine.infer, engine.stage_times, lambda batch: (engine.begin(batch), stream_through_rest(engine))):
        for step in range(1, 60):
            fault.countdown, fault.struck = step, False
            with contextlib.suppress(RuntimeError, KeyboardInterrupt):
                use(batch_of(step))
            fault.countdown = -1
            while engine._under_way:  # an interrupt of the caller's own, between begin and finish
                engine.finish()
            for seed in range(3):
                np.testing.assert_array_equal(engine.infer(batch_of(seed)), labels_of(batch_of(seed)))
            if not fault.struck:
                break
        assert step > 5 and not fault.struck
    engine.close()
    assert device.held == 0


def stream_through_rest(engine: Any) -> None:
    engine.begin(batch_of(90))
    engine.finish()
    engine.finish()


# -- what cannot be opened


def refuse(trt: Any, name: str, answer: Any) -> None:
    trt.returns[name] = answer


@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [
        ("ICudaEngine.get_tensor_dtype", lambda name: None, "expected one uint8 .*not a deployment-form plan"),
        ("ICudaEngine.get_tensor_shape", lambda name: (1, 8, 8, 3), r"inputs \['frame'\] \(1, 8, 8, 3\); expected"),
        ("ICudaEngine.num_io_tensors", 1, r"inputs \[\] None; expected one uint8"),
        ("ICudaEngine.create_execution_context", None, "not enough GPU memory on Toy GPU"),
        ("IExecutionContext.set_tensor_address", lambda name, address: name == "frame", "set_tensor_address failed"),
        ("IExecutionContext.execute_async_v3", False, "could not enqueue the inference"),
        (
            "Runtime",
            TypeError("pybind11::init(): nullptr"),
            r"8\.5\.3\.1 does not start on Toy GPU: pybind11.*Its CUDA",
        ),
        ("Runtime.deserialize_cuda_engine", None, "cannot load it, though its manifest fits. Rebuild: python"),
    ],
)
def test_a_plan_that_cannot_be_opened_frees_what_it_took(
    name: str, answer: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device()
    trt = toy_trt("8.5.3", device)
    install(monkeypatch, device, trt)
    refuse(trt, name, (lambda *_: None) if answer is None else answer)
    with pytest.raises((GradsegError, RuntimeError), match=message):
        TrtEngine(write_plan(tmp_path, **fields_for(trt)))
    assert device.held == 0


def test_tensorrts_own_words_are_in_the_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    trt = toy_trt("10.3.0", device)
    install(monkeypatch, device, trt)

    def load(data: bytes) -> None:
        assert data == PLAN
        logger = trt.called("Runtime")[0][0]
        logger.log(trt.ILogger.Severity.WARNING, "not this")
        logger.log(trt.ILogger.Severity.ERROR, "Serialization assertion\n failed")
        logger.log(trt.ILogger.Severity.ERROR, "what follows from it")

    trt.returns["Runtime.deserialize_cuda_engine"] = load
    with pytest.raises(GradsegError, match=r"manifest fits\. TensorRT says: Serialization assertion failed\. Rebuild"):
        TrtEngine(write_plan(tmp_path, **fields_for(trt)))


def test_a_warning_may_be_all_that_tensorrt_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As 8.5 does where its CUDA does not fit the driver."""
    device = Device()
    trt = toy_trt("8.5.3", device)
    install(monkeypatch, device, trt)

    def start(logger: Any) -> None:
        logger.log(trt.ILogger.Severity.INFO, "not this")
        logger.log(trt.ILogger.Severity.WARNING, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    trt.returns["Runtime"] = start
    with pytest.raises(
        GradsegError, match="does not start on Toy GPU: CUDA initialization failure with error: 35"
    ) as e:
        TrtEngine(write_plan(tmp_path, **fields_for(trt)))
    assert e.value.exit_code == 3 and device.held == 0


def test_host_code_is_allowed_only_where_the_plan_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for compatible in (False, True):
        device = Device()
        trt = toy_trt("8.6.1", device)
        install(monkeypatch, device, trt)
        TrtEngine(write_plan(tmp_path, options={"version_compatible": compatible}, **fields_for(trt))).close()
        assert trt.called("Runtime.engine_host_code_allowed=") == ([(True,)] if compatible else [])
        assert [name for name, _ in trt.log].index("Runtime") >= 0


def test_dla(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    trt = toy_trt("8.5.3", device)
    install(monkeypatch, device, trt)
    TrtEngine(write_plan(tmp_path, options={"dla": 1}, **fields_for(trt))).close()
    assert trt.called("Runtime.DLA_core=") == [(1,)] and len(trt.loaded) == 1
    with pytest.raises(StalePlan, match=r"options.dla differs: found 2 DLA cores, needed DLA core 2"):
        TrtEngine(write_plan(tmp_path, options={"dla": 2}, **fields_for(trt)))
    assert len(trt.loaded) == 1 and device.held == 0


def test_rtx_compiles_once_for_both_contexts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened(tmp_path, monkeypatch, Device(), "rtx-1.7.1")
    assert len(engine._trt.called("IRuntimeConfig.set_runtime_cache")) == 1
    assert len(engine._trt.called("ICudaEngine.create_execution_context")) == 2


def test_another_model_of_gpu_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device = Device()
    trt = toy_trt("8.5.3", device)
    install(monkeypatch, device, trt)
    gpu = {"name": "Another GPU", "compute_capability": "sm87"}
    TrtEngine(write_plan(tmp_path, gpu=gpu, **fields_for(trt))).close()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "was built on Another GPU, this is Toy GPU: it runs" in said


def test_tensorrt_whose_shared_library_is_missing_counts_as_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(trt_library.importlib, "import_module", broken)
    assert trt_library.import_one("tensorrt") is None and trt_library.import_first() is None
