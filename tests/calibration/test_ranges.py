"""ranges.json: scales by target, editing, belonging to a model."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from export_toys import checkpoint, exported, one_torch_thread  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from ranges_toys import edit, ranges, round_trip, some_statistics, statistics

from gradseg.base.errors import GradsegError
from gradseg.base.options import METHODS
from gradseg.calibration.qdq.int8 import Calibrated, Int8Parts, Settings
from gradseg.calibration.qdq.plan import plan_for
from gradseg.calibration.qdq.targets import TARGETS, Quantisation, activation_quantisation
from gradseg.calibration.ranges.collect import Statistics
from gradseg.calibration.ranges.observers import Observer, Range
from gradseg.calibration.ranges.ranges_file import RangesFile, model_fingerprint, quantisation_of
from gradseg.calibration.ranges.ranges_json import short
from gradseg.models import metadata

LIMITS = st.tuples(st.floats(-1e4, 0), st.floats(0, 1e4))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    ranges().write(tmp_path / "ranges.json")
    return tmp_path / "ranges.json"


# ---- scales


@settings(max_examples=200, deadline=None)
@given(limits=LIMITS, target=st.sampled_from(list(TARGETS.values())), wanted=st.booleans())
def test_power_of_two_scales_are_that_and_within_a_factor_two(limits: Any, target: Any, wanted: bool) -> None:
    float_target = TARGETS["trt" if target.signed else "cpu"]
    exact = activation_quantisation(Range(*limits), float_target).scale
    for error in (None, lambda scale: scale, lambda scale: -scale):
        found = activation_quantisation(Range(*limits), target, wanted, error)
        if wanted or target.power_of_two:
            assert math.frexp(found.scale)[0] == 0.5
            assert exact / 2 * (1 - 1e-6) <= found.scale <= exact * 2 * (1 + 1e-6)
        else:
            assert found.scale == exact


@pytest.mark.parametrize("method", METHODS)
def test_power_of_two_scales_of_real_tensors(method: str) -> None:
    plain, powers = ranges(method), ranges(method, power_of_two=True)
    for target in TARGETS:
        reference = plain.quantisations("trt" if target == "tidl" else target)
        for name, found in powers.quantisations(target).items():
            assert math.frexp(found.scale)[0] == 0.5, name
            assert 0.5 * (1 - 1e-6) <= found.scale / reference[name].scale <= 2 * (1 + 1e-6), name


def test_mse_takes_the_better_of_the_two_neighbours() -> None:
    values = np.random.default_rng(0).laplace(size=20_000).astype(np.float32)
    lower = 0
    for factor in np.geomspace(1, 2, 9):
        observer = Observer()
        observer.update(values * np.float32(factor))
        found = quantisation_of(Statistics({"x": observer}), "x", TARGETS["tidl"], "mse").scale
        exact = observer.range("mse", True).high / 127
        upper = 2.0 ** math.ceil(math.log2(exact))
        costs = {scale: observer.square_error(scale, 0, -128, 127) for scale in (upper, upper / 2)}
        assert found == min(costs, key=lambda scale: costs[scale])
        lower += found == upper / 2
    assert 0 < lower < 9, "both neighbours must have been better somewhere"


@settings(max_examples=150, deadline=None)
@given(limits=LIMITS, target=st.sampled_from(list(TARGETS.values())), share=st.floats(0, 1))
def test_round_trip_error_is_at_most_half_a_step(limits: Any, target: Any, share: float) -> None:
    found = activation_quantisation(Range(*limits), target)
    lowest, highest = (found.scale * (integer - found.zero_point) for integer in found.limits)
    for value in (limits[0] + share * (limits[1] - limits[0]), *limits, 0.0):
        inside = np.float32(np.clip(value, lowest, highest))
        error = abs(float(round_trip(found, inside)) - float(inside))
        assert error <= found.scale * 0.5 * (1 + 1e-5) + abs(float(inside)) * 1e-6
    assert float(round_trip(found, np.float32(0.0))) == 0.0
    # what lies in the limits lies in the integers' reach, but for the zero point's rounding
    assert lowest <= limits[0] + found.scale * 0.51 and highest >= limits[1] - found.scale * 0.51


@pytest.mark.parametrize("signed", [False, True])
def test_round_trip_is_that_of_the_q_dq_nodes(signed: bool) -> None:
    found = Quantisation(short(0.0371), 0 if signed else 77, signed)
    given_, zero = [("x", TensorProto.FLOAT), ("y", TensorProto.FLOAT)], np.array(found.zero_point, found.zero_type)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    value_in, value_out = (helper.make_tensor_value_info(name, kind, [4000]) for name, kind in given_)
    constants = [numpy_helper.from_array(np.array(found.scale, np.float32), "s"), numpy_helper.from_array(zero, "z")]
    graph = helper.make_graph(nodes, "pair", [value_in], [value_out], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.linspace(-9, 9, 4000, dtype=np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], round_trip(found, x))


# ---- the file


@pytest.mark.parametrize("method", METHODS)
def test_reading_gives_back_what_was_written(method: str, tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    before = ranges(method, power_of_two=method == "minmax", equalised=method == "mse", warnings=("a — b",))
    before.write(path)
    after = RangesFile.read(path)
    assert after.entries == before.entries and after.warnings == ["a — b"]
    assert (after.method, after.power_of_two, after.equalised) == (method, method == "minmax", method == "mse")
    assert (after.model, after.data, after.percentile) == (before.model, before.data, before.percentile)
    assert (after.percentile is None) == (method != "percentile")
    for name, values in before.channel_means.items():
        np.testing.assert_array_equal(after.channel_means[name], values)
    after.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == path.read_text()


def test_the_file_is_for_people(written: Path) -> None:
    lines = written.read_text().splitlines()
    found = ranges()
    rows = [line for line in lines if line.startswith('    {"tensor": ')]
    assert len(rows) == len(found.entries) and max(map(len, rows)) < 500
    row = json.loads(rows[1].rstrip(","))
    assert {"tensor", "min", "max", "seen_min", "seen_max", "method", "clipped", "calibrated", "targets"} == set(row)
    assert set(row["targets"]) == {"cpu", "trt", "tidl"}
    assert row["seen_min"] <= row["min"] <= row["max"] <= row["seen_max"]
    raw = json.loads(written.read_text())
    assert raw["data"]["frames"] == 2 and raw["format"] == "gradseg-ranges" and "--ranges" in raw["how_to_edit"]
    assert all(len(repr(number)) <= 16 for number in (row["min"], row["max"], row["targets"]["trt"]["scale"]))


@pytest.mark.parametrize("method", METHODS)
def test_the_scales_are_those_of_calibrating_directly(method: str) -> None:
    found = statistics() if method == "mse" else some_statistics()
    direct = Calibrated(exported(), found, False, "scenes:")
    for target in TARGETS:
        assert ranges(method).quantisations(target) == direct.activations(target, method)


def test_everything_that_any_target_observes_is_there() -> None:
    for target in TARGETS:
        needed = plan_for(exported(), target).observed()
        assert set(needed) <= set(ranges().quantisations(target, needed))


# ---- editing

ENTRIES = st.integers(0, 40)


def changed(before: RangesFile, after: RangesFile) -> Dict[str, List[str]]:
    """Target → tensors with another quantisation."""
    return {
        target: [n for n, q in after.quantisations(target).items() if q != before.quantisations(target)[n]]
        for target in TARGETS
    }


@settings(max_examples=25, deadline=None)
@given(number=ENTRIES, side=st.sampled_from(["min", "max"]), factor=st.sampled_from([0.25, 0.5, 3.0]))
def test_editing_a_limit_changes_exactly_that_tensor(
    tmp_path_factory: pytest.TempPathFactory, number: int, side: str, factor: float
) -> None:
    path = tmp_path_factory.mktemp("edit") / "ranges.json"
    ranges().write(path)
    before = RangesFile.read(path)
    name = list(before.entries)[number % len(before.entries)]

    def change(raw: Dict[str, Any]) -> None:
        entry = next(each for each in raw["tensors"] if each["tensor"] == name)
        entry.update({"max": entry["max"] * factor} if side == "max" else {"min": entry["min"] * factor - 1.0})

    edit(path, change)
    after = RangesFile.read(path)
    assert [entry.tensor for entry in after.entries.values() if entry.edited] == [name]
    limits = after.entries[name].limits
    for target, names in changed(before, after).items():
        assert names in ([name], [])
        assert after.quantisations(target)[name] == activation_quantisation(limits, TARGETS[target])
    assert changed(before, after)["cpu"] == [name]


@pytest.mark.parametrize(
    "target, field, value", [("cpu", "scale", 0.5), ("cpu", "zero_point", 200), ("trt", "scale", 2)]
)
def test_editing_a_scale_changes_exactly_that_tensor_and_target(
    written: Path, target: str, field: str, value: Any
) -> None:
    before = RangesFile.read(written)
    name = list(before.entries)[5]
    edit(written, lambda raw: raw["tensors"][5]["targets"][target].update({field: value}))
    after = RangesFile.read(written)
    assert changed(before, after) == {**{key: [] for key in TARGETS}, target: [name]}
    assert getattr(after.quantisations(target)[name], field) == value
    after.write(written)
    assert RangesFile.read(written).quantisations(target) == after.quantisations(target)


@pytest.mark.parametrize("target", ["cpu", "trt"])
@pytest.mark.parametrize("what", ["max", "scale"])
def test_editing_one_tensor_changes_exactly_its_scale_in_the_q_dq_model(written: Path, target: str, what: str) -> None:
    needed = plan_for(exported(), target).observed()
    name = needed[7]

    def weights() -> Dict[str, bytes]:
        found = RangesFile.read(written)
        scales = found.quantisations(target, needed)
        model = Int8Parts(exported(), scales, found.channel_means, Settings(target, equalise=False)).int8()
        return {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in model.graph.initializer}

    before = weights()
    entry = next(i for i, each in enumerate(json.loads(written.read_text())["tensors"]) if each["tensor"] == name)

    def change(raw: Dict[str, Any]) -> None:
        if what == "max":
            raw["tensors"][entry]["max"] *= 1.5
        else:
            raw["tensors"][entry]["targets"][target]["scale"] *= 1.5

    edit(written, change)
    after = weights()
    assert set(after) == set(before)
    differing = [key for key in before if before[key] != after[key]]
    assert f"{name}_scale" in differing
    assert set(differing) <= {f"{name}_scale", f"{name}_zero_point"}


def test_limits_win_over_scales_that_were_edited_too(written: Path) -> None:
    def change(raw: Dict[str, Any]) -> None:
        raw["tensors"][3]["max"] = 12.75
        raw["tensors"][3]["min"] = 0
        raw["tensors"][3]["targets"]["cpu"]["scale"] = 7.0

    edit(written, change)
    found = RangesFile.read(written)
    name = list(found.entries)[3]
    assert found.quantisations("cpu")[name] == Quantisation(float(np.float32(0.05)), 0, False)


# ---- belonging to a model


def test_a_checkpoint_and_its_onnx_file_have_one_fingerprint(tmp_path: Path) -> None:
    from gradseg.graphs.from_torch import onnx_from_checkpoint

    path = tmp_path / "m.onnx"
    onnx.save(exported(), str(path))
    fingerprint = model_fingerprint(exported())
    assert model_fingerprint(onnx.load(str(path))) == fingerprint
    assert model_fingerprint(onnx_from_checkpoint(checkpoint())) == fingerprint
    named = copy.deepcopy(exported())
    metadata.set_metadata(named, {"anything": "else"})
    named.graph.name = "other"
    assert model_fingerprint(named) == fingerprint


def test_other_weights_nodes_and_attributes_have_another_fingerprint() -> None:
    seen = {model_fingerprint(exported())}
    weights = copy.deepcopy(exported())
    array = numpy_helper.to_array(weights.graph.initializer[3]).copy()
    array.reshape(-1)[0] += 1
    weights.graph.initializer[3].CopyFrom(numpy_helper.from_array(array, weights.graph.initializer[3].name))
    nodes = copy.deepcopy(exported())
    next(node for node in nodes.graph.node if node.op_type == "Relu").op_type = "Sigmoid"
    attributes = copy.deepcopy(exported())
    next(a for n in attributes.graph.node for a in n.attribute if a.name == "dilations").ints[:] = [1, 3]
    for other in (weights, nodes, attributes):
        seen.add(model_fingerprint(other))
    assert len(seen) == 4


def test_ranges_of_another_model_are_refused_by_name_and_hash(written: Path) -> None:
    found = RangesFile.read(written)
    found.check_belongs(exported(), "toy.onnx")
    other = exported("erfnet")
    own, foreign = model_fingerprint(exported())[:12], model_fingerprint(other)[:12]
    with pytest.raises(GradsegError) as caught:
        found.check_belongs(other, "erfnet.onnx")
    message = str(caught.value)
    assert f"ranges of toy.onnx ({own}), not of erfnet.onnx ({foreign})" in message
    assert f"{written}: " in message and "calibrate.py erfnet.onnx --data" in message


def test_a_missing_tensor_is_refused_by_name(written: Path) -> None:
    needed = plan_for(exported(), "cpu").observed()
    edit(written, lambda raw: raw["tensors"].remove(next(t for t in raw["tensors"] if t["tensor"] == needed[4])))
    found = RangesFile.read(written)
    with pytest.raises(GradsegError, match=f"no range for {needed[4]}, which cpu needs; calibrate again: python "):
        found.quantisations("cpu", needed)


@settings(max_examples=200, deadline=None)
@given(value=st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_short_numbers_are_exact(value: float) -> None:
    assert np.float32(short(value)) == np.float32(value)
