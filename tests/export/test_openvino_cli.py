"""The to_openvino command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from export_toys import SCENES, checkpoint, exported, frames, one_torch_thread  # noqa: F401

import gradseg.calibration.calibrate as calibrate
import gradseg.export.openvino_ir.make as openvino_make
import gradseg.export.to_openvino as to_openvino
from gradseg.base.errors import GradsegError
from gradseg.calibration.qdq.plan import plan_for
from gradseg.calibration.ranges.ranges_file import RangesFile
from gradseg.models import metadata
from gradseg.models.checkpoint import save_checkpoint
from gradseg.runtime.engines.open import open_engine
from gradseg.runtime.engines.ov import read_ir_metadata

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("openvino")
    save_checkpoint(folder / "net.pth", checkpoint().network)
    onnx.save(exported(), str(folder / "net.onnx"))
    return folder


def call(*arguments: Any) -> int:
    return to_openvino.main([*map(str, arguments), "--threads", "1"])


def test_fp32_from_both(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("net.pth", "net.onnx"):
        out = tmp_path / name / "m.xml"
        assert call(files / name, "--data", SCENES, "-o", out) == 0
        said = capsys.readouterr().out
        assert f"wrote {out}: " in said and f"and {out.with_suffix('.bin')}: " in said and "64x96, fp32\n" in said
        assert f"fp32: labels equal to the plain ONNX's on 100.0000 % of 24576 pixels in 4 frames of {SCENES}" in said
        assert ("labels equal to PyTorch's on" in said) == (name == "net.pth")
        engine = open_engine(out, threads=1)
        assert (engine.precision, engine.spec.arch) == ("fp32", "dg2-star-light")
        engine.close()


def test_int8_from_a_checkpoint(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.xml"
    arguments = ["--precision", "int8", "--calib", SCENES, "--calib-frames", "2", "--reduce-range", "on"]
    assert call(files / "net.pth", *arguments, "-o", out) == 0
    said = capsys.readouterr().out
    assert "64 of 66 convolutions in INT8" in said
    assert f"of {SCENES},seed=1000 (other scenes than the calibration's)" in said
    assert "reduced range: INT8 weights are within ±63" in said
    values = read_ir_metadata(out)
    assert (values[metadata.PRECISION], values[metadata.TARGET], values["gradseg.hint"]) == ("int8", "openvino", "f32")
    note = json.loads(values[metadata.CALIBRATION])
    assert note["frames"] == 2 and note["reduce_range"] is True
    assert open_engine(out, threads=1).infer(frames()[0]).shape == (1, 64, 96)


def test_int8_from_a_ranges_file(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its scales for ONNX Runtime are those of OpenVINO, which quantises more tensors."""
    ranges = tmp_path / "ranges.json"
    assert calibrate.main([str(files / "net.onnx"), "--data", SCENES, "--out", str(ranges)]) == 0
    found = RangesFile.read(ranges)
    assert found.quantisations("openvino", plan_for(exported(), "openvino").observed()) == found.quantisations("cpu")
    assert call(files / "net.onnx", "--precision", "int8", "--ranges", ranges, "-o", tmp_path / "m.xml") == 0
    assert f"ranges from {ranges} (mse, " in capsys.readouterr().out
    assert json.loads(read_ir_metadata(tmp_path / "m.xml")[metadata.CALIBRATION])["ranges"] == "ranges.json"


def test_half_precision_and_the_default_name(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "net.onnx"
    source.write_bytes((files / "net.onnx").read_bytes())
    assert call(source, "--precision", "bf16") == 0
    said = capsys.readouterr().out
    values = read_ir_metadata(tmp_path / "net.bf16.xml")
    assert values["gradseg.hint"] == "bf16" and "bf16: labels equal to the ONNX's in ONNX Runtime on " in said
    engine = open_engine(tmp_path / "net.bf16.xml", threads=1)
    assert ("note: on this CPU OpenVINO computes it in fp32" in said) == (engine.precision == "fp32")
    monkeypatch.setattr(openvino_make, "ENOUGH", 1.1)
    assert call(source, "--precision", "bf16") == 0
    assert "warning: bf16 changes " in capsys.readouterr().out


def test_an_int8_onnx_is_taken_as_it_is(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import gradseg.export.to_ort as to_ort

    quantised = tmp_path / "q.onnx"
    arguments = ["--precision", "int8", "--calib", SCENES, "--calib-frames", "2", "--no-timing", "-o", str(quantised)]
    assert to_ort.main([str(files / "net.onnx"), *arguments]) == 0
    assert call(quantised, "--precision", "int8", "-o", tmp_path / "q.xml") == 0
    assert "int8: labels equal to the ONNX's in ONNX Runtime on " in capsys.readouterr().out
    assert read_ir_metadata(tmp_path / "q.xml")[metadata.TARGET] == "cpu"
    with pytest.raises(GradsegError, match="is INT8 already and cannot become fp32; give its checkpoint"):
        call(quantised, "-o", tmp_path / "other.xml")
    with pytest.raises(GradsegError, match="is INT8 already, and --calib does not go with that"):
        call(quantised, "--precision", "int8", "--calib", SCENES, "-o", tmp_path / "other.xml")
    assert not (tmp_path / "other.xml").exists()


def test_labels_that_differ_are_not_written(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: Any) -> Any:
        made = onnx.ModelProto()
        made.CopyFrom(exported("dg4-star-light"))
        return made

    monkeypatch.setattr(openvino_make, "openvino_form", broken)
    with pytest.raises(GradsegError, match=r"labels agree with the ONNX on only .*; not written"):
        call(files / "net.onnx", "-o", tmp_path / "m.xml")
    assert list(tmp_path.iterdir()) == []


def test_mistakes(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GradsegError, match=r"the output must end in \.xml"):
        call(files / "net.onnx", "-o", tmp_path / "m.onnx")
    (tmp_path / "m.bin").mkdir()
    with pytest.raises(GradsegError, match=r"cannot write .*m\.bin: it is a directory"):
        call(files / "net.onnx", "-o", tmp_path / "m.xml")
    with pytest.raises(GradsegError, match="--threads 0: expected 1 to"):
        to_openvino.main([str(files / "net.onnx"), "--threads", "0"])
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(GradsegError, match="this needs openvino, not installed here") as caught:
        call(files / "net.onnx", "-o", tmp_path / "n.xml")
    assert caught.value.exit_code == 3
