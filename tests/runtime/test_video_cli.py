"""run_video.py as a user starts it: real files, real signals, real limits; exit code, report and a playable video."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

import cv2
import numpy as np
import pytest
from cuda_toys import Device
from places import ROOT
from plan_toys import fields_for, install, manifest, toy_trt, write_plan
from runtime_toys import HW, deployment_onnx, expected_labels, framed_onnx, frames_of, write_video

from gradseg.base.conditions import usable_cores
from gradseg.base.errors import GradsegError
from gradseg.runtime import run_video
from gradseg.runtime.preprocess import Preprocessor, resize_labels

SCRIPT = ROOT / "runtime" / "run_video.py"
PYTHON = sys.executable
FIGURES = {"p50", "p90", "p99", "mean", "max"}
STAGES = {"capture", "wait", "preprocess", "infer", "postprocess", "overlay", "sink", "total"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy .onnx in the deployment form."""
    return deployment_onnx(tmp_path_factory.mktemp("engine") / "toy.onnx")


def start(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until `path` exists; fails if the process ends first."""
    while not path.exists():
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
        pytest.fail(f"ended early: {process.communicate()}")


def test_video_in_video_and_labels_and_report_out(engine: Path, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "in.mp4", 12, fps=20.0)
    out, labels, report = tmp_path / "o" / "out.mp4", tmp_path / "labels", tmp_path / "r.json"
    code, said, _ = finish(start("--engine", engine, clip, "--save", out, "--labels", labels, "--report", report))
    assert code == 0 and "12 frames done, 0 dropped" in said and str(out) in said
    shown, given = frames_of(out), frames_of(clip)
    assert len(shown) == len(given) == 12 and shown[0].shape == (48, 64, 3)
    assert cv2.VideoCapture(str(out)).get(cv2.CAP_PROP_FPS) == 20.0
    preprocess = Preprocessor((24, 32))
    for index, frame in enumerate(given):
        wanted = resize_labels(expected_labels(preprocess(frame))[0], (48, 64))
        np.testing.assert_array_equal(cv2.imread(str(labels / f"{index:06d}.png"), cv2.IMREAD_UNCHANGED), wanted)
    found = json.loads(report.read_text())
    assert found["source"] == str(clip) and found["engine"] == str(engine) and found["size_hw"] == [48, 64]
    assert found["backend"].startswith("onnxruntime") and found["device"] == "CPU"
    assert (found["provider"], found["cuda_graph"], found["frame_hw"]) == ("cpu", False, [24, 32])
    assert (found["frames_in"], found["frames_done"], found["frames_dropped"]) == (12, 12, 0)
    assert set(found["latency_ms"]) == STAGES and all(set(v) == FIGURES for v in found["latency_ms"].values())
    assert all(isinstance(v, float) for stage in found["latency_ms"].values() for v in stage.values())
    assert found["fps"] > 0 and found["exit_reason"] == "end of source" and found["exit_code"] == 0
    assert found["conditions"]["versions"]["numpy"] == np.__version__
    assert found["conditions"]["threads"] == usable_cores()


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_cleanly(engine: Path, tmp_path: Path, name: str, code: int) -> None:
    out, labels, report = tmp_path / "out.mp4", tmp_path / "labels", tmp_path / "r.json"
    source = "scenes:size=48x64,frames=1000000"
    process = start("--engine", engine, source, "--save", out, "--labels", labels, "--report", report)
    wait_for(labels / "000003.png", process)
    process.send_signal(getattr(signal, name))
    returned, _, said = finish(process)
    found = json.loads(report.read_text())
    assert returned == code == found["exit_code"] and found["exit_reason"] == name and "Traceback" not in said
    assert found["frames_done"] == found["frames_in"] >= 4 and found["frames_dropped"] == 0
    assert len(frames_of(out)) == found["frames_done"] == len(list(labels.iterdir()))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels", "out.mp4", "r.json"]


def limit_file_size() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20))


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX resource limits")
def test_a_disk_that_fills_up_leaves_a_playable_video(engine: Path, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "in.avi", 60, (240, 320), noise=True)
    out, report = tmp_path / "out.mp4", tmp_path / "r.json"
    process = start("--engine", engine, clip, "--save", out, "--report", report, preexec_fn=limit_file_size)
    code, _, said = finish(process)
    found = json.loads(report.read_text())
    assert code == 2 == found["exit_code"] and "error: disk full:" in said and "Traceback" not in said
    assert 0 < found["frames_done"] < 60 and len(frames_of(out)) == found["frames_done"]
    assert not list(tmp_path.glob(".*"))


def test_a_truncated_video_saves_what_was_readable(engine: Path, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "in.avi", 40, noise=True)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    out, report = tmp_path / "out.mp4", tmp_path / "r.json"
    code, _, said = finish(start("--engine", engine, clip, "--save", out, "--report", report))
    found = json.loads(report.read_text())
    assert code == 2 and "of the 40 frames it claims; truncated or damaged" in said
    assert 5 < found["frames_done"] == found["frames_in"] == len(frames_of(out)) < 35


def call(*arguments: Any) -> int:
    """The script's main in this process."""
    return run_video.main([str(argument) for argument in arguments])


def test_limits_and_overlay_modes(engine: Path, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "in.mp4", 12)
    for mode, shape in (("overlay", (48, 64, 3)), ("mask", (48, 64, 3)), ("side-by-side", (48, 128, 3))):
        out = tmp_path / f"{mode}.avi"
        assert call("--engine", engine, clip, "--save", out, "--overlay", mode, "--max-frames", 4, "--alpha", 0.7) == 0
        assert [frame.shape for frame in frames_of(out)] == [shape] * 4
    clip = write_video(tmp_path / "larger.avi", 2, (240, 320))
    corners = []
    for more in ([], ["--no-legend"]):
        assert call("--engine", engine, clip, "--save", tmp_path / "v.avi", "--alpha", 0, *more) == 0
        corners.append(frames_of(tmp_path / "v.avi")[0][:40, :80])
    assert np.ptp(corners[0]) > 150 > 20 > np.ptp(corners[1]), "names in the corner of a grey frame, or none"
    assert call("--engine", engine, "scenes:size=48x64,frames=3", "--duration", 60, "--threads", 1) == 0


@pytest.mark.parametrize("source", ["frames", "frames/*.png", "frames/cam.png", "fr*/c*.png"])
def test_labels_are_never_written_over_the_images(engine: Path, tmp_path: Path, source: str) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for name in ("cam.png", "dam.png"):
        cv2.imwrite(str(frames / name), np.full((24, 32, 3), 200, np.uint8))
    before = {path.name: path.read_bytes() for path in frames.iterdir()}
    with pytest.raises(GradsegError, match=r"--labels .*is the folder of the source's own images; name another"):
        call("--engine", engine, tmp_path / source, "--labels", frames / ".." / "frames")
    assert {path.name: path.read_bytes() for path in frames.iterdir()} == before
    assert call("--engine", engine, tmp_path / source, "--labels", frames / "labels") == 0
    assert (frames / "labels" / "000000.png").is_file()


def bug(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    from gradseg.runtime.sinks.overlay import Overlay

    calls = iter(range(99))

    def broken(self: Overlay, frame: Any, labels: Any, alpha: Optional[float] = None) -> Any:
        if next(calls) == 3:
            raise error
        return frame

    monkeypatch.setattr(Overlay, "__call__", broken)


def test_a_bug_keeps_its_traceback_and_the_outputs(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, out, report = write_video(tmp_path / "in.mp4", 12), tmp_path / "out.mp4", tmp_path / "r.json"
    bug(monkeypatch, ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError, match="a bug") as caught:
        call("--engine", engine, clip, "--save", out, "--report", report)
    assert any(entry.name == "broken" for entry in caught.traceback), "the traceback leads to the bug"
    assert len(frames_of(out)) == 3
    found = json.loads(report.read_text())
    assert (found["exit_code"], found["exit_reason"], found["frames_done"]) == (1, "sink: a bug", 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--save", "DIR/out.mkv"], "must end in .mp4 or .avi"),
        (["--save", "DIR/in.mp4"], "is an input itself"),
        (["--save", "DIR/in.mp4/out.mp4"], "cannot write"),
        (["--labels", "DIR/in.mp4"], "--labels"),
        (["--report", "DIR"], "is a directory"),
        (["--report", "/dev/null"], "not a regular file"),
        (["--save", "DIR/x.mp4", "--report", "DIR/x.mp4"], "both name"),
        (["--alpha", "2"], "--alpha 2.0"),
        (["--max-frames", "0"], "--max-frames 0"),
        (["--duration", "-1"], "--duration -1.0"),
        (["--duration", "nan"], "--duration nan"),
        (["--threads", "0"], "--threads 0"),
        (["--provider", "cuda"], "--provider cuda needs CUDAExecutionProvider; this ONNX Runtime"),
        (["--threads", "99999999"], "expected 1 to 1024"),
        (["--duration", "inf"], "--duration inf"),
        (["--spec", "DIR/in.mp4"], "not JSON"),
        (["--spec", "DIR/none.json"], "no such file"),
    ],
)
def test_bad_options_are_one_line_before_any_work(
    engine: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    clip = write_video(tmp_path / "in.mp4", 2)
    before = clip.read_bytes()
    with pytest.raises(GradsegError) as caught:
        call("--engine", engine, clip, *[a.replace("DIR", str(tmp_path)) for a in arguments])
    assert message in str(caught.value) and caught.value.exit_code == (3 if "--provider" in arguments else 2)
    assert [p.name for p in tmp_path.iterdir()] == ["in.mp4"] and clip.read_bytes() == before


@pytest.mark.parametrize(("content", "message"), [(b"", "is empty"), (b"junk" * 99, "corrupt")])
def test_bad_videos_leave_nothing_behind(engine: Path, tmp_path: Path, content: bytes, message: str) -> None:
    clip, results = tmp_path / "in.mp4", tmp_path / "results"
    clip.write_bytes(content)
    options = ["--save", results / "o.mp4", "--labels", results / "labels", "--report", results / "r.json"]
    code, _, said = finish(start("--engine", engine, clip, *options))
    assert code == 2 and said.startswith("error: ") and message in said and said.count("\n") == 1
    assert not [p for p in results.rglob("*") if p.is_file()]


def test_unreadable_camera_is_one_line(engine: Path) -> None:
    code, _, said = finish(start("--engine", engine, "cam987"))
    assert code == 2 and said.count("\n") == 1 and "no camera /dev/video987" in said


def test_the_real_clip(engine: Path, tmp_path: Path, highway: Path) -> None:
    out, report = tmp_path / "out.mp4", tmp_path / "r.json"
    assert call("--engine", engine, highway, "--save", out, "--report", report) == 0
    found = json.loads(report.read_text())
    assert (found["frames_in"], found["frames_done"], found["frames_dropped"]) == (221, 221, 0)
    frames, capture = frames_of(out), cv2.VideoCapture(str(out))
    assert len(frames) == 221 and frames[0].shape == (540, 960, 3) and capture.get(cv2.CAP_PROP_FPS) == 25.0


# -- frame size, batch, plans


def test_frames_of_the_built_size_are_taken_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine, report, labels = framed_onnx(tmp_path / "m.onnx", (48, 64)), tmp_path / "r.json", tmp_path / "labels"
    clip = write_video(tmp_path / "in.mp4", 3)
    assert call("--engine", engine, clip, "--report", report, "--labels", labels) == 0
    assert json.loads(report.read_text())["frame_hw"] == [48, 64] and "note:" not in capsys.readouterr().err
    for index, frame in enumerate(frames_of(clip)):
        found = cv2.imread(str(labels / f"{index:06d}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(found, expected_labels(frame))


def test_frames_of_another_size_are_resized_and_that_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = framed_onnx(tmp_path / "m.onnx", (40, 56))
    assert call("--engine", engine, "scenes:size=48x64,frames=3") == 0
    said = capsys.readouterr().err
    assert said.count("note:") == 1 and "gives frames of 48x64" in said and "was built for 40x56" in said
    assert "build it with --frame-size 48x64" in said


def test_several_frames_at_a_time_are_not_for_a_video(tmp_path: Path) -> None:
    with pytest.raises(
        GradsegError, match=r"takes 2 frames at a time.*build it with --batch 1, or .*Segmenter\.many"
    ) as e:
        call("--engine", framed_onnx(tmp_path / "m.onnx", (24, 32), 2), "scenes:frames=3")
    assert e.value.exit_code == 2


@pytest.mark.parametrize("graph", [True, False])
def test_a_plan_through_the_whole_loop(graph: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the stand-in GPU: opened here, used in the inference thread, two frames under way, closed here."""
    device = Device(5)
    trt = toy_trt("10.3.0", device)
    install(monkeypatch, device, trt)
    plan, labels, report = write_plan(tmp_path, **fields_for(trt)), tmp_path / "labels", tmp_path / "r.json"
    clip = write_video(tmp_path / "in.mp4", 9, HW)
    extra = [] if graph else ["--no-cuda-graph"]
    assert call("--engine", plan, clip, "--labels", labels, "--report", report, *extra) == 0
    for index, frame in enumerate(frames_of(clip)):
        found = cv2.imread(str(labels / f"{index:06d}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(found, frame[..., 0] % 11)
    found = json.loads(report.read_text())
    assert (found["backend"], found["device"], found["cuda_graph"]) == ("tensorrt 10.3.0", "Toy GPU", graph)
    assert found["provider"] is None and device.held == 0


# -- --rebuild


BUILDER = """#!{python}
import json, pathlib, signal, sys, time
print("building", *sys.argv[1:], flush=True)
plan = pathlib.Path(sys.argv[-1])
if {stays}:
    signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path(str(plan) + ".ended").touch(), sys.exit(1)))
    pathlib.Path(str(plan) + ".started").touch()
    time.sleep(60)
plan.with_name(plan.name + ".json").write_text({manifest!r})
sys.exit({code})
"""


def builder(folder: Path, monkeypatch: pytest.MonkeyPatch, found: Any, code: int = 0, stays: bool = False) -> None:
    """Stands in for the Python that export/to_trt.py is run with."""
    script = folder / "python"
    content = BUILDER.format(python=PYTHON, manifest=json.dumps(found), code=code, stays=stays)
    script.write_text(content)
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


def stale_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Any, Device]:
    device = Device()
    trt = toy_trt("10.3.0", device)
    install(monkeypatch, device, trt)
    return write_plan(tmp_path, version="8.5.3.1"), trt, device


def test_rebuild_builds_a_stale_plan_once_and_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plan, trt, device = stale_plan(tmp_path, monkeypatch)
    with pytest.raises(GradsegError, match="version differs"):
        call("--engine", plan, "scenes:frames=3")
    assert not trt.loaded and capfd.readouterr() == ("", "")
    builder(tmp_path, monkeypatch, manifest(**fields_for(trt)))
    assert call("--engine", plan, "scenes:frames=3", "--rebuild") == 0
    said = capfd.readouterr()
    assert said.out.startswith(f"building -m gradseg.export.to_trt --rebuild {plan}\n"), "its output is passed through"
    assert "version differs: found tensorrt 10.3.0, needed tensorrt 8.5.3.1" in said.err
    assert f"--rebuild: building {plan} again, which can take minutes" in said.err
    assert call("--engine", plan, "scenes:frames=3", "--rebuild") == 0
    assert "building" not in capfd.readouterr().out, "a plan that fits is not built again"
    assert device.held == 0


def test_rebuild_that_does_not_help_or_fails_ends_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, trt, _ = stale_plan(tmp_path, monkeypatch)
    builder(tmp_path, monkeypatch, manifest(version="8.6.1"))
    with pytest.raises(GradsegError, match=r"needed tensorrt 8\.6\.1"):
        call("--engine", plan, "scenes:frames=3", "--rebuild")
    builder(tmp_path, monkeypatch, manifest(version="8.6.1"), code=3)
    with pytest.raises(
        GradsegError, match=r"was not built again \(export/to_trt.py ended with 3, see above\)"
    ) as caught:
        call("--engine", plan, "scenes:frames=3", "--rebuild")
    assert caught.value.exit_code == 3 and not trt.loaded


def test_a_builder_is_ended_with_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, _, _ = stale_plan(tmp_path, monkeypatch)
    builder(tmp_path, monkeypatch, {}, stays=True)
    real = subprocess.Popen.wait

    def interrupted(self: Any, timeout: Optional[float] = None) -> int:
        if timeout is None:
            monkeypatch.setattr(subprocess.Popen, "wait", real)
            wait_for(Path(f"{plan}.started"), self)
            raise KeyboardInterrupt
        return real(self, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call("--engine", plan, "scenes:frames=3", "--rebuild")
    assert Path(f"{plan}.ended").exists()


def test_the_builder_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real module, which says itself what it needs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    from gradseg.runtime.engines.open import rebuild

    with pytest.raises(GradsegError, match=r"none\.plan: was not built again \(export/to_trt\.py ended with 2"):
        rebuild(tmp_path / "none.plan")


@pytest.mark.parametrize("option", ["--rebuild", "--no-cuda-graph"])
def test_options_of_plans_are_refused_for_other_engines(option: str) -> None:
    with pytest.raises(GradsegError, match=rf"{option}: is for TensorRT plans; leave it out for m\.onnx"):
        run_video.main(["--engine", "m.onnx", "scenes:frames=1", option])
