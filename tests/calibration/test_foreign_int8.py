"""Networks of other people through the public commands: calibrated, quantised, measured, run; and INT8 of odd ones."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Dict, List, Tuple

import cv2
import numpy as np
import onnx
import pytest
from foreign_toys import CLASSES, DESCRIBED, MEAN, STD, TOYS, Net, batches, lively, spec, toy
from foreign_zoo import ZOO, W
from trt_toys import find_rtx

import gradseg.benchmarks.accuracy as accuracy
import gradseg.calibration.calibrate as calibrate
import gradseg.export.to_ort as to_ort
import gradseg.export.to_trt as to_trt
import gradseg.runtime.run_video as run_video
from gradseg.base.errors import GradsegError
from gradseg.calibration.qdq.int8 import Calibrated, Settings, calibrated, int8_from_calibrated
from gradseg.calibration.qdq.int8_from_arguments import form_for
from gradseg.calibration.qdq.quantise import count_quantised
from gradseg.export.trt.build import build_plan
from gradseg.export.trt.options import BuildOptions
from gradseg.graphs.foreign.convert import deployment_from_foreign
from gradseg.graphs.foreign.spec import Given
from gradseg.graphs.sessions import OnnxRunner
from gradseg.models import metadata

SAID = Given(mean=MEAN, std=STD, count=CLASSES)
PLACES: Dict[str, Path] = {}
TARGETS = {"cpu": 0.86, "trt": 0.83, "tidl": 0.80}  # labels kept by untrained networks, whose logits lie close together


@pytest.fixture(autouse=True, scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four frames as files."""
    PLACES["frames"] = folder = tmp_path_factory.mktemp("data") / "images"
    folder.mkdir()
    for index, batch in enumerate(batches()):
        cv2.imwrite(str(folder / f"{index}.png"), batch[0])
    return folder


@functools.cache
def prepared(name: str) -> Tuple[onnx.ModelProto, Calibrated]:
    """(deployment form, what calibration found) of a toy or of a network of the zoo."""
    if name in TOYS:
        model = toy(name)
    else:
        net = Net(seed=5)
        lively(net, ZOO[name](net, net.block("image", (3, W))), W, CLASSES)
        model = net.model(["scores"])
    made = deployment_from_foreign(model, SAID, name, str(PLACES["frames"]))[0]
    return made, calibrated(made, str(PLACES["frames"]), 2, threads=1)


def int8(name: str, target: str) -> onnx.ModelProto:
    found: onnx.ModelProto = int8_from_calibrated(prepared(name)[1], Settings(target, "minmax", 4), form_for(target))
    return found


@pytest.mark.parametrize("name", [*TOYS, *ZOO])
def test_odd_networks_keep_their_labels_in_int8(name: str) -> None:
    made, _ = prepared(name)
    floats = OnnxRunner(made.SerializeToString(), threads=1)
    for target, least in TARGETS.items():
        model = int8(name, target)
        onnx.checker.check_model(model, full_check=True)
        only_deconvolutions = target == "trt" and name == "deconvolutions"  # which stay in float for TensorRT
        assert (count_quantised(model)[0] == 0) == only_deconvolutions
        runner = OnnxRunner(model.SerializeToString(), threads=1)
        kept = np.mean([np.mean(runner.first(batch) == floats.first(batch)) for batch in batches()[:2]])
        assert kept > least, target


@pytest.mark.parametrize("name", [*TOYS, "mobile", "squeeze_excite", "conv_next", "mixed_concat", "sums", "resizes"])
def test_their_trt_graphs_build(name: str) -> None:
    data, options = int8(name, "trt").SerializeToString(), BuildOptions("int8", ("sm89",))
    built = build_plan(data, options, name, find_rtx(), spec().input_hw)
    assert len(built.plan) > 10_000


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", TOYS)
def test_the_classifier_stays_in_float(name: str, target: str) -> None:
    """The convolution that makes the logits, also where they are enlarged behind it."""
    model = int8(name, target)
    made_by = {output: node for node in model.graph.node for output in node.output}
    node = made_by[next(node for node in model.graph.node if node.op_type == "ArgMax").input[0]]
    while node.op_type != "Conv":
        assert node.op_type == "Resize"
        node = made_by[node.input[0]]
    assert node.input[1] not in made_by, "its weights are plain numbers"


# ---- the public commands


@pytest.fixture(scope="module")
def labelled(frames: Path) -> Path:
    """folder: data whose labels are those of the U-Net toy in float."""
    folder = frames.parent
    (folder / "labels").mkdir()
    runner = OnnxRunner(prepared("unet")[0].SerializeToString(), threads=1)
    for index, batch in enumerate(batches()):
        cv2.imwrite(str(folder / "labels" / f"{index}.png"), runner.first(batch)[0])
    (folder / "classes.json").write_text(json.dumps({"classes": [f"class {index}" for index in range(CLASSES)]}))
    return folder


def test_a_foreign_network_from_calibration_to_video(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """calibrate → ranges.json → INT8 → mIoU → video, with one JSON that says what the network is."""
    net, described, frames = tmp_path / "unet.onnx", tmp_path / "unet.json", str(labelled / "images")
    onnx.save(toy("unet"), str(net))
    described.write_text(json.dumps({"mean": MEAN, "std": STD, "color_order": "rgb", "classes": CLASSES}))
    said = ["--spec", str(described)]
    ranges, int8_file, float_file = tmp_path / "ranges.json", tmp_path / "int8.onnx", tmp_path / "fp32.onnx"
    assert calibrate.main([str(net), *said, "--data", frames, "--threads", "1", "--out", str(ranges)]) == 0
    written = json.loads(ranges.read_text())
    assert written["data"]["frames"] == 4 and written["preprocessing"]
    common = [*said, "--data", frames, "--threads", "1", "--no-timing"]
    options = ["--precision", "int8", "--ranges", str(ranges), "-o", str(int8_file)]
    assert to_ort.main([str(net), *common, *options]) == 0
    told = capsys.readouterr().out
    assert f"wrote {int8_file}: " in told and "INT8: labels equal to FP32's on " in told and "ranges" in told
    assert int8_file.stat().st_size < 0.45 * net.stat().st_size
    assert to_ort.main([str(net), *common, "-o", str(float_file)]) == 0
    figures = {}
    for file in (int8_file, float_file):
        out = tmp_path / f"{file.stem}.json"
        data = ["--data", f"folder:{labelled}", "--threads", "1", "--json", str(out)]
        assert accuracy.main(["--engine", str(file), *data]) == 0
        figures[file.stem] = json.loads(out.read_text())["miou"]
    assert figures["fp32"] > 0.999 and 0.85 < figures["int8"] < 1
    labels = tmp_path / "labels"
    arguments = [frames, "--engine", str(int8_file), "--threads", "1", "--labels", str(labels), "--max-frames", "3"]
    assert run_video.main(arguments) == 0
    runner = OnnxRunner(int8_file.read_bytes(), threads=1)
    found = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted(labels.glob("*.png"))]
    assert len(found) == 3
    for seen, batch in zip(found, batches(), strict=False):
        np.testing.assert_array_equal(seen, runner.first(batch)[0])


@pytest.mark.slow
def test_the_report_takes_a_foreign_network(labelled: Path, tmp_path: Path) -> None:
    import gradseg.calibration.report as report

    onnx.save(toy("unet"), str(tmp_path / "unet.onnx"))
    source = ["--data", f"folder:{labelled}", "--calib", str(labelled / "images"), "--samples", "0", "--threads", "1"]
    files = ["--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")]
    assert report.main([str(tmp_path / "unet.onnx"), *DESCRIBED, *source, *files]) == 0
    (model,) = json.loads((tmp_path / "r.json").read_text())["models"]
    assert model["float"]["miou"] > 0.999
    assert {variant["target"] for variant in model["variants"]} == set(TARGETS)


@pytest.mark.parametrize("name", ["deeplab", "segformer"])
def test_other_shapes_of_network_through_the_commands(name: str, frames: Path, tmp_path: Path) -> None:
    net, ranges, out = tmp_path / "net.onnx", tmp_path / "r.json", tmp_path / "int8.onnx"
    onnx.save(toy(name), str(net))
    common = [str(net), *DESCRIBED, "--data", str(frames), "--threads", "1"]
    assert calibrate.main([*common, "--method", "percentile", "--out", str(ranges)]) == 0
    options = ["--precision", "int8", "--ranges", str(ranges), "--no-timing", "-o", str(out)]
    assert to_ort.main([*common, *options]) == 0
    values = metadata.read_metadata(out)
    assert (values[metadata.PRECISION], values[metadata.TARGET]) == ("int8", "cpu")


def test_a_plan_from_a_foreign_network(frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    find_rtx()
    onnx.save(toy("segformer"), str(tmp_path / "net.onnx"))
    plan = tmp_path / "out" / "net.plan"
    data = ["--data", str(frames), "--calib", str(frames), "--calib-frames", "2"]
    options = ["--precision", "int8", "--compute-capability", "sm89", "-o", str(plan)]
    assert to_trt.main([str(tmp_path / "net.onnx"), *DESCRIBED, *data, *options]) == 0
    assert f"wrote {plan}: " in capsys.readouterr().out
    assert metadata.read_metadata(plan.with_suffix(".onnx"))[metadata.TARGET] == "trt"


def test_ranges_of_another_description_are_refused(frames: Path, tmp_path: Path) -> None:
    """Other mean or std: other weights in the deployment form, so other ranges."""
    onnx.save(toy("deeplab"), str(tmp_path / "net.onnx"))
    ranges, common = str(tmp_path / "r.json"), [str(tmp_path / "net.onnx"), "--data", str(frames), "--threads", "1"]
    assert calibrate.main([*common, *DESCRIBED, "--frames", "2", "--out", ranges]) == 0
    other = ["--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--classes", str(CLASSES)]
    with pytest.raises(GradsegError, match=r"holds the ranges of net.onnx .*, not of net.onnx .*calibrate again"):
        to_ort.main([*common, *other, "--precision", "int8", "--ranges", ranges, "-o", str(tmp_path / "o.onnx")])


BAD_COMMANDS: List[Any] = [
    ([], "without GradSeg metadata; say what it is with --spec FILE"),
    (["--mean", "0.5"], "--mean 0.5: expected three numbers"),
    (["--classes", "6"], r"its output is \[1, 5, 64, 96\], its spec needs logits \[1, 6, 64, 96\]"),
    (["--classes", "5", "--size", "32x32"], "is fixed at 64x96"),
    (["--classes", "5", "--output", "nothing"], "has no tensor 'nothing'"),
    (["--classes", "5", "--arch", "erfnet"], "--size and --arch are for checkpoints"),
]


@pytest.mark.parametrize("arguments, message", BAD_COMMANDS)
@pytest.mark.parametrize("command", [to_ort, to_trt, calibrate])
def test_bad_commands_are_one_line_and_leave_nothing(
    command: Any, arguments: List[str], message: str, frames: Path, tmp_path: Path
) -> None:
    net = tmp_path / "net.onnx"
    onnx.save(toy("unet"), str(net))
    out = {to_ort: "o.onnx", to_trt: "o.plan", calibrate: "o.json"}[command]
    with pytest.raises(GradsegError, match=message) as caught:
        command.main([str(net), *arguments, "--data", str(frames), "--out", str(tmp_path / out)])
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == [net]


def test_the_runtime_says_to_convert_first(labelled: Path, tmp_path: Path) -> None:
    net, described = tmp_path / "net.onnx", tmp_path / "net.json"
    onnx.save(toy("deeplab"), str(net))
    described.write_text(json.dumps({"mean": MEAN, "std": STD, "classes": CLASSES}))
    engine = ["--engine", str(net), "--data", f"folder:{labelled}"]
    with pytest.raises(
        GradsegError, match=r"without GradSeg's metadata .* python export/to_ort\.py .*net\.onnx --mean"
    ):
        accuracy.main(engine)
    with pytest.raises(
        GradsegError, match=r"in short.*convert the network first.*export/to_ort\.py MODEL\.onnx --spec"
    ):
        accuracy.main([*engine, "--spec", str(described)])
    described.write_text(spec().to_json())
    with pytest.raises(GradsegError, match=r"expected labels .* float logits .*converted by python export/to_ort\.py"):
        accuracy.main([*engine, "--spec", str(described)])
