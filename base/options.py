"""Options that several commands have, each defined once. Standard library only: --help imports nothing else."""

from __future__ import annotations

import argparse
from typing import Optional

from gradseg.base.errors import GradsegError

METHODS = ("minmax", "percentile", "entropy", "mse")  # of choosing what to quantise between
ORDERS = ("rgb", "bgr")  # of colours
PROVIDERS = ("cpu", "cuda", "tensorrt")  # of ONNX Runtime


MAX_THREADS = 1024


def check_threads(threads: Optional[int]) -> None:
    """Raises GradsegError for a number of CPU threads that cannot be meant; None is for the backend to choose."""
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise GradsegError(f"--threads {threads}: expected 1 to {MAX_THREADS}; leave it out to let the backend choose")


def add_model_arguments(parser: argparse.ArgumentParser, onnx: bool = True, optional: bool = False) -> None:
    """The arguments that every export script shares. optional: the model may be left out."""
    kinds = "checkpoint (.pth) or ONNX model (.onnx)" if onnx else "checkpoint (.pth)"
    parser.add_argument("model", nargs="?" if optional else None, help=kinds)
    parser.add_argument("-o", "--out", help="file to write; by default beside the input")
    parser.add_argument(
        "--arch", help="architecture of a bare state dict, such as erfnet for public ERFNet checkpoints"
    )
    parser.add_argument(
        "--size", help="input size HEIGHTxWIDTH in place of the checkpoint's, or for a foreign ONNX model of open size"
    )
    parser.add_argument(
        "--data",
        default=None,
        help="frames to verify on: camvid:DIR, folder:DIR, an image folder, a video (default: scenes:)",
    )
    if onnx:
        add_foreign_arguments(parser)


def add_calibration_arguments(parser: argparse.ArgumentParser, budget: bool = True) -> None:
    """The arguments of the scripts that can make INT8, which `int8.int8_for` reads. budget: with --max-drop."""
    add = parser.add_argument_group("INT8").add_argument
    add("--calib", help="frames to calibrate on: camvid:DIR, folder:DIR, an image folder, a video (default: scenes:)")
    add("--calib-frames", type=int, default=32, help="at most this many, evenly spread (default 32)")
    add("--calib-method", default="mse", choices=METHODS, help="how ranges are chosen (default mse)")
    add("--ranges", metavar="F", help="ranges.json of calibration/calibrate.py, edited or not, in place of calibrating")
    add("--skip-bad", action="store_true", help="leave out calibration frames that cannot be read, and count them")
    add("--power-of-two", action="store_true", help="activation scales as powers of two")
    add("--no-equalise", action="store_true", help="no cross-layer equalisation of weights")
    add("--no-bias-correction", action="store_true", help="no correction of biases for the weights' rounding")
    if not budget:
        return
    add(
        "--max-drop",
        type=float,
        metavar="P",
        help="at most P points of mIoU lost on the labelled frames of --data: layers go back to float until it holds",
    )


def add_foreign_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that describe an ONNX model of other origin; read by `given_by`."""
    group = parser.add_argument_group("an ONNX model of other origin (without GradSeg metadata)")
    add = group.add_argument
    add("--spec", help="what follows as a JSON file, or a whole ModelSpec; see graphs/foreign/spec.py")
    add("--mean", metavar="A,B,C", help="subtracted from pixel / input scale, in the colour order (default 0,0,0)")
    add("--std", metavar="A,B,C", help="what that is divided by (default 1,1,1)")
    add("--color-order", choices=ORDERS, help="channel order that the network wants (default rgb)")
    add("--input-scale", metavar="N", help="pixels are divided by it first: 255 (default), 1 for a mean in pixels")
    add("--classes", metavar="LIST", help="a,b,c or their number, or a file: classes.json, or one name a line")
    add("--input", metavar="NAME", help="the image input, where there are several")
    add("--output", metavar="NAME", help="the tensor with logits or labels, where there are several outputs")
    add("--threshold", metavar="T", help="one output channel: class 1 above T (default 0, or 0.5 after a Sigmoid)")
