"""Checkpoints: weights plus ModelSpec in one file, read with `weights_only=True`; public ERFNet files too."""

from __future__ import annotations

import dataclasses
import pickle
import struct
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Optional

import torch
from torch import Tensor

from gradseg.base.errors import GradsegError
from gradseg.base.files import atomic_path, require_file
from gradseg.models.grouping import convert, finalise, get_alpha
from gradseg.models.networks.erfnet import SegNetwork, encoder_pointwise
from gradseg.models.spec import CITYSCAPES_CLASSES, CITYSCAPES_PALETTE, ModelSpec, distinct_palette, spec_for

FORMAT = "gradseg-checkpoint"
VERSION = 1
# what torch.load raises for files cut or altered at one place or another
DAMAGED = (
    RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, AssertionError, TypeError, struct.error,
)  # fmt: skip


@dataclass
class Checkpoint:
    """A loaded checkpoint. `network` is in eval mode and finalised (true grouped convolutions), float32, on the CPU."""

    spec: ModelSpec
    network: SegNetwork
    info: dict[str, Any] = field(default_factory=dict)


def gradual_network(spec: ModelSpec, predictor: bool = False, dropout_scale: float = 1.0) -> SegNetwork:
    """The spec's network with dense encoder 1x1 convolutions that are gradually grouped, alpha 1.

    With `spec.groups` 1 there is nothing to group and the plain network is returned.
    """
    dense = dataclasses.replace(spec, arch=f"{spec.arch}, dense", groups=1)
    network = SegNetwork(dense, predictor, dropout_scale)
    if spec.groups > 1:
        names = list(encoder_pointwise(network))
        for name in names if spec.shuffle else ():
            network.get_submodule(name.rpartition(".")[0]).shuffle = torch.nn.ChannelShuffle(spec.groups)
        convert(network, spec.groups, select=names)
    network.spec = spec
    return network


def save_checkpoint(
    path: str | Path,
    network: SegNetwork,
    info: Optional[Mapping[str, Any]] = None,
    state: Optional[Mapping[str, Tensor]] = None,
    **more: Any,
) -> None:
    """Writes {format, version, spec, gradual, state, info} atomically. `info` holds plain JSON-like values only.

    state: weights in place of the network's own; `more` are further top-level entries. Raises GradsegError if it cannot
    be written, a full disk included.
    """
    if state is None:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    content = {"format": FORMAT, "version": VERSION, "spec": network.spec.to_json(), "state": dict(state)}
    content.update(gradual=get_alpha(network) is not None, info=dict(info or {}), **more)
    with atomic_path(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # PyTorch's zip writer hides the errno of a failed write
            raise GradsegError(f"cannot write {path}: {_first_line(error)}; is the disk full?") from error


def read_raw(path: str | Path) -> dict[str, Any]:
    """A .pth file as a dict, without executing anything in it; raises GradsegError with the reason if that fails."""
    found = require_file(path, "a PyTorch checkpoint (.pth)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged file makes torch guess aloud before it fails
            raw = torch.load(found, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        with open(found, "rb") as stream:
            pickled = stream.read(1) == b"\x80"
        if not pickled and not zipfile.is_zipfile(found):
            raise GradsegError(f"{found}: not a PyTorch checkpoint (no zip archive inside)") from error
        raise GradsegError(
            f"{found}: refused, it holds pickled code or types beyond plain tensors; "
            "re-save it as a state dict: torch.save(model.state_dict(), path)"
        ) from error
    except DAMAGED as error:
        raise GradsegError(f"{found}: truncated or not a PyTorch checkpoint ({_first_line(error)})") from error
    if not isinstance(raw, dict):
        raise GradsegError(f"{found}: holds a {type(raw).__name__}, expected a GradSeg checkpoint or a state dict")
    return raw


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def load_checkpoint(path: str | Path, spec: Optional[ModelSpec] = None) -> Checkpoint:
    """Loads a GradSeg checkpoint, or a bare state dict whose `spec` is given, ready for evaluation or export.

    Raises GradsegError if the file is missing, truncated, holds code, has no spec, disagrees with its spec (each
    missing, unexpected and mis-shaped tensor is counted, the first ones named), or is a gradual network with alpha
    above 0.
    """
    raw = read_raw(path)
    if raw.get("format") != FORMAT:
        if spec is None:
            raise GradsegError(
                f"{path}: has no GradSeg ModelSpec inside; for a bare state dict say what it is with --arch, "
                "such as --arch erfnet for the public ERFNet checkpoints"
            )
        return Checkpoint(spec, load_state(spec, _public_state(raw, path), path))
    if raw.get("version") != VERSION:
        raise GradsegError(f"{path}: checkpoint version {raw.get('version')!r}; this GradSeg reads version {VERSION}")
    found = ModelSpec.from_json(str(raw.get("spec")), f"{path}: spec")
    state, info = raw.get("state"), raw.get("info")
    if not isinstance(state, dict):
        raise GradsegError(f"{path}: checkpoint without weights; it was damaged or written by something else")
    if found.blocks == "":
        raise GradsegError(f"{path}: architecture {found.arch!r} is not one of GradSeg's family")
    network = load_state(found, state, path, gradual=bool(raw.get("gradual")))
    return Checkpoint(found, network, info if isinstance(info, dict) else {})


def load_state(spec: ModelSpec, state: Mapping[str, Any], where: str | Path, gradual: bool = False) -> SegNetwork:
    """Builds the spec's network, checks every tensor's name and shape, loads it, finalises it, sets eval mode."""
    if not all(isinstance(name, str) for name in state):
        raise GradsegError(f"{where}: its weights have names that are no text; not a state dict")
    predictor = any(name.startswith("encoder.output_conv.") for name in state)
    network = gradual_network(spec, predictor) if gradual else SegNetwork(spec, predictor)
    check_state(network, state, where)
    network.load_state_dict(state)
    alpha = get_alpha(network)
    if alpha:
        raise GradsegError(
            f"{where}: gradual grouping is not finished, alpha is {alpha:.4g}: the 1x1 convolutions are still dense; "
            "export the finalised checkpoint (best.pth), or train on until alpha is 0"
        )
    return finalise(network).eval()  # type: ignore[return-value]


def check_state(network: torch.nn.Module, state: Mapping[str, Any], where: str | Path) -> None:
    """Raises GradsegError naming what is missing, unexpected or of another shape than the network's."""
    expected = network.state_dict()
    missing = [name for name in expected if name not in state]
    extra = [name for name in state if name not in expected]
    odd = [name for name, tensor in expected.items() if name in state and not _plain(state[name], tensor)]
    wrong = [f"{name} is no plain tensor of real numbers" for name in odd] + [
        f"{name} is {tuple(state[name].shape)} where {tuple(tensor.shape)} is needed"
        for name, tensor in expected.items()
        if name in state and name not in odd and state[name].shape != tensor.shape
    ]
    problems = []
    for what, names in (("missing", missing), ("unexpected", extra), ("mis-shaped", wrong)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"{len(names)} {what}: {', '.join(names[:3])}{more}")
    if problems:
        raise GradsegError(f"{where}: the weights do not fit the spec ({'; '.join(problems)})")
    negative = [name for name in expected if name.endswith("running_var") and bool((state[name] < 0).any())]
    if negative:
        raise GradsegError(f"{where}: negative variance in {negative[0]}; the file is damaged")
    broken = [name for name in expected if state[name].is_floating_point() and not torch.isfinite(state[name]).all()]
    if broken:
        raise GradsegError(f"{where}: NaN or infinity in {broken[0]}; the training diverged or the file is damaged")


def _plain(value: Any, expected: Tensor) -> bool:
    """Whether `value` is an ordinary dense tensor of the expected one's kind of number."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta or value.is_quantized:
        return False
    return not value.is_complex() and value.is_floating_point() == expected.is_floating_point()


def _public_state(raw: Mapping[str, Any], where: str | Path) -> dict[str, Any]:
    """The state dict inside a public checkpoint: under `state_dict` or bare, keys with or without `module.`.

    Num-batches counters that old PyTorch versions did not write are filled in.
    """
    inner = raw.get("state_dict", raw)
    if not isinstance(inner, Mapping) or not all(isinstance(name, str) for name in inner):
        raise GradsegError(f"{where}: holds no state dict")
    state = {name[len("module.") :] if name.startswith("module.") else name: value for name, value in inner.items()}
    for name in list(state):
        if name.endswith(".running_var"):
            state.setdefault(name[: -len("running_var")] + "num_batches_tracked", torch.zeros((), dtype=torch.long))
    return state


def public_spec(path: str | Path, arch: str, size_hw: tuple[int, int] = (512, 1024)) -> ModelSpec:
    """The spec of a bare state dict of architecture `arch`; the class count is read from the last layer's weights.

    20 outputs are Cityscapes' 19 classes and void, 19 without void, as the public ERFNet was trained: RGB / 255, no
    mean or std. Any other count gets numbered names and a generated palette.
    """
    state = _public_state(read_raw(path), path)
    last = state.get("decoder.output_conv.weight")
    if not isinstance(last, Tensor) or last.dim() != 4:
        raise GradsegError(f"{path}: no decoder.output_conv.weight inside; not a network of the ERFNet family")
    count = int(last.shape[1])
    if count in (19, 20):
        return spec_for(arch, CITYSCAPES_CLASSES[:count], CITYSCAPES_PALETTE[:count], size_hw)
    names = tuple(f"class {i}" for i in range(count))
    return spec_for(arch, names, distinct_palette(count), size_hw)
