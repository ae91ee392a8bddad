"""Exports a checkpoint to ONNX: uint8 BGR frame in, uint8 labels out, verified against PyTorch before it is saved.

python export/to_onnx.py assets/dg2-star-light.pth -o dg2.onnx
python export/to_onnx.py erfnet_pretrained.pth --arch erfnet --size 512x1024
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Optional, Sequence

from gradseg.export.inputs import (
    add_model_arguments,
    check_out,
    frames_text,
    model_from_checkpoint,
    size_of,
    size_text,
    write_out,
)
from gradseg.models.errors import GradsegError, run_main


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser, onnx=False)
    parser.add_argument("--logits", action="store_true", help="keep the float form: normalised input, logits out")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "int8"), help="fp32; for int8 see to_ort.py")
    args = parser.parse_args(argv)
    if args.precision == "int8":
        raise GradsegError("INT8 needs calibration: python export/to_ort.py CKPT --precision int8 --calib SOURCE")
    if Path(args.model).suffix.lower() == ".onnx":
        raise GradsegError(f"{args.model}: is already ONNX; give the checkpoint (.pth) it came from")
    suffix = ".logits.onnx" if args.logits else ".onnx"
    out = Path(args.out) if args.out else Path(args.model).with_suffix(suffix)
    check_out(args.model, out, (".onnx",))
    loaded = model_from_checkpoint(args.model, args.arch, size_of(args), args.data, args.logits)
    write_out(out, loaded.model.SerializeToString())
    for warning in loaded.warnings:
        print(warning)
    height, width = loaded.spec.input_hw
    form = "logits form" if args.logits else "deployment form"
    print(f"wrote {out}: {size_text(out)}, {form}, {height}x{width}, fp32, opset 17")
    print(f"labels equal to PyTorch's on {loaded.agreement} of {frames_text(args.data)}")
    return 0


if __name__ == "__main__":
    run_main(main)
