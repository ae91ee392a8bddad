"""Training with gradual grouping. `convert`, `set_alpha` and `finalise` work on any network made of `nn.Conv2d`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradseg.models.grouping import GradualConv2d, convert, finalise, get_alpha, gradual_convs, set_alpha

__all__ = ["GradualConv2d", "convert", "finalise", "get_alpha", "gradual_convs", "set_alpha"]


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: the scripts say what they can do where PyTorch is missing."""
    if name in __all__:
        from gradseg.models import grouping

        return getattr(grouping, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
