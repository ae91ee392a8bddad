"""What is said of ONNX files of other people, and those that cannot be taken."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Callable, List

import numpy as np
import onnx
import pytest
from foreign_checks import FOLDER, SAID, argmax, check, check_as_tiny, converted, folder, operators  # noqa: F401
from foreign_toys import DESCRIBED, HW, MEAN, STD, original_values, tiny
from hypothesis import given as examples
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from gradseg.base.errors import GradsegError
from gradseg.base.options import add_foreign_arguments, add_model_arguments
from gradseg.graphs.foreign import convert as foreign
from gradseg.graphs.foreign.spec import Given, given_by, given_in, spec_from
from gradseg.graphs.load import load_any, model_from_onnx
from gradseg.models import metadata
from gradseg.models.spec import spec_for
from gradseg.runtime.preprocess import normalised_chw

# ---- what is said of it


def arguments(*texts: Any, model: str = "net.onnx") -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    return parser.parse_args([model, *map(str, texts)])


@examples(st.tuples(*[st.floats(0, 1)] * 3), st.tuples(*[st.floats(0.01, 2)] * 3), st.sampled_from([1.0, 127.5, 255.0]))
def test_every_input_scale_gives_the_same_pixels(mean: Any, std: Any, scale: float) -> None:
    """x = (pixel / scale - mean) / std, whatever the units."""
    given = Given(tuple(m * 255 / scale for m in mean), tuple(s * 255 / scale for s in std), "rgb", scale, count=2)  # type: ignore[arg-type]
    spec = spec_from(given, 2, (1, 2), "net")[0]
    pixels = np.array([[[[0, 50, 255], [255, 3, 7]]]], np.uint8)
    wanted = (pixels[..., ::-1] / scale - np.array(given.mean)) / np.array(given.std)
    np.testing.assert_allclose(normalised_chw(pixels, spec).transpose(0, 2, 3, 1), wanted, rtol=1e-4, atol=1e-4)


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "net.json"
    path.write_text(json.dumps({"mean": [1, 2, 3], "std": [4, 5, 6], "color_order": "bgr", "classes": ["a", "b"]}))
    assert given_by(arguments("--spec", path)) == given_in(str(path))
    given = given_by(arguments("--spec", path, "--mean", "7,8,9", "--classes", "3", "--size", "32x64"))
    assert given == Given((7, 8, 9), (4, 5, 6), "bgr", count=3, input_hw=(32, 64))


def test_a_whole_spec_is_a_description_too(tmp_path: Path) -> None:
    spec = spec_for("erfnet", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), color_order="bgr")
    (tmp_path / "spec.json").write_text(json.dumps({"spec": spec.to_dict()}))
    found, note = spec_from(given_in(str(tmp_path / "spec.json")), 11, spec.input_hw, "net.onnx")
    assert (found, note) == (spec, "")


def test_what_was_not_said_is_told() -> None:
    spec, note = spec_from(Given(count=3), 3, HW, "net.onnx")
    assert note == (
        "note: not said, so taken: mean 0,0,0; std 1,1,1; input scale 255; colour order rgb; "
        "classes called 'class 0' to 'class 2'"
    )
    assert (spec.mean, spec.std, spec.color_order, spec.classes) == (
        (0, 0, 0),
        (1, 1, 1),
        "rgb",
        ("class 0", "class 1", "class 2"),
    )
    small = Given((0.4, 0.4, 0.4), (0.2, 0.2, 0.2), "rgb", 1.0, ("a", "b"))
    assert "warning: mean 0.4,0.4,0.4 with input scale 1 is next to nothing" in spec_from(small, 2, HW, "net")[1]


def test_classes_from_files(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("road\n\n sky \n")
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["a", "b"], "palette": [[1, 2, 3], [4, 5, 6]]}))
    assert given_by(arguments("--classes", tmp_path / "names.txt")).classes == ("road", "sky")
    given = given_by(arguments("--classes", tmp_path / "classes.json"))
    assert (given.classes, given.palette) == (("a", "b"), ((1, 2, 3), (4, 5, 6)))
    assert given_by(arguments("--classes", "road, sky,car")).classes == ("road", "sky", "car")


BAD_OPTIONS: List[Any] = [
    (["--mean", "0.485"], "--mean 0.485: expected three numbers"),
    (["--mean", "0.4,0.4,x"], "--mean 0.4,0.4,x: expected three numbers"),
    (["--std", "1,1,nan"], "--std 1,1,nan: expected three numbers"),
    (["--std", "1,1,0"], "std must be above 0"),
    (["--input-scale", "0"], "--input-scale 0: expected a number above 0"),
    (["--input-scale", "pixels"], "--input-scale pixels: expected a number"),
    (["--threshold", "half"], "--threshold half: expected a number"),
    (["--classes", "no-such-file.json"], "--classes no-such-file.json: no such file; expected a file, a number, or"),
    (["--classes", "1"], "--classes 1: expected 2 to 255 classes"),
    (["--size", "64"], "write HEIGHTxWIDTH"),
    (["--spec", "{d}/none.json"], "no such file; expected a model description as JSON"),
    (["--spec", "{d}/text.json"], "not JSON"),
    (["--spec", "{d}/list.json"], "expected a JSON object, found list"),
    (["--spec", "{d}/unknown.json"], r"unknown fields \['means'\]; known are \['arch', 'classes'"),
    (["--spec", "{d}/mean.json"], r"mean \[1, 2\]: expected three numbers"),
    (["--spec", "{d}/order.json"], "color_order 'RGB': expected rgb or bgr"),
    (["--spec", "{d}/classes.json"], r"classes \['a', 1\]: expected a list of names, or their number"),
    (["--spec", "{d}/palette.json"], r"expected a list of \[r, g, b\] of 0..255, one for each"),
    (["--spec", "{d}/size.json"], r"expected \[height, width\]"),
]
FILES = {
    "text": "hello",
    "list": "[1]",
    "unknown": '{"means": [0, 0, 0]}',
    "mean": '{"mean": [1, 2]}',
    "order": '{"color_order": "RGB"}',
    "classes": '{"classes": ["a", 1]}',
    "palette": '{"classes": 3, "palette": [[1, 2, 3]]}',
    "size": '{"input_hw": [64]}',
}


@pytest.mark.parametrize("texts, message", BAD_OPTIONS)
def test_a_wrong_description_is_one_line(tmp_path: Path, texts: List[str], message: str) -> None:
    for name, text in FILES.items():
        (tmp_path / f"{name}.json").write_text(text)
    with pytest.raises(GradsegError, match=message) as caught:
        given_by(arguments(*(text.format(d=tmp_path) for text in texts)))
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


# ---- files


def test_a_file_and_its_external_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(tiny().model(["scores"]), str(path), save_as_external_data=True, location="net.bin", size_threshold=0)
    args = arguments(*DESCRIBED, "--data", FOLDER[0], model=str(path))
    loaded = load_any(args)
    said = capsys.readouterr().out
    assert "note: not said, so taken: input scale 255; colour order rgb; classes called" in said
    assert f"{path}: converted; labels equal to the original ONNX's on 100.0000 % of " in said
    assert not any(tensor.data_location == TensorProto.EXTERNAL for tensor in loaded.model.graph.initializer)
    values = metadata.metadata_of_bytes(loaded.model.SerializeToString())
    assert (values[metadata.FORMAT], values[metadata.PRECISION]) == ("deployment", "fp32")
    check(loaded.model, lambda batch: original_values(tiny().model(["scores"]), batch).argmax(1))
    (tmp_path / "net.bin").unlink()
    with pytest.raises(GradsegError, match=r"not a valid ONNX model .*net\.bin"):
        load_any(args)


def with_input(kind: int, *shape: Any) -> Callable[[], onnx.ModelProto]:
    def build() -> onnx.ModelProto:
        model = tiny().model(["scores"])
        model.graph.input[0].type.CopyFrom(helper.make_tensor_type_proto(kind, shape))
        return model

    return build


def other_domain() -> onnx.ModelProto:
    model = tiny().model(["scores"])
    model.graph.node[0].domain, model.graph.node[0].op_type = "com.microsoft", "FusedConv"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def quantised() -> onnx.ModelProto:
    net = tiny()
    inputs = [net.const(0.1), net.const(0, np.int8)]
    return net.model([net.op("DequantizeLinear", net.op("QuantizeLinear", "scores", *inputs), *inputs)])


def half() -> onnx.ModelProto:
    model = tiny().model(["scores"])
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    return with_type(model, TensorProto.FLOAT16)


def with_type(model: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.elem_type = kind
    return model


def not_finite() -> onnx.ModelProto:
    net = tiny()
    return net.model([net.op("Log", net.op("Sub", "scores", net.const(100.0)))])


def features() -> onnx.ModelProto:
    net = tiny()
    return net.model([net.op("GlobalAveragePool", "scores")])


def looped() -> onnx.ModelProto:
    net = tiny()
    body = helper.make_graph(
        [helper.make_node("Neg", ["scores"], ["negative"])],
        "branch",
        [],
        [helper.make_tensor_value_info("negative", TensorProto.FLOAT, None)],
    )
    total = net.op("ReduceSum", "scores", keepdims=0)
    net.op("If", net.op("Greater", total, net.const(0.0)), output="chosen", then_branch=body, else_branch=body)
    model = net.model(["scores"])
    model.graph.output[0].name = "chosen"
    return model


def blind() -> onnx.ModelProto:
    net = tiny()
    return net.model(
        [net.op("Add", net.op("Mul", "scores", net.const(0.0)), net.const(np.arange(5.0).reshape(5, 1, 1)))]
    )


BAD_NETWORKS: List[Any] = [
    (with_input(TensorProto.FLOAT, 4, 3, *HW), "has a fixed batch of 4; export it with a batch of 1, or an open one"),
    (with_input(TensorProto.FLOAT, 1, 4, *HW), "only images of three channels are supported"),
    (with_input(TensorProto.FLOAT, 3, *HW), "expected a float32 image"),
    (with_input(TensorProto.FLOAT16, 1, 3, *HW), "computes in float16"),
    (with_input(TensorProto.DOUBLE, 1, 3, *HW), "expected a float32 image"),
    (half, "computes in float16 .* export it in float32"),
    (quantised, "is quantised already .*; give its float form"),
    (other_domain, r"operators that are not ONNX's own \(com.microsoft FusedConv\)"),
    (not_finite, "gives NaN or infinity on real frames"),
    (features, r"is neither logits \(1, C, h, w\) nor labels for an input of 64x96"),
    (looped, r"holds control flow \(If .*export it by tracing"),
    (blind, "does not look at its input"),
]


@pytest.mark.parametrize("build, message", BAD_NETWORKS)
def test_a_network_that_cannot_be_taken_is_one_line(build: Callable[[], onnx.ModelProto], message: str) -> None:
    with pytest.raises(GradsegError, match=message) as caught:
        converted(build())
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


BAD_CLAIMS: List[Any] = [
    (Given(count=7), r"its output is \[1, 5, 64, 96\], its spec needs logits \[1, 7, 64, 96\].*; correct --classes"),
    (Given(mean=(123.7, 116.8, 103.9), count=5), "mean 123.7,116.8,103.9 lies beyond pixels .* say --input-scale 1"),
    (Given(count=5, input_hw=(32, 32)), r"is fixed at 64x96 \(height x width\), described is 32x32"),
]


@pytest.mark.parametrize("given, message", BAD_CLAIMS)
def test_a_description_of_another_network_is_refused(given: Given, message: str) -> None:
    with pytest.raises(GradsegError, match=message):
        converted(tiny().model(["scores"]), given)


def test_labels_beyond_the_described_classes_are_refused() -> None:
    net = tiny()
    more = net.op("Mul", argmax(net), net.const(3, np.int64))
    model = net.model([more], out_kind=TensorProto.INT64)
    with pytest.raises(GradsegError, match="gives labels 0 to 12, but 5 classes are described"):
        converted(model)
    with pytest.raises(GradsegError, match="gives labels, which do not tell how many classes there are; say --classes"):
        converted(model, Given(mean=MEAN))
    check(converted(model, Given(mean=MEAN, std=STD, count=13)), lambda batch: original_values(model, batch))


def test_a_conversion_that_changes_labels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "fold_input", lambda graph, spec: wrong_fold(graph, spec))
    from gradseg.graphs.passes.fold_input import fold_input

    def wrong_fold(graph: Any, spec: Any) -> None:
        import dataclasses

        fold_input(graph, dataclasses.replace(spec, color_order="bgr"))

    with pytest.raises(GradsegError, match=r"labels agree with the original's on only .*; 99.99 % are needed. Nothing"):
        converted(tiny().model(["scores"]))


def test_nothing_said_of_it_and_too_much_said(tmp_path: Path) -> None:
    onnx.save(tiny().model(["scores"]), str(tmp_path / "net.onnx"))
    with pytest.raises(
        GradsegError, match=r"without GradSeg metadata; say what it is with --spec FILE .* or --mean 0.485"
    ):
        load_any(arguments(model=str(tmp_path / "net.onnx")))
    loaded = model_from_onnx(str(tmp_path / "net.onnx"), given=SAID, data=FOLDER[0])
    onnx.save(loaded.model, str(tmp_path / "own.onnx"))
    with pytest.raises(GradsegError, match="carries its own spec; leave --mean, --std, --classes out"):
        load_any(arguments(*DESCRIBED, model=str(tmp_path / "own.onnx")))
    with pytest.raises(GradsegError, match="--size and --arch are for checkpoints"):
        load_any(arguments("--size", "64x96", model=str(tmp_path / "own.onnx")))
    (tmp_path / "net.pth").write_bytes(b"x")
    with pytest.raises(GradsegError, match="is a checkpoint, which carries its own spec; leave --mean out"):
        load_any(arguments("--mean", "0,0,0", model=str(tmp_path / "net.pth")))


def test_the_options_stand_in_the_help() -> None:
    parser = argparse.ArgumentParser()
    add_foreign_arguments(parser)
    assert "--input-scale" in parser.format_help() and "Caffe" not in parser.format_help()
