"""Makes an OpenVINO IR (.xml and .bin) from a checkpoint or an ONNX file: FP32, half precision, or INT8.

python export/to_openvino.py ckpt.pth --precision int8 --calib camvid:DIR -o m.xml
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Optional, Sequence

from gradseg.base.errors import run_main
from gradseg.base.files import check_writable
from gradseg.base.options import (
    add_calibration_arguments,
    add_common,
    add_model_arguments,
    check_threads,
    command_parser,
)
from gradseg.base.packages import need
from gradseg.graphs.load import check_out, load_any, size_text
from gradseg.runtime.engines.ov import weights_of


def parse(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = command_parser("export/to_openvino.py", __doc__)
    add_model_arguments(parser)
    parser.add_argument(
        "--precision",
        default="fp32",
        choices=("fp32", "bf16", "fp16", "int8"),
        help="what OpenVINO computes in; bf16 and fp16 only where the CPU has them, else float32",
    )
    add_calibration_arguments(parser)
    add_common(parser, "--reduce-range", "--threads")
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse(argv)
    check_threads(args.threads)
    out = Path(args.out) if args.out else Path(args.model).with_suffix(f".{args.precision}.xml")
    check_out(args.model, out, (".xml",))
    check_writable(weights_of(out))
    need(args.model, "export", "onnx", "onnxruntime")
    need(args.model, "openvino", "openvino")
    from gradseg.export.openvino_ir.files import write_ir
    from gradseg.export.openvino_ir.make import openvino_model

    loaded = load_any(args)
    made = openvino_model(loaded, args)
    write_ir(made.model, out, made.hint)
    height, width = loaded.spec.input_hw
    weights = weights_of(out)
    print(f"wrote {out}: {size_text(out)}, and {weights}: {size_text(weights)}, {height}x{width}, {args.precision}")
    for line in made.lines:
        print(line)
    return 0


if __name__ == "__main__":
    run_main(main)
