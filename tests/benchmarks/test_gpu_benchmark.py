"""gpu.py: what it prepares, what it measures with engines that know the answers, and how it survives failures.

Nothing here needs a GPU; what needs one is `python benchmarks/gpu.py` itself.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

import cv2
import numpy as np
import pytest
from export_toys import one_torch_thread  # noqa: F401
from gpu_toys import H100, FakeBackend, FakeEngine, fake_torch, launcher, new_results, no_torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from places import ROOT

from gradseg.base.errors import GradsegError
from gradseg.benchmarks import gpu
from gradseg.benchmarks.on_gpu import engines as gpu_engines
from gradseg.benchmarks.on_gpu import launch as gpu_launch
from gradseg.benchmarks.on_gpu.check import labels_of
from gradseg.benchmarks.on_gpu.engines import TensorRt, Wanted
from gradseg.benchmarks.on_gpu.index import Pack
from gradseg.benchmarks.on_gpu.labels import interleaved, levels_of
from gradseg.benchmarks.on_gpu.launch import in_process_of_its_own, run_models
from gradseg.benchmarks.on_gpu.measure import Clocks, EngineFailed, Samples, measure, percentiles
from gradseg.benchmarks.on_gpu.results import Results, checks_of, row_id, table
from gradseg.benchmarks.on_gpu.run import Settings, rows_for
from gradseg.data.scenes.frames import ScenesData
from gradseg.runtime.cuda.gpu import find_gpu
from gradseg.runtime.engines.trt_library import import_first

MODEL = "dg4-star-light"
FAST = Settings(samples=12, warmup=2, torch=())
DEVICE_SIDE = (
    "gpu",
    *(f"on_gpu.{name}" for name in ("index", "check", "engines", "floors", "launch", "measure", "results", "run")),
)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of the shipped dg4-star-light at 64x96, three labelled scenes of 48x64, camera frames of 60x100."""
    folder = tmp_path_factory.mktemp("gpu")
    data, scenes = folder / "data", ScenesData(3, (48, 64), 5)
    (data / "images").mkdir(parents=True)
    (data / "labels").mkdir()
    for index in range(3):
        cv2.imwrite(str(data / "images" / f"{index}.png"), scenes[index].image)
        cv2.imwrite(str(data / "labels" / f"{index}.png"), scenes[index].label)
    source = f"folder:{data}"
    classes = {"classes": list(scenes.classes), "palette": [list(rgb) for rgb in scenes.palette], "ignore": [255]}
    (data / "classes.json").write_text(json.dumps(classes))
    given = ["--models", MODEL, "--size", "64x96", "--frame-size", "60x100", "--data", source, "--calib", source]
    assert gpu.main(["--prepare", str(folder / "pack"), *given]) == 0
    return folder / "pack"


@pytest.fixture
def backend(packed: Path) -> FakeBackend:
    return FakeBackend(Pack(packed))


def run(
    path: Path, backend: FakeBackend, how: Settings = FAST, torch: Any = no_torch, fresh: bool = True
) -> Dict[str, Any]:
    """A whole run with fake engines: the result file's content."""
    if fresh:
        new_results(path, backend, how)
    results = run_models(path, [MODEL], how.deadline, launcher(path, backend, how, torch))
    results.finish({MODEL: backend.pack.scored(MODEL)})
    found: Dict[str, Any] = json.loads(path.read_text())
    return {**found, "exit": results.exit_code}


def by_id(data: Dict[str, Any]) -> Dict[str, Dict[str, Any]]:
    return {row["id"].replace(f"{MODEL}/", ""): row for row in data["rows"]}


# --- the pack ---


def test_a_pack_holds_every_form_and_labels(packed: Path) -> None:
    pack = Pack(packed)
    assert pack.check_all() == 0 and pack.models == [MODEL] and len(pack) == 3 and pack.scored(MODEL)
    assert pack.references(MODEL, "fp32") == pack.references(MODEL, "int8") == pack.references(MODEL, "frame") == 3
    forms = {
        (border, precision, typed): pack.onnx(MODEL, precision, border, typed)[0]
        for border in ("network", "frame")
        for precision in ("fp32", "fp16", "int8")
        for typed in (False, True)
    }
    for border in ("network", "frame"):
        assert forms[border, "fp32", False] == forms[border, "fp16", False]  # weakly typed: the builder chooses
        assert len({forms[border, precision, True] for precision in ("fp32", "fp16", "int8")}) == 3
    whole = sum(len(data) for data in forms.values())
    assert (packed / "networks.xz").stat().st_size < 0.3 * whole  # weights in common stand there once
    labels, levels = pack.reference(MODEL, "frame", 0)
    assert labels.shape == levels.shape == pack.frame_hw == (60, 100) and set(np.unique(levels)) <= {0, 2}
    assert pack.index["data"]["classes"] and "conditions" in pack.index


def test_labels_in_the_pack_are_those_of_the_engine(packed: Path, tmp_path: Path) -> None:
    pack = Pack(packed)
    backend = gpu_engines.OnOnnxRuntime(tmp_path)
    for border in ("network", "frame"):
        wanted = Wanted(MODEL, "fp32", border)
        backend.build(pack, wanted)
        engine = backend.open(wanted, "plain")
        found = labels_of(pack, MODEL, "fp32", border, engine)
        engine.close()
        assert found["agreement"] == 1.0 and found["frames"] == 3
        assert found["miou_change_points"] == (0 if border == "network" else None)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "networks.xz").write_bytes(b"x"), "networks.xz: is damaged; copy the whole folder"),
        (lambda folder: (folder / "frames" / "0001.webp").unlink(), "0001.webp: is missing"),
        (lambda folder: (folder / "index.json").unlink(), "no such file; expected the index that gpu.py --prepare"),
        (lambda folder: (folder / "index.json").write_text("[]"), "format 'list', needed 'gradseg.gpu-pack/2'"),
        (lambda folder: (folder / "index.json").write_text("{"), "not JSON"),
        (lambda folder: _edit(folder, lambda index: index.pop("frames")), "lacks frames"),
        (lambda folder: _edit(folder, lambda index: index["files"].update({"../x": ""})), "outside the folder"),
    ],
)
def test_a_damaged_pack_is_refused_in_one_line(packed: Path, tmp_path: Path, damage: Any, says: str) -> None:
    folder = tmp_path / "pack"
    shutil.copytree(packed, folder)
    damage(folder)
    with pytest.raises(GradsegError, match=says) as caught:
        Pack(folder)
    assert "\n" not in str(caught.value)


def _edit(folder: Path, change: Any) -> None:
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))


def test_a_network_or_frame_that_is_not_what_was_packed(packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    shutil.copytree(packed, folder)
    _edit(folder, lambda index: index["frames"][0].update(pixels_crc32=1))
    assert Pack(folder).check_all() == 1 and not Pack(folder).image(0)[1] and Pack(folder).image(1)[1]
    found = labels_of(
        Pack(folder), MODEL, "fp32", "network", FakeEngine(Pack(folder), Wanted(MODEL, "fp32", "network"))
    )
    assert found["decoded_differently"] == 1 and found["agreement"] == 1 and found["miou"] == found["reference_miou"]
    _edit(folder, lambda index: [frame.update(pixels_crc32=1) for frame in index["frames"]])
    with pytest.raises(GradsegError, match="decodes every frame to other pixels than those packed"):
        Pack(folder).check_all()
    shutil.copy(packed / "index.json", folder / "index.json")
    with pytest.raises(GradsegError, match="holds no bf16 network"):
        Pack(folder).onnx(MODEL, "bf16", "network", False)
    _edit(folder, lambda index: index["models"][MODEL]["onnx"]["network"]["fp32"]["weak"].update(start=1))
    with pytest.raises(GradsegError, match=r"fp32 network of dg4-star-light is not what index\.json says; copy again"):
        Pack(folder).check_all()


def test_untrained_weights_label_every_class() -> None:
    import torch

    from gradseg.benchmarks.common.untrained import untrained_network
    from gradseg.models.spec import spec_for
    from gradseg.runtime.preprocess import normalised_chw

    spec = spec_for("dg2-star-light", input_hw=(48, 64))
    frame = ScenesData(1, (48, 64), 0)[0].image[None]
    with torch.no_grad():
        pictures = [untrained_network(spec, 0)(torch.from_numpy(normalised_chw(frame, spec))) for _ in range(2)]
    assert torch.equal(*pictures)
    assert len(np.unique(pictures[0].argmax(1).numpy())) >= 8


@settings(max_examples=40, deadline=None)
@given(nps.arrays(np.float32, (1, 3, 2, 4), elements=st.floats(-8, 8, width=16)))
def test_levels_are_the_relative_distance_of_the_two_best_scores(scores: np.ndarray[Any, Any]) -> None:
    levels = levels_of(scores, 1)
    for y, x in np.ndindex(2, 4):
        second, best = sorted(float(v) for v in scores[0, :, y, x])[-2:]
        size = max(abs(best), abs(second))
        expected = 0 if best - second < 1e-4 * size else 1 if best - second < 1e-2 * size else 2
        near_the_edge = any(abs((best - second) - edge * size) < 1e-6 for edge in (1e-4, 1e-2))
        assert levels[0, y, x] == expected or near_the_edge


def test_four_maps_are_interleaved_as_the_label_head_does() -> None:
    from onnx import TensorProto, helper

    from gradseg.graphs.sessions import OnnxRunner

    maps = np.arange(24, dtype=np.float32).reshape(1, 4, 2, 3)
    shapes = (("x", [1, 4, 2, 3]), ("y", [1, 1, 4, 6]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes]
    node = helper.make_node("DepthToSpace", ["x"], ["y"], blocksize=2, mode="DCR")
    model = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:]), ir_version=8)
    model.opset_import[0].version = 17
    assert np.array_equal(interleaved(maps[0]), OnnxRunner(model.SerializeToString()).first(maps)[0, 0])


# --- a whole run ---


def test_a_run_measures_every_row_and_checks_it(backend: FakeBackend, tmp_path: Path) -> None:
    how = Settings(samples=12, warmup=2, torch=("eager", "compile"))
    data = run(tmp_path / "r.json", backend, how, fake_torch)
    rows = by_id(data)
    assert len(rows) == 8 and data["complete"] and data["format"] == "gradseg.gpu/1"
    row = rows["tensorrt/int8/network"]
    assert row["status"] == "measured" and row["error"] is None and row["attempts"] == {}
    for way in ("graph", "plain"):
        assert row["ways"][way]["stages"]["inference"]["p50"] == 1.5
        assert row["ways"][way]["end_to_end"]["samples"] == 12 and row["ways"][way]["two_in_flight_fps"] > 0
    assert row["floors"]["int8_macs"] > 0.9 * row["floors"]["macs"] > 0 and row["floors"]["memory_fused_ms"] > 0
    assert row["distance"]["memory_fused"] == pytest.approx(1.5 / row["floors"]["memory_fused_ms"])
    assert row["clocks"] and row["measured_with"] == 7 and data["gpu_facts"]["peaks"]["fp16"] > 5e14
    assert rows["torch/compile/network"]["error"] == "PyTorch: BackendCompilerFailed: no gcc"
    assert data["exit"] == 1 and data["pytorch"]["torch"] == "2.11"  # one row failed
    checks = {check["name"]: check for check in data["checks"]}
    assert len(checks) == 8 and all(check["holds"] for check in checks.values()), checks
    assert checks[f"{MODEL} fp32: labels equal to ONNX Runtime's"]["found"] == 100
    assert checks[f"{MODEL} int8: inference p50 not above FP16's"]["needed"] == "<= 2.0000 ms"
    eager = checks[f"{MODEL}: end to end p50, PyTorch eager over the fastest engine"]
    assert eager["found"] > 5 and "tensorrt" in eager["note"]
    text = table(data)
    assert "holds: " in text and "failed: PyTorch: BackendCompilerFailed" in text and "infer p50" in text


def test_wrong_labels_are_found_and_do_not_end_the_run(backend: FakeBackend, tmp_path: Path) -> None:
    wrong = {"fp32": 1, "fp16": 20, "int8": 300}
    backend.engine = lambda wanted, way: FakeEngine(backend.pack, wanted, wrong[wanted.precision])
    data = run(tmp_path / "r.json", backend)
    failing = {check["name"] for check in data["checks"] if check["holds"] is False}
    assert {
        f"{MODEL} {what}" for what in ("fp32: labels equal to ONNX Runtime's", "fp16: labels equal to ONNX Runtime's")
    } <= failing
    assert f"{MODEL} int8: mIoU against FP32 in ONNX Runtime" in failing and data["exit"] == 1
    assert all(row["status"] == "measured" for row in data["rows"])
    labels = by_id(data)["tensorrt/fp16/network"]["labels"]
    assert 0.97 < labels["agreement"] < 0.99 and labels["miou_change_points"] != 0 and "near-ties" in labels["left_out"]


def test_untrained_weights_claim_no_accuracy(packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    shutil.copytree(packed, folder)
    _edit(folder, lambda index: index["models"][MODEL].update(trained=False))
    data = run(tmp_path / "r.json", FakeBackend(Pack(folder)))
    labels = by_id(data)["tensorrt/fp16/network"]["labels"]
    assert labels["miou"] is None and labels["left_out"].startswith("untrained; left out as near-ties of FP16")
    check = next(check for check in data["checks"] if "mIoU" in check["name"])
    assert check["holds"] is None and "mIoU says nothing" in check["note"]


def broken(where: str, error: Exception, stem: str = f"{MODEL}.fp16.network") -> Any:
    """A backend's hook, or an engine's method, that fails for one engine."""

    def hook(wanted: Wanted, *_: Any) -> None:
        if wanted.stem == stem:
            raise error

    return hook


@pytest.mark.parametrize("step", ["on_build", "on_open"])
@pytest.mark.parametrize("error", [GradsegError("no kernel for it"), RuntimeError("cudaErrorIllegalAddress")], ids=repr)
def test_an_engine_that_cannot_be_made_costs_its_own_row(
    backend: FakeBackend, tmp_path: Path, step: str, error: Exception
) -> None:
    setattr(backend, step, broken(step, error))
    data = run(tmp_path / "r.json", backend)
    rows = by_id(data)
    assert rows["tensorrt/fp16/network"]["status"] == "failed" and data["exit"] == 1 and data["complete"]
    assert str(error) in rows["tensorrt/fp16/network"]["error"]
    assert [row["status"] for row in data["rows"]].count("measured") == 5
    speed = next(check for check in data["checks"] if check["name"] == f"{MODEL} int8: inference p50 not above FP16's")
    assert speed["holds"] is None and speed["note"] == "not measured"


def test_an_engine_that_fails_while_it_is_measured_costs_its_own_row(backend: FakeBackend, tmp_path: Path) -> None:
    class Dying(FakeEngine):
        def stage_times(self, batch: np.ndarray[Any, Any]) -> Dict[str, float]:
            raise RuntimeError("cudaErrorIllegalAddress")

    def engine(wanted: Wanted, way: str) -> FakeEngine:
        dying = (wanted.stem, way) == (f"{MODEL}.int8.frame", "plain")
        return (Dying if dying else FakeEngine)(backend.pack, wanted)

    backend.engine = engine
    rows = by_id(run(tmp_path / "r.json", backend))
    assert rows["tensorrt/int8/frame"]["error"] == "cudaErrorIllegalAddress"
    assert [row["status"] for row in rows.values()].count("measured") == 5
    assert rows["tensorrt/fp16/network"]["measured_with"] == 5  # again, together, in a new process


def test_an_engine_without_a_graph_is_measured_plainly(backend: FakeBackend, tmp_path: Path) -> None:
    def on_open(wanted: Wanted, way: str) -> None:
        if way == "graph":
            raise GradsegError("no CUDA graph here; they need cuda-python")

    backend.on_open = on_open
    data = run(tmp_path / "r.json", backend)
    row = by_id(data)["tensorrt/fp32/network"]
    assert list(row["ways"]) == ["plain"] and row["notes"] == ["graph: no CUDA graph here; they need cuda-python"]
    assert row["distance"]["arithmetic"] > 0


@pytest.mark.parametrize(
    ("answers", "says"), [("two", "gives two answers for one frame"), ("one", "the same answer for all")]
)
def test_a_dead_engine_is_refused(backend: FakeBackend, tmp_path: Path, answers: str, says: str) -> None:
    class Dead(FakeEngine):
        calls = 0

        def infer(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            self.calls += 1
            return np.full_like(self._other, self.calls if answers == "two" else 3)

    backend.engine = lambda wanted, way: Dead(backend.pack, wanted)
    data = run(tmp_path / "r.json", backend)
    assert all(row["status"] == "failed" and says in row["error"] for row in data["rows"])


# --- kills, crashes, time ---


def test_a_crash_is_tried_twice_and_costs_one_row(backend: FakeBackend, tmp_path: Path) -> None:
    def on_build(wanted: Wanted) -> None:
        if wanted.stem == f"{MODEL}.int8.network":
            raise SystemExit(-11)

    backend.on_build = on_build
    rows = by_id(run(tmp_path / "r.json", backend))
    assert rows["tensorrt/int8/network"]["status"] == "failed"
    assert "the process ended 2 times while it was building" in rows["tensorrt/int8/network"]["error"]
    assert [row["status"] for row in rows.values()].count("measured") == 5


def test_a_crash_while_measuring_is_found_by_measuring_one_by_one(backend: FakeBackend, tmp_path: Path) -> None:
    class Crashing(FakeEngine):
        def begin(self, batch: np.ndarray[Any, Any]) -> None:
            raise SystemExit(-11)

    def engine(wanted: Wanted, way: str) -> FakeEngine:
        return (Crashing if wanted.stem == f"{MODEL}.fp32.frame" else FakeEngine)(backend.pack, wanted)

    backend.engine = engine
    rows = by_id(run(tmp_path / "r.json", backend))
    assert rows["tensorrt/fp32/frame"]["status"] == "failed"
    assert [row["status"] for row in rows.values()].count("measured") == 5
    assert rows["tensorrt/fp16/frame"]["measured_with"] == 1


def test_a_killed_run_goes_on_where_it_was(backend: FakeBackend, tmp_path: Path) -> None:
    path = tmp_path / "r.json"

    def on_build(wanted: Wanted) -> None:
        if wanted.stem == f"{MODEL}.fp32.frame":
            raise KeyboardInterrupt

    backend.on_build = on_build
    with pytest.raises(KeyboardInterrupt):
        run(path, backend)
    rows = by_id(json.loads(path.read_text()))
    assert rows["tensorrt/int8/network"]["status"] == "checked" and rows["tensorrt/int8/network"]["labels"]
    backend.on_build = lambda wanted: None
    before = list(backend.built)
    data = run(path, backend, fresh=False)
    assert data["complete"] and data["exit"] == 0 and backend.built[: len(before)] == before
    assert len(backend.built) == len(set(backend.built)) == 6  # nothing was built twice


def test_plans_lost_with_a_machine_are_built_and_checked_again(backend: FakeBackend, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    backend.on_open = broken("", SystemExit(-9), f"{MODEL}.int8.frame")  # type: ignore[arg-type]
    new_results(path, backend, FAST)
    assert launcher(path, backend, FAST)(MODEL, None) == -9
    backend.built.clear()
    backend.on_open = lambda wanted, way: None
    data = run(path, backend, fresh=False)
    assert data["complete"] and len(backend.built) == 6


def test_a_time_budget_ends_cleanly(backend: FakeBackend, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    late = Settings(samples=12, warmup=2, torch=(), deadline=time.monotonic() - 1)
    data = run(path, backend, late)
    assert data["exit"] == 1 and not data["complete"]
    assert all(row["status"] == "planned" and "go on with --resume" in row["error"] for row in data["rows"])
    data = run(path, backend, fresh=False)
    assert data["complete"] and data["exit"] == 0 and all(row["error"] is None for row in data["rows"])


def test_resume_refuses_another_run(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    identity = {"pack": "a", "gpu": None, "library": "tensorrt", "version": "8.5.3.1", "stand_in": None, "settings": {}}
    Results.new(path, identity, [], {}).save()
    Results.read(path).check_same(identity)
    with pytest.raises(GradsegError, match=r"version was '8.5.3.1' and is '10.3.0' now. Leave --resume out"):
        Results.read(path).check_same({**identity, "version": "10.3.0"})
    path.write_text("{}")
    with pytest.raises(GradsegError, match=r"is not a result of gpu\.py"):
        Results.read(path)


def test_a_child_is_ended_when_it_is_busy_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "child.py"
    script.write_text("import sys, time\nassert sys.argv[1:3] == ['--worker', 'm'], sys.argv\nprint(sys.argv[3:])\n")
    assert in_process_of_its_own([str(script)])("m", None) == 0
    script.write_text("import time\ntime.sleep(60)")
    monkeypatch.setattr("gradseg.benchmarks.on_gpu.launch.GRACE_S", 0.0)
    assert in_process_of_its_own([str(script)])("m", 0.2) == -1


# --- measuring ---


class Counted:
    """A series that notes when it was asked."""

    way = "plain"

    def __init__(self, row: str, log: List[str], error: Optional[Exception] = None) -> None:
        self.row, self.log, self.error = row, log, error

    def end_to_end(self, start: int, count: int, settle: int) -> List[float]:
        self.log.append(self.row)
        if self.error is not None and start:
            raise self.error
        return [float(start + index) for index in range(count)]

    def stages(self, start: int, count: int, settle: int) -> List[List[float]]:
        return [[1.0, 2.0, 3.0]] * count

    def flight(self, count: int) -> float:
        return count / 100

    def close(self) -> None:
        pass


def test_series_take_turns_and_one_that_fails_is_left_out() -> None:
    log: List[str] = []
    series = [Counted("a", log), Counted("b", log, GradsegError("gone")), Counted("c", log)]
    found = measure(series, 25, 5, lambda: False)
    assert log == [*"abc", *"abc", *"abc", *"ac"]
    assert found["a", "plain"].end_to_end == [float(v) for v in range(25)]
    assert found["a", "plain"].summary()["stages"]["download"]["p99"] == 3 and found["c", "plain"].fps == [100.0] * 5
    assert str(found["b", "plain"].error) == "gone"
    with pytest.raises(EngineFailed, match=r"^b$"):
        measure([Counted("a", log), Counted("b", log, RuntimeError("fault"))], 25, 5, lambda: False)


def test_a_measurement_that_runs_late_keeps_what_it_has() -> None:
    found = measure([Counted("a", [])], 200, 5, lambda: True)["a", "plain"]
    assert len(found.end_to_end) == 30 and found.summary()["two_in_flight_fps"] is None


@given(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=50))
def test_percentiles_are_numpys(values: List[float]) -> None:
    found = percentiles(values)
    assert found is not None and found["samples"] == len(values)
    assert found["p50"] <= found["p90"] <= found["p99"] <= found["max"] == max(values)
    assert found["p50"] == pytest.approx(float(np.median(values)))
    assert percentiles([]) is None and Samples().summary()["end_to_end"] is None


def test_checks_say_what_is_missing() -> None:
    rows = [
        {
            "id": row_id("m", "tensorrt", precision, "network"),
            "model": "m",
            "engine": "tensorrt",
            "precision": precision,
        }
        | {"border": "network", "status": "failed", "error": "no memory"}
        for precision in ("fp32", "fp16", "int8")
    ]
    checks = checks_of(rows, {"m": True}, None)
    assert [check["holds"] for check in checks] == [None] * 5 and "failed: no memory" in checks[0]["note"]
    measured = {"ways": {"graph": {"stages": {"inference": {"p50": 2.0}}, "end_to_end": {"p50": 3.0}}}}
    slower = {"ways": {"graph": {"stages": {"inference": {"p50": 2.1}}, "end_to_end": {"p50": 3.0}}}}
    eager = {"id": "m/torch/eager/network", "model": "m", "engine": "torch", "precision": "eager", "border": "network"}
    eager.update(status="measured", error=None, ways={"plain": {"end_to_end": {"p50": 14.9}}})
    mine = [{**rows[1], **measured, "error": None}, {**rows[2], **slower, "error": None}, eager]
    found = {check["name"]: check for check in checks_of(mine, {"m": True}, None)}
    assert found["m int8: inference p50 not above FP16's"]["holds"] is False
    ratio = found["m: end to end p50, PyTorch eager over the fastest engine"]
    assert ratio["holds"] is False and ratio["found"] == pytest.approx(14.9 / 3)


class FakeNvml:
    """NVML of a GPU at 1980 MHz that says nothing of its power."""

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:  # noqa: N802
        return 0

    def nvmlDeviceGetClockInfo(self, device: Any, kind: int, value: Any) -> int:  # noqa: N802
        value._obj.value = 1980 if kind == 1 else 2619
        return 0

    def nvmlDeviceGetTemperature(self, device: Any, kind: int, value: Any) -> int:  # noqa: N802
        value._obj.value = 40
        return 0


def test_clocks_are_what_nvml_says() -> None:
    clocks = Clocks(FakeNvml())
    clocks.look()
    clocks.look()
    found = clocks.summary()
    assert found is not None and found["sm_mhz"] == {"min": 1980, "median": 1980, "max": 1980}
    assert found["memory_mhz"]["max"] == 2619 and found["looks"] == 2 and "power_w" not in found
    silent = Clocks(object())
    silent.look()
    assert silent.summary() is None


# --- PyTorch in its own process ---


def test_pytorch_gives_the_same_labels_in_every_turn(packed: Path) -> None:
    from gradseg.base.json_process import serve
    from gradseg.benchmarks.on_gpu.with_torch import Worker

    asked = [
        {"do": "hello"},
        {"do": "open", "row": "r", "model": MODEL, "variant": "eager"},
        {"do": "end_to_end", "row": "r", "start": 0, "count": 2, "settle": 1},
        {"do": "stages", "row": "r", "start": 0, "count": 2, "settle": 0},
        {"do": "flight", "row": "r", "count": 2},
        {"do": "open", "row": "x", "model": "unknown", "variant": "eager"},
        {"do": "close", "row": "r"},
        {"do": "stages", "row": "r", "start": 0, "count": 1, "settle": 0},
    ]
    out = io.StringIO()
    serve(Worker(Pack(packed), "cpu").answer, [json.dumps(each) + "\n" for each in asked], out)
    hello, opened, turn, stages, flight, unknown, closed, gone = (
        json.loads(line) for line in out.getvalue().splitlines()
    )
    assert hello["device"] == "CPU" and opened["labels"]["agreement"] > 0.9999
    assert len(turn["ms"]) == 2 and min(turn["ms"]) > 0 and [len(each) for each in stages["ms"]] == [3, 3]
    assert flight["seconds"] > 0 and closed == {}
    assert "KeyError" in unknown["error"] and "KeyError" in gone["error"]


ECHO = """import sys, json
print(json.dumps({"torch": "2"}), flush=True)
sys.stdin.readline()
for line in sys.stdin:
    asked = json.loads(line)
    if asked["do"] == "open":
        print(json.dumps({"labels": {}}), flush=True)
    elif asked["do"] == "flight":
        print(json.dumps({"error": "OutOfMemoryError: no memory"}), flush=True)
    elif asked["do"] == "stages":
        sys.exit(9)
"""


def test_what_goes_wrong_in_the_other_process_is_one_line() -> None:
    process = gpu_launch.TorchProcess([sys.executable, "-c", ECHO])
    try:
        series, labels = process.open("r", "m", "eager")
        assert process.facts == {"torch": "2"} and labels == {}
        with pytest.raises(GradsegError, match="PyTorch: OutOfMemoryError: no memory"):
            series.flight(3)
        with pytest.raises(GradsegError, match="its process ended with exit code 9"):
            series.stages(0, 1, 0)
        with pytest.raises(GradsegError, match="its process ended"):
            series.end_to_end(0, 1, 0)
        series.close()
    finally:
        process.close()
    slow = gpu_launch.TorchProcess([sys.executable, "-c", ECHO])
    with pytest.raises(GradsegError, match="no answer to end_to_end within 0 s"):
        slow.ask("end_to_end", 0.05)
    slow.close()


def test_a_python_with_cuda_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(name: str, code: int) -> str:
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\n[ -n "$LD_LIBRARY_PATH" ] && exit 1\nexit {code}\n')
        path.chmod(0o755)
        return str(path)

    monkeypatch.setenv("LD_LIBRARY_PATH", "/packed/lib")
    good = fake("good", 0)
    python, environment = gpu_launch.find_python(good)
    assert python == good and "LD_LIBRARY_PATH" not in environment and environment["PYTHONPATH"] == str(ROOT / "src")
    with pytest.raises(gpu_launch.TorchMissing, match="its PyTorch finds no CUDA"):
        gpu_launch.find_python(fake("blind", 7))
    with pytest.raises(gpu_launch.TorchMissing, match="No such file"):
        gpu_launch.find_python(str(tmp_path / "absent"))


# --- the command ---


def test_the_stand_in_goes_all_the_way(packed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.json"
    given = ["--from", str(packed), "--stand-in", "ort", "--plans", str(tmp_path / "p"), "--borders", "frame"]
    code = gpu.main([*given, "--json", str(path), "--samples", "3", "--warmup", "1", "--torch", "none"])
    data = json.loads(path.read_text())
    out = capfd.readouterr().out
    assert code in (0, 1) and data["complete"] and "on the CPU, not a GPU" in data["stand_in"]
    assert [row["status"] for row in data["rows"]] == ["measured"] * 3
    assert {row["engine"] for row in data["rows"]} == {"stand-in"} and "NOT A GPU'S FIGURES" in out
    checks = {check["name"]: check["holds"] for check in data["checks"]}
    assert checks[f"{MODEL} fp32, resize inside: labels equal to ONNX Runtime's"] is True
    assert checks[f"{MODEL} int8, resize inside: inference p50 not above FP16's"] is None
    assert {"commit", "date", "samples", "warmup", "device"} <= set(data["conditions"]) and data["weights"][MODEL]


def test_a_stand_in_never_lies_among_the_results(packed: Path) -> None:
    for more in ([], ["--json", str(gpu.RESULTS / "gpu_x.json")]):
        with pytest.raises(GradsegError, match="is no GPU's result; name --json FILE outside"):
            gpu.main(["--from", str(packed), "--stand-in", "ort", *more])


def test_without_a_gpu_it_does_what_it_can_and_says_so(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gradseg.runtime.cuda.gpu.gpu_or_reason", lambda: (None, "this machine has none"))
    with pytest.raises(GradsegError, match=r"needs an NVIDIA GPU with its driver; this machine has none$") as caught:
        gpu.main(["--from", str(packed)])
    assert caught.value.exit_code == 3 and "complete, 1 networks, 3 frames" in capsys.readouterr().out
    assert not packed.with_name("pack-plans").exists()

    monkeypatch.setattr(gpu, "prepare", lambda folder, args: shutil.copytree(packed, folder))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(
        GradsegError, match=r"this machine has none\. Pack in .*/pack; run on the GPU machine"
    ) as caught:
        gpu.main([])
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)
    kept = next(tmp_path.glob("gradseg-gpu-*/pack"))
    assert f"python benchmarks/gpu.py --from {kept}" in str(caught.value) and Pack(kept).models == [MODEL]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--precisions", "fp64"], "--precisions fp64: fp64 is none of fp32, fp16, int8"),
        (["--torch", ""], "--torch : nothing is none of eager"),
        (["--samples", "0"], "--samples must be at least 1"),
        (["--time-budget", "-1"], "--time-budget -1: expected seconds"),
        (["--prepare", "p", "--models", "unet"], "--models unet: unet is none of"),
        (["--prepare", "p", "--models", "d", "--checkpoint", "x=y"], "--checkpoint x=y: expected ID=PATH"),
        (["--from", "absent"], "absent: no such folder; make it with python "),
    ],
)
def test_a_wrong_command_is_one_line(
    given: List[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GradsegError) as caught:
        gpu.main(given)
    assert says in str(caught.value) and caught.value.exit_code == 2 and not list(tmp_path.iterdir())


def test_prepare_leaves_other_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(GradsegError, match=r"holds mine.txt, which is no part of a pack; name an empty folder"):
        gpu.main(["--prepare", str(tmp_path), "--models", "d", "--data", "scenes:frames=1,size=48x64"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_plans_are_built_once_with_a_manifest(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from gradseg.export.trt.build import Built
    from gradseg.runtime.engines.trt_manifest import read_manifest

    trt = SimpleNamespace(__version__="8.5.3.1", BuilderFlag=SimpleNamespace(FP16=1))
    built: List[Any] = []

    def build_plan(data: bytes, options: Any, name: str, library: Any, frame_hw: Any) -> Built:
        built.append((options, frame_hw))
        return Built(b"plan of " + name.encode(), "tensorrt", "8.5.3.1", (), ("FP16",), 2.5)

    monkeypatch.setattr(gpu_engines, "need_gpu", lambda where: H100)
    monkeypatch.setattr("gradseg.export.trt.build.import_tensorrt", lambda cross: ("tensorrt", trt))
    monkeypatch.setattr("gradseg.export.trt.build.build_plan", build_plan)
    backend, pack, wanted = TensorRt(tmp_path), Pack(packed), Wanted(MODEL, "fp16", "frame")
    first = backend.build(pack, wanted)
    assert first["seconds"] == 2.5 and not first["taken_up"] and built[0][1] == (60, 100)
    manifest = read_manifest(tmp_path / f"{MODEL}.fp16.frame.plan")
    assert manifest["gpu"]["name"] == H100.name and manifest["frame_hw"] == [60, 100]
    assert backend.build(pack, wanted)["taken_up"] and len(built) == 1
    (tmp_path / f"{MODEL}.fp16.frame.plan").write_bytes(b"damaged")
    assert not backend.build(pack, wanted)["taken_up"] and len(built) == 2
    assert gpu.slug(backend) == "nvidia_h100_80gb_hbm3"


def test_the_device_side_needs_numpy_and_opencv_alone() -> None:
    names = [f"gradseg.benchmarks.{name}" for name in DEVICE_SIDE]
    code = f"""
import importlib, sys
blocked = ("torch", "onnx", "onnxruntime", "tensorrt", "cuda", "pycuda", "rich")
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocker())
for name in {names!r}:
    importlib.import_module(name)
for name in ("build", "manifest", "options"):
    importlib.import_module("gradseg.export.trt." + name)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
def test_on_a_gpu_the_labels_are_those_of_onnx_runtime(packed: Path, tmp_path: Path) -> None:
    if find_gpu() is None or import_first() is None:
        pytest.skip("needs an NVIDIA GPU with its driver, and TensorRT")
    given = ["--from", str(packed), "--json", str(tmp_path / "r.json"), "--plans", str(tmp_path / "plans")]
    gpu.main([*given, "--samples", "20", "--torch", "none"])
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["complete"] and all(row["status"] == "measured" for row in data["rows"])
    assert all(check["holds"] for check in data["checks"] if "labels" in check["name"])


def test_rows_follow_what_the_pack_holds(packed: Path, tmp_path: Path) -> None:
    rows = [row["id"] for row in rows_for(Pack(packed), Settings(models=(MODEL,)))]
    assert len(rows) == 9 and rows[0] == f"{MODEL}/tensorrt/fp32/network" and rows[-1] == f"{MODEL}/torch/half/network"
    folder = tmp_path / "pack"
    shutil.copytree(packed, folder)
    _edit(
        folder, lambda index: (index["models"][MODEL].update(torch=None), index["models"][MODEL]["onnx"].pop("frame"))
    )
    assert len(rows_for(Pack(folder), Settings())) == 3
