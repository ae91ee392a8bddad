"""The ONNX forms that TensorRT builds from, checked in ONNX Runtime on the CPU. Needs onnx; no torch.

Strongly typed builders (TensorRT-RTX, TensorRT 11) take precision from the ONNX: FP16 stands in it, and INT8 has
float16 scales and FP16 between its Q/DQ pairs (opset 19). Weakly typed ones (8.5 to 10) get FP32, or INT8 with float32
scales (opset 17), and the names of the nodes that they must compute in FP32.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any, Collection, List, Optional, Tuple

from gradseg.base.errors import GradsegError
from gradseg.base.files import sha256_of
from gradseg.calibration.qdq.int8_from_arguments import int8_for, int8_lines, verification_source
from gradseg.commands import command
from gradseg.export.trt.half_ranges import Kept, kept_in_float, kept_text, magnitudes
from gradseg.graphs import verify
from gradseg.graphs.borders import as_written, finished_like
from gradseg.graphs.frames import default_source, open_frames
from gradseg.graphs.graph import Graph, is_quantised
from gradseg.graphs.load import Loaded, frames_text
from gradseg.graphs.passes.emulate_half import emulate_half
from gradseg.graphs.passes.float_labels import float_labels
from gradseg.graphs.passes.raise_opset import opset_of, raised
from gradseg.graphs.passes.to_half import to_half
from gradseg.graphs.sessions import scores_of
from gradseg.models import metadata

EMULATED = "the ONNX in ONNX Runtime on the CPU, not the plan"
OPSET = 17  # of what we export, and the newest that TensorRT 8.5's parser knows (onnx-tensorrt 8.5, operators.md)
FLOAT16_SCALES = 19  # the first opset whose Q and DQ take them
FRAMES = 16  # to find what overflows; a factor of two is left for the rest
WANTED = 0.995  # share of FP16's labels equal to FP32's below which it comes with a warning


@dataclass
class TrtOnnx:
    """What a plan is built from.

    model: onnx.ModelProto; every node has a name of its own. precision: fp32, fp16 or int8. lines: for the user.
    keep_fp32: nodes that a weakly typed builder must compute in FP32; empty for a strongly typed one, whose ONNX says
    it. ranges_sha256: of the ranges file that the INT8 scales are from.
    """

    model: Any
    precision: str
    lines: List[str] = field(default_factory=list)
    keep_fp32: Tuple[str, ...] = ()
    ranges_sha256: Optional[str] = None


def onnx_for_trt(loaded: Loaded, args: argparse.Namespace, precision: str, typed: bool) -> TrtOnnx:
    """The form of a network to build from, compared with FP32 on frames.

    Args:
        loaded: FP32; or in `precision` already, INT8 for TensorRT with float32 scales or FP16.
        args: what `int8_for` reads, and model and data.
        typed: the builder is strongly typed.

    Raises GradsegError for an operator that no TensorRT has, and for labels that are the same for every frame.
    """
    _check_operators(loaded.model, args.model)
    plain = _prepared(loaded.model)
    made = TrtOnnx(plain, precision)
    if not typed and opset_of(plain) > OPSET:
        made.lines.append(f"note: {args.model} is of opset {opset_of(plain)}; TensorRT 8.5 reads up to {OPSET}")
    partnered = any(entry.key == metadata.PARTNER for entry in plain.metadata_props)  # INT8 with FP16 between already
    if precision == "fp32" or loaded.precision == "fp16" or partnered:
        return made
    source, words = args.data or default_source(loaded.spec.input_hw), f"of {frames_text(args.data)}"
    if precision == "int8" and loaded.precision != "int8":
        quantised = int8_for(loaded, args, "trt")
        source, words = verification_source(args, quantised.calibrated_on, loaded.spec.input_hw)
        made.model, made.lines = _prepared(quantised.model), made.lines + quantised.lines
        made.ranges_sha256 = sha256_of(args.ranges) if getattr(args, "ranges", None) else None
    kept = _overflowing(made.model, loaded, args, typed)
    half = half_form(made.model, [each.node for each in kept]) if typed or precision == "fp16" else made.model
    if half is not plain:
        batches = verify.verification_batches(source, loaded.spec.input_hw)
        model = emulated(half)
        first, reference = (as_written(each, args.model).first for each in (model, plain))
        agreement, warnings = verify.compare(
            first, reference, batches, args.model, lambda batch: scores_of(model, batch, args.model)
        )
        made.lines = [*warnings, *made.lines, *_lines(loaded.precision, precision, agreement, words)]
    if kept:
        made.lines.append(f"FP16: {kept_text(kept)}")
    if typed:
        made.model = half
    else:
        made.keep_fp32 = tuple(each.node for each in kept)
    return made


def half_form(model: Any, keep: Collection[str] = ()) -> Any:
    """An FP32 or INT8 model (float32 scales) in FP16 but for the nodes named in `keep`; see `passes.to_half`."""
    quantised = is_quantised(model)
    ready = raised(model, FLOAT16_SCALES) if quantised else model
    graph = Graph(ready)
    to_half(graph, keep)
    return finished_like(
        graph,
        ready,
        {metadata.PRECISION: "int8" if quantised else "fp16", metadata.PARTNER: "fp16" if quantised else None},
    )


def emulated(model: Any) -> Any:
    """A model that rounds to float16 where `model` computes in it, for ONNX Runtime on the CPU; see `emulate_half`."""
    graph = Graph(model)
    emulate_half(graph)
    return finished_like(graph, model, {})


def _lines(given: str, precision: str, agreement: verify.Agreement, words: str) -> List[str]:
    """What is said of the labels of a model made from one in precision `given`."""
    if given == "int8":
        other = "the file's own, which has FP32 where this has FP16,"
        return [f"INT8: labels equal to {other} on {agreement} {words} ({EMULATED})"]
    if precision == "int8":
        return int8_lines(agreement, words, f" ({EMULATED})")
    lines = [f"FP16: labels equal to FP32's on {agreement} {words} ({EMULATED})"]
    if agreement.fraction < WANTED:
        lines.insert(
            0,
            f"warning: FP16 changes {100 * (1 - agreement.fraction):.1f} % of the labels; verify on frames of your own "
            "camera (--data), or keep FP32",
        )
    return lines


def _overflowing(model: Any, loaded: Loaded, args: argparse.Namespace, typed: bool) -> List[Kept]:
    """What must stay in FP32, by the model's values on the frames that it is calibrated or verified on."""
    source = getattr(args, "calib", None) or args.data or default_source(loaded.spec.input_hw)
    limit = min(FRAMES, getattr(args, "calib_frames", FRAMES))
    frames = open_frames(source, limit, getattr(args, "skip_bad", False))
    return kept_in_float(model, magnitudes(model, frames), typed)


def _prepared(model: Any) -> Any:
    """A model in which every node has a name of its own and labels end as floats: itself if that is so already."""
    names = [node.name for node in model.graph.node]
    graph = Graph(model)
    changed = float_labels(graph)
    if not changed and all(names) and len(set(names)) == len(names):
        return model
    return finished_like(graph, model, {})


def _check_operators(model: Any, where: str) -> None:
    node = next((node for node in model.graph.node if node.op_type == "MaxUnpool"), None)
    if node is not None:
        raise GradsegError(
            f"{where}: node {node.name} (MaxUnpool): TensorRT has no unpooling by indices. Replace it with bilinear "
            "resizing or a transposed convolution and fine-tune, or run it in ONNX Runtime: "
            f"{command('export/to_ort.py', where)}"
        )
