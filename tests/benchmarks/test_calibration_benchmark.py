"""benchmarks/calibration.py: its rows, its memory limit, its refusals."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import onnx
import pytest
from export_toys import exported, one_torch_thread  # noqa: F401

from gradseg.base.errors import GradsegError
from gradseg.benchmarks import calibration as benchmark

pytestmark = pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs wait4, which this system has not")
DATA = "scenes:frames=3,size=64x96"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "toy.onnx"
    onnx.save(exported(), str(path))
    return path


def run(model: Path, out: Path, *more: str) -> Any:
    assert benchmark.main(["--model", str(model), "--data", DATA, "--json", str(out), *more]) == 0
    return json.loads(out.read_text())


def test_rows_of_both_tools_on_the_same_tensors_and_frames(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "METHODS", {"gradseg": ("mse",), "onnxruntime": ("entropy",)})
    found = run(model, tmp_path / "r.json", "--frames", "2")
    assert [(row["tool"], row["method"], row["frames"]) for row in found["rows"]] == [
        ("gradseg", "mse", 2),
        ("onnxruntime", "entropy", 2),
    ]
    for row in found["rows"]:
        assert row["seconds"] > 0 and 40 < row["peak_mb"] < 2000 and "failed" not in row, row
        assert row["tensors"] == found["conditions"]["tensors"] > 50
    known = found["conditions"]
    assert (known["model"], known["input_hw"], known["data"]) == ("toy.onnx", [64, 96], DATA)
    assert {"onnx", "onnxruntime", "numpy"} <= set(known["versions"]) and known["device"]["cpu"]
    assert "onnxruntime entropy" in capsys.readouterr().out


def test_what_exceeds_the_limit_is_a_row_and_more_is_not_tried(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "METHODS", {"gradseg": ("minmax",), "onnxruntime": ()})
    first, second = run(model, tmp_path / "r.json", "--frames", "2,1", "--limit-mb", "30")["rows"]
    assert (first["frames"], first["failed"]) == (1, "out of memory at 30 MB")
    assert first["peak_mb"] > 30 and first["seconds"] > 0
    assert second == {
        "tool": "gradseg",
        "method": "minmax",
        "frames": 2,
        "peak_mb": None,
        "seconds": None,
        "failed": "not tried: 1 frames failed",
    }


@pytest.mark.parametrize(
    "more, message",
    [
        (["--frames", "4"], "has 3 frames, 4 are needed"),
        (["--frames", "many"], "--frames many: expected numbers above 0 with commas"),
        (["--frames", "0"], "--frames 0: expected"),
        (["--tools", "other"], "--tools other: expected any of gradseg,onnxruntime"),
        (["--size", "64"], "HEIGHTxWIDTH"),
        (["--json", "MODEL"], "is an input itself"),
        (["--model", "absent.onnx"], "no such file"),
    ],
)
def test_refusals(model: Path, tmp_path: Path, more: list[str], message: str) -> None:
    given = [part.replace("MODEL", str(model)) for part in more]
    with pytest.raises(GradsegError, match=message):
        benchmark.main(["--model", str(model), "--data", DATA, "--frames", "1", *given])
