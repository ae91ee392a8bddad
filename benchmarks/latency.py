"""Latency of engines on this device, measured in one run and in turn, so that drift of the clocks cancels.

`python benchmarks/latency.py --engine E... [--json F]`. A frame at frame size goes through the runtime's preprocessing,
the engine and the label upsampling; every stage is timed, nothing is left out and no slow sample is dropped. An engine
that takes several frames at a time gets as many; the times are of the whole batch then, FPS counts frames.
Needs NumPy, OpenCV and one engine (Python 3.8 or newer).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import List, Optional, Sequence

from gradseg.base.conditions import conditions
from gradseg.base.errors import GradsegError, run_main
from gradseg.base.files import check_output, write_json
from gradseg.base.options import add, add_common, command_parser
from gradseg.models.spec import ModelSpec, parse_size
from gradseg.runtime.engines.open import open_engine
from gradseg.runtime.engines.protocol import Engine, read_spec
from gradseg.runtime.loop.latency import STAGES, measure


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = command_parser("benchmarks/latency.py", __doc__)
    add(parser, "--engine", required=True, nargs="+")
    add(parser, "--frame-size", help="size of the frames (default: what the first engine takes)")
    add(parser, "--warmup", type=int, default=10, help="untimed frames (default 10)")
    add(parser, "--samples", type=int, default=100, help="timed frames per engine (default 100)")
    add_common(parser, "--json", "--threads", "--spec", "--provider", "--no-cuda-graph")
    arguments = parser.parse_args(argv)
    if arguments.samples < 1 or arguments.warmup < 0:
        raise GradsegError("--samples must be at least 1 and --warmup at least 0")
    check_output("--json", arguments.json, [*arguments.engine, arguments.spec])
    spec = read_spec(arguments.spec) if arguments.spec else None
    engines: List[Engine] = []
    try:
        for path in arguments.engine:
            engines.append(_opened(path, arguments, spec))
        return _report(engines, arguments)
    finally:
        for engine in engines:
            engine.close()


def _opened(path: str, arguments: argparse.Namespace, spec: Optional[ModelSpec]) -> Engine:
    provider = arguments.provider if Path(path).suffix.lower() in ("", ".onnx") else None
    return open_engine(path, arguments.threads, spec, provider, not arguments.no_cuda_graph)


def _report(engines: Sequence[Engine], arguments: argparse.Namespace) -> int:
    frame_hw = parse_size(arguments.frame_size) if arguments.frame_size else engines[0].frame_hw
    rows = measure(engines, frame_hw, arguments.warmup, arguments.samples)
    columns = [*(f"{name} ms" for name in ("p50", "p90", "p99")), "FPS", *STAGES]
    print(f"{'engine':<32}{'precision':>10}" + "".join(name.rjust(12) for name in columns))
    for row in rows:
        figures = [row["p50_ms"], row["p90_ms"], row["p99_ms"], row["fps"], *row["stages_p50_ms"].values()]
        cells = "".join(f"{value:12.2f}" for value in figures)
        print(f"{Path(row['engine']).name:<32}{row['precision']:>10}{cells}")
    if arguments.json:
        known = conditions(threads=engines[0].threads, warmup=arguments.warmup, frame_hw=list(frame_hw))
        write_json(arguments.json, {"engines": rows, "conditions": known})
    return 0


if __name__ == "__main__":
    run_main(main)
