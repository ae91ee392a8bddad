"""The way back from the deployment form: folded convolutions become a network of the family that exports to them again.

The inverse of `fold_batchnorm`, `fold_input` and `label_head`: BatchNorms become neutral (weight 1, mean 0, variance
1 - eps) with the folded bias as theirs, the first convolution gets its input's normalisation and colour order back, the
label head becomes a deconvolution. A re-export gives the same numbers, those of the first convolution to one unit in
the last place.
"""

from __future__ import annotations

import re
from typing import Any, Mapping, Optional

import numpy as np
import torch
from torch import nn

from gradseg.base.errors import GradsegError
from gradseg.models.networks.erfnet import ConvModule, Downsampler, SegNetwork
from gradseg.models.spec import ModelSpec
from gradseg.train.qat.onnx_module import Folded

Array = np.ndarray[Any, Any]
HEAD = "logits_1x1/Conv"
POOLED = re.compile(r"^/(.+)/pool/MaxPool_output_0_Conv/Conv$")
PLAIN = re.compile(r"^/(.+)/Conv(Transpose)?$")
FIRST = "encoder.initial_block"


def network_from_folded(spec: ModelSpec, folded: Mapping[str, Folded]) -> SegNetwork:
    """Node name → convolution of the deployment form, as `OnnxModule.folded` gives them → the network, in eval mode.

    Raises GradsegError if the nodes are not those that `onnx_from_checkpoint` makes of a network of this spec.
    """
    network = SegNetwork(spec).eval()
    _neutralise(network)
    left = {name for name, module in network.named_modules() if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))}
    with torch.no_grad():
        for name, conv in folded.items():
            pooled, path = POOLED.match(name), module_of(name)
            if pooled is not None:
                _set_pooled(network, pooled.group(1).replace("/", "."), conv)
            elif path is not None and path in left:
                _set_head(network, conv) if name == HEAD else _set_conv(network, path, conv)
                left.discard(path)
            else:
                raise GradsegError(f"{name}: no convolution of {spec.arch}; the model is not one of its exports")
    if left:
        raise GradsegError(f"{len(left)} convolutions of {spec.arch} are not in the model, first {sorted(left)[0]}")
    return network


def module_of(node: str) -> Optional[str]:
    """'/encoder/layers.1/pw1/Conv' → 'encoder.layers.1.pw1'; None for a node that is no module's own convolution."""
    if node == HEAD:
        return "decoder.output_conv"
    plain = None if POOLED.match(node) else PLAIN.match(node)
    return plain.group(1).replace("/", ".") if plain is not None else None


def _neutralise(network: SegNetwork) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            module.reset_parameters()
            module.running_var.fill_(1.0 - module.eps)


def _set_conv(network: SegNetwork, path: str, conv: Folded) -> None:
    module = network.get_submodule(path)
    assert isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
    weight = _unfolded_first(conv.weight, network.spec) if path == f"{FIRST}.conv" else conv.weight
    _copy(module.weight, weight, path)
    parent_path, _, leaf = path.rpartition(".")
    parent = network.get_submodule(parent_path)
    norm = _norm_after(parent, leaf)
    if norm is None:
        assert module.bias is not None
        _copy(module.bias, conv.bias, path)
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    bias = torch.from_numpy(conv.bias)
    if isinstance(parent, ConvModule):  # the BatchNorm works on shuffled channels
        bias = parent.shuffle(bias.view(1, -1, 1, 1)).reshape(-1)
    norm.bias[: len(bias)].copy_(bias)


def _norm_after(parent: nn.Module, leaf: str) -> Optional[nn.BatchNorm2d]:
    """The BatchNorm that follows a block's convolution, if any."""
    names = {"conv1x3_1": "bn1", "conv1x3_2": "bn2", "pw1": "bn1", "pw2": "bn2", "conv": "bn"}
    return getattr(parent, names[leaf]) if leaf in names else None


def _set_pooled(network: SegNetwork, path: str, conv: Folded) -> None:
    """The BatchNorm over the pooled branch of a pool-concat downsampler, which the export turns into a convolution."""
    module = network.get_submodule(path)
    assert isinstance(module, Downsampler)
    start = module.conv.out_channels
    weight = conv.weight
    if path == FIRST:  # normalisation and colour order are in it, as a dense 3x3 matrix
        weight = np.diagonal(_unfolded_first(weight, network.spec)[:, :, 0, 0])
    _copy(module.bn.weight[start:], weight.reshape(-1), path)
    _copy(module.bn.bias[start:], conv.bias, path)


def _set_head(network: SegNetwork, conv: Folded) -> None:
    """(4 * C, C_in, 1, 1) in the order (dy, dx, class) → the deconvolution's (C_in, C, 2, 2)."""
    head = network.decoder.output_conv
    classes = network.spec.num_classes
    weight = conv.weight.reshape(2, 2, classes, -1).transpose(3, 2, 0, 1)
    _copy(head.weight, np.ascontiguousarray(weight), HEAD)
    assert head.bias is not None
    _copy(head.bias, conv.bias[:classes], HEAD)


def _unfolded_first(weight: Array, spec: ModelSpec) -> Array:
    """Weights (O, 3, kH, kW) on BGR pixels → on normalised channels in the spec's order.

    Of the neighbouring float32 values that one is taken that the export's product rounds back to `weight`, if there is.
    """
    order = [2, 1, 0] if spec.color_order == "rgb" else [0, 1, 2]
    scale = (1.0 / (255.0 * np.asarray(spec.std, np.float64)))[None, :, None, None]
    wanted = weight[:, order]
    result: Array = (wanted / scale).astype(np.float32)
    for nearby in (np.nextafter(result, np.float32(-np.inf)), np.nextafter(result, np.float32(np.inf))):
        missed = (result * scale).astype(np.float32) != wanted
        hits = (nearby * scale).astype(np.float32) == wanted
        result = np.where(missed & hits, nearby, result)
    return result


def _copy(target: torch.Tensor, value: Array, where: str) -> None:
    if tuple(target.shape) != value.shape:
        raise GradsegError(f"{where}: {list(value.shape)} in the model where {list(target.shape)} is needed")
    target.copy_(torch.from_numpy(np.array(value, np.float32)))
