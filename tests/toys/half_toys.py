"""Small deployment-form networks for the tests of FP16, and what they share."""

from __future__ import annotations

import argparse
from typing import Any, Dict, List, Tuple

import numpy as np
import onnx
from export_toys import HW, SCENES, checkpoint, frames
from onnx import TensorProto, helper, numpy_helper

from gradseg.export.trt.forms import emulated
from gradseg.export.trt.half_ranges import kept_in_float, magnitudes
from gradseg.graphs.load import Loaded
from gradseg.graphs.sessions import OnnxRunner


def args_for(**changes: Any) -> argparse.Namespace:
    given = {
        "model": "net.onnx", "data": SCENES, "calib": SCENES, "calib_frames": 2, "calib_method": "mse", "ranges": None,
        "skip_bad": False, "power_of_two": False, "no_equalise": False, "no_bias_correction": False, "max_drop": None,
    }  # fmt: skip
    return argparse.Namespace(**{**given, **changes})


def loaded(model: onnx.ModelProto) -> Loaded:
    return Loaded(model, checkpoint().spec)


def weights_of(model: onnx.ModelProto) -> Dict[str, np.ndarray[Any, Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def labels(model: onnx.ModelProto, frame: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """With everything rounded to float16 that `model` has in it."""
    return OnnxRunner(emulated(model).SerializeToString(), threads=1, integers=False).first(frame)


def shown() -> List[np.ndarray[Any, Any]]:
    return [frame[0] for frame in frames()]


def kept_of(model: onnx.ModelProto, typed: bool = True) -> Dict[str, str]:
    return {kept.node: kept.why for kept in kept_in_float(model, magnitudes(model, shown(), 1), typed)}


def network(nodes: List[Tuple[Any, ...]], weights: Dict[str, Any], classes: int = 4) -> onnx.ModelProto:
    """frame → pixels (1, 3, h, w) → `nodes`, the last of which makes `logits` (1, classes, h, w) → labels."""
    made = [
        helper.make_node("Cast", ["frame"], ["cast"], name="first", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["cast"], ["pixels"], name="planes", perm=[0, 3, 1, 2]),
        *(helper.make_node(kind, inputs, [out], name=out, **more) for kind, inputs, out, more in nodes),
        helper.make_node("ArgMax", ["logits"], ["best"], name="best", axis=1, keepdims=0),
        helper.make_node("Cast", ["best"], ["labels"], name="last", to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        made,
        "net",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, *HW, 3])],
        [helper.make_tensor_value_info("labels", TensorProto.UINT8, [1, *HW])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    return model


def overflowing(gain: float = 1e4) -> onnx.ModelProto:
    """Activations of about 255 * `gain` in the middle, then back to the size of pixels."""
    rng = np.random.default_rng(0)
    wide, back = rng.uniform(0.2, 1.0, (6, 3, 1, 1)) * gain, rng.normal(size=(4, 6, 1, 1)) / gain
    weights = {"w1": wide, "w2": back, "b2": np.zeros(4), "w3": rng.normal(size=(4, 4, 1, 1))}
    nodes: List[Tuple[Any, ...]] = [
        ("Conv", ["pixels", "w1"], "up", {}),
        ("Relu", ["up"], "up_relu", {}),
        ("MaxPool", ["up_relu"], "pooled", {"kernel_shape": [3, 3], "pads": [1] * 4}),
        ("Conv", ["pooled", "w2", "b2"], "down", {}),
        ("Relu", ["down"], "down_relu", {}),
        ("Conv", ["down_relu", "w3"], "logits", {}),
    ]
    return network(nodes, {name: np.float32(value) for name, value in weights.items()})
