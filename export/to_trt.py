"""Builds a TensorRT plan from a checkpoint or an ONNX file, runs it where there is a GPU, and writes it.

    python export/to_trt.py ckpt.pth --precision int8 --calib camvid:DIR -o dg2.plan
    python export/to_trt.py dg2.onnx --precision best --data camvid:DIR
    python export/to_trt.py dg2.onnx --compute-capability sm89
    python export/to_trt.py --rebuild dg2.plan

Beside the plan stand the ONNX that it was built from and NAME.plan.json, which the runtime checks before it loads the
plan. An ONNX file in the deployment form needs Python 3.8 and TensorRT alone. What cannot be built for want of TensorRT
or a GPU ends with exit code 3, the ONNX kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Optional, Sequence

from gradseg.base.errors import GradsegError, run_main
from gradseg.base.options import add_calibration_arguments, add_common, add_model_arguments, command_parser
from gradseg.export.trt.best import make_best
from gradseg.export.trt.build import import_tensorrt, strongly_typed
from gradseg.export.trt.make import Job, make, onnx_beside, write_made, write_onnx
from gradseg.export.trt.manifest import rebuild_arguments, rebuild_options
from gradseg.export.trt.options import PRECISIONS, add_build_arguments, check_options, options_from
from gradseg.export.trt.prepare import prepare
from gradseg.graphs.load import check_out
from gradseg.models.spec import parse_size
from gradseg.runtime.cuda.gpu import find_gpu

SUFFIXES = (".plan", ".engine")
MAX_BATCH = 64


def parser_of() -> argparse.ArgumentParser:
    parser = command_parser("export/to_trt.py", __doc__)
    add_model_arguments(parser, optional=True)
    add = parser.add_argument
    add(
        "--precision",
        choices=(*PRECISIONS, "best"),
        help="default: what the ONNX is in, fp32 for a checkpoint; best: the fastest here that keeps the labels",
    )
    add_common(parser, "--frame-size")
    add("--batch", type=int, metavar="N", help="frames of one inference (default 1, which run_video.py needs)")
    add("--rebuild", metavar="PLAN", help="build this plan again, for this machine, from the ONNX beside it")
    add_build_arguments(parser)
    add_calibration_arguments(parser)
    return parser


def parse(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    """The command line; its `manifest` is that of a plan that is to be built again, else None."""
    parser = parser_of()
    args = parser.parse_args(argv)
    args.manifest = None
    if args.rebuild is None:
        if args.model is None:
            parser.error("give a checkpoint (.pth) or an ONNX model (.onnx), or --rebuild PLAN")
        return args
    fixed = ("model", "out", "precision", "frame_size", "batch", "calib", "ranges", "max_drop", "arch", "size", "spec")
    for name in fixed:
        if getattr(args, name, None) is not None:
            raise GradsegError(
                f"--rebuild {args.rebuild}: builds from the ONNX beside the plan as it is; leave "
                f"{name if name == 'model' else '--' + name.replace('_', '-')} out, or build from the checkpoint"
            )
    if Path(args.rebuild).suffix.lower() not in SUFFIXES:
        raise GradsegError(f"--rebuild {args.rebuild}: expected a plan ({' or '.join(SUFFIXES)})")
    again, args.manifest = rebuild_arguments(Path(args.rebuild))
    for name, value in vars(parser.parse_args(again)).items():
        if getattr(args, name) == parser.get_default(name):
            setattr(args, name, value)
    return args


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse(argv)
    _check_values(args)
    source = Path(args.model)
    if source.is_dir() or not source.name:
        raise GradsegError(f"{args.model}: is a directory; give a checkpoint (.pth) or an ONNX model (.onnx)")
    if source.suffix.lower() in SUFFIXES:
        raise GradsegError(f"{args.model}: is a plan already; to build it again: --rebuild {args.model}")
    out = Path(args.out) if args.out else source.with_suffix(".plan")
    check_out(args.model, out, SUFFIXES)
    given = options_from(args, args.precision if args.precision in PRECISIONS else "fp16")
    library, missing = None, None
    try:
        library = import_tensorrt(bool(given.targets))
    except GradsegError as error:
        missing = error
    gpu = find_gpu()
    if args.manifest is not None:
        given = rebuild_options(args.manifest, out, given, library, gpu)
    try:
        check_options(given, library)
    except GradsegError as error:
        if error.exit_code != 3:
            raise
        missing = error  # this TensorRT cannot do it: the ONNX is made all the same, for one that can

    def prepared_job(precision: Optional[str]) -> Job:
        prepared = prepare(args, precision, library is None or strongly_typed(*library))
        plan = out
        if not args.out and out.with_suffix(".onnx") == source and source.read_bytes() != prepared.data:
            plan = source.with_suffix(f".{prepared.precision}.plan")
            check_out(args.model, plan, SUFFIXES)
        keep = prepared.keep_fp32 or given.keep_fp32
        options = dataclasses.replace(given, precision=prepared.precision, keep_fp32=keep)
        if missing is None:
            check_options(options, library)
        given_onnx = source if args.manifest is None else None  # a rebuild's own ONNX may take another form
        beside = onnx_beside(plan, prepared, given_onnx)
        for note in prepared.notes:
            print(note)
        return Job(prepared, options, library, plan, beside, args.data, gpu)

    if args.precision == "best":
        if library is None or gpu is None:
            raise GradsegError(
                "--precision best measures FP32, FP16 and INT8 on this machine's GPU, and "
                + ("it has none" if gpu is None else f"no plan can be built: {missing}")
                + "; name a --precision, or run this on the device",
                exit_code=3,
            )
        make_best(args, prepared_job)
    else:
        _build(prepared_job(args.precision), missing)
    return 0


def _build(job: Job, missing: Optional[GradsegError]) -> None:
    """Builds, verifies, writes. If TensorRT or the GPU is missing (exit code 3), the ONNX is kept all the same."""
    try:
        if missing is not None:
            raise missing
        made = make(job)
    except GradsegError as error:
        if error.exit_code != 3:
            raise
        line = write_onnx(job.beside, job.prepared)
        print("\n".join(text for text in (line, job.prepared.checked) if text))
        raise GradsegError(f"{error} (the ONNX is kept: {job.beside})", exit_code=3) from error
    for line in made.lines:
        print(line)
    print(write_made(job, made))
    if job.prepared.checked:
        print(job.prepared.checked + ("" if made.ran else "; plan built, not run"))


def _check_values(args: argparse.Namespace) -> None:
    if args.batch is not None and not 1 <= args.batch <= MAX_BATCH:
        raise GradsegError(f"--batch {args.batch}: expected 1 to {MAX_BATCH}")
    if args.frame_size:
        parse_size(args.frame_size)
    if args.max_drop is not None and not (math.isfinite(args.max_drop) and args.max_drop >= 0):
        raise GradsegError(f"--max-drop {args.max_drop}: expected points of mIoU, 0 or more")


if __name__ == "__main__":
    run_main(main)
