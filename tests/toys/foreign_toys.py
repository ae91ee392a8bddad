"""Networks of other people, written with plain ONNX operators: U-Net, DeepLab and SegFormer-like, float NCHW in.

Random weights, but each logit channel is shifted and scaled to the same spread on scene frames, so that labels vary.
"""

from __future__ import annotations

import functools
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from gradseg.data.scenes.frames import ScenesData
from gradseg.models.spec import ModelSpec, distinct_palette
from gradseg.runtime.preprocess import normalised_chw

HW = (64, 96)
CLASSES = 5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCENES = "scenes:frames=4,size=64x96"
DESCRIBED = ("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225", "--classes", str(CLASSES))


def spec(classes: int = CLASSES, **changes: Any) -> ModelSpec:
    names = tuple(f"class {index}" for index in range(classes))
    fields: Dict[str, Any] = {"mean": MEAN, "std": STD, "blocks": "", **changes}
    return ModelSpec("foreign", names, distinct_palette(classes), HW, **fields)


@functools.cache
def batches(count: int = 4) -> List[np.ndarray[Any, Any]]:
    """Scene frames, uint8 BGR (1, 64, 96, 3)."""
    data = ScenesData(count, HW, 0)
    return [data[index].image[None] for index in range(count)]


class Net:
    """Writes nodes and weights of one opset. Every method returns the name of the tensor that it makes."""

    def __init__(self, opset: int = 17, seed: int = 0) -> None:
        self.opset, self.random = opset, np.random.default_rng(seed)
        self.nodes: List[onnx.NodeProto] = []
        self.weights: Dict[str, np.ndarray[Any, Any]] = {}

    def const(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(value, dtype)
        return name

    def op(self, kind: str, *inputs: str, output: Optional[str] = None, **attributes: Any) -> str:
        name = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def conv(
        self,
        x: str,
        width: Tuple[int, int],
        k: int = 3,
        stride: int = 1,
        dilation: int = 1,
        group: int = 1,
        output: Optional[str] = None,
    ) -> str:
        """`width`: (channels in, channels out). He initialisation, with a bias; `same` padding."""
        cin, cout = width
        weight = self.random.normal(size=(cout, cin // group, k, k)) * np.sqrt(2.0 / (cin // group * k * k))
        pad = dilation * (k // 2)
        return self.op(
            "Conv",
            x,
            self.const(weight),
            self.const(self.random.normal(size=cout) * 0.1),
            output=output,
            kernel_shape=[k, k],
            strides=[stride, stride],
            dilations=[dilation, dilation],
            pads=[pad] * 4,
            group=group,
        )

    def bn(self, x: str, width: int) -> str:
        parts = [self.random.uniform(0.5, 1.5, width), self.random.normal(size=width) * 0.2]
        parts += [self.random.normal(size=width) * 0.1, self.random.uniform(0.5, 1.5, width)]
        return self.op("BatchNormalization", x, *(self.const(part) for part in parts))

    def block(self, x: str, width: Tuple[int, int], **options: Any) -> str:
        """Conv, BatchNormalization, Relu."""
        return self.op("Relu", self.bn(self.conv(x, width, **options), width[1]))

    def deconv(self, x: str, width: Tuple[int, int], k: int = 2, group: int = 1, pad: int = 0) -> str:
        """Doubles height and width."""
        weight = self.random.normal(size=(width[0], width[1] // group, k, k)) * np.sqrt(2.0 / width[0] * group)
        inputs = [x, self.const(weight), self.const(self.random.normal(size=width[1]) * 0.1)]
        return self.op("ConvTranspose", *inputs, kernel_shape=[k, k], strides=[2, 2], pads=[pad] * 4, group=group)

    def pool(self, x: str) -> str:
        return self.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])

    def resize(self, x: str, factor: float = 2.0, mode: str = "linear", **attributes: Any) -> str:
        scales = self.const([1, 1, factor, factor])
        if self.opset < 10:
            return self.op("Upsample", x, scales, mode=mode)
        if self.opset < 11:
            return self.op("Resize", x, scales, mode=mode)
        return self.op("Resize", x, self.no_region(), scales, mode=mode, **attributes)

    def no_region(self) -> str:
        """Resize's second input, which opsets 11 and 12 insist on."""
        return "" if self.opset > 12 else self.const([])

    def mean(self, x: str, axes: Sequence[int], keepdims: int = 1) -> str:
        if self.opset < 18:
            return self.op("ReduceMean", x, axes=list(axes), keepdims=keepdims)
        return self.op("ReduceMean", x, self.const(axes, np.int64), keepdims=keepdims)

    def reshape(self, x: str, *dims: int) -> str:
        return self.op("Reshape", x, self.const(dims, np.int64))

    def layer_norm(self, x: str, width: int) -> str:
        """As exporters wrote it before opset 17, over the last axis."""
        centred = self.op("Sub", x, self.mean(x, [-1]))
        variance = self.mean(self.op("Pow", centred, self.const(2.0)), [-1])
        scaled = self.op("Div", centred, self.op("Sqrt", self.op("Add", variance, self.const(1e-5))))
        gain = self.const(self.random.uniform(0.5, 1.5, width))
        return self.op("Add", self.op("Mul", scaled, gain), self.const(self.random.normal(size=width) * 0.1))

    def linear(self, x: str, width: Tuple[int, int]) -> str:
        product = self.op("MatMul", x, self.const(self.random.normal(size=width) / np.sqrt(width[0])))
        return self.op("Add", product, self.const(self.random.normal(size=width[1]) * 0.1))

    def gelu(self, x: str) -> str:
        inner = self.op("Erf", self.op("Div", x, self.const(np.sqrt(2.0))))
        return self.op("Mul", self.op("Mul", x, self.op("Add", inner, self.const(1.0))), self.const(0.5))

    def model(
        self,
        outputs: Sequence[str],
        shape: Sequence[Any] = (1, 3, *HW),
        kind: int = TensorProto.FLOAT,
        out_kind: int = TensorProto.FLOAT,
    ) -> onnx.ModelProto:
        """The network with input `image`."""
        graph = helper.make_graph(
            self.nodes,
            "toy",
            [helper.make_tensor_value_info("image", kind, list(shape))],
            [helper.make_tensor_value_info(name, out_kind, None) for name in outputs],
            [numpy_helper.from_array(value, name) for name, value in self.weights.items()],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        made.ir_version = 8
        inferred = onnx.shape_inference.infer_shapes(made)
        del made.graph.output[:]
        made.graph.output.extend(inferred.graph.output)
        return made


def opened(model: onnx.ModelProto) -> Any:
    """A session of one thread: networks this small only wait for each other's."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def lively(net: Net, features: str, width: int, classes: int, output: str = "scores") -> str:
    """The classifier: a 1x1 convolution of `features`, its logits spread evenly on scene frames."""
    probe = net.model([features])
    session = opened(probe)
    seen = [session.run(None, {"image": normalised_chw(batch, spec())})[0] for batch in batches()]
    values = np.concatenate(seen).transpose(1, 0, 2, 3).reshape(width, -1)
    weight = net.random.normal(size=(classes, width))
    logits = weight @ values
    weight = weight / logits.std(axis=1, keepdims=True)
    bias = -logits.mean(axis=1) / logits.std(axis=1)
    inputs = [features, net.const(weight[:, :, None, None]), net.const(bias)]
    return net.op("Conv", *inputs, output=output, kernel_shape=[1, 1])


def unet_body(net: Net) -> Tuple[str, int]:
    """Encoder, decoder with skips; features at full size."""
    one = net.block(net.block("image", (3, 24)), (24, 24))
    two = net.block(net.block(net.pool(one), (24, 40)), (40, 40))
    three = net.block(net.pool(two), (40, 48))
    up = net.op("Concat", net.deconv(three, (48, 40)), two, axis=1)
    up = net.block(up, (80, 40))
    up = net.op("Concat", net.resize(up), one, axis=1)
    return net.block(up, (64, 24)), 24


def unet(opset: int = 17, classes: int = CLASSES) -> Net:
    """Logits `scores` at full size."""
    net = Net(opset)
    lively(net, *unet_body(net), classes)
    return net


def deeplab(opset: int = 17) -> Net:
    """Dilated pyramid with a global pool; logits `scores` at a quarter of the size."""
    net = Net(opset, seed=1)
    low = net.block("image", (3, 24), stride=2)
    low = net.block(low, (24, 32), stride=2)
    deep = net.block(net.block(low, (32, 32), group=32), (32, 48), k=1)
    deep = net.op("Add", deep, net.block(net.block(deep, (48, 48), stride=1, dilation=2, group=48), (48, 48), k=1))
    deep = net.block(deep, (48, 48), stride=2)
    branches = [net.block(deep, (48, 24), k=1)]
    branches += [net.block(deep, (48, 24), dilation=rate) for rate in (2, 3)]
    pooled = net.op("Relu", net.conv(net.op("GlobalAveragePool", deep), (48, 24), k=1))
    sizes = net.const([1, 24, HW[0] // 8, HW[1] // 8], np.int64)
    branches.append(net.op("Expand", pooled, sizes))
    if opset > 12:
        branches[-1] = net.op("Resize", pooled, "", "", sizes, mode="linear")
    project = net.resize(net.block(net.op("Concat", *branches, axis=1), (96, 48), k=1))
    joined = net.op("Concat", project, net.block(low, (32, 24), k=1), axis=1)
    lively(net, net.block(joined, (72, 48)), 48, CLASSES)
    return net


def _attention(net: Net, x: str, tokens: int, width: int, heads: int) -> str:
    """Self-attention with a residual on (1, tokens, width)."""
    normal, each = net.layer_norm(x, width), width // heads

    def split(name: str, perm: List[int]) -> str:
        return net.op("Transpose", net.reshape(name, 1, tokens, heads, each), perm=perm)

    query = split(net.linear(normal, (width, width)), [0, 2, 1, 3])
    key = split(net.linear(normal, (width, width)), [0, 2, 3, 1])
    value = split(net.linear(normal, (width, width)), [0, 2, 1, 3])
    weights = net.op("Softmax", net.op("Div", net.op("MatMul", query, key), net.const(np.sqrt(each))), axis=3)
    mixed = net.op("Transpose", net.op("MatMul", weights, value), perm=[0, 2, 1, 3])
    return net.op("Add", x, net.linear(net.reshape(mixed, 1, tokens, width), (width, width)))


def _stage(net: Net, x: str, width: Tuple[int, int], hw: Tuple[int, int], k: int, stride: int) -> str:
    """Patch embedding, one transformer block with a depthwise convolution in its MLP; back to NCHW."""
    tokens, wide = hw[0] * hw[1], width[1]
    x = net.conv(x, width, k=k, stride=stride)
    x = net.op("Transpose", net.reshape(x, 1, wide, tokens), perm=[0, 2, 1])
    x = _attention(net, net.layer_norm(x, wide), tokens, wide, 2)
    inner = net.linear(net.layer_norm(x, wide), (wide, 2 * wide))
    inner = net.reshape(net.op("Transpose", inner, perm=[0, 2, 1]), 1, 2 * wide, *hw)
    inner = net.conv(inner, (2 * wide, 2 * wide), group=2 * wide)
    inner = net.op("Transpose", net.reshape(inner, 1, 2 * wide, tokens), perm=[0, 2, 1])
    x = net.op("Add", x, net.linear(net.gelu(inner), (2 * wide, wide)))
    return net.reshape(net.op("Transpose", net.layer_norm(x, wide), perm=[0, 2, 1]), 1, wide, *hw)


def segformer(opset: int = 17) -> Net:
    """Attention, LayerNorm in parts, GELU by Erf; logits `scores` at a quarter of the size."""
    net = Net(opset, seed=2)
    height, width = HW
    one = _stage(net, "image", (3, 24), (height // 4, width // 4), 7, 4)
    two = _stage(net, one, (24, 32), (height // 8, width // 8), 3, 2)
    joined = net.op("Concat", net.conv(one, (24, 32), k=1), net.resize(net.conv(two, (32, 32), k=1)), axis=1)
    lively(net, net.block(joined, (64, 32), k=1), 32, CLASSES)
    return net


TOYS = {"unet": unet, "deeplab": deeplab, "segformer": segformer}


@functools.cache
def toy(name: str, opset: int = 17) -> onnx.ModelProto:
    """Shared between tests: do not change it in place."""
    return TOYS[name](opset).model(["scores"])


def tiny(opset: int = 17, stride: int = 1, classes: int = CLASSES) -> Net:
    """Two layers, logits `scores` at 1 / stride of the size: for tests of how a network begins and ends."""
    net = Net(opset, seed=3)
    lively(net, net.block("image", (3, 12), stride=stride), 12, classes)
    return net


def original_values(model: onnx.ModelProto, batch: np.ndarray[Any, Any], **changes: Any) -> np.ndarray[Any, Any]:
    """The first output of a toy for a frame, normalised with `MEAN` and `STD`, or as `changes` say."""
    session = opened(model)
    image = normalised_chw(batch, spec(**changes))
    found: np.ndarray[Any, Any] = session.run(None, {session.get_inputs()[0].name: image})[0]
    return found
