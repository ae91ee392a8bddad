"""Lowering to the native engine: every architecture and simple foreign networks, operator by operator."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from export_toys import HW, checkpoint, exported, frames, one_torch_thread  # noqa: F401
from foreign_toys import CLASSES, Net, spec, toy
from native_reference import run
from native_toys import check_against_onnx_runtime, quantised_for_native, toy_int8

from gradseg.calibration.qdq.int8 import observed_tensors
from gradseg.calibration.qdq.native_form import native_form, reference_form
from gradseg.calibration.qdq.plan import plan_for
from gradseg.calibration.qdq.targets import TARGETS
from gradseg.export.native.lower import native_program
from gradseg.export.native.reader import NotLowered
from gradseg.graphs.deployment import deployment_from_logits
from gradseg.graphs.from_torch import onnx_from_checkpoint
from gradseg.graphs.graph import Graph
from gradseg.graphs.passes.rows_head import rows_head
from gradseg.graphs.sessions import OnnxRunner
from gradseg.models.spec import ARCHS
from gradseg.runtime.native.program import CONV, DEPTHWISE, HEAD, POOL, UPSAMPLE

QUICK = ("erfnet", "dg4s-star", "dg2-star-light")


@pytest.mark.parametrize("arch", QUICK)
def test_every_operator_computes_what_onnx_runtime_does(arch: str) -> None:
    check_against_onnx_runtime(toy_int8(arch), frames()[0])


@pytest.mark.slow
@pytest.mark.parametrize("arch", [arch for arch in ARCHS if arch not in QUICK])
def test_every_operator_of_every_architecture_computes_what_onnx_runtime_does(arch: str) -> None:
    check_against_onnx_runtime(toy_int8(arch), frames()[0])


def test_labels_are_those_of_the_q_dq_model() -> None:
    """One value at a half may change a few labels further on, no more."""
    program = native_program(toy_int8())
    reference = OnnxRunner(reference_form(toy_int8()).SerializeToString(), threads=1, integers=False)
    same = [np.mean(run(program, frame[0]).labels == reference.first(frame)[0]) for frame in frames()]
    assert max(same) > 0.999 and min(same) > 0.9, same


def test_what_a_program_consists_of() -> None:
    """Residual sums, ReLUs and Q/DQ are no operators; the pooling beside 13 channels writes into the same tensor."""
    light, erfnet = native_program(toy_int8()), native_program(toy_int8("erfnet"))
    kinds = [op.kind for op in light.ops]
    assert kinds.count(DEPTHWISE) == 30 and kinds.count(UPSAMPLE) == 2 and kinds.count(HEAD) == 1
    assert kinds.count(CONV) == 35 and sum(op.residual >= 0 for op in light.ops) == 15
    assert {op.groups for op in light.ops if op.kind == CONV} == {1, 2}
    first, pool = erfnet.ops[:2]
    assert (first.output, first.cout, first.out_offset) == (pool.output, 13, 0)
    assert (pool.kind, pool.input, pool.cout, pool.out_offset) == (POOL, 0, 3, 13)
    assert sum(op.oy == 2 for op in erfnet.ops) == 8, "two deconvolutions of four convolutions each"
    assert light.precision == "int8" and light.calibration["target"] == "native"
    assert light.ops[-1].weight is not None and light.ops[-1].weight.shape == (11, 16, 2, 2)


def test_what_the_target_rounds() -> None:
    model = exported("erfnet")
    graph, plan = Graph(model), plan_for(model, "native")
    for node in graph.nodes:
        if node.op_type == "Add":
            assert sum(name in plan.tensors for name in node.input) == 1, "the convolution's result is not rounded"
        if node.op_type == "Concat":
            assert not any(name in plan.tensors for name in node.input)
    light = plan_for(exported(), "native")
    resized = [node for node in exported().graph.node if node.op_type == "Resize"]
    assert len(resized) == 2 and not any(n.input[0] in light.tensors or n.output[0] in light.tensors for n in resized)
    assert len(plan.nodes) > 60 and "native" not in TARGETS


@pytest.mark.parametrize("arch", ["erfnet", "dg4s", "dg2-star-light"])
def test_ranges_of_the_other_targets_serve(arch: str) -> None:
    """So that ranges files from before there was a native engine do."""
    assert set(observed_tensors(exported(arch))[0]) == set(observed_tensors(exported(arch), TARGETS)[0])


@pytest.mark.parametrize("arch", ["erfnet", "dg2-star-light"])
def test_the_mean_colour_lies_around_the_frame(arch: str) -> None:
    ckpt = checkpoint(arch, mean=(0.4, 0.5, 0.3), std=(0.2, 0.3, 0.25))
    plain = onnx_from_checkpoint(ckpt)
    program = check_against_onnx_runtime(quantised_for_native(plain), frames()[0])
    assert program.tensors[0].zero == round(0.3 * 255) | round(0.5 * 255) << 8 | round(0.4 * 255) << 16
    whole = native_form(plain)
    tensor = next(n.output[0] for n in plain.graph.node if n.op_type == "Relu")
    values = []
    for model in (plain, whole):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        copy.graph.output.append(onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None))
        values.append(OnnxRunner(copy.SerializeToString(), threads=1).run(frames()[0], [tensor])[0])
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    assert np.abs(values[0] - values[1])[inside].max() < 1e-4
    assert np.abs(values[0] - values[1]).max() < 0.2, "at the border the colour is rounded"


def test_a_mean_that_is_no_byte_is_refused() -> None:
    with pytest.raises(NotLowered, match=r"operator Sub .*: a mean of the pixels that is no whole number"):
        model = Graph(quantised_for_native(onnx_from_checkpoint(checkpoint("d-star-light", mean=(0.4, 0.5, 0.3)))))
        node = next(node for node in model.nodes if node.op_type == "Sub")
        model.weights[node.input[1]] = model.weights[node.input[1]] + 0.25
        native_program(model.to_model())


def test_the_head_of_models_for_onnx_runtime() -> None:
    graph = Graph(exported())
    assert rows_head(graph)
    rows, plain = native_program(quantised_for_native(graph.to_model())), native_program(toy_int8())
    assert np.array_equal(rows.ops[-1].weight, plain.ops[-1].weight)
    assert np.array_equal(rows.ops[-1].bias, plain.ops[-1].bias)


def test_foreign_unet() -> None:
    """Widths of 24 and 40, skips, a deconvolution without ReLU, and interpolation of what is stored."""
    model = quantised_for_native(deployment_from_logits(toy("unet"), spec()))
    program = check_against_onnx_runtime(model, frames()[0])
    assert any(op.name == "copy" for op in program.ops)
    assert (program.ops[-1].kh, program.ops[-1].cout) == (1, CLASSES)


def body(net: Net, kind: str) -> str:
    """16 features at half the frame's size, with something special on the way."""
    x = net.block("image", (3, 16), stride=2)
    if kind == "relu6":
        return net.op("Clip", net.conv(x, (16, 16)), net.const(np.float32(0)), net.const(np.float32(6)))
    if kind == "sum of two":
        x = net.op("Add", net.block(x, (16, 16)), x)
        return net.op("Relu", net.op("Add", net.op("Relu", x), x))
    if kind == "sum of convolutions":
        return net.op("Relu", net.op("Add", net.conv(x, (16, 16), k=1), net.conv(x, (16, 16))))
    if kind == "depthwise":
        x = net.op("Relu", net.op("Add", net.conv(x, (16, 16), group=16), x))
        x = net.block(net.block(x, (16, 16), stride=2, group=16), (16, 16), group=16, dilation=3)
        return net.op("Relu", net.deconv(x, (16, 16), k=4, pad=1))
    if kind == "odd widths":
        x = net.block(net.block(x, (16, 24), k=5, group=8), (24, 24), group=24)
        x = net.op("Relu", net.deconv(net.pool(x), (24, 20)))
        return net.block(x, (20, 16), k=1)
    if kind == "poolings":
        deep = net.block(x, (16, 24))
        parts = [net.pool(deep), net.pool(net.pool("image")), net.block(net.pool(x), (16, 16), k=1)]
        parts.append(net.op("Relu", net.resize(net.conv(net.pool(net.pool(x)), (16, 5), k=1))))
        x = net.block(net.op("Concat", *parts, axis=1), (48, 16), k=1)
        return net.op("Relu", net.resize(x))
    assert kind == "shuffled store"
    x = net.op("Concat", x, net.block(x, (16, 16), k=1), axis=1)
    split = net.op("Transpose", net.reshape(x, 1, 4, 8, HW[0] // 2, HW[1] // 2), perm=[0, 2, 1, 3, 4])
    x = net.block(net.reshape(split, 1, 32, HW[0] // 2, HW[1] // 2), (32, 32), group=4, k=1)
    both = net.op("Add", net.block(net.pool(x), (32, 16), k=1), net.pool(net.block(x, (32, 16))))
    return net.op("Relu", net.resize(net.block(both, (16, 16))))


KINDS = (
    "relu6",
    "sum of two",
    "sum of convolutions",
    "depthwise",
    "odd widths",
    "poolings",
    "shuffled store",
)


@pytest.mark.parametrize("kind", KINDS)
def test_foreign_operators(kind: str) -> None:
    net = Net()
    weight = net.const(net.random.normal(size=(16, CLASSES, 2, 2)))
    net.op("ConvTranspose", body(net, kind), weight, output="scores", kernel_shape=[2, 2], strides=[2, 2])
    model = quantised_for_native(deployment_from_logits(net.model(["scores"]), spec()))
    check_against_onnx_runtime(model, frames()[0])


@pytest.mark.parametrize("name", ["deeplab", "segformer"])
def test_what_has_no_operator_is_named(name: str) -> None:
    model = quantised_for_native(deployment_from_logits(toy(name), spec()))
    with pytest.raises(NotLowered, match=r"the native engine cannot run operator \w+ \(.+\).*to_ort.py MODEL$"):
        native_program(model)
