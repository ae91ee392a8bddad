"""How far each engine is from what this machine can do: its ceilings measured, then every layer placed against them.

python benchmarks/roofline.py
python benchmarks/roofline.py assets/dg2-star-light.pth dg2.int8.onnx dg2.xml dg2.gsn --json roofline.json
python benchmarks/roofline.py dg2.onnx --engines openvino --threads 1 --plot roofline.png

Networks (.pth, or an architecture's id for random weights) are exported first. An .onnx runs in ONNX Runtime and in
OpenVINO (FP32, and bf16 where the CPU has it), an .xml in OpenVINO, a .gsn in the native engine. Per layer: its
multiply-accumulates, the bytes that it moves, its time, its floor under the ceilings and the time lost to that.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from gradseg.base.conditions import conditions, usable_cores
from gradseg.base.errors import GradsegError, run_main
from gradseg.base.files import check_writable, read_json, require_file, write_json
from gradseg.base.options import add, add_common, check_threads, command_parser
from gradseg.base.packages import need
from gradseg.benchmarks.ceilings.ceilings import (
    Ceilings,
    above_peak,
    by_group,
    ceilings_of,
    measure_ceilings,
    placed,
    totals,
)
from gradseg.commands import ROOT
from gradseg.models.spec import ARCHS, parse_size
from gradseg.runtime.engines.ov import HINT, read_ir_metadata

if TYPE_CHECKING:
    from gradseg.benchmarks.ceilings.profiles import Profile

ASSETS = ROOT / "assets"
NETWORKS = (str(ASSETS / "dg2-star-light.pth"), str(ASSETS / "dg4-star-light.pth"), "erfnet")
ENGINES = ("onnxruntime", "openvino", "native")
SUFFIXES = (".pth", ".onnx", ".xml", ".gsn")
Profiler = Callable[[], "Profile"]


@contextlib.contextmanager
def as_engine(given: str, size: Optional[str]) -> Iterator[Path]:
    """The engine file itself, or a network exported to a temporary .onnx in the deployment form."""
    if given not in ARCHS and Path(given).suffix.lower() != ".pth":
        found = require_file(given, f"an engine or a network: {', '.join(SUFFIXES)}, or an architecture's id")
        if found.suffix.lower() not in SUFFIXES:
            raise GradsegError(f"{found}: unknown kind of engine {found.suffix!r}; expected {', '.join(SUFFIXES)}")
        yield found
        return
    from gradseg.benchmarks.common.sources import network_for
    from gradseg.graphs.from_torch import onnx_from_checkpoint

    network, _ = network_for(given, parse_size(size) if size else (512, 1024))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{network.spec.arch}.onnx"
        path.write_bytes(onnx_from_checkpoint(network).SerializeToString())
        yield path


def profilers(path: Path, engines: Sequence[str], threads: int, frames: int) -> List[Profiler]:
    """What profiles the file, for every engine that is wanted and reads it."""
    from gradseg.benchmarks.ceilings.profiles import profile_native, profile_onnxruntime, profile_openvino

    suffix = path.suffix.lower()
    found: List[Profiler] = []
    if suffix == ".onnx" and "onnxruntime" in engines:
        found.append(partial(profile_onnxruntime, path, threads, frames))
    if suffix in (".onnx", ".xml") and "openvino" in engines:
        for hint in hints(path):
            found.append(partial(profile_openvino, path, threads, frames, hint))
    if suffix == ".gsn" and "native" in engines:
        found.append(partial(profile_native, path, threads, frames))
    return found


def hints(path: Path) -> Tuple[str, ...]:
    """OpenVINO's precisions to run a file in: the one that an .xml was made for, else all that the CPU has."""
    need(path, "openvino", "openvino")
    import openvino

    made_for = read_ir_metadata(path).get(HINT) if path.suffix.lower() == ".xml" else None
    if made_for:
        return (made_for,)
    return ("f32", "bf16") if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else ("f32",)


def placed_profile(given: str, profile: Profile, ceilings: Ceilings) -> Dict[str, Any]:
    """One engine's part of the result."""
    rows = [placed(layer, ceilings) for layer in profile.layers]
    return {
        "file": given,
        "engine": profile.engine,
        "frames": profile.frames,
        "totals": totals(rows, profile.frame_ms),
        "groups": by_group(rows),
        "above": above_peak(rows, ceilings),
        "unmapped": list(profile.unmapped),
        "layers": rows,
    }


def parse(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    """The arguments, checked."""
    parser = command_parser("benchmarks/roofline.py", __doc__)
    parser.add_argument("files", nargs="*", default=list(NETWORKS), help="networks or engine files")
    parser.add_argument("--engines", default=",".join(ENGINES), help=f"of {', '.join(ENGINES)} (default: all)")
    add(parser, "--size", help="input size of networks that are exported (default 512x1024)")
    add(parser, "--threads", default=usable_cores(), help="CPU threads (default: all)")
    parser.add_argument("--frames", type=int, default=30, help="frames per engine, profiled and plain")
    parser.add_argument("--top", type=int, default=12, help="layers to list per engine")
    parser.add_argument("--ceilings", type=Path, help="take the ceilings from this earlier --json instead of measuring")
    add_common(parser, "--json", "--plot")
    args = parser.parse_args(argv)
    check_threads(args.threads)
    args.wanted = [name for name in args.engines.split(",") if name]
    for name in args.wanted:
        if name not in ENGINES:
            raise GradsegError(f"unknown engine {name!r}; expected some of {', '.join(ENGINES)}")
    if args.frames < 1 or args.top < 0:
        raise GradsegError("--frames must be at least 1 and --top at least 0")
    for path in filter(None, (args.json, args.plot)):
        check_writable(path)
    return args


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse(argv)
    need("the roofline", "export", "onnx", "onnxruntime", *(["matplotlib"] if args.plot else []))
    from gradseg.benchmarks.ceilings.page import ceilings_text, draw, engine_text

    measured = known_ceilings(args)
    for each in measured:
        print(ceilings_text(each), flush=True)
    against = measured[-1]
    found: List[Dict[str, Any]] = []
    for given in args.files:
        with as_engine(given, args.size) as path:
            for profiler in profilers(path, args.wanted, args.threads, args.frames):
                found.append(placed_profile(given, profiler(), ceilings_of(against)))
                print("\n" + engine_text(found[-1], args.top), flush=True)
    if not found:
        raise GradsegError(f"none of {', '.join(args.wanted)} runs {', '.join(args.files)}")
    if args.plot:
        draw(found, against, args.plot)
    if args.json:
        known = conditions(threads=args.threads, frames=args.frames)
        write_json(args.json, {"ceilings": measured, "engines": found, "conditions": known})
    return 0


def known_ceilings(args: argparse.Namespace) -> List[Dict[str, Any]]:
    """Of one thread and of all; the last is what layers are placed against."""
    if args.ceilings is None:
        return [measure_ceilings(threads) for threads in sorted({1, args.threads})]
    read: List[Dict[str, Any]] = read_json(args.ceilings, "the --json of an earlier run").get("ceilings", [])
    fitting = [each for each in read if each["threads"] == args.threads]
    if not fitting:
        raise GradsegError(f"--ceilings {args.ceilings}: has none of {args.threads} threads; measure them anew")
    return fitting


if __name__ == "__main__":
    run_main(main)
