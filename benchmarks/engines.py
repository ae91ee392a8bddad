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
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from gradseg.base.conditions import conditions, usable_cores
from gradseg.base.errors import GradsegError, run_main
from gradseg.base.files import check_output, write_json
from gradseg.base.options import add, add_common, check_threads, command_parser
from gradseg.base.packages import need
from gradseg.benchmarks.common.job import Job
from gradseg.benchmarks.common.process import Worker, WorkerError
from gradseg.benchmarks.common.tables import aligned
from gradseg.benchmarks.common.turns import Rounds, take_turns
from gradseg.benchmarks.survey.base import ENGINES, FRAMES, engine
from gradseg.commands import ROOT
from gradseg.models.spec import parse_size
from gradseg.runtime.loop.latency import SETTLE, TURN

ASSETS = ROOT / "assets"
NETWORKS = (str(ASSETS / "dg2-star-light.pth"), str(ASSETS / "dg4-star-light.pth"), "erfnet")
REFERENCE = ("onnxruntime", "fp32")
CONVERT_S, OPEN_S, HELLO_S = 1800, 300, 120
BASE = "gradseg.benchmarks.survey.base"
Row = Dict[str, Any]


def planned(names: Sequence[str], pythons: Dict[str, str], folder: Path) -> Tuple[List[Row], Dict[str, str]]:
    """A row for every engine and precision, those with a reason in "not_measured" that will not run; and the pip
    commands of the engines that are missing."""
    rows: List[Row] = []
    pip: Dict[str, str] = {}
    for name in names:
        module, reason = engine(name), ""
        try:
            with Worker(folder / "logs" / f"{name}.txt", python=pythons.get(name)) as worker:
                lacking = worker.ask("missing", HELLO_S, packages=module.NEEDS)["missing"]
            if lacking:
                pip[name] = module.PIP
                reason = f"not installed ({', '.join(lacking)}): {module.PIP}"
        except WorkerError as error:
            reason = str(error)
        rows += [
            {"engine": name, "precision": each, **({"not_measured": reason} if reason else {})} for each in module.FILES
        ]
    return rows, pip


def measure_network(job: Job, rows: Sequence[Row], pythons: Dict[str, str], samples: int) -> None:
    """Converts, checks and times every row in place. job: from `write_source`."""
    running: Dict[str, Worker] = {}
    by_name = {f"{row['engine']}-{row['precision']}": row for row in rows}
    reference: Optional[np.ndarray[Any, Any]] = None
    with ExitStack() as stack:
        for name, row in by_name.items():
            if "not_measured" in row:
                continue
            print(f"  {row['engine']} {row['precision']}: converting", flush=True)
            try:
                running[name], logits = opened(stack, job, name, row, pythons.get(row["engine"]))
            except WorkerError as error:
                row["not_measured"] = str(error)
                continue
            reference = logits if reference is None else reference  # the first row's: ONNX Runtime in FP32
            row.update(compared(logits, reference))
        rounds = Rounds(job.folder / "rounds.jsonl", {}, keep=False)
        times, failed = take_turns(running, samples, rounds, lambda line: None, min(TURN, samples), SETTLE)
    for name, reason in failed.items():
        by_name[name]["not_measured"] = reason
    for name, taken in times.items():
        ms = np.array(taken[:samples])[:, 0] / 1e6
        p50, p90, p99 = (float(value) for value in np.percentile(ms, (50, 90, 99)))
        by_name[name].update(p50_ms=p50, p90_ms=p90, p99_ms=p99, min_ms=float(ms.min()), samples=len(ms))


def opened(
    stack: ExitStack, job: Job, name: str, row: Row, python: Optional[str]
) -> Tuple[Worker, np.ndarray[Any, Any]]:
    """The row's engine in a process, asleep, and its logits of the first frame. Raises WorkerError."""
    module, logs, logits = engine(row["engine"]), job.folder / "logs", job.folder / f"{name}.npy"
    asked: Row = {"module": module.__name__, "job": job.to_dict(), "variant": row["precision"]}
    with Worker(logs / f"build-{name}.txt", python=python) as builder:
        row["convert_s"] = round(builder.ask("build", CONVERT_S, **asked)["seconds"], 1)
    row["file_bytes"] = (job.folder / module.FILES[row["precision"]]).stat().st_size
    worker = Worker(logs / f"{name}.txt", python=python)
    asked.update(module=BASE, variant=f"{row['engine']} {row['precision']}", kept=str(logits), first=1)
    row["version"] = worker.open(stack, OPEN_S, frames=str(job.folder / FRAMES), **asked)["version"]
    return worker, np.load(logits, allow_pickle=False)[0]


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


def table(network: Row) -> str:
    """One network's rows as text, the fastest first."""
    timed = sorted((row for row in network["rows"] if "p50_ms" in row), key=lambda row: float(row["p50_ms"]))
    base = next((row["p50_ms"] for row in timed if (row["engine"], row["precision"]) == REFERENCE), None)
    cells = [["  engine", "precision", "p50 ms", "p90 ms", "speed-up", "labels equal"]]
    for row in timed:
        speed = f"{base / row['p50_ms']:.2f}x" if base else "-"
        times = [f"{row[name]:.1f}" for name in ("p50_ms", "p90_ms")]
        cells.append([f"  {row['engine']}", row["precision"], *times, speed, f"{100 * row['agreement']:.3f}%"])
    for row in network["rows"]:
        if "p50_ms" not in row:
            cells.append([f"  {row['engine']}", f"{row['precision']:>9}  not measured: {row['not_measured']}"])
    notes = [f"  {row['version']}{'; ' + row['note'] if 'note' in row else ''}" for row in timed]
    lines = [line + note for line, note in zip_longest(aligned(cells), ["", *notes], fillvalue="")]
    return "\n".join([f"{network['id']}, {network['gmac']} GMAC, {network['weights']}", *lines])


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
    check_output("--json", args.json)
    # the reference always, and first: the others' labels are compared with it
    args.names = [REFERENCE[0], *(name for name in args.names if name != REFERENCE[0])]
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
        job, network = write_source(name, parse_size(args.size), folder, args.threads)
        network["rows"], pip = planned(args.names, args.pythons, folder)
        measure_network(job, network["rows"], args.pythons, args.samples)
        networks.append(network)
        print(table(network), flush=True)
    return networks, pip


if __name__ == "__main__":
    run_main(main)
