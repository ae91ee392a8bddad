"""Makes a program of GradSeg's own INT8 engine for CPUs from a checkpoint or an ONNX file, calibrated on real frames.

python export/to_native.py ckpt.pth --calib camvid:DIR -o m.gsn
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, List, Optional, Sequence

from gradseg.base.errors import GradsegError, run_main
from gradseg.base.options import add_calibration_arguments, add_common, add_model_arguments, command_parser
from gradseg.base.packages import need
from gradseg.graphs.load import check_out, load_any, size_text
from gradseg.runtime.native.files import save_program

SUFFIX = ".gsn"


def parse(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = command_parser("export/to_native.py", __doc__)
    add_model_arguments(parser)
    add_calibration_arguments(parser, budget=False)
    add_common(parser, "--threads")
    return parser.parse_args(argv, argparse.Namespace(max_drop=None))


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse(argv)
    out = Path(args.out) if args.out else Path(args.model).with_suffix(SUFFIX)
    check_out(args.model, out, (SUFFIX,))
    need(args.model, "export", "onnx", "onnxruntime")
    from gradseg.base.files import atomic_path
    from gradseg.calibration.qdq.int8_from_arguments import int8_for
    from gradseg.export.native.lower import native_program

    loaded = load_any(args)
    made = int8_for(loaded, args, "native")
    program = native_program(made.model)
    with atomic_path(out) as temporary:
        save_program(program, temporary)
        lines = _compared(temporary, loaded, made, args)
    height, width = loaded.spec.input_hw
    print(f"wrote {out}: {size_text(out)}, {height}x{width}, int8, {len(program.ops)} operators")
    print(*lines, *made.lines, sep="\n")
    return 0


def _compared(path: Path, loaded: Any, made: Any, args: argparse.Namespace) -> List[str]:
    """The program's labels against its Q/DQ model's and FP32's, as lines; what it was not compared with is said."""
    from gradseg.export.native.verify import compared

    try:
        return compared(path, loaded, made, args)
    except GradsegError as error:
        if error.exit_code != 3:
            raise
        return [f"built, not run: {error}"]


if __name__ == "__main__":
    run_main(main)
