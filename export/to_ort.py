"""Makes an ONNX Runtime model from a checkpoint or an ONNX file: FP32, or INT8 calibrated on real frames.

python export/to_ort.py ckpt.pth --precision int8 --calib camvid:DIR -o int8.onnx
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from gradseg.calibration.graph import Graph
from gradseg.calibration.observers import METHODS
from gradseg.calibration.quantise import count_quantised, is_quantised
from gradseg.calibration.sessions import OnnxRunner, scores_of
from gradseg.calibration.sources import default_source
from gradseg.export import verify
from gradseg.export.inputs import Loaded, add_model_arguments, int8_model, load_any, size_text
from gradseg.export.passes.rows_head import rows_head
from gradseg.models.errors import GradsegError, run_main
from gradseg.models.files import atomic_path

TIMED_ROUNDS = 12
BUSY = 1.5  # median over fastest run above which something else was running


def parse(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "int8"))
    parser.add_argument("--calib", help="frames to calibrate on: camvid:DIR, folder:DIR, an image folder, a video")
    parser.add_argument("--calib-frames", type=int, default=32, help="at most this many, evenly spread (default 32)")
    parser.add_argument("--calib-method", default="mse", choices=METHODS, help="how ranges are chosen (default mse)")
    parser.add_argument("--power-of-two", action="store_true", help="activation scales as powers of two")
    parser.add_argument("--threads", type=int, help="CPU threads; by default ONNX Runtime chooses")
    parser.add_argument("--no-timing", action="store_true", help="skip the short comparison with FP32")
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse(argv)
    out = Path(args.out) if args.out else Path(args.model).with_suffix(f".{args.precision}.onnx")
    if Path(args.model).resolve() == out.resolve():
        raise GradsegError(f"{out}: would overwrite its own input; name another file with -o")
    with atomic_path(out) as temporary:
        loaded = load_any(args)
        if args.precision == "int8":
            lines = write_int8(loaded, args, temporary)
        else:
            lines = write_fp32(loaded, args, temporary)
    height, width = loaded.spec.input_hw
    print(f"wrote {out}: {size_text(out)}, {height}x{width}, {args.precision}")
    for line in lines:
        print(line)
    return 0


def write_fp32(loaded: Loaded, args: argparse.Namespace, out: Path) -> List[str]:
    if is_quantised(loaded.model):
        raise GradsegError(f"{args.model}: is INT8 already and cannot become FP32; give its checkpoint")
    graph = Graph(loaded.model)
    rows_head(graph)
    data = graph.to_model().SerializeToString()
    batches = verify.verification_batches(args.data or default_source(loaded.spec.input_hw), loaded.spec.input_hw)
    before = OnnxRunner(loaded.model.SerializeToString(), args.model, args.threads)
    runner = OnnxRunner(data, args.model, args.threads)
    warnings = verify.check_alive(
        lambda batch: runner.run(batch)[0], batches, args.model, lambda batch: scores_of(loaded.model, batch)
    )
    agreement = verify.Agreement()
    for batch in batches:
        agreement.add(runner.run(batch)[0], before.run(batch)[0])
    if agreement.fraction < verify.NEEDED:
        raise GradsegError(
            f"{args.model}: the form for ONNX Runtime agrees with the ONNX on only {agreement}; not written"
        )
    out.write_bytes(data)
    lines = [*warnings, f"labels equal to the plain ONNX's on {agreement} of {args.data or 'scenes:'}"]
    if loaded.agreement is not None:
        lines.insert(0, f"labels equal to PyTorch's on {loaded.agreement} of {args.data or 'scenes:'}")
    return lines


def write_int8(loaded: Loaded, args: argparse.Namespace, out: Path) -> List[str]:
    """Calibrates, verifies, writes; returns the lines to print."""
    graph = Graph(loaded.model)
    rows_head(graph)
    fp32 = graph.to_model().SerializeToString()
    quantised_model, source = int8_model(loaded, args, "cpu")
    data = quantised_model.SerializeToString()
    where = f"{args.model} in INT8"
    batches = verify.verification_batches(args.data or source, loaded.spec.input_hw, 8)
    runners = {"FP32": OnnxRunner(fp32, args.model, args.threads), "INT8": OnnxRunner(data, where, args.threads)}
    warnings = verify.check_alive(
        lambda batch: runners["INT8"].run(batch)[0], batches, where, lambda batch: scores_of(quantised_model, batch)
    )
    agreement = verify.Agreement()
    for batch in batches:
        agreement.add(runners["INT8"].run(batch)[0], runners["FP32"].run(batch)[0])
    out.write_bytes(data)
    packed, total = count_quantised(quantised_model)
    lines = [
        *warnings,
        f"calibrated on {source} ({args.calib_method}); {packed} of {total} convolutions in INT8",
        f"labels equal to FP32's on {agreement} of {args.data or source}",
    ]
    return lines if args.no_timing else [*lines, timing_line(runners, batches[0])]


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
        f"INT8 {int8:.1f} ms; a quick look, benchmarks/latency.py measures properly)"
    )


if __name__ == "__main__":
    run_main(main)
