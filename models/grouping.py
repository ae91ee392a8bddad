"""Gradual grouping: dense convolutions that evolve into grouped ones while they train.

Method: Vallurupalli et al., "Efficient Semantic Segmentation using Gradual Grouping", CVPR-W 2018. The effective weight
is W ⊙ (M + α(1 − M)) with M the block-diagonal mask of the target groups; α falls from 1 (dense) to 0 (grouped).
Works on any network made of `nn.Conv2d`, with any kernel size, stride, padding and dilation.
"""

from __future__ import annotations

from typing import Any, Callable, Iterable, Optional, Union

import torch
from torch import Tensor, nn

from gradseg.base.errors import GradsegError

Select = Union[None, Iterable[str], Callable[[str, nn.Conv2d], bool]]


class GradualConv2d(nn.Conv2d):
    """A dense convolution whose weights outside `target_groups` diagonal blocks are scaled by `alpha` in [0, 1].

    Input and output as `nn.Conv2d`: float (N, C_in, H, W) → (N, C_out, H', W'). `alpha` is a float32 buffer, so it
    travels in the state dict; the mask is derived and does not.
    """

    alpha: Tensor
    mask: Tensor

    def __init__(self, conv: nn.Conv2d, target_groups: int) -> None:
        super().__init__(**_settings(conv))
        self.target_groups = target_groups
        self.weight, self.bias = conv.weight, conv.bias
        eye = torch.eye(target_groups, device=conv.weight.device, dtype=conv.weight.dtype)
        self.register_buffer("alpha", torch.ones_like(eye[0, 0]))
        blocks = eye.repeat_interleave(conv.out_channels // target_groups, 0)
        mask = blocks.repeat_interleave(conv.in_channels // target_groups, 1)[:, :, None, None]
        self.register_buffer("mask", mask, persistent=False)
        self.training = conv.training

    def effective_weight(self) -> Tensor:
        """W ⊙ (M + α(1 − M)), (C_out, C_in, kH, kW)."""
        scale: Tensor = torch.lerp(self.mask, torch.ones_like(self.mask), self.alpha)
        return self.weight * scale

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.effective_weight(), self.bias)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        text = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{text}, target_groups={self.target_groups}, alpha={float(self.alpha):.4g}"

    def to_grouped(self) -> nn.Conv2d:
        """The true grouped convolution with the same function; raises GradsegError unless alpha is exactly 0."""
        alpha = float(self.alpha)
        if alpha != 0.0:
            raise GradsegError(
                f"gradual grouping is not finished: alpha is {alpha:.4g}, so the convolution is still dense; "
                "train until alpha is 0, or set_alpha(module, 0) and fine-tune, before it is finalised or exported"
            )
        conv = nn.Conv2d(**_settings(self), groups=self.target_groups)
        rows = self.weight.detach().chunk(self.target_groups, 0)
        width = self.in_channels // self.target_groups
        kept = [row[:, i * width : (i + 1) * width] for i, row in enumerate(rows)]
        conv.weight = nn.Parameter(torch.cat(kept, 0), requires_grad=self.weight.requires_grad)
        conv.bias = self.bias
        return conv.train(self.training)


def _settings(conv: nn.Conv2d) -> dict[str, Any]:
    """What makes a convolution like this one, dense and without memory for its weights."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode")
    return {**{name: getattr(conv, name) for name in names}, "bias": conv.bias is not None, "device": "meta"}


def _replace(root: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, new)


def _chosen(module: nn.Module, groups: int, select: Select) -> dict[str, nn.Conv2d]:
    convs = {name: m for name, m in module.named_modules() if isinstance(m, nn.Conv2d)}
    if select is None:
        fits = {n for n, m in convs.items() if m.groups == 1 and m.in_channels % groups == m.out_channels % groups == 0}
        return {name: m for name, m in convs.items() if name in fits}
    if callable(select):
        return {name: m for name, m in convs.items() if select(name, m)}
    wanted = list(select)
    unknown = [name for name in wanted if name not in convs]
    if unknown:
        raise GradsegError(f"no nn.Conv2d named {', '.join(unknown)} in {type(module).__name__}")
    return {name: convs[name] for name in wanted}


def convert(module: nn.Module, groups: int, select: Select = None) -> nn.Module:
    """Turns dense convolutions into gradually grouped ones, in place, with alpha 1 (the function is unchanged).

    Args:
        module: any network; if it is itself an `nn.Conv2d`, the converted convolution is returned instead.
        groups: the target number of groups, at least 2.
        select: names of convolutions, or a predicate (name, conv) → bool; by default every convolution that is dense
            and whose channels divide by `groups`.

    Returns the module. Raises GradsegError if a selected convolution is already grouped or does not divide, or if
    nothing is selected.
    """
    if groups < 2:
        raise GradsegError(f"groups is {groups}; gradual grouping needs at least 2")
    chosen = _chosen(module, groups, select)
    if not chosen:
        raise GradsegError(f"no convolution to convert to {groups} groups in {type(module).__name__}")
    for name, conv in chosen.items():
        label = name or type(conv).__name__
        if isinstance(conv, GradualConv2d):
            raise GradsegError(f"{label} is already gradually grouped; finalise it first")
        if conv.groups != 1:
            raise GradsegError(f"{label} already has {conv.groups} groups; only dense convolutions can be converted")
        if conv.in_channels % groups or conv.out_channels % groups:
            raise GradsegError(
                f"{label} has {conv.in_channels}→{conv.out_channels} channels: not divisible by {groups}"
            )
    converted: dict[int, GradualConv2d] = {}
    for name, conv in list(module.named_modules(remove_duplicate=False)):
        if isinstance(conv, nn.Conv2d) and any(conv is c for c in chosen.values()):
            new = converted.setdefault(id(conv), GradualConv2d(conv, groups))
            if not name:
                return new
            _replace(module, name, new)
    return module


def gradual_convs(module: nn.Module) -> dict[str, GradualConv2d]:
    """The gradually grouped convolutions inside `module`, by name."""
    return {name: m for name, m in module.named_modules() if isinstance(m, GradualConv2d)}


def set_alpha(module: nn.Module, alpha: float) -> None:
    """Sets alpha, in [0, 1], of every gradually grouped convolution; raises GradsegError outside that range."""
    if not 0.0 <= alpha <= 1.0:
        raise GradsegError(f"alpha is {alpha}; it must lie in 0..1")
    for conv in gradual_convs(module).values():
        conv.alpha.fill_(alpha)


def get_alpha(module: nn.Module) -> Optional[float]:
    """The largest alpha of the module's gradually grouped convolutions; None if it has none."""
    values = [float(conv.alpha) for conv in gradual_convs(module).values()]
    return max(values) if values else None


def finalise(module: nn.Module) -> nn.Module:
    """Stores every gradually grouped convolution as a true grouped one with the same outputs, in place.

    Returns the module (or the grouped convolution, if `module` is itself a gradual one). Raises GradsegError, changing
    nothing, if any alpha is not 0.
    """
    if isinstance(module, GradualConv2d):
        return module.to_grouped()
    grouped: dict[int, nn.Conv2d] = {}
    for name, conv in gradual_convs(module).items():
        try:
            grouped[id(conv)] = conv.to_grouped()
        except GradsegError as error:
            raise GradsegError(f"{name}: {error}") from error
    for name, conv in list(module.named_modules(remove_duplicate=False)):
        if isinstance(conv, GradualConv2d):
            _replace(module, name, grouped[id(conv)])
    return module
