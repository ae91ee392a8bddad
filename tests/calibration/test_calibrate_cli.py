"""calibration/calibrate.py as a user runs it: what it writes and says, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, List, Optional, Tuple

import cv2
import numpy as np
import onnx
import pytest
from export_toys import SCENES, checkpoint, exported, int8_from_fp32, one_torch_thread  # noqa: F401
from onnx import numpy_helper

from gradseg.base.errors import GradsegError
from gradseg.calibration import calibrate
from gradseg.calibration.qdq.int8 import Settings
from gradseg.calibration.qdq.plan import plan_for
from gradseg.calibration.qdq.repair import equalised
from gradseg.calibration.ranges.ranges_file import RangesFile, model_fingerprint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "toy.onnx"
    onnx.save(exported(), str(path))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert calibrate.main([str(argument) for argument in (*arguments, "--threads", 1)]) == 0
    return capsys.readouterr().out


def refused(*arguments: Any) -> str:
    with pytest.raises(GradsegError) as caught:
        calibrate.main([str(argument) for argument in (*arguments, "--threads", 1)])
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    return str(caught.value)


def pictures(path: Path, count: int, bad: Tuple[int, ...] = ()) -> Path:
    path.mkdir()
    for index in range(count):
        small = np.random.default_rng(index).integers(0, 255, (8, 12, 3), dtype=np.uint8)
        cv2.imwrite(str(path / f"{index:02d}.png"), cv2.resize(small, (96, 64)))
    for index in bad:
        (path / f"{index:02d}.png").write_bytes(b"no picture")
    return path


def test_ranges_are_written_beside_the_model_and_reported(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = run(capsys, model, "--data", SCENES, "--frames", 3)
    found = RangesFile.read(model.with_suffix(".ranges.json"))
    found.check_belongs(exported(), model.name)
    for target in ("cpu", "trt", "tidl"):
        assert found.quantisations(target, plan_for(equalised(exported()), target).observed())
    assert (found.method, found.power_of_two, found.equalised) == ("mse", False, True)
    assert found.model["file"] == "toy.onnx" and len(found.model["sha256"]) == 64
    assert found.data["source"] == SCENES and found.data["frames"] == 3 and found.data["skipped"] == []
    assert found.preprocessing["size"] == [64, 96] and found.preprocessing["color_order"] == "rgb"
    assert f"calibrated {model} on 3 frames of {SCENES}: {len(found.entries)} tensors, method mse, equalised" in said
    assert "most clipped:\n" in said
    assert "warning: only 3 different frames:" in said and found.warnings[0] in said
    assert f"wrote {model.with_suffix('.ranges.json')}; use it: python export/to_ort.py {model} " in said


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_methods_and_power_of_two(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str) -> None:
    out = tmp_path / "new" / "ranges.json"
    more: List[Any] = ["--percentile", 99.5] if method == "percentile" else []
    run(
        capsys,
        model,
        "--data",
        SCENES,
        "--frames",
        1,
        "--method",
        method,
        "--pow2",
        "--no-equalise",
        "--out",
        out,
        *more,
    )
    found = RangesFile.read(out)
    assert (found.method, found.power_of_two, found.equalised) == (method, True, False)
    assert found.percentile == (99.5 if more else None)
    assert (max(entry.clipped for entry in found.entries.values()) == 0) == (method == "minmax")
    assert found.warnings[0].startswith("a single frame:")


def test_a_checkpoint_has_the_ranges_of_its_onnx(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from gradseg.models.checkpoint import save_checkpoint

    path = tmp_path / "toy.pth"
    save_checkpoint(path, checkpoint().network)
    run(capsys, path, "--data", SCENES, "--frames", 1, "--out", tmp_path / "a.json")
    run(capsys, model, "--data", SCENES, "--frames", 1, "--out", tmp_path / "b.json")
    one, other = (RangesFile.read(tmp_path / name) for name in ("a.json", "b.json"))
    assert one.model["fingerprint"] == other.model["fingerprint"] == model_fingerprint(exported())
    assert one.model["file"] == "toy.pth" and one.entries == other.entries and one.data == other.data


def test_bad_frames_stop_it_unless_they_shall_be_skipped(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures(tmp_path / "images", 6, bad=(0, 4))
    assert "00.png: corrupt or not an image" in refused(model, "--data", folder)
    assert not model.with_suffix(".ranges.json").exists()
    said = run(capsys, model, "--data", folder, "--skip-bad")
    found = RangesFile.read(model.with_suffix(".ranges.json"))
    assert [Path(name).name for name in found.data["skipped"]] == ["00.png", "04.png"] and found.data["frames"] == 4
    assert "on 4 frames of" in said and "(2 skipped)" in said
    assert any("04.png" in text and text.startswith("2 frames could not be read") for text in found.warnings)


def test_a_video_that_ends_early_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"MJPG"), 25, (96, 64))  # type: ignore[attr-defined]
    for index in range(40):
        noise = np.random.default_rng(index).integers(0, 255, (64, 96, 3), dtype=np.uint8)
        writer.write(noise)
    writer.release()
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    assert "frames of 40, with" in refused(model, "--data", clip, "--frames", 8)
    said = run(capsys, model, "--data", clip, "--frames", 8, "--skip-bad")
    assert "frames could not be read and were skipped (frame " in said


def test_leakage_from_the_validation_set_is_said(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures(tmp_path / "images", 3)
    said = run(capsys, model, "--data", folder, "--val", folder / "01.png")
    assert f"warning: 1 frames of the validation set {folder / '01.png'} are calibrated on" in said
    assert "calibrated on" not in run(capsys, model, "--data", folder, "--val", SCENES).replace("calibrated ", "", 1)


def test_an_all_zero_tensor_is_named_and_harmless(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dead = onnx.load(str(model))
    conv = next(node for node in dead.graph.node if node.op_type == "Conv" and node.name in plan_for(dead, "cpu").nodes)
    for tensor in dead.graph.initializer:
        if tensor.name in conv.input[1:]:
            tensor.CopyFrom(numpy_helper.from_array(0 * numpy_helper.to_array(tensor), tensor.name))
    onnx.save(dead, str(model))
    said = run(capsys, model, "--data", SCENES, "--frames", 1)
    found = RangesFile.read(model.with_suffix(".ranges.json"))
    zero = [entry.tensor for entry in found.entries.values() if entry.seen.low == entry.seen.high == 0]
    assert zero and "tensors are zero on every frame" in said and zero[0] in said
    assert all(q.scale > 0 for target in ("cpu", "trt", "tidl") for q in found.quantisations(target).values())


def test_nan_in_an_activation_names_tensor_and_frame(model: Path, tmp_path: Path) -> None:
    hurt = onnx.load(str(model))
    conv = next(node for node in hurt.graph.node if node.op_type == "Conv" and node.name in plan_for(hurt, "cpu").nodes)
    for tensor in hurt.graph.initializer:
        if tensor.name == conv.input[1]:
            array = numpy_helper.to_array(tensor).copy()
            array.reshape(-1)[0] = np.nan
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(hurt, str(model))
    folder = pictures(tmp_path / "images", 2)
    said = refused(model, "--data", folder, "--no-equalise")
    assert "NaN or infinity in tensor /" in said and "on frame 1" in said and "00.png" in said
    assert not model.with_suffix(".ranges.json").exists()


def test_what_was_written_survives_a_failure(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "ranges.json"
    out.write_text("precious")
    refused(model, "--data", pictures(tmp_path / "images", 3, bad=(2,)), "--out", out)
    assert out.read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {"toy.onnx", "ranges.json", "images"}


def test_an_int8_model_is_refused(model: Path) -> None:
    int8 = int8_from_fp32(exported(), SCENES, Settings("cpu", "minmax", frames=1), threads=1)
    onnx.save(int8, str(model))
    assert "is INT8 already; calibrate its FP32 form" in refused(model, "--data", SCENES)


@pytest.mark.parametrize("kind", ["onnx", "checkpoint"])
def test_a_model_without_the_claimed_input(model: Path, kind: str) -> None:
    path = model
    if kind == "checkpoint":
        path = model.with_suffix(".pth")
        path.write_bytes(b"its inputs are known without reading it")
    message = refused(path, "--data", SCENES, "--input", "image")
    assert message == f"{path}: has no input 'image'; its inputs: frame"


def test_the_input_that_it_has_may_be_claimed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "wrote" in run(capsys, model, "--data", SCENES, "--frames", 1, "--input", "frame", "--method", "minmax")


@pytest.mark.parametrize(
    "more, message",
    [
        (["--out", "MODEL"], "would overwrite its own input"),
        (["--out", "DIR/ranges.txt"], "must end in .json"),
        (["--out", "DIR/spec.json", "--spec", "DIR/spec.json"], "spec.json: is an input itself"),
        (["--out", "DIR/own/classes.json", "--val", "folder:DIR/own"], "classes.json: is an input itself"),
        (["--frames", "0"], "at least 1 is needed"),
        (["--data", "nowhere"], "nowhere: no such source"),
        (["--data", "random"], "refused: ranges measured on random data"),
        (["--val", "nowhere"], "nowhere: no such source"),
        (["--method", "percentile", "--percentile", "5"], "--percentile 5: expected a share above 50"),
    ],
)
def test_refusals_before_any_work(model: Path, tmp_path: Path, more: List[str], message: str) -> None:
    (tmp_path / "spec.json").write_text("{}")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "classes.json").write_text('["a", "b"]')
    given = [part.replace("MODEL", str(model)).replace("DIR", str(tmp_path)) for part in more]
    data: List[str] = [] if "--data" in more else ["--data", SCENES]
    assert message in refused(model, *data, *given)
    assert json.loads((tmp_path / "own" / "classes.json").read_text()) == ["a", "b"]


@pytest.mark.parametrize(
    "arguments",
    [["--method", "best"], ["--percentile", "99"], [], ["--frames", "many"]],
)
def test_wrong_options_end_with_usage(model: Path, arguments: List[str], capsys: pytest.CaptureFixture[str]) -> None:
    data: Optional[List[str]] = ["--data", SCENES] if arguments else []
    with pytest.raises(SystemExit) as caught:
        calibrate.main([str(model), *data, *arguments])
    assert caught.value.code == 2 and "usage:" in capsys.readouterr().err
