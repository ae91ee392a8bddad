"""The frame as the native engine's first tensor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Dict, Tuple

import numpy as np

from gradseg.export.gsn.ops import Stored
from gradseg.export.gsn.reader import NotLowered, Reader
from gradseg.graphs.graph import attribute
from gradseg.runtime.native.program import NativeTensor


def frame_of(reader: Reader) -> Tuple[NativeTensor, Dict[str, Stored]]:
    """(the tensor, the names under which a model reads it): it as floats, in another layout, less a mean, are all one.

    Around it lies the mean, which must be of whole numbers, as `native_form` makes it.
    """
    name = reader.graph.model.graph.input[0].name
    shape = reader.shapes[name]
    if len(shape) != 4 or shape[0] != 1 or shape[3] != 3:
        raise NotLowered(None, f"{name} of shape {shape}, not one frame (1, height, width, 3)")
    tensor = NativeTensor(shape[1], shape[2], 3)
    found = {name: Stored(0, 1.0, np.zeros(3), np.arange(3), shape[1], shape[2])}
    for node in reader.graph.nodes:
        if node.input[0] not in found or node.op_type not in ("Cast", "Transpose", "Sub"):
            continue
        frame = found[node.input[0]]
        if node.op_type == "Transpose" and list(attribute(node, "perm")) != [0, 3, 1, 2]:
            raise NotLowered(node, "of the frame")
        if node.op_type == "Sub":
            mean = _mean(reader, node)
            packed = sum(int(value) << 8 * index for index, value in enumerate(mean))
            if tensor.zero not in (0, packed):
                raise NotLowered(node, "two means for one frame")
            tensor.zero, frame = packed, replace(frame, zero=mean)
        found[node.output[0]] = frame
    return tensor, found


def _mean(reader: Reader, node: Any) -> Any:
    mean = np.broadcast_to(reader.constant(node, 1).reshape(-1), (3,)).astype(np.float64)
    if not np.array_equal(mean, np.clip(np.rint(mean), 0, 255)):
        raise NotLowered(node, "a mean of the pixels that is no whole number from 0 to 255")
    return mean
