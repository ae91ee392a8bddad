"""benchmarks/loop.py: the engine's own frame rate against the whole loop's, and what it says about both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Optional

import pytest
from runtime_toys import deployment_onnx, write_video

from gradseg.base import conditions
from gradseg.base.errors import GradsegError
from gradseg.benchmarks import loop
from gradseg.runtime.loop.report import STAGES


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deployment_onnx(tmp_path_factory.mktemp("engine") / "toy.onnx")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", 12)


def test_it_measures_both_in_turn(engine: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "loop.json"
    assert (
        loop.main(
            ["--engine", str(engine), "--source", str(clip), "--rounds", "3", "--threads", "2", "--json", str(out)]
        )
        == 0
    )
    found = json.loads(out.read_text())
    assert found["frames"] == 12 and found["conditions"]["versions"]["numpy"]
    assert found["ratio"] == pytest.approx(found["loop_fps"] / found["own_fps"])
    assert [each["streams"] for each in found["variants"]] == [1, 2]
    for each in found["variants"]:
        assert len(each["rounds"]) == 3 and each["ratio"] == pytest.approx(each["loop_fps"] / each["own_fps"])
        slowest, fastest = (f(turn["loop"]["fps"] for turn in each["rounds"]) for f in (min, max))
        assert slowest <= each["loop_fps"] <= fastest and each["loop_fps"] <= found["loop_fps"]
        assert each["own_fps"] <= found["own_fps"]
        stages = each["stages_ms"]
        assert set(stages) == set(STAGES) and stages["sink"]["p50"] is None
        assert all(stages[name]["p50"] >= 0 for name in ("capture", "wait", "preprocess", "infer", "postprocess"))
        assert set(each["cpu_ms_per_frame"]) == {"source", "inference", "sink", "others", "process"}
    said = capsys.readouterr().out
    assert "1 frame at once, 2 threads: alone" in said and "2 frames at once, 2 threads" in said
    assert "CPU ms per frame" in said and "the best loop has" in said


def test_frames_limit_the_turns(engine: Path, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "loop.json"
    loop.main(
        [
            "--engine",
            str(engine),
            "--source",
            str(clip),
            "--rounds",
            "1",
            "--frames",
            "5",
            "--streams",
            "1",
            "--json",
            str(out),
        ]
    )
    found = json.loads(out.read_text())
    assert found["frames"] == 5 and len(found["variants"]) == 1


@pytest.mark.parametrize("before,after,share", [((10.0, 40.0), (12.0, 44.0), 0.5), (None, None, None)])
def test_other_programs_share(before: Any, after: Any, share: Optional[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4 core seconds 2 were used, and hardly any of that by this process."""
    readings = iter([before, after])
    monkeypatch.setattr(conditions, "_busy", lambda: next(readings))
    with loop.Busy() as busy:
        pass
    assert busy.others == (pytest.approx(share, abs=0.05) if share is not None else None)


def test_what_it_refuses(engine: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for extra, what in (
        (["--rounds", "0"], "--rounds 0: expected a number above 0"),
        (["--frames", "-1"], "--frames -1"),
        (["--json", str(clip)], "is an input itself and would be overwritten"),
    ):
        with pytest.raises(GradsegError, match=what):
            loop.main(["--engine", str(engine), "--source", str(clip), *extra])
    two = deployment_onnx(tmp_path / "two.onnx", batch=2)
    with pytest.raises(GradsegError, match="takes 2 frames at a time"):
        loop.main(["--engine", str(two), "--source", str(clip)])

    class Live:
        live = True

        def close(self) -> None:
            pass

    monkeypatch.setattr(loop, "open_source", lambda text: Live())
    with pytest.raises(GradsegError, match="a camera sets the frame rate itself"):
        loop.main(["--engine", str(engine), "--source", "cam0"])
