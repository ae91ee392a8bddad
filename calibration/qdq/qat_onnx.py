"""INT8 from a checkpoint that was fine-tuned for it: the scales that training used, no calibration. Needs onnx."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence, Set, Tuple

import numpy as np
import onnx

from gradseg.base.errors import GradsegError
from gradseg.calibration.qdq.plan import COMPUTE, plan_for
from gradseg.calibration.qdq.quantise import WeightSettings, mark_int8, quantised
from gradseg.calibration.qdq.targets import Quantisation, target_named
from gradseg.graphs.graph import Graph

WHERE = "quantisation in the checkpoint"


def int8_from_qat(model: onnx.ModelProto, quantisation: Mapping[str, Any]) -> onnx.ModelProto:
    """The deployment form of a fine-tuned checkpoint (FP32, `frame` → `labels`) → its INT8 form, as training saw it.

    Passes that keep the names of convolutions and tensors (`dense_groups`, `rows_head`) may have been applied.
    `quantisation`: what `train/finetune.py` stored under that name in the checkpoint's `info`. Raises GradsegError if
    it is damaged, or if its tensors or layers are not the model's: then another version of the exporter made them.
    """
    target, activations, scales = _read(quantisation)
    plan = plan_for(model, target)
    graph = Graph(model)
    layers = [node.name for node in graph.nodes if node.name in plan.nodes and node.op_type in COMPUTE]
    _check_names("tensor", plan.observed(), set(activations))
    _check_names("layer", layers, set(scales))
    settings = WeightSettings(reduce_range=bool(quantisation.get("reduce_range", False)), scales=scales)
    result = quantised(model, plan, activations, target, settings)
    powers = bool(quantisation.get("power_of_two", False))
    mark_int8(result, target, {"method": "qat", "target": target, "power_of_two": powers})
    return result


def _read(stored: Mapping[str, Any]) -> Tuple[str, Dict[str, Quantisation], Dict[str, np.ndarray[Any, Any]]]:
    """(target, activations, weight scales) of a stored quantisation; GradsegError if it holds anything else."""
    try:
        target = target_named(str(stored["target"])).name
        activations = {
            str(name): Quantisation(float(scale), int(zero), bool(signed))
            for name, (scale, zero, signed) in stored["activations"].items()
        }
        scales = {str(name): np.asarray(values, np.float32).reshape(-1) for name, values in stored["weights"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise GradsegError(f"{WHERE}: damaged ({type(error).__name__}: {error}); fine-tune again") from error
    steps = [np.array([found.scale for found in activations.values()]), *scales.values()]
    if not all(np.isfinite(values).all() and (values > 0).all() for values in steps):
        raise GradsegError(f"{WHERE}: a scale is not a positive number; fine-tune again")
    return target, activations, scales


def _check_names(what: str, needed: Sequence[str], stored: Set[str]) -> None:
    missing: List[str] = [name for name in needed if name not in stored]
    extra = sorted(stored - set(needed))
    if missing or extra:
        first = f"no scale for {what} {missing[0]}" if missing else f"{what} {extra[0]} is not in the model"
        raise GradsegError(
            f"{WHERE}: {first} ({len(missing)} missing, {len(extra)} unknown); it was made with another version of the "
            "exporter; export with that version, or fine-tune again"
        )
