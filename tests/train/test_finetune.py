"""Fake quantisation against ONNX's, the way to the trainable graph and back, pruning, and whole small runs."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from export_toys import HW, checkpoint, copied, exported, frames, logits_of, one_torch_thread
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from places import ROOT
from ranges_toys import round_trip

from gradseg.base.errors import GradsegError
from gradseg.calibration.cost.accuracy import Frames
from gradseg.calibration.qdq.int8 import Calibrated, calibrated
from gradseg.calibration.qdq.plan import plan_for
from gradseg.calibration.qdq.qat_onnx import int8_from_qat
from gradseg.calibration.qdq.quantise import WeightSettings, count_quantised, quantised
from gradseg.calibration.qdq.targets import Quantisation
from gradseg.data.specs import open_data
from gradseg.graphs.from_torch import onnx_from_checkpoint
from gradseg.graphs.graph import Graph
from gradseg.graphs.passes.dense_groups import dense_groups
from gradseg.graphs.passes.rows_head import rows_head
from gradseg.graphs.sessions import OnnxRunner
from gradseg.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from gradseg.models.networks.erfnet import SegNetwork
from gradseg.models.spec import spec_for
from gradseg.train.finetune import main
from gradseg.train.qat.fake_quant import ActivationQuantiser, Step, WeightQuantiser, fake_quantise, round_through
from gradseg.train.qat.finetune_settings import FinetuneSettings
from gradseg.train.qat.finetuner import export_runner
from gradseg.train.qat.onnx_module import OnnxModule
from gradseg.train.qat.sparsity import Sparsity, has_pattern, left_dense, measured_sparsity, prunable
from gradseg.train.qat.unfold import HEAD, module_of, network_from_folded

__all__ = ["one_torch_thread"]  # a fixture of this module
SCENES = f"scenes:frames=4,size={HW[0]}x{HW[1]}"
ARCHITECTURES = ("dg2-star-light", "dg4s-star", "erfnet", "dg2s")
SHORT = ["--epochs", "1", "--batch", "2", "--calib-frames", "2", "--threads", "1", "--val-limit", "2"]
SHORT += ["--crop", f"{HW[0]}x{HW[1]}"]

floats = st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=40)
scales = st.one_of(st.floats(2.0**-13, 2.0, width=32), st.integers(-10, 2).map(lambda k: 2.0**k))


@torch.inference_mode()
def labels_of(module: OnnxModule, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """uint8 BGR (N, h, w, 3) → labels uint8 (N, h, w), the first class on ties."""
    logits = module(torch.from_numpy(batch))
    labels: np.ndarray[Any, Any] = np.asarray(logits.argmax(1).to(torch.uint8).numpy())
    return labels


@settings(max_examples=150, deadline=None)
@given(floats, scales, st.integers(0, 255), st.booleans())
def test_fake_quantisation_is_what_the_writer_of_the_graph_means(
    values: list[float], scale: float, zero: int, signed: bool
) -> None:
    how = Quantisation(float(np.float32(scale)), 0 if signed else zero, signed)
    x = np.array(values, np.float32)
    found = fake_quantise(torch.from_numpy(x), torch.tensor(how.scale), how.zero_point, *how.limits).numpy()
    assert np.array_equal(found, round_trip(how, x))


@pytest.mark.parametrize(("scale", "zero", "signed"), [(0.25, 0, True), (0.037, 0, True), (0.25, 7, False)])
def test_fake_quantisation_is_onnx_runtimes(scale: float, zero: int, signed: bool) -> None:
    rng = np.random.default_rng(0)
    ties = (np.arange(-300, 300) + 0.5) * np.float32(scale)
    x = np.concatenate([ties, rng.normal(0, 40 * scale, 3000)]).astype(np.float32)
    kind = np.int8 if signed else np.uint8
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [len(x)])  # noqa: E731
    weights = [
        onnx.numpy_helper.from_array(np.array(scale, np.float32), "s"),
        onnx.numpy_helper.from_array(np.array(zero, kind), "z"),
    ]
    graph = helper.make_graph(nodes, "g", [value("x")], [value("y")], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    expected = OnnxRunner(model.SerializeToString()).first(x)
    how = Quantisation(float(np.float32(scale)), zero, signed)
    found = fake_quantise(torch.from_numpy(x), torch.tensor(how.scale), zero, *how.limits)
    assert np.array_equal(found.numpy(), expected)


def test_gradient_passes_straight_through_and_not_where_clipped() -> None:
    x = torch.tensor([-20.0, -12.8, -3.3, 0.0, 12.7, 12.8, 90.0], requires_grad=True)
    fake_quantise(x, torch.tensor(0.1)).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0, 0]
    y = torch.tensor([0.4, 1.6], requires_grad=True)
    (round_through(y) * 3).sum().backward()
    assert y.grad is not None and y.grad.tolist() == [3, 3]


def test_gradient_of_the_step_by_hand() -> None:
    scale = torch.tensor(0.5, requires_grad=True)
    x = torch.tensor([0.6, 100.0, -100.0])
    (fake_quantise(x, scale) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    expected = 1 * (1 - 0.6 / 0.5) + 2 * 127 + 3 * -128  # rounding error inside, the bound where clipped
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx(expected / math.sqrt(3 * 127), rel=1e-5)


@pytest.mark.parametrize(("start", "grows"), [(0.004, True), (0.5, False)])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_a_step_that_clips_grows_and_one_that_is_coarse_shrinks(start: float, grows: bool, power_of_two: bool) -> None:
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    quantiser = ActivationQuantiser(Quantisation(start, 0, True), power_of_two, learned=True)
    ((quantiser(x) - x) ** 2).sum().backward()
    assert quantiser.step.log2 is not None and quantiser.step.log2.grad is not None
    assert (float(quantiser.step.log2.grad) < 0) is grows


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=5), st.lists(st.floats(-3, 3), min_size=1, max_size=6))
def test_learned_powers_of_two_stay_powers_of_two(start: list[float], moves: list[float]) -> None:
    step = Step(np.array(start), power_of_two=True, learned=True)
    assert step.log2 is not None
    for move in moves:
        with torch.no_grad():
            step.log2 += move
        mantissas = np.frexp(step().detach().numpy())[0]
        assert (mantissas == 0.5).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=5), st.floats(-40, 40))
def test_learned_steps_start_where_they_were_and_stay_positive(start: list[float], move: float) -> None:
    step = Step(np.array(start), power_of_two=False, learned=True)
    assert step().detach().numpy() == pytest.approx(np.maximum(start, 1e-12), rel=1e-5)
    assert step.log2 is not None
    with torch.no_grad():
        step.log2 += move
    assert (step() > 0).all()


def test_weights_and_bias_lie_on_the_accumulators_grid() -> None:
    quantiser = WeightQuantiser(np.array([0.25], np.float32), None, 127, True, False)
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1)) * 20
    on_grid = quantiser(weight) / 0.25
    assert torch.equal(on_grid, on_grid.round()) and on_grid.abs().max() == 127
    bias = quantiser.bias(torch.tensor([0.3, -0.1]), torch.tensor(0.5)) / 0.125
    assert bias.tolist() == [2, -1]
    per_channel = WeightQuantiser(np.array([0.5, 0.25], np.float32), 1, 63, False, False)
    deconvolution = per_channel(torch.full((3, 2, 1, 1), 99.0))
    assert deconvolution[:, 0].unique().tolist() == [31.5] and deconvolution[:, 1].unique().tolist() == [15.75]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_module_computes_what_the_exported_graph_does(arch: str) -> None:
    module = OnnxModule(exported(arch))
    batch = np.concatenate(frames())
    with torch.no_grad():
        logits = module(torch.from_numpy(batch)).numpy()
        as_floats = module(torch.from_numpy(batch).float()).numpy()
    assert np.array_equal(logits, as_floats)
    expected = np.concatenate([logits_of(checkpoint(arch), frame) for frame in frames()])
    assert logits.shape == expected.shape
    assert np.abs(logits - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "d-star-light"])
def test_folded_weights_become_a_network_that_exports_to_them_again(arch: str) -> None:
    spec = checkpoint(arch).spec
    folded = OnnxModule(exported(arch)).folded()
    network = network_from_folded(spec, folded)
    again = OnnxModule(onnx_from_checkpoint(Checkpoint(spec, network))).folded()
    assert list(folded) == list(again)
    for name, conv in folded.items():
        assert np.array_equal(conv.weight, again[name].weight), name
        assert conv.bias is not None and np.array_equal(conv.bias, again[name].bias), name


def test_the_way_back_knows_mean_std_and_colour_order() -> None:
    ckpt = checkpoint("erfnet", mean=(0.4, 0.5, 0.3), std=(0.2, 0.25, 0.3), color_order="bgr")
    module = OnnxModule(onnx_from_checkpoint(ckpt))
    back = Checkpoint(ckpt.spec, network_from_folded(ckpt.spec, module.folded()))
    for frame in frames()[:2]:
        expected = logits_of(ckpt, frame)
        assert np.abs(logits_of(back, frame) - expected).max() < 1e-3 * np.abs(expected).max()
    again = OnnxModule(onnx_from_checkpoint(back)).folded()
    for name, conv in module.folded().items():
        np.testing.assert_array_max_ulp(conv.weight, again[name].weight, 1)


def test_nodes_that_are_not_the_networks_are_refused() -> None:
    folded = OnnxModule(exported("dg2-star-light")).folded()
    with pytest.raises(GradsegError, match=r"encoder.layers.0.conv: .64, 16, 3, 3. in the model where .48, 16, 3, 3."):
        network_from_folded(spec_for("erfnet", input_hw=HW), {k: v for k, v in folded.items() if "initial" not in k})
    with pytest.raises(GradsegError, match=r"/encoder/layers.99/pw1/Conv: no convolution of dg2-star-light"):
        network_from_folded(checkpoint().spec, {**folded, "/encoder/layers.99/pw1/Conv": folded[HEAD]})
    folded.pop("/encoder/layers.1/pw1/Conv")
    with pytest.raises(GradsegError, match=r"1 convolutions of dg2-star-light .* first encoder.layers.1.pw1"):
        network_from_folded(checkpoint().spec, folded)
    assert module_of("/encoder/layers.1/pw1/Conv") == "encoder.layers.1.pw1"
    assert module_of("/encoder/layers.0/pool/MaxPool_output_0_Conv/Conv") is None


def test_operators_that_are_not_ours_are_named() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(exported())
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type = "Softplus"
    with pytest.raises(GradsegError, match=f"{relu.name}: fine-tuning does not know operator Softplus"):
        OnnxModule(model)


@pytest.fixture(scope="module")
def found() -> dict[str, Calibrated]:
    return {arch: calibrated(exported(arch), SCENES, 2) for arch in ("dg2-star-light", "dg4s-star", "erfnet")}


def agreement(module: OnnxModule, model: onnx.ModelProto) -> float:
    """Share of equal labels, with all of ONNX Runtime's optimisations."""
    runner = OnnxRunner(model.SerializeToString())
    return float(np.mean([labels_of(module, frame) == runner.first(frame) for frame in frames()]))


@pytest.mark.parametrize("arch", ["dg2-star-light", "dg4s-star", "erfnet"])
def test_training_sees_the_labels_of_the_int8_graph_exactly(arch: str, found: dict[str, Calibrated]) -> None:
    model, activations = found[arch].model, found[arch].activations("tidl", "mse")
    module = OnnxModule(model)
    module.quantise(model, "tidl", activations, power_of_two=False, learned=False)
    folded = network_from_folded(checkpoint(arch).spec, module.folded())
    ready = onnx_from_checkpoint(Checkpoint(checkpoint(arch).spec, folded))
    packed = quantised(
        ready, plan_for(ready, "tidl"), activations, "tidl", WeightSettings(scales=module.weight_scales())
    )
    assert agreement(module, packed) == 1.0
    other = {name: dataclasses.replace(q, scale=2 * q.scale) for name, q in activations.items()}
    assert agreement(module, quantised(model, plan_for(model, "tidl"), other, "tidl")) < 1.0


@pytest.mark.parametrize("target", ["trt", "cpu"])
def test_with_float_scales_only_the_order_of_sums_differs(target: str) -> None:
    """One value that is rounded the other way spreads through the whole of these small frames, hence the tolerance."""
    ckpt = load_checkpoint(ROOT / "assets" / "dg2-star-light.pth")
    ckpt.spec = ckpt.spec.with_size(HW)
    found = calibrated(onnx_from_checkpoint(ckpt), SCENES, 4)
    activations = found.activations(target, "mse")
    module = OnnxModule(found.model)
    module.quantise(found.model, target, activations, power_of_two=False, learned=False)
    ready = onnx_from_checkpoint(Checkpoint(ckpt.spec, network_from_folded(ckpt.spec, module.folded())))
    weights = WeightSettings(scales=module.weight_scales())
    assert agreement(module, quantised(ready, plan_for(ready, target), activations, target, weights)) > 0.98


def run_of(tmp_path: Path, *more: str) -> tuple[Path, Path]:
    """(checkpoint given, folder) of a finished short run."""
    given_path = tmp_path / "float.pth"
    if not given_path.exists():
        save_checkpoint(given_path, checkpoint().network)
    out = tmp_path / "run"
    assert main([str(given_path), "--data", SCENES, "--val", SCENES, "--out", str(out), *SHORT, *more]) == 0
    return given_path, out


def test_a_run_for_tidl_exports_exactly_what_it_saw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given_path, out = run_of(tmp_path, "--target", "tidl", "--lr", "0.01", "--crop", "32x48")
    printed = capsys.readouterr().out
    assert "labels equal to those that training saw on 100.0000 %" in printed
    last = load_checkpoint(out / "last.pth")
    stored = last.info["quantisation"]
    assert stored["target"] == "tidl" and stored["power_of_two"] is True
    assert stored["base"]["file"] == given_path.name and len(stored["base"]["sha256"]) == 64
    every = [entry[0] for entry in stored["activations"].values()] + [v for w in stored["weights"].values() for v in w]
    assert all(math.frexp(scale)[0] == 0.5 for scale in every)
    assert all(len(w) == 1 for w in stored["weights"].values())
    moved = checkpoint().network.state_dict()["decoder.output_conv.weight"]
    assert not torch.equal(moved, last.network.state_dict()["decoder.output_conv.weight"])
    with open(out / "log.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["epoch"] for row in rows] == ["0", "1"] and all(0 < float(row["miou"]) < 1 for row in rows)
    assert json.loads((out / "settings.json").read_text("utf-8"))["scales"] == "learned"
    # after training, from the file alone
    model = int8_from_qat(onnx_from_checkpoint(last), stored)
    values = {entry.key: entry.value for entry in model.metadata_props}
    assert values["gradseg.precision"] == "int8" and values["gradseg.target"] == "tidl"
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    packed = [value for value in weights.values() if value.dtype == np.int8 and value.ndim == 4]
    assert len(packed) == len(stored["weights"])
    with pytest.raises(GradsegError, match=r"fine-tuned for INT8 already \(target tidl\); start from .*float.pth"):
        main([str(out / "best.pth"), "--data", SCENES, "--target", "tidl", "--out", str(tmp_path / "second")])
    with pytest.raises(GradsegError, match="already holds a run; choose another --out"):
        run_of(tmp_path, "--target", "tidl")


def test_quantisation_of_another_model_is_refused(tmp_path: Path, found: dict[str, Calibrated]) -> None:
    model = exported("dg2-star-light")
    module = OnnxModule(model)
    module.quantise(model, "tidl", found["dg2-star-light"].activations("tidl", "mse"), False, False)
    stored: dict[str, Any] = {
        "target": "tidl",
        "activations": {k: [q.scale, q.zero_point, q.signed] for k, q in module.activation_quantisations().items()},
        "weights": {k: v.tolist() for k, v in module.weight_scales().items()},
    }
    int8_from_qat(model, stored)
    with pytest.raises(GradsegError, match="made with another version of the exporter"):
        int8_from_qat(exported("dg4s-star"), stored)
    name = next(iter(stored["activations"]))
    renamed = {("other" if k == name else k): v for k, v in stored["activations"].items()}
    with pytest.raises(GradsegError, match=r"no scale for tensor .*\(1 missing, 1 unknown\)"):
        int8_from_qat(model, {**stored, "activations": renamed})
    with pytest.raises(GradsegError, match=r"layer extra is not in the model \(0 missing, 1 unknown\)"):
        int8_from_qat(model, {**stored, "weights": {**stored["weights"], "extra": [1.0]}})
    with pytest.raises(GradsegError, match="a scale is not a positive number"):
        int8_from_qat(model, {**stored, "activations": {**stored["activations"], name: [0.0, 0, True]}})
    for damaged in ({"target": "tidl"}, {**stored, "activations": {name: [1.0]}}, {**stored, "weights": 3}):
        with pytest.raises(GradsegError, match="damaged"):
            int8_from_qat(model, damaged)
    with pytest.raises(GradsegError, match="no range for tensor"):
        OnnxModule(model).quantise(model, "tidl", {}, False, False)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.01, 0.99), st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_pruning_takes_the_smallest_and_the_share_that_is_due(
    rows: int, columns: int, share: float, points: list[float]
) -> None:
    wanted = Sparsity("", share, False)
    weight = torch.randn(rows, columns, 1, 1, generator=torch.Generator().manual_seed(rows))
    mask = wanted.mask(weight)
    zeros = int((mask == 0).sum())
    assert zeros == round(share * weight.numel())
    if 0 < zeros < weight.numel():
        assert weight[mask == 0].abs().max() <= weight[mask == 1].abs().min()
    shares = [wanted.at(p) for p in sorted(points)]
    assert shares == sorted(shares) and wanted.at(1.0) == share and wanted.at(0.0) == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from([(1, 1), (3, 1), (3, 3)]), st.booleans())
def test_two_of_four_keeps_the_two_larger_of_every_four(
    outputs: int, fours: int, kernel: tuple[int, int], equal: bool
) -> None:
    weight = torch.randn(outputs, 4 * fours, *kernel, generator=torch.Generator().manual_seed(outputs))
    if equal:
        weight = torch.ones_like(weight)
    mask = Sparsity.parse("2:4").mask(weight)
    assert has_pattern(weight * mask)
    assert int(mask.sum()) == weight.numel() // 2  # exactly two, ties included
    for group in range(fours):
        part = slice(4 * group, 4 * group + 4)
        kept = (weight * mask)[:, part].abs().sum(1)
        assert torch.allclose(kept, weight[:, part].abs().topk(2, dim=1).values.sum(1))


@pytest.mark.parametrize("text", ["0", "1", "-0.5", "0.999", "1:4", "half", "nan", ""])
def test_odd_sparsities_are_refused(text: str) -> None:
    with pytest.raises(GradsegError, match=r"write a share of zeros .* such as 0.6, or 2:4"):
        Sparsity.parse(text)


def test_what_is_pruned() -> None:
    light, full = SegNetwork(spec_for("dg2-star-light")), SegNetwork(spec_for("erfnet"))
    names = set(prunable(light))
    assert "encoder.layers.1.pw1" in names and "encoder.layers.0.conv" in names
    assert not names & {"encoder.initial_block.conv", "decoder.output_conv", "encoder.layers.1.dw1"}
    pattern = Sparsity.parse("2:4")
    assert left_dense(light, pattern) == []
    assert left_dense(full, pattern) == ["decoder.layers.0.conv", "decoder.layers.3.conv"]  # deconvolutions
    assert left_dense(full, Sparsity.parse("0.5")) == []
    with torch.no_grad():
        light.encoder.layers[1].pw1.weight.zero_()
    measured = measured_sparsity(light)
    total = sum(module.weight.numel() for module in prunable(light).values())
    assert measured["achieved"] == pytest.approx(2048 / total)
    assert measured["layers"]["encoder.layers.1.pw1"] == 1 and not measured["two_of_four"]
    assert measured["overall"] < measured["achieved"]


def test_a_pruned_float_run_and_int8_on_top_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--size", "32x48", "--crop", "32x48")
    _, out = run_of(tmp_path, "--sparsity", "0.6", "--epochs", "2", "--distill", "0", *small)
    assert "labels equal to those that training saw on 100.0000 %" in capsys.readouterr().out
    pruned = load_checkpoint(out / "best.pth")
    assert "quantisation" not in pruned.info and pruned.spec.input_hw == (32, 48)
    assert pruned.info["sparsity"]["asked"] == "0.6"
    assert pruned.info["sparsity"]["achieved"] == pytest.approx(0.6, abs=1e-3)
    assert pruned.info["sparsity"] == measured_sparsity(pruned.network, Sparsity.parse("0.6"))
    second = tmp_path / "second"
    base = ["--data", SCENES, "--val", SCENES, "--out", str(second), *SHORT, *small]
    assert main([str(out / "best.pth"), *base, "--target", "trt", "--scales", "fixed"]) == 0
    after = load_checkpoint(second / "last.pth")
    assert after.info["sparsity"]["asked"] == "0.6" and after.info["quantisation"]["target"] == "trt"
    kept = prunable(after.network)
    for name, module in prunable(pruned.network).items():
        assert bool((kept[name].weight[module.weight == 0] == 0).all()), name


def test_two_of_four_and_both_forms_for_the_cpu(tmp_path: Path) -> None:
    _, out = run_of(tmp_path, "--sparsity", "2:4", "--target", "cpu", "--distill", "0", "--pow2", "--reduce-range")
    best = load_checkpoint(out / "best.pth")
    zeros, stored = best.info["sparsity"], best.info["quantisation"]
    assert zeros["two_of_four"] is True and zeros["asked"] == "2:4" and zeros["achieved"] >= 0.5
    assert len(next(iter(stored["weights"].values()))) > 1  # one per channel
    scales = [scale for name, (scale, _, _) in stored["activations"].items()]
    assert all(math.frexp(scale)[0] == 0.5 for scale in scales)
    model = onnx_from_checkpoint(best)
    graph = Graph(model)
    dense_groups(graph)
    rows_head(graph)
    for form in (model, graph.to_model()):  # the other one is for ONNX Runtime's kernels
        packed = int8_from_qat(form, stored)
        assert count_quantised(packed)[0] == len(stored["weights"])
        values = [onnx.numpy_helper.to_array(tensor) for tensor in packed.graph.initializer]
        assert max(int(abs(v.astype(int)).max()) for v in values if v.dtype == np.int8 and v.ndim == 4) <= 63


def test_agreement_tells_another_network() -> None:
    data = Frames(open_data(SCENES), checkpoint().spec)
    module = OnnxModule(exported())
    labels = data.labels(lambda batch: labels_of(module, batch))
    assert data.score(export_runner(checkpoint()).first, labels).agreement == 1.0
    other = copied(checkpoint())
    with torch.no_grad():
        assert other.network.decoder.output_conv.bias is not None
        other.network.decoder.output_conv.bias[0] += 2
    changed = data.score(export_runner(other).first, labels).agreement
    assert changed is not None and changed < 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to fine-tune for: give --target"),
        (["--sparsity", "3"], "write a share of zeros"),
        (["--target", "tidl", "--lr", "nan"], "--lr nan: must be a finite number above 0"),
        (["--target", "tidl", "--epochs", "0"], "--epochs 0: must be at least 1"),
        (["--target", "tidl", "--distill", "-1"], "--distill -1"),
        (["--target", "tidl", "--calib-frames", "0"], "--calib-frames 0"),
        (["--target", "tidl", "--crop", "30x48"], "--crop: input size 30x48"),
        (["--target", "tidl", "--limit", "0"], "--limit 0"),
        (["--target", "tidl", "--threads", "-1"], "--threads -1"),
        (["--target", "tidl", "--val", "camvid:/nowhere"], "no such folder '/nowhere'"),
    ],
)
def test_bad_settings_are_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "float.pth", checkpoint().network)
    with pytest.raises(GradsegError, match=message):
        main([str(tmp_path / "float.pth"), "--data", SCENES, "--out", str(tmp_path / "run"), *arguments])
    assert not (tmp_path / "run" / "last.pth").exists()


def test_classes_and_paths_must_fit(tmp_path: Path) -> None:
    two = spec_for("dg2-star-light", ("a", "b"), ((0, 0, 0), (9, 9, 9)), HW)
    save_checkpoint(tmp_path / "two.pth", SegNetwork(two))
    arguments = ["--data", SCENES, "--target", "tidl"]
    with pytest.raises(GradsegError, match="its classes differ from those of"):
        main([str(tmp_path / "two.pth"), *arguments, "--out", str(tmp_path / "run")])
    save_checkpoint(tmp_path / "best.pth", checkpoint().network)
    with pytest.raises(GradsegError, match="is an input itself"):
        main([str(tmp_path / "best.pth"), *arguments, "--out", str(tmp_path)])
    with pytest.raises(GradsegError, match="--scales 'free'"):
        FinetuneSettings("a", "b", target="cpu", scales="free")
