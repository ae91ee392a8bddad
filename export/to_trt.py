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

from gradseg.calibration import metadata
from gradseg.export.trt_build import Built, build_plan, import_tensorrt, strongly_typed
from gradseg.models.errors import GradsegError, run_main
from gradseg.models.files import atomic_path, sha256_of, write_json
from gradseg.models.spec import ModelSpec
from gradseg.runtime.conditions import conditions

PRECISIONS = ("fp32", "fp16", "int8")


@dataclass
class Prepared:
    """The ONNX that the plan is built from. notes: lines for the user about how it came about."""

    data: bytes
    spec: ModelSpec
    precision: str
    notes: List[str]


def parse(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", help="checkpoint (.pth) or ONNX model (.onnx)")
    add("-o", "--out", help="plan to write (default: beside the input, .plan); the ONNX has the same name")
    add("--precision", choices=PRECISIONS, help="default: what the ONNX is in, fp32 for a checkpoint")
    add("--compute-capability", action="append", default=[], metavar="SM", help="GPU to build for: sm75, sm86, sm89…")
    add("--calib", help="frames to calibrate INT8 on: camvid:DIR, folder:DIR, an image folder, a video")
    add("--calib-frames", type=int, default=32, help="at most this many, evenly spread (default 32)")
    add("--calib-method", default="mse", choices=("minmax", "percentile", "mse"), help="how ranges are chosen")
    add("--power-of-two", action="store_true", help="activation scales as powers of two")
    add("--arch", help="architecture of a bare state dict, such as erfnet for public ERFNet checkpoints")
    add("--size", help="input size HEIGHTxWIDTH in place of the checkpoint's")
    add("--spec", help="ModelSpec as a JSON file, for an ONNX model without GradSeg metadata")
    add("--data", help="frames to verify on (default scenes:)")
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse(argv)
    source = Path(args.model)
    out = Path(args.out) if args.out else source.with_suffix(".plan")
    if out.suffix.lower() not in (".plan", ".engine"):
        raise GradsegError(f"{out}: name the plan NAME.plan or NAME.engine")
    targets = [target.lower().replace("sm_", "sm") for target in args.compute_capability]
    library, missing = _library_or_reason(bool(targets))
    typed = library is None or strongly_typed(*library)
    beside = out.with_suffix(".onnx")
    with atomic_path(out) as temporary:
        prepared = prepare(args, typed)
        _write_onnx(beside, source, prepared)
        for note in prepared.notes:
            print(note)
        if library is None:
            assert missing is not None
            raise GradsegError(f"{missing} (the ONNX is kept: {beside})", exit_code=3)
        built = build_plan(prepared.data, prepared.spec, prepared.precision, targets, str(beside), library)
        temporary.write_bytes(built.plan)
        write_json(f"{out}.json", sidecar(built, prepared, beside))
    size = out.stat().st_size / 1e6
    default = "Ampere and newer GPUs" if built.library == "tensorrt_rtx" else "this machine's GPU"
    where = ", ".join(built.compute_capability) or default
    print(
        f"wrote {out}: {size:.2f} MB, {prepared.precision}, {built.library} {built.version} for {where}, "
        f"built in {built.seconds:.1f} s; built, not run. Beside it {out.name}.json"
    )
    return 0


def _library_or_reason(cross: bool) -> Tuple[Optional[Tuple[str, Any]], Optional[GradsegError]]:
    try:
        return import_tensorrt(cross), None
    except GradsegError as error:
        return None, error


def _write_onnx(beside: Path, source: Path, prepared: Prepared) -> None:
    if beside.exists() and beside.read_bytes() == prepared.data:
        return
    if beside.exists() and beside.resolve() == source.resolve():
        raise GradsegError(f"{beside}: building would overwrite its own input; name another plan with -o")
    with atomic_path(beside) as temporary:
        temporary.write_bytes(prepared.data)
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
        if args.size or args.arch:
            raise GradsegError(
                f"{args.model}: --size and --arch are for checkpoints; export it again from its checkpoint"
            )
        if precision == "int8":
            return _int8_as_is(args, values, wanted)
        if values.get(metadata.FORMAT) == metadata.DEPLOYMENT and (
            wanted == precision or (wanted == "fp16" and not typed)
        ):
            spec = metadata.spec_from_metadata(values, args.model)
            return Prepared(Path(args.model).read_bytes(), spec, wanted, [f"{args.model}: as it is"])
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
    return Prepared(Path(args.model).read_bytes(), spec, "int8", [f"{args.model}: INT8 as it is"])


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
        notes.append(f"ONNX: labels equal to PyTorch's on {loaded.agreement} of {args.data or 'scenes:'}")
    model = loaded.model
    if wanted == "int8":
        model, lines = int8_trt_model(loaded, args)
        notes.extend(lines)
    elif wanted == "fp16" and typed:
        model, lines = half_model(loaded, args)
        notes.extend(lines)
    return Prepared(model.SerializeToString(), loaded.spec, wanted, notes)


if __name__ == "__main__":
    run_main(main)
