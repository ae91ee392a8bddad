"""Peak memory and time of calibration, GradSeg's against ONNX Runtime's calibrators, in one run.

python benchmarks/calibration.py --model m.onnx --data SPEC --frames 16,64,256 --size 512x1024 --json F

Both get the same FP32 model, the same tensors and the same frames as image files at the network's size. Every
measurement is a process of its own; its peak memory is what the operating system says of it. One that takes more than
--limit-mb is ended and is a row with "failed"; larger numbers of frames of it are then not tried.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from gradseg.base.errors import GradsegError, run_main
from gradseg.base.files import check_output, write_json
from gradseg.base.options import add, add_common, command_parser
from gradseg.base.packages import need
from gradseg.models.spec import parse_size

# imports of what is measured stand in the workers: this process stays small, since on Linux a child's peak memory
# begins with its parent's
OURS, THEIRS = "gradseg", "onnxruntime"
METHODS = {OURS: ("minmax", "percentile", "entropy", "mse"), THEIRS: ("minmax", "percentile", "entropy")}
POLL_S = 0.02


def prepare(task: Dict[str, Any]) -> Dict[str, Any]:
    """Writes the FP32 model and the frames; gives their numbers and the conditions."""
    import cv2
    import onnx

    from gradseg.base.conditions import conditions
    from gradseg.base.options import add_model_arguments
    from gradseg.calibration.qdq.int8 import observed_tensors
    from gradseg.graphs.frames import open_frames
    from gradseg.graphs.load import load_any
    from gradseg.runtime.preprocess import Preprocessor

    given = [task["model"], *(["--size", task["size"]] if task["size"] else [])]
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    loaded = load_any(parser.parse_args(given))
    tensors, _ = observed_tensors(loaded.model)
    onnx.save(loaded.model, task["onnx"])
    folder, resize, count = Path(task["frames"]), Preprocessor(loaded.spec.input_hw), 0
    folder.mkdir()
    for count, frame in enumerate(open_frames(task["data"], task["count"]), 1):
        cv2.imwrite(str(folder / f"{count:05d}.png"), resize(frame)[0], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    import onnxruntime  # noqa: F401  so that its version is among the conditions

    known = {"tensors": len(tensors), "input_hw": list(loaded.spec.input_hw), "conditions": conditions()}
    return {"count": count, **known}


def gradseg_ranges(task: Dict[str, Any]) -> Dict[str, Any]:
    """Statistics of all frames, and scales for every target."""
    import onnx

    from gradseg.calibration.qdq.int8 import observed_tensors
    from gradseg.calibration.ranges.collect import statistics_from_frames
    from gradseg.calibration.ranges.ranges_file import ranges_from_statistics
    from gradseg.graphs.frames import open_frames

    begin = time.perf_counter()
    model = onnx.load(task["onnx"])
    tensors, means_of = observed_tensors(model)
    statistics = statistics_from_frames(model, tensors, open_frames(task["frames"], task["count"]), means_of)
    found = ranges_from_statistics(statistics, {"fingerprint": ""}, {}, {}, task["method"])
    return {"seconds": time.perf_counter() - begin, "tensors": len(found.entries)}


def onnxruntime_ranges(task: Dict[str, Any]) -> Dict[str, Any]:
    """The same by `onnxruntime.quantization`, as its documentation does it."""
    import numpy as np
    import onnx
    from onnxruntime.quantization import calibrate
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    from gradseg.benchmarks.common.ort_calibration import reader_of
    from gradseg.calibration.qdq.int8 import observed_tensors
    from gradseg.graphs.frames import open_frames

    kinds = {kind.name.lower(): kind for kind in CalibrationMethod}
    tensors = set(observed_tensors(onnx.load(task["onnx"]))[0])
    by_operator = calibrate.CalibraterBase.select_tensors_to_calibrate

    def same_tensors(self: Any, model: Any) -> Any:
        """Its options choose by operator only, which would have it look at twice as many tensors."""
        return tensors, by_operator(self, model)[1]

    calibrate.CalibraterBase.select_tensors_to_calibrate = same_tensors
    begin = time.perf_counter()
    calibrator = create_calibrator(
        task["onnx"], None, augmented_model_path=task["scratch"], calibrate_method=kinds[task["method"]]
    )
    frames = open_frames(task["frames"], task["count"])
    calibrator.collect_data(reader_of("frame", (np.ascontiguousarray(frame)[None] for frame in frames)))
    found = calibrator.compute_data()
    return {"seconds": time.perf_counter() - begin, "tensors": len(list(found.keys()))}


WORKERS: Dict[str, Callable[[Dict[str, Any]], Dict[str, Any]]] = {
    "prepare": prepare,
    OURS: gradseg_ranges,
    THEIRS: onnxruntime_ranges,
}


def run_worker(task: Dict[str, Any], limit_mb: Optional[float]) -> Tuple[Dict[str, Any], float, float]:
    """Runs a task in a process of its own: (what it gives, or {"failed": why}, its peak MB, its seconds in all)."""
    answer, log = Path(task["answer"]), Path(task["log"])
    for path in (answer, log):
        path.unlink(missing_ok=True)
    begin, peak, stopped = time.perf_counter(), 0.0, False
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(task)]
    with open(log, "wb") as stream:
        child = subprocess.Popen(command, stdout=stream, stderr=stream)
        try:
            while True:
                done, status, usage = os.wait4(child.pid, os.WNOHANG)
                if done:
                    break
                peak = max(peak, _peak_mb(child.pid))
                if limit_mb is not None and peak > limit_mb and not stopped:
                    child.kill()
                    stopped = True
                time.sleep(POLL_S)
            child.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if child.returncode is None:
                child.kill()
                os.wait4(child.pid, 0)
    # where there is no /proc; on Linux it would count what this process held when it started the child
    seconds, peak = time.perf_counter() - begin, peak or usage.ru_maxrss / 1024
    if stopped:
        return {"failed": f"out of memory at {limit_mb:.0f} MB"}, peak, seconds
    if child.returncode or not answer.exists():
        last = log.read_text("utf-8", "replace").strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
        return {"failed": last[0]}, peak, seconds
    return json.loads(answer.read_text("utf-8")), peak, seconds


def _peak_mb(pid: int) -> float:
    """The most memory that a process has held since its program began, in MB; 0 once it has gone."""
    from gradseg.base.conditions import proc_bytes

    return (proc_bytes(Path(f"/proc/{pid}/status"), "VmHWM") or 0) / (1 << 20)


def measure(task: Dict[str, Any], tools: Sequence[str], counts: Sequence[int], limit_mb: float, out: Any) -> None:
    """Appends a row per tool, method and number of frames to out.rows, and saves after each."""
    failed: Dict[Tuple[str, str], int] = {}
    pairs = [(tool, method) for tool in tools for method in METHODS[tool]]
    for count, (tool, method) in itertools.product(counts, pairs):
        row: Dict[str, Any] = {"tool": tool, "method": method, "frames": count, "peak_mb": None, "seconds": None}
        if (tool, method) in failed:
            row["failed"] = f"not tried: {failed[tool, method]} frames failed"
        else:
            own = {**task, "worker": tool, "method": method, "count": count}
            found, peak, seconds = run_worker(own, limit_mb)
            row.update({"seconds": seconds, **found, "peak_mb": round(peak, 1)})
            row["seconds"] = round(row["seconds"], 3)
            if "failed" in found:
                failed[tool, method] = count
        out.add(row)


class Results:
    """Rows, written to a file after each, if one is given."""

    def __init__(self, path: Optional[Path], known: Dict[str, Any]) -> None:
        self.path, self.known = path, known
        self.rows: List[Dict[str, Any]] = []

    def add(self, row: Dict[str, Any]) -> None:
        self.rows.append(row)
        words = row.get("failed", "")
        if row["seconds"] is not None:
            words = f"{row['peak_mb']:9.1f} MB {row['seconds']:9.2f} s  {words}"
        print(f"{row['tool']:<12}{row['method']:<11}{row['frames']:>5} frames  {words}".rstrip(), flush=True)
        if self.path is not None:
            write_json(self.path, {"rows": self.rows, "conditions": self.known})


def parse(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = command_parser("benchmarks/calibration.py", __doc__)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--model", help="checkpoint (.pth) or ONNX model (.onnx), FP32")
    add(parser, "--data", help="frames: camvid:DIR, folder:DIR, scenes:, an image folder, a video")
    parser.add_argument("--frames", default="16,64,256", help="numbers of frames (default 16,64,256)")
    add_common(parser, "--size", "--json")
    parser.add_argument("--tools", default=f"{OURS},{THEIRS}", help=f"any of {OURS},{THEIRS} (default both)")
    parser.add_argument("--limit-mb", type=float, default=12000, help="memory of one measurement (default 12000)")
    args = parser.parse_args(argv)
    if not args.worker and not (args.model and args.data):
        parser.error("--model and --data are needed")
    return args


def checked_counts(text: str) -> List[int]:
    """'16,64' → [16, 64], ascending; GradsegError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise GradsegError(f"--frames {text}: expected numbers above 0 with commas, such as 16,64,256")
    return sorted({int(part) for part in parts})


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse(argv)
    if args.worker:
        task = json.loads(args.worker)
        Path(task["answer"]).write_text(json.dumps(WORKERS[task["worker"]](task)), "utf-8")
        return 0
    counts, tools = checked_counts(args.frames), [tool.strip() for tool in args.tools.split(",")]
    if not set(tools) <= set(METHODS):
        raise GradsegError(f"--tools {args.tools}: expected any of {OURS},{THEIRS}")
    if args.size:
        parse_size(args.size)
    check_output("--json", args.json, (args.model, args.data))
    need("calibration", "export", "onnx", "onnxruntime")
    with tempfile.TemporaryDirectory() as name:
        files = {"onnx": "m.onnx", "frames": "frames", "scratch": "a.onnx", "answer": "answer.json", "log": "log.txt"}
        task = {key: str(Path(name) / value) for key, value in files.items()}
        first = {**task, "worker": "prepare", "model": args.model, "size": args.size, "data": args.data}
        found, _, _ = run_worker({**first, "count": counts[-1]}, None)
        if "failed" in found:
            raise GradsegError(str(found["failed"]).replace("error: ", "", 1))
        if found["count"] < counts[-1]:
            raise GradsegError(f"{args.data}: has {found['count']} frames, {counts[-1]} are needed; see --frames")
        known = {**found["conditions"], "model": Path(args.model).name, "input_hw": found["input_hw"]}
        known.update(data=args.data, tensors=found["tensors"], limit_mb=args.limit_mb)
        measure(task, tools, counts, args.limit_mb, Results(args.json, known))
    return 0


if __name__ == "__main__":
    run_main(main)
