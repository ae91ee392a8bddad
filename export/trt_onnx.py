"""The ONNX forms that TensorRT builds from, checked in ONNX Runtime on the CPU. Needs onnx; no torch."""

from __future__ import annotations

import argparse
from typing import Any, List, Tuple

from gradseg.calibration.graph import Graph
from gradseg.calibration.sessions import OnnxRunner, scores_of
from gradseg.calibration.sources import default_source
from gradseg.export import verify
from gradseg.export.inputs import Loaded, frames_text
from gradseg.export.int8 import int8_for, int8_lines, verification_source
from gradseg.export.passes.to_half import to_half
from gradseg.models import metadata

EMULATED = "the ONNX in ONNX Runtime on the CPU, not the plan"


def half_model(loaded: Loaded, args: argparse.Namespace) -> Tuple[Any, List[str]]:
    """The model with FP16 weights and activations, and what to tell the user."""
    graph = Graph(loaded.model)
    to_half(graph)
    model = graph.to_model()
    metadata.set_metadata(model, {metadata.PRECISION: "fp16"})
    source = args.data or default_source(loaded.spec.input_hw)
    agreement, warnings = _compared(loaded, model, source, args.model)
    return model, [*warnings, f"FP16: labels equal to FP32's on {agreement} of {frames_text(args.data)} ({EMULATED})"]


def int8_trt_model(loaded: Loaded, args: argparse.Namespace) -> Tuple[Any, List[str]]:
    """The model with Q/DQ for TensorRT, and what to tell the user."""
    made = int8_for(loaded, args, "trt")
    source, words = verification_source(args, made.calibrated_on, loaded.spec.input_hw)
    agreement, warnings = _compared(loaded, made.model, source, args.model)
    return made.model, [*warnings, *made.lines, *int8_lines(agreement, words, f" ({EMULATED})")]


def _compared(loaded: Loaded, model: Any, source: str, where: str) -> Tuple[verify.Agreement, List[str]]:
    """Label agreement of two models on frames, and warnings; GradsegError if the new one is not repeatable or dead."""
    batches = verify.verification_batches(source, loaded.spec.input_hw)
    reference = OnnxRunner(loaded.model.SerializeToString(), where)
    changed = OnnxRunner(model.SerializeToString(), where)
    return verify.compare(changed.first, reference.first, batches, where, lambda batch: scores_of(model, batch))
