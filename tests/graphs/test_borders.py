"""Frames of their own size, and several at once, inside the graph: the passes, `with_borders` and to_onnx.py."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, List

import cv2
import numpy as np
import onnx
import pytest
from export_toys import HW, SCENES, checkpoint, exported, frames, one_torch_thread  # noqa: F401
from foreign_checks import converted, folder  # noqa: F401
from foreign_toys import CLASSES, Net, lively, toy
from foreign_zoo import ZOO, W
from hypothesis import given, settings
from hypothesis import strategies as st
from trt_toys import int8

import gradseg.export.to_onnx as to_onnx
from gradseg.base.errors import GradsegError
from gradseg.export.trt.forms import half_form
from gradseg.graphs.borders import as_written, check_borders, with_borders
from gradseg.graphs.graph import Graph
from gradseg.graphs.passes.batch import fixed_batch
from gradseg.graphs.passes.frame_size import frame_size, sources
from gradseg.graphs.sessions import OnnxRunner, exposed
from gradseg.models import metadata
from gradseg.models.checkpoint import save_checkpoint
from gradseg.runtime.preprocess import resize_labels

BIG = (90, 130)  # neither side a multiple of the network's
SIDE = st.integers(1, 300)
FORMS = ("fp32", "fp16", "int8", "int8 half")


@functools.cache
def form(kind: str, arch: str = "dg2-star-light") -> onnx.ModelProto:
    return {
        "fp32": lambda: exported(arch),
        "fp16": lambda: half_form(exported(arch)),
        "int8": lambda: int8(arch, "trt"),
        "int8 half": lambda: half_form(int8(arch, "trt")),
    }[kind]()


def labels_of(model: onnx.ModelProto, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    runner = OnnxRunner(model.SerializeToString(), threads=1, integers=False)
    return runner.first(np.ascontiguousarray(batch))


def values_of(model: onnx.ModelProto) -> Any:
    return metadata.metadata_of_bytes(model.SerializeToString())


# ---- frame size


@settings(max_examples=200, deadline=None)
@given(h=SIDE, w=SIDE, height=SIDE, width=SIDE, seed=st.integers(0, 99))
def test_sources_are_where_the_runtime_takes_labels_from(h: int, w: int, height: int, width: int, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 256, (h, w), dtype=np.uint8)
    expected = resize_labels(labels, (height, width))
    np.testing.assert_array_equal(labels[sources(h, height)][:, sources(w, width)], expected)


@pytest.mark.parametrize("size, target", [(360, 720), (480, 1280), (512, 1080), (1024, 1920), (8191, 4097), (1, 7)])
def test_sources_of_usual_sides(size: int, target: int) -> None:
    line = np.arange(size)
    for part in (line % 256, line // 256):  # labels are bytes: an index is put together from two
        found = resize_labels(part.astype(np.uint8)[None], (1, target))[0]
        np.testing.assert_array_equal(part[sources(size, target)], found)


@pytest.mark.parametrize("kind", FORMS)
def test_frame_size_both_ways(kind: str) -> None:
    graph = Graph(form(kind))
    frame_size(graph, BIG)
    model = graph.to_model()
    model.ir_version = form(kind).ir_version
    onnx.checker.check_model(model, full_check=True)
    assert (model.graph.node[0].op_type, model.graph.node[-1].op_type) == ("Cast", "Cast")
    assert [node.op_type for node in model.graph.node].count("Cast") == 3  # no type comes in between
    frame = cv2.resize(frames(1)[0][0], BIG[::-1])[None]
    small = model.graph.node[-3].input[0]  # what the two Gathers read
    assert [node.op_type for node in model.graph.node[-3:]] == ["Gather", "Gather", "Cast"]
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    for name, output in (("frame_resized", "pixels as float"), (small, "small as float")):
        whole.graph.node.append(onnx.helper.make_node("Cast", [name], [output], to=onnx.TensorProto.FLOAT))
    data = exposed(whole, ["pixels as float", "small as float"])
    labels, pixels, before = OnnxRunner(data, threads=1, integers=False).run(frame)
    np.testing.assert_array_equal(labels[0], resize_labels(before[0].astype(np.uint8), BIG))
    assert np.abs(pixels[0].transpose(1, 2, 0) - cv2.resize(frame[0], HW[::-1]).astype(np.float32)).max() <= 1.0


def test_frames_of_the_networks_size_change_nothing() -> None:
    model = with_borders(exported(), checkpoint().spec, 1, HW)
    assert [n.op_type for n in model.graph.node] == [n.op_type for n in exported().graph.node]
    assert metadata.FRAME_SIZE not in values_of(model) and metadata.BATCH not in values_of(model)


def test_a_frame_that_is_not_cast_first_is_refused() -> None:
    graph = Graph(exported())
    graph.nodes[0].op_type = "Identity"
    with pytest.raises(GradsegError, match="the frame is read by Identity; a Cast must be the first node"):
        frame_size(graph, BIG)


def test_a_network_of_frames_in_rows_is_resized_too() -> None:
    """The frame's Cast is read by something else than a transposition to planes."""
    graph = Graph(exported())
    cast, transpose = graph.nodes[:2]
    cast.output[0] = "moved"
    graph.add("Identity", ["moved"], transpose.input[0])
    model = Graph(graph.to_model())
    frame_size(model, BIG)
    frame = cv2.resize(frames(1)[0][0], BIG[::-1])[None]
    expected = labels_of(with_borders(exported(), checkpoint().spec, 1, BIG), frame)
    np.testing.assert_array_equal(labels_of(model.to_model(), frame), expected)


# ---- batch


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("frame_hw", [None, BIG])
def test_a_frame_has_its_labels_in_any_batch(kind: str, frame_hw: Any) -> None:
    spec = checkpoint().spec
    alone, model = with_borders(form(kind), spec, 1, frame_hw), with_borders(form(kind), spec, 3, frame_hw)
    shown = [cv2.resize(frame[0], (frame_hw or HW)[::-1])[None] for frame in frames(3)]
    single = OnnxRunner(alone.SerializeToString(), threads=1, integers=False)
    expected = np.concatenate([single.first(frame) for frame in shown])
    np.testing.assert_array_equal(labels_of(model, np.concatenate(shown)), expected)
    assert metadata.borders(values_of(model), spec) == (3, frame_hw or HW)


def foreign(name: str) -> onnx.ModelProto:
    net = Net(seed=5)
    lively(net, ZOO[name](net, net.block("image", (3, W))), W, CLASSES)
    return converted(net.model(["scores"]))


def test_rows_of_several_frames_are_one_matrix() -> None:
    """A SegFormer: Reshape to (tokens, width) for Gemm, attention, constants in between."""
    model = converted(toy("segformer"))
    graph = Graph(model)
    assert "Gemm" in [node.op_type for node in graph.nodes]
    fixed_batch(graph, 2)
    two = labels_of(graph.to_model(), np.concatenate(frames(2)))
    np.testing.assert_array_equal(two, np.concatenate([labels_of(model, frame) for frame in frames(2)]))


def test_constants_beside_the_frames_are_repeated() -> None:
    model = foreign("mixed_concat")
    graph = Graph(model)
    fixed_batch(graph, 2)
    two = labels_of(graph.to_model(), np.concatenate(frames(2)))
    np.testing.assert_array_equal(two, np.concatenate([labels_of(model, frame) for frame in frames(2)]))


@pytest.mark.parametrize(
    "name, reason",
    [
        ("shuffles", r"node Transpose_\d+ \(Transpose\) moves the first dimension"),
        ("computed_weights", r"node Conv_\d+ \(Conv\) has weights that depend on the frame"),
    ],
)
def test_what_mixes_frames_is_named(name: str, reason: str) -> None:
    with pytest.raises(GradsegError, match=rf"--batch 2: {reason}; leave --batch out"):
        fixed_batch(Graph(foreign(name)), 2)


def one_node(kind: str, inputs: List[str], shape: List[int], **attributes: Any) -> Graph:
    """A graph (1, 4, 6) → `shape` of one node between a Cast and a Cast."""
    helper, kinds = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("Cast", ["frame"], ["x"], to=kinds.FLOAT),
        helper.make_node(kind, ["x", *inputs], ["y"], name="it", **attributes),
        helper.make_node("Cast", ["y"], ["labels"], to=kinds.UINT8),
    ]
    values = {"pair": np.array([4, 6], np.int64), "first": np.array([0], np.int64), "wide": np.ones((5, 1), np.float32)}
    ends = [helper.make_tensor_value_info(n, kinds.UINT8, s) for n, s in (("frame", [1, 4, 6]), ("labels", shape))]
    weights = [onnx.numpy_helper.from_array(value, name) for name, value in values.items()]
    made = helper.make_graph(nodes, "one", ends[:1], ends[1:], weights)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return Graph(model)


@pytest.mark.parametrize(
    "kind, inputs, shape, attributes, reason",
    [
        ("Softmax", [], [1, 4, 6], {"axis": 0}, "works along the first dimension"),
        ("ReduceMax", [], [1, 4, 6], {"axes": [-3]}, "works along the first dimension"),
        ("ReduceMean", [], [1, 1, 1], {}, "works along the first dimension"),
        ("Squeeze", ["first"], [4, 6], {}, "works along the first dimension"),
        ("Transpose", [], [6, 4, 1], {}, "moves the first dimension"),
        ("CumSum", ["first"], [1, 4, 6], {}, "is not known to treat frames apart"),
        ("Expand", ["wide"], [5, 4, 6], {}, "changes the first dimension"),
    ],
)
def test_what_works_over_frames_is_refused(
    kind: str, inputs: List[str], shape: List[int], attributes: Any, reason: str
) -> None:
    if kind == "Expand":
        graph = one_node(kind, inputs, shape)
        graph.weights["wide"] = np.array([5, 1, 1], np.int64)
    else:
        graph = one_node(kind, inputs, shape, **attributes)
    with pytest.raises(GradsegError, match=rf"--batch 2: node it \({kind}\) {reason}"):
        fixed_batch(graph, 2)


# ---- with_borders, check_borders, metadata


def test_a_model_is_made_for_its_frames_once() -> None:
    model = with_borders(exported(), checkpoint().spec, 2, BIG)
    with pytest.raises(GradsegError, match="takes batches of 2 frames of 90x130 already; give the file that was made"):
        with_borders(model, checkpoint().spec, 4)


@pytest.mark.parametrize("key, value", [(metadata.BATCH, "0"), (metadata.BATCH, "two"), (metadata.FRAME_SIZE, "90")])
def test_damaged_borders_are_refused(key: str, value: str) -> None:
    with pytest.raises(GradsegError, match=f"net.onnx: {key}"):
        metadata.borders({key: value}, checkpoint().spec, "net.onnx")


def test_check_borders_compares_with_resizing_outside() -> None:
    spec = checkpoint().spec
    model = with_borders(exported(), spec, 2, BIG)
    agreement, lines = check_borders(exported(), model, spec, SCENES, "net")
    assert agreement.frames == 4 and agreement.fraction > 0.97
    assert lines[-1].startswith("frames of 90x130: labels equal to those of resizing 90x130 frames outside on 9")
    assert lines[-1].endswith("each frame's the same anywhere in a batch of 2")
    agreement, lines = check_borders(exported(), with_borders(exported(), spec, 3), spec, SCENES, "net")
    assert agreement.fraction == 1.0 and "one frame at a time" in lines[0]


def test_check_borders_refuses_other_labels_and_frames_that_change_each_other() -> None:
    spec = checkpoint().spec
    model = with_borders(exported(), spec, 2, BIG)
    shifted = onnx.ModelProto()
    shifted.CopyFrom(model)
    index = next(i for i in shifted.graph.initializer if i.name == "label_rows")
    rows = np.roll(onnx.numpy_helper.to_array(index), 40)
    index.CopyFrom(onnx.numpy_helper.from_array(rows, index.name))
    with pytest.raises(GradsegError, match=r"with 90x130 frames in the graph only .* 90 % are needed"):
        check_borders(exported(), shifted, spec, SCENES, "net")
    graph = Graph(model)
    cast = graph.nodes[-1]
    both = graph.constant("first_only", np.zeros(2, np.int64))
    cast.input[0] = graph.add("Gather", [cast.input[0], both], axis=0)
    with pytest.raises(GradsegError, match="--batch 2: a frame's labels depend on the frames beside it"):
        check_borders(exported(), graph.to_model(), spec, SCENES, "net")


def test_to_onnx_writes_the_borders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ckpt, out = tmp_path / "net.pth", tmp_path / "net.onnx"
    save_checkpoint(ckpt, checkpoint().network)
    options = ["--data", SCENES, "--frame-size", "90x130", "--batch", "2", "-o", str(out)]
    assert to_onnx.main([str(ckpt), *options]) == 0
    said = capsys.readouterr().out
    assert "2 x 90x130" in said and "frames of 90x130: labels equal to those of resizing" in said
    values = metadata.read_metadata(out)
    assert (values[metadata.FRAME_SIZE], values[metadata.BATCH]) == ("90x130", "2")
    assert as_written(onnx.load(str(out)), "net").first(np.zeros((2, *BIG, 3), np.uint8)).shape == (2, *BIG)
    with pytest.raises(GradsegError, match=r"--logits: the float form .*leave --frame-size and --batch out"):
        to_onnx.main([str(ckpt), "--logits", "--batch", "2"])
    with pytest.raises(GradsegError, match="--batch 0: at least 1 frame"):
        to_onnx.main([str(ckpt), "--batch", "0"])
