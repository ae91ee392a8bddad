"""The label head of a deployment-form model as the native engine has it: float weights, which it rounds itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from gradseg.export.native.reader import NotLowered, Reader, windows
from gradseg.graphs.graph import attribute
from gradseg.graphs.passes.columns_head import find_head
from gradseg.graphs.passes.rows_head import Head as BlockHead
from gradseg.graphs.passes.rows_head import last_nodes

PLAIN = (("Cast", "Cast", "ArgMax"), ("Cast", "ArgMax"))


@dataclass
class Head:
    """weight: float32 (classes, cin, k, k), k 1 or 2: a k x k deconvolution of stride k. bias: (classes,). source: the
    tensor that it reads."""

    name: str
    source: str
    weight: Any
    bias: Any


def head_of(reader: Reader) -> Head:
    """The head that ends a model; NotLowered for any other end."""
    blocks = find_head(reader.graph)
    found = _plain(reader) if blocks is None else _of_blocks(blocks)
    if found is None:
        last = reader.writer.get(reader.graph.model.graph.output[0].name)
        while last is not None and last.op_type in ("Cast", "Reshape", "Squeeze", "ArgMax", "Transpose"):
            last = reader.writer.get(last.input[0])
        raise NotLowered(last, "the labels must be the argmax of a 1x1 convolution or a 2x2 stride-2 deconvolution")
    return found


def _of_blocks(found: BlockHead) -> Head:
    weight = found.weight.reshape(2, 2, found.classes, -1).transpose(2, 3, 0, 1)
    bias = np.broadcast_to(0.0 if found.bias is None else found.bias, (4 * found.classes,)).reshape(4, -1)
    if not np.array_equal(bias, np.broadcast_to(bias[:1], bias.shape)):
        raise NotLowered(None, f"head {found.scores.name}: four different biases in a block of labels")
    return Head(found.scores.name, found.features, weight, bias[0])


def _plain(reader: Reader) -> Optional[Head]:
    for operators in PLAIN:
        chain = last_nodes(reader.graph, operators)
        if chain and attribute(chain[-1], "axis", 0) == 1 and not attribute(chain[-1], "select_last_index", 0):
            node = reader.writer.get(chain[-1].input[0])
            sizes = {"Conv": 1, "ConvTranspose": 2}
            if node is not None and node.op_type in sizes and _is_plain(reader, node, sizes[node.op_type]):
                weight = reader.constant(node, 1)
                weight = weight if node.op_type == "Conv" else weight.transpose(1, 0, 2, 3)
                return Head(node.name, str(node.input[0]), weight, reader.bias(node, len(weight)))
    return None


def _is_plain(reader: Reader, node: Any, size: int) -> bool:
    """Whether a kernel is of size x size with that stride, without padding and groups."""
    strides, _, _ = windows(node)
    kernel = reader.constant(node, 1).shape[2:]
    padded = any(attribute(node, "pads", [])) or any(attribute(node, "output_padding", []))
    return kernel == (size, size) == strides and not padded and bool(attribute(node, "group", 1) == 1)
