"""ONNX files of other people become the deployment form: how they end, begin and are written."""

from __future__ import annotations

from typing import Any, Callable, Dict

import cv2
import numpy as np
import onnx
import pytest
from foreign_checks import FOLDER, SAID, argmax, check, check_as_tiny, converted, folder, operators  # noqa: F401
from foreign_toys import CLASSES, HW, MEAN, STD, TOYS, Net, original_values, tiny, toy
from onnx import TensorProto, helper, numpy_helper

from gradseg.base.errors import GradsegError
from gradseg.graphs.foreign.convert import deployment_from_foreign
from gradseg.graphs.foreign.spec import Given

# ---- whole networks


@pytest.mark.parametrize("opset", [9, 11, 12, 17, 18])
@pytest.mark.parametrize("name", TOYS)
def test_networks_of_every_opset_keep_their_labels(name: str, opset: int) -> None:
    model = toy(name, opset)
    made = converted(model)
    assert min(entry.version for entry in made.opset_import) >= 13

    def expected(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        logits = original_values(model, batch)[0]
        return np.stack([cv2.resize(plane, HW[::-1], interpolation=cv2.INTER_LINEAR) for plane in logits]).argmax(0)

    check(made, expected)
    assert "BatchNormalization" not in operators(made)
    names = [node.name for node in made.graph.node]
    assert all(names) and len(set(names)) == len(names), "quantisation goes by the names of nodes"


def test_conversion_is_the_same_every_time() -> None:
    assert converted(toy("unet")).SerializeToString() == converted(toy("unet")).SerializeToString()


# ---- how it ends


def softmax(net: Net) -> str:
    return net.op("Softmax", "scores", axis=1)


def transposed_softmax(net: Net) -> str:
    last = net.op("Softmax", net.op("Transpose", "scores", perm=[0, 2, 3, 1]), axis=3)
    return net.op("Transpose", last, perm=[0, 3, 1, 2])


ENDS: Dict[str, Callable[[Net], str]] = {
    "logits": lambda net: "scores",
    "softmax": softmax,
    "log softmax": lambda net: net.op("LogSoftmax", "scores", axis=1),
    "sigmoid": lambda net: net.op("Sigmoid", "scores"),
    "softmax between transposes": transposed_softmax,
    "channels last": lambda net: net.op("Transpose", "scores", perm=[0, 2, 3, 1]),
    "argmax": lambda net: argmax(net),
    "argmax without its axis": lambda net: argmax(net, keepdims=0),
    "argmax to int32": lambda net: net.op("Cast", argmax(net, keepdims=0), to=TensorProto.INT32),
    "argmax to float": lambda net: net.op("Cast", argmax(net), to=TensorProto.FLOAT),
    "argmax reshaped": lambda net: net.reshape(argmax(net), *HW),
    "softmax, then argmax": lambda net: argmax(net, softmax(net)),
    "argmax over the last axis": lambda net: argmax(net, net.op("Transpose", "scores", perm=[0, 2, 3, 1]), axis=-1),
}


@pytest.mark.parametrize("end, opset", [*((end, 17) for end in ENDS), ("softmax", 12), ("log softmax", 12)])
def test_every_end_becomes_the_labels(end: str, opset: int) -> None:
    net = tiny(opset)
    plain = net.model(["scores"])
    last = ENDS[end](net)
    kind = TensorProto.FLOAT if "argmax" not in end or "float" in end else TensorProto.INT64
    kind = TensorProto.INT32 if "int32" in end else kind
    made = converted(net.model([last], out_kind=kind))
    check(made, lambda batch: original_values(plain, batch).argmax(1))
    assert operators(made).count("ArgMax") == 1 and not {"Softmax", "LogSoftmax", "Sigmoid"} & set(operators(made))


def test_an_argmax_that_takes_the_last_is_kept() -> None:
    net = tiny()
    twice = net.op("Concat", "scores", "scores", axis=1)  # every label is tied with one 5 above it
    model = net.model([argmax(net, twice, select_last_index=1)], out_kind=TensorProto.INT64)
    made = converted(model, Given(mean=MEAN, std=STD, count=2 * CLASSES))
    check(made, lambda batch: original_values(tiny().model(["scores"]), batch).argmax(1) + CLASSES)


def enlarged(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    planes = [cv2.resize(plane, HW[::-1], interpolation=cv2.INTER_LINEAR) for plane in values[0]]
    return np.stack(planes)


def test_small_probabilities_are_enlarged_as_probabilities() -> None:
    net = tiny(stride=4)
    model = net.model([softmax(net)])
    made = converted(model)
    check(made, lambda batch: enlarged(original_values(model, batch)).argmax(0))
    assert operators(made).count("Softmax") == 1


def test_small_labels_are_repeated() -> None:
    net = tiny(stride=2)
    model = net.model([argmax(net)], out_kind=TensorProto.INT64)
    check(converted(model), lambda batch: original_values(model, batch)[0, 0].repeat(2, 0).repeat(2, 1))


def test_sides_that_do_not_divide_are_enlarged_to_the_input() -> None:
    net = Net(seed=3)
    features = net.op("Conv", "image", net.const(net.random.normal(size=(5, 3, 3, 3))), strides=[4, 4], pads=[1] * 4)
    model = net.model([features], (1, 3, 65, 97))
    _, spec, lines = deployment_from_foreign(model, SAID, "net.onnx", FOLDER[0])
    assert spec.input_hw == (65, 97) and "note: its logits of 17x25 are enlarged bilinearly" in "\n".join(lines)


@pytest.mark.parametrize("end", ["logits", "sigmoid", "small sigmoid", "threshold", "squeezed"])
def test_one_channel_is_two_classes(end: str) -> None:
    net = tiny(stride=4 if "small" in end else 1, classes=1)
    last = net.op("Sigmoid", "scores") if "sigmoid" in end else "scores"
    if end == "squeezed":
        last = net.op("Squeeze", net.op("Relu", last), net.const([1], np.int64))
    level = 0.7 if end == "threshold" else 0.5 if "sigmoid" in end else 0.0
    model = net.model([last])
    given = Given(mean=MEAN, std=STD, classes=("lane",), threshold=0.7 if end == "threshold" else None)
    made, spec, lines = deployment_from_foreign(model, given, "net.onnx", FOLDER[0])
    check(made, lambda batch: enlarged(original_values(model, batch).reshape(1, 1, *HW_OF[end]))[0] > level)
    assert spec.classes == ("background", "lane")
    assert f"note: one output channel: 'lane' where it is above {level:g}" in lines


HW_OF = {
    end: (16, 24) if "small" in end else HW for end in ["logits", "sigmoid", "small sigmoid", "threshold", "squeezed"]
}


# ---- how it begins, and how files are written


def test_an_open_batch_becomes_one() -> None:
    check_as_tiny(tiny().model(["scores"], ("n", 3, *HW)))


def test_an_open_size_takes_the_given_one() -> None:
    model = tiny().model(["scores"], (1, 3, "h", "w"))
    check_as_tiny(model, SAID.over(Given(input_hw=HW)))
    with pytest.raises(GradsegError, match=r"input image \(float \[1, 3, \?, \?\]\) takes any size; say .* --size"):
        converted(model)


def test_weights_that_stand_among_the_inputs() -> None:
    model = tiny(9).model(["scores"])
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    model.ir_version = 3
    check(converted(model), lambda batch: original_values(tiny(9).model(["scores"]), batch).argmax(1))


def test_weights_as_constant_nodes() -> None:
    model = tiny().model(["scores"])
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
    nodes += list(model.graph.node)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    check_as_tiny(model)


@pytest.mark.parametrize("plain", [True, False])
def test_images_with_the_channels_last(plain: bool) -> None:
    """With the transposition that exporters put first, which cancels out, and with a sum before it."""
    net = tiny()
    model = net.model([net.op("Transpose", "scores", perm=[0, 2, 3, 1])])
    model.graph.node[0].input[0] = "nchw"
    first = [helper.make_node("Transpose", ["image" if plain else "sum"], ["nchw"], perm=[0, 3, 1, 2])]
    first += [] if plain else [helper.make_node("Add", ["image", "offset"], ["sum"])]
    for node in first:
        model.graph.node.insert(0, node)
    offset: np.ndarray[Any, Any] = np.array([0.0 if plain else 0.5] * 3, np.float32)
    model.graph.initializer.append(numpy_helper.from_array(offset, "offset"))
    model.graph.input[0].type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, [1, *HW, 3]))
    made = converted(model)
    mean = tuple(m - s * offset[0] for m, s in zip(MEAN, STD, strict=True))
    check(made, lambda batch: original_values(tiny().model(["scores"]), batch, mean=mean).argmax(1))
    assert operators(made).count("Transpose") == (1 if plain else 3)


def test_names_that_the_deployment_form_uses_itself() -> None:
    net = tiny()
    model = net.model([net.op("Identity", net.op("Identity", "scores", output="frame"), output="labels")])
    check_as_tiny(model)


def test_one_of_several_outputs() -> None:
    net = tiny()
    side = net.op("GlobalAveragePool", "scores")
    model = net.model(["scores", net.op("Softmax", net.reshape(side, 1, CLASSES), axis=1)])
    check_as_tiny(model)
    net.conv("scores", (CLASSES, 7), output="boundary")
    model = net.model(["boundary", "scores"])
    with pytest.raises(
        GradsegError, match=r"Say it with --output NAME; there are boundary \(float \[1, 7, 64, 96\]\), sc"
    ):
        converted(model)
    check_as_tiny(model, SAID.over(Given(output="scores")))
    with pytest.raises(GradsegError, match="has no tensor 'other'; its outputs are boundary"):
        converted(model, SAID.over(Given(output="other")))


def test_inputs_that_the_output_does_not_need() -> None:
    net = tiny()
    model = net.model(["scores", net.op("Mul", "factor", "factor")])
    model.graph.input.append(helper.make_tensor_value_info("factor", TensorProto.FLOAT, [1, 2]))
    check_as_tiny(model)
    with pytest.raises(GradsegError, match=r"which input is the image.* --input NAME; its inputs are image"):
        converted(both_pictures(model))
    check_as_tiny(both_pictures(model), SAID.over(Given(input="image", output="scores")))
    with pytest.raises(GradsegError, match="does not depend on the image factor; name another --output"):
        converted(both_pictures(model), SAID.over(Given(input="factor", output="scores")))
    with pytest.raises(GradsegError, match="has no input 'picture'"):
        converted(model, SAID.over(Given(input="picture")))
    net = tiny()
    both = net.model([net.op("Mul", "scores", "factor")])
    both.graph.input.append(helper.make_tensor_value_info("factor", TensorProto.FLOAT, [1, 1]))
    with pytest.raises(GradsegError, match="needs the inputs factor beside the image image"):
        converted(both)


def both_pictures(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.input[1].type.CopyFrom(copy.graph.input[0].type)
    return copy


def test_batchnorm_that_cannot_be_folded_stays() -> None:
    net = Net(seed=3)
    features = net.block("image", (3, 12))
    pooled = net.op("Flatten", net.op("GlobalAveragePool", features))  # a BatchNormalization of (1, C)
    gate = net.reshape(net.op("Sigmoid", net.bn(pooled, 12)), 1, 12, 1, 1)
    computed = net.op("Relu", net.const(np.linspace(0.5, 1, 12)))  # folded by simplification, still a constant
    scaled = net.op("BatchNormalization", net.op("Mul", features, gate), computed, *[net.const(np.ones(12))] * 3)
    model = net.model([net.conv(scaled, (12, CLASSES))])
    check(converted(model), lambda batch: original_values(model, batch).argmax(1))
