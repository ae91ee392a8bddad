"""Builds a TensorRT plan from a checkpoint or an ONNX file; writes the ONNX beside it.

    python export/to_trt.py ckpt.pth --precision int8 --calib camvid:DIR -o dg2.plan
    python export/to_trt.py dg2.onnx --compute-capability sm89

An ONNX file in the deployment form needs Python 3.8 and TensorRT alone. What cannot be built for want of TensorRT ends
with exit code 3, the ONNX kept.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from gradseg.calibration.sources import default_source
from gradseg.export import verify
from gradseg.export.inputs import (
    add_calibration_arguments,
    add_model_arguments,
    check_out,
    frames_text,
    refuse_checkpoint_options,
    write_out,
)
from gradseg.export.trt_build import Built, build_plan, check_targets, import_tensorrt, strongly_typed
from gradseg.models import metadata
from gradseg.models.errors import GradsegError, run_main
from gradseg.models.files import check_writable, sha256_of, write_json
from gradseg.models.spec import ModelSpec
from gradseg.runtime.conditions import conditions

PRECISIONS = ("fp32", "fp16", "int8")


@dataclass
class Prepared:
    """The ONNX that the plan is built from. notes: lines for the user about how it came about.

    checked: for a file taken as it is, what was found about its labels.
    """

    data: bytes
    spec: ModelSpec
    precision: str
    notes: List[str]
    checked: str = ""


def parse(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument("--precision", choices=PRECISIONS, help="default: what the ONNX is in, fp32 for a checkpoint")
    parser.add_argument(
        "--compute-capability",
        action="append",
        default=[],
        metavar="SM",
        help="GPU to build for: sm75, sm86, sm89…",
    )
    add_calibration_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse(argv)
    source = Path(args.model)
    out = Path(args.out) if args.out else source.with_suffix(".plan")
    check_out(args.model, out, (".plan", ".engine"))
    targets = [target.lower().replace("sm_", "sm") for target in args.compute_capability]
    library, missing = _library_or_reason(bool(targets))
    check_targets(library, targets)
    prepared = prepare(args, library is None or strongly_typed(*library))
    if not args.out and out.with_suffix(".onnx") == source and source.read_bytes() != prepared.data:
        out = source.with_suffix(f".{prepared.precision}.plan")  # the ONNX beside it is another one than the input
        check_out(args.model, out, (".plan", ".engine"))
    beside = out.with_suffix(".onnx")
    _check_beside(beside, source, prepared)
    for note in prepared.notes:
        print(note)
    try:
        if library is None:
            assert missing is not None
            raise missing
        built = build_plan(prepared.data, prepared.spec, prepared.precision, targets, str(beside), library)
    except GradsegError as error:
        if error.exit_code != 3:
            raise
        _write_onnx(beside, prepared)
        if prepared.checked:
            print(prepared.checked)
        raise GradsegError(f"{error} (the ONNX is kept: {beside})", exit_code=3) from error
    _write_onnx(beside, prepared)
    write_out(out, built.plan)
    write_json(f"{out}.json", sidecar(built, prepared, beside))
    size = out.stat().st_size / 1e6
    default = "Ampere and newer GPUs" if built.library == "tensorrt_rtx" else "this machine's GPU"
    where = ", ".join(built.compute_capability) or default
    print(
        f"wrote {out}: {size:.2f} MB, {prepared.precision}, {built.library} {built.version} for {where}, "
        f"built in {built.seconds:.1f} s; built, not run. Beside it {out.name}.json"
    )
    if prepared.checked:
        print(f"{prepared.checked}; plan built, not run")
    return 0


def _library_or_reason(cross: bool) -> Tuple[Optional[Tuple[str, Any]], Optional[GradsegError]]:
    try:
        return import_tensorrt(cross), None
    except GradsegError as error:
        return None, error


def _check_beside(beside: Path, source: Path, prepared: Prepared) -> None:
    if not beside.exists() or beside.resolve() != source.resolve():
        check_writable(beside)
    elif beside.read_bytes() != prepared.data:
        raise GradsegError(f"{beside}: building would overwrite its own input; name another plan with -o")


def _write_onnx(beside: Path, prepared: Prepared) -> None:
    if beside.exists() and beside.read_bytes() == prepared.data:
        return
    write_out(beside, prepared.data)
    print(f"wrote {beside}: {len(prepared.data) / 1e6:.2f} MB, {prepared.precision}")


def sidecar(built: Built, prepared: Prepared, beside: Path) -> Dict[str, Any]:
    """What stands in NAME.plan.json: what the runtime checks before it loads the plan, and where it came from."""
    return {
        "spec": prepared.spec.to_dict(),
        "onnx": {"file": beside.name, "sha256": sha256_of(beside)},
        "precision": prepared.precision,
        "library": built.library,
        "version": built.version,
        "compute_capability": list(built.compute_capability) or None,
        "builder_flags": list(built.flags),
        "build_seconds": round(built.seconds, 3),
        "status": "built, not run",
        "conditions": conditions(),
    }


def prepare(args: argparse.Namespace, typed: bool) -> Prepared:
    """The ONNX to build from. `typed`: the builder is strongly typed, so that FP16 must stand in the ONNX."""
    if Path(args.model).suffix.lower() == ".onnx":
        values = metadata.read_metadata(args.model)
        precision = values.get(metadata.PRECISION, "fp32")
        wanted = args.precision or precision
        refuse_checkpoint_options(args)
        if precision != "int8" and values.get(metadata.TARGET) == "cpu":
            raise GradsegError(
                f"{args.model}: was made for ONNX Runtime; give the checkpoint or the file from export/to_onnx.py"
            )
        if precision == "int8":
            return _int8_as_is(args, values, wanted)
        if values.get(metadata.FORMAT) == metadata.DEPLOYMENT and (
            wanted == precision or (wanted == "fp16" and not typed)
        ):
            spec = metadata.spec_from_metadata(values, args.model)
            return _as_it_is(args, spec, wanted)
    else:
        wanted = args.precision or "fp32"
    return _converted(args, wanted, typed)


def _int8_as_is(args: argparse.Namespace, values: Dict[str, str], wanted: str) -> Prepared:
    if wanted != "int8":
        raise GradsegError(f"{args.model}: is INT8 and cannot become {wanted}; give its checkpoint or FP32 ONNX")
    if values.get(metadata.TARGET) == "cpu":
        raise GradsegError(
            f"{args.model}: is INT8 for CPUs (uint8 activations with zero points), TensorRT takes symmetric int8; "
            "give its checkpoint or FP32 ONNX with --precision int8"
        )
    spec = metadata.spec_from_metadata(values, args.model)
    return _as_it_is(args, spec, "int8")


def _as_it_is(args: argparse.Namespace, spec: ModelSpec, precision: str) -> Prepared:
    data = Path(args.model).read_bytes()
    warnings, checked = _check(args, data, spec)
    return Prepared(data, spec, precision, [f"{args.model}: taken as it is, {precision}", *warnings], checked)


def _check(args: argparse.Namespace, data: bytes, spec: ModelSpec) -> Tuple[List[str], str]:
    """For an ONNX with nothing to compare with: warnings, and what ONNX Runtime, where it is, shows of its labels."""
    source = args.data or default_source(spec.input_hw)
    warnings, checked = verify.check_as_it_is(data, spec.input_hw, source, args.model)
    return warnings, f"{checked} ({frames_text(args.data)})" if checked.startswith("labels") else checked


def _converted(args: argparse.Namespace, wanted: str, typed: bool) -> Prepared:
    """Everything that needs the onnx package: checkpoints, calibration, FP16 weights, the logits form."""
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise GradsegError(
            f"{args.model}: this conversion needs the onnx package, which is not installed here: pip install onnx "
            "onnxruntime; or convert where it is (export/to_onnx.py, export/to_trt.py) and bring the .onnx file",
            exit_code=3,
        ) from error
    from gradseg.export.inputs import load_any
    from gradseg.export.trt_onnx import half_model, int8_trt_model

    loaded = load_any(args)
    notes = list(loaded.warnings)
    if loaded.agreement is not None:
        notes.append(f"ONNX: labels equal to PyTorch's on {loaded.agreement} of {frames_text(args.data)}")
    model, checked = loaded.model, ""
    if wanted == "int8":
        model, lines = int8_trt_model(loaded, args)
        notes.extend(lines)
    elif wanted == "fp16" and typed:
        model, lines = half_model(loaded, args)
        notes.extend(lines)
    elif loaded.agreement is None:
        lines, checked = _check(args, model.SerializeToString(), loaded.spec)
        notes.extend(lines)
    return Prepared(model.SerializeToString(), loaded.spec, wanted, notes, checked)


if __name__ == "__main__":
    run_main(main)
