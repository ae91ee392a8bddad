"""What a plan is built from: a checkpoint or an ONNX file → ONNX bytes in the form that the builder wants.

An ONNX file in the deployment form is taken as it is where that is what is asked for, without the onnx package.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from gradseg.base.errors import GradsegError
from gradseg.base.packages import importable
from gradseg.commands import command
from gradseg.export.trt.verify import Reference
from gradseg.graphs import verify
from gradseg.graphs.frames import default_source
from gradseg.graphs.load import frames_text, refuse_checkpoint_options
from gradseg.models import metadata
from gradseg.models.spec import ModelSpec, parse_size


@dataclass
class Prepared:
    """The ONNX that the plan is built from.

    Args:
        frame_hw, batch: of the uint8 frame in and the labels out.
        reference: what the plan's labels are held against.
        keep_fp32: nodes that a weakly typed builder must compute in FP32.
        notes: lines for the user about how it came about.
        checked: for a file taken as it is, what was found about its labels.
    """

    data: bytes
    spec: ModelSpec
    precision: str
    frame_hw: Tuple[int, int]
    batch: int
    reference: Reference
    keep_fp32: Tuple[str, ...] = ()
    ranges_sha256: Optional[str] = None
    notes: List[str] = field(default_factory=list)
    checked: str = ""


def prepare(args: argparse.Namespace, wanted: Optional[str], typed: bool) -> Prepared:
    """The ONNX to build from.

    Args:
        args: of `to_trt.parse`.
        wanted: fp32, fp16 or int8; None: what the ONNX is in, fp32 for a checkpoint.
        typed: the builder is strongly typed, so that FP16 must stand in the ONNX.
    """
    if Path(args.model).suffix.lower() != ".onnx":
        _refuse_int8_options(args, wanted or "fp32")
        return _converted(args, wanted or "fp32", typed)
    values = metadata.read_metadata(args.model)
    precision = values.get(metadata.PRECISION, "fp32")
    wanted = wanted or precision
    refuse_checkpoint_options(args)
    _refuse_other_kinds(args, values, precision, wanted)
    _refuse_int8_options(args, wanted)
    as_it_is = values.get(metadata.FORMAT) == metadata.DEPLOYMENT and not _changes_borders(args, values)
    whole = not typed or values.get(metadata.PARTNER) == "fp16"  # an INT8 file that this builder takes as it stands
    if as_it_is and (wanted == "fp32" or precision == "fp16" or (precision == "int8" and whole)):
        return _as_it_is(args, values, wanted)
    if as_it_is and (precision == "int8" or (wanted == "fp16" and not typed)):
        if metadata.FRAME_SIZE in values or metadata.BATCH in values:
            return _as_it_is(args, values, wanted, "a file made with --frame-size or --batch is taken as it is")
        if not importable("onnx"):
            return _as_it_is(args, values, wanted, "no onnx package here")
    return _converted(args, wanted, typed)


def _refuse_other_kinds(args: argparse.Namespace, values: Dict[str, str], precision: str, wanted: str) -> None:
    if values.get(metadata.TARGET) == "cpu":
        if precision == "int8" and wanted == "int8":
            raise GradsegError(
                f"{args.model}: is INT8 for CPUs (uint8 activations with zero points), TensorRT takes symmetric int8; "
                "give its checkpoint or FP32 ONNX with --precision int8"
            )
        if precision != "int8":
            raise GradsegError(
                f"{args.model}: was made for ONNX Runtime; give the checkpoint or the file from export/to_onnx.py"
            )
    if precision != "fp32" and wanted != precision:
        raise GradsegError(
            f"{args.model}: is {precision.upper()} and cannot become {wanted}; give its checkpoint or FP32 ONNX"
        )


def _refuse_int8_options(args: argparse.Namespace, wanted: str) -> None:
    """Options that nothing would come of: a user who gives them wants INT8. FP16 looks for overflow on --calib."""
    if args.precision == "best" or wanted == "int8":
        return
    names = ("ranges", "max_drop") if wanted == "fp16" else ("ranges", "max_drop", "calib")
    for name in names:
        if getattr(args, name) is not None:
            raise GradsegError(
                f"--{name.replace('_', '-')} {getattr(args, name)}: is for INT8, and this builds {wanted}; add "
                "--precision int8, or leave it out"
            )


def _changes_borders(args: argparse.Namespace, values: Dict[str, str]) -> bool:
    """Whether --frame-size or --batch ask for others than the file has. GradsegError if it has others baked in."""
    if metadata.SPEC not in values:
        return bool(args.frame_size) or args.batch is not None
    spec = metadata.spec_from_metadata(values, args.model)
    batch, frame_hw = metadata.borders(values, spec)
    wanted = (args.batch or batch, parse_size(args.frame_size) if args.frame_size else frame_hw)
    if wanted == (batch, frame_hw):
        return False
    if (batch, frame_hw) != (1, tuple(spec.input_hw)):
        raise GradsegError(
            f"{args.model}: was made for frames of {frame_hw[0]}x{frame_hw[1]} in batches of {batch}; leave "
            "--frame-size and --batch out, or give the file without them, or the checkpoint"
        )
    return True


def _as_it_is(args: argparse.Namespace, values: Dict[str, str], precision: str, unchanged: str = "") -> Prepared:
    """unchanged: why what TensorRT would rather have was not made of it, for people; "" if it is just right."""
    spec = metadata.spec_from_metadata(values, args.model)
    batch, frame_hw = metadata.borders(values, spec)
    data = Path(args.model).read_bytes()
    notes = [f"{args.model}: taken as it is, {precision}"]
    if unchanged:
        lost = (
            "the floats beside INT8 stay FP32, which a strongly typed TensorRT runs slower than FP16; give the file or "
            "checkpoint that it was made from, where the onnx package is"
            if precision == "int8"
            else "no layer was looked at for overflow in FP16; the plan's labels show it"
        )
        notes.append(f"note: {unchanged}, so {lost}")
    warnings, checked = _check(args, data, frame_hw, batch)
    reference = Reference(data, "the same ONNX in ONNX Runtime", precision == "int8")
    return Prepared(data, spec, precision, frame_hw, batch, reference, notes=[*notes, *warnings], checked=checked)


def _check(args: argparse.Namespace, data: bytes, frame_hw: Tuple[int, int], batch: int) -> Tuple[List[str], str]:
    """For an ONNX with nothing to compare with: warnings, and what ONNX Runtime, where it is, shows of its labels."""
    source = args.data or default_source(frame_hw)
    warnings, checked = verify.check_as_it_is(data, frame_hw, source, args.model, batch)
    return warnings, f"{checked} ({frames_text(args.data)})" if checked.startswith("labels") else checked


def _converted(args: argparse.Namespace, wanted: str, typed: bool) -> Prepared:
    """Everything that needs the onnx package: checkpoints, calibration, FP16, other borders, the logits form."""
    if not importable("onnx"):
        raise GradsegError(
            f"{args.model}: this conversion needs the onnx package, which is not installed here: pip install onnx "
            f"onnxruntime; or convert where it is ({command('export/to_onnx.py', 'CKPT')}) and bring the .onnx file",
            exit_code=3,
        )
    from gradseg.export.trt.forms import onnx_for_trt
    from gradseg.graphs.borders import check_borders, with_borders
    from gradseg.graphs.load import load_any

    loaded = load_any(args)
    made = onnx_for_trt(loaded, args, wanted, typed)
    notes = list(loaded.warnings)
    if loaded.agreement is not None:
        notes.append(f"ONNX: labels equal to PyTorch's on {loaded.agreement} of {frames_text(args.data)}")
    notes.extend(made.lines)
    batch, spec = args.batch or 1, loaded.spec
    baked = parse_size(args.frame_size) if args.frame_size else None
    frame_hw = baked or spec.input_hw
    model, reference = made.model, loaded.model
    if baked or batch > 1:
        model, reference = (with_borders(each, spec, batch, baked) for each in (made.model, loaded.model))
        source = args.data or default_source(frame_hw)
        notes.extend(check_borders(loaded.model, reference, spec, source, args.model)[1])
    data, checked = model.SerializeToString(), ""
    if wanted == "fp32" and loaded.agreement is None:
        lines, checked = _check(args, data, frame_hw, batch)
        notes.extend(lines)
    quantised = loaded.precision == "int8"
    words = "the same ONNX in ONNX Runtime" if quantised else "its FP32 ONNX in ONNX Runtime"
    held_against = Reference(reference.SerializeToString(), words, quantised)
    return Prepared(
        data, spec, wanted, frame_hw, batch, held_against, made.keep_fp32, made.ranges_sha256, notes, checked
    )
