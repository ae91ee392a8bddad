"""The shipped checkpoint through the whole pipeline, by the scripts' own command lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from places import ROOT

from gradseg.benchmarks.accuracy import measure
from gradseg.data.specs import open_data
from gradseg.models.checkpoint import load_checkpoint
from gradseg.runtime.engines.open import open_engine

CHECKPOINT = ROOT / "assets" / "dg2-star-light.pth"


def run(script: str, *arguments: object) -> str:
    """Runs a script as a user does; returns what it printed."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{script}: {done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """FP32 and INT8 engines of the shipped checkpoint, INT8 calibrated on scenes."""
    folder = tmp_path_factory.mktemp("pipeline")
    fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
    said = run("export/to_onnx.py", CHECKPOINT, "-o", fp32)
    assert "labels equal to PyTorch's on 100.0000 %" in said or "labels equal to PyTorch's on 99.99" in said
    calib = ["--calib", "scenes:frames=12,seed=101", "--no-timing"]
    assert "in INT8" in run("export/to_ort.py", fp32, "--precision", "int8", *calib, "-o", int8)
    return {"fp32": fp32, "int8": int8, "torch": CHECKPOINT}


def test_shipped_checkpoint_is_small_finalised_and_explained() -> None:
    assert CHECKPOINT.stat().st_size <= 2_000_000
    checkpoint = load_checkpoint(CHECKPOINT)
    assert checkpoint.spec.arch == "dg2-star-light"
    groups = {m.groups for n, m in checkpoint.network.encoder.named_modules() if n.endswith((".pw1", ".pw2"))}
    assert groups == {2}
    assert checkpoint.info["settings"]["direct"] is False
    for name in ("README.md", "log.csv"):
        assert (CHECKPOINT.parent / name).stat().st_size > 100


def test_video_loop_loses_nothing_and_its_video_plays(engines: dict[str, Path], tmp_path: Path) -> None:
    video, report = tmp_path / "out.mp4", tmp_path / "r.json"
    source = "scenes:frames=12,seed=3,size=96x128"
    run("runtime/run_video.py", "--engine", engines["int8"], source, "--save", video, "--report", report)
    found = json.loads(report.read_text())
    assert (found["frames_in"], found["frames_done"], found["frames_dropped"]) == (12, 12, 0)
    capture = cv2.VideoCapture(str(video))
    count = 0
    while capture.read()[0]:
        count += 1
    assert count == 12


def test_networks_agree_on_unseen_scenes(engines: dict[str, Path]) -> None:
    data = open_data("scenes:frames=6,seed=77")
    reference = measure(open_engine(engines["torch"]), data)
    assert reference["miou"] > 0.5
    torch_engine = open_engine(engines["torch"])
    fp32 = measure(open_engine(engines["fp32"]), data, against=torch_engine)
    assert fp32["against"]["agreement"] >= 0.9999
    assert fp32["miou"] == pytest.approx(reference["miou"], abs=0.002)
    assert measure(open_engine(engines["int8"]), data)["miou"] == pytest.approx(reference["miou"], abs=0.02)


def test_accuracy_on_camvid_val(engines: dict[str, Path], camvid_val: Path) -> None:
    data = open_data(f"camvid:{camvid_val}")
    found = {name: measure(open_engine(path), data)["miou"] for name, path in engines.items()}
    assert found["fp32"] >= 0.60
    assert found["fp32"] == pytest.approx(found["torch"], abs=0.002)
    assert found["int8"] == pytest.approx(found["fp32"], abs=0.02)


def test_dash_camera_clip_frame_by_frame(engines: dict[str, Path], highway: Path, tmp_path: Path) -> None:
    video, report = tmp_path / "out.mp4", tmp_path / "r.json"
    run("runtime/run_video.py", "--engine", engines["int8"], highway, "--save", video, "--report", report)
    found = json.loads(report.read_text())
    assert (found["frames_done"], found["frames_dropped"], found["size_hw"]) == (221, 0, [540, 960])
    capture = cv2.VideoCapture(str(video))
    assert round(capture.get(cv2.CAP_PROP_FPS)) == 25
    count = 0
    while True:
        more, frame = capture.read()
        if not more:
            break
        count += 1
        assert frame.shape == (540, 960, 3)
    assert count == 221
