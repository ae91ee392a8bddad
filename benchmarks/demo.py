"""The whole pipeline in one command: shipped checkpoint → ONNX → INT8 → video loop → figures side by side.

`python benchmarks/demo.py [--source SOURCE] [--out DIR]`. Every step is a command of its own, printed before it runs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Optional, Sequence

from gradseg.benchmarks import accuracy, latency
from gradseg.data.specs import open_data
from gradseg.export import to_ort
from gradseg.models.errors import GradsegError, run_main
from gradseg.models.files import write_json
from gradseg.runtime import run_video
from gradseg.runtime.conditions import conditions
from gradseg.runtime.engine import open_engine

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "assets" / "dg2-star-light.pth"
CALIBRATION = "scenes:frames=24,seed=101"
LIVE = ("cam", "/dev/", "csi:", "rtsp:", "v4l2:")  # sources that calibration cannot read twice
LIVE_FRAMES = 300
EVALUATION = "scenes:frames=24,seed=202"  # other scenes than those of training (seed 0) and calibration


def step(script: str, main: Any, arguments: Sequence[str]) -> None:
    """Prints and runs one command of the pipeline; a failure ends the demo with that command's exit code."""
    print(f"\n$ python {script} {' '.join(arguments)}", flush=True)
    code = main(list(arguments))
    if code:
        raise GradsegError(f"{script} failed with exit code {code}", code)


def compare(engines: Sequence[Path], evaluation: str) -> list[dict[str, Any]]:
    """mIoU on labelled frames, then latency in turn, for each engine; the first is the reference for agreement."""
    data = open_data(evaluation)
    opened = [open_engine(path) for path in engines]
    rows = latency.measure(opened, opened[0].spec.input_hw, warmup=10, samples=80)
    for row, engine in zip(rows, opened, strict=True):
        result = accuracy.measure(engine, data, against=opened[0])
        row.update({key: result[key] for key in ("miou", "pixel_accuracy", "per_class")})
        row["agreement"] = result["against"]["agreement"]
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The engines side by side as text."""
    lines = [f"{'engine':<12}{'mIoU':>8}{'agreement':>11}{'p50 ms':>9}{'p99 ms':>9}{'FPS':>8}{'size kB':>9}"]
    for row in rows:
        path = Path(row["engine"])
        lines.append(
            f"{path.name:<12}{row['miou']:>8.4f}{row['agreement']:>11.4f}{row['p50_ms']:>9.2f}{row['p99_ms']:>9.2f}"
            f"{row['fps']:>8.1f}{path.stat().st_size / 1e3:>9.0f}"
        )
    return "\n".join(lines)


def verdict(rows: Sequence[dict[str, Any]]) -> str:
    """One honest sentence on INT8 against FP32."""
    fp32, int8 = rows[0], rows[1]
    ratio = fp32["p50_ms"] / int8["p50_ms"]
    speed = f"{ratio:.2f}x faster" if ratio >= 1 else f"{1 / ratio:.2f}x slower"
    change = 100 * (int8["miou"] - fp32["miou"])
    choice = "INT8 pays here" if ratio > 1.02 and change >= -1 else "keep FP32 here"
    return f"INT8 in {int8['backend']} on this device: {speed}, mIoU {change:+.2f} points: {choice}."


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--source", default="scenes:frames=150,seed=7", help="video, camera, images or scenes:")
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--max-frames", type=int, help="end the video after this many frames")
    arguments = parser.parse_args(argv)
    out: Path = arguments.out
    fp32, int8 = out / "fp32.onnx", out / "int8.onnx"
    live = arguments.source.startswith(LIVE)
    recorded = not live and not arguments.source.startswith("scenes:")
    calibration = arguments.source if recorded else CALIBRATION
    frames = arguments.max_frames or (LIVE_FRAMES if live else None)
    ckpt = str(arguments.checkpoint)
    step("export/to_ort.py", to_ort.main, [ckpt, "--precision", "fp32", "-o", str(fp32)])
    step("export/to_ort.py", to_ort.main, [ckpt, "--precision", "int8", "--calib", calibration, "-o", str(int8)])

    print(f"\nmIoU on {EVALUATION}, latency of both engines in turn:", flush=True)
    rows = compare([fp32, int8], EVALUATION)
    fastest = min(rows, key=lambda row: float(row["p50_ms"]))["engine"]
    video, report = out / "overlay.mp4", out / "report.json"
    command = ["--engine", fastest, arguments.source, "--save", str(video), "--report", str(report)]
    if frames:
        command += ["--max-frames", str(frames)]
    step("runtime/run_video.py", run_video.main, command)
    loop = json.loads(report.read_text(encoding="utf-8"))
    said = verdict(rows)
    if recorded:
        said += f" (mIoU is of {EVALUATION}; your own frames have no labels, above is how many labels stayed the same.)"
    known = conditions(calibration=calibration, evaluation=EVALUATION)
    write_json(report, {**loop, "comparison": rows, "verdict": said, "comparison_conditions": known})
    print(f"\n{table(rows)}\n{said}")
    total = loop["latency_ms"]["total"]
    print(
        f"video loop with {Path(fastest).name}: {loop['frames_done']} frames, {loop['fps']:.1f} FPS, "
        f"capture to labels p50 {total['p50']:.1f} ms, p99 {total['p99']:.1f} ms\n"
        f"wrote {fp32}, {int8}, {video}, {report}"
    )
    return 0


if __name__ == "__main__":
    run_main(main)
