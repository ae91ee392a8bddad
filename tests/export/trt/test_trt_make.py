"""From ONNX to a saved plan: running it on trial, --precision best, manifests, --rebuild. The GPU is a stand-in."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, List, Optional

import numpy as np
import pytest
from export_toys import HW, SCENES, checkpoint, exported, one_torch_thread  # noqa: F401

from gradseg.base.errors import GradsegError
from gradseg.base.files import sha256_of
from gradseg.export.trt import best as trt_best
from gradseg.export.trt import best as trt_choice
from gradseg.export.trt import make as trt_make
from gradseg.export.trt import verify as trt_verify
from gradseg.export.trt.best import Candidate, chosen, table
from gradseg.export.trt.build import Built
from gradseg.export.trt.make import Job, make, onnx_beside, runs_here, write_made
from gradseg.export.trt.manifest import (
    manifest_for,
    on_trial,
    rebuild_arguments,
    rebuild_options,
    write_plan,
)
from gradseg.export.trt.options import BuildOptions
from gradseg.export.trt.prepare import Prepared
from gradseg.export.trt.verify import NOT_RUN, Reference, Verified, latencies, verified
from gradseg.graphs import ties, verify
from gradseg.graphs.sessions import OnnxRunner
from gradseg.graphs.ties import Decided
from gradseg.runtime.cuda.gpu import Gpu
from gradseg.runtime.engines.trt_manifest import check_file, check_gpu, check_library, read_manifest

ORIN = Gpu("Orin", "sm87", "L4T 36.4.3", "12.6", 8 << 30, True, 8, 1020000, 3199000, 128, 4 << 20)
T4 = dataclasses.replace(ORIN, name="Tesla T4", compute_capability="sm75")


def built(library: str = "tensorrt", targets: Any = (), plan: bytes = b"a plan") -> Built:
    return Built(plan, library, "10.3.0", tuple(targets), ("FP16",), 1.25, ("built with care",))


class GpuStandIn:
    """An engine that gives the labels of an ONNX in ONNX Runtime, some of them changed, and remembers its closing."""

    def __init__(self, wrong: float = 0.0, constant: bool = False, fickle: bool = False) -> None:
        self.runner = OnnxRunner(exported().SerializeToString(), threads=1)
        self.spec, self.frame_hw, self.batch = checkpoint().spec, HW, 1
        self.name, self.backend, self.device, self.precision = "net.plan", "tensorrt 10.3.0", "Orin", "fp32"
        self.threads: Optional[int] = None
        self.uses_cuda_graph = True
        self.wrong, self.constant, self.fickle, self.calls, self.closed = wrong, constant, fickle, 0, 0

    def infer(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.calls += 1
        labels = self.runner.first(batch).copy()
        if self.constant:
            labels[:] = 3
        if self.fickle:
            labels[0, 0, 0] = self.calls % 7
        flat = labels.reshape(-1)
        flat[: round(self.wrong * flat.size)] += 1
        return labels

    def close(self) -> None:
        self.closed += 1


def use(monkeypatch: pytest.MonkeyPatch, *engines: GpuStandIn) -> None:
    waiting = list(engines)
    for module in (trt_verify, trt_best):
        monkeypatch.setattr(module, "open_engine", lambda path: waiting.pop(0))


def batches() -> List[np.ndarray[Any, Any]]:
    return verify.verification_batches(SCENES, HW)


REFERENCE = "its FP32 ONNX in ONNX Runtime"


def trial(precision: str, path: Path = Path("net.plan")) -> Any:
    return verified(path, precision, Reference(exported().SerializeToString(), REFERENCE), batches())


def test_a_plan_that_is_right_is_verified_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = GpuStandIn()
    use(monkeypatch, engine)
    found, lines = trial("fp32")
    assert (found.status, found.agreement, found.against, found.frames) == ("run", 1.0, REFERENCE, len(batches()))
    assert found.latency_ms is not None and found.latency_ms["cuda_graph"] is True
    assert 0 < found.latency_ms["p50"] <= found.latency_ms["p90"] <= found.latency_ms["p99"]
    assert any("labels equal to those of its FP32 ONNX in ONNX Runtime on 100.0000 %" in line for line in lines)
    assert "CUDA graph" in lines[-1] and "on Orin" in lines[-1] and engine.closed == 1


@pytest.mark.parametrize(
    "precision, wrong, said",
    [
        ("fp32", 0.001, r"on only 99\.9.*fp32 needs 99.99 %.*--tf32"),
        ("fp16", 0.2, "fp16 needs 95 %.*may overflow"),
        ("int8", 0.2, "int8 needs 90 %.*calibrate on frames of your own"),
    ],
)
def test_a_plan_with_other_labels_is_not_saved(
    monkeypatch: pytest.MonkeyPatch, precision: str, wrong: float, said: str
) -> None:
    engine = GpuStandIn(wrong)
    use(monkeypatch, engine)
    with pytest.raises(GradsegError, match=said):
        trial(precision)
    assert engine.closed == 1


def test_a_plan_that_is_somewhat_off_comes_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, GpuStandIn(0.03))
    found, lines = trial("int8")
    assert 0.96 < found.agreement < 0.98 and lines[0].startswith("warning: 2.99 % of the labels")


@pytest.mark.parametrize(
    "engine, said",
    [({"constant": True}, "labels .* different frames alike|on only"), ({"fickle": True}, "two answers")],
)
def test_dead_and_fickle_plans_are_refused(monkeypatch: pytest.MonkeyPatch, engine: Any, said: str) -> None:
    use(monkeypatch, GpuStandIn(**engine))
    with pytest.raises(GradsegError, match=said):
        trial("fp16")


def test_near_ties_are_left_out_of_fp32_before_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels that differ only where the two best classes are as good as equal are no fault of the plan."""
    decided = Decided(exported().SerializeToString(), "net")
    runner = OnnxRunner(exported().SerializeToString(), threads=1)
    frames = batches()
    clear = decided(frames[0], runner.first(frames[0]))
    assert clear.shape == (1, *HW) and clear.mean() > 0.9
    monkeypatch.setattr(ties, "TIE", 0.5)
    masks = {frame.tobytes(): decided(frame, runner.first(frame)) for frame in frames}

    class Engine(GpuStandIn):
        def infer(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            labels = self.runner.first(batch)
            return np.where(masks[batch.tobytes()], labels, (labels + 1) % 11).astype(np.uint8)

    use(monkeypatch, Engine())
    found, lines = trial("fp32")
    assert found.agreement == 1.0 and any("near-ties left out" in line for line in lines)
    monkeypatch.setattr(ties, "TIE", 1e-4)
    use(monkeypatch, Engine())
    with pytest.raises(GradsegError, match=r"fp32 needs 99\.99 %"):
        trial("fp32")


def test_engines_take_turns_and_each_sample_is_counted() -> None:
    order: List[str] = []

    class Engine:
        def __init__(self, name: str) -> None:
            self.name = name

        def infer(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            order.append(self.name)
            return batch

    rows = latencies([Engine("a"), Engine("b")], [np.zeros(1, np.uint8)], samples=50)  # type: ignore[list-item]
    assert [row["samples"] for row in rows] == [50, 50]
    turns = "".join(order[2 * trt_verify.WARM_UP :])
    turn = trt_verify.TURN + trt_verify.SETTLE
    assert turns.startswith("a" * turn + "b" * turn + "a" * turn) and turns.count("a") == turns.count("b")


# ---- the fastest that keeps the labels


def candidate(precision: str, p50: float, agreement: Optional[float] = 1.0, miou: Optional[float] = None) -> Candidate:
    return Candidate(precision, Path("x.plan"), agreement, miou, p50, p50 + 1)


def test_the_fastest_within_the_budget_wins() -> None:
    all_three = [candidate("fp32", 9.0), candidate("fp16", 5.0, 0.999), candidate("int8", 3.0, 0.985)]
    assert chosen(all_three, 0.5).precision == "int8"
    lines = table(all_three, all_three[2])
    assert len(lines) == 4 and lines[-1] == "best here: int8, 3.00x as fast as fp32"


def test_int8_that_is_slower_is_not_chosen() -> None:
    assert (
        chosen([candidate("fp32", 9.0), candidate("fp16", 3.0), candidate("int8", 4.0, 0.99)], 0.5).precision == "fp16"
    )


def test_labels_count_before_speed() -> None:
    off = [candidate("fp32", 9.0), candidate("fp16", 5.0, 0.98), candidate("int8", 3.0, None)]
    assert chosen(off, 0.5).precision == "fp32"
    assert [bool(each.why_not) for each in off] == [False, True, True]
    assert "99.5 are wanted" in off[1].why_not and "not allowed" in table(off, off[0])[1]


def test_miou_decides_where_frames_are_labelled() -> None:
    scored = [candidate("fp32", 9.0, 1.0, 0.66), candidate("fp16", 5.0, 0.9, 0.657), candidate("int8", 3.0, 1.0, 0.654)]
    assert chosen(scored, 0.5).precision == "fp16"
    assert "loses 0.60 points of mIoU, 0.5 are allowed" in scored[2].why_not
    for each in scored:
        each.why_not = ""
    assert chosen(scored, 1.0).precision == "int8"


def test_no_plan_at_all_is_an_error() -> None:
    with pytest.raises(GradsegError, match=r"fp32: agrees on 50\.00 % .*no plan was saved"):
        chosen([candidate("fp32", 9.0, 0.5)], 0.5)


# ---- files


def job(tmp_path: Path, gpu: Optional[Gpu] = ORIN, precision: str = "fp32", data: bytes = b"") -> Job:
    onnx = data or exported().SerializeToString()
    prepared = Prepared(onnx, checkpoint().spec, precision, HW, 1, Reference(onnx, REFERENCE))
    plan = tmp_path / "net.plan"
    return Job(prepared, BuildOptions(precision), ("tensorrt", None), plan, plan.with_suffix(".onnx"), SCENES, gpu)


def test_what_is_written_is_what_the_runtime_checks(tmp_path: Path) -> None:
    made = trt_make.Made(built(), Verified("run", 1.0, REFERENCE, 4, {"p50": 1.0}))
    said = write_made(job(tmp_path), made)
    plan = tmp_path / "net.plan"
    manifest = read_manifest(plan)
    assert check_file(plan, manifest) == b"a plan"
    check_library(plan, manifest, "tensorrt", "10.3.0")
    check_gpu(plan, manifest, ORIN)
    with pytest.raises(GradsegError, match=r"found sm75 \(Tesla T4\), needed sm87"):
        check_gpu(plan, manifest, T4)
    assert manifest["gpu"] == {"name": "Orin", "compute_capability": "sm87"}
    assert (manifest["cuda"], manifest["driver"]) == ("12.6", "L4T 36.4.3")
    assert manifest["onnx"] == {"file": "net.onnx", "sha256": sha256_of(tmp_path / "net.onnx")}
    assert BuildOptions.from_dict(manifest["options"], "x") == BuildOptions("fp32")
    assert (
        "wrote" in said
        and NOT_RUN not in said
        and sorted(p.name for p in tmp_path.iterdir())
        == [
            "net.onnx",
            "net.plan",
            "net.plan.json",
        ]
    )


def test_nothing_is_left_of_a_trial_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.plan").write_bytes(b"the old one")
    monkeypatch.setattr(trt_make, "build_plan", lambda *args, **kwargs: built())
    use(monkeypatch, GpuStandIn(0.3))
    with pytest.raises(GradsegError, match="The plan was not saved"):
        make(job(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["net.plan"] and (
        tmp_path / "net.plan"
    ).read_bytes() == b"the old one"


def test_a_plan_is_run_on_this_gpu_before_it_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_make, "build_plan", lambda *args, **kwargs: built())
    use(monkeypatch, GpuStandIn())
    made = make(job(tmp_path))
    assert made.ran and made.found.agreement == 1.0 and made.lines[0] == "built with care"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("gpu, library, targets", [(None, "tensorrt_rtx", ["sm89"]), (T4, "tensorrt_rtx", ["sm89"])])
def test_a_plan_for_another_gpu_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: Any, library: str, targets: List[str]
) -> None:
    monkeypatch.setattr(trt_make, "build_plan", lambda *args, **kwargs: built(library, targets))
    this = job(tmp_path, gpu)
    made = make(this)
    assert not made.ran and NOT_RUN in write_made(this, made)
    assert read_manifest(this.plan)["verified"]["status"] == NOT_RUN and read_manifest(this.plan)["gpu"] is None


def test_a_gpu_without_its_python_packages_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_cuda(path: Path) -> Any:
        raise GradsegError("net.plan needs cuda-python", 3)

    monkeypatch.setattr(trt_make, "build_plan", lambda *args, **kwargs: built())
    monkeypatch.setattr(trt_verify, "open_engine", no_cuda)
    assert make(job(tmp_path)).lines[-1] == f"note: {NOT_RUN}: net.plan needs cuda-python"


def test_the_onnx_that_was_given_is_never_replaced(tmp_path: Path) -> None:
    """dg2.onnx → dg2.plan in FP32, then the same in FP16: the manifest names dg2.onnx, which is the user's."""
    plan = stored(tmp_path, BuildOptions("fp32"))
    prepared = job(tmp_path, data=b"the same in FP16").prepared
    assert onnx_beside(plan, prepared, tmp_path / "net.onnx") == tmp_path / "net.trt.onnx"


def test_which_gpu_a_plan_runs_on() -> None:
    assert runs_here(built(), ORIN) and not runs_here(built(), None)
    assert runs_here(built("tensorrt_rtx"), ORIN) and not runs_here(built("tensorrt_rtx"), T4)
    assert runs_here(built("tensorrt_rtx", ["sm75"]), T4) and not runs_here(built("tensorrt_rtx", ["sm75"]), ORIN)


def test_no_other_onnx_is_overwritten(tmp_path: Path) -> None:
    plan, theirs = tmp_path / "net.plan", tmp_path / "net.onnx"
    theirs.write_bytes(b"the user's file")
    assert onnx_beside(plan, job(tmp_path).prepared).name == "net.trt.onnx"
    assert onnx_beside(plan, job(tmp_path, data=b"the user's file").prepared) == theirs
    assert onnx_beside(tmp_path / "other.plan", job(tmp_path).prepared).name == "other.onnx"
    (tmp_path / "net.trt.onnx").write_bytes(b"another of the user's")
    with pytest.raises(GradsegError, match=r"net\.onnx and net\.trt\.onnx are other files; name another plan with -o"):
        onnx_beside(plan, job(tmp_path).prepared)


def test_the_onnx_of_the_plan_before_is_replaced(tmp_path: Path) -> None:
    plan = stored(tmp_path, BuildOptions("fp32"))
    assert onnx_beside(plan, job(tmp_path, data=b"built again, otherwise").prepared) == tmp_path / "net.onnx"


def test_an_unwritable_folder_keeps_the_old_pair(tmp_path: Path) -> None:
    plan = tmp_path / "net.plan"
    plan.write_bytes(b"old")
    (tmp_path / "net.plan.json").mkdir()
    manifest = manifest_for("net.plan", built(), job(tmp_path).prepared, "net.onnx", BuildOptions("fp32"), ORIN)
    with pytest.raises(GradsegError, match="is a directory"):
        write_plan(plan, built(), manifest)
    assert plan.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2


# ---- again, from the manifest


def stored(tmp_path: Path, options: BuildOptions, library: str = "tensorrt") -> Path:
    this = dataclasses.replace(job(tmp_path), options=options)
    write_made(this, trt_make.Made(built(library, options.targets), Verified()))
    return this.plan


def test_a_rebuild_takes_the_recorded_options(tmp_path: Path) -> None:
    options = BuildOptions("fp16", workspace_mib=512, opt_level=5, keep_fp32=("a", "b"))
    arguments, manifest = rebuild_arguments(stored(tmp_path, options))
    assert arguments == [str(tmp_path / "net.onnx"), "--precision", "fp32", "-o", str(tmp_path / "net.plan")]
    assert manifest is not None
    again = rebuild_options(manifest, tmp_path / "net.plan", BuildOptions("fp16"), ("tensorrt", None), ORIN)
    assert again == options
    more = rebuild_options(manifest, tmp_path / "net.plan", BuildOptions("fp16", opt_level=1), ("tensorrt", None), ORIN)
    assert more == dataclasses.replace(options, opt_level=1)


def test_a_rebuild_adds_this_gpu_to_rtx_targets(tmp_path: Path) -> None:
    plan = stored(tmp_path, BuildOptions("fp32", targets=("sm89",)), "tensorrt_rtx")
    manifest = read_manifest(plan)
    for library, targets in (("tensorrt_rtx", ("sm89", "sm87")), ("tensorrt", ())):
        found = rebuild_options(manifest, plan, BuildOptions("fp32"), (library, None), ORIN)
        assert found.targets == targets
    assert rebuild_options(manifest, plan, BuildOptions("fp32"), ("tensorrt_rtx", None), None).targets == ("sm89",)


def test_a_rebuild_needs_the_very_onnx(tmp_path: Path) -> None:
    plan = stored(tmp_path, BuildOptions("fp32"))
    (tmp_path / "net.onnx").write_bytes(b"another")
    with pytest.raises(GradsegError, match=r"is another file than .* was built from.*to_trt\.py CKPT -o"):
        rebuild_arguments(plan)
    (tmp_path / "net.onnx").unlink()
    with pytest.raises(GradsegError, match=r"net\.onnx, is not there; copy it along"):
        rebuild_arguments(plan)


def test_a_rebuild_finds_files_that_were_all_renamed(tmp_path: Path) -> None:
    stored(tmp_path, BuildOptions("fp32"))
    for name in ("onnx", "plan", "plan.json"):
        (tmp_path / f"net.{name}").rename(tmp_path / f"new.{name}")
    assert rebuild_arguments(tmp_path / "new.plan")[0][0] == str(tmp_path / "new.onnx")


def test_a_rebuild_by_rtx_leaves_out_what_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded = BuildOptions("fp16", timing_cache="t.cache", opt_level=4, dla=0, sparse=True)
    plan = stored(tmp_path, recorded)
    found = rebuild_options(read_manifest(plan), plan, BuildOptions("fp16"), ("tensorrt_rtx", None), ORIN)
    assert found == BuildOptions("fp16", sparse=True)
    assert "are left out: timing_cache, opt_level, dla" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["{", None, "{}", '{"format": "gradseg.plan/0"}'])
def test_without_a_manifest_the_onnx_of_that_name_is_taken(
    tmp_path: Path, damage: Optional[str], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = stored(tmp_path, BuildOptions("fp32"))
    beside = tmp_path / "net.plan.json"
    beside.unlink()
    if damage is not None:
        beside.write_text(damage)
    assert rebuild_arguments(plan) == ([str(tmp_path / "net.onnx"), "-o", str(plan)], None)
    assert "default build options" in capsys.readouterr().out
    (tmp_path / "net.onnx").unlink()
    with pytest.raises(GradsegError, match=r"no usable net\.plan\.json, and no net\.onnx"):
        rebuild_arguments(plan)


def test_a_manifest_cannot_point_elsewhere(tmp_path: Path) -> None:
    plan = stored(tmp_path, BuildOptions("fp32"))
    beside = tmp_path / "net.plan.json"
    manifest = json.loads(beside.read_text())
    manifest["onnx"]["file"] = "../../net.onnx"
    beside.write_text(json.dumps(manifest))
    assert rebuild_arguments(plan)[0][0] == str(tmp_path / "net.onnx")


# ---- --precision best, on a GPU that is a stand-in


def test_best_writes_the_fastest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        trt_make, "build_plan", lambda data, options, *args, **kwargs: built(plan=options.precision.encode())
    )
    use(monkeypatch, *(GpuStandIn() for _ in range(6)))
    monkeypatch.setattr(
        trt_best, "latencies", lambda engines, frames: [{"p50": p, "p99": p + 1} for p in (9.0, 4.0, 5.0)]
    )
    args = type("Args", (), {"data": None, "max_drop": None})()
    trt_choice.make_best(args, lambda precision: job(tmp_path, precision=str(precision)))
    assert (tmp_path / "net.plan").read_bytes() == b"fp16"
    kept = read_manifest(tmp_path / "net.plan")
    assert kept["precision"] == "fp16"
    assert [each["precision"] for each in kept["verified"]["candidates"]] == ["fp32", "fp16", "int8"]
    assert "best here: fp16, 2.25x as fast as fp32" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "net.plan", "net.plan.json"]


def test_best_without_a_gpu_to_run_on_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_make, "build_plan", lambda *args, **kwargs: built("tensorrt_rtx", ["sm89"]))
    args = type("Args", (), {"data": None, "max_drop": None})()
    with pytest.raises(GradsegError, match="can be built but not run") as caught:
        trt_choice.make_best(args, lambda precision: job(tmp_path, None, str(precision)))
    assert caught.value.exit_code == 3 and not list(tmp_path.iterdir())


def test_a_trial_folder_goes_away(tmp_path: Path) -> None:
    manifest = manifest_for("net.plan", built(), job(tmp_path).prepared, "net.onnx", BuildOptions("fp32"), ORIN)
    with on_trial(tmp_path / "net.plan", built(), manifest) as plan:
        assert read_manifest(plan) and plan.parent.parent == tmp_path
    assert not list(tmp_path.iterdir())
