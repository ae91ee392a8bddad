"""Layers ranked by what INT8 does to them, and `--max-drop`: layers back in float until a budget of mIoU holds."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import cv2
import numpy as np
import onnx
import pytest
from export_toys import exported, one_torch_thread  # noqa: F401
from onnx import TensorProto, helper, numpy_helper
from ranges_toys import round_trip

from gradseg.base.errors import GradsegError
from gradseg.calibration import sensitivity
from gradseg.calibration.cost.accuracy import Frames
from gradseg.calibration.cost.budget import TRIED_BACK, Budgeted, budgeted, within_budget
from gradseg.calibration.cost.ranking import Costs, Ranking, latency_costs, ranking, work_costs
from gradseg.calibration.qdq.int8 import Int8Parts, Settings, calibrated
from gradseg.calibration.qdq.int8_from_arguments import form_for
from gradseg.calibration.qdq.layers import layers_of
from gradseg.calibration.qdq.plan import COMPUTE, Plan, plan_for
from gradseg.calibration.qdq.targets import Quantisation, weight_integers, weight_scale
from gradseg.data.base import Dataset, Sample
from gradseg.data.scenes.frames import ScenesData
from gradseg.graphs.graph import Graph, is_quantised
from gradseg.graphs.sessions import OnnxRunner
from gradseg.models import metadata
from gradseg.models.spec import ModelSpec, spec_for

HW, WIDTH, CLASSES = (32, 48), 24, 11
LAYERS = ("stem", "a", "b", "sum", "c", "d", "e", "sum2")
SCENES = "scenes:frames=4,size=32x48"
MOST = 60.0  # points: a random network's labels change easily, but a spoilt layer takes all it has
CALIB = "scenes:frames=3,size=32x48,seed=9"


def spec() -> ModelSpec:
    return spec_for("dg2-star-light", input_hw=HW)


def network(*spoilt: str) -> onnx.ModelProto:
    """stem → a → b, added to stem's → c → d → e, added to c's → label head, each convolution with a ReLU.

    In a `spoilt` convolution, every output has a huge weight on an input that is always 0: it computes nothing else
    than before, but no scale serves its weights any more.
    """
    rng, nodes, weights = np.random.default_rng(3), [], {}

    def conv(name: str, source: str, inputs: int, outputs: int, kernel: int) -> str:
        fan = inputs * kernel * kernel
        weights[f"{name}.w"] = rng.normal(0, math.sqrt(2 / fan), (outputs, inputs, kernel, kernel)).astype(np.float32)
        weights[f"{name}.b"] = rng.normal(0, 0.1, outputs).astype(np.float32)
        pads = [kernel // 2] * 4
        nodes.append(
            helper.make_node("Conv", [source, f"{name}.w", f"{name}.b"], [f"{name}.y"], name, pads=pads, group=1)
        )
        nodes.append(helper.make_node("Relu", [f"{name}.y"], [f"{name}.z"], f"{name}.relu"))
        return f"{name}.z"

    def add(name: str, one: str, two: str) -> str:
        nodes.append(helper.make_node("Add", [one, two], [f"{name}.y"], name))
        return f"{name}.y"

    nodes.append(helper.make_node("Cast", ["frame"], ["cast.y"], "cast", to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Transpose", ["cast.y"], ["pixels"], "chw", perm=[0, 3, 1, 2]))
    stem = conv("stem", "pixels", 3, WIDTH, 3)
    weights["stem.w"] /= 255
    first = add("sum", conv("b", conv("a", stem, WIDTH, WIDTH, 1), WIDTH, WIDTH, 3), stem)
    c = conv("c", first, WIDTH, WIDTH, 1)
    second = add("sum2", conv("e", conv("d", c, WIDTH, WIDTH, 1), WIDTH, WIDTH, 1), c)
    conv("head", second, WIDTH, CLASSES, 1)
    nodes.pop()
    before = {"b": "a", "d": "c", "e": "d"}
    scores = _head_scores(nodes, weights)
    spread, middle = scores.std(axis=(0, 2, 3)), scores.mean(axis=(0, 2, 3))
    weights["head.w"] /= spread[:, None, None, None]  # so that every class occurs
    weights["head.b"] = (weights["head.b"] - middle) / spread
    for name in spoilt:
        weights[f"{before[name]}.w"][5] = 0
        weights[f"{before[name]}.b"][5] = -1
        weights[f"{name}.w"][:, 5] = 1000 * np.abs(weights[f"{name}.w"]).max()
    nodes.append(helper.make_node("ArgMax", ["head.y"], ["best"], "best", axis=1, keepdims=0))
    nodes.append(helper.make_node("Cast", ["best"], ["labels"], "to_labels", to=TensorProto.UINT8))
    model = _model(nodes, weights, helper.make_tensor_value_info("labels", TensorProto.UINT8, [1, *HW]))
    metadata.set_metadata(model, {metadata.SPEC: spec().to_json(), metadata.FORMAT: metadata.DEPLOYMENT})
    onnx.checker.check_model(model, full_check=True)
    return model


def _model(nodes: list[Any], weights: dict[str, Any], output: Any) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, *HW, 3])],
        [output],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _head_scores(nodes: list[Any], weights: dict[str, Any]) -> np.ndarray[Any, Any]:
    model = _model(nodes, weights, helper.make_tensor_value_info("head.y", TensorProto.FLOAT, [1, CLASSES, *HW]))
    runner, scenes = OnnxRunner(model.SerializeToString(), threads=1), ScenesData(4, HW, 1)
    return np.concatenate([runner.first(scenes[index].image[None]) for index in range(4)])


class OwnLabels(Dataset):
    """Scenes with a network's own labels: its mIoU is 1, and every label that changes is a loss."""

    def __init__(self, model: onnx.ModelProto, count: int) -> None:
        self.scenes, self.runner = ScenesData(count, HW, 1), OnnxRunner(model.SerializeToString(), threads=1)
        self.classes, self.palette = self.scenes.classes, self.scenes.palette

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Sample:
        image = self.scenes[index].image
        return Sample(image, self.runner.first(image[None])[0].copy(), str(index))


@functools.cache
def parts(target: str, *spoilt: str) -> Int8Parts:
    found = calibrated(network(*spoilt), CALIB, 3, equalise=False, threads=1)
    settings = Settings(target, equalise=False, bias_correction=False)
    return Int8Parts.of(found, settings, form_for(target))


@functools.cache
def frames(*spoilt: str) -> Frames:
    return Frames(OwnLabels(network(*spoilt), 4), spec())


def ranked(target: str, *spoilt: str) -> Ranking:
    return ranking(parts(target, *spoilt), frames(*spoilt), threads=1)


# ---- layers


@pytest.mark.parametrize("target", ["cpu", "trt", "tidl"])
def test_layers_are_those_that_the_target_computes_in_int8(target: str) -> None:
    layers = parts(target).layers()
    # pixels do not fit TensorRT's symmetric int8; the sums count, the label head never does
    assert [layer.name for layer in layers] == list(LAYERS if target != "trt" else LAYERS[1:])
    known = {layer.name: layer for layer in layers}
    pixels = HW[0] * HW[1]
    assert (known["b"].macs, known["b"].weights) == (pixels * 9 * WIDTH**2, 9 * WIDTH**2)
    assert (known["sum"].macs, known["sum"].weights, known["sum"].values) == (0, 0, pixels * WIDTH)
    assert known["a"].output == "a.z" and known["sum"].output == "sum.y"


@pytest.mark.parametrize("target", ["cpu", "trt", "tidl"])
@pytest.mark.parametrize("name", LAYERS[1:])
def test_only_the_layer_in_question_is_quantised(target: str, name: str) -> None:
    toy = parts(target)
    layer = next(each for each in toy.layers() if each.name == name)
    graph = Graph(toy.alone(layer))
    packed = [node.name for node in graph.nodes if node.op_type in COMPUTE and graph.producer(node.input[1])]
    assert packed == ([name] if layer.operator == "Conv" else [])
    rounded = {node.input[0] for node in graph.nodes if node.op_type == "QuantizeLinear"}
    node = next(each for each in Graph(toy.model).nodes if each.name == name)
    sources = set(node.input) if node.op_type == "Add" else {node.input[0]}
    assert rounded == (sources if target == "trt" else sources | {layer.output})
    for other in graph.nodes:  # what else reads the layer's inputs, as the sums read what a and d do, has them in float
        if other.op_type in ("Conv", "Add") and other.name != name:
            after = {output for node in graph.nodes if node.op_type == "DequantizeLinear" for output in node.output}
            assert all(layer.output in tensor for tensor in set(other.input[:2]) & after)


@pytest.mark.parametrize("target", ["cpu", "trt", "tidl"])
@pytest.mark.parametrize("arch", ["dg4s-star", "erfnet"])
def test_any_layer_can_be_left_out_or_alone_with_the_ranges_of_the_whole(arch: str, target: str) -> None:
    model = exported(arch)
    form = form_for(target)
    toy = Int8Parts(model, {}, {}, Settings(target), form)
    layers, needed = toy.layers(), toy.whole.tensors
    covered = [name for layer in layers for name in layer.nodes]
    assert len(covered) == len(set(covered)) and set(covered) <= set(toy.whole.nodes)
    for layer in layers[::9]:
        alone = toy.only(layer)
        assert layer.name in alone.nodes and set(alone.nodes) <= set(layer.nodes)
        rest = plan_for(toy.ready, target, layer.nodes)
        assert not set(rest.nodes) & set(layer.nodes)
        for plan in (alone, rest):
            assert all(needed[tensor] == source for tensor, source in plan.tensors.items())
    nothing = plan_for(toy.ready, target, tuple(covered))
    assert not set(nothing.tensors) - {"frame"} or target == "cpu"
    assert not [n for n in nothing.nodes if n in covered]


def test_shuffles_belong_to_the_layer_whose_result_they_hand_on() -> None:
    model = exported("dg4s-star")
    layers = layers_of(model, plan_for(model, "tidl"))
    kinds = {node.name: node.op_type for node in model.graph.node}
    assert {kinds[layer.name] for layer in layers} == {"Conv", "ConvTranspose", "Add"}
    followed = [layer for layer in layers if len(layer.nodes) > 1]
    assert len(followed) == 26
    assert all([kinds[n] for n in layer.nodes[1:]] == ["Reshape", "Transpose", "Reshape"] for layer in followed)


# ---- ranking


@pytest.mark.parametrize("target", ["cpu", "trt", "tidl"])
def test_a_spoilt_layer_ranks_first(target: str) -> None:
    found = ranked(target, "b")
    worst, second = found.effects[:2]
    assert worst.layer.name == "b"
    assert worst.miou_change is not None and second.miou_change is not None
    assert worst.miou_change < 2 * second.miou_change
    assert worst.agreement < second.agreement
    assert worst.sqnr_db is not None and worst.scores_sqnr_db is not None
    for other in found.effects[1:]:
        assert other.sqnr_db is not None and other.sqnr_db > worst.sqnr_db + 10
        assert other.scores_sqnr_db is not None and other.scores_sqnr_db > worst.scores_sqnr_db + 10
    assert worst.worst_class is not None and worst.worst_class[1] <= worst.miou_change
    assert found.base is not None and found.base.miou == 1.0
    assert found.int8 is not None and found.int8.miou < 0.2


def test_signal_to_noise_is_that_of_the_arrays() -> None:
    """Against NumPy: a 1x1 convolution's input, weights, bias and result rounded, nothing else."""
    toy = parts("tidl")
    effect = next(each for each in ranked("tidl").effects if each.layer.name == "d")
    model, graph = onnx.ModelProto(), Graph(toy.model)
    model.CopyFrom(toy.model)
    names = ["c.z", "d.z"]
    model.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)
    weight, bias = graph.weights["d.w"], graph.weights["d.b"].astype(np.float64)
    scale = weight_scale(weight, None, power_of_two=True)
    fixed = weight_integers(weight, scale, None)[:, :, 0, 0] * scale.astype(np.float64)
    step = scale[0] * toy.activations["c.z"].scale
    runner, signal, noise = OnnxRunner(model.SerializeToString(), threads=1), 0.0, 0.0
    for batch, _ in frames():
        given, wanted = runner.run(batch, names)
        sums = np.einsum("oi,nihw->nohw", fixed, round_trip(toy.activations["c.z"], given).astype(np.float64))
        result = np.maximum(sums + (np.rint(bias / step) * step)[:, None, None], 0)
        signal += np.square(wanted, dtype=np.float64).sum()
        noise += np.square(round_trip(toy.activations["d.z"], result) - wanted, dtype=np.float64).sum()
    assert effect.sqnr_db == pytest.approx(10 * math.log10(signal / noise), abs=0.01)


def test_without_labels_there_is_agreement_but_no_miou() -> None:
    batches = [batch for batch, _ in frames("b")]
    found = ranking(parts("tidl", "b"), batches, threads=1)
    assert found.base is None and found.int8 is None and found.int8_agreement < 0.5
    assert found.effects[0].layer.name == "b"
    assert all(effect.miou_change is None and effect.worst_class is None for effect in found.effects)
    with_labels = {effect.layer.name: effect for effect in ranked("tidl", "b").effects}
    assert all(effect.agreement == with_labels[effect.layer.name].agreement for effect in found.effects)
    assert [effect.agreement for effect in found.effects] == sorted(effect.agreement for effect in found.effects)


def test_a_layer_without_noise_has_no_ratio() -> None:
    """A fine enough scale... of all zeros: the ratio of nothing to nothing is not in the JSON as a number."""
    toy = parts("tidl")
    silent = network()
    for tensor in silent.graph.initializer:
        if tensor.name in ("a.w", "a.b"):
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(tensor.dims, np.float32), tensor.name))
    scales = {**toy.activations, "a.z": Quantisation(1.0, 0, True)}
    found = ranking(Int8Parts(silent, scales, {}, toy.settings), [b for b, _ in frames()], threads=1)
    effect = next(each for each in found.effects if each.layer.name == "a")
    assert effect.sqnr_db is None
    json.dumps(found.to_json(), allow_nan=False)


def test_nothing_to_rank_is_said() -> None:
    toy = parts("tidl")
    kept = tuple(layer.name for layer in toy.layers())
    with pytest.raises(GradsegError, match="target tidl: no layer of this network runs in INT8"):
        ranking(Int8Parts(toy.model, {}, {}, Settings("tidl", keep_float=kept)), frames(), threads=1)
    with pytest.raises(GradsegError, match="no frames to measure with"):
        ranking(toy, [], threads=1)


# ---- the budget


def builder(toy: Int8Parts, seen: Optional[list[tuple[str, ...]]] = None) -> Callable[[tuple[str, ...]], Any]:
    def build(kept: tuple[str, ...]) -> Any:
        if seen is not None:
            seen.append(kept)
        return toy.written(plan_for(toy.ready, toy.settings.target, kept))

    return build


def held(
    target: str, spoilt: tuple[str, ...], most: float, prices: Optional[dict[str, float]] = None, **changes: Any
) -> Budgeted:
    toy, shown = parts(target, *spoilt), frames(*spoilt)
    base = shown.score(OnnxRunner(toy.model.SerializeToString(), threads=1).first)
    layers = toy.layers()
    known = Costs({layer.name: 1.0 for layer in layers} | (prices or {}), "ms", "costs are made up")
    given = {"build": builder(toy), "costs": lambda: known, **changes}
    return within_budget(
        layers=layers, frames=shown, float_score=base, max_drop=most, threads=1, integers=target == "cpu", **given
    )


@pytest.mark.parametrize("target", ["cpu", "trt", "tidl"])
def test_exactly_the_spoilt_layer_goes_back_to_float(target: str) -> None:
    found = held(target, ("b",), MOST)
    assert [row.layer.name for row in found.kept_float] == ["b"]
    assert found.drop <= MOST and found.drop == pytest.approx(100 * (1 - found.score.miou))
    row = found.kept_float[0]
    assert row.gain > 80 and row.cost == 1.0 and row.without is not None and row.without > MOST
    graph = Graph(found.model)
    floats = [n.name for n in graph.nodes if n.op_type == "Conv" and graph.producer(n.input[1]) is None]
    assert set(floats) - {"stem"} == {"b", "head"} - ({"head"} if target == "cpu" and "head" not in floats else set())
    assert "on 4 frames, 60 may be lost: with 1 of" in found.lines[0]
    assert "  b: in INT8 alone it loses" in found.lines[1] and "on 4 frames, in float it costs 1 ms" in found.lines[1]
    assert "were it in INT8 too, the network would lose" in found.lines[1]
    assert found.lines[-1] == "costs are made up"


@pytest.mark.parametrize("name", ["b", "d", "sum"])
def test_a_layer_left_in_float_on_the_cpu_is_not_rounded_by_onnxruntime(name: str) -> None:
    """Which it would do to float weights between INT8 operators, one scale for all of them."""
    toy = parts("cpu", "b")
    model = builder(toy)((name, "b"))
    shielded = [node for node in model.graph.node if node.op_type == "Max"]
    assert len(shielded) == len({name, "b"} - {"sum"}) - (name == "sum")
    kernels, written = (OnnxRunner(model.SerializeToString(), threads=1, integers=flag).first for flag in (True, False))
    same = np.mean([np.mean(kernels(batch) == written(batch)) for batch, _ in frames("b")])
    assert same > 0.98


def test_two_spoilt_layers_both_go() -> None:
    found = held("tidl", ("b", "e"), MOST)
    assert {row.layer.name for row in found.kept_float} == {"b", "e"}
    assert all(row.without is not None and row.without > MOST for row in found.kept_float)


def test_a_layer_that_is_cheap_but_not_needed_returns_to_int8() -> None:
    seen: list[tuple[str, ...]] = []
    cheap = {"a": 1e-9, "c": 1e-9}
    found = held("tidl", ("b",), MOST, cheap, build=builder(parts("tidl", "b"), seen))
    assert [row.layer.name for row in found.kept_float] == ["b"]
    tried = [kept for kept in seen if 0 < len(kept) < 5]
    assert {"a", "c"} & set(tried[0]) and "b" not in tried[0]  # the cheapest went first


def test_full_int8_that_holds_moves_nothing_and_measures_no_costs() -> None:
    def never() -> Costs:
        raise AssertionError("no costs are needed")

    found = held("tidl", (), MOST, costs=never)
    assert found.kept_float == () and found.evaluations == 1
    assert "no layer goes back to float" in found.lines[0] and is_quantised(found.model)


def test_a_budget_of_nothing_is_held_in_float() -> None:
    found = held("tidl", ("b",), 0.0)
    assert found.drop <= 0 and found.kept_float


def test_a_budget_that_cannot_be_held_says_the_best_that_was_reached() -> None:
    toy = parts("tidl", "b")
    with pytest.raises(GradsegError, match=r"--max-drop 0.5 cannot be held on 4 frames: the best of \d+ networks") as e:
        held("tidl", ("b",), 0.5, build=lambda kept: toy.written(toy.whole))
    assert "with 0 of 8 layers in float, loses" in str(e.value)


@pytest.mark.parametrize("most", [-0.1, math.nan, math.inf])
def test_a_budget_must_be_a_number(most: float) -> None:
    with pytest.raises(GradsegError, match="expected points of mIoU, 0 or more"):
        held("tidl", ("b",), most)
    toy = parts("tidl")
    with pytest.raises(GradsegError, match="--max-drop"):
        budgeted(toy.model, "tidl", builder(toy), frames(), most)


def test_the_whole_from_a_network_and_a_target() -> None:
    toy = parts("tidl", "b")
    found = budgeted(toy.model, "tidl", builder(toy), frames("b"), MOST, threads=1)
    assert [row.layer.name for row in found.kept_float] == ["b"]
    assert found.kept_float[0].cost == pytest.approx(HW[0] * HW[1] * (9 * WIDTH**2 + 16 * WIDTH) / 1e6)
    assert "no device for tidl here" in found.lines[-1] and "MMAC" in found.lines[1]
    assert found.evaluations <= 2 + 2 * math.log2(8) + TRIED_BACK


def test_latency_costs_are_positive_and_complete() -> None:
    toy = parts("cpu")
    layers = toy.layers()
    batch = next(iter(frames()))[0]
    costs = latency_costs(builder(toy), layers, batch, threads=1)
    assert set(costs.values) == {layer.name for layer in layers} and costs.unit == "ms"
    assert all(0 < value < math.inf for value in costs.values.values())
    assert set(work_costs(layers, "trt").values) == set(costs.values)


def test_some_frames_are_spread_over_all() -> None:
    whole = frames()
    few = whole.some(2)
    assert len(few) == 2 and len(whole) == 4 and len(whole.some(9)) == 4
    kept = list(whole)
    assert [batch is kept[index][0] for index, (batch, _) in zip((0, 2), few, strict=True)] == [True, True]


# ---- the script


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sensitivity") / "spoilt.onnx"
    path.write_bytes(network("b").SerializeToString())
    return path


def arguments(path: Path, *more: str, data: str = SCENES) -> list[str]:
    return [str(path), "--data", data, "--calib", CALIB, "--target", "tidl", "--threads", "1", "--no-equalise", *more]


def test_script_prints_a_ranked_table_and_writes_json_and_plot(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written, plot = tmp_path / "new" / "s.json", tmp_path / "s.png"
    assert sensitivity.main(arguments(file, "--json", str(written), "--plot", str(plot), "--top", "3")) == 0
    out = capsys.readouterr().out
    assert "spoilt.onnx, target tidl, mse on 3 frames of scenes:" in out and "… and 5 layers that matter less" in out
    rows = json.loads(written.read_text())
    assert rows["target"] == "tidl" and rows["frames"] == 4 and rows["noise_frames"] == 4
    assert rows["repair"] == {"equalise": False, "bias_correction": True}
    assert 0 <= rows["float"]["miou"] <= 1 and set(rows["float"]["per_class"]) == set(spec().classes)
    assert set(rows["int8"]) == {"agreement", "miou", "miou_change", "worst_class", "per_class"}
    assert [row["rank"] for row in rows["layers"]] == list(range(1, 9))
    assert sorted(row["layer"] for row in rows["layers"]) == sorted(LAYERS)
    assert rows["conditions"]["threads"] == 1 and len(rows["model"]["sha256"]) == 64
    for row in rows["layers"]:
        assert {"operator", "output", "macs", "weights"} <= set(row) and 0 <= row["agreement"] <= 1
        assert set(row["worst_class"]) == {"name", "change"} and -100 <= row["miou_change"] <= 100
    noisiest = min(rows["layers"], key=lambda row: row["scores_sqnr_db"])
    assert noisiest["layer"] == "b"
    picture = cv2.imread(str(plot))
    assert picture is not None and picture.shape[1] > 600 and np.ptp(picture) > 100


def test_script_takes_images_without_labels(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = ScenesData(3, HW, 4)
    for index in range(3):
        cv2.imwrite(str(tmp_path / f"{index}.png"), scenes[index].image)
    plot = tmp_path / "out.png"
    data = str(tmp_path / "[0-9].png")
    assert sensitivity.main(arguments(file, "--plot", str(plot), "--json", str(tmp_path / "r.json"), data=data)) == 0
    assert "has no labels: no mIoU" in capsys.readouterr().out
    rows = json.loads((tmp_path / "r.json").read_text())
    assert rows["float"] is None and rows["int8"]["miou"] is None and rows["frames"] == 3
    assert rows["layers"][0]["layer"] == "b" and rows["layers"][0]["worst_class"] is None
    assert plot.stat().st_size > 1000


def test_script_takes_a_ranges_file(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gradseg.calibration import calibrate

    ranges = tmp_path / "r.json"
    assert calibrate.main([str(file), "--data", CALIB, "--frames", "3", "--out", str(ranges), "--no-equalise"]) == 0
    given = [str(file), "--data", SCENES, "--target", "tidl", "--threads", "1", "--limit", "2"]
    assert sensitivity.main([*given, "--ranges", str(ranges), "--json", str(tmp_path / "a.json")]) == 0
    assert sensitivity.main([*arguments(file), "--limit", "2", "--json", str(tmp_path / "b.json")]) == 0
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert one["repair"]["equalise"] is False and "ranges from" in one["calibration"]
    # the file holds rounded decimals, so that scales may differ in the last digits
    for row, other in zip(*(sorted(each["layers"], key=lambda r: str(r["layer"])) for each in (one, two)), strict=True):
        assert row["sqnr_db"] == pytest.approx(other["sqnr_db"], abs=0.2)
    with pytest.raises(GradsegError, match="takes the place of calibration; leave --calib or it out"):
        sensitivity.main([*arguments(file), "--ranges", str(ranges)])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--limit", "0"], "--limit 0: expected 1 or more"),
        (["--plot", "s.jpg"], r"--plot s.jpg: expected a name that ends in .png"),
        (["--json", "s.txt"], r"--json s.txt: expected a name that ends in .json"),
        (["--threads", "0"], "threads"),
        (["--data", "camvid:/no/such"], "no such folder"),
        (["--data", "noise:"], "refused"),
    ],
)
def test_bad_arguments_are_refused(file: Path, more: list[str], message: str) -> None:
    with pytest.raises(GradsegError, match=message):
        sensitivity.main(arguments(file, *more))


def test_a_quantised_model_and_other_classes_are_refused(file: Path, tmp_path: Path) -> None:
    toy = parts("tidl")
    packed = tmp_path / "int8.onnx"
    packed.write_bytes(toy.written(toy.whole).SerializeToString())
    with pytest.raises(GradsegError, match="is INT8 already"):
        sensitivity.main(arguments(packed))
    model = network()
    classes = spec().classes[::-1]
    changed = {**spec().to_dict(), "classes": list(classes)}
    metadata.set_metadata(model, {metadata.SPEC: json.dumps(changed)})
    other = tmp_path / "other.onnx"
    other.write_bytes(model.SerializeToString())
    with pytest.raises(GradsegError, match="are not the data's"):
        sensitivity.main(arguments(other))


def test_without_matplotlib_the_plot_is_refused_before_the_work(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    monkeypatch.setattr("gradseg.calibration.cost.run.rank_layers", lambda args: pytest.fail("the work began"))
    with pytest.raises(GradsegError, match="this needs matplotlib, not installed here: pip install ") as error:
        sensitivity.main(arguments(file, "--plot", str(tmp_path / "s.png")))
    assert error.value.exit_code == 3 and not (tmp_path / "s.png").exists()


def test_plan_keeps_the_scales_that_the_whole_plan_uses() -> None:
    """A shuffle left in float on the way between two layers must not make its result a tensor of its own."""
    model = exported("dg4s-star")
    whole = plan_for(model, "tidl")
    shuffles = tuple(node.name for node in model.graph.node if node.op_type in ("Reshape", "Transpose"))
    part: Plan = plan_for(model, "tidl", shuffles)
    assert set(part.observed()) <= set(whole.observed())
