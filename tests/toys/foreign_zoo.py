"""Small networks with the operators of other people's networks that quantisation must leave in float, or get right."""

from __future__ import annotations

import itertools
from typing import Callable, Dict

import numpy as np
from foreign_toys import HW, Net

W = 24  # channels, more than the CPU's plan calls narrow


def relu6(net: Net, x: str, low: float = 0.0, high: float = 6.0) -> str:
    return net.op("Clip", x, net.const(low), net.const(high))


def mobile(net: Net, x: str) -> str:
    """Inverted residual with ReLU6."""
    inner = relu6(net, net.bn(net.conv(x, (W, 2 * W), k=1), 2 * W))
    inner = relu6(net, net.conv(inner, (2 * W, 2 * W), group=2 * W))
    return net.op("Add", x, net.bn(net.conv(inner, (2 * W, W), k=1), W))


def squeeze_excite(net: Net, x: str) -> str:
    """HardSwish in its three spellings, a gate made from the global mean."""
    first = net.conv(x, (W, W))
    by_parts = net.op("Div", net.op("Mul", first, relu6(net, net.op("Add", first, net.const(3.0)))), net.const(6.0))
    by_sigmoid = net.op("Mul", first, net.op("HardSigmoid", first, alpha=1 / 6, beta=0.5))
    pooled = net.op("GlobalAveragePool", net.op("Add", by_parts, by_sigmoid))
    gate = net.op("Relu", net.conv(pooled, (W, W), k=1))
    gate = net.op("HardSigmoid", net.conv(gate, (W, W), k=1), alpha=0.2, beta=0.5)
    return net.op("HardSwish", net.conv(net.op("Mul", net.op("Add", by_parts, by_sigmoid), gate), (W, W)))


def pyramid(net: Net, x: str) -> str:
    """Average pooling of several sizes, concatenated."""
    parts = [x]
    for size in (2, 8):
        pooled = net.op("AveragePool", x, kernel_shape=[size, size], strides=[size, size])
        parts.append(net.resize(net.block(pooled, (W, W), k=1), size))
    return net.block(net.op("Concat", *parts, axis=1), (3 * W, W))


def conv_next(net: Net, x: str) -> str:
    """LayerNormalization and linear layers with the channels last, a GELU, a layer scale."""
    inner = net.op("Transpose", net.conv(x, (W, W), k=7, group=W), perm=[0, 2, 3, 1])
    gain = [net.const(net.random.uniform(0.5, 1.5, W)), net.const(net.random.normal(size=W) * 0.1)]
    inner = net.gelu(net.linear(net.op("LayerNormalization", inner, *gain, axis=-1), (W, 2 * W)))
    inner = net.op("Mul", net.linear(inner, (2 * W, W)), net.const(np.full(W, 0.3)))
    return net.op("Add", x, net.op("Transpose", inner, perm=[0, 3, 1, 2]))


def norms(net: Net, x: str) -> str:
    scale, bias = net.const(net.random.uniform(0.5, 1.5, W)), net.const(np.zeros(W))
    x = net.op("InstanceNormalization", net.conv(x, (W, W)), scale, bias)
    x = net.op("PRelu", net.conv(x, (W, W)), net.const(np.full((W, 1, 1), 0.2)))
    return net.op("Elu", net.conv(net.op("LeakyRelu", net.conv(x, (W, W)), alpha=0.1), (W, W)))


def deconvolutions(net: Net, x: str) -> str:
    """Depthwise, grouped, overlapping, without a group."""
    x = net.op("Relu", net.deconv(net.pool(x), (W, W), k=4, group=W, pad=1))
    x = net.op("Relu", net.deconv(net.pool(x), (W, W), k=2, group=2))
    return net.op("Relu", net.deconv(net.pool(x), (W, W), k=4, pad=1))


def shared_weights(net: Net, x: str) -> str:
    """One set of weights and one bias for two convolutions, as a siamese or a recurrent head has them."""
    weight, bias = net.const(net.random.normal(size=(W, W, 3, 3)) * 0.1), net.const(net.random.normal(size=W) * 0.1)
    for _ in range(2):
        x = net.op("Relu", net.op("Conv", x, weight, bias, pads=[1] * 4))
    return x


def computed_weights(net: Net, x: str) -> str:
    """Weights, then a bias, that depend on the frame."""
    gate = net.op("Sigmoid", net.op("GlobalAveragePool", x))
    weight = net.op("Mul", net.const(net.random.normal(size=(W, W, 1, 1)) * 0.3), gate)
    x = net.op("Relu", net.op("Conv", x, weight))
    bias = net.reshape(gate, W)
    fixed = net.const(net.random.normal(size=(W, W, 3, 3)) * 0.1)
    return net.op("Relu", net.op("Conv", net.block(x, (W, W)), fixed, bias, pads=[1] * 4))


def other_ranks(net: Net, x: str) -> str:
    """Convolutions over one and over three dimensions."""
    height, width = HW
    flat = net.reshape(x, 1, W, height * width)
    weight = net.const(net.random.normal(size=(W, W, 3)) * 0.15)
    flat = net.op("Relu", net.op("Conv", flat, weight, kernel_shape=[3], pads=[1, 1]))
    cube = net.reshape(flat, 1, 1, W, height, width)
    weight = net.const(net.random.normal(size=(1, 1, 3, 3, 3)) * 0.2)
    cube = net.op("Relu", net.op("Conv", cube, weight, kernel_shape=[3, 3, 3], pads=[1] * 6))
    return net.block(net.reshape(cube, 1, W, height, width), (W, W))


def mixed_concat(net: Net, x: str) -> str:
    """INT8, float, constant (coordinates) and repeated branches."""
    mean = net.op("Expand", net.op("GlobalAveragePool", x), net.const([1, W, *HW], np.int64))
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, HW[0]), np.linspace(-1, 1, HW[1]), indexing="ij"))[None]
    one = net.block(x, (W, W))
    joined = net.op("Concat", one, net.op("Sigmoid", net.conv(x, (W, W))), mean, net.const(grid), one, axis=1)
    return net.block(joined, (4 * W + 2, W))


def sums(net: Net, x: str) -> str:
    """With constants, broadcast, with itself, of three, and a difference."""
    one = net.op("Add", net.conv(x, (W, W)), net.const(net.random.normal(size=(1, W, 1, 1))))
    one = net.op("Add", one, net.conv(net.op("GlobalAveragePool", x), (W, W), k=1))
    one = net.op("Add", net.op("Relu", one), one)
    one = net.op("Sum", one, x, net.conv(x, (W, W)))
    return net.block(net.op("Sub", net.op("Add", one, one), x), (W, W))


def resizes(net: Net, x: str) -> str:
    small = net.block(net.pool(x), (W, W))
    near = net.resize(small, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    corners = net.resize(net.conv(small, (W, W)), coordinate_transformation_mode="align_corners")
    cubic = net.resize(small, mode="cubic", coordinate_transformation_mode="half_pixel")
    return net.block(net.op("Concat", near, corners, cubic, axis=1), (3 * W, W))


def shuffles(net: Net, x: str) -> str:
    """Channels split, gathered, sliced and shuffled in other styles than ours."""
    net.op("Split", x, net.const([W // 2, W // 2], np.int64), axis=1)
    left, right = f"{net.nodes[-1].output[0]}", f"{net.nodes[-1].output[0]}_b"
    net.nodes[-1].output.append(right)
    joined = net.op("Concat", net.block(left, (W // 2, W)), right, axis=1)
    order = net.random.permutation(W + W // 2)
    mixed = net.op("Gather", joined, net.const(order, np.int64), axis=1)
    part = net.op("Slice", mixed, net.const([4], np.int64), net.const([4 + W], np.int64), net.const([1], np.int64))
    four = net.op("Transpose", net.reshape(part, 4, W // 4, *HW), perm=[1, 0, 2, 3])
    return net.block(net.reshape(four, 1, W, *HW), (W, W))


def pads(net: Net, x: str) -> str:
    """Padding of its own, asymmetric strides and pads, automatic padding, no bias."""
    for mode in ("reflect", "edge", "constant"):
        padded = net.op("Pad", x, net.const([0, 0, 1, 1, 0, 0, 1, 1], np.int64), mode=mode)
        x = net.op("Relu", net.op("Conv", padded, net.const(net.random.normal(size=(W, W, 3, 3)) * 0.1)))
    weight = net.const(net.random.normal(size=(W, W, 3, 3)) * 0.1)
    x = net.op("Relu", net.op("Conv", x, weight, auto_pad="SAME_UPPER"))
    weight = net.const(net.random.normal(size=(W, W, 1, 3)) * 0.2)
    return net.op("Relu", net.op("Conv", x, weight, pads=[0, 2, 0, 0], strides=[1, 1]))


def unpooling(net: Net, x: str) -> str:
    """SegNet's: the positions of the maxima are kept. A read of the pooled values beside it."""
    pooled = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    net.nodes[-1].output.append(f"{pooled}_where")
    inner = net.block(pooled, (W, W))
    apart = net.op("MaxUnpool", inner, f"{pooled}_where", kernel_shape=[2, 2], strides=[2, 2])
    return net.block(net.op("Add", apart, net.resize(pooled)), (W, W))


def rearranged(net: Net, x: str) -> str:
    """Space to depth at the start, depth to space at the end, a squared activation."""
    deep = net.op("SpaceToDepth", x, blocksize=2)
    deep = net.op("Relu", net.conv(deep, (4 * W, 4 * W), k=1))
    deep = net.op("Mul", deep, net.op("Sigmoid", net.conv(deep, (4 * W, 4 * W), group=4)))
    return net.op("DepthToSpace", net.conv(deep, (4 * W, 4 * W), k=1), blocksize=2, mode="CRD")


def attention_gate(net: Net, x: str) -> str:
    """A one-channel gate, a spatial softmax, Gemm on pooled features, a Concat of rows."""
    gate = net.op("Sigmoid", net.conv(net.op("Relu", net.conv(x, (W, W), k=1)), (W, 1), k=1))
    x = net.op("Mul", x, gate)
    flat = net.op("Softmax", net.reshape(net.conv(x, (W, 1), k=1), 1, 1, HW[0] * HW[1]), axis=2)
    pooled = net.op("MatMul", flat, net.op("Transpose", net.reshape(x, 1, W, HW[0] * HW[1]), perm=[0, 2, 1]))
    row = net.op("Gemm", net.reshape(pooled, 1, W), net.const(net.random.normal(size=(W, W)) * 0.2), transB=1)
    x = net.op("Add", x, net.reshape(row, 1, W, 1, 1))
    rows = [net.const([v], np.int64) for v in (0, HW[0] // 2, HW[0])]
    axis = net.const([2], np.int64)
    halves = [net.block(net.op("Slice", x, a, b, axis), (W, W)) for a, b in itertools.pairwise(rows)]
    return net.op("Concat", *halves[::-1], axis=2)


def quirks(net: Net, x: str) -> str:
    """Identity, Dropout, an all-zero filter, a dead branch, a global maximum."""
    x = net.op("Dropout", net.op("Identity", net.conv(x, (W, W))))
    weight = net.random.normal(size=(W, W, 3, 3)) * 0.1
    weight[3] = 0
    x = net.op("Relu", net.op("Conv", x, net.const(weight), net.const(np.zeros(W)), pads=[1] * 4))
    net.conv(x, (W, W))
    peak = net.op("GlobalMaxPool", x)
    return net.op("Div", x, net.op("Add", peak, net.const(0.1)))


ZOO: Dict[str, Callable[[Net, str], str]] = {
    maker.__name__: maker
    for maker in (
        mobile,
        squeeze_excite,
        pyramid,
        conv_next,
        norms,
        deconvolutions,
        shared_weights,
        computed_weights,
        other_ranks,
        mixed_concat,
        sums,
        resizes,
        shuffles,
        pads,
        unpooling,
        rearranged,
        attention_gate,
        quirks,
    )
}
