"""The ONNX forms for ONNX Runtime on CPUs, FP32 and INT8, checked before they are written. Needs onnx; no torch."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any, Dict, List

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.calibration.qdq.int8_from_arguments import int8_for, int8_lines, reduces_range, verification_source
from gradseg.graphs import verify
from gradseg.graphs.forms import float_form
from gradseg.graphs.frames import default_source
from gradseg.graphs.graph import is_quantised
from gradseg.graphs.load import Loaded, frames_text
from gradseg.graphs.sessions import OnnxRunner, scores_of


@dataclass
class OrtModel:
    """A verified model. lines: for the user. runners: FP32 and INT8 open, with a frame to time them on, for INT8."""

    data: bytes
    lines: List[str]
    runners: Dict[str, OnnxRunner]
    batch: np.ndarray[Any, Any]


def fp32_model(loaded: Loaded, args: argparse.Namespace) -> OrtModel:
    """FP32 in the form that ONNX Runtime is fastest at; GradsegError if its labels differ from the plain ONNX's."""
    if is_quantised(loaded.model):
        raise GradsegError(f"{args.model}: is INT8 already and cannot become FP32; give its checkpoint")
    data = float_form(loaded.model).SerializeToString()
    batches = verify.verification_batches(args.data or default_source(loaded.spec.input_hw), loaded.spec.input_hw)
    before = OnnxRunner(loaded.model.SerializeToString(), args.model, args.threads)
    runner = OnnxRunner(data, args.model, args.threads)
    agreement, warnings = verify.compare(
        runner.first, before.first, batches, args.model, lambda batch: scores_of(loaded.model, batch)
    )
    if agreement.fraction < verify.NEEDED:
        raise GradsegError(
            f"{args.model}: the form for ONNX Runtime agrees with the ONNX on only {agreement}; not written"
        )
    lines = [*warnings, f"labels equal to the plain ONNX's on {agreement} of {frames_text(args.data)}"]
    if loaded.agreement is not None:
        lines.insert(0, f"labels equal to PyTorch's on {loaded.agreement} of {frames_text(args.data)}")
    return OrtModel(data, lines, {}, batches[0])


def int8_for_ort(loaded: Loaded, args: argparse.Namespace) -> OrtModel:
    """Quantises for `args.target` and compares with FP32. Timed is only what is made for this kind of device."""
    fp32 = float_form(loaded.model).SerializeToString()
    made = int8_for(loaded, args, args.target)
    data = made.model.SerializeToString()
    where = f"{args.model} in INT8"
    source, words = verification_source(args, made.calibrated_on, loaded.spec.input_hw)
    batches = verify.verification_batches(source, loaded.spec.input_hw, 8)
    runners = {"FP32": OnnxRunner(fp32, args.model, args.threads), "INT8": OnnxRunner(data, where, args.threads)}
    agreement, warnings = verify.compare(
        runners["INT8"].first, runners["FP32"].first, batches, where, lambda batch: scores_of(made.model, batch)
    )
    emulated = "" if args.target == "cpu" else f" (target {args.target}, emulated in ONNX Runtime on the CPU)"
    lines = [*warnings, *made.lines, *int8_lines(agreement, words, emulated)]
    if args.target == "cpu" and reduces_range(args.reduce_range):
        why = "asked for" if args.reduce_range == "on" else "this CPU has no VNNI, its INT8 kernels saturate otherwise"
        lines.append(f"reduced range: INT8 weights are within ±63 ({why})")
    return OrtModel(data, lines, runners if args.target == "cpu" else {}, batches[0])
