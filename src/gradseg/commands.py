"""The commands: words after `gradseg`, and the script of a clone that is the same. Standard library only."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Dict, Tuple

ROOT = Path(__file__).resolve().parents[2]  # of a clone: an installed package has no scripts there
COMMANDS: Dict[str, Tuple[str, str]] = {
    "fit": ("train/fit.py", "train a network of the family"),
    "finetune": ("train/finetune.py", "fine-tune a checkpoint for INT8, sparse weights, or both"),
    "export onnx": ("export/to_onnx.py", "checkpoint → ONNX"),
    "export ort": ("export/to_ort.py", "checkpoint or ONNX → ONNX Runtime, FP32 or INT8"),
    "export openvino": ("export/to_openvino.py", "checkpoint or ONNX → OpenVINO IR, FP32, half or INT8"),
    "export native": ("export/to_native.py", "checkpoint or ONNX → GradSeg's own INT8 engine"),
    "export trt": ("export/to_trt.py", "checkpoint or ONNX → TensorRT plan"),
    "tune": ("export/tune.py", "find the fastest engine for a network on this device"),
    "calibrate": ("calibration/calibrate.py", "measure the ranges of a network's tensors on real frames"),
    "sensitivity": ("calibration/sensitivity.py", "rank the layers by what INT8 costs them"),
    "report": ("calibration/report.py", "what INT8 costs, for every target, as one page"),
    "run": ("runtime/run_video.py", "segment a camera, a video or images"),
    "doctor": ("runtime/doctor.py", "what this machine can run, and what mends the rest"),
    "models": ("runtime/list_models.py", "list the architectures and the weights that are here"),
    "bench accuracy": ("benchmarks/accuracy.py", "mIoU of an engine on labelled frames"),
    "bench latency": ("benchmarks/latency.py", "latency of engines, measured in turn"),
    "bench models": ("benchmarks/models.py", "parameters and operations against the published figures"),
    "bench versus": ("benchmarks/versus.py", "GradSeg beside its peers in one run"),
    "bench roofline": ("benchmarks/roofline.py", "how far engines are from what this machine can do"),
    "bench loop": ("benchmarks/loop.py", "what the video loop keeps of an engine's frame rate"),
    "bench engines": ("benchmarks/engines.py", "other engines on these networks"),
    "bench gpu": ("benchmarks/gpu.py", "TensorRT engines against the floors of a GPU"),
    "bench calibration": ("benchmarks/calibration.py", "memory and time of calibration"),
    "bench demo": ("benchmarks/demo.py", "the whole pipeline in one command"),
}
NEWER = ("train/", "benchmarks/versus.py")  # scripts that need Python 3.10 already to start


def module_of(script: str) -> str:
    return f"gradseg.{script[: -len('.py')].replace('/', '.')}"


def _words(script: str) -> str:
    return next(words for words, (path, _) in COMMANDS.items() if path == script)


def typed(script: str) -> str:
    """What the user typed to start the command that runs: `gradseg run` or `python runtime/run_video.py`."""
    program = Path(sys.argv[0])
    if program.name == Path(script).name:
        return f"python {shlex.quote(sys.argv[0])}"
    start = "python -m gradseg" if program.parts[-2:] == ("gradseg", "__main__.py") else "gradseg"
    return f"{start} {_words(script)}"


def command(script: str, *words: object) -> str:
    """A command to paste where the user stands: the script in a clone, `gradseg …` from an installed package.

    script: as in COMMANDS, from the clone's root. Words are quoted for a shell where they need it.
    """
    found = ROOT / script
    if not found.is_file():
        start = f"gradseg {_words(script)}"
    elif Path.cwd() == ROOT:
        start = f"python {script}"
    else:
        start = f"python {shlex.quote(str(found))}"
    return " ".join([start, *(shlex.quote(str(word)) for word in words)])
