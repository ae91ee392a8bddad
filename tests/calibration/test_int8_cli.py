"""INT8 through the export scripts: scales from frames, a ranges file or a fine-tuned checkpoint, for every target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Set

import numpy as np
import onnx
import pytest
from export_toys import SCENES, checkpoint, exported, frames, one_torch_thread  # noqa: F401

import gradseg.calibration.calibrate as calibrate
import gradseg.export.to_ort as to_ort
import gradseg.export.to_trt as to_trt
from gradseg.base.errors import GradsegError
from gradseg.calibration.qdq.int8 import calibrated
from gradseg.calibration.qdq.plan import COMPUTE, plan_for
from gradseg.calibration.qdq.quantise import WeightSettings, weight_scales
from gradseg.calibration.qdq.targets import TARGETS
from gradseg.graphs.graph import Graph
from gradseg.graphs.sessions import OnnxRunner
from gradseg.models import metadata
from gradseg.models.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    save_checkpoint(folder / "net.pth", checkpoint().network)
    onnx.save(exported(), str(folder / "net.onnx"))
    onnx.save(exported("dg4-star-light"), str(folder / "other.onnx"))
    calibrate.main([str(folder / "net.onnx"), "--data", SCENES, "--out", str(folder / "ranges.json"), "--threads", "1"])
    return folder


def ort(files: Path, out: Path, *arguments: Any) -> onnx.ModelProto:
    given = [files / "net.onnx", "--precision", "int8", "--no-timing", "--threads", "1", "--data", SCENES, "-o", out]
    assert to_ort.main([*map(str, given), *map(str, arguments)]) == 0
    return onnx.load(str(out))


def scales(model: onnx.ModelProto) -> Dict[str, bytes]:
    """Every constant of a model, by name."""
    return {name: value.tobytes() for name, value in Graph(model).weights.items()}


def changed(one: onnx.ModelProto, other: onnx.ModelProto) -> Set[str]:
    first, second = scales(one), scales(other)
    assert first.keys() == second.keys()
    return {name for name in first if first[name] != second[name]}


@pytest.mark.parametrize("target", ["cpu", "tidl", "trt"])
def test_a_ranges_file_gives_what_calibrating_gives(files: Path, tmp_path: Path, target: str) -> None:
    direct = ort(files, tmp_path / "a.onnx", "--calib", SCENES, "--target", target)
    from_file = ort(files, tmp_path / "b.onnx", "--ranges", files / "ranges.json", "--target", target)
    values = metadata.read_metadata(tmp_path / "b.onnx")
    assert (values[metadata.PRECISION], values[metadata.TARGET]) == ("int8", target)
    assert json.loads(values[metadata.CALIBRATION])["ranges"] == "ranges.json"
    # the file keeps channel means to a few digits, so corrected biases may differ in the last ones; scales do not
    assert all("bias" in name or "corrected" in name for name in changed(direct, from_file))
    a, b = (OnnxRunner(m.SerializeToString()) for m in (direct, from_file))
    assert all(np.mean(a.first(f) == b.first(f)) > 0.999 for f in frames(3))


@pytest.mark.parametrize("target", ["cpu", "trt", "tidl"])
def test_an_edited_tensor_is_the_only_one_that_changes(files: Path, tmp_path: Path, target: str) -> None:
    raw = json.loads((files / "ranges.json").read_text())
    entry = next(e for e in raw["tensors"] if e["tensor"] == "/encoder/layers.8/Relu_1_output_0")
    entry["max"] *= 4
    edited = tmp_path / "edited.json"
    edited.write_text(json.dumps(raw))
    # without bias rounding to the accumulator's step in the way (tidl), exactly one scale differs
    before = ort(files, tmp_path / "a.onnx", "--ranges", files / "ranges.json", "--target", target)
    after = ort(files, tmp_path / "b.onnx", "--ranges", edited, "--target", target)
    names = changed(before, after)
    assert "/encoder/layers.8/Relu_1_output_0_scale" in names
    others = {name for name in names if not name.startswith("/encoder/layers.8/Relu_1_output_0")}
    assert all(name.startswith("encoder.layers.8.dw2.bias") for name in others) and (target == "tidl" or not others)


def test_edited_ranges_are_said(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = json.loads((files / "ranges.json").read_text())
    raw["tensors"][5]["max"] += 1.0
    (tmp_path / "edited.json").write_text(json.dumps(raw))
    ort(files, tmp_path / "x.onnx", "--ranges", tmp_path / "edited.json")
    assert "calibrated on scenes:frames=4,size=64x96, 1 edited by hand)" in capsys.readouterr().out


def test_a_checkpoint_and_its_onnx_share_a_ranges_file(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.onnx"
    given = [files / "net.pth", "--precision", "int8", "--ranges", files / "ranges.json", "--no-timing", "-o", out]
    assert to_ort.main([str(value) for value in given]) == 0
    assert out.is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranges", "RANGES", "--calib", SCENES], "--calib does not go with it"),
        (["--ranges", "RANGES", "--no-equalise"], "--no-equalise does not go with it"),
        (["--ranges", "RANGES", "--power-of-two"], "--power-of-two does not go with it"),
        (["--ranges", "absent.json"], "absent.json: no such file"),
    ],
)
def test_what_does_not_go_together_is_refused(files: Path, tmp_path: Path, arguments: List[str], message: str) -> None:
    given = [argument.replace("RANGES", str(files / "ranges.json")) for argument in arguments]
    with pytest.raises(GradsegError, match=message):
        ort(files, tmp_path / "x.onnx", *given)
    assert not list(tmp_path.iterdir())


def test_ranges_of_another_model_are_refused_by_name_and_hash(files: Path, tmp_path: Path) -> None:
    given = [files / "other.onnx", "--precision", "int8", "--ranges", files / "ranges.json"]
    message = r"holds the ranges of net\.onnx \([0-9a-f]{12}\), not of other\.onnx \([0-9a-f]{12}\)"
    for script in (to_ort, to_trt):
        out = tmp_path / ("x.onnx" if script is to_ort else "x.plan")
        extra = [] if script is to_ort else ["--compute-capability", "sm89"]
        with pytest.raises(GradsegError, match=message):
            script.main([str(value) for value in [*given, "-o", out, *extra]])
    assert not list(tmp_path.iterdir())


def test_a_missing_tensor_is_named(files: Path, tmp_path: Path) -> None:
    raw = json.loads((files / "ranges.json").read_text())
    raw["tensors"] = [e for e in raw["tensors"] if e["tensor"] != "/encoder/layers.8/Relu_1_output_0"]
    (tmp_path / "r.json").write_text(json.dumps(raw))
    with pytest.raises(GradsegError, match=r"no range for /encoder/layers\.8/Relu_1_output_0, which cpu needs"):
        ort(files, tmp_path / "x.onnx", "--ranges", tmp_path / "r.json")
    assert not (tmp_path / "x.onnx").exists()


def test_repairs_can_be_switched_off(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = {}
    for name, options in (
        ("both", []),
        ("neither", ["--no-equalise", "--no-bias-correction"]),
        ("equalised", ["--no-bias-correction"]),
    ):
        made[name] = ort(files, tmp_path / f"{name}.onnx", "--calib", SCENES, *options)
        said = capsys.readouterr().out
        assert {"both": ", equalised and biases corrected", "neither": ", no repair", "equalised": ", equalised\n"}[
            name
        ] in said
    plain = {name for name in scales(made["neither"]) if name.endswith("corrected")}
    assert not plain
    assert [name for name in scales(made["both"]) if name.endswith("corrected")]
    stem = "encoder.layers.8.dw1.weight_scale"
    weights = [next(v for k, v in scales(model).items() if k.startswith(stem)) for model in made.values()]
    assert weights[1] != weights[2]  # equalised channels have other ranges


def fine_tuned(target: str) -> Dict[str, Any]:
    """What fine-tuning stores, with the scales that calibration finds."""
    found = calibrated(exported(), SCENES, 4, equalise=False, threads=1)
    plan, graph = plan_for(exported(), target), Graph(exported())
    chosen = [node for node in graph.nodes if node.name in plan.nodes and node.op_type in COMPUTE]
    activations = found.activations(target, "mse")
    return {
        "target": target,
        "power_of_two": target == "tidl",
        "activations": {
            name: [activations[name].scale, activations[name].zero_point, activations[name].signed]
            for name in plan.observed()
        },
        "weights": {
            node.name: weight_scales(graph.weights[node.input[1]], node, TARGETS[target], WeightSettings()).tolist()
            for node in chosen
        },
        "base": {"file": "net.pth", "sha256": "0" * 64},
    }


def test_a_fine_tuned_checkpoint_needs_no_calibration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "qat.pth"
    save_checkpoint(path, checkpoint().network, {"quantisation": fine_tuned("tidl")})
    common = [str(path), "--precision", "int8", "--no-timing", "--data", SCENES]
    assert to_ort.main([*common, "--target", "tidl", "-o", str(tmp_path / "q.onnx")]) == 0
    assert "scales from quantisation-aware fine-tuning" in capsys.readouterr().out
    with pytest.raises(GradsegError, match="fine-tuned for INT8 of target tidl, not cpu"):
        to_ort.main([*common, "-o", str(tmp_path / "c.onnx")])
    with pytest.raises(GradsegError, match="--calib does not go with them"):
        to_ort.main([*common, "--target", "tidl", "--calib", SCENES, "-o", str(tmp_path / "c.onnx")])
    assert not (tmp_path / "c.onnx").exists()


def test_fine_tuned_for_cpu_is_written_in_the_cpus_form(tmp_path: Path) -> None:
    path = tmp_path / "qat.pth"
    save_checkpoint(path, checkpoint().network, {"quantisation": fine_tuned("cpu")})
    out = tmp_path / "q.onnx"
    assert to_ort.main([str(path), "--precision", "int8", "--no-timing", "--data", SCENES, "-o", str(out)]) == 0
    model = onnx.load(str(out))
    assert any(node.op_type == "Gemm" for node in model.graph.node)  # the label head as ONNX Runtime is fastest at


def test_max_drop_needs_labels_and_says_what_it_did(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [str(files / "net.onnx"), "--precision", "int8", "--no-timing", "--calib", SCENES, "--threads", "1"]
    for extra in ([], ["--data", str(tmp_path)]):
        with pytest.raises(GradsegError, match="mIoU needs labelled frames; give them with --data camvid: or"):
            to_ort.main([*common, *extra, "--max-drop", "0.5", "-o", str(tmp_path / "x.onnx")])
    assert not list(tmp_path.iterdir())
    ort(files, tmp_path / "x.onnx", "--calib", SCENES, "--max-drop", "100")
    assert "no layer goes back to float" in capsys.readouterr().out
    ort(files, tmp_path / "y.onnx", "--calib", SCENES, "--target", "tidl", "--max-drop", "0")
    said = capsys.readouterr().out
    if "no layer goes back" not in said:
        kept = [line for line in said.splitlines() if "in float it costs" in line]
        assert kept and f"with {len(kept)} of " in said
