"""Options that several commands have, each defined once. Standard library only: --help imports nothing else."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, Optional, Type, Union

from gradseg.base.errors import GradsegError
from gradseg.commands import typed

METHODS = ("minmax", "percentile", "entropy", "mse")  # of choosing what to quantise between
ORDERS = ("rgb", "bgr")  # of colours
PROVIDERS = ("cpu", "cuda", "tensorrt")  # of ONNX Runtime
ENGINES = (
    ".onnx (ONNX Runtime), .xml (OpenVINO), .gsn (GradSeg's own kernels), .pth (PyTorch), .plan or .engine (TensorRT)"
)
FRAMES = "camvid:DIR, folder:DIR, an image folder, a video"
MAX_THREADS = 1024


def _told(text: str, **rest: Any) -> Dict[str, Any]:
    return {"help": text, **rest}


# What add_argument gets for an option of this name, unless a command says otherwise
COMMON = {
    "--engine": _told(f"{ENGINES}, or a shipped model's name, see `gradseg models`", metavar="ENGINE"),
    "--threads": _told("CPU threads; left out: as many as the backend chooses", type=int, metavar="N"),
    "--provider": _told("what ONNX Runtime runs .onnx files on (default: cpu)", choices=PROVIDERS),
    "--spec": _told("ModelSpec as JSON, for an ONNX file without GradSeg metadata", type=Path, metavar="FILE"),
    "--no-cuda-graph": _told("enqueue the inference of TensorRT plans plainly", action="store_true"),
    "--json": _told("JSON file to write the result to", type=Path, metavar="FILE"),
    "--plot": _told("image file to draw the result into", type=Path, metavar="FILE"),
    "--out": _told("file to write; by default beside the input", metavar="FILE"),
    "--arch": _told("architecture of a bare state dict, such as erfnet for public ERFNet checkpoints"),
    "--size": _told("input size, height x width, in place of the checkpoint's", metavar="HxW"),
    "--frame-size": _told("put the resizing of frames of this size, and of their labels, inside", metavar="HxW"),
    "--data": _told(f"frames to verify on: {FRAMES} (default: scenes:)"),
    "--val": _told("validation frames, a data spec (default: every tenth frame is held out)"),
    "--limit": _told("use at most this many frames, evenly spread", type=int, metavar="N"),
    "--calib": _told(f"frames to calibrate on: {FRAMES} (default: scenes:)", metavar="SOURCE"),
    "--calib-frames": _told("at most this many, evenly spread (default 32)", type=int, metavar="N", default=32),
    "--method": _told("how ranges are chosen (default mse)", default="mse", choices=METHODS),
    "--ranges": _told("ranges.json of calibrate, edited or not, in place of calibrating", metavar="FILE"),
    "--skip-bad": _told("leave out frames that cannot be read, and count them", action="store_true"),
    "--power-of-two": _told("activation scales as powers of two", action="store_true"),
    "--no-equalise": _told("no cross-layer equalisation of weights", action="store_true"),
    "--no-bias-correction": _told("no correction of biases for the weights' rounding", action="store_true"),
    "--reduce-range": _told(
        "INT8 weights within ±63; auto: where this CPU's kernels would saturate (AVX2 or AVX-512 without VNNI)",
        default="auto",
        choices=("auto", "on", "off"),
    ),
    "--max-drop": _told(
        "points of mIoU that may be lost on --data; layers go back to float for it", type=float, metavar="P"
    ),
}
COMMON["--calib-method"] = COMMON["--method"]
Parser = Union[argparse.ArgumentParser, "argparse._ArgumentGroup"]


def command_parser(
    script: str, about: Optional[str], formatter: Type[argparse.HelpFormatter] = argparse.RawDescriptionHelpFormatter
) -> argparse.ArgumentParser:
    """The parser of a script, called what the user typed; `about`, its docstring, names it as in a clone."""
    name = typed(script)
    about = (about or "").replace(f"python {script}", name)
    return argparse.ArgumentParser(prog=name, description=about, formatter_class=formatter)


def add(parser: Parser, *names: str, **said: Any) -> None:
    """`add_argument`, to which an option of COMMON needs to be told nothing but what is special here."""
    parser.add_argument(*names, **{**COMMON.get(names[-1], {}), **said})


def add_common(parser: Parser, *names: str) -> None:
    """Options of COMMON as they are."""
    for name in names:
        add(parser, name)


def check_threads(threads: Optional[int]) -> None:
    """Raises GradsegError for a number of CPU threads that cannot be meant; None is for the backend to choose."""
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise GradsegError(f"--threads {threads}: expected 1 to {MAX_THREADS}; leave it out to let the backend choose")


def add_model_arguments(
    parser: argparse.ArgumentParser,
    onnx: bool = True,
    optional: bool = False,
    out: Optional[Dict[str, Any]] = None,
    **data: Any,
) -> None:
    """The arguments that every export script shares. optional: the model may be left out. out, data: what is special
    of these options."""
    kinds = "checkpoint (.pth) or ONNX model (.onnx)" if onnx else "checkpoint (.pth)"
    parser.add_argument("model", nargs="?" if optional else None, help=kinds)
    add(parser, "-o", "--out", **(out or {}))
    add(parser, "--data", **data)
    add_common(parser, "--arch")
    add(parser, "--size", help=f"{COMMON['--size']['help']}, or for a foreign ONNX model of open size")
    if onnx:
        add_foreign_arguments(parser)


def add_calibration_arguments(parser: argparse.ArgumentParser, budget: bool = True) -> None:
    """The arguments of the scripts that can make INT8, which `int8.int8_for` reads. budget: with --max-drop."""
    group = parser.add_argument_group("INT8")
    add_common(group, "--calib", "--calib-frames", "--calib-method", "--ranges", "--skip-bad", "--power-of-two")
    add_common(group, "--no-equalise", "--no-bias-correction", *(["--max-drop"] if budget else []))


def add_foreign_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that describe an ONNX model of other origin; read by `given_by`."""
    group = parser.add_argument_group("an ONNX model of other origin (without GradSeg metadata)")
    say = group.add_argument
    say("--spec", metavar="FILE", help="what follows as a JSON file, or a whole ModelSpec; see graphs/foreign/spec.py")
    say("--mean", metavar="A,B,C", help="subtracted from pixel / input scale, in the colour order (default 0,0,0)")
    say("--std", metavar="A,B,C", help="what that is divided by (default 1,1,1)")
    say("--color-order", choices=ORDERS, help="channel order that the network wants (default rgb)")
    say("--input-scale", metavar="N", help="pixels are divided by it first: 255 (default), 1 for a mean in pixels")
    say("--classes", metavar="LIST", help="a,b,c or their number, or a file: classes.json, or one name a line")
    say("--input", metavar="NAME", help="the image input, where there are several")
    say("--output", metavar="NAME", help="the tensor with logits or labels, where there are several outputs")
    say("--threshold", metavar="T", help="one output channel: class 1 above T (default 0, or 0.5 after a Sigmoid)")
