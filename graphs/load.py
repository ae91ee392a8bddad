"""What the export scripts share: arguments, the output file, and a checkpoint or an ONNX file as a verified model."""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.base.files import atomic_path, check_writable
from gradseg.base.packages import need
from gradseg.commands import command
from gradseg.graphs import verify
from gradseg.graphs.foreign.spec import SAY, Given, given_as, given_by, given_in, refuse_foreign_options, spec_from
from gradseg.graphs.frames import default_source
from gradseg.graphs.sessions import OnnxRunner, scores_of
from gradseg.models import metadata
from gradseg.models.spec import ModelSpec, parse_size


@dataclass
class Loaded:
    """An ONNX model in memory with its spec. `agreement`: with PyTorch, None if it came from an ONNX file. `info`: what
    its checkpoint says of its training. `notes`: lines for the user on how a network of other origin was converted."""

    model: Any  # onnx.ModelProto
    spec: ModelSpec
    agreement: Optional[verify.Agreement] = None
    warnings: Tuple[str, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)
    notes: Tuple[str, ...] = ()

    @property
    def precision(self) -> str:
        return next((e.value for e in self.model.metadata_props if e.key == metadata.PRECISION), "fp32")


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


def frames_text(source: Optional[str]) -> str:
    """What frames were used, for people; None is the default source."""
    return source or "procedural scenes"


def size_of(args: argparse.Namespace) -> Optional[Tuple[int, int]]:
    return parse_size(args.size) if args.size else None


def load_checkpoint_for(path: str, arch: Optional[str], size_hw: Optional[Tuple[int, int]]) -> Any:
    """The checkpoint, its spec at `size_hw`; `arch` names a bare state dict's architecture. Imports torch."""
    there = f"export it where PyTorch is ({command('export/to_onnx.py', Path(path).name)}) and give the .onnx file"
    need(path, "export", "torch", instead=there)
    from gradseg.models.checkpoint import load_checkpoint, public_spec, read_raw

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
    need(path, "export", "onnx", "onnxsim", "onnxruntime")
    ckpt = load_checkpoint_for(path, arch, size_hw)
    from gradseg.graphs.from_torch import onnx_from_checkpoint

    model = onnx_from_checkpoint(ckpt, logits=logits)
    batches = verify.verification_batches(data or default_source(ckpt.spec.input_hw), ckpt.spec.input_hw)
    agreement, warnings = verify_against_checkpoint(model, ckpt, batches, path, logits)
    return Loaded(model, ckpt.spec, agreement, tuple(warnings), ckpt.info)


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


def model_from_onnx(
    path: str, spec_file: Optional[str] = None, given: Optional[Given] = None, data: Optional[str] = None
) -> Loaded:
    """Reads an ONNX file: the deployment form as it is; any other float network is converted and verified.

    Args:
        given: what is said of a file without GradSeg metadata, by default what stands in `spec_file`.
        data: frames to verify a conversion on; by default scenes.

    Raises GradsegError for a file that is not ONNX, that nothing is said of, or that is not as described.
    """
    values = metadata.read_metadata(path)
    if metadata.FRAME_SIZE in values or metadata.BATCH in values:
        raise GradsegError(
            f"{path}: was made with --frame-size or --batch, and what comes after that takes it only as it is; give "
            "the file that was made without them, or the checkpoint"
        )
    if metadata.SPEC in values:
        given = given_as(metadata.spec_from_metadata(values, path))
    elif given is None:
        given = given_in(spec_file) if spec_file else Given()
    if not given.describes:
        raise GradsegError(f"{path}: an ONNX model without GradSeg metadata; {SAY}")
    need(path, "export", "onnx")
    import onnx

    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # onnx and protobuf raise many classes for a damaged file
        raise GradsegError(f"{path}: not a valid ONNX model ({str(error).strip().splitlines()[0][:160]})") from error
    inputs = list(model.graph.input)
    if [value.type.tensor_type.elem_type for value in inputs] == [onnx.TensorProto.UINT8]:
        return _frame_to_labels(model, given, path, metadata.SPEC in values)
    need(path, "export", "onnxsim", "onnxruntime")
    from gradseg.graphs.foreign.convert import deployment_from_foreign

    made, spec, lines = deployment_from_foreign(model, given, path, data)
    return Loaded(made, spec, notes=tuple(lines))


def _frame_to_labels(model: Any, given: Given, path: str, own: bool) -> Loaded:
    """A model that takes the frame itself, taken as it is; with `own` False its spec travels inside from here on."""
    for value in [*model.graph.input, *model.graph.output]:  # an open batch dimension becomes 1
        batch = value.type.tensor_type.shape.dim[:1]
        if batch and not batch[0].dim_value:
            batch[0].dim_value = 1
    found = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in (model.graph.input[0], model.graph.output[0])]
    height, width = given.input_hw or (found[0][1:3] if len(found[0]) == 4 else (0, 0))
    kind = model.graph.output[0].type.tensor_type.elem_type
    if found[0] != [1, height, width, 3] or (not own and (found[1] != [1, height, width] or kind != 2)):
        raise GradsegError(
            f"{path}: takes uint8 {found[0]} and gives {found[1]}; expected uint8 {[1, height, width, 3]} (BGR) to "
            f"uint8 {[1, height, width]}, or a float32 image (1, 3, height, width) in and logits or labels out"
        )
    spec, note = spec_from(given, None, (height, width), path)
    if not own:
        metadata.set_metadata(model, {metadata.SPEC: spec.to_json(), metadata.FORMAT: metadata.DEPLOYMENT})
    return Loaded(model, spec, notes=tuple(note.splitlines()))


def refuse_checkpoint_options(args: argparse.Namespace) -> None:
    """Raises GradsegError if options that only a checkpoint can follow are given with an ONNX file, or those that
    describe a foreign network with a file that describes itself."""
    own = metadata.SPEC in metadata.read_metadata(args.model)
    if getattr(args, "arch", None) or (own and getattr(args, "size", None)):
        raise GradsegError(
            f"{args.model}: --size and --arch are for checkpoints; an ONNX file's size is fixed; export it "
            f"again from its checkpoint: {command('export/to_onnx.py', 'CKPT', '--size', 'HxW')}"
        )
    if own:
        refuse_foreign_options(args, "carries its own spec")


def load_any(args: argparse.Namespace) -> Loaded:
    """A checkpoint or an ONNX file by its suffix, from the arguments that `add_model_arguments` defines.

    What is to be said of a foreign network's conversion is printed.
    """
    if Path(args.model).suffix.lower() == ".onnx":
        refuse_checkpoint_options(args)
        loaded = model_from_onnx(args.model, None, given_by(args), getattr(args, "data", None))
        for line in loaded.notes:
            print(line)
        return loaded
    refuse_foreign_options(args, "is a checkpoint, which carries its own spec")
    return model_from_checkpoint(args.model, args.arch, size_of(args), args.data)


def size_text(path: Path) -> str:
    """A file's size for people: '1.21 MB'."""
    size = path.stat().st_size
    return f"{size / 1e6:.2f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
