"""benchmarks/demo.py: from a checkpoint to a video with the engine that tune.py chose."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, List

import cv2
import pytest
from export_toys import checkpoint, one_torch_thread  # noqa: F401

from gradseg.base.errors import GradsegError
from gradseg.benchmarks import demo
from gradseg.export import tune
from gradseg.export.tuning import candidates as tune_candidates
from gradseg.export.tuning import measure as tune_measure
from gradseg.export.tuning import run as tune_run
from gradseg.models.checkpoint import save_checkpoint

SCENES = "scenes:frames=3,size=64x96,seed=9"


@pytest.fixture()
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small checkpoint; only two candidates and few rounds."""
    save_checkpoint(tmp_path / "net.pth", checkpoint().network)
    listed = tune_candidates.candidates

    def few(sources: Any) -> List[Any]:
        return [each for each in listed(sources) if each.name in (tune_candidates.BASE, "ort-int8-cpu")]

    monkeypatch.setattr(tune_run, "candidates", few)
    monkeypatch.setattr(tune_measure, "ROUNDS", 3)
    monkeypatch.setattr(tune, "code_hash", lambda: "0")
    monkeypatch.setattr(demo, "CALIBRATION", "scenes:frames=2,size=64x96,seed=5")
    return tmp_path / "net.pth"


def call(net: Path, out: Path, *more: str) -> int:
    return demo.main(["--checkpoint", str(net), "--data", SCENES, "--source", SCENES, "--out", str(out), *more])


def test_every_step_is_there_and_the_tuned_engine_runs_the_video(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    assert call(net, out) == 0
    said = capsys.readouterr().out
    assert "\n$ python export/tune.py" in said and "\n$ python runtime/run_video.py --engine" in said
    report = json.loads((out / "report.json").read_text("utf-8"))
    found = json.loads((out / "tuned" / "tune.json").read_text("utf-8"))
    assert (report["frames_done"], report["frames_dropped"]) == (3, 0)
    assert report["tuned"]["candidate"] == found["candidate"] and report["tuned"]["verdict"] == found["verdict"]
    assert {each["name"] for each in report["tuned"]["candidates"]} == {tune_candidates.BASE, "ort-int8-cpu"}
    assert f"video loop with {out / 'tuned' / found['engine']}: 3 frames" in said
    capture = cv2.VideoCapture(str(out / "overlay.mp4"))
    assert capture.read()[0]
    capture.release()

    assert call(net, out, "--max-frames", "2") == 0
    again = capsys.readouterr().out
    assert "nothing is new since it was measured" in again and "2 frames" in again


def test_a_step_that_fails_ends_it(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.tune, "main", lambda words: 2)
    with pytest.raises(GradsegError, match=r"export/tune\.py failed with exit code 2"):
        call(net, tmp_path / "demo")
    monkeypatch.setattr(demo.tune, "main", lambda words: 130)
    with pytest.raises(KeyboardInterrupt):
        call(net, tmp_path / "demo")


def test_own_videos_calibrate_and_cameras_do_not(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: List[str] = []

    def note(words: List[str]) -> int:
        seen.append(words[words.index("--calib") + 1])
        return 2

    monkeypatch.setattr(demo.tune, "main", note)
    for source in ("drive.mp4", "cam0", SCENES, f"camvid:{os.sep}x"):
        with pytest.raises(GradsegError):
            demo.main(["--checkpoint", str(net), "--source", source, "--out", str(tmp_path)])
    assert seen == ["drive.mp4", demo.CALIBRATION, demo.CALIBRATION, f"camvid:{os.sep}x"]
