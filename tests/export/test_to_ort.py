"""The to_ort command line: FP32 and INT8 for ONNX Runtime."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, List

import onnx
import pytest
from export_toys import SCENES, checkpoint, exported, frames, one_torch_thread  # noqa: F401
from places import ROOT

import gradseg.calibration.qdq.int8_from_arguments as int8
import gradseg.export.to_ort as to_ort
from gradseg.base.errors import GradsegError
from gradseg.graphs import verify
from gradseg.graphs.sessions import OnnxRunner
from gradseg.models import metadata
from gradseg.models.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ort")
    save_checkpoint(folder / "net.pth", checkpoint().network)
    onnx.save(exported(), str(folder / "net.onnx"))
    return folder


def call(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    monkeypatch.setattr(sys, "argv", ["to_ort.py", *map(str, arguments)])
    return int(to_ort.main())


def test_int8_from_a_checkpoint_says_that_it_uses_scenes(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "int8.onnx"
    arguments = [files / "net.pth", "--precision", "int8", "--calib-frames", "2", "-o", out, "--data", SCENES]
    assert call(monkeypatch, *arguments) == 0
    said = capsys.readouterr().out
    assert "note: no --calib given, so INT8 is calibrated on procedural scenes (scenes:size=64x96)" in said
    assert f"wrote {out}: " in said and "64x96, int8" in said
    assert "58 of 65 convolutions in INT8" in said
    assert "INT8: labels equal to FP32's on " in said and f"frames of {SCENES}" in said
    assert "INT8 against FP32" in said or "of FP32's time here" in said
    assert "(network alone, fastest of 12 interleaved runs" in said
    values = metadata.read_metadata(out)
    assert (values[metadata.PRECISION], values[metadata.TARGET]) == ("int8", "cpu")
    assert json.loads(values[metadata.CALIBRATION])["frames"] == 2
    assert OnnxRunner(out.read_bytes()).run(frames()[0])[0].shape == (1, 64, 96)


def test_int8_from_an_onnx_file_on_a_folder(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import cv2

    for index, frame in enumerate(frames()):
        cv2.imwrite(str(tmp_path / f"{index}.png"), frame[0])
    out = tmp_path / "out" / "int8.onnx"
    arguments = [files / "net.onnx", "--precision", "int8", "--calib", tmp_path, "--no-timing", "-o", out]
    assert call(monkeypatch, *arguments) == 0
    said = capsys.readouterr().out
    assert "note:" not in said and "of FP32's time" not in said
    assert f"calibrated on {tmp_path} (mse)" in said
    assert f"in 4 frames of the calibration source, {tmp_path}; --data verifies on other frames" in said
    assert json.loads(metadata.read_metadata(out)[metadata.CALIBRATION])["frames"] == 4


def test_fp32_from_both(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, message in (
        ("net.pth", "labels equal to PyTorch's on 100.0000 %"),
        ("net.onnx", "labels equal to the plain ONNX's on 100.0000 %"),
    ):
        out = tmp_path / f"from-{name}.onnx"
        assert call(monkeypatch, files / name, "--data", SCENES, "-o", out) == 0
        assert message in capsys.readouterr().out
        values = metadata.read_metadata(out)
        assert (values[metadata.PRECISION], values[metadata.TARGET]) == ("fp32", "cpu")


def test_default_frames_are_called_scenes(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, files / "net.onnx", "-o", tmp_path / "out.onnx") == 0
    assert "frames of procedural scenes\n" in capsys.readouterr().out


def test_int8_is_verified_on_other_scenes_and_low_agreement_warned_of(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [files / "net.onnx", "--precision", "int8", "--calib", SCENES, "--calib-frames", "2", "--no-timing"]
    monkeypatch.setattr(int8, "ENOUGH", 1.1)
    assert call(monkeypatch, *arguments, "--reduce-range", "on", "-o", tmp_path / "out.onnx") == 0
    said = capsys.readouterr().out
    assert f"of {SCENES},seed=1000 (other scenes than the calibration's)" in said
    assert "warning: INT8 changes " in said
    assert "reduced range: INT8 weights are within ±63 (asked for)" in said
    note = json.loads(metadata.read_metadata(tmp_path / "out.onnx")[metadata.CALIBRATION])
    assert note["reduce_range"] is True


@pytest.mark.parametrize("choice, saturates, expected", [("auto", True, True), ("auto", False, False)])
@pytest.mark.parametrize("forced, value", [("on", True), ("off", False)])
def test_reduce_range_follows_the_cpu_unless_told(
    monkeypatch: pytest.MonkeyPatch, choice: str, saturates: bool, expected: bool, forced: str, value: bool
) -> None:
    monkeypatch.setattr(int8, "int8_saturates", lambda: saturates)
    assert int8.reduces_range(choice) is expected
    assert int8.reduces_range(forced) is value


@pytest.mark.parametrize("fraction, warned", [(0.949, True), (0.951, False)])
def test_int8_lines_warn_below_95_percent(fraction: float, warned: bool) -> None:
    lines = int8.int8_lines(verify.Agreement(1000, int(1000 * fraction), 0, 1), "of x")
    assert lines[0].startswith("warning: INT8 changes 5.1 % of the labels") == warned
    assert len(lines) == 1 + warned


@pytest.mark.parametrize(
    "script, name", [("to_ort", "net.pth"), ("to_ort", "net.onnx"), ("to_onnx", "net.pth"), ("to_trt", "net.pth")]
)
def test_without_onnx_one_line_says_what_to_install(files: Path, tmp_path: Path, script: str, name: str) -> None:
    code = (
        "import sys\nfor name in ('onnx', 'onnxruntime', 'onnxsim'): sys.modules[name] = None\n"
        f"sys.argv = ['{script}.py', {str(files / name)!r}]\n"
        f"import runpy; runpy.run_path('export/{script}.py', run_name='__main__')\n"
    )
    before = sorted(files.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONPATH": "src"}, capture_output=True, text=True
    )
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert re.search(r"needs (the )?onnx\b.* not installed here: pip install \S", done.stderr)
    assert sorted(files.iterdir()) == before


BAD: List[Any] = [
    (["{d}/net.pth", "--precision", "int8", "--calib", "random"], "'random' refused"),
    (["{d}/net.pth", "--precision", "int8", "--calib", "noise:8"], "real frames"),
    (["{d}/net.pth", "--precision", "int8", "--calib-frames", "0"], "at least 1 is needed"),
    (["{d}/net.onnx", "--size", "64x64"], "--size and --arch are for checkpoints"),
    (["{d}/none.onnx"], "no such file; expected an ONNX model"),
    (["{d}/net.onnx", "-o", "{d}/net.onnx"], "would overwrite its own input"),
    (["{d}/net.pth", "-o", "{d}/net.pth"], "would overwrite its own input"),
    (["{d}/net.pth", "-o", "{d}/net"], r"must end in \.onnx, such as -o net\.onnx"),
    (["{d}/net.pth", "--arch", "erfnet"], "--arch erfnet, but the checkpoint is of dg2-star-light"),
]


@pytest.mark.parametrize("arguments, message", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: List[str], message: str
) -> None:
    filled = [argument.format(d=files) for argument in arguments]
    if "-o" not in filled:
        filled += ["-o", str(tmp_path / "out.onnx")]
    before = sorted(files.iterdir())
    with pytest.raises(GradsegError, match=message) as caught:
        call(monkeypatch, *filled)
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == [] and sorted(files.iterdir()) == before


def test_verdict_on_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that the networks turn themselves: slower, faster and disturbed runs."""
    now = [0]
    monkeypatch.setattr(to_ort.time, "perf_counter_ns", lambda: now[0])

    class Net:
        def __init__(self, *milliseconds: int) -> None:
            self.milliseconds, self.runs = milliseconds, 0

        def run(self, batch: Any) -> None:
            now[0] += self.milliseconds[self.runs % len(self.milliseconds)] * 1_000_000
            self.runs += 1

    def line(fp32: Net, int8: Net) -> str:
        return to_ort.timing_line({"FP32": fp32, "INT8": int8}, frames()[0])  # type: ignore[dict-item]

    assert line(Net(10), Net(20)).startswith("INT8 takes 2.00 of FP32's time here, so FP32 is the better choice")
    assert line(Net(20), Net(10)).startswith("INT8 takes 0.50 of FP32's time here (network alone")
    assert line(Net(20, 90), Net(10)).startswith("no verdict on INT8 against FP32, the machine was busy meanwhile")
