"""What a program of the native engine must pass before it is saved. Needs onnx and the native library; no torch."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any, List

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.calibration.qdq.int8_from_arguments import Int8, int8_lines, verification_source
from gradseg.calibration.qdq.native_form import reference_form
from gradseg.graphs import verify
from gradseg.graphs.load import Loaded
from gradseg.graphs.sessions import OnnxRunner, scores_of
from gradseg.runtime.engines.native import NativeEngine

FRAMES = 8
# Both round to 8 bits after every layer. Where a value lies at a half, the last bit of a float32 decides, and one step
# may change labels further on; a wrong program has hardly more labels right than chance
NEEDED = 0.9


def compared(path: Path, loaded: Loaded, made: Int8, args: argparse.Namespace) -> List[str]:
    """Lines for the user: the labels of a .gsn file against those of its Q/DQ model in ONNX Runtime and of FP32.

    GradsegError if it is not the same network or fails `verify.check_alive`; with exit code 3 if it cannot run here.
    """
    where = f"{args.model} for the native engine"
    source, words = verification_source(args, made.calibrated_on, loaded.spec.input_hw)
    batches = verify.verification_batches(source, loaded.spec.input_hw, FRAMES)
    data = reference_form(made.model).SerializeToString()
    reference = OnnxRunner(data, where, args.threads, integers=False)
    fp32 = OnnxRunner(loaded.model.SerializeToString(), args.model, args.threads)

    with contextlib.closing(NativeEngine(path, args.threads)) as engine:

        def labels(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return engine.infer(batch).copy()

        same, warnings = verify.compare(
            labels, reference.first, batches, where, lambda batch: scores_of(made.model, batch, where)
        )
        agreement = verify.agreement_of(labels, fp32.first, batches)
    if same.fraction < NEEDED:
        raise GradsegError(
            f"{where}: its labels are those of its Q/DQ model on only {same}; not written; please report the network"
        )
    return [
        *warnings,
        f"{engine.backend}: labels equal to its Q/DQ model's in ONNX Runtime on {same} {words}",
        *int8_lines(agreement, words),
    ]
