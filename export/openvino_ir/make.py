"""A loaded model → its form for OpenVINO in a precision, run by OpenVINO and compared before it is kept. Needs onnx."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, List

from gradseg.base.errors import GradsegError
from gradseg.calibration.qdq.int8_from_arguments import ENOUGH, int8_for, verification_source
from gradseg.calibration.qdq.targets import OPENVINO
from gradseg.export.openvino_ir.files import write_ir
from gradseg.graphs import verify
from gradseg.graphs.frames import default_source
from gradseg.graphs.graph import Graph, is_quantised
from gradseg.graphs.load import Loaded, frames_text
from gradseg.graphs.passes.columns_head import columns_head
from gradseg.graphs.passes.unshield_floats import unshield_floats
from gradseg.graphs.sessions import OnnxRunner, scores_of
from gradseg.graphs.ties import Decided
from gradseg.models import metadata
from gradseg.runtime.engines.ov import OvEngine

HINT_OF = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}  # of the floats that INT8 leaves
NEEDED = 0.99999  # share of labels equal to the plain ONNX's that FP32 must reach, near-ties left out


@dataclass
class OpenvinoModel:
    """model: onnx.ModelProto in OpenVINO's form, verified. hint: as `write_ir` takes it. lines: for the user."""

    model: Any
    hint: str
    lines: List[str]


def openvino_model(loaded: Loaded, args: argparse.Namespace) -> OpenvinoModel:
    """The model in `args.precision`; GradsegError if FP32's labels are not the plain ONNX's, or a network is dead."""
    quantised = is_quantised(loaded.model)
    if quantised and args.precision != "int8":
        raise GradsegError(f"{args.model}: is INT8 already and cannot become {args.precision}; give its checkpoint")
    given = [name for name in ("calib", "ranges", "max_drop") if getattr(args, name) is not None]
    if quantised and given:
        raise GradsegError(
            f"{args.model}: is INT8 already, and --{given[0].replace('_', '-')} does not go with that; leave it out, "
            "or give its FP32 form or its checkpoint"
        )
    lines: List[str] = []
    source, words = args.data or default_source(loaded.spec.input_hw), f"of {frames_text(args.data)}"
    if loaded.agreement is not None:
        lines.append(f"labels equal to PyTorch's on {loaded.agreement} of {frames_text(args.data)}")
    model = loaded.model
    if args.precision == "int8" and not quantised:
        stored = loaded.info.get("quantisation") or {}
        # fine-tuned for ONNX Runtime: the same scales, which OpenVINO runs too
        made = int8_for(loaded, args, "cpu" if stored.get("target") == "cpu" else OPENVINO.name)
        model = made.model
        lines += made.lines
        source, words = verification_source(args, made.calibrated_on, loaded.spec.input_hw)
    found = OpenvinoModel(openvino_form(model), HINT_OF[args.precision], lines)
    _verify(found, loaded, args, source, words)
    known = metadata.calibration_of({entry.key: entry.value for entry in model.metadata_props}) or {}
    if args.precision == "int8" and not quantised and known.get("reduce_range"):
        lines.append("reduced range: INT8 weights are within ±63 (asked for, or this CPU has no VNNI)")
    return found


def _verify(found: OpenvinoModel, loaded: Loaded, args: argparse.Namespace, source: str, words: str) -> None:
    """Runs what was made in OpenVINO, against the model that it was made of in ONNX Runtime; adds lines."""
    where, plain = f"{args.model} in OpenVINO", loaded.model.SerializeToString()
    batches = verify.verification_batches(source, loaded.spec.input_hw)
    reference = OnnxRunner(plain, args.model, args.threads)
    with tempfile.TemporaryDirectory(prefix="gradseg-ir-") as folder:
        path = Path(folder) / f"{Path(args.model).stem}.xml"
        write_ir(found.model, path, found.hint)
        with contextlib.closing(OvEngine(path, args.threads)) as engine:
            agreement, warnings = verify.compare(
                engine.infer, reference.first, batches, where, lambda batch: scores_of(loaded.model, batch)
            )
            if args.precision == "fp32" and agreement.fraction < NEEDED:
                decided = Decided(plain, args.model)
                agreement = verify.agreement_of(engine.infer, reference.first, batches, decided)
    if args.precision == "fp32" and agreement.fraction < NEEDED:
        raise GradsegError(f"{where}: labels agree with the ONNX on only {agreement}; not written")
    against = "the plain ONNX's" if args.precision == "fp32" else "the ONNX's in ONNX Runtime"
    found.lines += [*warnings, f"{args.precision}: labels equal to {against} on {agreement} {words}"]
    if agreement.fraction < ENOUGH:
        found.lines.append(
            f"warning: {args.precision} changes {100 * (1 - agreement.fraction):.1f} % of the labels; measure it with "
            "benchmarks/accuracy.py, or keep fp32"
        )
    if args.precision in ("bf16", "fp16") and engine.precision != args.precision:
        found.lines.append(f"note: on this CPU OpenVINO computes it in {engine.precision}")


def openvino_form(model: Any) -> Any:
    """onnx.ModelProto (deployment form, FP32 or with Q/DQ) → a new one with the same labels; metadata is kept."""
    graph = Graph(model)
    unshield_floats(graph)
    columns_head(graph)
    return graph.to_model()
