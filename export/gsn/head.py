"""The label head of a deployment-form model as the native engine has it: float weights, which it rounds itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from gradseg.export.gsn.reader import NotLowered, Reader, chain_before, windows
from gradseg.graphs.graph import attribute
from gradseg.graphs.passes.rows_head import INTERLEAVED, ROWS

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
    output = reader.graph.model.graph.output[0].name
    found = _interleaved(reader, output) or _rows(reader, output) or _plain(reader, output)
    if found is None:
        last = reader.writer.get(output)
        while last is not None and last.op_type in ("Cast", "Reshape", "Squeeze", "ArgMax", "Transpose"):
            last = reader.writer.get(last.input[0])
        raise NotLowered(last, "the labels must be the argmax of a 1x1 convolution or a 2x2 stride-2 deconvolution")
    return found


def _interleaved(reader: Reader, output: str) -> Optional[Head]:
    chain = chain_before(reader, output, INTERLEAVED)
    if not chain:
        return None
    conv, split, best, shuffle = chain[6], reader.constant(chain[5], 1), chain[4], chain[2]
    by_two = attribute(shuffle, "blocksize") == 2 and attribute(shuffle, "mode", b"DCR") == b"DCR"
    fits = len(split) == 5 and split[1] == 4 and attribute(best, "axis", 0) == 2 and by_two
    if not fits or not _is_plain(reader, conv, 1):
        return None
    weight = reader.constant(conv, 1)
    return _four(conv.name, str(conv.input[0]), weight.reshape(len(weight), -1), reader.bias(conv, len(weight)))


def _rows(reader: Reader, output: str) -> Optional[Head]:
    chain = chain_before(reader, output, ROWS)
    if not chain or attribute(chain[6], "transA", 0) != 1 or attribute(chain[6], "transB", 0) != 0:
        return None
    gemm = chain[6]
    weight = reader.constant(gemm, 1).T
    return _four(gemm.name, str(chain[7].input[0]), weight, reader.bias(gemm, len(weight)))


def _four(name: str, source: str, rows: Any, bias: Any) -> Head:
    """Rows (4 * classes, cin), by place in a block of 2x2 labels, then by class."""
    classes = len(rows) // 4
    weight = rows.reshape(2, 2, classes, -1).transpose(2, 3, 0, 1)
    bias = np.broadcast_to(bias, (4 * classes,)).reshape(4, classes)
    if not np.array_equal(bias, np.broadcast_to(bias[:1], bias.shape)):
        raise NotLowered(None, f"head {name}: four different biases in a block of labels")
    return Head(name, source, weight, bias[0])


def _plain(reader: Reader, output: str) -> Optional[Head]:
    for operators in PLAIN:
        chain = chain_before(reader, output, operators)
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
