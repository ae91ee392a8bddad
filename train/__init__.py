"""Training with gradual grouping. `convert`, `set_alpha` and `finalise` work on any network made of `nn.Conv2d`."""

from gradseg.models.grouping import GradualConv2d, convert, finalise, get_alpha, gradual_convs, set_alpha

__all__ = ["GradualConv2d", "convert", "finalise", "get_alpha", "gradual_convs", "set_alpha"]
