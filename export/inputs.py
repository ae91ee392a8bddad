"""What the export scripts share: arguments, the output file, and a checkpoint or an ONNX file as a verified model."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

import numpy as np

from gradseg.calibration.cpu import int8_saturates
from gradseg.calibration.observers import METHODS
from gradseg.calibration.sessions import OnnxRunner, scores_of
from gradseg.calibration.sources import default_source, other_scenes
from gradseg.export import verify
from gradseg.models import metadata
from gradseg.models.errors import GradsegError
from gradseg.models.files import atomic_path, check_writable, require_file
from gradseg.models.spec import ModelSpec, parse_size
from gradseg.runtime.engine import read_spec

ENOUGH = 0.95  # share of labels equal to FP32's below which INT8 comes with a warning


@dataclass
class Loaded:
    """An ONNX model in memory with its spec. `agreement`: with PyTorch, None if it came from an ONNX file."""

    model: Any  # onnx.ModelProto
    spec: ModelSpec
    agreement: Optional[verify.Agreement] = None
    warnings: Tuple[str, ...] = ()

    @property
    def precision(self) -> str:
        return next((e.value for e in self.model.metadata_props if e.key == metadata.PRECISION), "fp32")


def add_model_arguments(parser: argparse.ArgumentParser, onnx: bool = True) -> None:
    """The arguments that every export script shares."""
    kinds = "checkpoint (.pth) or ONNX model (.onnx)" if onnx else "checkpoint (.pth)"
    parser.add_argument("model", help=kinds)
    parser.add_argument("-o", "--out", help="file to write; by default beside the input")
    parser.add_argument(
        "--arch", help="architecture of a bare state dict, such as erfnet for public ERFNet checkpoints"
    )
    parser.add_argument("--size", help="input size HEIGHTxWIDTH in place of the checkpoint's")
    parser.add_argument(
        "--data",
        default=None,
        help="frames to verify on: camvid:DIR, folder:DIR, an image folder, a video (default: scenes:)",
    )
    if onnx:
        parser.add_argument("--spec", help="ModelSpec as a JSON file, for an ONNX model without GradSeg metadata")


def add_calibration_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the scripts that can make INT8, which `int8_model` reads."""
    add = parser.add_argument
    add("--calib", help="frames to calibrate INT8 on: camvid:DIR, folder:DIR, an image folder, a video")
    add("--calib-frames", type=int, default=32, help="at most this many, evenly spread (default 32)")
    add("--calib-method", default="mse", choices=METHODS, help="how ranges are chosen (default mse)")
    add("--power-of-two", action="store_true", help="activation scales as powers of two")


def check_out(model: str, out: Path, suffixes: Sequence[str]) -> None:
    """Raises GradsegError unless `out` can be written, ends in one of `suffixes` and is not the input. Leaves nothing.

    To be called before any work is done.
    """
    with contextlib.suppress(OSError):
        if out.resolve() == Path(model).resolve() or out.samefile(model):
            raise GradsegError(f"{out}: would overwrite its own input; name another file with -o")
    if out.suffix.lower() not in suffixes and not out.is_dir():
        example = out.with_suffix(suffixes[0]).name if out.name else f"NAME{suffixes[0]}"
        raise GradsegError(f"{out}: the output must end in {' or '.join(suffixes)}, such as -o {example}")
    check_writable(out)


def write_out(out: Path, data: bytes) -> None:
    """Writes a file in one step, with the folders it needs."""
    with atomic_path(out) as temporary:
        temporary.write_bytes(data)


def need_packages(where: str, *names: str) -> None:
    """Raises GradsegError with exit code 3, saying what to install, unless all these packages can be imported."""
    missing = []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise GradsegError(
            f"{where}: this needs {' and '.join(missing)}, not installed here: pip install {' '.join(missing)}",
            exit_code=3,
        )


def frames_text(source: Optional[str]) -> str:
    """What frames were used, for people; None is the default source."""
    return source or "procedural scenes"


def size_of(args: argparse.Namespace) -> Optional[Tuple[int, int]]:
    return parse_size(args.size) if args.size else None


def load_checkpoint_for(path: str, arch: Optional[str], size_hw: Optional[Tuple[int, int]]) -> Any:
    """The checkpoint, its spec at `size_hw`; `arch` names a bare state dict's architecture. Imports torch."""
    try:
        from gradseg.models.checkpoint import load_checkpoint, public_spec, read_raw
    except ImportError as error:
        raise GradsegError(
            f"{path}: a checkpoint needs PyTorch, which is not installed here; export it to ONNX where it is "
            "(python export/to_onnx.py CKPT) and give the .onnx file",
            exit_code=3,
        ) from error
    bare = arch is not None and "spec" not in read_raw(path)
    ckpt = load_checkpoint(path, public_spec(path, arch) if arch is not None and bare else None)
    if arch is not None and ckpt.spec.arch != arch:
        raise GradsegError(f"{path}: --arch {arch}, but the checkpoint is of {ckpt.spec.arch}; leave --arch out")
    if size_hw is not None:
        ckpt.spec = ckpt.spec.with_size(size_hw)
    return ckpt


def model_from_checkpoint(
    path: str,
    arch: Optional[str] = None,
    size_hw: Optional[Tuple[int, int]] = None,
    data: Optional[str] = None,
    logits: bool = False,
) -> Loaded:
    """Exports a checkpoint and verifies it against PyTorch on real frames; GradsegError if it does not hold."""
    need_packages(path, "onnx", "onnxsim", "onnxruntime")
    ckpt = load_checkpoint_for(path, arch, size_hw)
    from gradseg.export.onnx_export import onnx_from_checkpoint

    model = onnx_from_checkpoint(ckpt, logits=logits)
    batches = verify.verification_batches(data or default_source(ckpt.spec.input_hw), ckpt.spec.input_hw)
    agreement, warnings = verify_against_checkpoint(model, ckpt, batches, path, logits)
    return Loaded(model, ckpt.spec, agreement, tuple(warnings))


def verify_against_checkpoint(
    model: Any, ckpt: Any, batches: List[np.ndarray[Any, Any]], where: str, logits: bool
) -> Tuple[verify.Agreement, List[str]]:
    """Runs the model in ONNX Runtime beside the PyTorch network; gives agreement and warnings. See `verify`."""
    import torch

    from gradseg.runtime.preprocess import normalised_chw

    runner = OnnxRunner(model.SerializeToString(), where)

    def reference(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            output = ckpt.network(torch.from_numpy(normalised_chw(batch, ckpt.spec)))
        logits: np.ndarray[Any, Any] = output.numpy()
        return logits

    def network(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if not logits:
            return runner.run(batch)[0]
        best: np.ndarray[Any, Any] = runner.run(normalised_chw(batch, ckpt.spec))[0].argmax(axis=1)
        return best

    def scores(batch: np.ndarray[Any, Any]) -> Optional[np.ndarray[Any, Any]]:
        return runner.run(normalised_chw(batch, ckpt.spec))[0] if logits else scores_of(model, batch, where)

    agreement = verify.check_equal(network, reference, batches, where)
    return agreement, verify.check_alive(network, batches, where, scores)


def model_from_onnx(path: str, spec_file: Optional[str] = None) -> Loaded:
    """Reads an ONNX file in the deployment form, or in the logits form, which is then turned into the deployment form.

    Raises GradsegError for a file that is not ONNX, that has no spec, or whose input disagrees with its spec.
    """
    found = require_file(path, "an ONNX model (.onnx)")
    values = metadata.read_metadata(found)
    spec = spec_for_onnx(values, path, spec_file)
    need_packages(path, "onnx")
    import onnx

    try:
        model = onnx.load(str(found))
        onnx.checker.check_model(model)
    except Exception as error:  # onnx and protobuf raise many classes for a damaged file
        raise GradsegError(f"{path}: not a valid ONNX model ({str(error).splitlines()[0][:160]})") from error
    inputs = list(model.graph.input)
    for value in [*inputs, *model.graph.output]:  # an open batch dimension becomes 1
        batch = value.type.tensor_type.shape.dim[:1]
        if batch and not batch[0].dim_value:
            batch[0].dim_value = 1
    dims = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim] if len(inputs) == 1 else []
    elem = inputs[0].type.tensor_type.elem_type if inputs else 0
    if elem == onnx.TensorProto.UINT8 and dims == [1, *spec.input_hw, 3]:
        if metadata.SPEC not in values:  # it came with --spec: from here on it travels inside
            metadata.set_metadata(model, {metadata.SPEC: spec.to_json(), metadata.FORMAT: metadata.DEPLOYMENT})
        return Loaded(model, spec)
    if elem == onnx.TensorProto.FLOAT and dims == [1, 3, *spec.input_hw] and len(model.graph.output) == 1:
        need_packages(path, "torch", "onnxsim")
        from gradseg.calibration.graph import shapes_of
        from gradseg.export.onnx_export import deployment_from_logits

        found_shape = tuple(shapes_of(model).get(model.graph.output[0].name, ()))
        needed_shape = (1, spec.num_classes, *spec.input_hw)
        if found_shape != needed_shape:
            raise GradsegError(
                f"{path}: its output is {list(found_shape)}, its spec needs logits {list(needed_shape)} "
                "(1, classes, height, width); correct the spec, or export the network up to its logits"
            )
        return Loaded(deployment_from_logits(model, spec), spec)
    raise GradsegError(
        f"{path}: expected one input, uint8 {[1, *spec.input_hw, 3]} or float32 {[1, 3, *spec.input_hw]} as its spec "
        f"says; found {len(inputs)} input(s), the first {dims}"
    )


def spec_for_onnx(values: Any, path: str, spec_file: Optional[str]) -> ModelSpec:
    """The spec in the metadata, or the one in `spec_file` for a file without."""
    if metadata.SPEC not in values and spec_file:
        return read_spec(spec_file)
    return metadata.spec_from_metadata(values, path)


def refuse_checkpoint_options(args: argparse.Namespace) -> None:
    """Raises GradsegError if options that only a checkpoint can follow are given with an ONNX file."""
    if args.size or args.arch:
        raise GradsegError(
            f"{args.model}: --size and --arch are for checkpoints; an ONNX file's size is fixed; export it "
            "again from its checkpoint: python export/to_onnx.py CKPT --size HxW"
        )


def load_any(args: argparse.Namespace) -> Loaded:
    """A checkpoint or an ONNX file by its suffix, from the arguments that `add_model_arguments` defines."""
    suffix = Path(args.model).suffix.lower()
    if suffix == ".onnx":
        refuse_checkpoint_options(args)
        return model_from_onnx(args.model, args.spec)
    return model_from_checkpoint(args.model, args.arch, size_of(args), args.data)


def int8_model(loaded: Loaded, args: argparse.Namespace, target: str) -> Tuple[Any, str]:
    """Calibrates as the arguments say, aloud if on scenes; the INT8 model and the source used."""
    source = args.calib
    if source is None:
        source = default_source(loaded.spec.input_hw)
        print(
            f"note: no --calib given, so INT8 is calibrated on procedural scenes ({source}); "
            "calibrate on your own frames for your own camera"
        )
    from gradseg.calibration.calibrate import Settings, int8_from_fp32
    from gradseg.calibration.quantise import is_quantised

    model = loaded.model
    if is_quantised(model):
        raise GradsegError(f"{args.model}: is INT8 already; calibrate its FP32 form or its checkpoint")
    if target == "cpu":
        from gradseg.calibration.graph import Graph
        from gradseg.export.passes.dense_groups import dense_groups
        from gradseg.export.passes.rows_head import rows_head

        graph = Graph(model)
        dense_groups(graph)
        rows_head(graph)
        model = graph.to_model()
    reduced = target == "cpu" and reduces_range(args.reduce_range)
    settings = Settings(target, args.calib_method, args.calib_frames, args.power_of_two, reduced)

    def progress(frames: int) -> None:
        if sys.stderr.isatty():
            print(f"\rcalibrating: {frames} frames", end="\n" if frames == args.calib_frames else "", file=sys.stderr)

    return int8_from_fp32(model, source, settings, getattr(args, "threads", None), progress), source


def reduces_range(choice: str) -> bool:
    """What `--reduce-range` auto, on or off means on this machine."""
    return choice == "on" or (choice == "auto" and int8_saturates())


def verification_source(args: argparse.Namespace, calibrated_on: str) -> Tuple[str, str]:
    """The frames that INT8 is verified on, and them in words: --data, else scenes of another seed, else the same."""
    if args.data:
        return args.data, f"of {args.data}"
    other = other_scenes(calibrated_on)
    if other is not None:
        return other, f"of {other} (other scenes than the calibration's)"
    return calibrated_on, f"of the calibration source, {calibrated_on}; --data verifies on other frames"


def int8_lines(agreement: verify.Agreement, words: str, note: str = "") -> List[str]:
    """What is said of the labels of INT8: the agreement, before it a warning if that is low."""
    lines = [f"INT8: labels equal to FP32's on {agreement} {words}{note}"]
    if agreement.fraction < ENOUGH:
        lines.insert(
            0,
            f"warning: INT8 changes {100 * (1 - agreement.fraction):.1f} % of the labels; calibrate on frames of your "
            "own camera (--calib), try another --calib-method, or keep FP32",
        )
    return lines


def size_text(path: Path) -> str:
    """A file's size for people: '1.21 MB'."""
    size = path.stat().st_size
    return f"{size / 1e6:.2f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
