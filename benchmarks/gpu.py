"""Builds, checks and measures the TensorRT engines of a GPU machine, and says how far they are from its floors.

    python benchmarks/gpu.py                              all of it on one machine, unattended
    python benchmarks/gpu.py --prepare PACK --data camvid:DIR/val --calib camvid:DIR/train
    python benchmarks/gpu.py --from PACK                  on the GPU machine

`--prepare` needs torch, onnx and onnxruntime, and no GPU; `--from` needs Python 3.8, NumPy, OpenCV, TensorRT 8.5 or
newer and cuda-python, and PYTHONPATH=src where GradSeg is not installed. PyTorch is measured in the same run where some
Python of the machine has it with CUDA. A killed run loses nothing: `--resume` goes on, with plans taken up where they
lie (`--plans`). Where commands are ended after ten minutes: `--time-budget 540`, then `--resume --time-budget 540`
until it says that it is complete.

Exit code: 0; 1 if an engine failed, is missing, or a check does not hold; 2 for a wrong command; 3 without a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from gradseg.base.conditions import conditions
from gradseg.base.errors import GradsegError, run_main
from gradseg.base.files import check_writable
from gradseg.base.json_process import die_with_parent
from gradseg.base.options import command_parser
from gradseg.base.packages import need
from gradseg.benchmarks.on_gpu.engines import Backend, OnOnnxRuntime, TensorRt
from gradseg.benchmarks.on_gpu.index import BORDERS, PRECISIONS, Pack
from gradseg.benchmarks.on_gpu.launch import AGAIN, Launch, TorchProcess, in_process_of_its_own, run_models, start_torch
from gradseg.benchmarks.on_gpu.measure import SETTLE, TURN
from gradseg.benchmarks.on_gpu.results import Results, table
from gradseg.benchmarks.on_gpu.run import FreshProcess, Run, Settings, rows_for
from gradseg.commands import command
from gradseg.models.spec import ARCHS, parse_size

RESULTS = Path(__file__).resolve().parent / "results"
MODELS = "erfnet,d-star-light,dg2-star-light,dg4-star-light"
VARIANTS = ("eager", "compile", "half", "half-compile")
SCRIPT = "benchmarks/gpu.py"


def parser_of() -> argparse.ArgumentParser:
    parser = command_parser(SCRIPT, __doc__)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--prepare", type=Path, metavar="DIR", help="only write what a GPU machine needs to DIR")
    where.add_argument("--from", dest="pack", type=Path, metavar="DIR", help="only measure what lies in DIR")
    add = parser.add_argument_group("what is prepared").add_argument
    add("--models", help=f"default {MODELS}; with --from, some of those prepared")
    add("--checkpoint", action="append", default=[], metavar="ID=PATH", help="default: assets/ID.pth, or untrained")
    add("--size", default="512x1024", help="HEIGHTxWIDTH that the networks see (default 512x1024)")
    add("--frame-size", default="540x960", help="HEIGHTxWIDTH of the camera's frames (default 540x960)")
    add("--data", help="labelled frames: camvid:DIR, folder:DIR, scenes: (default: procedural scenes)")
    add("--calib", help="frames that INT8 is calibrated on (default: other procedural scenes)")
    add("--frames", type=int, help="how many of the frames, evenly spread (default: as many as fit)")
    add("--max-mib", type=float, default=40.0, help="size of DIR (default 40)")
    add("--seed", type=int, default=0, help="of untrained weights")
    add = parser.add_argument_group("what is measured").add_argument
    add("--precisions", default=",".join(PRECISIONS), help="default fp32,fp16,int8")
    add("--borders", default=",".join(BORDERS), help="network: OpenCV resizes; frame: the engine does (default both)")
    add("--torch", default="eager,compile,half", help=f"of {','.join(VARIANTS)}, or none (default eager,compile,half)")
    add("--torch-python", metavar="PYTHON", help="a Python with PyTorch and CUDA (default: this one, else python3)")
    add("--samples", type=int, default=200, help="timed frames per engine (default 200)")
    add("--warmup", type=int, default=20, help="untimed frames per engine before them (default 20)")
    add(
        "--json", type=Path, help="JSON file for the result (default: gpu_NAME.json, in a clone in benchmarks/results/)"
    )
    add("--plans", type=Path, metavar="DIR", help="where plans are kept for --resume (default: beside --from)")
    add("--time-budget", type=float, metavar="S", help="start nothing new after S seconds")
    add("--resume", action="store_true", help="go on with the result file")
    add("--stand-in", choices=("ort",), help="try this script: ONNX Runtime on the CPU in TensorRT's place")
    add("--worker", metavar="MODEL", help=argparse.SUPPRESS)
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    began = time.monotonic()
    args = parser_of().parse_args(argv)
    deadline = None if args.time_budget is None else began + args.time_budget
    settings = settings_from(args, deadline)
    _check_json(args)
    if args.worker:
        return work(args, settings)
    if args.prepare:
        prepare(args.prepare, args)
        print(f"run on the GPU machine: {command(SCRIPT, '--from', args.prepare)}")
        return 0
    if args.pack:
        return run(args.pack, args, settings)
    folder = Path(tempfile.mkdtemp(prefix="gradseg-gpu-"))
    pack = folder / "pack"
    try:
        prepare(pack, args)
    except BaseException:  # a wrong option, Ctrl-C: half a pack is of no use
        shutil.rmtree(folder, ignore_errors=True)
        raise
    try:
        code = run(pack, args, settings)
    except GradsegError as error:
        if error.exit_code != 3:
            raise
        there = command(SCRIPT, "--from", pack)
        raise GradsegError(f"{error}. Pack in {pack}; run on the GPU machine: {there}", 3) from error
    if code == 0:
        shutil.rmtree(folder)
    else:
        print(f"kept, for --from {pack} --resume: {folder}")
    return code


def settings_from(args: argparse.Namespace, deadline: Optional[float]) -> Settings:
    """The settings of a run; GradsegError for values that cannot be."""
    if args.samples < 1 or args.warmup < 0:
        raise GradsegError("--samples must be at least 1 and --warmup at least 0")
    if args.time_budget is not None and args.time_budget < 0:
        raise GradsegError(f"--time-budget {args.time_budget:g}: expected seconds, 0 or more")
    return Settings(
        precisions=_some_of("--precisions", args.precisions, PRECISIONS),
        borders=_some_of("--borders", args.borders, BORDERS),
        torch=() if args.torch == "none" else _some_of("--torch", args.torch, VARIANTS),
        samples=args.samples,
        warmup=args.warmup,
        deadline=deadline,
    )


def _some_of(option: str, text: str, known: Sequence[str]) -> Tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        raise GradsegError(f"{option} {text}: {wrong[0] if wrong else 'nothing'} is none of {', '.join(known)}")
    return names


def _check_json(args: argparse.Namespace) -> None:
    """A stand-in's figures must not be taken for a GPU's."""
    if not args.stand_in or args.prepare:
        return
    if args.json is None or RESULTS in [*args.json.resolve().parents]:
        raise GradsegError(f"--stand-in {args.stand_in}: is no GPU's result; name --json FILE outside {RESULTS}")


def prepare(folder: Path, args: argparse.Namespace) -> None:
    """Writes the pack; GradsegError with exit code 3 where what that needs is missing."""
    models = _some_of("--models", args.models or MODELS, tuple(ARCHS))
    checkpoints: Dict[str, Path] = {}
    for given in args.checkpoint:
        name, equals, path = given.partition("=")
        if not equals or name not in models:
            raise GradsegError(f"--checkpoint {given}: expected ID=PATH with an ID of --models ({', '.join(models)})")
        checkpoints[name] = Path(path)
    if sys.version_info < (3, 10):
        raise GradsegError(f"--prepare needs Python 3.10 or newer; this is {sys.version.split()[0]}", 3)
    need("--prepare", "export", "torch", "onnx", "onnxruntime")
    from gradseg.benchmarks.on_gpu.pack import SCENES, Job
    from gradseg.benchmarks.on_gpu.pack import prepare as write_pack

    sizes, more = (parse_size(args.size), parse_size(args.frame_size)), (args.frames, args.max_mib, args.seed)
    inside = {"torch": args.torch != "none", "baked": "frame" in args.borders}
    write_pack(folder, Job(models, *sizes, args.data or SCENES, args.calib, checkpoints, *more, **inside))


def run(folder: Path, args: argparse.Namespace, settings: Settings, launch: Optional[Launch] = None) -> int:
    """Measures a pack and prints the table. launch: see `run_models`; by default a process for each model."""
    pack = Pack(folder)
    others = pack.check_all()
    note = f"; {others} are decoded to other pixels here and count for mIoU alone" if others else ""
    print(f"pack in {folder}: complete, {len(pack.models)} networks, {len(pack)} frames{note}")
    if args.models:
        settings = dataclasses.replace(settings, models=_some_of("--models", args.models, pack.models))
    plans = args.plans or folder.with_name(f"{folder.name}-plans")
    backend = backend_for(args, plans)
    path = args.json or (RESULTS if RESULTS.is_dir() else Path()) / f"gpu_{slug(backend)}.json"
    check_writable(path)
    identity = identity_of(pack, backend, settings)
    if args.resume and path.exists():
        results = Results.read(path)
        results.check_same(identity)
        results.data.setdefault("resumed", []).append(conditions()["date"])
    else:
        rows = rows_for(pack, settings, bool(args.stand_in))
        results = Results.new(path, identity, rows, facts_of(pack, settings))
    results.save()
    command = worker_command(args, folder, path, plans)
    results = run_models(
        path, settings.models or pack.models, settings.deadline, launch or in_process_of_its_own(command)
    )
    results.finish({model: pack.scored(model) for model in pack.models})
    print(table(results.data))
    print(f"wrote {path}" + ("" if results.data["complete"] else "; not complete, go on with --resume"))
    return results.exit_code


def work(args: argparse.Namespace, settings: Settings) -> int:
    """One model's rows, in a process of their own."""
    die_with_parent(signal.SIGTERM)  # however it ends: two must not write one result file
    pack = Pack(args.pack)
    backend = backend_for(args, args.plans)
    results = Results.read(args.json)

    def torch_process() -> TorchProcess:
        return start_torch(args.pack, args.torch_python, cpu=backend.stand_in is not None)

    try:
        Run(pack, backend, results, settings, torch_process, lambda line: print(line, flush=True)).model(args.worker)
    except FreshProcess:
        return AGAIN
    return 0


def backend_for(args: argparse.Namespace, plans: Path) -> Backend:
    return OnOnnxRuntime(plans) if args.stand_in == "ort" else TensorRt(plans)


def slug(backend: Backend) -> str:
    """A GPU's name for a file: "NVIDIA H100 80GB HBM3" → "nvidia_h100_80gb_hbm3"."""
    name = backend.gpu.name if backend.gpu is not None else "none"
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "unknown"


def identity_of(pack: Pack, backend: Backend, settings: Settings) -> Dict[str, Any]:
    """What makes two runs one: see `on_gpu.results.IDENTITY`."""
    return {
        "pack": pack.sha256,
        "gpu": [backend.gpu.name, backend.gpu.compute_capability] if backend.gpu is not None else None,
        "library": backend.library,
        "version": backend.version,
        "stand_in": backend.stand_in,
        "settings": settings.to_dict(),
    }


def facts_of(pack: Pack, settings: Settings) -> Dict[str, Any]:
    """Everything else that a figure needs."""
    return {
        "input_hw": list(pack.input_hw),
        "frame_hw": list(pack.frame_hw),
        "data": {**pack.index["data"], "frames": len(pack)},
        "weights": {model: pack.index["models"][model]["weights"] for model in pack.models},
        "prepared": pack.index["conditions"],
        "conditions": conditions(samples=settings.samples, warmup=settings.warmup, turn=TURN, settle=SETTLE),
    }


def worker_command(args: argparse.Namespace, folder: Path, path: Path, plans: Path) -> List[str]:
    """This script again, for `--worker MODEL`."""
    command = [str(Path(__file__).resolve()), "--from", str(folder), "--json", str(path), "--plans", str(plans)]
    for name in ("precisions", "borders", "torch", "samples", "warmup", "torch_python", "stand_in"):
        value = getattr(args, name)
        command += [f"--{name.replace('_', '-')}", str(value)] if value not in (None, "") else []
    return command


if __name__ == "__main__":
    run_main(main)
