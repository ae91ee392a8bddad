"""Makes an ONNX Runtime model from a checkpoint or an ONNX file: FP32, or INT8 calibrated on real frames.

python export/to_ort.py ckpt.pth --precision int8 --calib camvid:DIR -o int8.onnx
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from gradseg.base.errors import run_main
from gradseg.base.options import add_calibration_arguments, add_common, add_model_arguments, command_parser
from gradseg.base.packages import need
from gradseg.commands import command
from gradseg.graphs.frames import default_source
from gradseg.graphs.load import Loaded, check_out, load_any, size_text, write_out
from gradseg.graphs.sessions import OnnxRunner
from gradseg.models.spec import parse_size

TARGETS = ("cpu", "tidl", "trt")
TIMED_ROUNDS = 12
BUSY = 1.5  # median over fastest run above which something else was running


def parse(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = command_parser("export/to_ort.py", __doc__)
    add_model_arguments(parser)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "int8"), help="of computing (default fp32)")
    add_calibration_arguments(parser)
    parser.add_argument(
        "--target",
        default="cpu",
        choices=TARGETS,
        help="whom INT8 is for: cpu; tidl (int8, one power-of-two scale per tensor); trt (what to_trt.py builds from)",
    )
    add_common(parser, "--reduce-range", "--frame-size", "--threads")
    parser.add_argument("--no-timing", action="store_true", help="skip the short comparison with FP32")
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse(argv)
    frame_hw = parse_size(args.frame_size) if args.frame_size else None
    out = Path(args.out) if args.out else Path(args.model).with_suffix(f".{args.precision}.onnx")
    check_out(args.model, out, (".onnx",))
    need(args.model, "export", "onnx", "onnxruntime")
    from gradseg.export.ort.make import fp32_model, int8_for_ort

    loaded = load_any(args)
    made = int8_for_ort(loaded, args) if args.precision == "int8" else fp32_model(loaded, args)
    data, lines = (made.data, made.lines) if frame_hw is None else _resizing(made, loaded, frame_hw, args)
    write_out(out, data)
    height, width = frame_hw or loaded.spec.input_hw
    print(f"wrote {out}: {size_text(out)}, {height}x{width}, {args.precision}", *lines, sep="\n")
    if made.runners and not args.no_timing:
        print(timing_line(made.runners, made.batch))
    return 0


def _resizing(
    made: Any, loaded: Loaded, frame_hw: Tuple[int, int], args: argparse.Namespace
) -> Tuple[bytes, List[str]]:
    """The file with the resizing inside, and what to tell the user."""
    import onnx

    from gradseg.graphs.borders import check_borders, with_borders

    plain = onnx.ModelProto.FromString(made.data)
    baked = with_borders(plain, loaded.spec, 1, frame_hw)
    lines = check_borders(plain, baked, loaded.spec, args.data or default_source(frame_hw), args.model)[1]
    return baked.SerializeToString(), [*made.lines, *lines]


def timing_line(runners: Dict[str, OnnxRunner], batch: np.ndarray[Any, Any]) -> str:
    """A short interleaved comparison of the networks alone, as one line that says what it is."""
    times: Dict[str, List[int]] = {name: [] for name in runners}
    for round_ in range(TIMED_ROUNDS + 2):
        for name, runner in runners.items():
            begin = time.perf_counter_ns()
            runner.run(batch)
            if round_ >= 2:  # warm-up
                times[name].append(time.perf_counter_ns() - begin)
    # the fastest run is the one that other work on the machine disturbed least
    fp32, int8 = (min(times[name]) / 1e6 for name in ("FP32", "INT8"))
    verdict = f"INT8 takes {int8 / fp32:.2f} of FP32's time here"
    if int8 > fp32:
        verdict += ", so FP32 is the better choice on this machine"
    if max(float(np.median(times[name])) / min(times[name]) for name in times) > BUSY:
        verdict = "no verdict on INT8 against FP32, the machine was busy meanwhile"
    return (
        f"{verdict} (network alone, fastest of {TIMED_ROUNDS} interleaved runs: FP32 {fp32:.1f} ms, "
        f"INT8 {int8:.1f} ms; a quick look, {command('benchmarks/latency.py')} measures properly)"
    )


if __name__ == "__main__":
    run_main(main)
