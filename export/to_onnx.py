"""Exports a checkpoint to ONNX: uint8 BGR frame in, uint8 labels out, verified against PyTorch before it is saved.

python export/to_onnx.py assets/dg2-star-light.pth -o dg2.onnx
python export/to_onnx.py erfnet_pretrained.pth --arch erfnet --size 512x1024
python export/to_onnx.py assets/dg2-star-light.pth --frame-size 720x1280 -o dg2-720p.onnx
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

from gradseg.base.errors import GradsegError, run_main
from gradseg.base.options import add_common, add_model_arguments, command_parser
from gradseg.commands import command
from gradseg.graphs.frames import default_source
from gradseg.graphs.load import Loaded, check_out, frames_text, model_from_checkpoint, size_of, size_text, write_out
from gradseg.models.spec import parse_size


def parse(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    """The arguments; GradsegError for those that do not go together."""
    parser = command_parser("export/to_onnx.py", __doc__)
    add_model_arguments(parser, onnx=False)
    parser.add_argument("--logits", action="store_true", help="keep the float form: normalised input, logits out")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "int8"), help="fp32; for int8 see to_ort.py")
    add_common(parser, "--frame-size")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="frames per call (default 1)")
    args = parser.parse_args(argv)
    if args.precision == "int8":
        again = command("export/to_ort.py", args.model, "--precision", "int8", "--calib", "SOURCE")
        raise GradsegError(f"INT8 needs calibration: {again}")
    if Path(args.model).suffix.lower() == ".onnx":
        raise GradsegError(f"{args.model}: is already ONNX; give the checkpoint (.pth) it came from")
    if args.batch < 1:
        raise GradsegError(f"--batch {args.batch}: at least 1 frame per call is needed")
    if args.logits and (args.frame_size or args.batch > 1):
        raise GradsegError(
            "--logits: the float form takes one image of the network's size; leave --frame-size and --batch out"
        )
    return args


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse(argv)
    frame_hw = parse_size(args.frame_size) if args.frame_size else None
    out = Path(args.out) if args.out else Path(args.model).with_suffix(".logits.onnx" if args.logits else ".onnx")
    check_out(args.model, out, (".onnx",))
    loaded = model_from_checkpoint(args.model, args.arch, size_of(args), args.data, args.logits)
    model, lines = bordered(loaded, args, frame_hw)
    write_out(out, model.SerializeToString())
    for warning in loaded.warnings:
        print(warning)
    height, width = frame_hw or loaded.spec.input_hw
    form = "logits form" if args.logits else "deployment form"
    each = f"{args.batch} x " if args.batch > 1 else ""
    print(f"wrote {out}: {size_text(out)}, {form}, {each}{height}x{width}, fp32, opset 17")
    print(f"labels equal to PyTorch's on {loaded.agreement} of {frames_text(args.data)}", *lines, sep="\n")
    return 0


def bordered(loaded: Loaded, args: argparse.Namespace, frame_hw: Optional[Tuple[int, int]]) -> Tuple[Any, List[str]]:
    """The model for the frames that were asked for, compared with resizing outside, and lines to print."""
    if frame_hw is None and args.batch == 1:
        return loaded.model, []
    from gradseg.graphs.borders import check_borders, with_borders

    model = with_borders(loaded.model, loaded.spec, args.batch, frame_hw)
    source = args.data or default_source(frame_hw or loaded.spec.input_hw)
    return model, check_borders(loaded.model, model, loaded.spec, source, args.model)[1]


if __name__ == "__main__":
    run_main(main)
