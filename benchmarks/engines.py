"""Other engines on these networks: ncnn, MNN, LiteRT and ExecuTorch (both XNNPACK) beside ONNX Runtime and OpenVINO.

python benchmarks/engines.py
python benchmarks/engines.py assets/dg2-star-light.pth erfnet --engines onnxruntime,ncnn --json engines.json
python benchmarks/engines.py --python litert=/venvs/litert/bin/python --python executorch=/venvs/et/bin/python

Networks are checkpoints or ids of architectures (random weights then), all in the logits form: normalised float frame
in, float logits out, nothing before or behind. Every engine converts them in its usual way and runs in a process of
its own, under the Python given for it; processes take turns and are stopped in between. The labels of one frame are
compared with ONNX Runtime's in FP32. What cannot be measured here stands in the table with its reason.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from gradseg.base.conditions import conditions, usable_cores
from gradseg.base.errors import GradsegError, run_main
from gradseg.base.files import check_writable, write_json
from gradseg.base.options import add, add_common, check_threads, command_parser
from gradseg.base.packages import need
from gradseg.benchmarks.survey.base import ENGINES, engine
from gradseg.benchmarks.survey.process import CONVERT_S, OPEN_S, TURN_S, EngineProcess, WorkerFailed, probe
from gradseg.models.spec import parse_size
from gradseg.runtime.loop.latency import SETTLE, TURN

ASSETS = Path(__file__).resolve().parent.parent / "assets"
NETWORKS = (str(ASSETS / "dg2-star-light.pth"), str(ASSETS / "dg4-star-light.pth"), "erfnet")
REFERENCE = ("onnxruntime", "fp32")
Row = Dict[str, Any]


def planned(
    names: Sequence[str], pythons: Dict[str, str], source: Path, folder: Path
) -> Tuple[List[Row], Dict[str, str]]:
    """A row for every engine and precision, those with a reason in "not_measured" that will not run; and the pip
    commands of the engines that are missing."""
    rows: List[Row] = []
    pip: Dict[str, str] = {}
    for name in names:
        module, reason = engine(name), None
        try:
            lacking = probe(name, source, folder, pythons.get(name))["missing"]
            if lacking:
                pip[name] = module.PIP
                reason = f"not installed ({', '.join(lacking)}): {module.PIP}"
        except WorkerFailed as error:
            reason = str(error)
        rows += [
            {"engine": name, "precision": each, **({"not_measured": reason} if reason else {})}
            for each in module.PRECISIONS
        ]
    return rows, pip


def measure_network(folder: Path, rows: Sequence[Row], pythons: Dict[str, str], threads: int, samples: int) -> None:
    """Converts, checks and times every row in place. folder: from `write_source`."""
    running: List[Tuple[Row, EngineProcess]] = []
    reference: Optional[np.ndarray[Any, Any]] = None
    try:
        for row in rows:
            if "not_measured" in row:
                continue
            print(f"  {row['engine']} {row['precision']}: converting", flush=True)
            try:
                process, logits = opened(row, folder, pythons.get(row["engine"]), threads)
            except WorkerFailed as error:
                row["not_measured"] = str(error)
                continue
            running.append((row, process))
            if reference is None:
                reference = logits  # of the first row: ONNX Runtime in FP32
            row.update(compared(logits, reference))
        take_turns(running, samples)
    finally:
        for _, process in running:
            process.close()


def opened(row: Row, folder: Path, python: Optional[str], threads: int) -> Tuple[EngineProcess, np.ndarray[Any, Any]]:
    """The row's engine in a process, asleep, and its logits of the first frame. Raises WorkerFailed."""
    source, own = folder / "source.json", folder / f"{row['engine']}-{row['precision']}"
    own.mkdir()
    with EngineProcess(row["engine"], row["precision"], source, own, python) as converting:
        made = converting.ask("convert", CONVERT_S)
    row.update(convert_s=round(made["seconds"], 1), file_bytes=made["bytes"])
    process = EngineProcess(row["engine"], row["precision"], source, own, python)
    try:
        with process.turn():
            logits = own / "logits.npy"
            row["version"] = process.ask("open", OPEN_S, path=made["path"], threads=threads, logits=str(logits))[
                "version"
            ]
        found: np.ndarray[Any, Any] = np.load(logits, allow_pickle=False)
    except BaseException:
        process.close()
        raise
    return process, found


def compared(logits: np.ndarray[Any, Any], reference: np.ndarray[Any, Any]) -> Row:
    """Share of equal labels and the largest difference of the logits, (1, classes, h, w); or, if its last axis holds
    the classes, channels-last. A shape that fits neither way is a wrong answer."""
    if logits.shape != reference.shape and np.moveaxis(logits, -1, 1).shape == reference.shape:
        logits = np.moveaxis(logits, -1, 1)
    if logits.shape != reference.shape:
        return {"agreement": 0.0, "note": f"gives {list(logits.shape)} instead of {list(reference.shape)}"}
    if not np.isfinite(logits).all():
        return {"agreement": 0.0, "note": "gives logits that are not finite"}
    return {
        "agreement": float((logits.argmax(axis=1) == reference.argmax(axis=1)).mean()),
        "max_difference": float(np.abs(logits - reference).max()),
    }


def take_turns(running: Sequence[Tuple[Row, EngineProcess]], samples: int) -> None:
    """Times all in turns of some frames, so that drift of the clocks hits all alike; a row that fails says why."""
    times: Dict[int, List[float]] = {index: [] for index in range(len(running))}
    for start in range(0, samples, TURN):
        for index, (row, process) in enumerate(running):
            if "not_measured" in row:
                continue
            try:
                with process.turn():
                    found = process.ask("run", TURN_S, frames=min(TURN, samples - start), settle=SETTLE)["ms"]
                times[index] += found
            except WorkerFailed as error:
                row["not_measured"] = str(error)
    for index, (row, _) in enumerate(running):
        if times[index] and "not_measured" not in row:
            p50, p90, p99 = (float(value) for value in np.percentile(times[index], (50, 90, 99)))
            row.update(p50_ms=p50, p90_ms=p90, p99_ms=p99, min_ms=min(times[index]), samples=len(times[index]))


def table(network: Row) -> str:
    """One network's rows as text, the fastest first."""
    rows = network["rows"]
    timed = sorted((row for row in rows if "p50_ms" in row), key=lambda row: float(row["p50_ms"]))
    base = next((row["p50_ms"] for row in timed if (row["engine"], row["precision"]) == REFERENCE), None)
    lines = [f"{network['id']}, {network['gmac']} GMAC, {network['weights']}"]
    lines.append(f"  {'engine':<14}{'precision':>10}{'p50 ms':>9}{'p90 ms':>9}{'speed-up':>10}{'labels equal':>14}")
    for row in timed:
        speed = f"{base / row['p50_ms']:.2f}x" if base else "-"
        lines.append(
            f"  {row['engine']:<14}{row['precision']:>10}{row['p50_ms']:>9.1f}{row['p90_ms']:>9.1f}{speed:>10}"
            f"{100 * row['agreement']:>13.3f}%  {row['version']}{'; ' + row['note'] if 'note' in row else ''}"
        )
    for row in rows:
        if "p50_ms" not in row:
            lines.append(f"  {row['engine']:<14}{row['precision']:>10}  not measured: {row['not_measured']}")
    return "\n".join(lines)


def parse(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    """The arguments, checked."""
    parser = command_parser("benchmarks/engines.py", __doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help="checkpoints (.pth) or architectures")
    parser.add_argument("--engines", default=",".join(ENGINES), help=f"of {', '.join(ENGINES)} (default: all)")
    parser.add_argument("--python", action="append", default=[], metavar="ENGINE=PATH", help="its Python interpreter")
    add(parser, "--size", default="512x1024", help="input size (default 512x1024)")
    add(parser, "--threads", default=usable_cores(), help="CPU threads of every engine (default: all)")
    add(parser, "--samples", type=int, default=60, help="timed frames per row (default 60)")
    parser.add_argument("--work", type=Path, help="keep converted files and messages in this new folder")
    add_common(parser, "--json")
    args = parser.parse_args(argv)
    check_threads(args.threads)
    args.names = [name for name in args.engines.split(",") if name]
    args.pythons = dict(given.partition("=")[::2] for given in args.python)
    for name in [*args.names, *args.pythons]:
        if name not in ENGINES:
            raise GradsegError(f"unknown engine {name!r}; expected some of {', '.join(ENGINES)}")
    if args.samples < 1:
        raise GradsegError("--samples must be at least 1")
    if args.work and args.work.exists() and any(args.work.iterdir()):
        raise GradsegError(f"--work {args.work}: is not empty; name a new folder")
    if args.json:
        check_writable(args.json)
    if REFERENCE[0] in args.names:
        args.names.remove(REFERENCE[0])
    args.names.insert(0, REFERENCE[0])  # always: the others' labels are compared with it
    return args


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse(argv)
    with tempfile.TemporaryDirectory() as scratch:
        work = (args.work or Path(scratch)).resolve()
        networks, pip = survey(args, work)
    for name, command in pip.items():
        print(f"{name} is missing: {command}, or --python {name}=PATH of a Python that has it")
    if args.json:
        known = conditions(threads=args.threads, input_hw=list(parse_size(args.size)), samples=args.samples, turn=TURN)
        known["pythons"] = sorted(args.pythons)
        write_json(args.json, {"networks": networks, "missing": pip, "form": "logits", "conditions": known})
    return 0


def survey(args: argparse.Namespace, work: Path) -> Tuple[List[Row], Dict[str, str]]:
    """Every network with its rows, printed as they come; and the pip commands of missing engines."""
    need("the survey", "export", "torch", "onnx", "onnxruntime")
    from gradseg.benchmarks.common.sources import write_source

    networks: List[Row] = []
    pip: Dict[str, str] = {}
    for number, name in enumerate(args.networks):
        folder = work / f"{number}-{Path(name).stem}"
        network: Row = dict(write_source(name, parse_size(args.size), folder))
        rows, pip = planned(args.names, args.pythons, folder / "source.json", folder)
        measure_network(folder, rows, args.pythons, args.threads, args.samples)
        network["rows"] = rows
        networks.append(network)
        print(table(network), flush=True)
    return networks, pip


if __name__ == "__main__":
    run_main(main)
