"""A checkpoint's export in ONNX Runtime, as the export scripts write it. Needs onnx."""

from __future__ import annotations

from typing import Optional

from gradseg.calibration.qdq.int8_from_arguments import int8_from_stored
from gradseg.graphs.onnx_export import onnx_from_checkpoint
from gradseg.graphs.sessions import OnnxRunner
from gradseg.models.checkpoint import Checkpoint


def export_runner(ckpt: Checkpoint, threads: Optional[int] = None) -> OnnxRunner:
    """The checkpoint's export in ONNX Runtime, as `to_ort.py` writes it: INT8 if it holds scales, else FP32.

    Made for other devices than this CPU, it is run as its Q/DQ pairs are written.
    """
    model, integers = onnx_from_checkpoint(ckpt), True
    if "quantisation" in ckpt.info:
        stored = ckpt.info["quantisation"]
        model, integers = int8_from_stored(model, stored), stored["target"] == "cpu"
    return OnnxRunner(model.SerializeToString(), "the export", threads, integers=integers)
