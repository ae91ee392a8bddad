"""TensorRT on a real GPU, where a machine has both: `python -m pytest tests/benchmarks/test_gpu.py -m gpu`."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any, Iterator, List

import numpy as np
import pytest
from plan_toys import CUDA_MODULES, hide

from gradseg.models.spec import spec_for
from gradseg.runtime import run_video
from gradseg.runtime.cuda.gpu import find_gpu, need_gpu
from gradseg.runtime.cuda.open import open_cuda
from gradseg.runtime.engines.open import open_engine
from gradseg.runtime.engines.protocol import Engine
from gradseg.runtime.engines.trt import TrtEngine
from gradseg.runtime.engines.trt_library import import_first
from gradseg.runtime.engines.trt_manifest import StalePlan, manifest_path

pytestmark = pytest.mark.gpu
HW = (128, 256)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small FP32 network built by the TensorRT that is there, with its manifest and its ONNX."""
    gpu, library = find_gpu(), import_first()
    if gpu is None:
        pytest.skip("needs an NVIDIA GPU with its driver")
    if library is None:
        pytest.skip("needs TensorRT: pip install tensorrt")
    pytest.importorskip("onnxsim", reason="needs the export packages: pip install 'gradseg[export]'")
    from gradseg.export.trt.build import build_plan
    from gradseg.export.trt.manifest import manifest_for, write_plan
    from gradseg.export.trt.options import BuildOptions
    from gradseg.export.trt.prepare import Prepared
    from gradseg.export.trt.verify import Reference

    folder = tmp_path_factory.mktemp("gpu")
    onnx = small_network()
    (folder / "m.onnx").write_bytes(onnx)
    options, spec = BuildOptions("fp32"), spec_for("dg2-star-light", input_hw=HW)
    built = build_plan(onnx, options, "m.onnx", library, HW)
    source = Prepared(onnx, spec, "fp32", HW, 1, Reference(onnx, "itself"))
    write_plan(folder / "m.plan", built, manifest_for("m.plan", built, source, "m.onnx", options, gpu))
    return folder / "m.plan"


def small_network() -> bytes:
    """Two convolutions and an upsampling one, in the deployment form."""
    from onnx import TensorProto, helper, numpy_helper

    from gradseg.graphs.deployment import deployment_from_logits

    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array((random.normal(size=shape) / np.sqrt(fan)).astype(np.float32), name)
        for name, shape, fan in (("w0", (16, 3, 3, 3), 27), ("w1", (16, 16, 3, 3), 144), ("w2", (16, 11, 2, 2), 16))
    ]
    node = helper.make_node
    nodes = [
        node("Conv", ["input", "w0"], ["c0"], name="c0", pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["c0"], ["r0"], name="r0"),
        node("Conv", ["r0", "w1"], ["c1"], name="c1", pads=[1] * 4),
        node("Relu", ["c1"], ["r1"], name="r1"),
        node("ConvTranspose", ["r1", "w2"], ["logits"], name="up", strides=[2, 2], kernel_shape=[2, 2]),
    ]
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, *HW])
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 11, *HW])
    graph = helper.make_graph(nodes, "small", [given], [result], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(deployment_from_logits(model, spec_for("dg2-star-light", input_hw=HW)).SerializeToString())


def frame(seed: int) -> np.ndarray[Any, Any]:
    """Noise, smooth enough to have areas of one label."""
    small = np.random.default_rng(seed).integers(0, 256, (1, HW[0] // 8, HW[1] // 8, 3), np.uint8)
    return np.ascontiguousarray(small.repeat(8, 1).repeat(8, 2))


@pytest.fixture(params=["cuda-python", "pycuda"])
def engine(plan: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrtEngine]:
    """The plan, opened with one CUDA library and then the other."""
    hide(
        monkeypatch, *[name for name in CUDA_MODULES if (name.split(".")[0] == "pycuda") != (request.param == "pycuda")]
    )
    try:
        open_cuda("x", need_gpu("x")).close()
    except Exception as error:  # noqa: BLE001 whatever it is, the library cannot be used here
        pytest.skip(f"needs {request.param} that works here ({error})")
    opened = TrtEngine(plan)
    yield opened
    opened.close()
    opened.close()


def test_labels_are_those_of_onnx_runtime(engine: TrtEngine, plan: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install onnxruntime")
    reference = open_engine(plan.with_suffix(".onnx"))
    for seed in range(4):
        labels = engine.infer(frame(seed))
        assert (labels == reference.infer(frame(seed))).mean() >= 0.9999 and len(np.unique(labels)) > 3


def test_with_and_without_a_graph_the_labels_are_equal(plan: Path) -> None:
    with_graph, plain = TrtEngine(plan), TrtEngine(plan, cuda_graph=False)
    assert not plain.uses_cuda_graph
    for seed in range(6):
        np.testing.assert_array_equal(with_graph.infer(frame(seed)), plain.infer(frame(seed)))
    for each in (with_graph, plain):
        each.close()


def test_two_under_way_come_back_in_order(engine: TrtEngine) -> None:
    wanted = [engine.infer(frame(seed)).copy() for seed in range(40)]
    engine.begin(frame(0))
    for seed in range(1, 40):
        np.copyto(engine.staging, frame(seed))
        engine.begin(engine.staging)
        np.testing.assert_array_equal(engine.finish(), wanted[seed - 1], f"frame {seed - 1}")
    np.testing.assert_array_equal(engine.finish(), wanted[-1])


def test_stage_times_are_there(engine: TrtEngine) -> None:
    times = engine.stage_times(frame(0))
    assert set(times) == {"upload", "inference", "download"} and all(value > 0 for value in times.values())


def test_in_another_thread_and_closed_with_a_frame_under_way(engine: TrtEngine) -> None:
    wanted, found = engine.infer(frame(7)).copy(), []  # type: ignore[var-annotated]
    thread = threading.Thread(target=lambda: found.append(engine.infer(frame(7)).copy()))
    thread.start()
    thread.join(60)
    np.testing.assert_array_equal(found[0], wanted)
    engine.begin(frame(8))


def test_two_engines_side_by_side(plan: Path) -> None:
    engines: List[Engine] = [open_engine(plan), open_engine(plan)]
    first = [engine.infer(frame(1)).copy() for engine in engines]
    np.testing.assert_array_equal(first[0], first[1])
    engines[0].close()
    np.testing.assert_array_equal(engines[1].infer(frame(1)), first[0])
    engines[1].close()


def test_a_plan_for_another_gpu_is_refused(plan: Path, tmp_path: Path) -> None:
    copy = tmp_path / "m.plan"
    copy.write_bytes(plan.read_bytes())
    noted = json.loads(manifest_path(plan).read_text())
    manifest_path(copy).write_text(json.dumps({**noted, "compute_capability": ["sm53"]}))
    with pytest.raises(StalePlan, match="compute_capability differs: found sm"):
        open_engine(copy)


def test_a_video(plan: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    source = f"scenes:size={HW[0]}x{HW[1]},frames=30"
    assert run_video.main(["--engine", str(plan), source, "--report", str(report)]) == 0
    found = json.loads(report.read_text())
    assert found["frames_done"] == 30 and found["device"] == need_gpu("x").name
